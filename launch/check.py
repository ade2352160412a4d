"""`sandboxrl check run RUN`: which checkpoints of a run are whole, and from which one it goes on."""

import argparse
from pathlib import Path

from sandboxrl.data.errors import InputError
from sandboxrl.rl.learner.checkpoint import Checkpoints


def configure(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    what = "which checkpoints of a run are whole, every byte of them, and from which one it goes on"
    of_run = kinds.add_parser("run", help=what, description=what)
    of_run.add_argument("run_dir", metavar="RUN", type=Path, help="a run folder, for example runs/tiny")
    of_run.set_defaults(check=check_run)


def run(args: argparse.Namespace) -> int:
    return int(args.check(args))


def check_run(args: argparse.Namespace) -> int:
    """Exit code 0: every checkpoint is whole. 1: one is not. Changes nothing."""
    if not (args.run_dir / "recipe.yaml").is_file():
        raise InputError(f"{args.run_dir} is not a run folder: it has no recipe.yaml")
    checkpoints = Checkpoints(args.run_dir)
    problems = {step: checkpoints.problem(step) for step in checkpoints.steps()}
    reasons = {step: why for why, step in checkpoints.protected().items()}
    for step, problem in problems.items():
        kept = f", kept as {reasons[step]}" if step in reasons else ""
        print(f"{checkpoints.path(step).name}  {problem or 'whole'}{kept}")
    whole = [step for step, problem in problems.items() if not problem]
    if whole:
        print(f"the run goes on from step {whole[-1]}")
    else:
        print("no checkpoint is whole" if problems else "no checkpoint was saved: the run starts from its model")
    return int(len(whole) < len(problems))

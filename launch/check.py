"""`sandboxrl check run RUN`: which checkpoints of a run are whole, and from which one it goes on.
`sandboxrl check backend OBJECT`: which promises of a sandbox a backend does not keep."""

import argparse
import asyncio
from pathlib import Path

from sandboxrl.data.errors import InputError
from sandboxrl.envs.sandbox.contract import CONTRACT, examine
from sandboxrl.envs.sandbox.pool import open_backend
from sandboxrl.envs.sandbox.protocol import SandboxConfig
from sandboxrl.rl.learner.checkpoint import Checkpoints


def configure(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    what = "which checkpoints of a run are whole, every byte of them, and from which one it goes on"
    of_run = kinds.add_parser("run", help=what, description=what)
    of_run.add_argument("run_dir", metavar="RUN", type=Path, help="a run folder, for example runs/tiny")
    of_run.set_defaults(check=check_run)
    what = "which promises of a sandbox a backend does not keep, one clause of the contract after the other"
    of_backend = kinds.add_parser("backend", help=what, description=what)
    of_backend.add_argument("backend", metavar="OBJECT", help="my_backend.py:Backend, package.module:Backend or a name")
    of_backend.add_argument("--image", default=SandboxConfig().image, help="of the sandboxes, where there are images")
    of_backend.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE", help="a key of sandbox.options; may be repeated"
    )
    of_backend.set_defaults(check=check_backend)


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


def check_backend(args: argparse.Namespace) -> int:
    """Exit code 0: every clause is kept. 1: one is not."""
    words = [option.partition("=") for option in args.option]
    options = {key: value for key, equals, value in words if equals}
    if len(options) < len(words):
        raise InputError("--option takes KEY=VALUE")
    config = SandboxConfig(backend=args.backend, image=args.image, options=options)
    return asyncio.run(_check_backend(config))


async def _check_backend(config: SandboxConfig) -> int:
    backend, broken = open_backend(config), 0
    try:
        async for verdict in examine(backend):
            print(f"{'NOT KEPT' if verdict.problem else 'kept':10}{verdict.name}", flush=True)
            if verdict.problem:
                print(f"{'':10}{verdict.problem}", flush=True)
                broken += 1
    finally:
        await backend.close()
    print(f"{broken} of {len(CONTRACT)} clauses are not kept" if broken else f"all {len(CONTRACT)} clauses are kept")
    return int(broken > 0)

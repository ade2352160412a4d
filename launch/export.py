"""`sandboxrl export RUN [--step N | --best] --out DIR`: a run's policy as a Hugging Face folder that vLLM serves."""

import argparse
import os
import shlex
import shutil
from pathlib import Path

from sandboxrl.data.errors import InputError
from sandboxrl.rl.continuing import recipe_of_folder
from sandboxrl.rl.engine.config import serve_command
from sandboxrl.rl.learner.checkpoint import Checkpoints


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", metavar="RUN", type=Path, help="a run folder, for example runs/tiny")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--step", type=int, help="which checkpoint; default: the newest that is whole")
    which.add_argument("--best", action="store_true", help="the one that scored highest; needs `checkpoint.best`")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; must not exist yet")


def run(args: argparse.Namespace) -> int:
    recipe = recipe_of_folder(args.run_dir, [])
    if os.path.lexists(args.out):
        raise InputError(f"{args.out} exists already; name another --out")
    step = chosen_step(args)
    from sandboxrl.rl.learner.learner import export  # heavy from here on: torch, Ray
    from sandboxrl.rl.run import load_chat_format, model_of_run

    model_dir = model_of_run(recipe, args.run_dir)
    parser = load_chat_format(model_dir, recipe).call_format
    args.out.parent.mkdir(parents=True, exist_ok=True)
    partial = args.out.with_name(f".{args.out.name}.{os.getpid()}.part")  # --out is there whole or not at all
    try:
        export(Checkpoints(args.run_dir).path(step), model_dir, partial)
        if recipe.model.chat_template:
            shutil.copy(recipe.model.chat_template, partial / "chat_template.jinja")
        partial.rename(args.out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"{args.out}: the policy of {args.run_dir} after step {step}.  Serve it:")
    print(f"  {shlex.join(serve_command(str(args.out), parser))}")
    return 0


def chosen_step(args: argparse.Namespace) -> int:
    """The checkpoint to export, which is whole. Raises InputError."""
    checkpoints = Checkpoints(args.run_dir)
    steps = checkpoints.steps()
    if args.best and "best" not in checkpoints.protected():
        raise InputError(f"{args.run_dir} kept no best checkpoint: its recipe needs checkpoint.best: an evaluation set")
    if args.best:
        step = checkpoints.protected()["best"]
    else:
        step = args.step if args.step is not None else checkpoints.newest_whole()
    if step not in steps:
        raise InputError(f"{args.run_dir} has no checkpoint of step {step}; there are: {steps or 'none'}")
    if problem := checkpoints.problem(step):
        raise InputError(problem)
    return step

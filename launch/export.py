"""`sandboxrl export RUN [--step N | --best] --out DIR`: a run's policy as a Hugging Face folder that vLLM serves."""

import argparse
import shlex
import shutil
from pathlib import Path

from sandboxrl.data.errors import InputError
from sandboxrl.rl.config import load_recipe
from sandboxrl.rl.engine.config import serve_command


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", metavar="RUN", type=Path, help="a run folder, for example runs/tiny")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--step", type=int, help="which checkpoint; default: the newest that is whole")
    which.add_argument("--best", action="store_true", help="the one that scored highest; needs `checkpoint.best`")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; must not exist yet")


def run(args: argparse.Namespace) -> int:
    if not (args.run_dir / "recipe.yaml").is_file():
        raise InputError(f"{args.run_dir} is not a run folder: it has no recipe.yaml")
    if args.out.exists():
        raise InputError(f"{args.out} exists already; name another --out")
    recipe = load_recipe(args.run_dir / "recipe.yaml")
    from sandboxrl.rl.learner.checkpoint import Checkpoints  # heavy from here on: torch
    from sandboxrl.rl.learner.learner import export
    from sandboxrl.rl.run import load_chat_format, model_of_run

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
    model_dir = model_of_run(recipe, args.run_dir)
    parser = load_chat_format(model_dir, recipe).call_format
    export(checkpoints.path(step), model_dir, args.out)
    if recipe.model.chat_template:
        shutil.copy(recipe.model.chat_template, args.out / "chat_template.jinja")
    print(f"{args.out}: the policy of {args.run_dir} after step {step}.  Serve it:")
    print(f"  {shlex.join(serve_command(str(args.out), parser))}")
    return 0

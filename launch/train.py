"""`sandboxrl train RECIPE [key=value …]`: train a policy, or continue its run folder."""

import argparse
import sys
from pathlib import Path

from sandboxrl.data import files
from sandboxrl.data.errors import InputError, one_line
from sandboxrl.data.files import read_jsonl
from sandboxrl.launch.parser import complete_recipe, configure_progress
from sandboxrl.launch.signals import run_async
from sandboxrl.rl.config import Recipe, find_recipe, load_recipe, save_recipe
from sandboxrl.rl.continuing import RECIPE, out_of_job, recipe_of_folder
from sandboxrl.rl.own_code import with_code
from sandboxrl.rl.reports.progress import opened


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    recipe = add(
        "recipe", metavar="RECIPE", help="a YAML file, the name of a recipe that ships (`tiny`), or a run folder"
    )
    overrides = add("overrides", nargs="*", metavar="key=value", help="any key of the recipe, for example steps=5")
    complete_recipe(recipe, overrides)
    add("--fresh", action="store_true", help="refuse to continue a run folder that exists")
    add("--from-step", type=int, metavar="N", help="go on from the checkpoint of step N; later ones are removed")
    told = "compute the learner's side of the run folder RECIPE again, from the trajectories it has saved"
    add("--replay", action="store_true", help=f"{told}; with --from-step N and --to-step M")
    add("--to-step", type=int, metavar="M", help="last step of a replay; default: the run's last")
    add("--dry-run", action="store_true", help="check the recipe, model, tasks and sandbox, and stop")
    configure_progress(parser)


def run(args: argparse.Namespace) -> int:
    if args.replay:
        return run_replay(Path(args.recipe), args.overrides, args.from_step or 0, args.to_step)
    if args.to_step is not None:
        raise InputError("--to-step: has no effect without --replay; steps=M ends a run")
    recipe = with_code(out_of_job(recipe_named(args.recipe, args.overrides), Path.cwd()))
    with opened(args.progress) as progress:
        from sandboxrl.rl.run import prepare, trained  # heavy: tokenizers, Ray

        if args.dry_run:
            told = prepare(recipe, progress, download=False).told(recipe)
            progress.line(f"{told}\nall of it can be used; nothing was started", {"event": "dry_run", "told": told})
            return 0
        summary = trained(recipe, progress, args.fresh, args.from_step, run_async)
    return 0 if summary["status"].startswith(("finished", "stopped")) else 1


def run_replay(run_dir: Path, overrides: list[str], first: int, last: int | None) -> int:
    """Exit code 0: all numbers are those recorded. 1: one differs, as with another loss or learning rate."""
    recorded = recipe_of_folder(run_dir, [])
    recipe = with_code(recipe_of_folder(run_dir, [f"name={recorded.name}.replay", *overrides]))
    last = last if last is not None else max((row["step"] for row in read_jsonl(run_dir / "metrics.jsonl")), default=0)
    if not 0 <= first < last:
        raise InputError(f"--from-step {first} --to-step {last}: there is no step to compute")
    if recipe.run_dir.resolve() == run_dir.resolve():
        raise InputError(f"name={recipe.name}: a replay needs a folder of its own")
    from sandboxrl.rl.replay import replay
    from sandboxrl.rl.run import model_of_run
    from sandboxrl.rl.trainer import RunFailed

    recipe.run_dir.mkdir(parents=True, exist_ok=True)
    with files.held(recipe.run_dir, f"{recipe.run_dir} is in use by another process; choose another name=…"):
        save_recipe(recipe, recipe.run_dir / RECIPE)
        try:
            done = run_async(replay(recipe, run_dir, model_of_run(recorded, run_dir), first, last, print))
        except (RunFailed, OSError) as error:
            print(f"sandboxrl train --replay: {one_line(error)}", file=sys.stderr)
            return 1
    weights = {True: "equal bit for bit", False: "DIFFER", None: "cannot be compared: that checkpoint is not kept"}
    print(f"steps {first + 1} to {last}: {len(done.differing)} of {len(done.rows)} differ")
    print(f"weights and those of checkpoint {last} of {run_dir}: {weights[done.weights_equal]}")
    print(f"what came out: {recipe.run_dir}/replay.jsonl and its checkpoint of step {last}")
    return int(bool(done.differing) or done.weights_equal is False)


def recipe_named(word: str, overrides: list[str]) -> Recipe:
    """The recipe of a file, of a name that ships, or of a run folder (or its recipe.yaml) as it lies now."""
    path = Path(word)
    folder = path.parent if path.name == RECIPE and (path.parent / "metrics.jsonl").exists() else path
    if folder.is_dir() and (folder / RECIPE).is_file():
        return recipe_of_folder(folder, overrides)
    return load_recipe(find_recipe(word), overrides)

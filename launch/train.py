"""`sandboxrl train RECIPE [key=value …]`: train a policy, or continue its run folder."""

import argparse
import asyncio
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from sandboxrl.data.errors import InputError
from sandboxrl.data.files import held
from sandboxrl.rl.config import Recipe, load_recipe, save_recipe
from sandboxrl.rl.own_code import check_code, with_code

MAY_CHANGE = (
    "steps",
    "out",
    "cluster",
    "num_workers",
    "evaluation",
    "checkpoint",
    "wandb",
    "tensorboard",
    "save_trajectories_every",
    "watch",
    "learner.world_size",
    "engine.weight_backend",
)
"""Keys that a continued run may change; any other makes it another experiment."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, for example recipes/tiny.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="any key of the recipe, for example steps=5")
    parser.add_argument("--fresh", action="store_true", help="refuse to continue a run folder that exists")


def run(args: argparse.Namespace) -> int:
    recipe = with_code(out_of_job(load_recipe(args.recipe, args.overrides), Path.cwd()))
    from sandboxrl.rl.run import prepare, train_run  # heavy: tokenizers, Ray

    with run_folder(recipe, args.fresh):
        if is_finished(recipe):
            print(f"{recipe.run_dir} is finished already: {recipe.run_dir}/report.html; more steps=… continue it")
            return 0
        inputs = prepare(recipe)  # everything that can be wrong with the input, before anything is started
        summary = asyncio.run(train_run(recipe, inputs))
    return 0 if summary["status"].startswith(("finished", "stopped")) else 1


def is_finished(recipe: Recipe) -> bool:
    """Whether nothing is left to do in the run folder."""
    file = recipe.run_dir / "summary.json"
    summary = json.loads(file.read_text()) if file.is_file() else {}
    return bool(summary.get("status") == "finished" and summary["steps"] >= recipe.steps)


def out_of_job(recipe: Recipe, folder: Path) -> Recipe:
    """A Ray job runs in a temporary copy of its working directory: there a relative `out` is taken from the home."""
    if "runtime_resources" not in folder.parts or Path(recipe.out).is_absolute():
        return recipe
    return replace(recipe, out=str(Path.home() / "sandboxrl" / recipe.out))


@contextmanager
def run_folder(recipe: Recipe, fresh: bool) -> Iterator[None]:
    """Make or continue `runs/NAME`, held by this process alone. A new folder that came to nothing is removed again."""
    folder, resolved = recipe.run_dir, recipe.run_dir / "recipe.yaml"
    exists = resolved.exists()
    if exists and fresh:
        raise InputError(f"{folder} exists; choose another name=… or leave out --fresh to continue it")
    if exists:
        check_same(recipe, resolved)
    folder.mkdir(parents=True, exist_ok=True)
    with held(folder, f"{folder} is in use by another process; choose another name=…"):
        save_recipe(recipe, resolved)
        try:
            yield
        except InputError:
            if not exists:
                remove_empty(folder)
            raise


def check_same(recipe: Recipe, resolved: Path) -> None:
    """A run is continued only under the recipe that started it."""
    known = load_recipe(resolved)
    check_code(recipe, known.code)
    old, new = (dict(leaves(OmegaConf.structured(one))) for one in (known, recipe))
    for key in sorted(old.keys() | new.keys()):
        if not {key, key.partition(".")[0]} & set(MAY_CHANGE) and old.get(key) != new.get(key):
            raise InputError(
                f"{resolved.parent} was made with {key}={old.get(key)}, not {new.get(key)}; choose another name=…"
            )


def leaves(section: DictConfig, prefix: str = "") -> Iterator[tuple[str, object]]:
    """`a.b` and its value for every key of a recipe."""
    for name, value in section.items():
        if isinstance(value, DictConfig):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def remove_empty(folder: Path) -> None:
    """Remove what `run_folder` made, and only that."""
    for name in ("recipe.yaml", ".lock"):
        (folder / name).unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()
    else:
        print(f"left in place: {folder}", file=sys.stderr)

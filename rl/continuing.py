"""Taking a run folder: whether a recipe may go on with what lies there, and that no other process does.

A key is part of the experiment, or of how it is carried out (`Recipe.CARRIED_OUT`). A run that has begun goes on only
under the experiment that began it; the other keys may change, and `log.txt` says from which step.
"""

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sandboxrl.data import files
from sandboxrl.data.errors import InputError
from sandboxrl.data.files import read_jsonl, read_object
from sandboxrl.rl.config import Recipe, load_recipe
from sandboxrl.rl.keys import is_carried_out
from sandboxrl.rl.learner.checkpoint import Checkpoints
from sandboxrl.rl.own_code import check_code

RECIPE, SUMMARY, METRICS, LOCK = "recipe.yaml", "summary.json", "metrics.jsonl", ".lock"
PLACE = ("name", "out")
"""Where a folder lies: a copied one has other values, which nobody needs to be told."""
Changes = Mapping[str, tuple[Any, Any]]
"""Key -> (value before, value now)."""


def recipe_of_folder(folder: Path, overrides: list[str]) -> Recipe:
    """The recipe of a run folder as it lies now: a copied or moved one goes on under its new name."""
    if not (folder / RECIPE).is_file():
        raise InputError(f"{folder} is not a run folder: it has no {RECIPE}")
    place = folder.resolve()
    return load_recipe(folder / RECIPE, [f"name={place.name}", f"out={folder.parent}", *overrides])


def has_begun(run_dir: Path) -> bool:
    """Whether a run folder holds anything that another experiment must not be mixed with."""
    return bool(Checkpoints(run_dir, keep=0).steps() or read_jsonl(run_dir / METRICS))


def changes(recipe: Recipe) -> Changes:
    """The keys of how the run is carried out that differ from those it was last carried out with. Raises InputError
    where the experiment differs and has begun."""
    resolved = recipe.run_dir / RECIPE
    if not resolved.is_file():
        return {}
    known = load_recipe(resolved)
    if has_begun(recipe.run_dir):
        check_code(recipe, known.code)
    old, new = (dict(leaves(OmegaConf.structured(one))) for one in (known, recipe))
    different = {key: (old.get(key), new.get(key)) for key in old.keys() | new.keys() if old.get(key) != new.get(key)}
    falls = recipe.learner.schedule != "constant" and not recipe.learner.schedule_steps  # then it falls over `steps`
    for key, (before, now) in sorted(different.items()):
        if (not is_carried_out(key, Recipe) or (falls and key == "steps")) and has_begun(recipe.run_dir):
            raise InputError(f"{recipe.run_dir} was made with {key}={before}, not {now}; choose another name=…")
    return {key: both for key, both in sorted(different.items()) if key not in PLACE}


def is_finished(recipe: Recipe) -> bool:
    """Whether nothing is left to do in the run folder."""
    file = recipe.run_dir / SUMMARY
    summary = read_object(file) if file.is_file() else {}
    steps = summary.get("steps")
    return summary.get("status") == "finished" and isinstance(steps, int) and steps >= recipe.steps


def out_of_job(recipe: Recipe, folder: Path) -> Recipe:
    """A Ray job runs in a temporary copy of its working directory: there a relative `out` is taken from the home."""
    if "runtime_resources" not in folder.parts or Path(recipe.out).is_absolute():
        return recipe
    return replace(recipe, out=str(Path.home() / "sandboxrl" / recipe.out))


@contextlib.contextmanager
def held(recipe: Recipe, fresh: bool) -> Iterator[Changes]:
    """The run folder, made where it is not there and held by this process alone; yields what has changed since it was
    last held. A folder that was made here and came to nothing is removed again."""
    folder = recipe.run_dir
    if fresh and (folder / RECIPE).exists():
        raise InputError(f"{folder} exists; choose another name=… or leave out --fresh to continue it")
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with files.held(folder, f"{folder} is in use by another process; choose another name=…"):
            yield changes(recipe)
    finally:
        _remove_unused(folder, made)


def _remove_unused(folder: Path, made: list[Path]) -> None:
    if folder in made and not (folder / RECIPE).exists():
        with contextlib.suppress(OSError):  # a folder that holds anything stays
            (folder / LOCK).unlink(missing_ok=True)
            for one in made:
                one.rmdir()


def go_back(run_dir: Path, step: int) -> list[int]:
    """Make `step` the last step of a run: later checkpoints are removed, their steps returned; its rows are cut by the
    run that goes on. Raises InputError where there is no such checkpoint."""
    checkpoints = Checkpoints(run_dir, keep=0)
    steps = checkpoints.steps()
    if step not in steps:
        raise InputError(f"--from-step {step}: {run_dir} has no checkpoint of it; there are: {steps or 'none'}")
    later = [one for one in steps if one > step]
    for one in reversed(later):  # the newest first: a kill in between leaves a run that goes on from what is left
        shutil.rmtree(checkpoints.path(one))
    return later


def leaves(section: DictConfig, prefix: str = "") -> Iterator[tuple[str, object]]:
    """`a.b` and its value for every key of a recipe."""
    for name, value in section.items():
        if isinstance(value, DictConfig):
            yield from leaves(value, f"{prefix}{name!s}.")
        else:
            yield f"{prefix}{name!s}", value

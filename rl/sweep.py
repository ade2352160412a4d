"""A sweep: arms x axes x seeds of one recipe, each a Ray job; what its file may say, its cells, and the table.

    recipe: ../qwen3_4b.yaml            relative to the sweep's file
    seeds: [0, 1, 2]
    parallel: 1                         jobs at the same time
    set: {steps: 50}                    keys of the recipe for every arm
    arms:                               name of the row -> keys of the recipe
      Math: {tasks.train: {math: {source: math}}}
    axes: {learner.learning_rate: [1e-6, 3e-6]}        every combination with every arm
    evaluate: --benchmarks aime25 --mode both          `sandboxrl evaluate` on what each job has trained (optional)

A key's value replaces the recipe's, mappings included; a file is looked for here and beside the
sweep's own. Everything lies below `out` (default: runs/NAME of the sweep's
file): recipes/, one run folder per cell, table.txt, table.csv. A cell that has finished is not run again; one that was
interrupted or has failed continues from its last checkpoint; one that fails never stops the others.
"""

import csv
import dataclasses
import hashlib
import io
import itertools
import math
import re
import shlex
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from sandboxrl.data import plain_yaml
from sandboxrl.data.errors import InputError, nearest, one_line
from sandboxrl.data.files import read_object, write_whole
from sandboxrl.rl import continuing
from sandboxrl.rl.config import Recipe, load_recipe

GIVEN = {"seed": "seeds", "name": "arms", "out": "out"}
"""Keys of a recipe that a sweep sets itself, and from which of its own keys."""

T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""Student's t for a two-sided 95 % interval with 1, 2, … degrees of freedom; 1.96 is used beyond."""


@dataclass(frozen=True)
class Sweep:
    """A sweep's file."""

    recipe: str = ""
    arms: dict[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    axes: dict[str, Any] = field(default_factory=dict)
    set: dict[str, Any] = field(default_factory=dict)
    parallel: int = 1
    out: str = ""
    cluster: str = ""
    """Address of a Ray cluster's job server (http://HOST:8265); empty: $RAY_ADDRESS, else a cluster on this machine."""
    evaluate: str = ""


@dataclass(frozen=True)
class Cell:
    """One job: an arm with values of the axes and a seed."""

    arm: str
    values: tuple[tuple[str, Any], ...]
    seed: int
    recipe: Recipe
    recipe_file: Path

    @property
    def row(self) -> str:
        """The table's row: all seeds of it are one."""
        return ", ".join([self.arm, *(f"{key}={value}" for key, value in self.values)])

    @property
    def name(self) -> str:
        return self.recipe.name


@dataclass
class Outcome:
    """What came of a cell: scores by (set, mode), or why there are none."""

    scores: dict[tuple[str, str], float]
    failure: str = ""


# ---------------------------------------------------------------------------------------------------------- the cells


def load_sweep(path: Path, overrides: Sequence[str]) -> tuple[Sweep, Path]:
    """The sweep and its folder. Raises InputError."""
    row, _ = plain_yaml.read_file(path)
    if not isinstance(row, dict):
        raise InputError(f"{path}: a sweep is a mapping of keys to values")
    for word in overrides:
        override(row, word)
    fields = {f.name: f for f in dataclasses.fields(Sweep)}
    for key in row:
        if key not in fields:
            raise InputError(f"{path}: unknown key {key!r}{nearest(str(key), fields)}")
    for key in ("recipe", "out", "cluster", "evaluate"):
        if not isinstance(row.get(key, ""), str):
            raise InputError(f"{path}: {key} is a text, not {row[key]!r}")
    for key in ("arms", "axes", "set"):
        if not isinstance(row.setdefault(key, {}), dict):
            raise InputError(f"{path}: {key} is a mapping, not {row[key]!r}")
    for key, values in row["axes"].items():
        if not isinstance(values, list) or not values:
            raise InputError(f"{path}: axes.{key} is a list of values, not {values!r}")
        if any(values.count(value) > 1 for value in values):
            raise InputError(f"{path}: axes.{key} names a value twice: {values!r}")
    for name, keys in row["arms"].items():
        if not isinstance(keys, dict):
            raise InputError(f"{path}: arms.{name} is a mapping of recipe keys, not {keys!r}")
    arms = {f"arms.{name}": keys for name, keys in row["arms"].items()}
    for place, keys in {"set": row["set"], "axes": row["axes"], **arms}.items():
        for key in set(keys) & set(GIVEN):
            raise InputError(f"{path}: {place}.{key} has no effect: a sweep sets it itself, from its key {GIVEN[key]}")
    seeds = row.get("seeds", [0])
    if (
        not isinstance(seeds, list)
        or not seeds
        or any(type(seed) is not int for seed in seeds)
        or len(set(seeds)) != len(seeds)
    ):
        raise InputError(f"{path}: seeds is a list of different whole numbers, not {seeds!r}")
    sweep = Sweep(**{**row, "seeds": tuple(seeds)})
    if type(sweep.parallel) is not int or sweep.parallel < 1:
        raise InputError(f"{path}: parallel must be a whole number of 1 or more, not {sweep.parallel!r}")
    if not sweep.recipe:
        raise InputError(f"{path}: recipe is missing")
    return sweep, Path(sweep.out or Path("runs") / path.stem)


def override(row: dict[str, Any], word: str) -> None:
    """Put a `key=value` word into the mapping of a sweep's file: a key of the sweep, `set.KEY` or `arms.NAME.KEY`."""
    key, equals, text = word.partition("=")
    value, _ = plain_yaml.read_word(text, key)
    arms = row.get("arms") or {}
    arm = next((name for name in arms if key.startswith(f"arms.{name}.")), None)
    if arm is not None:
        arms[arm] = {**(arms[arm] or {}), key.removeprefix(f"arms.{arm}."): value}
    elif key.startswith("set."):
        row["set"] = {**(row.get("set") or {}), key.removeprefix("set."): value}
    elif equals and "." not in key:
        row[key] = value
    else:
        raise InputError(f"{word!r}: an override is key=value of the sweep, set.KEY=value or arms.NAME.KEY=value")


def plan(sweep: Sweep, folder: Path, out: Path) -> list[Cell]:
    """Every cell, its recipe resolved and checked. Raises InputError that names the arm."""
    base: Any = OmegaConf.to_container(OmegaConf.structured(load_recipe(folder / sweep.recipe)))
    cells = []
    keys = list(sweep.axes)
    combinations = list(itertools.product(*sweep.axes.values()))
    for (arm, changes), values, seed in itertools.product((sweep.arms or {"": {}}).items(), combinations, sweep.seeds):
        pairs = tuple(zip(keys, values, strict=True))
        name = "-".join(
            filter(None, [_plain(arm), *(_plain(f"{k.rpartition('.')[2]}_{v}") for k, v in pairs), f"s{seed}"])
        )
        given = {"seed": seed, "name": name, "out": str(out)}
        resolved = replaced(base, {**_beside({**sweep.set, **changes}, folder), **dict(pairs), **given})
        recipe = recipe_of(resolved, arm or sweep.recipe)
        cells.append(Cell(arm or Path(sweep.recipe).stem, pairs, seed, recipe, out / "recipes" / f"{name}.yaml"))
    names = [cell.name for cell in cells]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two cells would share the run folder {name}: name the arms apart")
    return cells


def _beside(value: Any, folder: Path) -> Any:
    """The value with every file that lies beside the sweep's file, and not here, by its full path."""
    if isinstance(value, dict):
        return {key: _beside(below, folder) for key, below in value.items()}
    if isinstance(value, list):
        return [_beside(below, folder) for below in value]
    if isinstance(value, str) and Path(value).suffix and not Path(value).exists() and (folder / value).is_file():
        return str((folder / value).resolve())
    return value


def replaced(recipe: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the nested mapping in which the dotted keys of `changes` have new values."""
    result = dict(recipe)
    for key, value in changes.items():
        section, _, inner = str(key).partition(".")
        if inner:
            below = result.get(section)
            result[section] = replaced(below if isinstance(below, Mapping) else {}, {inner: value})
        else:
            result[section] = value
    return result


def recipe_of(resolved: Mapping[str, Any], what: str) -> Recipe:
    """The mapping as a recipe, checked as a file would be."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(yaml.safe_dump(dict(resolved)))
        try:
            return load_recipe(path)
        except InputError as error:
            raise InputError(f"{what}: {str(error).removeprefix(f'{path}: ')}") from None


def write_recipe(cell: Cell) -> None:
    """The cell's recipe file; a cell that has begun under another recipe is refused."""
    begun = cell.recipe.run_dir / "recipe.yaml"
    if begun.exists():
        continuing.changes(cell.recipe)
    cell.recipe_file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(cell.recipe_file, OmegaConf.to_yaml(OmegaConf.structured(cell.recipe)))


def entrypoint(cell: Cell, evaluate: str) -> str:
    """The shell command of the job, in the folder of this process. Each part is left out where it was done before."""
    run_dir = shlex.quote(str(cell.recipe.run_dir.resolve()))
    python = f"{shlex.quote(sys.executable)} -m sandboxrl.launch"
    command = f"cd {shlex.quote(str(Path.cwd()))} && {python} train {shlex.quote(str(cell.recipe_file.resolve()))}"
    if evaluate and cell.recipe.steps:
        model = f"{run_dir}/model"
        command += f" && {{ [ -d {model} ] || {python} export {run_dir} --out {model}; }}"
    elif evaluate:  # nothing was trained: the model itself
        module, recipe_file = "sandboxrl.rl.sweep", shlex.quote(str(cell.recipe_file.resolve()))
        model = f'"$({shlex.quote(sys.executable)} -m {module} {recipe_file})"'
    if evaluate:
        command += f" && {python} evaluate {model} {evaluate} --out {run_dir}/evaluation"
    return command


def _plain(text: str) -> str:
    """A part of a folder's name; of a text in another script it holds a digest, so that two such arms stay apart."""
    plain = re.sub(r"(?:[^A-Za-z0-9.]|(?<!\d)\.|\.(?!\d))+", "_", text).strip("_").lower()
    return plain if text.isascii() else f"{plain}_{hashlib.sha256(text.encode()).hexdigest()[:6]}".strip("_")


# --------------------------------------------------------------------------------------------------------- the results


def finished(cell: Cell, evaluate: str) -> bool:
    return not outcome(cell, evaluate, "").failure


def outcome(cell: Cell, evaluate: str, problem: str) -> Outcome:
    """The scores that a cell has left in its folder. `problem`: what the job said."""
    try:
        return _outcome(cell, evaluate, problem)
    except (InputError, KeyError, TypeError, AttributeError) as error:
        return Outcome({}, f"its summary is damaged: {one_line(error)}")


def _outcome(cell: Cell, evaluate: str, problem: str) -> Outcome:
    summary = _json(cell.recipe.run_dir / "summary.json")
    if problem or not summary:
        return Outcome({}, problem or "has not run")
    if summary.get("status") != "finished":
        return Outcome({}, str(summary.get("status")))
    if not evaluate:
        scores = summary["eval_after"] or summary["eval_before"]  # an arm of 0 steps is evaluated once
        return Outcome({(name, cell.recipe.mode): score for name, score in scores.items()})
    evaluated = _json(cell.recipe.run_dir / "evaluation" / "summary.json")
    if not evaluated:
        return Outcome({}, "was not evaluated")
    return Outcome({(name, mode): one["score"] for name, modes in evaluated.items() for mode, one in modes.items()})


def _json(path: Path) -> dict[str, Any]:
    return read_object(path) if path.exists() else {}


Header = list[tuple[str, str]]
TableRow = tuple[str, int, int, list[tuple[float, float, int] | None]]
"""Row, seeds that finished, seeds that failed, and per column (mean, half-width of the 95 % interval, seeds)."""


def tabulate(cells: Sequence[Cell], outcomes: Mapping[str, Outcome]) -> tuple[Header, list[TableRow]]:
    """Columns (set, mode), the set's modes side by side as in the paper's Table 10; a row for each arm."""
    header: Header = []
    for name in dict.fromkeys(name for one in outcomes.values() for name, _ in one.scores):
        header += [
            (name, mode) for mode in ("llm", "sandbox") if any((name, mode) in o.scores for o in outcomes.values())
        ]
    rows: list[TableRow] = []
    for row in dict.fromkeys(cell.row for cell in cells):
        mine = [outcomes[cell.name] for cell in cells if cell.row == row]
        done = [one.scores for one in mine if not one.failure]
        columns = [interval([scores[column] for scores in done if column in scores]) for column in header]
        rows.append((row, len(done), len(mine) - len(done), columns))
    return header, rows


def interval(values: Sequence[float]) -> tuple[float, float, int] | None:
    """Mean and half-width of its 95 % interval over seeds (Student's t); the width of one seed is not known: nan."""
    if not values:
        return None
    num = len(values)
    if num == 1:
        return values[0], math.nan, 1
    t = T_975[num - 2] if num - 2 < len(T_975) else 1.96
    return statistics.fmean(values), t * statistics.stdev(values) / math.sqrt(num), num


def as_text(header: Header, rows: Sequence[TableRow]) -> str:
    """Scores in per cent. A set's name stands above its modes."""
    names = [name if i == 0 or header[i - 1][0] != name else "" for i, (name, _) in enumerate(header)]
    lines = [["", *names, ""], ["", *(mode for _, mode in header), "seeds"]]
    for row, num_done, num_failed, columns in rows:
        seeds = f"{num_done}" + (f" ({num_failed} failed)" if num_failed else "")
        lines.append([row, *map(_percent, columns), seeds])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _percent(column: tuple[float, float, int] | None) -> str:
    if column is None:
        return "-"
    mean, half, _ = column
    return f"{100 * mean:.1f}" if math.isnan(half) else f"{100 * mean:.1f} ±{100 * half:.1f}"


def as_csv(header: Header, rows: Sequence[TableRow]) -> str:
    """One line for each row and column: mean, bounds of the 95 % interval (empty with one seed), seeds."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["arm", "set", "mode", "mean", "low", "high", "seeds", "seeds_failed"])
    for row, _, num_failed, columns in rows:
        for (name, mode), column in zip(header, columns, strict=True):
            mean, half, num = column or (math.nan, math.nan, 0)
            values = ["" if math.isnan(value) else f"{value:.6g}" for value in (mean, mean - half, mean + half)]
            writer.writerow([row, name, mode, *values, num, num_failed])
    return text.getvalue()


def print_model(recipe_file: str) -> None:
    """The folder of a recipe's starting model, for the job of an arm that trains nothing."""
    from sandboxrl.rl.run import resolve_model

    recipe = load_recipe(recipe_file)
    print(resolve_model(recipe.model.path, Path(recipe.out)))


if __name__ == "__main__":
    print_model(sys.argv[1])

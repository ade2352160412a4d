"""The page that compares: runs or evaluations side by side, and the cells of a sweep.

Curves lie over each other, scores are compared task by task with the first one (`statistics.compare`, the numbers of
`sandboxrl analyze`), and the trajectories of a task stand side by side. Of a training run it takes the last evaluation
of each set, or the last training step where there was none.
"""

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sandboxrl.data.errors import InputError
from sandboxrl.rl.reports.pages.bundle import MAX_PAGE_MB, Part, bundle, score_table
from sandboxrl.rl.reports.pages.measures import metrics, saved, series, summary
from sandboxrl.rl.reports.pages.page import page
from sandboxrl.rl.reports.statistics import average, compare, interval

RESULTS = "results.jsonl"
RUN_FILES = ("metrics.jsonl", "recipe.yaml", "trajectories")
"""Any of these makes a folder a run folder."""


def is_run(folder: Path) -> bool:
    return folder.is_dir() and any((folder / name).exists() for name in RUN_FILES)


def is_sweep(folder: Path) -> bool:
    """`sandboxrl sweep` writes a recipe for each cell, and a run folder of the same name beside them."""
    return not is_run(folder) and any((folder / "recipes").glob("*.yaml"))


def compare_page(places: Sequence[Path], max_mb: float = MAX_PAGE_MB) -> str:
    """The page of several run folders, evaluation folders or trajectory files. Raises InputError for anything else."""
    labels = _labels(places)
    return _page(" / ".join(labels), "compare", dict(zip(labels, places, strict=True)), {}, {}, max_mb)


def sweep_page(folder: Path, max_mb: float = MAX_PAGE_MB) -> str:
    """The page of a sweep's folder, finished or not: its table, the curves of each arm and its trajectories."""
    cells = {file.stem: folder / file.stem for file in sorted((folder / "recipes").glob("*.yaml"))}
    begun = {name: place for name, place in cells.items() if place.is_dir()}
    states = {
        name: str(summary(place / "summary.json", []).get("status", "not finished")) for name, place in begun.items()
    }
    states |= dict.fromkeys(cells.keys() - begun.keys(), "has not begun")
    arms = {name: re.sub(r"-?s\d+$", "", name) or name for name in cells}
    table = list(csv.DictReader((folder / "table.csv").open(newline=""))) if (folder / "table.csv").is_file() else []
    content = {"sweep": table, "cells": [[name, arms[name], states[name]] for name in cells]}
    return _page(folder.resolve().name, "sweep", begun, arms, content, max_mb)


def _page(
    title: str, kind: str, places: Mapping[str, Path], groups: Mapping[str, str], more: Mapping[str, Any], max_mb: float
) -> str:
    notes: list[str] = []
    runs, parts = [], []
    for label, place in places.items():
        if is_run(place):
            measured = metrics(place / "metrics.jsonl", notes)
            runs.append(series(label, groups.get(label, label), measured, notes))
            parts += _last(saved(place, label))
        else:
            parts += _results(place, label)
    made = bundle(parts, notes, max_mb)
    content = {
        "kind": kind,
        "title": title,
        "runs": runs,
        "table": score_table(made.index),
        "pairs": paired(made.index, groups),
        "notes": notes,
        **more,
    }
    return page(content, made)


def _labels(places: Sequence[Path]) -> list[str]:
    """Short names that tell the places apart: as many of the last parts of each path as it takes."""
    resolved = [place.resolve() for place in places]
    if len(set(resolved)) < len(resolved):
        raise InputError("the same folder is named twice")
    for depth in range(1, 20):
        labels = ["/".join(place.parts[-depth:]) for place in resolved]
        if len(set(labels)) == len(labels):
            return labels
    return [str(place) for place in resolved]


def _results(place: Path, label: str) -> list[Part]:
    file = place / RESULTS if place.is_dir() else place
    if not file.is_file():
        raise InputError(f"{place} is neither a run, an evaluation ({RESULTS}) nor a .jsonl file")
    return [Part(file, label, "", None)]


def _last(parts: Sequence[Part]) -> list[Part]:
    """The last file of each evaluation set, else of the training."""
    latest = {part.name: part for part in parts}
    evaluations = [part for name, part in latest.items() if name != "Training"]
    return evaluations or list(latest.values())


Scores = dict[str, list[float]]
"""Task -> its scores."""


def paired(index: Mapping[str, Any], groups: Mapping[str, str]) -> list[dict[str, Any]]:
    """Of each set and mode its runs (of a sweep: its arms, seeds together), compared with the first one by task."""
    names, columns = index["names"], index["columns"]
    sets: dict[tuple[str, str], dict[str, Scores]] = {}
    for row in range(index["count"]):
        score = columns["score"][row]
        if score is None:
            continue
        run, source, mode, task = (names[key][columns[key][row]] for key in ("run", "source", "mode", "task"))
        name = names["place"][columns["place"][row]][0] or source
        scores = sets.setdefault((name, mode), {}).setdefault(groups.get(run, run), {})
        scores.setdefault(task, []).append(score)
    shown = []
    for (name, mode), runs in sets.items():
        first = next(iter(runs))
        shown.append({"set": name, "mode": mode, "rows": [_row(run, runs[run], runs[first]) for run in runs]})
    return shown


def _row(run: str, scores: Scores, first: Scores) -> dict[str, Any]:
    low, high = interval(scores)
    row: dict[str, Any] = {"run": run, "num": len(scores), "score": average(scores), "low": low, "high": high}
    if scores is not first and (found := compare(first, scores)):
        row |= {
            "common": found.num_tasks,
            "difference": found.difference,
            "between": [found.low, found.high],
            "p": found.p_value,
            "test": found.test,
        }
    return row

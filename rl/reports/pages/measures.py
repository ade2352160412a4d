"""What a run folder measured, for its page and for a comparison: metrics.jsonl and summary.json, whatever is there.

A run may have been killed at any moment: what is missing or torn is left out, and a note says so.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sandboxrl.rl.reports.pages.bundle import Part
from sandboxrl.rl.reports.pages.excerpt import BROKEN, lines, note_skipped

MAX_STEPS = 1500
"""Points of a curve; a longer run is thinned."""

Metrics = Sequence[Mapping[str, float]]
"""One row per step, in order."""


def metrics(path: Path, notes: list[str]) -> list[dict[str, float]]:
    """The numbers of each step in order. Lines of the same step are one row; of two values the later holds."""
    rows: dict[int, dict[str, float]] = {}
    if not path.is_file():
        notes.append(f"{path.parent.name}: no metrics.jsonl, so nothing was measured yet.")
        return []
    torn = 0
    for line in lines(path):
        try:
            row = json.loads(line)
            step = int(row["step"])
            numbers = {key: float(value) for key, value in row.items() if isinstance(value, int | float)}
        except BROKEN:
            torn += 1
            continue
        rows.setdefault(step, {}).update(numbers)
    note_skipped(path.name, torn, "not a step", notes)
    return [rows[step] for step in sorted(rows)]


def summary(path: Path, notes: list[str]) -> dict[str, Any]:
    """summary.json; empty where there is none, which is so while a run goes on."""
    if not path.is_file():
        notes.append(f"{path.parent.name}: no summary.json, so the run is going on or was stopped before its end.")
        return {}
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        notes.append(f"{path.name} cannot be read ({type(error).__name__}: {error}).")
        return {}
    return found if isinstance(found, dict) else {}


def series(label: str, group: str, rows: Metrics, notes: list[str]) -> dict[str, Any]:
    """Curves of one run: `steps` and, aligned to it, the values of every key (null where a step has none)."""
    if len(rows) > MAX_STEPS:
        every = math.ceil(len(rows) / MAX_STEPS)
        notes.append(f"{label}: curves show every {every}th of {len(rows)} steps, and every evaluation.")
        rows = [
            row
            for i, row in enumerate(rows)
            if i % every == 0 or i == len(rows) - 1 or any(key.startswith("eval/") for key in row)
        ]
    keys = sorted({key for row in rows for key in row if key != "step"})
    return {
        "label": label,
        "group": group,
        "steps": [int(row["step"]) for row in rows],
        "series": {key: [_short(row.get(key)) for row in rows] for key in keys},
    }


def _short(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")


def number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def scores(rows: Metrics, told: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What learning changed: each evaluation set, and the training reward. From the summary `told` only what no step
    tells."""
    measured: dict[str, dict[str, float]] = {}
    for row in rows:
        for key, value in row.items():
            if number(value) and (of := re.fullmatch(r"eval/(.+)/score", key)):
                measured.setdefault(f"Score on {of[1]}", {})[f"step {row['step']:.0f}"] = value
            elif number(value) and key == "reward/mean":
                measured.setdefault("Training reward", {})[f"step {row['step']:.0f}"] = value
    for when in ("before", "after"):
        found = told.get(f"eval_{when}")
        for name, value in found.items() if isinstance(found, dict) else ():
            if number(value) and not any(key.startswith("eval/") for row in rows for key in row):
                measured.setdefault(f"Score on {name}", {})[f"{when} training"] = value
    shown = []
    for name, values in sorted(measured.items()):
        first, last = next(iter(values)), next(reversed(values))
        if first == last:
            shown.append(
                {"name": name, "before": None, "after": values[last], "detail": f"{last}, the only one so far"}
            )
        else:
            detail = f"{first} to {last}".replace("step 0 ", "before training ")
            shown.append({"name": name, "before": values[first], "after": values[last], "detail": detail})
    return shown


def facts(rows: Metrics, told: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The header's line: label, value, unit (how the page writes it) and a remark."""
    if not rows and not told:
        return []
    steps = [row for row in rows if "reward/mean" in row]
    step_s = sum(row.get("time/step_s", 0.0) for row in steps)
    sampled, environment = (
        sum(row.get(f"tokens/{kind}", 0.0) * row.get("trajectories", 0.0) for row in steps)
        for kind in ("sampled", "environment")
    )
    now = {
        "steps": len(steps),
        "trajectories": sum(row.get("trajectories", 0.0) for row in steps),
        "dropped": sum(row.get("dropped", 0.0) for row in steps),
        "wall_s": max((row.get("time/wall_s", 0.0) for row in rows), default=0.0) or step_s,
    }
    now |= {key: told[key] for key in now if number(told.get(key))}
    each = f"{step_s / len(steps):.1f} s per step" if steps else ""
    lost = f"{now['dropped']:.0f} lost to the machine and sampled again"
    shown = [
        {"label": "Wall time", "unit": "seconds", "value": now["wall_s"], "detail": each},
        {"label": "Steps", "unit": "count", "value": now["steps"], "detail": ""},
        {"label": "Trajectories", "unit": "count", "value": now["trajectories"], "detail": lost},
    ]
    if sampled:
        share = f"{sampled / (sampled + environment):.0%} sampled, the rest environment"
        shown.append({"label": "Tokens", "unit": "count", "value": sampled + environment, "detail": share})
    return shown


def saved(run_dir: Path, label: str) -> list[Part]:
    """The trajectory files of a run, evaluations and training steps in the order of their steps."""
    found = []
    for path in sorted((run_dir / "trajectories").glob("*.jsonl")):
        name = re.fullmatch(r"(step|eval_(?P<set>.+))_(?P<step>\d+)", path.stem)
        if name and path.is_file():
            found.append(Part(path, label, name["set"] or "Training", int(name["step"])))
    return sorted(found, key=lambda part: (part.step or 0, part.name != "Training", part.name))

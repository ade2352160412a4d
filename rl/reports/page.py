"""One self-contained page of a run (curves; the first and the last step side by side) or of any trajectories.

    run folder ─> rows of metrics.jsonl, chosen trajectories ─> one JSON value ─┐
    page.css, page.js ──────────────────────────────────────────────────────┴─> report.html

Everything a trajectory says is hostile text. It travels in one JSON block whose `<` is escaped, the script puts it on
the page as text only, and the page's content policy allows the one script known by its hash and no request at all.

A run may have been killed at any moment: what is missing or torn is left out and the page says so. A large run is
cut to a bounded page, and the page says that too.
"""

import base64
import hashlib
import html
import json
import math
import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sandboxrl.data.errors import InputError
from sandboxrl.data.files import write_whole
from sandboxrl.rl.reports.excerpt import (
    BROKEN,
    Found,
    Pair,
    as_json,
    clip,
    ends,
    excerpt,
    lines,
    mean_score,
    note_skipped,
    scan,
)

MAX_STEPS = 1500
"""Points of a curve; a longer run is thinned."""


def write_report(run_dir: Path) -> Path:
    """Write `report.html` of the run folder `run_dir`, whatever of it is there; returns the path.

    The file is replaced whole, so that a person may look at it while the run goes on. Raises InputError if `run_dir` is
    not a folder.
    """
    return write_page(run_dir / "report.html", report_page(run_dir))


def write_page(path: Path, page: str) -> Path:
    """Write the page, replacing the file whole."""
    write_whole(path, page)
    return path


def report_page(run_dir: Path) -> str:
    """The page of a run folder, complete or not. Raises InputError if it is not a folder."""
    if not run_dir.is_dir():
        raise InputError(f"{run_dir} is not a run folder")
    notes: list[str] = []
    metrics = _metrics(run_dir / "metrics.jsonl", notes)
    summary = _summary(run_dir / "summary.json", notes)
    recipe = run_dir / "recipe.yaml"
    return _page(
        {
            "kind": "run",
            "title": run_dir.resolve().name,
            "status": summary.get("status", "not finished"),
            "scores": _scores(metrics, summary),
            "facts": _facts(metrics, summary),
            **_series(metrics, notes),
            "pairs": excerpt(ends(run_dir / "trajectories", notes), notes),
            "recipe": clip(recipe.read_text(encoding="utf-8", errors="replace"), 65_536) if recipe.is_file() else "",
            "notes": notes,
        }
    )


def view_trajectories(paths: Sequence[Path]) -> str:
    """The page of trajectory files (one `Trajectory.to_dict()` a line, for example an evaluation's `results.jsonl`).

    Two halves where there are two to compare: sandbox and LLM mode, or else the first and the last file. Raises
    InputError where a file is missing or none holds a trajectory.
    """
    notes: list[str] = []
    for path in paths:
        if not path.is_file():
            raise InputError(f"{path} is not a file")
    found = {path: scan(path, notes) for path in paths}
    everything = [one for rows in found.values() for one in rows]
    if not everything:
        raise InputError(f"no trajectory in {', '.join(map(str, paths)) or 'no file'}; {'; '.join(notes)}".rstrip("; "))
    modes = sorted({one.mode for one in everything}, reverse=True)
    holding = [path for path, rows in found.items() if rows]
    pair: Pair
    if len(modes) == 2:
        pair = {f"{mode} mode": [one for one in everything if one.mode == mode] for mode in modes}
    else:
        pair = {str(path): found[path] for path in (holding[0], holding[-1])}
        if len(holding) > 2:
            notes.append(f"{len(holding)} files hold trajectories; the first and the last are shown.")
    title = holding[0].parent.resolve().name if holding[0].name == "results.jsonl" else holding[0].name
    return _page(
        {
            "kind": "trajectories",
            "title": title,
            "status": "",
            "scores": [],
            "facts": [],
            "steps": [],
            "series": {},
            "pairs": excerpt({"": pair}, notes),
            "table": _table(everything),
            "recipe": "",
            "notes": notes,
        }
    )


def _metrics(path: Path, notes: list[str]) -> list[dict[str, float]]:
    """The numbers of each step in order. Lines of the same step are one row; of two values the later holds."""
    rows: dict[int, dict[str, float]] = {}
    if not path.is_file():
        notes.append("No metrics.jsonl: the run ended before its first step.")
        return []
    torn = 0
    for _, line in lines(path):
        try:
            row = json.loads(line)
            step = int(row["step"])
            numbers = {key: float(value) for key, value in row.items() if isinstance(value, int | float)}
        except BROKEN:
            torn += 1
            continue
        rows.setdefault(step, {}).update(numbers)
    note_skipped(path, torn, "not a step", notes)
    return [rows[step] for step in sorted(rows)]


def _summary(path: Path, notes: list[str]) -> dict[str, Any]:
    if not path.is_file():
        notes.append("No summary.json: the run is going on or was stopped before its end.")
        return {}
    try:
        summary = json.loads(path.read_bytes())
    except ValueError as error:
        notes.append(f"summary.json cannot be read ({error}).")
        return {}
    return summary if isinstance(summary, dict) else {}


def _series(metrics: Sequence[Mapping[str, float]], notes: list[str]) -> dict[str, Any]:
    """`steps` and, aligned to it, the values of every key (null where a step has none)."""
    if len(metrics) > MAX_STEPS:
        every = math.ceil(len(metrics) / MAX_STEPS)
        notes.append(f"Curves show every {every}th of {len(metrics)} steps, and every evaluation.")
        metrics = [
            row
            for i, row in enumerate(metrics)
            if i % every == 0 or i == len(metrics) - 1 or any(key.startswith("eval/") for key in row)
        ]
    keys = sorted({key for row in metrics for key in row if key != "step"})
    return {
        "steps": [int(row["step"]) for row in metrics],
        "series": {key: [_short(row.get(key)) for row in metrics] for key in keys},
    }


def _short(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")


def _scores(metrics: Sequence[Mapping[str, float]], summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What learning changed: each evaluation set, and the training reward. From the summary only what no step tells."""
    measured: dict[str, dict[str, float]] = {}
    for row in metrics:
        for key, value in row.items():
            if _number(value) and (of := re.fullmatch(r"eval/(.+)/score", key)):
                measured.setdefault(f"Score on {of[1]}", {})[f"step {row['step']:.0f}"] = value
            elif _number(value) and key == "reward/mean":
                measured.setdefault("Training reward", {})[f"step {row['step']:.0f}"] = value
    for when in ("before", "after"):
        told = summary.get(f"eval_{when}")
        for name, value in told.items() if isinstance(told, dict) else ():
            if _number(value) and not any(key.startswith("eval/") for row in metrics for key in row):
                measured.setdefault(f"Score on {name}", {})[f"{when} training"] = value
    scores = []
    for name, values in sorted(measured.items()):
        first, last = next(iter(values)), next(reversed(values))
        if first == last:
            scores.append(
                {"name": name, "before": None, "after": values[last], "detail": f"{last}, the only one so far"}
            )
        else:
            detail = f"{first} to {last}".replace("step 0 ", "before training ")
            scores.append({"name": name, "before": values[first], "after": values[last], "detail": detail})
    return scores


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _facts(metrics: Sequence[Mapping[str, float]], summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The header's line: label, value, unit (how the page writes it) and a remark."""
    if not metrics and not summary:
        return []
    steps = [row for row in metrics if "reward/mean" in row]
    step_s = sum(row.get("time/step_s", 0.0) for row in steps)
    sampled, environment = (
        sum(row.get(f"tokens/{kind}", 0.0) * row.get("trajectories", 0.0) for row in steps)
        for kind in ("sampled", "environment")
    )
    now = {
        "steps": len(steps),
        "trajectories": sum(row.get("trajectories", 0.0) for row in steps),
        "dropped": sum(row.get("dropped", 0.0) for row in steps),
        "wall_s": max((row.get("time/wall_s", 0.0) for row in metrics), default=0.0) or step_s,
    }
    now |= {key: summary[key] for key in now if _number(summary.get(key))}
    each = f"{step_s / len(steps):.1f} s a step" if steps else ""
    facts = [
        {"label": "Wall time", "unit": "seconds", "value": now["wall_s"], "detail": each},
        {"label": "Steps", "unit": "count", "value": now["steps"], "detail": ""},
        {
            "label": "Trajectories",
            "unit": "count",
            "value": now["trajectories"],
            "detail": f"{now['dropped']:.0f} lost to the machine and sampled again",
        },
    ]
    if sampled:
        share = f"{sampled / (sampled + environment):.0%} sampled, the rest environment"
        facts.append({"label": "Tokens", "unit": "count", "value": sampled + environment, "detail": share})
    return facts


def _table(found: Iterable[Found]) -> list[dict[str, Any]]:
    """One row per source and mode, over every trajectory whether shown or not."""
    groups: dict[tuple[str, str], list[Found]] = {}
    for one in found:
        groups.setdefault((one.source, one.mode), []).append(one)
    table = []
    for (source, mode), rows in sorted(groups.items()):
        table.append(
            {
                "source": source,
                "mode": mode,
                "count": len(rows),
                "score": mean_score(rows),
                "turns": sum(one.num_turns for one in rows) / len(rows),
                "stops": Counter(one.stop for one in rows).most_common(),
            }
        )
    return table


def _page(content: dict[str, Any]) -> str:
    folder = Path(__file__).parent
    style = (folder / "page.css").read_text(encoding="utf-8")
    script = (folder / "page.js").read_text(encoding="utf-8")
    known = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    content = {**content, "made": time.strftime("%Y-%m-%d %H:%M")}
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'sha256-{known}'; \
style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{html.escape(content["title"])} · sandboxrl</title>
<style>
{style}</style>
</head>
<body>
<noscript>This page draws itself with its own script; nothing is fetched. Allow scripts to read it.</noscript>
<main id="page"></main>
<script type="application/json" id="content">{as_json(content)}</script>
<script>{script}</script>
</body>
</html>
"""

"""The page of one training run (`report.html`), complete or not, and the page of any trajectory files."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from sandboxrl.data.errors import InputError
from sandboxrl.rl.reports.pages.bundle import MAX_PAGE_MB, Part, bundle, score_table
from sandboxrl.rl.reports.pages.excerpt import clip
from sandboxrl.rl.reports.pages.measures import facts, metrics, saved, scores, series, summary
from sandboxrl.rl.reports.pages.page import page, write_page

LOG_LINES = 300
"""Of log.txt, the last ones."""


def write_report(run_dir: Path) -> Path:
    """Write `report.html` of the run folder `run_dir`, whatever of it is there; returns the path. Raises InputError if
    `run_dir` is not a folder."""
    return write_page(run_dir / "report.html", report_page(run_dir))


def report_page(run_dir: Path, max_mb: float = MAX_PAGE_MB) -> str:
    """The page of a run folder, complete or not. Raises InputError if it is not a folder."""
    if not run_dir.is_dir():
        raise InputError(f"{run_dir} is not a run folder")
    notes: list[str] = []
    name = run_dir.resolve().name
    rows, told = metrics(run_dir / "metrics.jsonl", notes), summary(run_dir / "summary.json", notes)
    made = bundle(saved(run_dir, name), notes, max_mb)
    content = {
        "kind": "run",
        "title": name,
        "status": told.get("status", "not finished"),
        "live": not told,
        "scores": scores(rows, told),
        "facts": facts(rows, told),
        "runs": [series(name, name, rows, notes)],
        "recipe": _text(run_dir / "recipe.yaml")[:65_536],
        "log": "\n".join(_text(run_dir / "log.txt").splitlines()[-LOG_LINES:]),
        "notes": notes,
    }
    return page(content, made)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def view_trajectories(paths: Sequence[Path], max_mb: float = MAX_PAGE_MB) -> str:
    """The page of trajectory files: one `Trajectory.to_dict()` per line, for example an evaluation's `results.jsonl`.
    Raises InputError where a file is missing or none holds a trajectory."""
    notes: list[str] = []
    for path in paths:
        if not path.is_file():
            raise InputError(f"{path} is not a file")
    parts = [Part(path, "", path.stem if len(paths) > 1 else "", None) for path in paths]
    made = bundle(parts, notes, max_mb)
    if not made.index["count"]:
        raise InputError(f"no trajectory in {', '.join(map(str, paths)) or 'no file'}; {'; '.join(notes)}".rstrip("; "))
    title = paths[0].parent.resolve().name if paths[0].name == "results.jsonl" else clip(paths[0].name, 100)
    content = {"kind": "trajectories", "title": title, "table": score_table(made.index), "notes": notes}
    return page(content, made)


if __name__ == "__main__":  # see rl/reports/live.py
    os.nice(19)
    write_report(Path(sys.argv[1]))

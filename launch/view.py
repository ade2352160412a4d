"""`sandboxrl view DIR [--out FILE.html]`: one self-contained page of a run, an evaluation or any trajectories."""

import argparse
from pathlib import Path

from sandboxrl.data.errors import InputError
from sandboxrl.rl.reports.page import report_page, view_trajectories, write_page

RUN_FILES = ("metrics.jsonl", "recipe.yaml", "trajectories")
"""Any of these makes a folder a run folder."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "dir", type=Path, metavar="DIR", help="run folder, evaluation folder, or one .jsonl file of trajectories"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE.html", help="where to write the page (default: beside what it shows)"
    )


def run(args: argparse.Namespace) -> int:
    page, beside = _page(args.dir)
    out = args.out or beside
    if out.is_dir():
        raise InputError(f"--out {out} is a folder; name the file to write")
    out.parent.mkdir(parents=True, exist_ok=True)
    print(write_page(out, page).resolve())
    return 0


def _page(shown: Path) -> tuple[str, Path]:
    """The page, and where it goes unless told. Raises InputError where there is nothing to show."""
    if shown.is_file():
        return view_trajectories([shown]), shown.with_suffix(".html")
    if not shown.is_dir():
        raise InputError(f"{shown} does not exist; name a run folder, an evaluation folder or a .jsonl file")
    if any((shown / name).exists() for name in RUN_FILES):
        return report_page(shown), shown / "report.html"
    results = shown / "results.jsonl"
    files = [results] if results.is_file() else sorted(shown.glob("*.jsonl"))
    if not files:
        raise InputError(
            f"{shown} holds no run ({', '.join(RUN_FILES)}), no evaluation (results.jsonl) and no other .jsonl file"
        )
    return view_trajectories(files), shown / "view.html"

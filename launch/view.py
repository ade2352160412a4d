"""`sandboxrl view DIR… [--out FILE.html]`: one self-contained page of a run, an evaluation, a sweep or several runs."""

import argparse
import tempfile
import zipfile
from pathlib import Path

from sandboxrl.data.errors import InputError
from sandboxrl.data.files import write_jsonl
from sandboxrl.rl.reports.interchange import is_published_run, load_published_run
from sandboxrl.rl.reports.pages.bundle import MAX_PAGE_MB
from sandboxrl.rl.reports.pages.comparison import RESULTS, RUN_FILES, compare_page, is_run, is_sweep, sweep_page
from sandboxrl.rl.reports.pages.page import ASSETS, write_page
from sandboxrl.rl.reports.pages.run import report_page, view_trajectories

EXAMPLE = ASSETS / "example.zip"
"""A run folder, made by the command that docs/pages.md gives."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "dirs",
        type=Path,
        nargs="*",
        metavar="DIR",
        help="run folder, evaluation folder, sweep folder or .jsonl file of trajectories; several are compared",
    )
    parser.add_argument("--example", action="store_true", help="show a finished run that ships with this package")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE.html",
        help="where to write the page (default: beside what it shows; of several and of the example: here)",
    )
    parser.add_argument(
        "--max-mb",
        type=float,
        default=MAX_PAGE_MB,
        metavar="N",
        help=f"megabytes of trajectories that the page may hold (default: {MAX_PAGE_MB}); beyond, they are shortened",
    )


def run(args: argparse.Namespace) -> int:
    if args.example == bool(args.dirs):
        raise InputError("name what to show: a run, an evaluation, a sweep or several of them; or --example")
    if not args.max_mb >= 1:
        raise InputError(f"--max-mb must be 1 or more, not {args.max_mb:g}")
    if args.out and args.out.is_dir():
        raise InputError(f"--out {args.out} is a folder; name the file to write")
    page, beside = _example(args.max_mb) if args.example else _page(args.dirs, args.max_mb)
    out = args.out or beside
    out.parent.mkdir(parents=True, exist_ok=True)
    print(write_page(out, page).resolve())
    return 0


def _example(max_mb: float) -> tuple[str, Path]:
    with tempfile.TemporaryDirectory() as folder:
        zipfile.ZipFile(EXAMPLE).extractall(folder)
        return report_page(Path(folder) / "example", max_mb), Path("example.html")


def _page(shown: list[Path], max_mb: float) -> tuple[str, Path]:
    """The page, and where it goes unless told. Raises InputError where there is nothing to show."""
    for place in shown:
        if not place.exists():
            raise InputError(f"{place} does not exist; name a run folder, an evaluation folder or a .jsonl file")
    if len(shown) > 1:
        return compare_page(shown, max_mb), Path("compare.html")
    place = shown[0]
    if place.is_file():
        return view_trajectories([place], max_mb), place.with_suffix(".html")
    if is_run(place):
        return report_page(place, max_mb), place / "report.html"
    if is_sweep(place):
        return sweep_page(place, max_mb), place / "sweep.html"
    if is_published_run(place):
        with tempfile.TemporaryDirectory() as folder:
            rows = Path(folder) / place.resolve().name / RESULTS
            rows.parent.mkdir()
            write_jsonl(rows, [one.to_dict() for one in load_published_run(place)])
            return view_trajectories([rows], max_mb), place / "view.html"
    results = place / RESULTS
    files = [results] if results.is_file() else sorted(place.glob("*.jsonl"))
    if not files:
        raise InputError(
            f"{place} holds no run ({', '.join(RUN_FILES)}), no evaluation ({RESULTS}), no sweep (recipes/) and no "
            "other .jsonl file"
        )
    return view_trajectories(files, max_mb), place / "view.html"

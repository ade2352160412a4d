"""`sandboxrl analyze DIR… [--out DIR]`: the paper's tables from trajectories, as text, CSV and a page with plots."""

import argparse
from pathlib import Path

from sandboxrl.data.errors import InputError
from sandboxrl.data.files import read_object, write_whole
from sandboxrl.envs.trajectory import Trajectory
from sandboxrl.rl.evaluation.evaluate import RESULTS, read_results
from sandboxrl.rl.reports.interchange import is_published_run, load_published_run
from sandboxrl.rl.reports.pages.analysis_page import analysis_page
from sandboxrl.rl.reports.tables import Table, infrastructure, tables


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "dirs",
        nargs="+",
        metavar="[LABEL=]DIR",
        help="evaluation folders, run folders, .jsonl files of trajectories, or folders of llm-in-sandbox; "
        "several joined by `+` are one run",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where tables.txt, *.csv and analysis.html go")
    parser.add_argument("--measured", type=Path, metavar="FILE", help="a file of bench.sandbox, for table 7")


def run(args: argparse.Namespace) -> int:
    runs: dict[str, list[Trajectory]] = {}
    for word in args.dirs:
        label, paths = _labelled(word)
        if label in runs:
            raise InputError(f"two runs are called {label!r}; name them: LABEL=DIR")
        runs[label] = [one for path in paths for one in load(path)]
        if not runs[label]:
            raise InputError(f"{word}: no trajectory in it yet")
    made = tables(runs)
    if args.measured:
        table = infrastructure(read_object(args.measured))
        if not table.rows:
            raise InputError(f"{args.measured}: no measure of storage or memory; see bench.sandbox --parts scale")
        made.append(table)
    print("\n\n".join(table.text() for table in made))
    if args.out:
        save(args.out, runs, made)
    return 0


def _labelled(word: str) -> tuple[str, list[Path]]:
    label, equals, rest = word.partition("=")
    paths = [Path(part) for part in (rest if equals else word).split("+")]
    return (label if equals else paths[0].resolve().name), paths


def load(path: Path) -> list[Trajectory]:
    """The trajectories of a folder or file of any kind this project or the published harness writes."""
    if path.is_dir() and not (path / RESULTS).exists():
        if is_published_run(path):
            return load_published_run(path)
        saved = sorted(path.glob("trajectories/*.jsonl")) or sorted(path.glob("*.jsonl"))
        if not saved:
            raise InputError(f"{path}: no {RESULTS}, no trajectories/*.jsonl and no trajectory.json")
        return [one for file in saved for one in read_results(file)]
    return read_results(path)


def save(out: Path, runs: dict[str, list[Trajectory]], made: list[Table]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "tables.txt", "\n\n".join(table.text() for table in made) + "\n")
    for table in made:
        write_whole(out / f"{table.name}.csv", table.csv())
    write_whole(out / "analysis.html", analysis_page(runs, made, " · ".join(runs)))

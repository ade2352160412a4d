"""`sandboxrl sweep SWEEP.yaml [key=value …]`: arms x axes x seeds of one recipe as Ray jobs, and one table."""

import argparse
import shlex
import sys

from sandboxrl.data.errors import InputError
from sandboxrl.data.files import write_whole
from sandboxrl.launch import evaluate
from sandboxrl.launch.parser import Parser
from sandboxrl.rl.config import find_recipe
from sandboxrl.rl.sweep import as_csv, as_text, entrypoint, finished, load_sweep, outcome, plan, tabulate, write_recipe


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("sweep", metavar="SWEEP", help="a YAML file, or the name of a sweep that ships, e.g. data_source_tiny")
    add("overrides", nargs="*", metavar="key=value", help="a key of the sweep, set.KEY or arms.NAME.KEY")
    add("--dry-run", action="store_true", help="check every cell and list them, start nothing")


def run(args: argparse.Namespace) -> int:
    file = find_recipe(args.sweep, "ablations")
    sweep, out = load_sweep(file, args.overrides)
    if sweep.evaluate:
        check_evaluation(sweep.evaluate)
    cells = plan(sweep, file.parent, out)
    if args.dry_run:
        for cell in cells:
            print(f"{cell.name:<40} {cell.row}, seed {cell.seed}")
        return 0
    out.mkdir(parents=True, exist_ok=True)
    for cell in cells:
        write_recipe(cell)
    from sandboxrl.rl.cluster.jobs import run_jobs  # heavy: Ray

    todo = {cell.name: entrypoint(cell, sweep.evaluate) for cell in cells if not finished(cell, sweep.evaluate)}
    print(f"{out}: {len(cells)} cells, {len(cells) - len(todo)} finished before, {len(todo)} to run")
    problems = run_jobs(todo, out, sweep.parallel, sweep.cluster)
    outcomes = {cell.name: outcome(cell, sweep.evaluate, problems.get(cell.name, "")) for cell in cells}
    header, rows = tabulate(cells, outcomes)
    write_whole(out / "table.csv", as_csv(header, rows))
    text = as_text(header, rows)
    failures = [f"{name}: {one.failure}" for name, one in outcomes.items() if one.failure]
    write_whole(out / "table.txt", "\n".join([text, *failures]) + "\n")
    print(f"\n{text}\n\n{out}/table.txt  {out}/table.csv")
    for line in failures:
        print(f"failed  {line}", file=sys.stderr)
    return 1 if failures else 0


def check_evaluation(words: str) -> None:
    """The words of the sweep's key `evaluate`, before hours of training. Raises InputError."""
    parser = Parser(prog="sandboxrl evaluate")
    evaluate.configure(parser)
    try:
        evaluate.check(parser.parse_intermixed_args(["MODEL", *shlex.split(words), "--out", "DIR"]))
    except (InputError, ValueError) as error:
        raise InputError(f"evaluate: {words!r}: {error}") from None

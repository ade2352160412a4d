"""`sandboxrl data build SOURCE --out FILE` and `sandboxrl data check SOURCE_OR_FILE`."""

import argparse
import asyncio
import itertools
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from sandboxrl.data.benchmarks import BENCHMARKS, load_benchmark
from sandboxrl.data.check import CHECKS, Examination, Finding
from sandboxrl.data.errors import InputError, nearest
from sandboxrl.data.files import written_whole
from sandboxrl.data.plugin import is_own
from sandboxrl.data.reading import Rejected
from sandboxrl.data.sources import SOURCES, describe_rejected, iter_source, source_options
from sandboxrl.data.task import Task
from sandboxrl.envs.grading.grader import Grader
from sandboxrl.envs.grading.guessing import Guesses
from sandboxrl.envs.grading.kinds import KINDS
from sandboxrl.envs.grading.protocol import GraderFailed

MAX_SHOWN = 10
"""Findings of one kind that are printed; the rest are counted."""
CHUNK = 64
"""Tasks graded at the same time."""

GRADED = {
    "gold": "the gold answer scores 1",
    "silence": "an empty answer scores 0",
    "wrong": "a wrong answer scores below 1",
}


def configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    build = actions.add_parser("build", help="write the tasks of a source to a file, one JSON object per line")
    check = actions.add_parser("check", help="examine tasks: gold scores 1, silence 0, leaks, duplicates, lengths")
    for sub in (build, check):
        sub.add_argument(
            "source", metavar="SOURCE", help=f"{', '.join(SOURCES)}, a benchmark, or a file of tasks or rows"
        )
        sub.add_argument(
            "options", nargs="*", metavar="key=value", help="an option of the source, e.g. path=rows.jsonl"
        )
        sub.add_argument("--strict", action="store_true", help="a single bad row is an error")
    build.add_argument("--out", required=True, type=Path, metavar="FILE", help="the task file to write (JSONL)")
    check.add_argument(
        "--against",
        action="append",
        default=[],
        metavar="SOURCE",
        help="evaluation tasks that must not appear in these: a source, a file, or BENCHMARK=PATH; may be given again",
    )


def run(args: argparse.Namespace) -> int:
    rejected: list[Rejected] = []
    commits: dict[str, str] = {}
    tasks = open_tasks(args.source, args.options, args.strict, rejected, commits)
    if args.action == "build":
        return build(tasks, args.out, rejected, commits)
    against: list[Task] = []
    for word in args.against:
        name, _, path = word.partition("=")
        bad: list[Rejected] = []
        against += open_tasks(name, [f"path={path}"] if path else [], False, bad, commits)
        if bad:
            print(f"{word}: {describe_rejected(bad)}", file=sys.stderr)
    return check(tasks, against, rejected, commits)


def open_tasks(
    source: str, options: Sequence[str], strict: bool, rejected: list[Rejected], commits: dict[str, str]
) -> Iterator[Task]:
    """The tasks of a source, a benchmark or a file, with `key=value` options as a person types them. `commits` gets
    those of the Hub's data sets."""
    if source in BENCHMARKS:
        words = typed_options(source, {"path": "", "documents": "", "revision": "", "seed": 0, "limit": 0}, options)
        return _benchmark_tasks(source, words, strict, rejected, commits)
    named = source in SOURCES or is_own(source)
    spec: dict[str, Any] = {"source": source} if named else {"source": "files", "path": source}
    if not named and not Path(source).exists():
        raise InputError(
            f"{source!r} is neither a task source nor a benchmark nor a file{nearest(source, [*SOURCES, *BENCHMARKS])}"
        )
    spec |= typed_options(f"source {spec['source']}", source_options(spec["source"]), options)
    return iter_source(spec | {"strict": strict}, rejected, commits=commits)


def _benchmark_tasks(
    name: str, options: dict[str, Any], strict: bool, rejected: list[Rejected], commits: dict[str, str]
) -> Iterator[Task]:
    selection = load_benchmark(name, **options, commits=commits)
    bad = [Rejected(*line.partition(": ")[::2]) for line in selection.record["rejected"]]
    if strict and bad:
        raise InputError(describe_rejected(bad))
    rejected.extend(bad)
    yield from selection.tasks


def typed_options(what: str, known: Mapping[str, Any], words: Sequence[str]) -> dict[str, Any]:
    """`key=value` words as a mapping; each value gets the type of the option's default."""
    options: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise InputError(f"{word!r}: an option is key=value, for example path=rows.jsonl")
        if key not in known:
            raise InputError(f"{what}: unknown option {key!r}{nearest(key, known)}")
        try:
            options[key] = value if isinstance(known[key], str) else yaml.safe_load(value)
        except yaml.YAMLError:
            raise InputError(f"{word!r}: cannot read the value") from None
        if known[key] is not None and type(options[key]) is not type(known[key]):
            raise InputError(f"{what}: {key} must be {type(known[key]).__name__}, not {value!r}")
    return options


def _print_commits(commits: Mapping[str, str]) -> None:
    for asked, commit in commits.items():
        pin = "" if asked.endswith(f"@{commit}") else f"; revision={commit} reads these rows again"
        print(f"data set {asked}: commit {commit}{pin}")


# --------------------------------------------------------------------------------------------------------------- build


def build(tasks: Iterable[Task], out: Path, rejected: list[Rejected], commits: Mapping[str, str]) -> int:
    """Write the tasks one by one; the file appears only when it is whole."""
    if not out.parent.is_dir():
        raise InputError(f"--out: no such folder: {out.parent}")
    if out.is_dir():
        raise InputError(f"--out: {out} is a folder")
    started = time.monotonic()
    num_tasks = num_bytes = 0
    with written_whole(out) as handle:
        for task in _watched(tasks, f"building {out.name}"):
            if task.reward in KINDS:  # no answer could score 1: the row is as bad as one that cannot be read
                try:
                    KINDS[task.reward].check(task)
                except InputError as error:
                    rejected.append(Rejected(task.id, str(error)))
                    continue
            num_bytes += handle.write(task.to_json().encode() + b"\n")
            num_tasks += 1
        if not num_tasks:
            raise InputError(f"no task came out of it{'; ' + describe_rejected(rejected) if rejected else ''}")
    for one in rejected[:MAX_SHOWN]:
        print(f"left out  {one}", file=sys.stderr)
    if len(rejected) > MAX_SHOWN:
        print(f"left out  … and {len(rejected) - MAX_SHOWN} more", file=sys.stderr)
    _print_commits(commits)
    print(
        f"{out}: {num_tasks:,} tasks, {num_bytes / 1e6:,.1f} MB, {time.monotonic() - started:.1f} s; "
        f"{len(rejected)} bad rows left out"
    )
    return 0


# --------------------------------------------------------------------------------------------------------------- check


def check(
    tasks: Iterable[Task], against: Sequence[Task], rejected: Sequence[Rejected], commits: Mapping[str, str]
) -> int:
    """Print what the tasks are and what is wrong with them; 1 if anything is."""
    examination = Examination(against)
    guesser = Guesses()
    graded, unproven = asyncio.run(_examine(_watched(tasks, "checking"), examination, guesser))
    if not examination.num_tasks:
        raise InputError(f"no task to check{'; ' + describe_rejected(rejected) if rejected else ''}")

    _print_commits(commits)
    print(f"{examination.num_tasks:,} tasks")
    for name, numbers in examination.facts():
        print(f"  {name:<32} {numbers}")
    print()
    wrong = _print_check("every row can be read", [Finding(one.where, one.reason) for one in rejected])
    for name, title in GRADED.items():
        wrong += _print_check(title, graded[name])
    for name, title in CHECKS.items():
        if name == "overlap" and not against:
            print(f"  --    {title}: not looked at, name them with --against")
        else:
            wrong += _print_check(title, examination.findings[name])
    for why, count in sorted(unproven.items()):
        print(f"  --    {count:,} tasks not graded here: {why}")
    print()
    _print_guesses(examination, guesser)
    print(f"{wrong:,} problem{'s' * (wrong > 1)}" if wrong else "all is well")
    return 1 if wrong else 0


def _print_guesses(examination: Examination, guesser: Guesses) -> None:
    """What the questions give away by themselves, and ten cases for a person to look at."""
    if lines := guesser.told():
        print("guessed from the question alone (score of 100)")
        for name, score in lines:
            print(f"  {name:<42} {score}")
    cases = [f"{task_id}: {how}" for task_id, how in guesser.given_away]
    cases += [f"{one.task_id}: {one.detail}" for one in examination.unsupported]
    if cases:
        print("worst cases, to look at")
        for case in cases[:MAX_SHOWN]:
            print(f"  {case}")
    print()


def _print_check(title: str, findings: Sequence[Finding]) -> int:
    print(f"  {'WRONG' if findings else 'ok   '} {title}{f': {len(findings):,} are not' if findings else ''}")
    for one in findings[:MAX_SHOWN]:
        print(f"          {one.task_id}: {one.detail}")
    if len(findings) > MAX_SHOWN:
        print(f"          … and {len(findings) - MAX_SHOWN:,} more")
    return len(findings)


async def _examine(
    tasks: Iterable[Task], examination: Examination, guesser: Guesses
) -> tuple[dict[str, list[Finding]], dict[str, int]]:
    """Feed the examination and grade gold, silence and a wrong answer of each task; returns what failed, and how many
    were not graded and why."""
    graded: dict[str, list[Finding]] = {name: [] for name in GRADED}
    unproven: dict[str, int] = {}
    grader = Grader()
    try:
        source = iter(tasks)
        while chunk := list(itertools.islice(source, CHUNK)):
            for task, (reason, failures) in zip(
                chunk, await asyncio.gather(*(prove(t, grader) for t in chunk)), strict=True
            ):
                examination.add(task)
                if not failures and not reason and grader.kind(task) is KINDS.get(task.reward):
                    guesser.add(task, grader.kind(task))
                if reason:
                    unproven[reason] = unproven.get(reason, 0) + 1
                for name, detail in failures:
                    graded[name].append(Finding(task.id, detail))
    finally:
        await grader.close()
    return graded, unproven


async def prove(task: Task, grader: Grader) -> tuple[str, list[tuple[str, str]]]:
    """(why it cannot be graded here or empty, [(which of GRADED fails, how)]) of one task."""
    failures: list[tuple[str, str]] = []
    try:
        kind = grader.kind(task)
        if kind.needs == "judge":
            return f"{task.reward} needs a judge model", []
        await grader.check(task)
        if kind.needs == "sandbox":
            return f"{task.reward} run in the image of the task", []
        gold = kind.gold(task)
        if gold is None:
            return f"{task.reward} has no gold answer", []
        for name, answer in (("gold", gold), ("silence", ""), ("wrong", kind.wrong(task))):
            score = await grader.grade(task, answer)
            good = {"gold": score == 1.0, "silence": score == 0.0, "wrong": score < 1.0}[name]
            if not good:
                failures.append((name, f"{task.reward} gives {answer[:80]!r} a score of {score:g}"))
    except (InputError, GraderFailed) as error:
        failures.append(("gold", str(error)))
    return "", failures


def _watched(tasks: Iterable[Task], what: str) -> Iterator[Task]:
    """The same tasks, with a counter on a terminal."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TextColumn("{task.completed:,} tasks"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task(what, total=None)
        for task in tasks:
            progress.advance(bar)
            yield task

"""Every named source of training tasks, in one table, and how it makes Tasks of rows.

`builtin`   the corpus that this project generates
`general`   context-based tasks: the paper's published rows, or built from the raw collection and sets like it
`math`      DAPO-Math-17k, each problem once
`swe`       R2E-Gym: one image per task, graded by the repository's tests
`files`     task files made by `sandboxrl data build`; or your own questions and documents

A source is a function whose keyword parameters are its options (`**builder`: those of `BuildConfig` too). Those of
ORIGINS read published rows, a local copy (`path`) or the Hub's at one commit (`data.hub`), and have its options too.
Rows that are wrong are left out and listed in `rejected`.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from sandboxrl.data import builtin as corpus
from sandboxrl.data.building import build_tasks
from sandboxrl.data.context import BuildConfig, Context
from sandboxrl.data.doors import own_form
from sandboxrl.data.errors import InputError, nearest
from sandboxrl.data.formats import FOLDER_FORMATS, ROW_FORMATS
from sandboxrl.data.formats.dapo import dapo
from sandboxrl.data.formats.fields import document
from sandboxrl.data.formats.own import own
from sandboxrl.data.formats.published import published
from sandboxrl.data.formats.r2e_gym import r2e_gym
from sandboxrl.data.hub import Origin, Rows
from sandboxrl.data.plugin import anchored, is_own
from sandboxrl.data.reading import Rejected, Row, read_rows
from sandboxrl.data.task import Task

ORIGINS = {
    "general": Origin(dataset="daixuancheng/llm-in-sandbox-rl", config="instruct_pretrain"),
    "math": Origin(dataset="BytedTsinghua-SIA/DAPO-Math-17k"),
    "swe": Origin(dataset="R2E-Gym/R2E-Gym-Subset"),
}
"""Source -> where its published rows are."""
BUILDER = {f.name: f.default for f in dataclasses.fields(BuildConfig) if f.name not in ("seed", "placement", "pool")}
"""Options of the builder, which every source takes that uses it."""
MAX_LISTED = 5
"""Bad rows named in a message; the rest are counted."""

T = TypeVar("T")


def describe_rejected(rejected: Sequence[Rejected]) -> str:
    """How many rows were left out and the first few of them, on one line."""
    listed = "; ".join(str(one) for one in rejected[:MAX_LISTED])
    more = f"; and {len(rejected) - MAX_LISTED} more" if len(rejected) > MAX_LISTED else ""
    return f"{len(rejected)} bad rows left out: {listed}{more}"


def builtin(
    rejected: list[Rejected],
    *,
    size: str = "tiny",
    split: str = "train",
    placement: str = "sandbox",
    seed: int = 0,
    num_tasks: int = 0,
) -> Iterator[Task]:
    """`size`: tiny, easy, medium, hard. `split`: train, validation, heldout, which share no document."""
    for task in corpus.build(size, split, num_tasks, seed):
        yield dataclasses.replace(task, placement=placement)


def general(
    rejected: list[Rejected],
    *,
    origin: Origin,
    format: str = "auto",
    placement: str = "sandbox",
    seed: int = 0,
    **builder: int,
) -> Iterator[Task]:
    """`format`: published (the paper's rows, whose files are chosen already) or one that the builder takes: collection,
    pubmedqa, qed, fairytaleqa, wikitablequestions, or your own. `auto` tells by the fields of the first row."""
    formats = ("auto", "published", *ROW_FORMATS, *FOLDER_FORMATS)
    if format not in formats and not is_own(format):
        raise InputError(f"source general: unknown format {format!r}{nearest(format, formats)} (or file.py:object)")
    build = BuildConfig(seed=seed, placement=placement, **builder)
    if is_own(format):
        yield from _of_own_form(format, origin.rows, build, builder, rejected)
        return
    if format == "auto":
        format = _detect(origin)
    if format == "published":
        _without_effect(builder, "published rows, whose files are chosen already")
        for task in _convert(origin.rows(rejected), published, rejected):
            yield dataclasses.replace(task, placement=placement)
        return

    def contexts(into: list[Rejected]) -> Iterable[Context]:
        if format in FOLDER_FORMATS:
            if not Path(origin.path).is_dir():
                raise InputError(f"source general: the format {format} is a folder of files; {origin.path!r} is none")
            return FOLDER_FORMATS[format][1](Path(origin.path), into)
        return _convert(origin.rows(into), ROW_FORMATS[format][1], into)

    yield from build_tasks(contexts, build, rejected)


def math(rejected: list[Rejected], *, origin: Origin) -> Iterator[Task]:
    """Both published forms of DAPO-Math-17k. The original repeats each problem about a hundred times."""
    seen: dict[str, str] = {}
    for where, row in origin.rows(rejected):
        try:
            task = dapo(where, row)
        except InputError as error:
            rejected.append(Rejected(where, str(error)))
            continue
        problem = " ".join(task.question.split())
        if problem not in seen:
            seen[problem] = task.gold
            yield task
        elif seen[problem] != task.gold:
            rejected.append(Rejected(where, f"the same problem has two answers, {seen[problem]!r} and {task.gold!r}"))


def swe(rejected: list[Rejected], *, origin: Origin) -> Iterator[Task]:
    """Rows of R2E-Gym, or your own in its form."""
    yield from _convert(origin.rows(rejected), r2e_gym, rejected)


def files(
    rejected: list[Rejected],
    *,
    path: str = "",
    questions: str = "",
    format: str = "auto",
    placement: str = "",
    seed: int = 0,
    **builder: int,
) -> Iterator[Task]:
    """`path`: a file of rows. With `questions`: `path` is a folder of documents, and that a file of questions on them.

    `format`: `auto` (a task file, or rows by their fields' names), or your own. `placement`: as it is in the file, or
    sandbox for rows that do not say.
    """
    if not path:
        raise InputError("source files: path is missing")
    folder = Path(path) if questions else Path(path).parent
    shared = _documents(folder, rejected, skip=Path(questions)) if questions else {}
    build = BuildConfig(seed=seed, placement=placement or "sandbox", **builder)

    def rows(into: list[Rejected]) -> Rows:
        return read_rows(Path(questions or path), into)

    if is_own(format):
        yield from _of_own_form(format, rows, build, builder, rejected)
        return
    if format != "auto":
        raise InputError(f"source files: unknown format {format!r}; valid: auto (or file.py:object)")
    first = next(rows([]), ("", {}))[1]
    if {"gold", "reward", "question"} <= first.keys():
        _without_effect(builder, "task files, which are built already")
        for task in _convert(rows(rejected), _task_row, rejected):
            task = dataclasses.replace(task, reward=anchored(task.reward, Path(path).parent))
            yield dataclasses.replace(task, placement=placement) if placement else task
        return

    def contexts(into: list[Rejected]) -> Iterable[Context]:
        return _convert(rows(into), lambda where, row: own(where, row, folder, shared), into)

    for task in build_tasks(contexts, build, rejected):
        yield dataclasses.replace(task, reward=anchored(task.reward, Path(path).parent))


SOURCES: dict[str, Callable[..., Iterator[Task]]] = {
    "builtin": builtin,
    "general": general,
    "math": math,
    "swe": swe,
    "files": files,
}


def _convert(rows: Rows, convert: Callable[[str, Row], T], rejected: list[Rejected]) -> Iterator[T]:
    for where, row in rows:
        try:
            yield convert(where, row)
        except InputError as error:
            rejected.append(Rejected(where, str(error)))


def _of_own_form(
    format: str,
    rows: Callable[[list[Rejected]], Rows],
    build: BuildConfig,
    builder: Mapping[str, Any],
    rejected: list[Rejected],
) -> Iterator[Task]:
    """The tasks that a user's form makes of rows, or those that are built from its contexts."""
    _, first = next(own_form(format, rows([]), []), ("", None))
    if isinstance(first, Context):
        yield from build_tasks(lambda into: _contexts(format, own_form(format, rows(into), into)), build, rejected)
        return
    _without_effect(builder, "tasks, which a form of rows makes whole")
    for where, task in own_form(format, rows(rejected), rejected):
        if not isinstance(task, Task):
            raise InputError(f"format {format}: gives a Context at {where} after a Task")
        yield task if task.placement == build.placement else dataclasses.replace(task, placement=build.placement)


def _contexts(format: str, items: Iterable[tuple[str, Task | Context]]) -> Iterator[Context]:
    for where, one in items:
        if not isinstance(one, Context):
            raise InputError(f"format {format}: gives a Task at {where} after a Context")
        yield dataclasses.replace(one, where=one.where or where)


def _task_row(where: str, row: Row) -> Task:
    return Task.from_json(json.dumps(row))


def _without_effect(options: Mapping[str, Any], what: str) -> None:
    if options:
        raise InputError(f"{', '.join(options)} has no effect on {what}")


def _detect(origin: Origin) -> str:
    if origin.path and Path(origin.path).is_dir():
        for name, (pattern, _) in FOLDER_FORMATS.items():
            if any(Path(origin.path).rglob(pattern)):
                return name
    bad: list[Rejected] = []
    _, row = next(origin.rows(bad), ("", None))
    if row is None:
        raise InputError(f"no readable row in {origin.asked}{'; ' + describe_rejected(bad) if bad else ''}")
    for name, fields in (
        ("published", ("problem_statement", "ground_truth")),
        *((n, f) for n, (f, _) in ROW_FORMATS.items()),
    ):
        if all(field in row for field in fields):
            return name
    raise InputError(f"rows with the fields {', '.join(row)} are in no known form; name it with format=")


def _documents(folder: Path, rejected: list[Rejected], skip: Path) -> dict[str, str]:
    """Relative name -> text of every file of a folder, hidden ones left out."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of documents")
    documents: dict[str, str] = {}
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        if not file.is_file() or file.resolve() == skip.resolve() or any(p.startswith(".") for p in name.split("/")):
            continue
        try:
            documents[name] = document(folder, name)
        except InputError as error:
            rejected.append(Rejected(str(file), str(error)))
    return documents

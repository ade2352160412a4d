"""Every named source of training tasks, in one table.

    load_source("builtin")                                         -> list of Task
    load_source({"source": "general", "path": "rows.jsonl", "placement": "prompt"})
    load_source("my_tasks.jsonl")                                  short for {"source": "files", "path": ...}

`builtin`   the corpus that this project generates
`general`   context-based tasks: the paper's published rows, or built from the raw collection and sets like it
`math`      DAPO-Math-17k, each problem once
`swe`       R2E-Gym: one image per task, graded by the repository's tests
`files`     task files made by `sandboxrl data build`; or one's own questions and documents

A source is a function whose keyword parameters are its options (`**builder`: those of `BuildConfig` too); an option it
does not have is an error. Those of ORIGINS read published rows, a local copy (`path`) or the Hub's at one commit
(`data.hub`), and have its options too. Rows that are wrong are left out and listed in `rejected`; with `strict` they
are an error.

Size: the options of every source are documented where the table finds them.
"""

import dataclasses
import inspect
import itertools
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from sandboxrl.data import builtin as corpus
from sandboxrl.data.building import build_tasks
from sandboxrl.data.context import BuildConfig, Context
from sandboxrl.data.doors import checked_options, own_form, own_source, source_parameters
from sandboxrl.data.errors import InputError, nearest
from sandboxrl.data.formats import FOLDER_FORMATS, ROW_FORMATS
from sandboxrl.data.formats.dapo import dapo
from sandboxrl.data.formats.fields import document
from sandboxrl.data.formats.own import own
from sandboxrl.data.formats.published import published
from sandboxrl.data.formats.r2e_gym import r2e_gym
from sandboxrl.data.hub import WHERE, Origin, Rows
from sandboxrl.data.plugin import anchored, is_own
from sandboxrl.data.reading import SUFFIXES, Rejected, Row, read_rows
from sandboxrl.data.task import PLACEMENTS, Task

Spec = str | Mapping[str, Any]

ORIGINS = {
    "general": Origin(dataset="daixuancheng/llm-in-sandbox-rl", config="instruct_pretrain"),
    "math": Origin(dataset="BytedTsinghua-SIA/DAPO-Math-17k"),
    "swe": Origin(dataset="R2E-Gym/R2E-Gym-Subset"),
}
"""Source -> where its published rows are."""
CORPUS_TASKS = 1024
"""Tasks of the built-in corpus where `num_tasks` is not given: it has no end of its own."""
BUILDER = {f.name: f.default for f in dataclasses.fields(BuildConfig) if f.name not in ("seed", "placement", "pool")}
"""Options of the builder, which every source takes that uses it."""
MAX_LISTED = 5
"""Bad rows named in a message; the rest are counted."""

T = TypeVar("T")

_LOG = logging.getLogger(__name__)


def load_source(
    spec: Spec,
    rejected: list[Rejected] | None = None,
    seed: int = 0,
    commits: MutableMapping[str, str] | None = None,
) -> list[Task]:
    """The tasks of a source. `seed` is used where the spec names none. Raises InputError; also for a source without a
    single good row. Bad rows go to `rejected`, or are logged where the caller does not take them. `commits`: those of
    the Hub's data sets, see `sandboxrl.data.hub`."""
    found: list[Rejected] = []
    tasks = list(iter_source(spec, found, seed, commits))
    if not tasks:
        raise InputError(f"no task in {_title(spec)}{'; ' + describe_rejected(found) if found else ''}")
    if rejected is not None:
        rejected.extend(found)
    elif found:
        _LOG.warning("%s: %s", _title(spec), describe_rejected(found))
    return tasks


def load_sources(
    spec: Any, key: str, seed: int, commits: MutableMapping[str, str] | None = None
) -> tuple[dict[str, Sequence[Task]], dict[str, float]]:
    """Tasks and mixture weights by name, of a recipe's `tasks.train` or `tasks.eval` (`key`, for messages)."""
    tasks: dict[str, Sequence[Task]] = {}
    weights: dict[str, float] = {}
    for name, one in named_specs(spec, key).items():
        try:
            if isinstance(one, Mapping):
                one = dict(one)
                weight = one.pop("weight", 1.0)
                if isinstance(weight, bool) or not isinstance(weight, int | float) or weight < 0:
                    raise InputError(f"weight: must be a number of 0 or more, not {weight!r}")
                weights[name] = float(weight)
            tasks[name] = load_source(one, seed=seed, commits=commits)
        except InputError as error:
            raise InputError(f"{key}.{name}: {error}") from None
    return tasks, weights


def named_specs(spec: Any, key: str) -> dict[str, Any]:
    """The sources of a recipe's `tasks.train` or `tasks.eval` by name: one source or file, or a mapping of names to
    such, each with an optional `weight`. Raises InputError."""
    if isinstance(spec, str):
        spec = {Path(spec).stem: spec}
    elif isinstance(spec, Mapping) and isinstance(spec.get("source"), str):
        spec = {spec["source"]: spec}
    if spec is None or not isinstance(spec, Mapping) or not spec:
        raise InputError(f"{key}: name a source ({', '.join(SOURCES)}), a task file, or a mapping of names to sources")
    return {str(name): one for name, one in spec.items()}


def iter_source(
    spec: Spec, rejected: list[Rejected], seed: int = 0, commits: MutableMapping[str, str] | None = None
) -> Iterator[Task]:
    """The tasks of a source one by one, for what does not fit into memory. Raises InputError."""
    name, options = parse_spec(spec)
    parameters = source_parameters(name) if is_own(name) else inspect.signature(SOURCES[name]).parameters
    num_tasks, offset, strict = (options.pop(key, 0) for key in ("num_tasks", "offset", "strict"))
    if "seed" in parameters:
        options.setdefault("seed", seed)
    if name == "builtin":  # generates as many as it is asked for
        options["num_tasks"] = offset + (num_tasks or CORPUS_TASKS)
    if name in ORIGINS:
        given = {key: options.pop(key) for key in WHERE if key in options}
        options["origin"] = origin_of(name, given).pinned({} if commits is None else commits)
    if is_own(name):
        checked_options(name, options)
    tasks = (own_source(name) if is_own(name) else SOURCES[name])(rejected, **options)
    for task in itertools.islice(tasks, offset, offset + num_tasks if num_tasks else None):
        if strict and rejected:
            break
        yield task
    if strict and rejected:
        raise InputError(describe_rejected(rejected))


def origin_of(name: str, options: Mapping[str, Any]) -> Origin:
    """Where the rows of the source `name` are. Raises InputError for an option that would have no effect."""
    given = {key: options[key] for key in WHERE if key in options}
    origin = dataclasses.replace(ORIGINS[name], **given)
    origin.check(set(given))
    return origin


def parse_spec(spec: Spec) -> tuple[str, dict[str, Any]]:
    """Source name and options, checked against what the source takes."""
    if isinstance(spec, str):
        spec = {"source": spec} if spec in SOURCES or is_own(spec) else {"source": "files", "path": spec}
        if spec["source"] == "files" and not _like_a_path(str(spec["path"])):
            raise InputError(
                f"unknown task source {spec['path']!r}{nearest(str(spec['path']), SOURCES)}; or a task file"
            )
    if not isinstance(spec, Mapping):
        raise InputError(f"a task source is a name, a file or a mapping with the key 'source', not {spec!r}")
    options = dict(spec)
    name = options.pop("source", None)
    if name not in SOURCES and not is_own(str(name)):
        raise InputError(f"unknown task source {name!r}{nearest(str(name), SOURCES)} (or file.py:object)")
    known = source_options(name)
    for key, value in options.items():
        if key not in known:
            raise InputError(f"source {name}: unknown option {key!r}{nearest(str(key), known)}")
        kind = type(known[key])
        if known[key] is not None and type(value) is not kind:
            raise InputError(f"source {name}: {key} must be {kind.__name__}, not {value!r}")
    for key in ("num_tasks", "offset"):
        if options.get(key, 0) < 0:
            raise InputError(f"source {name}: {key} must be 0 or more, not {options[key]}")
    if options.get("placement", "sandbox") not in PLACEMENTS:
        raise InputError(f"source {name}: unknown placement {options['placement']!r}; valid: {', '.join(PLACEMENTS)}")
    return name, options


def source_options(name: str) -> dict[str, Any]:
    """Option -> default, of a source; None: one that must be given."""
    always = {"num_tasks": 0, "offset": 0, "strict": False}
    if is_own(name):
        return source_parameters(name) | always
    parameters = inspect.signature(SOURCES[name]).parameters.values()
    own_options = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "origin"}
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        own_options |= BUILDER
    return {**_where(name), **own_options, **always}


def _where(name: str) -> dict[str, Any]:
    return {key: getattr(ORIGINS[name], key) for key in WHERE} if name in ORIGINS else {}


def describe_rejected(rejected: Sequence[Rejected]) -> str:
    """How many rows were left out and the first few of them, on one line."""
    listed = "; ".join(str(one) for one in rejected[:MAX_LISTED])
    more = f"; and {len(rejected) - MAX_LISTED} more" if len(rejected) > MAX_LISTED else ""
    return f"{len(rejected)} bad rows left out: {listed}{more}"


# ------------------------------------------------------------------------------------------------------------- sources


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
    """Rows of R2E-Gym, or of one's own in its form."""
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


def own_rewards(spec: Spec) -> set[str]:
    """The user's own rewards that the rows of a source name. Raises InputError."""
    name, options = parse_spec(spec)
    if name != "files" or is_own(options.get("format", "")):
        return set()
    file = Path(options.get("questions") or options["path"])
    found: set[str] = set()
    for _, row in read_rows(file, []):
        listed = row.get("questions")
        asked = [row, *(listed if isinstance(listed, list) else ())]
        found |= {str(one["reward"]) for one in asked if isinstance(one, dict) and is_own(str(one.get("reward", "")))}
    return {anchored(reward, Path(options["path"]).parent) for reward in found}


SOURCES: dict[str, Callable[..., Iterator[Task]]] = {
    "builtin": builtin,
    "general": general,
    "math": math,
    "swe": swe,
    "files": files,
}


# --------------------------------------------------------------------------------------------------------------- pieces


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


def _like_a_path(text: str) -> bool:
    return "/" in text or Path(text).suffix.lower() in SUFFIXES or Path(text).exists()


def _title(spec: Spec) -> str:
    if isinstance(spec, str):
        return spec
    return " ".join(str(spec[key]) for key in ("source", "path") if key in spec)

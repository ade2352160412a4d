"""The tasks of a source that a recipe or a command line names.

    load_source("builtin")                                         -> list of Task
    load_source({"source": "general", "path": "rows.jsonl", "placement": "prompt"})
    load_source("my_tasks.jsonl")                                  short for {"source": "files", "path": ...}

An option that the source does not have is an error. Rows that are wrong are left out and listed in `rejected`; with
`strict` they are an error.
"""

import dataclasses
import inspect
import itertools
import logging
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from sandboxrl.data.doors import checked_options, own_source, source_parameters
from sandboxrl.data.errors import InputError, nearest
from sandboxrl.data.hub import WHERE, Origin
from sandboxrl.data.plugin import anchored, is_own
from sandboxrl.data.reading import SUFFIXES, Rejected, read_rows
from sandboxrl.data.sources.table import BUILDER, ORIGINS, SOURCES, describe_rejected
from sandboxrl.data.task import PLACEMENTS, Task

Spec = str | Mapping[str, Any]

CORPUS_TASKS = 1024
"""Tasks of the built-in corpus where `num_tasks` is not given: it has no end of its own."""
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


def _like_a_path(text: str) -> bool:
    return "/" in text or Path(text).suffix.lower() in SUFFIXES or Path(text).exists()


def _title(spec: Spec) -> str:
    if isinstance(spec, str):
        return spec
    return " ".join(str(spec[key]) for key in ("source", "path") if key in spec)

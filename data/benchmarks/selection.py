"""The tasks of an evaluation set:

    load_benchmark("ugphysics", path="rows.jsonl", seed=0, limit=0) -> Selection(benchmark, tasks, record)

Rows come from the published evaluation set of the paper (`daixuancheng/llm-in-sandbox-bench`, one config each), from
the original release, or from a local file or folder in either schema. Rows that were repeated for an average (AIME25 is
published 16 times over) are taken once: repeats are the evaluator's doing. Selection is seeded and recorded row by row.
A bad row is named and left out; a set without a good row is an error.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sandboxrl.data.benchmarks.table import BENCHMARKS, PUBLISHED, Benchmark, benchmark
from sandboxrl.data.errors import InputError, nearest, one_line
from sandboxrl.data.files import digest
from sandboxrl.data.hub import Origin
from sandboxrl.data.plugin import is_own
from sandboxrl.data.reading import Rejected, Row
from sandboxrl.data.sources import SOURCES, load_source
from sandboxrl.data.task import Task


@dataclass(frozen=True)
class Selection:
    """The tasks of one benchmark, and what has to be known to select them again."""

    benchmark: Benchmark
    tasks: list[Task]
    record: dict[str, Any] = field(default_factory=dict)


def load_benchmark(
    name: str,
    path: str = "",
    seed: int = 0,
    limit: int = 0,
    documents: str = "",
    revision: str = "",
    commits: MutableMapping[str, str] | None = None,
) -> Selection:
    """The tasks of benchmark `name`, selected with `seed`; at most `limit` of them (0: all).

    `path` is a local file or folder of rows; `original` for the original release on the hub; empty for the published
    set. `documents` is a folder of documents for rows that only name them. `revision` pins the hub's; `commits` are
    those that are known (see `sandboxrl.data.hub`). Raises InputError.
    """
    one = benchmark(name)
    rejected: list[Rejected] = []
    root = Path(documents) if documents else None
    local = path not in ("", "original")
    if local and revision:
        raise InputError(f"benchmark {name}: revision has no effect on a local copy ({path})")
    origins = [Origin(path)] if local else _hub(one, path, revision)
    pins: MutableMapping[str, str] = {} if commits is None else commits
    tasks: dict[str, Task] = {}
    num_rows = 0
    for where, row in _rows(name, origins, pins, rejected):
        num_rows += 1
        try:
            assert one.read is not None
            task = one.read(where, row, root)
        except InputError as error:
            rejected.append(Rejected(where, one_line(error)))
            continue
        tasks.setdefault(digest(task.question, task.gold, *task.options, *task.documents.values()), task)
    if not tasks:
        reason = f": {rejected[0]}" if rejected else ""
        raise InputError(f"benchmark {name}: no usable row in {path or PUBLISHED}{reason}")
    chosen = _limited(_selected(one, list(tasks.values()), seed), limit, f"{seed}:{name}")
    _require_distinct_ids(one, chosen)
    record = {
        "benchmark": name,
        "rows": path if local else [f"{origin.asked}:{origin.config}".strip(":") for origin in origins],
        "commits": {origin.asked: pins[origin.asked] for origin in origins if not origin.local},
        "seed": seed,
        "limit": limit,
        "num_rows": num_rows,
        "num_distinct": len(tasks),
        "ids": [task.id for task in chosen],
        "digest": digest(*(task.to_json() for task in chosen)),
        "rejected": [str(row) for row in rejected],
    }
    return Selection(one, chosen, record)


def load_set(name: str, path: str, seed: int, limit: int, commits: MutableMapping[str, str] | None = None) -> Selection:
    """Any source of tasks, or file of tasks or rows, as a set to evaluate: `name` is one, or what `path` is called.
    Raises InputError."""
    spec = path or name
    if not path and name not in SOURCES and not is_own(name) and not Path(name).exists():
        known = nearest(name, [*BENCHMARKS, *SOURCES])
        raise InputError(f"unknown benchmark {name!r}{known} (or a file of tasks or rows)")
    rejected: list[Rejected] = []
    pins: dict[str, str] = {}
    tasks = load_source(spec, rejected, seed, pins if commits is None else commits)
    title = name if path or name in SOURCES else Path(name.rpartition(":")[2] if is_own(name) else name).stem
    one = Benchmark(title, title, num_tasks=len(tasks))
    chosen = _limited(tasks, limit, f"{seed}:{title}")
    _require_distinct_ids(one, chosen)
    record = {
        "benchmark": title,
        "rows": spec,
        "commits": pins if commits is None else {},
        "seed": seed,
        "limit": limit,
        "num_rows": len(tasks) + len(rejected),
        "num_distinct": len(tasks),
        "ids": [task.id for task in chosen],
        "digest": digest(*(task.to_json() for task in chosen)),
        "rejected": [str(row) for row in rejected],
    }
    return Selection(one, chosen, record)


def _selected(one: Benchmark, tasks: list[Task], seed: int) -> list[Task]:
    """The paper's number of rows, of each stratum where there are strata, in their own order."""
    if not one.strata:
        return _limited(tasks, one.num_tasks, f"{seed}:{one.name}")
    strata: dict[str, list[Task]] = defaultdict(list)
    for task in tasks:
        strata[str(task.metadata.get("stratum", ""))].append(task)
    if set(strata) == {""}:
        return _limited(tasks, one.num_tasks, f"{seed}:{one.name}")
    kept = {task.id for name in strata for task in _limited(strata[name], one.strata, f"{seed}:{one.name}:{name}")}
    return [task for task in tasks if task.id in kept]


def _limited(tasks: list[Task], limit: int, seed: str) -> list[Task]:
    """A random sample of `limit` tasks in their own order; a smaller limit takes a part of what a larger one takes."""
    if not limit or limit >= len(tasks):
        return tasks
    order = list(range(len(tasks)))
    random.Random(seed).shuffle(order)
    return [tasks[i] for i in sorted(order[:limit])]


def _require_distinct_ids(one: Benchmark, tasks: list[Task]) -> None:
    double = [name for name, count in Counter(task.id for task in tasks).items() if count > 1]
    if double:
        raise InputError(f"benchmark {one.name}: different rows share the id {double[0]!r}")


def _hub(one: Benchmark, path: str, revision: str) -> list[Origin]:
    """Where its rows are on the Hub: the published set, or each config of the original release."""
    name, configs, split = (PUBLISHED, (one.config,), "test") if path == "" and one.config else one.original
    return [Origin(dataset=name, config=config, split=split, revision=revision) for config in configs or ("",)]


def _rows(
    name: str, origins: Sequence[Origin], commits: MutableMapping[str, str], rejected: list[Rejected]
) -> Iterator[tuple[str, Row]]:
    try:
        for origin in origins:
            yield from origin.pinned(commits).rows(rejected)
    except InputError as error:
        raise InputError(f"benchmark {name}: {error} (to `evaluate`: --data {name}=PATH or {name}=@REVISION)") from None

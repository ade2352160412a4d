"""Every trajectory of a run in one page: a small list of all of them, and what they say in compressed chunks.

    files ─> rows ─┬─> columns of the list      read when the page opens: 10,000 rows are about 1.5 MB
                   ├─> chunks of text           each about 200 KB of JSON, deflated; read when a row is looked at, or
                   └─> chunks of tokens         searched (text), so that a page of any size opens at once

A page has a budget of bytes. Where everything would take more, all trajectories are shown in less detail (`DETAILS`),
and a note says so. Where even the least detail is too much, the last rows are in the list without their text.
"""

import base64
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sandboxrl.envs.trajectory import StopReason
from sandboxrl.rl.reports.pages.excerpt import (
    BROKEN,
    DETAILS,
    Detail,
    Line,
    Spelled,
    as_json,
    asked,
    clip,
    lines,
    note_skipped,
    parse,
    shown_text,
    shown_tokens,
)

MAX_PAGE_MB = 48
"""Megabytes of all chunks of a page, as they stand in it, unless told otherwise."""
CHUNK = 200_000
"""Characters of JSON in one chunk; fewer where the budget is small."""
LISTED = 160
"""Characters of a question or an answer that the list knows."""


@dataclass(frozen=True)
class Part:
    """Trajectories that belong together: a file, or the part of a file that `wanted` takes."""

    path: Path
    run: str
    """Label of the run; the same for all parts where the page shows one."""
    name: str
    """`Training`, the name of an evaluation set, or empty."""
    step: int | None
    wanted: Callable[[Line], bool] = lambda line: True


class Full(Exception):
    """The page would be larger than its budget."""


@dataclass
class Chunks:
    """Rows of one kind, packed. `starts[i]` is the first row of chunk i; a row lies in the last chunk that starts at it
    or before."""

    limit: int
    """Characters of JSON in one chunk."""
    starts: list[int] = field(default_factory=list)
    packed: list[str] = field(default_factory=list)
    size: int = 0
    """Characters of `packed`."""
    length: int = 0
    """Characters of `waiting`."""
    waiting: list[tuple[int, str]] = field(default_factory=list)
    table: Spelled = field(default_factory=dict)

    def add(self, row: int, content: str) -> None:
        self.waiting.append((row, content))
        self.length += len(content)
        if self.length + 12 * len(self.table) >= self.limit:
            self.close()

    def close(self) -> None:
        if not self.waiting:
            return
        rows = ",".join(f'"{row}":{content}' for row, content in self.waiting)
        content = f'{{"table":{as_json(list(self.table))},"rows":{{{rows}}}}}'
        packed = base64.b64encode(zlib.compress(content.encode(), 6)).decode()
        self.starts.append(self.waiting[0][0])
        self.packed.append(packed)
        self.size += len(packed)
        self.waiting, self.table, self.length = [], {}, 0


@dataclass
class Bundle:
    """What `bundle` makes."""

    index: dict[str, Any]
    """The list: `columns`, the `names` that numbers in it stand for, where the chunks start."""
    text: list[str]
    tokens: list[str]


FACTS = ("score", "reward", "advantage", "turns", "sampled", "environment", "wall")
NAMED = ("task", "source", "mode", "stop", "run", "place", "question", "answer", "gold")


def bundle(parts: Sequence[Part], notes: list[str], max_mb: float = MAX_PAGE_MB) -> Bundle:
    """Everything in `parts`, in their order. Lines that cannot be read are left out, and a note counts them."""
    budget = int(max_mb * 1_000_000)
    for detail in DETAILS:
        found: list[str] = []
        try:
            made = _pack(parts, detail, budget, found, last=detail is DETAILS[-1])
        except Full:
            continue
        if detail is not DETAILS[0]:
            tokens = f"{sum(detail.tokens)} tokens" if sum(detail.tokens) else "no tokens"
            found.append(
                f"To keep this page below {max_mb:g} MB, a trajectory shows at most {sum(detail.turns)} turns, "
                f"{detail.text} characters of a text and {tokens}; `sandboxrl view --max-mb` allows a larger page."
            )
        notes += found
        return made
    raise AssertionError("the least detail is never too much")


def _pack(parts: Sequence[Part], detail: Detail, budget: int, notes: list[str], last: bool) -> Bundle:
    names: dict[str, dict[Any, int]] = {name: {} for name in NAMED}
    columns: dict[str, list[Any]] = {name: [] for name in (*NAMED, *FACTS)}
    limit = max(10_000, min(CHUNK, budget // 8))
    text, tokens = Chunks(limit), Chunks(limit)
    total = sum(part.path.stat().st_size for part in parts) or 1
    read, row, without = 0, 0, 0
    for part in parts:
        skipped, why = 0, ""
        for line in lines(part.path):
            read += len(line)
            try:
                one = parse(line)
                if not part.wanted(one):
                    continue
                facts = _facts(one, part)
                told = as_json(shown_text(one, detail))
                spelled = as_json(shown_tokens(one, detail, tokens.table)) if one.tokens and detail.tokens[0] else ""
            except BROKEN as error:
                skipped, why = skipped + 1, why or f"not a trajectory: {type(error).__name__}: {error}"
                continue
            for name in NAMED:
                columns[name].append(names[name].setdefault(facts[name], len(names[name])))
            for name in FACTS:
                columns[name].append(facts[name])
            if last and text.size > budget:
                without += 1
            else:
                text.add(row, told)
                if spelled:
                    tokens.add(row, spelled)
            row += 1
            size = text.size + tokens.size
            if not last and (size > budget or (size > budget // 8 and size * (total / read) > 1.2 * budget)):
                raise Full
        note_skipped(part.path.name, skipped, why, notes)
    if without:
        notes.append(f"{without} of {row} trajectories are in the list without their text, to bound the page.")
    text.close()
    tokens.close()
    index = {
        "count": row,
        "names": {name: list(known) for name, known in names.items()},
        "columns": columns,
        "faults": {reason: fault(reason) for reason in names["stop"]},
        "text": text.starts,
        "tokens": tokens.starts,
    }
    return Bundle(index, text.packed, tokens.packed)


def _facts(line: Line, part: Part) -> dict[str, Any]:
    """What the list shows of a trajectory, filters and sorts by."""
    one = line.trajectory
    question, gold = asked(line)
    step = part.step if part.step is not None else -1
    return {
        "task": one.task_id,
        "source": one.source,
        "mode": one.mode,
        "stop": str(one.stop),
        "run": part.run,
        "place": (part.name, step),
        "question": clip(question, LISTED),
        "answer": clip(one.answer, LISTED),
        "gold": clip(gold, LISTED),
        "score": _short(one.score),
        "reward": _short(one.reward),
        "advantage": _short(line.beside.get("advantage")),
        "turns": len(one.turns),
        "sampled": int(one.num_sampled),
        "environment": int(one.num_environment),
        "wall": _short(one.wall_s),
    }


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def fault(stop: str) -> str:
    """Whose doing it was that a trajectory ended: `none`, `policy` or `machine`."""
    reason = StopReason(stop)
    return "none" if reason.complete else "policy" if reason.policy_fault else "machine"


def score_table(index: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per run, source and mode, over every trajectory of the list."""
    names, columns = index["names"], index["columns"]
    groups: dict[tuple[str, str, str], list[int]] = {}
    for row in range(index["count"]):
        key = tuple(names[name][columns[name][row]] for name in ("run", "source", "mode"))
        groups.setdefault(key, []).append(row)
    table = []
    for (run, source, mode), rows in sorted(groups.items()):
        stops: dict[str, int] = {}
        for row in rows:
            stop = names["stop"][columns["stop"][row]]
            stops[stop] = stops.get(stop, 0) + 1
        table.append(
            {
                "run": run,
                "source": source,
                "mode": mode,
                "count": len(rows),
                "score": mean(columns["score"][row] for row in rows),
                "turns": mean(columns["turns"][row] for row in rows),
                "stops": sorted(stops.items(), key=lambda item: -item[1]),
            }
        )
    return table


def mean(values: Iterable[float | None]) -> float | None:
    """Over those that are known."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None

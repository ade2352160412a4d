"""One line of a trajectory file as what a page shows of it: checked, shortened, its tokens apart from its text.

Each line is `Trajectory.to_dict()` and what its writer put beside it (`Trajectory.from_row`). A line that is torn,
foreign or hostile raises one of BROKEN. How much of a text and of the tokens is kept is a Detail.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandboxrl.envs.sandbox.protocol import Resources
from sandboxrl.envs.trajectory import Trajectory, Turn

BROKEN = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)
"""What reading a line that is torn, foreign or hostile may raise."""

COLUMNS = ("ids", "mask", "logprobs", "versions")
"""Of the tokens, parallel."""


@dataclass(frozen=True)
class Detail:
    """How much of a trajectory a page holds."""

    text: int
    """Characters of one text: a turn, an observation, an argument."""
    turns: tuple[int, int]
    """Turns from the start and from the end."""
    tokens: tuple[int, int]
    """Tokens from the start and from the end; (0, 0): none."""


DETAILS = (
    Detail(6000, (40, 20), (4000, 2000)),
    Detail(2000, (24, 12), (1500, 500)),
    Detail(800, (12, 8), (0, 0)),
    Detail(300, (4, 4), (0, 0)),
)
"""From all that is useful to the least that is."""


@dataclass(frozen=True)
class Line:
    """A trajectory as read."""

    trajectory: Trajectory
    """Without its tokens."""
    beside: Mapping[str, Any]
    """What its writer put beside it."""
    tokens: Mapping[str, Sequence[Any]] | None
    """COLUMNS of equal length, and where the writer knew them `text` (of each token) and `learner` (log-probabilities
    of the sampled ones)."""


def lines(path: Path) -> Iterator[bytes]:
    """The lines of a JSONL file that hold anything; a line ends at `\\n` only."""
    with path.open("rb") as file:
        yield from (line for line in file if line.strip())


def note_skipped(name: str, count: int, why: str, notes: list[str]) -> None:
    if count:
        notes.append(f"{name}: {count} line{'s' * (count > 1)} left out ({why[:200]}).")


def parse(line: bytes) -> Line:
    """Raises one of BROKEN."""
    row = json.loads(line)
    tokens = row.pop("tokens", None)
    one, beside = Trajectory.from_row(row)
    used = vars(one.resources).values() if one.resources else ()
    for value in (one.score, one.reward, one.wall_s, beside.get("advantage"), *used):
        if not isinstance(value, int | float | None):
            raise TypeError(f"{value!r} is not a number")
    if not all(isinstance(value, str) for value in (one.task_id, one.source, one.mode, one.answer, one.error)):
        raise TypeError("a text of it is not a text")
    if tokens:
        columns = {name: list(tokens[name]) for name in COLUMNS}
        size = len(columns["ids"])
        if any(len(column) != size for column in columns.values()):
            raise ValueError("its token lists differ in length")
        if len(text := beside.get("token_text") or ()) == size:
            columns["text"] = [str(one) for one in text]
        if len(learner := beside.get("learner_logprobs") or ()) == sum(map(bool, columns["mask"])):
            columns["learner"] = list(learner)
        tokens = columns
    return Line(one, beside, tokens or None)


def clip(value: Any, limit: int) -> str:
    text = str(value)
    if len(text) <= limit:
        return text
    return f"{text[: limit * 2 // 3]}\n… {len(text) - limit} characters left out …\n{text[-(limit // 3) :]}"


def shown_text(line: Line, detail: Detail) -> dict[str, Any]:
    """What a person reads of a trajectory, bounded; the facts that the list shows are not in it."""
    one, (head, tail) = line.trajectory, detail.turns
    kept = list(enumerate(one.turns))
    if len(kept) > head + tail:
        kept = kept[:head] + kept[-tail:]
    question, gold = asked(line)
    return {
        "question": clip(question, detail.text),
        "gold": clip(gold, detail.text),
        "answer": clip(one.answer, detail.text),
        "error": clip(one.error, detail.text),
        "seed": one.seed,
        "used": _used(one.resources) if one.resources else "",
        "num_turns": len(one.turns),
        "turns": [_turn(i, turn, detail.text) for i, turn in kept],
    }


def _used(of: Resources) -> str:
    """What its sandbox has used, as far as that is known."""
    known = (
        of.peak_memory_bytes is not None and f"{of.peak_memory_bytes / 1e6:.0f} MB of memory",
        of.cpu_s is not None and f"{of.cpu_s:.1f} s of processor",
        of.throttled_s and f"throttled for {of.throttled_s:.1f} s",
        of.peak_processes is not None and f"{of.peak_processes} processes",
        of.oom_kills and f"{of.oom_kills} killed for memory",
    )
    return ", ".join(text for text in known if text)


def asked(line: Line) -> tuple[str, str]:
    """The question and the right answer: a trainer writes them beside the trajectory, an evaluation into it."""
    found = {**line.trajectory.metadata, **line.beside}
    return tuple(value if isinstance(value := found.get(key), str) else "" for key in ("question", "gold"))  # type: ignore[return-value]


def _turn(index: int, turn: Turn, limit: int) -> dict[str, Any]:
    return {
        "index": index,
        "text": clip(turn.text, limit),
        "reasoning": clip(turn.reasoning, limit),
        "cut": bool(turn.cut),
        "calls": [
            {
                "name": clip(call.name, 200),
                "error": clip(call.error, limit),
                "arguments": [
                    [clip(key, 200), clip(value if isinstance(value, str) else json.dumps(value), limit)]
                    for key, value in call.arguments.items()
                ],
            }
            for call in turn.calls
        ],
        "observations": [
            {
                "text": clip(answer.text, limit),
                "is_error": bool(answer.is_error),
                "finished": bool(answer.finished),
                "exit_code": answer.exit_code,
                "timed_out": bool(answer.timed_out),
                "duration_s": answer.duration_s,
            }
            for answer in turn.observations
        ],
    }


Spelled = dict[tuple[int, str | None], int]
"""(id, text) of a token -> its place in the table of a chunk."""


def shown_tokens(line: Line, detail: Detail, table: Spelled) -> list[dict[str, Any]]:
    """The tokens in their alternation: prompt, sampled turn, observation, … `table` gets the tokens that it lacks.

    Of a trajectory's tokens the first and the last are kept; `omitted` counts those left out, before token `omitted_at`
    of the span. `mask`, `versions`: one number where it is the same for the whole span. `logprobs`, `mismatch`
    (the learner's minus the engine's): null where there is none; `mismatch` is missing where none of the span has one.
    """
    assert line.tokens is not None
    columns, size = line.tokens, len(line.tokens["ids"])
    spelled = list(zip(columns["ids"], columns.get("text") or [None] * size, strict=True))
    theirs = _spread(columns["mask"], columns["learner"]) if "learner" in columns else []
    head, tail = detail.tokens
    gap = (head, size - tail) if size > head + tail else (size, size)
    spans = []
    for start, end, kind, turn in _edges(line.trajectory.turns, size):
        before, after = slice(start, max(start, min(end, gap[0]))), slice(min(end, max(start, gap[1])), end)

        def kept(values: Sequence[Any], before: slice = before, after: slice = after) -> list[Any]:
            return [*values[before], *values[after]]

        mask, tokens = kept(columns["mask"]), [table.setdefault(one, len(table)) for one in kept(spelled)]
        sampled = any(mask)
        span = {
            "kind": kind,
            "turn": turn,
            "start": start,
            "omitted": end - start - len(tokens),
            "omitted_at": before.stop - before.start,
            "tokens": tokens,
            "mask": _same(mask),
            "logprobs": _rounded(kept(columns["logprobs"]), mask) if sampled else None,
            "versions": _same(kept(columns["versions"])),
        }
        if theirs and sampled:
            span["mismatch"] = _differences(kept(theirs), kept(columns["logprobs"]), mask)
        spans.append(span)
    return spans


def _spread(mask: Sequence[Any], sampled: Sequence[float]) -> list[float]:
    """Values of the sampled tokens as values of all; 0 elsewhere."""
    values = iter(sampled)
    return [next(values) if one else 0.0 for one in mask]


def _rounded(values: Sequence[float], mask: Sequence[Any]) -> list[float | None]:
    """To four digits; None where the mask is 0 or the value is not finite (infinity minus itself is not 0)."""
    return [round(value, 4) if one and value - value == 0 else None for value, one in zip(values, mask, strict=True)]


def _edges(turns: Sequence[Turn], size: int) -> Iterator[tuple[int, int, str, int]]:
    """Start, end, kind and turn of every span; together they are 0 to `size`."""
    at = 0
    for i, turn in enumerate(turns):
        if not at <= turn.start <= turn.end <= size:
            continue  # the policy gave no tokens, or the row contradicts itself
        if turn.start > at:
            yield at, turn.start, "prompt" if at == 0 else "observation", i - 1
        yield turn.start, turn.end, "turn", i
        at = turn.end
    if at < size:
        yield at, size, "prompt" if at == 0 else "observation", len(turns) - 1


def _same(values: list[Any]) -> Any:
    return values[0] if values and len(set(values)) == 1 else values


def _differences(theirs: Sequence[float], ours: Sequence[float], mask: Sequence[Any]) -> list[float | None]:
    """To three digits that count; None where the mask is 0 or the value is not finite."""
    pairs = ((a - b if one else math.inf) for a, b, one in zip(theirs, ours, mask, strict=True))
    return [float(f"{difference:.3g}") if difference - difference == 0 else None for difference in pairs]


def finite(value: Any) -> Any:
    """JSON has no NaN or infinity and the page would not parse with one: null instead."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return value


def as_json(value: Any) -> str:
    """JSON in pure ASCII that cannot end the script element it stands in."""
    try:
        text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    except ValueError:
        text = json.dumps(finite(value), allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")

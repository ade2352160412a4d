"""Chooses trajectories from JSONL files for a page and shortens them: bounded in number, text and tokens.

    files ─ scan ─> Found (where each lies, what averages need) ─ excerpt ─> what the page shows, as JSON values

Each line is `Trajectory.to_dict()` and, from a trainer, `advantage` and `token_text` (aligned to the tokens). Lines
that are torn, foreign or hostile are left out, and a note says how many.
"""

import dataclasses
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandboxrl.envs.trajectory import Tokens, Trajectory, Turn

MAX_PAGE_BYTES = 12 << 20
"""JSON of all trajectories on the page; each side has an equal share."""
MAX_ROWS = 600
"""Trajectories on one side."""
HEAD_TOKENS, TAIL_TOKENS = 4000, 2000
"""Kept of one trajectory's tokens."""
HEAD_TURNS, TAIL_TURNS = 40, 20
MAX_TEXT = 6000
"""Characters kept of one text (a turn, an observation, one argument)."""

BROKEN = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)
"""What reading a line that is torn, foreign or hostile may raise."""

_FIELDS = {one.name for one in dataclasses.fields(Trajectory)}


@dataclass(frozen=True)
class Found:
    """Where one trajectory lies, and the little that choosing and averaging need."""

    path: Path
    offset: int
    num_bytes: int
    """What it takes on the page."""
    task: str
    source: str
    mode: str
    stop: str
    score: float | None
    num_turns: int


Pair = Mapping[str, Sequence[Found]]
"""What is set side by side: label -> trajectories, one or two of them."""


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(offset, line) of a JSONL file; a line ends at `\\n` only."""
    offset = 0
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                yield offset, line
            offset += len(line)


def note_skipped(path: Path, count: int, why: str, notes: list[str]) -> None:
    if count:
        notes.append(f"{path.name}: {count} line{'s' * (count > 1)} left out ({why}).")


def scan(path: Path, notes: list[str]) -> list[Found]:
    """Every trajectory of a file."""
    found, skipped, why = [], 0, ""
    for offset, line in lines(path):
        try:
            one, extra = _parse(line)
            size = len(as_json(_reduced(one, extra)))
        except BROKEN as error:
            skipped, why = skipped + 1, why or f"not a trajectory: {type(error).__name__}: {error}"
            continue
        facts = (one.task_id, one.source, one.mode, str(one.stop), one.score, len(one.turns))
        found.append(Found(path, offset, size, *facts))
    note_skipped(path, skipped, why[:200], notes)
    return found


def ends(folder: Path, notes: list[str]) -> dict[str, Pair]:
    """The first and the last of a run's training steps, and of the evaluations of each set."""
    series: dict[str, list[tuple[int, Path]]] = {"Training steps": []}
    for path in sorted(folder.glob("*.jsonl")):
        name = re.fullmatch(r"(step|eval_(?P<set>.+))_(?P<step>\d+)", path.stem)
        if name and path.stat().st_size:
            of = f"Evaluation on {name['set']}" if name["set"] else "Training steps"
            series.setdefault(of, []).append((int(name["step"]), path))
    pairs: dict[str, Pair] = {}
    for of, files in series.items():
        both = {step: scan(path, notes) for step, path in {min(files), max(files)}} if files else {}
        pair = {f"Step {step}" if step else "Before training": both[step] for step in sorted(both) if both[step]}
        if pair:
            pairs[of] = pair
    return pairs


def excerpt(pairs: Mapping[str, Pair], notes: list[str]) -> list[dict[str, Any]]:
    """Of each pair what fits on a page, read and shortened: whole tasks, those on both sides first."""
    share = MAX_PAGE_BYTES // max(1, sum(map(len, pairs.values())))
    shown = []
    for name, pair in pairs.items():
        order = {task: place for place, task in enumerate(_order(pair))}
        sides = []
        for label, found in pair.items():
            rows: list[dict[str, Any]] = []
            room = share
            for one in sorted(found, key=lambda one: order[one.task])[:MAX_ROWS]:
                if one.num_bytes <= room:
                    room -= one.num_bytes
                    rows.append(_read(one))
            if len(rows) < len(found):
                where = f"{name}, {label}" if name else label
                notes.append(f"{where}: {len(rows)} of {len(found)} trajectories are shown, to bound the page.")
            sides.append({"label": label, "count": len(found), "score": mean_score(found), "rows": rows})
        shown.append({"name": name, "sides": sides})
    return shown


def mean_score(found: Sequence[Found]) -> float | None:
    """Over those that were graded."""
    scores = [one.score for one in found if one.score is not None]
    return sum(scores) / len(scores) if scores else None


def _order(pair: Pair) -> list[str]:
    """Tasks in the order in which they get room: those on both sides first, sources in turn."""
    sources: dict[str, Counter[str]] = {}
    for found in pair.values():
        for source, task in {(one.source, one.task): None for one in found}:
            sources.setdefault(source, Counter())[task] += 1
    ranked = [
        (-count, place, source, task)
        for source, tasks in sources.items()
        for place, (task, count) in enumerate(tasks.most_common())
    ]
    return [task for _, _, _, task in sorted(ranked)]


def _parse(line: bytes) -> tuple[Trajectory, dict[str, Any]]:
    """A trajectory and what was written beside it. Raises one of BROKEN."""
    row = json.loads(line)
    extra = {key: row.pop(key) for key in list(row) if key not in _FIELDS}
    one = Trajectory.from_dict(row)
    if one.tokens and len({len(getattr(one.tokens, column.name)) for column in dataclasses.fields(Tokens)}) > 1:
        raise ValueError("its token lists differ in length")
    for value in (one.score, one.reward, one.wall_s, extra.get("advantage")):
        if not isinstance(value, int | float | None):
            raise TypeError(f"{value!r} is not a number")
    return one, extra


def _read(one: Found) -> dict[str, Any]:
    with one.path.open("rb") as file:
        file.seek(one.offset)
        return _reduced(*_parse(file.readline()))


def _reduced(one: Trajectory, extra: Mapping[str, Any]) -> dict[str, Any]:
    """What the page needs of one trajectory, bounded."""
    cut = len(one.turns) > HEAD_TURNS + TAIL_TURNS
    kept = list(enumerate(one.turns))
    return {
        "task": one.task_id,
        "source": one.source,
        "mode": one.mode,
        "stop": str(one.stop),
        "fault": "none" if one.stop.complete else "policy" if one.stop.policy_fault else "machine",
        "score": one.score,
        "reward": one.reward,
        "advantage": extra.get("advantage"),
        "answer": clip(one.answer),
        "error": clip(one.error),
        "wall_s": one.wall_s,
        "seed": one.seed,
        "num_turns": len(one.turns),
        "num_sampled": one.num_sampled,
        "num_environment": one.num_environment,
        "turns": [_turn(i, turn) for i, turn in (kept[:HEAD_TURNS] + kept[-TAIL_TURNS:] if cut else kept)],
        "spans": _spans(one, extra.get("token_text")),
    }


def _turn(index: int, turn: Turn) -> dict[str, Any]:
    return {
        "index": index,
        "text": clip(turn.text),
        "reasoning": clip(turn.reasoning),
        "cut": turn.cut,
        "sampled": turn.num_sampled,
        "environment": turn.num_environment,
        "sample_s": turn.sample_s,
        "tool_s": turn.tool_s,
        "calls": [
            {
                "name": call.name,
                "error": call.error,
                "arguments": [
                    [str(key), clip(value if isinstance(value, str) else json.dumps(value))]
                    for key, value in call.arguments.items()
                ],
            }
            for call in turn.calls
        ],
        "observations": [
            {
                "name": answer.name,
                "text": clip(answer.text),
                "is_error": answer.is_error,
                "finished": answer.finished,
                "exit_code": answer.exit_code,
                "timed_out": answer.timed_out,
                "duration_s": answer.duration_s,
            }
            for answer in turn.observations
        ],
    }


def _spans(one: Trajectory, text: Any) -> list[dict[str, Any]] | None:
    """The tokens in their alternation: prompt, sampled turn, observation, ... None where the policy gave no tokens.

    Only the first HEAD_TOKENS and the last TAIL_TOKENS are kept; `omitted` counts those left out, before token
    `omitted_at` of the span.
    """
    if one.tokens is None:
        return None
    tokens, size = one.tokens.to_lists(), len(one.tokens.ids)
    if not isinstance(text, list) or len(text) != size:
        text = None
    turns = [(turn.start, turn.end, i) for i, turn in enumerate(one.turns) if turn.start >= 0]
    edges: list[tuple[int, int, str, int]] = []
    at = 0
    for start, end, i in turns:
        if start > at:
            edges.append((at, start, "prompt" if at == 0 else "observation", i - 1))
        edges.append((start, end, "turn", i))
        at = end
    if at < size:
        edges.append((at, size, "prompt" if at == 0 else "observation", len(one.turns) - 1))
    gap_end = size - TAIL_TOKENS
    gap = range(HEAD_TOKENS, gap_end) if gap_end > HEAD_TOKENS else range(0)
    spans = []
    for start, end, kind, turn in edges:
        kept = [i for i in range(start, end) if i not in gap]
        spans.append(
            {
                "kind": kind,
                "turn": turn,
                "start": start,
                "omitted": end - start - len(kept),
                "omitted_at": max(0, min(end, HEAD_TOKENS) - start),
                "ids": [tokens["ids"][i] for i in kept],
                "text": [str(text[i]) for i in kept] if text else None,
                "mask": [tokens["mask"][i] for i in kept],
                "logprobs": [round(tokens["logprobs"][i], 4) if tokens["mask"][i] else 0 for i in kept],
                "versions": [tokens["versions"][i] for i in kept],
            }
        )
    return spans


def clip(text: str, limit: int = MAX_TEXT) -> str:
    if len(text) <= limit:
        return text
    return f"{text[: limit * 2 // 3]}\n… {len(text) - limit} characters left out …\n{text[-(limit // 3) :]}"


def _finite(value: Any) -> Any:
    """JSON has no NaN or infinity and the page would not parse with one: null instead."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return value


def as_json(value: Any) -> str:
    """JSON in pure ASCII that cannot end the script element it stands in."""
    try:
        text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    except ValueError:
        text = json.dumps(_finite(value), allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")

r"""Answers with a structure: `json`, `set`, `numbers` and `near`.

json      1 if equal to the gold as JSON: keys in any order, numbers by value, texts exactly
set       F1 of two sets of texts: the gold is a JSON list, or texts separated by commas, semicolons or lines
numbers   F1 of two lists of numbers in any order, by value: the gold is like that of `set`
near      1 if within the tolerance of the gold: `metadata["tolerance"]` (absolute) or `["relative"]` (0.01 if neither)
"""

import json
import re
from collections import Counter
from fractions import Fraction
from typing import Any

from sandboxrl.data.errors import InputError
from sandboxrl.data.task import Task
from sandboxrl.envs.grading.answers.numbers import another_number, parse_number, said_number, stated
from sandboxrl.envs.grading.answers.text import plain
from sandboxrl.envs.grading.protocol import Kind, has_gold
from sandboxrl.envs.grading.protocol.replies import (
    MAX_ANSWER_CHARS,
    boxes,
    free_text,
    last_fence,
    spoken,
    undressed,
    visible_reply,
)
from sandboxrl.envs.sandbox.protocol import Sandbox

_SEPARATOR = re.compile(r"\n|;|,(?!\d{3}\b)")
_BULLET = re.compile(r"^\s*(?:[-*•]|\d{1,2}[.)])\s+")
RELATIVE = 0.01


# ---------------------------------------------------------------------------------------------------------------- json


def read_json(text: str) -> Any:
    """The JSON value that an answer is, or ends with. Raises ValueError."""
    fence = last_fence(text)
    for candidate in (text if fence is None else fence, spoken(text)):
        try:
            return json.loads(candidate.strip().strip("`"), parse_constant=_refused)
        except (ValueError, RecursionError):
            continue
    decoder = json.JSONDecoder(parse_constant=_refused)
    for start in list(re.finditer(r"(?m)^[^\S\n]*(?=[\[{])|:\s*(?=[\[{])", text))[-20:]:
        try:
            value, end = decoder.raw_decode(text, start.end())
        except (ValueError, RecursionError):
            continue
        if not text[end:].strip(" \n.`*"):
            return value
    raise ValueError("no JSON")


def _refused(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def same_json(a: Any, b: Any) -> bool:
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, int | float) and isinstance(b, int | float):
        return a == b
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same_json(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same_json, a, b))
    return type(a) is type(b) and bool(a == b)


def json_score(task: Task, answer: str, sandbox: Sandbox | None = None) -> float:
    try:
        return float(len(answer) <= 50 * MAX_ANSWER_CHARS and same_json(json.loads(task.gold), read_json(answer)))
    except (ValueError, RecursionError):
        return 0.0


def _check_json(task: Task) -> None:
    has_gold(task)
    try:
        json.loads(task.gold, parse_constant=_refused)
    except ValueError as error:
        raise InputError(f"task {task.id}: the gold is no JSON: {error}") from None


JSON = Kind(
    score=json_score,
    check=_check_json,
    extract=lambda task, reply: visible_reply(reply),
    wrong=lambda task: '{"zyzzyva": "qwxz"}',
    ask="The answer is one JSON value and nothing else.",
)


# ----------------------------------------------------------------------------------------------------------------- sets


def listed(text: str) -> list[str]:
    """The items of a JSON list, of lines, or of a text with commas or semicolons; without bullets and dress."""
    text = text.strip()
    if found := boxes(text):
        text = text[found[-1][0] : found[-1][1]]
    fence = last_fence(text)
    try:
        value = json.loads(text if fence is None else fence)
        items = [str(one) for one in value] if isinstance(value, list) else [str(value)]
    except (ValueError, RecursionError):
        text = undressed(text)
        text = text[1:-1] if re.fullmatch(r"[\[{(].*[\]})]", text, re.DOTALL) else text
        parts = _SEPARATOR.split(re.sub(r",?\s+and\s+(?=\S+(?:\s\S+){0,4}$)", ", ", text))
        items = [undressed(_BULLET.sub("", part)) for part in parts]
    return [item for item in items if item.strip()]


def _items(text: str) -> set[str]:
    return {plain(undressed(item)) for item in listed(text)} - {""}


def set_score(task: Task, answer: str, sandbox: Sandbox | None = None) -> float:
    if len(answer) > MAX_ANSWER_CHARS:
        return 0.0
    gold = _items(task.gold)
    return max(_f1(len(gold & said), len(gold), len(said)) for said in (_items(answer), _items(spoken(answer))))


def _f1(common: int, gold: int, said: int) -> float:
    return 2 * common / (gold + said) if common else 0.0


def _check_set(task: Task) -> None:
    has_gold(task)
    if not _items(task.gold):
        raise InputError(f"task {task.id}: the gold {task.gold!r} lists nothing")


SET = Kind(
    score=set_score,
    check=_check_set,
    extract=free_text,
    ask="The answer is a list of items separated by commas, in any order.",
)


def _numbers(text: str) -> Counter[Fraction] | None:
    parsed = [parse_number(item) for item in listed(text)]
    return None if None in parsed or not parsed else Counter(found[0] for found in parsed if found)


def numbers_score(task: Task, answer: str, sandbox: Sandbox | None = None) -> float:
    gold = _numbers(task.gold)
    if gold is None or len(answer) > MAX_ANSWER_CHARS:
        return 0.0
    said = _numbers(answer) or _numbers(spoken(answer)) or Counter()
    return _f1((gold & said).total(), gold.total(), said.total())


def _check_numbers(task: Task) -> None:
    has_gold(task)
    if _numbers(task.gold) is None:
        raise InputError(f"task {task.id}: the gold {task.gold!r} is no list of numbers")


NUMBERS = Kind(
    score=numbers_score,
    check=_check_numbers,
    wrong=another_number,
    ask="The answer is a list of numbers separated by commas, in any order.",
)


# ----------------------------------------------------------------------------------------------------------------- near


def near_score(task: Task, answer: str, sandbox: Sandbox | None = None) -> float:
    gold, (said, _) = parse_number(task.gold), said_number(answer, task.question)
    if gold is None or said is None or said.unit not in ("", gold[1]):
        return 0.0
    return float(abs(gold[0] - said.value) <= _allowed(task, gold[0]))


def _allowed(task: Task, gold: Fraction) -> Fraction:
    """How far an answer may be off. Raises InputError."""
    given = {key: task.metadata[key] for key in ("tolerance", "relative") if key in task.metadata}
    for key, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
            raise InputError(f"task {task.id}: metadata {key!r} must be a number of 0 or more, not {value!r}")
    absolute = Fraction(str(given.get("tolerance", 0)))
    relative = Fraction(str(given.get("relative", 0 if "tolerance" in given else RELATIVE)))
    return max(absolute, relative * abs(gold))


def _check_near(task: Task) -> None:
    has_gold(task)
    gold = parse_number(task.gold)
    if gold is None:
        raise InputError(f"task {task.id}: gold {task.gold!r} is not a number")
    _allowed(task, gold[0])


def _far(task: Task) -> str:
    gold = parse_number(task.gold)
    assert gold is not None
    return str(float(gold[0] + 10 * _allowed(task, gold[0]) + 1))


NEAR = Kind(
    score=near_score, check=_check_near, extract=stated, wrong=_far, ask="The answer is a number without a unit."
)

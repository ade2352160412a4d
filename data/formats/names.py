"""The names that people give to a question, its answer, its options and its context: the first that is there counts."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from sandboxrl.data.errors import InputError
from sandboxrl.data.formats.fields import json_field, text_field
from sandboxrl.data.reading import Row

QUESTION = ("question", "problem", "query", "prompt", "question_stem", "question_text", "input", "Question", "Problem")
ANSWER = (
    "answer", "expected_answer", "final_answer", "target", "gold", "ground_truth", "reference_answer", "correct_answer",
    "answers", "best_answer", "label", "answerKey", "answer_key", "correct", "correct_option", "correct_answer_id",
    "answer_idx", "answer_index", "gold_index", "cop", "solution", "output", "Answer",
)  # fmt: skip
OPTIONS = ("options", "choices", "candidates", "endings", "alternatives")
CONTEXT = ("context", "passage", "article", "story", "support", "background", "paragraph")
_POSITIONS = frozenset(
    ("label", "correct_option", "correct_answer_id", "answer_idx", "answer_index", "gold_index", "cop", "gold")
)
"""Names under which a whole number is the position of an option, counted from 0."""
_WRITTEN = frozenset(("json", "set", "numbers", "program", "tests", "ifbench"))
"""Kinds whose gold has a structure of its own and is taken as it is."""
_NUMBERED = re.compile(r"(?:option|choice|answer|ending)_?(\d|[a-eA-E])|opa|opb|opc|opd")


def the_field(row: Mapping[str, Any], names: Sequence[str]) -> str:
    """The first of these names that the row has a value for. Raises InputError that lists them."""
    for name in names:
        if row.get(name) not in (None, ""):
            return name
    if empty := [name for name in names if name in row]:
        text_field(row, empty[0])  # says whether it is null or empty
    raise InputError(f"no {names[0]!r} (or {', '.join(names[1:])}) among the fields {', '.join(map(str, row))}")


def question_of(row: Row) -> str:
    return text_field(row, the_field(row, QUESTION))


def context_of(row: Row) -> str:
    """The text that the question is about; empty: none."""
    name = next((name for name in CONTEXT if isinstance(row.get(name), str) and row[name].strip()), "")
    return str(row[name]) if name else ""


def options_of(row: Row) -> tuple[list[str], list[str]] | None:
    """The options and their own labels, or None: `options`, `{"text": [...], "label": [...]}`, `{"A": ..., "B": ...}`,
    a list of `{"label", "text"}`, or one field for each (`option1`, `A`)."""
    name = next((name for name in OPTIONS if row.get(name) not in (None, "")), "")
    if not name and isinstance(row.get("answers"), list) and _is_position(row):
        name = "answers"  # ReClor, QuAIL: the options are called answers
    if not name:
        numbered = {key: value for key, value in row.items() if _NUMBERED.fullmatch(key) and value not in (None, "")}
        lettered = {key: row[key] for key in "ABCDEFGHIJ" if row.get(key) is not None}
        found = numbered if len(numbered) > 1 else lettered
        return ([str(value) for value in found.values()], list(found)) if len(found) > 1 else None
    value = json_field(row, name)
    if isinstance(value, Mapping) and isinstance(value.get("choices"), list):
        return [str(one) for one in value["choices"]], []
    if isinstance(value, Mapping) and isinstance(value.get("text"), list):
        texts = [str(one) for one in value["text"]]
        return texts, [str(one) for one in value.get("label") or range(len(texts))]
    if isinstance(value, Mapping):
        return [str(one) for one in value.values()], list(map(str, value))
    if not isinstance(value, list):
        raise InputError(f"{name!r} is not a list")
    if value and all(isinstance(one, Mapping) for one in value):
        texts = [str(next((one[key] for key in ("text", "content", "value") if key in one), "")) for one in value]
        return texts, [str(one.get("label", one.get("letter", i))) for i, one in enumerate(value)]
    return [str(one) for one in value], []


def _is_position(row: Row) -> bool:
    return any(name in row for name in _POSITIONS)


def answers_of(row: Row, options: Sequence[str], labels: Sequence[str]) -> list[str | int]:
    """The right answers: texts; for a choice, letters, texts or positions. Raises InputError."""
    if options and isinstance(row.get("answer"), list) and not row["answer"]:
        return []
    names = [name for name in ANSWER if not (options and name == "answers" and _is_position(row))]
    name = the_field(row, names)
    value = row[name]
    if row.get("reward") in _WRITTEN:
        return [value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)]
    if isinstance(value, str) and value.lstrip()[:1] in "[{" and name in ("answers", "answer") and _is_json(row, name):
        written = json_field(row, name)
        value = written if isinstance(written, list) or "text" in written else value
    if isinstance(value, Mapping):  # SQuAD: {"text": [...], "answer_start": [...]}
        value = value.get("text", value.get("value"))
    listed = value if isinstance(value, list) else [value]
    if not listed:
        raise InputError(f"{name!r} is empty")
    if name == "solution":
        listed = [concluded(text_field({name: one}, name)) for one in listed]
    return [_one(one, name, options, labels) for one in listed]


def _is_json(row: Row, name: str) -> bool:
    try:
        json_field(row, name)
    except InputError:
        return False
    return True


def _one(value: Any, name: str, options: Sequence[str], labels: Sequence[str]) -> str | int:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{name!r} is {value}")
    text = str(value) if isinstance(value, int | float) else text_field({name: value}, name)
    if options:
        by_label = [i for i, label in enumerate(labels) if label.casefold() == text.strip().casefold()]
        if text.strip() not in options and by_label:
            return by_label[0]
        if text.strip().isdigit() and (name in _POSITIONS or text.strip() not in options):
            return int(text)
    return text.rpartition("####")[2].strip() if "####" in text else text  # GSM8K: the reasoning, #### the answer


def concluded(solution: str) -> str:
    r"""What a worked solution puts into its last `\boxed{...}`, else all of it."""
    start = solution.rfind("\\boxed{")
    depth, end = 1, start + len("\\boxed{")
    while start >= 0 and depth and end < len(solution):
        depth += {"{": 1, "}": -1}.get(solution[end], 0)
        end += 1
    return solution[start + len("\\boxed{") : end - 1] if start >= 0 and not depth else solution

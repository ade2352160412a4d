"""A row of the seed collection of Instruction Pre-Training: context, QA_list, QA_type, rc_name."""

import re
from collections.abc import Sequence
from typing import Any

from sandboxrl.data.context import Context, Question
from sandboxrl.data.errors import InputError
from sandboxrl.data.files import digest
from sandboxrl.data.formats.fields import json_field, text_field
from sandboxrl.data.formats.questions import choice_question, each_question, free_question, unlabelled
from sandboxrl.data.reading import Row

_CONCLUSION = re.compile(r"\b(?:therefore|so|hence|thus),? (?:the )?(?:final )?answer is\b:?", re.I)
_OPTIONS = re.compile(
    r"\n[ \t]*(?:options|choices|answer choices)[ \t]*:[ \t]*\n(?=[ \t]*[-*•]|[ \t]*\(?[A-Z][.)])", re.I
)
_BULLET = re.compile(r"^\s*[-*•]\s+")


def collection(where: str, row: Row) -> Context:
    """A row of the seed collection of Instruction Pre-Training: context, QA_list, QA_type, rc_name."""
    pairs = json_field(row, "QA_list")
    if not isinstance(pairs, list) or not pairs:
        raise InputError("'QA_list' is not a list of questions")
    for i, pair in enumerate(pairs):
        if not isinstance(pair, dict) and not (isinstance(pair, list) and len(pair) == 2):
            raise InputError(f"QA_list[{i}]: not a pair but {type(pair).__name__}")
    questions, lost = each_question(pairs, "QA_list", _synthesizer_pair)
    context = text_field(row, "context")
    name = row.get("rc_name")
    return Context(
        id=digest(context, *(q.text for q in questions)),
        source=name if isinstance(name, str) and name else "general",
        text=context,
        questions=questions,
        where=where,
        lost=lost,
    )


def _synthesizer_pair(pair: Any) -> Question:
    """{"Q", "A"}, {"question", "answer"} or [question, answer]. Options are inside Q and A is the text of one; a chain
    of thought is asked for at the end of Q and concluded at the end of A, and only the conclusion is kept."""
    if isinstance(pair, list) and len(pair) == 2:
        pair = {"Q": pair[0], "A": pair[1]}
    assert isinstance(pair, dict)
    asked = text_field(pair, "Q" if "Q" in pair else "question").replace("Let's think step by step.", "").strip()
    answer = text_field(pair, "A" if "A" in pair else "answer").strip()
    if concluded := _CONCLUSION.search(answer):
        answer = answer[concluded.end() :].strip().removesuffix(".")
    if listed := _OPTIONS.search(asked):
        lines = [line for line in asked[listed.end() :].split("\n") if line.strip()]
        lines = [_BULLET.sub("", line).strip() for line in lines]
        return choice_question(asked[: listed.start()], unlabelled(lines), [_chosen(lines, _BULLET.sub("", answer))])
    return free_question(asked, answer)


def _chosen(lines: Sequence[str], answer: str) -> str | int:
    """The answer, or the position of the line that it repeats with its label."""
    return lines.index(answer) if answer in lines else answer

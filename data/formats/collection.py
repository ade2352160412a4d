"""A row of the seed collection of Instruction Pre-Training: context, QA_list, QA_type, rc_name."""

import re
from typing import Any

from sandboxrl.data.context import Context, Question
from sandboxrl.data.errors import InputError
from sandboxrl.data.files import digest
from sandboxrl.data.formats.fields import json_field, text_field
from sandboxrl.data.formats.questions import choice_question, free_question
from sandboxrl.data.reading import Row

_CONCLUSION = re.compile(r"\b(?:therefore|so|hence|thus),? (?:the )?(?:final )?answer is\b:?", re.I)
_OPTIONS = re.compile(
    r"\n[ \t]*(?:options|choices|answer choices)[ \t]*:[ \t]*\n(?=[ \t]*[-*•]|[ \t]*\(?[A-Z][.)])", re.I
)
_OPTION_MARK = re.compile(r"^\s*(?:[-*•]\s+|\(?[A-Z][.)]\s*)")


def collection(where: str, row: Row) -> Context:
    """A row of the seed collection of Instruction Pre-Training: context, QA_list, QA_type, rc_name."""
    pairs = json_field(row, "QA_list")
    if not isinstance(pairs, list) or not pairs:
        raise InputError("'QA_list' is not a list of questions")
    questions = []
    for i, pair in enumerate(pairs):
        try:
            questions.append(_synthesizer_pair(pair))
        except InputError as error:
            raise InputError(f"QA_list[{i}]: {error}") from None
    context = text_field(row, "context")
    name = row.get("rc_name")
    return Context(
        id=digest(context, *(q.text for q in questions)),
        source=name if isinstance(name, str) and name else "general",
        text=context,
        questions=tuple(questions),
        where=where,
    )


def _synthesizer_pair(pair: Any) -> Question:
    """{"Q", "A"}, {"question", "answer"} or [question, answer]. Options are inside Q and A is the text of one; a chain
    of thought is asked for at the end of Q and concluded at the end of A, and only the conclusion is kept."""
    if isinstance(pair, list) and len(pair) == 2:
        pair = {"Q": pair[0], "A": pair[1]}
    if not isinstance(pair, dict):
        raise InputError(f"not a pair but {type(pair).__name__}")
    asked = text_field(pair, "Q" if "Q" in pair else "question").replace("Let's think step by step.", "").strip()
    answer = text_field(pair, "A" if "A" in pair else "answer").strip()
    if concluded := _CONCLUSION.search(answer):
        answer = answer[concluded.end() :].strip().removesuffix(".")
    if listed := _OPTIONS.search(asked):
        lines = [line for line in asked[listed.end() :].split("\n") if line.strip()]
        options = [_OPTION_MARK.sub("", line).strip() for line in lines]
        return choice_question(asked[: listed.start()], options, [_OPTION_MARK.sub("", answer)])
    return free_question(asked, answer)

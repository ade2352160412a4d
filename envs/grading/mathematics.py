"""Mathematics: `math` is 1 if math-verify finds the one expression that was answered equal to the gold.

math-verify may hang on hostile input, so it runs in a grading process with a deadline.
"""

import re

from sandboxrl.data.errors import InputError
from sandboxrl.data.task import Task
from sandboxrl.envs.grading.numbers import another_number, parse_number
from sandboxrl.envs.grading.protocol import GraderFailed, Kind, Means
from sandboxrl.envs.grading.replies import MAX_SHORT_CHARS, after_phrases, boxed_or_said, last_boxed
from sandboxrl.envs.grading.text import check_accepted

_FUNCTIONS = {
    "sqrt",
    "sin",
    "cos",
    "tan",
    "cot",
    "sec",
    "csc",
    "log",
    "exp",
    "arcsin",
    "arccos",
    "arctan",
    "max",
    "min",
}


def is_math_gold(gold: str) -> bool:
    """True for a bare number, LaTeX, or an expression without words: what math-verify can compare safely.

    On prose math-verify picks out any number and finds "3 dogs" equal to "3 cats", so prose golds are refused.
    """
    if parse_number(gold) is not None:
        return True
    without_units = re.sub(r"\\text\s*\{[^{}]*\}", " ", gold)
    words = re.findall(r"[^\W\d_]{2,}", re.sub(r"\\[a-zA-Z]+", " ", without_units))
    if any(word not in _FUNCTIONS for word in words):
        return False
    return bool(re.search(r"\d|\\[a-zA-Z]|[-+*/^=<>]|(?<![\w])[a-zA-Z](?![\w])", gold))


def answered_expression(answer: str) -> str:
    """The one expression that an answer stands for: the last box, else what follows the last "answer is", else all of
    it; without markdown, dollar signs and a final full stop."""
    text = answer.strip()
    boxed = last_boxed(text)
    if boxed is None:
        said = after_phrases(text)
        boxed = said[-1] if said else text
    text = boxed.replace("\u2212", "-").strip("*`$ \n\t")
    value = parse_number(text)
    if value is not None and re.search(r"[eE ]", text):
        text = str(value[0]) + value[1]  # math-verify reads 1e3 as 1 and 1 000 as 0
    return text[:-1] if text.endswith(".") else text


def math_score(gold: str, answer: str) -> float:
    """1.0 if the answered expression equals the gold in math-verify's sense. Raises InputError for a prose gold.

    The expression is put into a box of its own before it is parsed. That way math-verify must read all of it as one
    expression: it cannot pick a fitting number out of a sentence, and two answers ("70 and 71") are a set, not either.
    """
    if not is_math_gold(gold):
        raise InputError(f"{gold!r} is neither a number nor LaTeX: math-verify would match unrelated prose")
    expression = answered_expression(answer[: MAX_SHORT_CHARS + 1])
    if not expression or len(answer) > MAX_SHORT_CHARS:
        return 0.0
    right = parse_number(gold)
    if right is not None and parse_number(expression) == right:
        return 1.0
    sides = [parse_number(side) for side in expression.split("=")]
    if None not in sides and len(set(sides)) > 1:
        return 0.0  # "70=71" would equal both
    units = [set(re.findall(r"\\text\s*\{\s*([^{}]*?)\s*\}", side)) for side in (gold, expression)]
    if units[0] and units[1] and units[0] != units[1]:
        return 0.0  # math-verify drops units: 100 km would equal 100 m
    return float(verified(wrapped(gold), wrapped(expression)))


def wrapped(expression: str) -> str:
    return expression if last_boxed(expression) is not None else f"\\boxed{{{expression.strip('$ ')}}}"


def verified(gold: str, prediction: str) -> bool:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    # Its own timeouts use signal.alarm, which exists only in the main thread; the caller has the deadline.
    right = parse(gold, extraction_config=[LatexExtractionConfig()], parsing_timeout=None)
    said = parse(prediction, extraction_config=[LatexExtractionConfig(), ExprExtractionConfig()], parsing_timeout=None)
    return bool(verify(right, said, timeout_seconds=None))


def _check(task: Task) -> None:
    check_accepted(task)
    if not is_math_gold(task.gold):
        raise InputError(f"task {task.id}: gold {task.gold!r} is prose, which math-verify compares wrongly; use rouge")


async def _grade(task: Task, answer: str, means: Means) -> float:
    return await compared(means, {"kind": "math", "gold": task.gold, "answer": answer}, task.gold)


async def compared(means: Means, request: dict[str, str], gold: str) -> float:
    """Math-verify on an answer. An answer that two fresh processes cannot digest, while they digest the gold itself,
    equals nothing: that is the answer's doing (`9^9^9^9`), and math-verify too calls it unequal."""
    try:
        return float((await means.compute(request))["score"])
    except GraderFailed:
        if (await means.compute(request | {"answer": gold}))["score"] != 1.0:
            raise
        return 0.0


MATH = Kind(
    grade=_grade,
    check=_check,
    extract=boxed_or_said,
    wrong=another_number,
    ask="The answer is a mathematical expression inside \\boxed{}, for example \\boxed{42}.",
)

"""Numbers: `number` is 1 if the answer and the gold are equal as exact numbers, units included."""

import re
import unicodedata
from fractions import Fraction

from sandboxrl.data.errors import InputError
from sandboxrl.data.task import Task
from sandboxrl.envs.grading.protocol import Kind
from sandboxrl.envs.grading.replies import MAX_SHORT_CHARS, after_phrases, last_boxed, said_or_boxed
from sandboxrl.envs.grading.text import accepted, check_accepted, exact
from sandboxrl.envs.sandbox.protocol import Sandbox

_NUMBER = re.compile(
    r"([+-]?)\s*(?:(\d{1,3}(?:([, ])\d{3})(?:\3\d{3})*|\d+)?(?:\.(\d*))?)(?:[eE]([+-]?\d{1,3}))?(?:/(\d{1,30}))?(%?)"
)


def parse_number(text: str) -> tuple[Fraction, str] | None:
    """The exact value of a text that is one number, and its unit: `%` or nothing.

    Takes a sign (U+2212 too), thousands in groups of three, a decimal point, an exponent, a fraction `1/3`, and the
    dress `**7**`, `$7$`, `\\boxed{7}`, a final full stop. Any other word or unit makes it no number:
    `100 km` is not 100.
    """
    text = unicodedata.normalize("NFKC", text).replace("\u2212", "-").strip()
    boxed = last_boxed(text)
    text = (text if boxed is None else boxed).replace("{,}", ",").replace("\\%", "%").replace("\\,", " ")
    text = text.strip("*`$ \n\t")
    if text.endswith(".") and text.count(".") == 1:
        text = text[:-1]
    match = _NUMBER.fullmatch(text) if len(text) <= 120 else None
    if match is None or not (match[2] or match[4]):
        return None
    sign, whole, group, decimals, exponent, denominator, unit = match.groups()
    if group:
        whole = whole.replace(group, "")
    value = Fraction(int((whole or "0") + (decimals or "")), 10 ** len(decimals or "")) * Fraction(10) ** int(
        exponent or 0
    )
    if denominator is not None:
        if int(denominator) == 0:
            return None
        value /= int(denominator)
    return (-value if sign == "-" else value), unit


def number(task: Task, answer: str, sandbox: Sandbox | None = None) -> float:
    if parse_number(task.gold) is None:
        raise InputError(f"task {task.id}: gold {task.gold!r} is not a number")
    golds = accepted(task)
    said = [parse_number(answer)] + [parse_number(value) for value in after_phrases(answer[:MAX_SHORT_CHARS])[-1:]]
    right = any(value is not None and value in map(parse_number, golds) for value in said)
    return float(right or exact(task, answer) == 1.0)  # another accepted answer may be the number's word


def _check(task: Task) -> None:
    check_accepted(task)
    if parse_number(task.gold) is None:
        raise InputError(f"task {task.id}: gold {task.gold!r} is not a number")


def another_number(task: Task) -> str:
    return "987654321.125"


NUMBER = Kind(
    score=number,
    check=_check,
    extract=said_or_boxed,
    wrong=another_number,
    ask="The answer is a number without a unit.",
)

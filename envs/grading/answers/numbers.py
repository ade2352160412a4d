"""Numbers: `number` is 1 if the answer and the gold are equal as exact numbers.

A percentage is a unit: 42% is not 42. The gold 50% may be answered without it, as the prompt asks for no unit.
"""

import re
import unicodedata
from collections.abc import Iterator
from fractions import Fraction

from sandboxrl.data.errors import InputError
from sandboxrl.data.task import Task
from sandboxrl.envs.grading.answers.text import accepted, check_accepted, exact
from sandboxrl.envs.grading.protocol import Kind
from sandboxrl.envs.grading.protocol.replies import (
    MAX_SHORT_CHARS,
    MAX_STATEMENTS,
    boxes,
    is_unfinished,
    line_from,
    phrases,
    undressed,
    visible_reply,
)
from sandboxrl.envs.sandbox.protocol import Sandbox

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+")
_CHARACTERS = str.maketrans(
    {0x2212: "-", 0x2010: "-", 0x2011: "-", 0x2013: "-", 0xD7: "*", 0xB7: "*", 0x22C5: "*", 0x2044: "/", 0x3000: " "}
    | dict.fromkeys((0xA0, 0x2009, 0x202F, 0x2007, 0x2005), " ")
    | {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
)
"""Minus, dashes and full-width characters as plain ones. NFKC would also make 23 of 2³ and 12 of ①②."""
_NUMBER = re.compile(
    r"([+-]?)\s*(?:(\d{1,3}(?:([, ])\d{3})(?:\3\d{3})*|\d+)?(?:\.(\d*))?)"
    r"(?:[eE]([+-]?\d{1,3})|\s*\*\s*10\s*\^\s*\{?\s*([+-]?\s*\d{1,3})\s*\}?)?(?:\s*/\s*(\d{1,30}))?\s*(%?)"
)
_POWER = re.compile(r"(-?)\s*(\d{1,9})\s*\^\s*\{?\s*([+-]?\d{1,3})\s*\}?")
_FRACTION = re.compile(r"([+-]?)\s*\\[dt]?frac\s*\{\s*(\d{1,30})\s*\}\s*\{\s*(\d{1,30})\s*\}\s*(%?)")
_MAX_CHARS = 120
_CLAUSE_END = re.compile(
    r"\b(?:because|since|as|which|so|where|after|when|by|from)\b|[;(]|,\s+(?![\d-])|\.\s|\s[-–—]\s"
)


def plain_characters(text: str) -> str:
    """Signs, spaces and full-width characters in their plain form; superscripts as powers, `2³` as `2^{3}`."""
    text = _RAISED.sub(lambda found: f"^{{{found[0].translate(_SUPERSCRIPTS)}}}", text.translate(_CHARACTERS))
    return re.sub(r"(\d?)([¼½¾⅐-⅞])", lambda found: _vulgar(found[1], found[2]), text)


def _vulgar(before: str, sign: str) -> str:
    value = Fraction(unicodedata.numeric(sign)).limit_denominator(10) + (int(before) if before else 0)
    return f"{value.numerator}/{value.denominator}"


def parse_number(text: str) -> tuple[Fraction, str] | None:
    """The exact value of a text that is one number, and its unit: `%` or nothing.

    Takes a sign (U+2212 too), thousands in groups of three, a decimal point, a power (`1e3`, `6.02*10^23`, `10⁶`), a
    fraction `1/3`, and the dress `**7**`, `$7$`, `\\boxed{7}`, a final full stop. Any other word or unit makes it no
    number: `100 km` is not 100.
    """
    if len(text) > MAX_SHORT_CHARS:
        return None
    found = boxes(text)
    text = plain_characters(text[found[-1][0] : found[-1][1]] if found else text)
    text = re.sub(r"\s*\\times\s*|\s*\\cdot\s*", "*", text.replace("{,}", ",").replace("\\%", "%"))
    text = re.sub(r"\s*(?:percent|per cent)\b", "%", re.sub(r"\\[,;!~ ]|~", " ", text)).strip()
    before = ""
    while text != before:
        before, text = text, undressed(re.sub(r"^\\[(\[]\s*|\s*\\[)\]]$", "", text.strip("$"))).strip()
    if len(text) > _MAX_CHARS:
        return None
    if power := _POWER.fullmatch(text):
        sign, base, exponent = power.groups()
        if int(base) == 0 or len(base) * abs(int(exponent)) > 10_000:
            return None
        value = Fraction(int(base)) ** int(exponent)
        return (-value if sign else value), ""
    if written := _FRACTION.fullmatch(text):
        text = f"{written[1]}{written[2]}/{written[3]}{written[4]}"
    match = _NUMBER.fullmatch(text)
    if match is None or not (match[2] or match[4]):
        return None
    sign, whole, group, decimals, exponent, power_of_ten, denominator, unit = match.groups()
    if group:
        whole = whole.replace(group, "")
    value = Fraction(int((whole or "0") + (decimals or "")), 10 ** len(decimals or "")) * Fraction(10) ** int(
        (exponent or power_of_ten or "0").replace(" ", "")
    )
    if denominator is not None:
        if int(denominator) == 0:
            return None
        value /= int(denominator)
    return (-value if sign == "-" else value), unit


def said_number(answer: str) -> tuple[tuple[Fraction, str] | None, str]:
    """The number that an answer or a visible reply states, and the text that holds it: the last box or "answer is"
    that holds a number, else all of it."""
    if is_unfinished(answer):
        return None, ""
    found = [
        (start, f"\\boxed{{{answer[start:end]}}}", answer[start:end]) for start, end in boxes(answer)[-MAX_STATEMENTS:]
    ]
    for begin, start in phrases(answer):
        found.append((begin, answer[begin:start] + line_from(answer, start), line_from(answer, start)))
    for _, statement, value in sorted(found, reverse=True):
        for reading in _readings(value):
            if (number := parse_number(reading)) is not None:
                return number, statement if statement.startswith("\\boxed{") else reading
    return parse_number(answer), answer


def _readings(value: str) -> Iterator[str]:
    """A statement, its first clause, and what these say of a variable: "x = 3.5, because ..."."""
    for text in (value, _CLAUSE_END.split(value)[0]):
        yield text
        if named := re.match(r"[^=\d]{1,30}=(?=[^=]+$)", text):
            yield text[named.end() :]


def stated(task: Task, reply: str) -> str:
    """The statement of a final reply that holds its number, which is read as the reply is."""
    return said_number(visible_reply(reply))[1]


def number(task: Task, answer: str, sandbox: Sandbox | None = None) -> float:
    if parse_number(task.gold) is None:
        raise InputError(f"task {task.id}: gold {task.gold!r} is not a number")
    said, _ = said_number(answer)
    right = said is not None and any(same_number(parse_number(gold), said) for gold in accepted(task))
    return float(right or exact(task, answer) == 1.0)  # another accepted answer may be the number's word


def same_number(gold: tuple[Fraction, str] | None, said: tuple[Fraction, str]) -> bool:
    return gold is not None and gold[0] == said[0] and said[1] in ("", gold[1])


def _check(task: Task) -> None:
    check_accepted(task)
    if parse_number(task.gold) is None:
        raise InputError(f"task {task.id}: gold {task.gold!r} is not a number")


def another_number(task: Task) -> str:
    return "987654321.125"


NUMBER = Kind(
    score=number,
    check=_check,
    extract=stated,
    wrong=another_number,
    ask="The answer is a number without a unit.",
)

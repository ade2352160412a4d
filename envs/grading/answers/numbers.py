"""Numbers: `number` is 1 if the answer and the gold are equal as exact numbers.

A percentage is a unit: 42% is not 42. The gold 50% may be answered without it, as the prompt asks for no unit.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from sandboxrl.data.errors import InputError
from sandboxrl.data.task import Task
from sandboxrl.envs.grading.answers.number_words import words_as_digits
from sandboxrl.envs.grading.answers.text import accepted, check_accepted, exact
from sandboxrl.envs.grading.answers.units import UNITS, symbol_of
from sandboxrl.envs.grading.protocol import Kind
from sandboxrl.envs.grading.protocol.replies import (
    MAX_LINES,
    MAX_SHORT_CHARS,
    boxes,
    is_unfinished,
    statements,
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
_MIXED = re.compile(
    r"([+-]?)\s*(\d{1,30})\s*(?:\s(\d{1,9})\s*/\s*(\d{1,9})|\\[dt]?frac\s*\{(\d{1,9})\}\s*\{(\d{1,9})\})"
)
_MAX_CHARS = 120
_CLAUSE_END = re.compile(
    r"\b(?:because|since|as|which|so|where|after|when|by|from)\b|[;(]|,\s+(?![\d-])|\.\s|\s[-–—]\s"
)
CURRENCIES = {
    r"(?:us|u\.s\.)\s?\$|\$|\b(?:us\s)?dollars?\b|\busd\b": "dollar", r"€|\beuros?\b|\beur\b": "euro",
    r"£|\bpounds?\b|\bgbp\b": "pound", r"¥|\byen\b|\byuan\b": "yen", r"₹|\brupees?\b|\brs\b": "rupee",
}  # fmt: skip
_TOKEN = re.compile(
    r"(?<![\w.,/^-])[-+]?\s?(?:\$\s?)?\d[\d,]*(?:\.\d+)?(?:\s\d+/\d+)?(?:e[-+]?\d+)?(?:\s?/\s?\d+)?(?:\s?\*\s?\d+)?"
    r"(?:\s?(?:%|percent\b|per cent\b|pct\b))?(?![\w/^%])",
    re.IGNORECASE,
)
_ATTACHED = "|".join(
    sorted((re.escape(unit) for unit in UNITS if unit.isalpha() and len(unit) > 1), key=len, reverse=True)
)
_GLUE = frozenset(
    "a an the is are was were be been will would there it its they he she we i you this that these in on at of to "
    "for so therefore thus hence then and total altogether all have has had get gets got make makes made equals "
    "equal value number answer result final exactly year ad ce per each every".split()
)
"""Words that may stand beside a number whatever was asked."""


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
    text = re.sub(r"\s*(?:percent|per cent|pct)\b", "%", re.sub(r"\\[,;!~ ]|~", " ", text)).strip()
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
    if (mixed := _MIXED.fullmatch(text)) and (parts := [int(part) for part in mixed.groups()[2:] if part])[0] < parts[
        1
    ]:
        value = int(mixed[2]) + Fraction(parts[0], parts[1])
        return (-value if mixed[1] == "-" else value), ""
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


@dataclass(frozen=True)
class Said:
    """A number as a person says it."""

    value: Fraction
    unit: str = ""
    """`%`, or nothing."""
    currency: str = ""
    """`dollar`, `euro`, ..., or nothing."""


def read_number(text: str, question: str = "") -> Said | None:
    """The one number of a text that says nothing else but what was asked: digits or words, with a currency, and words
    of `question`: "18 eggs", "She makes $18 every day.", "two million". Any other word makes it no number."""
    if (plain := parse_number(text)) is not None:
        return Said(*plain, currency="dollar" if re.match(r"\W*\$\s*\d[^$]*\Z", text) else "")
    if len(text) > MAX_SHORT_CHARS:
        return None
    text = re.sub(r"\\(?:text|mathrm|mbox)\s*\{([^{}]*)\}", r" \1 ", plain_characters(text).replace("\\$", "$"))
    text = words_as_digits(undressed(re.sub(r"\\[,;!~ ]|~", " ", text).replace("{,}", ",")))
    text = re.sub(rf"(?<=\d)(?=(?:{_ATTACHED})\b)", " ", text)
    found = list(_TOKEN.finditer(text))
    if len(found) != 1 or (number := parse_number(found[0][0])) is None:
        return None
    rest = f"{text[: found[0].start()]} {text[found[0].end() :]}"
    currencies = {name for pattern, name in CURRENCIES.items() if re.search(pattern, rest, re.IGNORECASE)}
    rest = re.sub("|".join(CURRENCIES), " ", rest, flags=re.IGNORECASE)
    known = {symbol_of(word) for word in re.findall(r"[^\W\d_]+", question)}
    words = re.findall(r"[^\W\d_]+", rest)
    if re.search(r"[^\w\s.,:;!()\[\]*=\"'\u2019-]|\d", rest) or len(currencies) > 1:
        return None
    if any(word.casefold() not in _GLUE and symbol_of(word) not in known for word in words):
        return None
    return Said(*number, currency="".join(currencies))


def said_number(answer: str, question: str = "") -> tuple[Said | None, str]:
    """The number that an answer or a visible reply states, and the text that holds it: the last box or "answer is"
    that holds a number, else all of it, or its last line."""
    if is_unfinished(answer):
        return None, ""
    for one in sorted(statements(answer), reverse=True):
        for reading in _readings(one.value):
            if (number := read_number(reading, question)) is not None:
                return number, one.text if one.text.startswith("\\boxed{") else reading
    lines = [line for line in answer.strip().split("\n") if line.strip()] or [""]
    if len(lines) > MAX_LINES or any(parse_number(line) is not None for line in lines[:-1]):
        return None, answer
    for reading in _readings(lines[-1]):
        if (number := read_number(reading, question)) is not None:
            return number, reading
    return None, answer


def _readings(value: str) -> Iterator[str]:
    """A statement, its first clause, and what these say of a variable or a sum: "x = 3.5", "9 * 2 = 18"."""
    if len(value) > MAX_SHORT_CHARS:
        return
    for text in (value, _CLAUSE_END.split(value)[0]):
        yield text
        name, equals, said = text.rpartition("=")
        if equals and (re.search(r"[-+*/\u00d7\u00f7]", name) or re.fullmatch(r"[^=\d]{1,30}", name)):
            yield said


def stated(task: Task, reply: str) -> str:
    """The statement of a final reply that holds its number, which is read as the reply is."""
    return said_number(visible_reply(reply), task.question)[1]


def number(task: Task, answer: str, sandbox: Sandbox | None = None) -> float:
    if parse_number(task.gold) is None:
        raise InputError(f"task {task.id}: gold {task.gold!r} is not a number")
    said, _ = said_number(answer, task.question)
    right = said is not None and any(same_number(read_number(gold), said) for gold in accepted(task))
    return float(right or exact(task, answer) == 1.0)  # another accepted answer may be the number's word


def same_number(gold: Said | None, said: Said) -> bool:
    if gold is None or gold.value != said.value or said.unit not in ("", gold.unit):
        return False
    return not (gold.currency and said.currency) or gold.currency == said.currency


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

r"""Mathematics: `math` is 1 if the one expression that was answered equals the gold.

    tidy spellings equal            1, so a gold always equals itself
    numbers                         compared exactly; 0.333333 is 1/3, six decimals are wanted
    another unit, case of a letter, relation, range, or a word such as "not"      0: math-verify does not look at these
    the rest                        math-verify, on both expressions in boxes of their own

Each point at which this differs from math-verify stands in `tests/envs/grading/answers/forms.yaml` with its reason.
math-verify may hang on hostile input, so all of it runs in a grading process with a deadline.
"""

import re
from fractions import Fraction

from sandboxrl.data.errors import InputError
from sandboxrl.data.task import Task
from sandboxrl.envs.grading.answers.formulas import (
    RELATIONS,
    is_prose,
    loose_words,
    same_words,
    split_unit,
    squeezed,
    tidy,
    whole_text,
)
from sandboxrl.envs.grading.answers.numbers import another_number, parse_number
from sandboxrl.envs.grading.answers.text import check_accepted
from sandboxrl.envs.grading.answers.units import REFUTERS
from sandboxrl.envs.grading.protocol import Exhausted, GraderFailed, Kind, Means
from sandboxrl.envs.grading.protocol.replies import (
    MAX_SHORT_CHARS,
    boxes,
    is_unfinished,
    line_from,
    phrases,
    visible_reply,
)

_CLAUSE_END = re.compile(
    r"\b(?:because|since|as|which|so|where|when|by|from)\b|;|\.\s|\s[-\u2013\u2014]\s+(?=[a-z]{2})"
)
_BETWEEN_BOXES = re.compile(r"[\s.,;()$\\]*(?:,|\band\b|\bor\b)[\s.,;()$\\]*(?:[a-zA-Z](?:_\{?\w+\}?)?\s*=\s*)?")
_SEGMENT = re.compile(r"\$\$(.+?)\$\$|\$(.+?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_SAYS = re.compile(r".*\b(?:is|equals|be|are)\s+(?P<what>.+)", re.DOTALL)
_MEASURE = re.compile(r"(?P<name>(?=[^=]*[a-zA-Z])[a-zA-Z_{}\d:|(),\s\\]+)=(?P<value>[^=]*\d[^=]*)")
_NAMED = re.compile(r"(?:\\[a-zA-Z]+|[a-zA-Z])(?:_\{?\w+\}?)?\s*(?:\([\w,\s]*\))?\s*=")
_PAIR = re.compile(r"[(\[][^()\[\]]*,[^()\[\]]*[)\]]")
_SET = re.compile(r"^\\\{|\bor\b")
"""What has an order, and what has none."""
_BASE = re.compile(r"\d\s*_\s*\{?\s*(\w+)")
"""The base of a numeral, `43_5`."""
_RANGE = re.compile(r"\\ldots(?![a-zA-Z])|\b(?:to|through)\b")
_INTERVAL = re.compile(r"[(\[\]].*,.*[)\]\[]|.*\\(?:cup|infty|in|setminus|mathbb)(?![a-zA-Z]).*|\\\{.*", re.DOTALL)
PATIENCE = 10.0
"""How many times its deadline an answer may take on a busy machine."""
NUM_DECIMALS = 6
"""To which a decimal must agree with a value that no decimal can be."""


def is_math_gold(gold: str) -> bool:
    """True for a number, LaTeX, or an expression without words: what can be compared safely.

    On prose math-verify picks out any number and finds "3 dogs" equal to "3 cats", so prose golds are refused.
    """
    if parse_number(gold) is not None:
        return True
    expression = tidy(gold)
    if is_prose(expression):
        return False
    return bool(
        re.search(r"\d|\\[a-zA-Z]|[-+*/^=<>|]|(?<![\w])[a-zA-Z](?![\w])", expression) or loose_words(expression)
    )


def answered_expression(answer: str) -> str:
    """The one expression that an answer stands for: the last box (with those that a comma or "and" joins to it), else
    what follows the last "answer is", else all of it."""
    return _answered(answer)[0]


def _answered(answer: str) -> tuple[str, str]:
    """That expression, and the part of the answer that states it."""
    if is_unfinished(answer):
        return "", ""
    if (found := boxes(answer)) and not (later := _said_after(answer, found[-1][1])):
        first = len(found) - 1
        while first and _BETWEEN_BOXES.fullmatch(_between(answer, found[first - 1][1] + 1, found[first][0])):
            first -= 1
        outer = [span for span in found[first:] if not any(a < span[0] and span[1] < b for a, b in found)]
        contents = [answer[start:end] for start, end in outer or found[-1:]]
        return ", ".join(contents), ", ".join(f"\\boxed{{{content}}}" for content in contents)
    if found:
        return later, later
    for _, start in reversed(list(phrases(answer))):
        if value := line_from(answer, start):
            clause = _CLAUSE_END.split(value)[0].strip()
            said = value if not is_prose(tidy(value)) else _told(clause) or clause or value
            return said, said
    return (told := _told(answer) or answer.strip()), told


def _said_after(answer: str, end: int) -> str:
    """What an "answer is" after the last box says, where it is a formula and nothing else."""
    for begin, start in reversed(list(phrases(answer))):
        clause = _CLAUSE_END.split(line_from(answer, start))[0].strip()
        if begin > end and clause and is_math_gold(clause):
            return clause
    return ""


def _told(text: str) -> str:
    """The one formula of a sentence, or what it says that something is; empty: neither, or something is denied."""
    if not is_prose(tidy(text)) or set(_words(_SEGMENT.sub(" ", text))) & REFUTERS:
        return ""
    said = _SAYS.fullmatch(text.strip())
    if said and not is_prose(tidy(said["what"])) and "\n" not in text.strip():
        return said["what"]
    segments = ["".join(parts) for parts in _SEGMENT.findall(text)]
    return segments[0] if len(segments) == 1 else ""


def _between(answer: str, start: int, end: int) -> str:
    """What stands between the end of one box and the beginning of the next."""
    text = re.sub(r"\\(?:boxed|fbox)\s*\{$", "", answer[start:end])
    return re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", re.sub(r"\\q?quad(?![a-zA-Z])", " ", text))


def stated(task: Task, reply: str) -> str:
    """The statement of a final reply that holds its expression, which is read as the reply is."""
    return _answered(visible_reply(reply))[1]


def math_score(gold: str, answer: str) -> float:
    """1.0 if the answered expression equals the gold. Raises InputError for a prose gold."""
    if not is_math_gold(gold):
        raise InputError(f"{gold!r} is neither a number nor LaTeX: math-verify would match unrelated prose")
    expression = answered_expression(answer)
    if not expression or len(expression) > MAX_SHORT_CHARS:
        return 0.0
    boxed = boxes(gold)
    return float(equal(tidy(answered_expression(gold) if boxed else gold), tidy(expression)))


def equal(gold: str, said: str) -> bool:
    """Whether two tidy expressions are equal."""
    if not said:
        return False
    if squeezed(gold) == squeezed(said):
        return True
    if (words := whole_text(gold)) is not None:
        return same_words(words, said)
    if (words := whole_text(said)) is not None:
        return bool(words) and squeezed(gold).casefold() in (words, f"({words})")
    if "=" not in said and (named := _MEASURE.fullmatch(gold)) and not _NAMED.match(gold):
        gold = named["value"].strip()  # (p, q) = (3, 2) and |AB| = 1 may be answered by their right sides
    value, unit = split_unit(gold)
    other, other_unit = split_unit(said)
    if unit and other_unit:
        if unit != other_unit:
            return False
    elif other_unit == "%":
        return False  # 34% is not 34; nor does the gold 34% need its sign in the answer
    if unit or other_unit:
        if unit and not other_unit and re.search(r"\s[a-zA-Z]$", gold):
            return False  # "5 m" may be a product: without its letter it is another value
        if squeezed(value) == squeezed(other):
            return True
        gold, said = value, other
    return _equal_values(gold, said)


def _equal_values(gold: str, said: str) -> bool:
    right, number = parse_number(gold), parse_number(said)
    if right is not None and number is not None:
        return right[1] == number[1] and _agree(right[0], number[0], said, gold)
    if _differ(gold, said):
        return False
    sides = [parse_number(side) for side in said.split("=")]
    if None not in sides and len(set(sides)) > 1:
        return False  # "70=71" would equal both
    right_box, said_box = _wrapped(_listed(gold)), _wrapped(_listed(said))
    # an interval and an inequality are equal in one order and not in the other
    return verified(right_box, said_box) or (bool(RELATIONS.search(gold + said)) and verified(said_box, right_box))


def _agree(right: Fraction, number: Fraction, *texts: str) -> bool:
    if right == number:
        return True
    finite = [_is_decimal(value) for value in (right, number)]
    decimals = max((len(found[1]) for text in texts if (found := re.search(r"\.(\d+)", text))), default=0)
    return finite.count(True) == 1 and decimals >= NUM_DECIMALS and abs(right - number) < Fraction(1, 10**NUM_DECIMALS)


def _is_decimal(value: Fraction) -> bool:
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest == 1


def _differ(gold: str, said: str) -> bool:
    """Whether two expressions differ in what math-verify does not look at."""
    if is_prose(said, "".join(_names(gold))) or set(_words(said)) & REFUTERS - set(_words(gold)):
        return True
    relations = [RELATIONS.findall(text) for text in (gold, said)]
    if bool(relations[0]) != bool(relations[1]) and not _INTERVAL.fullmatch(said if relations[0] else gold):
        return True
    if [r"\ne" in found for found in relations] in ([True, False], [False, True]):
        return True
    if "=" in gold and "=" not in said and not _NAMED.match(gold) and not relations[1]:
        return True  # AB = BA is not AB; y = 2x + 1 may be answered by its right side
    if _BASE.findall(gold) != _BASE.findall(said):
        return True
    if (
        _PAIR.fullmatch(gold)
        and _PAIR.fullmatch(said)
        and (gold[0] + gold[-1], said.count(","))
        != (
            said[0] + said[-1],
            gold.count(","),
        )
    ):
        return True  # a point is no interval, an open one is not closed
    if any(_PAIR.fullmatch(a) and _SET.search(b) for a, b in ((gold, said), (said, gold))):
        return True
    if any(RELATIONS.match(text) for text in (gold, said)):
        return True  # "> 34" is no value; the same text was found equal before
    if _RANGE.search(said) or _RANGE.search(gold):
        return True
    names = [_names(text) for text in (gold, said)]
    return any(name not in names[0] and name.swapcase() in names[0] - names[1] for name in names[1]) or any(
        len(name) > 1 and name not in names[0] and name.casefold() in {n.casefold() for n in names[0] - names[1]}
        for name in names[1]
    )


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.casefold())


def _names(text: str) -> frozenset[str]:
    r"""The letters and commands of an expression: `a`, `A`, `\delta`."""
    text = re.sub(r"\\text\s*\{[^{}]*\}", " ", text)
    return frozenset(re.findall(r"\\[a-zA-Z]+|[a-zA-Z]", text))


def _listed(text: str) -> str:
    """The expression with commas for "and" and "or"."""
    return re.sub(r"\\text\s*\{\s*(?:and|or)\s*\}|(?<![\\a-zA-Z])(?:and|or)(?![a-zA-Z])", ",", text)


def _wrapped(expression: str) -> str:
    return f"\\boxed{{{expression}}}"


def verified(gold: str, prediction: str, units: bool = False) -> bool:
    """Math-verify's verdict. `units`: as it is published, which drops what looks like a unit, so that 2m equals 2."""
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    normal = NormalizationConfig(basic_latex=True, units=units, malformed_operators=True, nits=True, boxed="all")
    latex = LatexExtractionConfig(normalization_config=normal)
    # Its own timeouts use signal.alarm, which exists only in the main thread; the caller has the deadline.
    right = parse(gold, extraction_config=[latex], parsing_timeout=None)
    said = parse(prediction, extraction_config=[latex, ExprExtractionConfig()], parsing_timeout=None)
    return bool(verify(right, said, timeout_seconds=None))


def wrapped(expression: str) -> str:
    """In a box of its own, so that math-verify must read all of it as one expression."""
    return expression if boxes(expression) else _wrapped(expression.strip("$ "))


def _check(task: Task) -> None:
    check_accepted(task)
    if not is_math_gold(task.gold):
        raise InputError(f"task {task.id}: gold {task.gold!r} is prose, which math-verify compares wrongly; use rouge")


async def _grade(task: Task, answer: str, means: Means) -> float:
    if not is_math_gold(task.gold):
        raise GraderFailed(f"task {task.id}: math-verify would match the gold {task.gold!r} with unrelated prose")
    return await compared(means, {"kind": "math", "gold": task.gold, "answer": answer}, task.gold)


async def compared(means: Means, request: dict[str, str], gold: str) -> float:
    """Math-verify on an answer. One that uses up the processor time of its grading process equals nothing: that is the
    answer's doing (`9^9^9^9`), and math-verify too calls it unequal. So does one that two fresh processes cannot read,
    while they read the gold."""
    try:
        return float((await means.compute(request, patience=PATIENCE))["score"])
    except Exhausted:
        return 0.0
    except GraderFailed:
        if (await means.compute({"kind": "digest", "gold": gold}, patience=PATIENCE))["score"] != 1.0:
            raise
        return 0.0


MATH = Kind(
    grade=_grade,
    check=_check,
    extract=stated,
    wrong=another_number,
    ask="The answer is a mathematical expression inside \\boxed{}, for example \\boxed{42}.",
)

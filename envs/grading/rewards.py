"""Rule-based rewards: pure functions from a task and an answer to a score in [0, 1].

    choice    one option letter, 1 or 0; naming several letters is no answer
    choices   a set of option letters, F1 = 2PR/(P+R) of the two sets
    rouge     ROUGE-L F-measure with the Porter stemmer, as rouge-score 0.1.2 computes it
    exact     1 if equal after trimming, joining white space and case folding
    number    1 if equal as exact numbers
              where a source accepts several answers (`metadata["golds"]`), these three give the best of them
    math      1 if math-verify finds the one expression that was answered equal to the gold

An empty answer scores 0 and the gold answer scores 1, for every kind. `check_gold` raises InputError for a gold that
its kind can never reward. `math` may hang on hostile input: `envs.grading.grader.Grader` runs it in a process with a
deadline.

How letters are read from an answer (`chosen_letters`): the letters alone in any dress ("b", "(B)", "**B**", "A, C and
D", "ACD", `\\boxed{B}`, full-width); or after "answer is", "Answer:", "choice is", `"answer":`; or the labels of lines
that begin like "B. text"; or the whole text of exactly one option. Nothing is guessed from prose, so the article "A"
and the pronoun "I" are never letters.
"""

import functools
import re
import unicodedata
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from sandboxrl.data.errors import InputError
from sandboxrl.data.task import Task

MAX_ANSWER_CHARS = 20_000
"""A longer answer is a document, not an answer: it scores 0 (unless the gold is itself long)."""
MAX_SHORT_CHARS = 4_000
"""The same for choice, choices and math."""

PUBLISHED_LETTERS = "ABCDEFGHIJ"
"""Letters of a row that prints its options inside the question (MedXpertQA has ten)."""

# ---------------------------------------------------------------------------------------------- pieces of an answer


def last_boxed(text: str) -> str | None:
    r"""The content of the last complete `\boxed{...}` (nested braces are kept), or None."""
    span = _last_box(text)
    return text[span[0] : span[1]] if span else None


def _last_box(text: str) -> tuple[int, int] | None:
    """Where that content is. One pass, whatever the text."""
    found: tuple[int, int] | None = None
    open_: list[tuple[bool, int]] = []
    for match in re.finditer(r"\\(?:boxed|fbox)\s*\{|(?<!\\)[{}]", text):
        if match[0] != "}":
            open_.append((match[0] != "{", match.end()))
        elif open_:
            is_box, start = open_.pop()
            if is_box and (found is None or start > found[0]):
                found = start, match.start()
    return found


_PHRASE = re.compile(
    r"\b(?:answers?|choices?|options?)[\"']?\s*(?:(?:is|are|(?:should|must|would)\s+be)\b\s*:?|:|=)\s*", re.IGNORECASE
)


def after_phrases(text: str) -> list[str]:
    """What follows each "answer is", "Answer:", "choice is" or `"answer":`, up to the end of that line."""
    values = []
    for match in _PHRASE.finditer(text):
        end = text.find("\n", match.end())
        value = text[match.end() : end if end >= 0 else len(text)].strip()
        if value:
            values.append(value)
    return values


def visible_reply(text: str) -> str:
    """A reply without its reasoning (nothing is left if thinking never ended) and without the token that ends it."""
    text = text.rstrip()
    while match := re.compile(r"<\|[a-z_]{2,20}\|>\Z").search(text, max(0, len(text) - 24)):
        text = text[: match.start()].rstrip()
    _, closed, after = text.rpartition("</think>")
    if closed:
        return after.strip()
    return "" if text.lstrip().startswith("<think>") else text.strip()


# ------------------------------------------------------------------------------------------------------------ letters

_LIST_WORDS = {"and", "or", "both", "the", "answer", "answers", "option", "options", "choice", "choices"}
_ARTICLE = re.compile(r"(?<=[AI])\s+(?!and\b|or\b)[a-z]")  # "A patient", "I think"
_LIST_MARKS = re.compile(r"[^\w\s()\[\]{}<>.,;:/&|\"'`\-]")


def row_letters(task: Task) -> str:
    """The letters that are options of this row. A row that prints them in its question says so in
    `metadata["letters"]`; otherwise A to J."""
    return "".join(task.letters()) or str(task.metadata.get("letters", PUBLISHED_LETTERS))


def chosen_letters(task: Task, answer: str) -> frozenset[str]:
    """The option letters that `answer` names, by the rules at the top of this file."""
    letters = row_letters(task)
    text = unicodedata.normalize("NFKC", answer[: MAX_SHORT_CHARS + 1])
    if not text.strip() or len(text) > MAX_SHORT_CHARS:
        return frozenset()
    boxed = last_boxed(text)
    text = re.sub(r"[*`$]|\\[()\[\]]", "", re.sub(r"\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}", r"\1", text))
    if boxed is not None:
        boxed = re.sub(r"\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}", r"\1", boxed)
        return _value_letters(boxed, letters, task.options)
    whole = _letter_list(text, letters) or _same_option(text, letters, task.options)
    if whole:
        return whole
    said = [_value_letters(value, letters, task.options) for value in after_phrases(text)]
    return frozenset().union(_labels(text, letters), *said)


def _letter_list(text: str, letters: str) -> frozenset[str]:
    """The letters of a text that holds nothing else, or none."""
    if _LIST_MARKS.search(text):
        return frozenset()
    words = [word for word in re.findall(r"[^\W_]+", text) if word.casefold() not in _LIST_WORDS]
    if len(words) == 1 and words[0].isupper():
        words = list(words[0])
    named = [word.upper() for word in words]
    return frozenset(named) if all(len(word) == 1 and word in letters for word in named) else frozenset()


def _labels(text: str, letters: str) -> frozenset[str]:
    """The labels of "B. text" lines, where the first line is one."""
    lines = [
        re.match(rf"\s*\(?([{re.escape(letters)}])(?:[.:]|\)[.:]?)\s+\S", line) for line in text.strip().split("\n")
    ]
    return frozenset(match[1] for match in lines if match) if lines[0] else frozenset()


def _same_option(text: str, letters: str, options: Sequence[str]) -> frozenset[str]:
    """The letter of the one option whose text this is."""
    same = [letter for letter, option in zip(letters, options, strict=False) if _plain(option) == _plain(text)]
    return frozenset(same) if len(same) == 1 else frozenset()


def _value_letters(value: str, letters: str, options: Sequence[str]) -> frozenset[str]:
    """The letters in what follows "answer is": alone, a label, an option's text, or standing in the first clause."""
    value = value.strip()
    whole = _letter_list(value, letters) or _same_option(value, letters, options)
    if whole:
        return whole
    clause = re.split(r"\b(?:because|since|as|which|rather|not)\b|[.;:]|\)\s|,(?!\s*(?:and\b|or\b|\(?\w\b))", value)[0]
    alone = rf"(?<![\w'])([{re.escape(letters)}])(?![\w'])"
    return frozenset(m[1] for m in re.finditer(alone, clause) if not _ARTICLE.match(clause, m.end()))


def choice(task: Task, answer: str) -> float:
    return float(chosen_letters(task, answer) == _gold_letters(task))


def choices(task: Task, answer: str) -> float:
    gold, named = _gold_letters(task), chosen_letters(task, answer)
    return 2 * len(gold & named) / (len(gold) + len(named))


def _gold_letters(task: Task) -> frozenset[str]:
    gold = _letter_list(task.gold, row_letters(task))
    if not gold or (task.reward == "choice" and len(gold) != 1):
        raise InputError(f"task {task.id}: gold {task.gold!r} does not name letters of {row_letters(task)}")
    return gold


# --------------------------------------------------------------------------------------------------------- free text


def accepted(task: Task) -> tuple[str, ...]:
    """The gold, and the other answers that the source accepts. Raises InputError for `golds` that are not texts."""
    others = task.metadata.get("golds", [])
    if not isinstance(others, list) or not all(isinstance(other, str) for other in others):
        raise InputError(f"task {task.id}: metadata 'golds' is not a list of texts")
    return (task.gold, *others)


def rouge(task: Task, answer: str) -> float:
    golds = accepted(task)
    if len(answer) > max(MAX_ANSWER_CHARS, 4 * max(map(len, golds))):
        return 0.0
    return max(rouge_l(gold, answer) for gold in golds)


def rouge_l(gold: str, answer: str) -> float:
    """ROUGE-L F-measure on stemmed tokens (Lin 2004, equation 4 with beta 1), in [0, 1].

    Equal to rouge-score's `RougeScorer(["rougeL"], use_stemmer=True)`; the longest common subsequence is counted with
    bit vectors (Hyyro 2004), so that a long answer costs milliseconds and not minutes.
    """
    target, prediction = _rouge_tokens(gold), _rouge_tokens(answer)
    if not target or not prediction:
        return 0.0
    where: dict[str, int] = {}
    for i, token in enumerate(target):
        where[token] = where.get(token, 0) | (1 << i)
    full = (1 << len(target)) - 1
    open_ = full
    for token in prediction:
        matched = open_ & where.get(token, 0)
        open_ = ((open_ + matched) | (open_ - matched)) & full
    common = len(target) - open_.bit_count()
    return 2 * common / (len(target) + len(prediction))


def _rouge_tokens(text: str) -> list[str]:
    tokens: list[str] = _rouge_tokenizer().tokenize(text)
    return tokens


@functools.cache
def _rouge_tokenizer() -> Any:
    from rouge_score.tokenizers import DefaultTokenizer

    return DefaultTokenizer(use_stemmer=True)


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split()).casefold()


def exact(task: Task, answer: str) -> float:
    return float(bool(answer.strip()) and _plain(answer) in map(_plain, accepted(task)))


# ----------------------------------------------------------------------------------------------------------- numbers

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


def number(task: Task, answer: str) -> float:
    if parse_number(task.gold) is None:
        raise InputError(f"task {task.id}: gold {task.gold!r} is not a number")
    golds = accepted(task)
    said = [parse_number(answer)] + [parse_number(value) for value in after_phrases(answer[:MAX_SHORT_CHARS])[-1:]]
    right = any(value is not None and value in map(parse_number, golds) for value in said)
    return float(right or exact(task, answer) == 1.0)  # another accepted answer may be the number's word


# ------------------------------------------------------------------------------------------------------- mathematics

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
    return float(_verified(_wrapped(gold), _wrapped(expression)))


def _wrapped(expression: str) -> str:
    return expression if last_boxed(expression) is not None else f"\\boxed{{{expression.strip('$ ')}}}"


def _verified(gold: str, prediction: str) -> bool:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    # Its own timeouts use signal.alarm, which exists only in the main thread; the caller has the deadline.
    right = parse(gold, extraction_config=[LatexExtractionConfig()], parsing_timeout=None)
    said = parse(prediction, extraction_config=[LatexExtractionConfig(), ExprExtractionConfig()], parsing_timeout=None)
    return bool(verify(right, said, timeout_seconds=None))


# ------------------------------------------------------------------------------------------------------------ tables

REWARD_FUNCTIONS: dict[str, Callable[[Task, str], float]] = {
    "choice": choice,
    "choices": choices,
    "rouge": rouge,
    "exact": exact,
    "number": number,
    "math": lambda task, answer: math_score(task.gold, answer),
}


def check_gold(task: Task) -> None:
    """Raises InputError if no answer could score 1, or if the kind of reward does not suit the gold."""
    if not task.gold.strip():
        raise InputError(f"task {task.id}: the gold is empty, so nothing can score 1")
    accepted(task)
    if task.reward in ("choice", "choices"):
        _gold_letters(task)
    elif task.reward == "number" and parse_number(task.gold) is None:
        raise InputError(f"task {task.id}: gold {task.gold!r} is not a number")
    elif task.reward == "math" and not is_math_gold(task.gold):
        raise InputError(f"task {task.id}: gold {task.gold!r} is prose, which math-verify compares wrongly; use rouge")
    elif task.reward == "rouge":
        letters = [char for char in task.gold if char.isalnum()]
        if 2 * sum(char.isascii() for char in letters) < max(len(letters), 1):
            raise InputError(
                f"task {task.id}: ROUGE-L drops every non-ASCII character of gold {task.gold!r}; use exact"
            )


def gold_answer(task: Task) -> str | None:
    """An answer that must score 1; None where the gold describes a check and is not itself an answer."""
    return None if task.reward in ("tests", "ifbench") else task.gold


def extract_answer(task: Task, text: str) -> str:
    """LLM mode: the answer inside a final reply, in the form that the same task's answer.txt would have.

    Reasoning up to `</think>` is dropped. An instruction task is graded on all that is left. Otherwise the answer is
    the last box, else what follows the last "answer is" (to the end of the reply for free text), else the whole reply.
    For letters and numbers an "answer is" after the box goes before the box.
    """
    text = visible_reply(text)
    if task.reward == "ifbench":
        return text
    if task.reward in ("choice", "choices", "math", "number", "judge_physics"):
        box = _last_box(text)
        said = after_phrases(text[box[1] :] if box else text)
        if box and not (said and task.reward in ("choice", "choices", "number")):
            return f"\\boxed{{{text[box[0] : box[1]]}}}"
        return said[-1] if said else text
    spoken = list(re.finditer(r"(?im)^[^\w\n]{0,9}(?:the )?(?:final )?answer(?: is)?[^\w\n:]{0,9}:[*\s]*", text))
    return text[spoken[-1].end() :].strip() if spoken else text


# -------------------------------------------------------------------------------------- the published release's rules


def reference_score(task: Task, answer: str) -> float:
    """The routing of the published RL release (llm-in-sandbox-rl @1ed5a4eb), kept for comparison and never a default.

    It is known to reward wrong answers: math-verify runs on prose, the last standing letter of any text counts, and a
    first character counts when nothing else is found.
    """
    answer = answer.strip()
    if not answer or not task.gold.strip():
        return 0.0
    if task.reward == "choice":
        return _reference_choice(task.gold.strip().upper(), answer)
    if task.reward == "choices":
        gold = {part.strip().upper() for part in task.gold.split(",")}
        said = {part.strip().upper() for part in answer.split(",")}
        return 2 * len(gold & said) / (len(gold) + len(said))
    boxed = last_boxed(answer)
    if _verified(_wrapped(task.gold), f"\\boxed{{{answer if boxed is None else boxed}}}"):
        return 1.0
    return 0.0 if task.reward == "math" else rouge_l(task.gold, answer)


def _reference_choice(gold: str, answer: str) -> float:
    upper = answer.upper()
    boxed = last_boxed(answer)
    standing = re.findall(r"\b([A-Z])\b", upper)
    readings = (
        upper if upper == gold else None,
        re.search(r'"ANSWER"\s*:\s*"?([A-Z])', upper),
        re.search(r"ANSWER\s*:\s*\(?([A-Z])", upper),
        re.search(r"(?:ANSWER|CHOICE) IS\s*\(?([A-Z])", upper),
        boxed.strip()[:1].upper() if boxed else None,
        standing[-1] if standing else None,
        upper[:1],
    )
    first = next(reading for reading in readings if reading)
    return float((first if isinstance(first, str) else first[1]) == gold)

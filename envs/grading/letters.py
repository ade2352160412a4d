"""Option letters: `choice` (one letter, 1 or 0; several are no answer) and `choices` (F1 = 2PR/(P+R) of two sets).

How letters are read from an answer (`chosen_letters`): the letters alone in any dress ("b", "(B)", "**B**", "A, C and
D", "ACD", `\\boxed{B}`, full-width); or after "answer is", "Answer:", "choice is", `"answer":`; or the labels of lines
that begin like "B. text"; or the whole text of exactly one option. Nothing is guessed from prose, so the article "A"
and the pronoun "I" are never letters.
"""

import re
import unicodedata
from collections.abc import Sequence

from sandboxrl.data.errors import InputError
from sandboxrl.data.task import Task
from sandboxrl.envs.grading.protocol import Kind, has_gold
from sandboxrl.envs.grading.replies import MAX_SHORT_CHARS, after_phrases, last_boxed, said_or_boxed
from sandboxrl.envs.grading.text import accepted, plain
from sandboxrl.envs.sandbox.protocol import Sandbox

PUBLISHED_LETTERS = "ABCDEFGHIJ"
"""Letters of a row that prints its options inside the question (MedXpertQA has ten)."""

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
    same = [letter for letter, option in zip(letters, options, strict=False) if plain(option) == plain(text)]
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


def choice(task: Task, answer: str, sandbox: Sandbox | None = None) -> float:
    return float(chosen_letters(task, answer) == _gold_letters(task, single=True))


def choices(task: Task, answer: str, sandbox: Sandbox | None = None) -> float:
    gold, named = _gold_letters(task, single=False), chosen_letters(task, answer)
    return 2 * len(gold & named) / (len(gold) + len(named))


def _gold_letters(task: Task, single: bool) -> frozenset[str]:
    gold = _letter_list(task.gold, row_letters(task))
    if not gold or (single and len(gold) != 1):
        raise InputError(f"task {task.id}: gold {task.gold!r} does not name letters of {row_letters(task)}")
    return gold


def _check_one(task: Task) -> None:
    has_gold(task)
    accepted(task)
    _gold_letters(task, single=True)


def _check_several(task: Task) -> None:
    has_gold(task)
    accepted(task)
    _gold_letters(task, single=False)


def another_letter(task: Task) -> str:
    letters = row_letters(task)
    return next((letter for letter in letters if letter not in task.gold), letters[0])


CHOICE = Kind(
    score=choice,
    check=_check_one,
    extract=said_or_boxed,
    wrong=another_letter,
    ask="The answer is the letter of the one right option.",
)
CHOICES = Kind(
    score=choices,
    check=_check_several,
    extract=said_or_boxed,
    wrong=another_letter,
    ask="The answer is the letters of all right options, separated by commas, for example: A, C",
)

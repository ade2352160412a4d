r"""Option letters: `choice` (one letter, 1 or 0; several are no answer) and `choices` (F1 = 2PR/(P+R) of two sets).

How letters are read (`chosen_letters`), in answer.txt and in a reply alike. The last statement that names any counts: a
box (`\boxed{B}`), or what follows "answer is", "Answer:", "choice is", `"answer":`, "I choose"; "B is correct" too.
Without one: the letters alone in any dress ("b", "(B)", "**B**", "A, C and D", "ACD", full-width), the labels of lines
that begin like "B. text", or the whole text of exactly one option. A statement names letters alone, with their options'
texts, or standing in its first clause. Nothing is guessed from other prose, so the article "A" and the pronoun "I" are
never letters.
"""

import re
import unicodedata
from collections import deque
from collections.abc import Iterator, Sequence

from sandboxrl.data.errors import InputError
from sandboxrl.data.task import Task
from sandboxrl.envs.grading.answers.text import accepted, plain
from sandboxrl.envs.grading.protocol import Kind, has_gold
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

PUBLISHED_LETTERS = "ABCDEFGHIJ"
"""Letters of a row that prints its options inside the question (MedXpertQA has ten)."""

_LIST_WORDS = {"and", "or", "both", "the", "answer", "answers", "option", "options", "choice", "choices"}
_ARTICLE = re.compile(r"(?<=[AI])\s+(?!and\b|or\b|is\b)[a-z]")  # "A patient", "I think"
_LIST_MARKS = re.compile(r"[^\w\s()\[\]{}<>.,;:/&|\"'`\-]")
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mathsf|boldsymbol|mbox|rm)\s*\{([^{}]*)\}")
_CLAUSE_END = re.compile(
    r"\b(?:because|since|as|which|rather|not|instead|where|for)\b|[.;:]|\)\s|\s[-\u2013\u2014]\s"
    r"|,(?!\s*(?:and\b|or\b|\(?\w\b))"
)
_SAID = r"\bi(?: would|'d|\u2019d| will|'ll)? (?:choose|pick|select|go with|answer|say)\b[\s:]*"
_VERDICT = (
    r"(?:^|(?<=[.!?;,\n])|\b(?:so|therefore|thus|hence|that|clearly))\s{0,3}"
    r"(?i:the )?(?i:option|choice|answer|letter)?\s*"
    r"[*(]*([{letters}])[)*]*\s+is\s+(?:the\s+)?(?:only\s+|most\s+likely\s+|one\s+)?(?:correct|right|best|answer)\b"
)


def row_letters(task: Task) -> str:
    """The letters that are options of this row. A row that prints them in its question says so in
    `metadata["letters"]`; otherwise A to J."""
    return "".join(task.letters()) or str(task.metadata.get("letters", PUBLISHED_LETTERS))


def chosen_letters(task: Task, answer: str) -> frozenset[str]:
    """The option letters that `answer` names, by the rules at the top of this file."""
    return _read(task, answer)[0]


def stated(task: Task, reply: str) -> str:
    """The letters that a final reply names, which are read as the reply is; the reply itself where it names none."""
    found, statement = _read(task, visible_reply(reply))
    return statement if statement.startswith("\\boxed{") or not found else ", ".join(sorted(found))


def _read(task: Task, text: str) -> tuple[frozenset[str], str]:
    """The letters that are named, and the part of the text that names them."""
    letters, options = row_letters(task), task.options
    if is_unfinished(text):
        return frozenset(), ""
    for statement, value in _statements(text, letters):
        if len(value) <= MAX_SHORT_CHARS and (found := _value_letters(_simple(value), letters, options)):
            return found, statement
    if not text.strip() or len(text) > MAX_SHORT_CHARS:
        return frozenset(), text
    simple = _simple(text)
    whole = _letter_list(simple, letters) or _same_option(simple, letters, options) or _labels(simple, letters)
    return whole or _with_texts(simple, letters, options), text


def _statements(text: str, letters: str) -> Iterator[tuple[str, str]]:
    """What may name the answer, the last first: each with what it says."""
    found = [
        (start - len("\\boxed{"), f"\\boxed{{{text[start:end]}}}", text[start:end])
        for start, end in boxes(text)[-MAX_STATEMENTS:]
    ]
    for begin, start in phrases(text):
        found.append((begin, text[begin:start] + line_from(text, start), line_from(text, start)))
    for match in deque(re.finditer(_SAID, text, re.IGNORECASE), maxlen=MAX_STATEMENTS):
        found.append((match.start(), match[0] + line_from(text, match.end()), line_from(text, match.end())))
    for match in re.finditer(_VERDICT.replace("{letters}", re.escape(letters)), text):
        found.append((match.start(), match[0].strip(), match[1]))
    for _, statement, value in sorted(found, key=lambda one: one[0], reverse=True):
        yield statement, value


def _simple(text: str) -> str:
    """Full-width letters as plain ones; without bold, dollars and commands for fonts."""
    text = unicodedata.normalize("NFKC", text)
    while (plainer := _TEXT_COMMAND.sub(r"\1", text)) != text:
        text = plainer
    return re.sub(r"[*`$]|\\[()\[\]]", "", text).strip()


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
    """The letter of the one option whose text this is, in any dress."""
    said = {plain(text), plain(undressed(text)), _words(text)} - {""}
    same = [
        letter
        for letter, option in zip(letters, options, strict=False)
        if said & ({plain(option), plain(undressed(option)), _words(option)} - {""})
    ]
    return frozenset(same) if len(same) == 1 else frozenset()


def _words(text: str) -> str:
    """A text of words alone, for comparison without its marks; nothing for one whose marks may be its meaning."""
    return (
        " ".join(re.findall(r"\w+", text.casefold()))
        if re.fullmatch(r"[\w\s.,;!?'\"()-]*", text) and re.search(r"[^\W\d_]{3}", text)
        else ""
    )


def _with_texts(text: str, letters: str, options: Sequence[str]) -> frozenset[str]:
    """The letters of a list in which each stands with its option's text: "A (alpha) and C (gamma)"."""
    for letter, option in zip(letters, options, strict=False):
        words = r"\s+".join(map(re.escape, _simple(option).split()))
        if words:
            text = re.sub(
                rf"(?<![\w'])({letter})[\s).:,\-\u2013\u2014(\"'\u201c]*{words}(?!\w)[)\"'\u201d]*", r"\1 ", text,
                flags=re.IGNORECASE,
            )  # fmt: skip
    return _letter_list(text, letters)


def _value_letters(value: str, letters: str, options: Sequence[str]) -> frozenset[str]:
    """The letters in a statement: alone, an option's text, with their texts, or standing in the first clause."""
    whole = (
        _letter_list(value, letters) or _same_option(value, letters, options) or _with_texts(value, letters, options)
    )
    if whole:
        return whole
    alone = rf"(?<![\w'])([{re.escape(letters)}])(?![\w'])"
    mark = rf"(?:^|[,;]\s*|\band\s+)\(?([{re.escape(letters)}])(?:[).:]+|\s*[\u2013\u2014(]|\s+-\s)"
    listed = re.findall(mark, value)
    if len(listed) > 1:  # "A (red) and C (blue)"
        return frozenset(listed)
    clause = _CLAUSE_END.split(value)[0]
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
    extract=stated,
    wrong=another_letter,
    ask="The answer is the letter of the one right option.",
)
CHOICES = Kind(
    score=choices,
    check=_check_several,
    extract=stated,
    wrong=another_letter,
    ask="The answer is the letters of all right options, separated by commas, for example: A, C",
)

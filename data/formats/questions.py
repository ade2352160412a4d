"""Questions from rows: a choice among options, or a free answer whose gold says how it is graded.

A gold may be the TEXT of an option, and half of the golds of a set of free answers are bare numbers.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sandboxrl.data.context import Question
from sandboxrl.data.errors import InputError

_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?%?")


def free_reward(gold: str) -> str:
    """How a free answer is graded: as a number if it is one, by ROUGE-L if ROUGE-L can read it (it drops every
    character that is not ASCII), else by equality."""
    if _NUMBER.fullmatch(gold.strip()):
        return "number"
    if gold.isascii():
        return "rouge" if re.search("[A-Za-z0-9]", gold) else "exact"
    letters = [char for char in gold if char.isalnum()]
    return "rouge" if 2 * sum(char.isascii() for char in letters) >= max(len(letters), 1) else "exact"


def choice_question(text: str, options: Sequence[str], answers: Sequence[str | int]) -> Question:
    """A choice among `options`; `answers` are letters, texts ("Oslo", "(A)", "A. Oslo") or positions of right ones."""
    if len(options) < 2 or len(options) > 26:
        raise InputError(f"{len(options)} options: a choice has 2 to 26")
    joined, same = [" ".join(option.split()) for option in options], [same_text(option) for option in options]
    for i, option in enumerate(same):
        if (first := same.index(option)) < i:
            raise InputError(f"two options are equal: {_letter(first)} and {_letter(i)} are {options[i]!r}")
    if not answers:
        raise InputError("no option is right, so silence would be the right answer")
    letters = sorted({_letter(_position(answer, joined)) for answer in answers})
    return Question(text.strip(), ", ".join(letters), "choice" if len(letters) == 1 else "choices", tuple(options))


def _letter(position: int) -> str:
    return chr(ord("A") + position)


def _position(answer: str | int, options: Sequence[str]) -> int:
    """Which option an answer names. Raises InputError."""
    if isinstance(answer, int):
        if 0 <= answer < len(options):
            return answer
        raise InputError(f"the answer is option number {answer}, and they are numbered 0 to {len(options) - 1}")
    said = " ".join(answer.split())
    if said in options:
        return options.index(said)
    same = [same_text(option) for option in options]
    if same_text(said) in same:
        return same.index(same_text(said))
    if labelled := re.fullmatch(r"\(?([A-Za-z])(?:[.):]+\s*(.*))?", said):
        position = ord(labelled[1].upper()) - ord("A")
        if position < len(options) and (not labelled[2] or same_text(labelled[2]) == same_text(options[position])):
            return position
    raise InputError(f"the answer {answer!r} is none of the options {list(options)}")


def unlabelled(lines: Sequence[str]) -> list[str]:
    """Options without their labels `A.`, `(B)`, `C)` where all have one, in order: "A. B. Yehoshua" is a name."""
    labels = [re.match(r"\s*\(?([A-Za-z])[.):]+\s*", line) for line in lines]
    in_order = [label is not None and label[1].upper() == _letter(i) for i, label in enumerate(labels)]
    return [line[label.end() :] if label and all(in_order) else line for label, line in zip(labels, lines, strict=True)]


def free_question(text: str, gold: str, others: Iterable[str] = ()) -> Question:
    """A question with a free answer; `others` are right as well."""
    golds = [other for other in dict.fromkeys(others) if other.strip() and same_text(other) != same_text(gold)]
    return Question(text.strip(), gold.strip(), free_reward(gold), metadata={"golds": golds} if golds else {})


def same_text(text: str) -> str:
    return " ".join(text.split()).strip(".").casefold()


def each_question(
    rows: Sequence[Any], key: str, read: Callable[[Any], Question]
) -> tuple[tuple[Question, ...], tuple[str, ...]]:
    """The questions of a context, and what is wrong with those that cost themselves. Raises InputError where none is
    left."""
    questions, lost = [], []
    for i, row in enumerate(rows):
        try:
            questions.append(read(row))
        except InputError as error:
            lost.append(f"{key}[{i}]: {error}")
    if not questions:
        raise InputError("; ".join(lost[:3]))
    return tuple(questions), tuple(lost)

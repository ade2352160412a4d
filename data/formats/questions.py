"""Questions from rows: a choice among options, or a free answer whose gold says how it is graded.

A gold may be the TEXT of an option, and half of the golds of a set of free answers are bare numbers.
"""

import re
from collections.abc import Iterable, Sequence

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


def choice_question(text: str, options: Sequence[str], answers: Sequence[str]) -> Question:
    """A choice among `options`; `answers` are letters or texts of the right ones."""
    if len(options) < 2 or len(options) > 26:
        raise InputError(f"{len(options)} options: a choice has 2 to 26")
    same = [same_text(option) for option in options]
    if len(set(same)) != len(same):
        raise InputError(f"two options are equal: {list(options)}")
    letters = []
    for answer in answers:
        if same_text(answer) in same:
            letters.append(chr(ord("A") + same.index(same_text(answer))))
        elif re.fullmatch(r"\(?[A-Za-z][.)]?", answer.strip()) and ord(answer.strip("(.) ").upper()) - 65 < len(
            options
        ):
            letters.append(answer.strip("(.) ").upper())
        else:
            raise InputError(f"the answer {answer!r} is none of the options {list(options)}")
    if not letters:
        raise InputError("no option is right, so silence would be the right answer")
    letters = sorted(set(letters))
    return Question(text.strip(), ", ".join(letters), "choice" if len(letters) == 1 else "choices", tuple(options))


def free_question(text: str, gold: str, others: Iterable[str] = ()) -> Question:
    """A question with a free answer; `others` are right as well."""
    golds = [other for other in dict.fromkeys(others) if other.strip() and same_text(other) != same_text(gold)]
    return Question(text.strip(), gold.strip(), free_reward(gold), metadata={"golds": golds} if golds else {})


def same_text(text: str) -> str:
    return " ".join(text.split()).strip(".").casefold()

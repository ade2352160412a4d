"""Free text: `rouge` (ROUGE-L F-measure with the Porter stemmer, as rouge-score 0.1.2 computes it) and `exact` (equal
in any case, white space and dress). Where a source accepts several answers (`metadata["golds"]`) the
best of them counts.
"""

import functools
import re
import unicodedata
from typing import Any

from sandboxrl.data.errors import InputError
from sandboxrl.data.task import Task
from sandboxrl.envs.grading.protocol import Kind, has_gold
from sandboxrl.envs.grading.protocol.replies import (
    MAX_ANSWER_CHARS,
    after_phrases,
    is_unfinished,
    last_boxed,
    spoken,
    undressed,
)
from sandboxrl.envs.sandbox.protocol import Sandbox


def accepted(task: Task) -> tuple[str, ...]:
    """The gold, and the other answers that the source accepts. Raises InputError for `golds` that are not texts."""
    others = task.metadata.get("golds", [])
    if not isinstance(others, list) or not all(isinstance(other, str) for other in others):
        raise InputError(f"task {task.id}: metadata 'golds' is not a list of texts")
    return (task.gold, *others)


def rouge(task: Task, answer: str, sandbox: Sandbox | None = None) -> float:
    golds = accepted(task)
    said = {text for text in (answer, spoken(answer)) if len(text) <= max(MAX_ANSWER_CHARS, 4 * max(map(len, golds)))}
    return max((rouge_l(gold, text) for gold in golds for text in said), default=0.0)


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


_PLAIN = str.maketrans("‘’“”\u2010\u2011\u2012\u2013\u2014\u2212", "''\"\"------")


def plain(text: str) -> str:
    """In lower case, with single spaces, straight quotes and plain dashes."""
    return " ".join(unicodedata.normalize("NFC", text).translate(_PLAIN).split()).casefold()


def exact(task: Task, answer: str, sandbox: Sandbox | None = None) -> float:
    """Compared with and without what is put around an answer; the gold "..." is not the gold "?"."""
    said = [answer, spoken(answer), *after_phrases(answer[-MAX_ANSWER_CHARS:])[-1:]]
    if (boxed := last_boxed(answer)) and not is_unfinished(answer):
        said.append(re.sub(r"^\\(?:text|textbf|mathrm)\s*\{([^{}]*)\}$", r"\1", boxed))
    said += [text[1:-1] for text in said if re.fullmatch(r"\([^()]*\)|\[[^\[\]]*\]", text.strip())]
    forms = {plain(form) for text in said for form in (text, undressed(text))} - {""}
    return float(any(plain(form) in forms for gold in accepted(task) for form in (gold, undressed(gold))))


def check_accepted(task: Task) -> None:
    has_gold(task)
    accepted(task)


def _check_rouge(task: Task) -> None:
    check_accepted(task)
    letters = [char for char in task.gold if char.isalnum()]
    if 2 * sum(char.isascii() for char in letters) < max(len(letters), 1):
        raise InputError(f"task {task.id}: ROUGE-L drops every non-ASCII character of gold {task.gold!r}; use exact")


ROUGE = Kind(score=rouge, check=_check_rouge)
EXACT = Kind(
    score=exact, check=check_accepted, ask="The answer is plain text, exactly the words or characters asked for."
)

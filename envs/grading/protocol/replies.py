r"""Where the answer is in a text: boxes, "answer is", and what a model thought before it.

`answer.txt` and the final reply of LLM mode are read by the same functions. A reply only loses its reasoning first
(`visible_reply`). What was not finished is no answer: an open thought, an open `\boxed{`, a sentence after the last box
that takes the answer back and then breaks off.
"""

import json
import re
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from sandboxrl.data.task import Task

MAX_ANSWER_CHARS = 20_000
"""A longer answer is a document, not an answer: it scores 0 (unless the gold is itself long)."""
MAX_SHORT_CHARS = 4_000
"""The same for letters, numbers and mathematics, of the statement that holds them."""
MAX_STATEMENTS = 50
"""Of one text: those before the last so many are not looked at."""
MAX_LINES = 200
"""Of a text without a statement whose first or last line may be the answer."""

_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|(?<!\\)[{}]")
_ASIDE = r"(?:\s*,[^,:\n]{1,30},|\s*\([^()\n]{1,40}\)|\s+(?:to|of|for)\s+(?:the|this|that)\s+\w{1,20}(?:\s+\w{1,3})?)?"
"""The answer, "therefore," "(in km)", "to the question", is."""
_WORD = (
    r"(?:最终|正确)?答案(?:应该|应)?[是为选]?|答えは?|正解は?"
    r"|\b(?:réponse|antwort|respuesta|risposta|resposta|ответ)(?=\s*:)"
)
"""The answer, in other languages."""
_MARKS = r"^\#{4}[ \t]+(?!\W*(?:final\s+)?answer)|<(?:final_)?answer>"
"""GSM8K's `#### 42`, and tags."""
_HEADING = r"^[#*_ \t]{0,9}(?:the\s+)?(?:final\s+|correct\s+)?answers?[*_: \t]*\n\s*"
_PHRASE = re.compile(
    rf"\b(?:answers?|choices?|options?)[\"'*_]{{0,4}}{_ASIDE}\s*"
    r"(?:(?:is|are|(?:should|must|would|will|has\s+to|have\s+to)\s+be)\b\s*:?|:|=(?!>)|[-=]>|→|\s[-\u2013\u2014]\s)\s*"
    rf"|(?:{_WORD})\s*[:：]?\s*|{_MARKS}|{_HEADING}",
    re.IGNORECASE | re.MULTILINE,
)
_LINE_PHRASE = re.compile(
    rf"^[^\w\n]{{0,9}}(?:(?:the|my) )?(?:(?:final|correct|short) )?answer{_ASIDE}"
    r"(?:(?: is)?[^\w\n:]{0,9}:\s*|[ \t]+is\b\s*|\s(?:[-\u2013\u2014]|[-=]>|→)\s+)"
    rf"|^(?:{_WORD})\s*[:：]?\s*|{_MARKS}|{_HEADING}",
    re.IGNORECASE | re.MULTILINE,
)
_CLOSING = re.compile(r"</(?:final_)?answer>|</?s>\Z", re.IGNORECASE)
_FENCE = re.compile(r"```[\w+-]*[ \t]*\n(.*?)\n?[ \t]*```", re.DOTALL)
_RECONSIDERS = re.compile(
    r"\b(?:but|wait|however|actually|hmm+|let me|let's|check|verify|maybe|alternatively|hold on|suppose|no)\b", re.I
)
_DANGLES = re.compile(
    r"(?:[,:=+(\[<>/^\\-]|\b(?:a|an|the|and|or|but|because|since|so|if|of|to|in|on|at|by|for|with|from|that|which|is|are|"
    r"was|were|we|i|it|this|then|as|than|when|where|be|have|has|would|should|could|can|let|not|by))\Z",
    re.I,
)

_DRESS = (
    ("**", "**"), ("__", "__"), ("*", "*"), ("_", "_"), ('"', '"'), ("'", "'"), ("“", "”"), ("‘", "’"), ("«", "»"),
    ("「", "」"),
)  # fmt: skip

Span = tuple[int, int]


class Statement(NamedTuple):
    """A part of a text that may say the answer."""

    begin: int
    """Where it begins in the text."""
    text: str
    """All of it: `\\boxed{42}`, "The answer is 42, as we saw."."""
    value: str
    """What it says: "42", "42, as we saw."."""


def boxes(text: str) -> list[Span]:
    r"""Where the contents of all complete `\boxed{...}` are, by their beginning. One pass, whatever the text."""
    return _boxes(text)[0]


def _boxes(text: str) -> tuple[list[Span], bool]:
    """The same, and whether a box that was begun after all of them is still open."""
    found: list[Span] = []
    open_: list[tuple[bool, int]] = []
    for match in _BRACES.finditer(text):
        if match[0] != "}":
            open_.append((match[0] != "{", match.end()))
        elif open_:
            is_box, start = open_.pop()
            if is_box:
                found.append((start, match.start()))
    last = max(found)[0] if found else -1
    return sorted(found), any(is_box and start > last for is_box, start in open_)


def last_boxed(text: str) -> str | None:
    r"""The content of the last complete `\boxed{...}` (nested braces are kept), or None."""
    found = boxes(text)
    return text[found[-1][0] : found[-1][1]] if found else None


def last_fence(text: str) -> str | None:
    """What stands in the last fenced block of a text, or None."""
    found = _FENCE.findall(text)
    return str(found[-1]) if found else None


def phrases(text: str) -> Iterator[Span]:
    """The last of "answer is", "Answer:", "choice is" or `"answer":` with what follows on the line: (where the phrase
    begins, where what follows begins)."""
    for match in deque(_PHRASE.finditer(text), maxlen=MAX_STATEMENTS):
        yield match.start(), match.end()


def line_from(text: str, start: int) -> str:
    """What stands from `start` to the end of its line."""
    end = text.find("\n", start)
    return _closed(_CLOSING.split(text[start : end if end >= 0 else len(text)])[0].strip())


def _closed(text: str) -> str:
    """A text without the one mark of bold that belongs to what stood before it: "**Answer: 42**", "**Answer:** 42"."""
    if text.count("**") % 2 == 0:
        return text
    return text[2:].strip() if text.startswith("**") else re.sub(r"\*\*(\.?)$", r"\1", text).rstrip()


def statements(text: str) -> list[Statement]:
    """What may say the answer, in its order: each box, and each line behind "answer is" or the like; last, where the
    text is a JSON object, its `answer`."""
    found = [
        Statement(start - len("\\boxed{"), f"\\boxed{{{text[start:end]}}}", text[start:end])
        for start, end in boxes(text)[-MAX_STATEMENTS:]
    ]
    for begin, start in phrases(text):
        value = line_from(text, start)
        found.append(Statement(begin, text[begin:start] + value, value))
    if (written := json_answer(text)) is not None:
        found.append(Statement(len(text), written, written))
    return sorted(found)


def json_answer(text: str) -> str | None:
    """The `answer` of a text that is one JSON object, or None."""
    fence = last_fence(text)
    text = (text if fence is None else fence).strip()
    if not text.startswith("{") or len(text) > MAX_SHORT_CHARS:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    said = [value[name] for name in ("answer", "Answer", "answers", "final_answer") if name in value]
    if len(said) != 1 or isinstance(said[0], dict | bool) or said[0] is None:
        return None
    return ", ".join(map(str, said[0])) if isinstance(said[0], list) else str(said[0])


def after_phrases(text: str) -> list[str]:
    """What follows each phrase, up to the end of its line."""
    return [value for _, start in phrases(text) if (value := line_from(text, start))]


def visible_reply(text: str) -> str:
    """A reply without its reasoning and without the token that ends it; nothing, if thinking never ended."""
    text = text.rstrip()
    while match := re.compile(r"<\|[a-z_]{2,20}\|>\Z").search(text, max(0, len(text) - 24)):
        text = text[: match.start()].rstrip()
    _, closed, after = text.rpartition("</think>")
    if closed:
        text = after
    return "" if "<think>" in text else text.strip()


def is_unfinished(text: str) -> bool:
    r"""Whether the text breaks off while it takes its last box back: in a box that is still open, or in a sentence.

    A server whose chat template opens the thought in the prompt returns a cut-off thought without a mark; all that
    tells is that it stops in the middle of a doubt.
    """
    found, still_open = _boxes(text)
    if still_open:
        return True
    if not found:
        return False
    tail = text[found[-1][1] + 1 :].strip().rstrip("*$ \n")
    sentence = re.split(r"(?<=[.!?])\s+", tail)[-1]
    if not sentence or re.search(r"[.!?)\]}\"'”]\Z", sentence):
        return False
    doubts = _RECONSIDERS.search(tail) is not None
    return (doubts and len(tail.split()) > 2) or (len(sentence.split()) > 2 and _DANGLES.search(sentence) is not None)


def whole_reply(task: Task, text: str) -> str:
    return visible_reply(text)


def free_text(task: Task, text: str) -> str:
    """What follows the last line that begins with "Answer:" or "The answer is", to the end; else all of it."""
    return spoken(visible_reply(text))


def spoken(text: str) -> str:
    """The same, of a text without reasoning; the `answer` of one that is a JSON object."""
    if (written := json_answer(text)) is not None:
        return written
    found = list(_LINE_PHRASE.finditer(text))
    return _closed(_CLOSING.split(text[found[-1].end() :])[0].strip()) if found else text


def undressed(text: str) -> str:
    """A text without what is put around an answer: white space, bold and code marks, quotes, a final full stop."""
    before = ""
    while text != before:
        before, text = text, text.strip().strip("`")
        for left, right in _DRESS:
            inner = text[len(left) : len(text) - len(right)]
            if len(text) > len(left) + len(right) and text.startswith(left) and text.endswith(right):
                if left not in inner and right not in inner:
                    text = inner
        if text.endswith((".", "。")) and not text.endswith("..") and len(text) > 1:
            text = text[:-1]
    return text

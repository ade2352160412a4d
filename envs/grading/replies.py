"""Where the answer is in a text: boxes, "answer is", and what a model thought before it."""

import re

from sandboxrl.data.task import Task

MAX_ANSWER_CHARS = 20_000
"""A longer answer is a document, not an answer: it scores 0 (unless the gold is itself long)."""
MAX_SHORT_CHARS = 4_000
"""The same for letters and mathematics."""


def last_boxed(text: str) -> str | None:
    r"""The content of the last complete `\boxed{...}` (nested braces are kept), or None."""
    span = last_box(text)
    return text[span[0] : span[1]] if span else None


def last_box(text: str) -> tuple[int, int] | None:
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


def whole_reply(task: Task, text: str) -> str:
    return visible_reply(text)


def free_text(task: Task, text: str) -> str:
    """What follows the last line that begins with "Answer:", to the end of the reply; else the whole reply."""
    text = visible_reply(text)
    spoken = list(re.finditer(r"(?im)^[^\w\n]{0,9}(?:the )?(?:final )?answer(?: is)?[^\w\n:]{0,9}:[*\s]*", text))
    return text[spoken[-1].end() :].strip() if spoken else text


def boxed_or_said(task: Task, text: str) -> str:
    """The last box, else what follows the last "answer is", else the whole reply."""
    text = visible_reply(text)
    box = last_box(text)
    if box:
        return f"\\boxed{{{text[box[0] : box[1]]}}}"
    said = after_phrases(text)
    return said[-1] if said else text


def said_or_boxed(task: Task, text: str) -> str:
    """The same, but an "answer is" after the box goes before the box."""
    text = visible_reply(text)
    box = last_box(text)
    said = after_phrases(text[box[1] :] if box else text)
    if box and not said:
        return f"\\boxed{{{text[box[0] : box[1]]}}}"
    return said[-1] if said else text

"""The one exception that means "the input is wrong": a single clear line, exit code 2, never a traceback."""

import difflib
from collections.abc import Iterable


class InputError(Exception):
    """What is wrong, where, and the nearest valid thing. `launch` prints it and exits with code 2."""


def one_line(error: object, limit: int = 300) -> str:
    """The text of an error without its line breaks, at most `limit` characters of it."""
    line = " ".join(str(error).split())
    return line if len(line) <= limit else line[:limit] + " …"


def described(error: BaseException) -> str:
    """The kind of an error and its text, on one line: for errors whose text alone may say nothing."""
    return f"{type(error).__name__}: {one_line(error)}"


def nearest(word: str, valid: Iterable[str]) -> str:
    """`; did you mean 'x'?` for a close match, else the list of what is valid."""
    names = sorted(valid)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; valid: {', '.join(names)}"

"""The one exception that means "the input is wrong": a single clear line, exit code 2, never a traceback."""

import difflib
import errno
from collections.abc import Iterable

MACHINE_FAULTS = frozenset(
    {
        errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EPIPE, errno.EAGAIN,
        errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ENOSYS, errno.EFBIG, errno.EINTR,
    }
)  # fmt: skip
"""What an OSError says of the machine; the other numbers say that a path is not what the command needs it to be."""


class InputError(Exception):
    """What is wrong, where, and the nearest valid thing. `launch` prints it and exits with code 2."""


def is_machine_fault(error: OSError) -> bool:
    """Whether the machine failed (a full disk, no memory, a lost network), and not a path that cannot be used so."""
    return error.errno is None or error.errno in MACHINE_FAULTS or isinstance(error, ConnectionError | TimeoutError)


def one_line(error: object, limit: int = 300) -> str:
    """The text of an error without its line breaks, at most `limit` characters of it."""
    line = " ".join(str(error).split())
    return line if len(line) <= limit else line[:limit] + " …"


def described(error: BaseException) -> str:
    """The kind of an error and its text, on one line: for errors whose text alone may say nothing."""
    return f"{type(error).__name__}: {one_line(error)}"


def told(error: OSError) -> str:
    """What the system refused and where, on one line."""
    what = error.strerror or described(error)
    places = [str(place) for place in (error.filename, error.filename2) if place is not None]
    return one_line(": ".join([" -> ".join(places), what]) if places else what)


def nearest(word: object, valid: Iterable[str]) -> str:
    """`; did you mean 'x'?` for a close match, else the list of what is valid."""
    names = sorted(valid)
    close = difflib.get_close_matches(str(word), names, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; valid: {', '.join(names)}"

"""Files that a kill at any moment leaves whole: written at once, held by one process, or appended line by line."""

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from sandboxrl.data.errors import InputError, one_line


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write into, which takes the place of `path`, on the disk, when the block ends without an error: others
    see the old content or the new, never a part. Two processes may do it at the same time."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_whole(path: Path, content: str | bytes) -> None:
    """Replace a file, whole or not at all."""
    with written_whole(path) as handle:
        handle.write(content.encode("utf-8", "replace") if isinstance(content, str) else content)


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object per line, whole or not at all."""
    with written_whole(path) as handle:
        for row in rows:
            handle.write(json.dumps(row).encode() + b"\n")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of a file that a killed run may have left with half a last line; none if there is no file. Raises
    InputError where a whole line is no JSON object."""
    if not path.exists():
        return []
    *lines, _unfinished = path.read_bytes().split(b"\n")
    return [_object(line, f"{path}:{number}") for number, line in enumerate(lines, start=1)]


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object of a file. Raises InputError where it holds anything else, OSError where it cannot be read."""
    return _object(path.read_bytes(), str(path))


def _object(text: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is damaged or not JSON: {one_line(error)}") from None
    if not isinstance(value, dict):
        raise InputError(f"{where} is not a JSON object")
    return value


@contextlib.contextmanager
def held(folder: Path, otherwise: str) -> Iterator[None]:
    """Hold a folder for this process alone. Raises InputError with the text `otherwise` where another one holds it."""
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(otherwise) from None
        yield


def digest(*parts: str) -> str:
    """Sixteen hex digits that name these texts in this order."""
    return hashlib.sha256("\x00".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:16]

"""Fields of a row: each reader raises InputError that says which field is wrong; the caller adds file and line."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sandboxrl.data.errors import InputError
from sandboxrl.data.reading import parse_json
from sandboxrl.data.task import safe_name

MAX_DOCUMENT_BYTES = 16 << 20


def text_field(row: Mapping[str, Any], key: str) -> str:
    """A text that is there and not blank."""
    value = row.get(key)
    if not isinstance(value, str):
        raise InputError(f"{key!r} is {'null' if value is None else type(value).__name__}, not text")
    if not value.strip():
        raise InputError(f"{key!r} is empty")
    return value


def json_field(row: Mapping[str, Any], key: str) -> Any:
    """A value that may be written as a JSON string."""
    value = row.get(key)
    if isinstance(value, str):
        try:
            return parse_json(value.encode())
        except ValueError as error:
            raise InputError(f"{key!r}: {error}") from None
    return value


def document(folder: Path, name: str) -> str:
    """The text of a file below `folder`. Never follows a name or a link out of it."""
    if not safe_name(name):
        raise InputError(f"document name {name!r} would leave the folder of documents")
    path = folder / name
    if not path.is_file():
        raise InputError(f"document {name!r} is missing")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"document {name!r} is a link that leaves the folder")
    if path.stat().st_size > MAX_DOCUMENT_BYTES:
        raise InputError(f"document {name!r} has more than {MAX_DOCUMENT_BYTES} bytes")
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"document {name!r} is not UTF-8 text (byte {error.start})") from None

"""The files of AA-LCR, found by the names that its rows give them: they differ between releases."""

import contextlib
import functools
import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from sandboxrl.data.errors import InputError

_MIN_ASCII = 12
"""ASCII letters and digits by which a name is found whose other characters were lost."""


def named_document(root: Path, name: str, folders: Sequence[str]) -> str:
    """The text of the file `name` below `root`; `folders` settle a tie. Names differ in Unicode form between releases,
    and the published archive has some in mojibake (their UTF-8 read as CP437), so all of these are one name."""
    known = _files_by_name(root)
    wanted = next((known[form] for form in _forms(name) if form in known), [])
    wanted = [path for path in wanted if all(folder in path.parts for folder in folders if folder)] or wanted
    if len(wanted) != 1:
        raise InputError(f"document {name!r} is {'not there' if not wanted else 'there more than once'} below {root}")
    return wanted[0].read_text(encoding="utf-8", errors="replace")


@functools.cache
def _files_by_name(root: Path) -> dict[str, list[Path]]:
    files: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(root.rglob("*")):
        if path.is_file() and not path.is_symlink():
            for form in _forms(path.name):
                files[form].append(path)
    return files


def _forms(name: str) -> list[str]:
    """What a name is found by, the closest first: its letters and digits, those of the name that its mojibake stands
    for, and the ASCII ones of a name that has enough of them."""
    read = [name]
    for code in ("cp437", "cp1252", "latin-1"):
        with contextlib.suppress(UnicodeError):
            read.append(name.encode(code).decode("utf-8"))
    forms = [_skeleton(one) for one in read]
    ascii_only = re.sub(r"[^a-z0-9]", "", _skeleton(name))
    forms.append(f"ascii {ascii_only}" if len(ascii_only) > _MIN_ASCII else "")
    return [form for form in dict.fromkeys(forms) if form]


def _skeleton(name: str) -> str:
    plain = unicodedata.normalize("NFKD", name).casefold()
    return "".join(char for char in plain if char.isalnum())

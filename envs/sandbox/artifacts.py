"""A person's files into a sandbox, and what was made of them safely out of it.

What lies in a sandbox was made by a stranger. Its list of files is read as bytes and checked name by name, every file
is read by the sandbox's own reader (regular files only, links never followed) and written here as a new plain file
below a folder that was empty. Links, devices and names that would leave the folder stay behind, and are listed.
"""

import errno
import os
from dataclasses import dataclass, field
from pathlib import Path

from sandboxrl.data.errors import InputError
from sandboxrl.data.task import safe_name
from sandboxrl.envs.sandbox.carry import stream
from sandboxrl.envs.sandbox.protocol import FilePart, FileRefused, Parts, Sandbox, SandboxError

INPUT, OUTPUT = "/testbed/input", "/testbed/output"
MAX_FILE_BYTES = 64 << 20
"""What one read of a sandbox gives at most; for those that cannot give parts of a file."""
MAX_FILES = 10_000
MAX_NAME, MAX_DEPTH = 3000, 100
LIST_BYTES = 8 << 20
OF_THE_NAME = {errno.ENAMETOOLONG, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.EILSEQ, errno.ELOOP}
"""Errors of a name or of what lies in its way, not of the disk."""
KEPT_OPEN = {f"{folder}/.keep": b"" for folder in (INPUT, OUTPUT)}
"""Files that make both folders exist from the start."""


@dataclass
class Collected:
    """What came out."""

    files: list[tuple[str, int]] = field(default_factory=list)
    """Name below the folder, and size in bytes."""
    left_out: list[tuple[str, str]] = field(default_factory=list)
    """Name, and why it stayed behind."""


def read_inputs(folder: Path, max_bytes: int) -> dict[str, bytes]:
    """Every file below `folder`, by its path in the sandbox. Raises InputError when they are too large together, or
    when something in the folder is no plain file."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    files: dict[str, bytes] = {}
    left = max_bytes
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            continue
        if not path.is_file():
            raise InputError(f"{path}: not a file that could be copied")
        left -= path.stat().st_size
        if left < 0 or len(files) == MAX_FILES:
            raise InputError(
                f"{folder}: more than {max_bytes >> 20} MiB or {MAX_FILES} files, which a sandbox cannot hold"
            )
        files[f"{INPUT}/{path.relative_to(folder).as_posix()}"] = path.read_bytes()
    return files


async def collect(sandbox: Sandbox, out: Path, max_bytes: int = 1 << 30) -> Collected:
    """Copy the files below /testbed/output into the new or empty folder `out`, `max_bytes` at most in all. What cannot
    be copied is left out and listed, and so is all the rest once the sandbox has ended. Raises OSError where this
    machine cannot write."""
    out.mkdir(parents=True, exist_ok=True)
    found = Collected()
    try:
        listing = await sandbox.exec(
            f"cd {OUTPUT} 2>/dev/null && find . -mindepth 1 ! -type d -printf '%y %P\\0'",
            timeout_s=60,
            max_bytes=LIST_BYTES,
        )
        entries = [entry for entry in listing.stdout.split(b"\0") if entry]
        if listing.timed_out or listing.stdout_bytes > LIST_BYTES or len(entries) > MAX_FILES:
            found.left_out.append(("", f"more than {MAX_FILES} files: only the first ones were looked at"))
        for entry in entries[:MAX_FILES]:
            kind, _, raw = entry.partition(b" ")
            name = os.fsdecode(raw)
            if f"{OUTPUT}/{name}" in KEPT_OPEN:
                continue
            left = max_bytes - sum(size for _, size in found.files)
            why = _why_not(kind, name) or await _copy(sandbox, name, out, left, found)
            if why:
                found.left_out.append((name[:MAX_NAME], why))
    except SandboxError as error:
        found.left_out.append(("", f"the sandbox has ended: {error}"))
    return found


def _why_not(kind: bytes, name: str) -> str:
    """What keeps a name from being copied, or empty."""
    if kind != b"f":
        return "not a regular file"
    if len(os.fsencode(name)) > MAX_NAME or name.count("/") > MAX_DEPTH:
        return "its name is too long or too deep"
    return "" if safe_name(name) else "its name would leave the folder"


async def _copy(sandbox: Sandbox, name: str, out: Path, max_bytes: int, found: Collected) -> str:
    """Copy one file; why that could not be, or empty. Raises SandboxError, OSError."""
    try:
        size = await _write_new(sandbox, f"{OUTPUT}/{name}", out / name, max_bytes)
    except OSError as error:  # a FileRefused is one
        if not isinstance(error, FileRefused) and error.errno not in OF_THE_NAME:
            raise
        return error.strerror or str(error)
    found.files.append((name, size))
    return ""


async def _write_new(sandbox: Sandbox, source: str, path: Path, max_bytes: int) -> int:
    """A new plain file without execute permission, and its size; nothing that is there is replaced or followed."""
    if isinstance(sandbox, Parts):
        parts = stream(sandbox, source, max_bytes)
        first = await anext(parts)
    else:
        parts, first = None, FilePart(await sandbox.read(source, min(MAX_FILE_BYTES, max_bytes)), 0, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644), "wb") as file:
            file.write(first.data)
            if parts is not None:
                async for part in parts:
                    file.write(part.data)
            return file.tell()
    except FileRefused:  # it changed while it was read: half of it is none
        path.unlink()
        raise

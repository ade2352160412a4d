"""Folders from one sandbox into others, as data: never unpacked on this machine, never followed by a link.

    await carry(box, "/testbed", fresh)                 the work of a policy, into a sandbox that it never touched

Modes and times come along; owners, hard links and special files do not. What cannot be carried is left out and listed.
The records are described in `envs/sandbox/inside/folders.py`.
"""

import errno
import shlex
import struct
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, replace

from sandboxrl.envs.sandbox.inside.folders import ENTRY
from sandboxrl.envs.sandbox.protocol import BackendUnavailable, FilePart, FileRefused, Folders, Parts, Sandbox

MAX_ENTRIES = 1_000_000
CLEAR_S = 300.0


@dataclass(frozen=True)
class Entry:
    """One record of a folder, as a stranger's sandbox wrote it."""

    kind: str
    """`d` folder, `f` (part of a) file, `l` link, `m` mode and time of what came before, `x` left out."""
    path: bytes
    """Below the folder; it may be anything."""
    offset: int
    data: bytes
    """Of a file; where a link points; why something was left out."""
    mode: int


def entries(part: bytes) -> Iterator[Entry]:
    """The records of a part. Raises ValueError for what is none."""
    at = 0
    while at < len(part):
        try:
            kind, path_size, mode, _, offset, size = ENTRY.unpack_from(part, at)
        except struct.error as error:
            raise ValueError("a record is cut off") from error
        start = at + ENTRY.size + path_size
        at = start + size
        if at > len(part):
            raise ValueError("a record is longer than its part")
        yield Entry(kind.decode("latin-1"), part[start - path_size : start], offset, part[start : start + size], mode)


def without(part: bytes, leave: Callable[[Entry], bool]) -> bytes:
    """A part but for the records that are to be left behind. Raises ValueError as `entries` does."""
    kept, at = bytearray(), 0
    for entry in entries(part):
        end = at + ENTRY.size + len(entry.path) + len(entry.data)
        if not leave(entry):
            kept += part[at:end]
        at = end
    return bytes(kept)


async def parts(sandbox: Sandbox, path: str, max_bytes: int) -> AsyncGenerator[bytes]:
    """The folder `path` in parts of a few MiB. Raises FileRefused when it is no folder, or larger than `max_bytes`
    (records included) or a million entries; SandboxError."""
    left, count, cursor = max_bytes, 0, ""
    while True:
        part, cursor = await _folders(sandbox).pack(path, cursor)
        left -= len(part)
        try:
            count += sum(1 for _ in entries(part))
        except ValueError as error:
            raise FileRefused(errno.EBADMSG, str(error), path) from error
        if left < 0 or count > MAX_ENTRIES:
            raise FileRefused(errno.EFBIG, f"more than {max_bytes >> 20} MiB or {MAX_ENTRIES} entries", path)
        yield part
        if not cursor:
            return


async def stream(sandbox: Sandbox, path: str, max_bytes: int = 2 << 30) -> AsyncGenerator[FilePart]:
    """A regular file of any size in stretches of a few MiB, as long as it was at the first. Raises FileRefused when it
    is larger than `max_bytes` or becomes shorter meanwhile; SandboxError."""
    if not isinstance(sandbox, Parts):
        raise BackendUnavailable(f"{type(sandbox).__name__} cannot read large files: its sandboxes have no `read_part`")
    offset, size = 0, -1
    while offset < size or size < 0:
        part = await sandbox.read_part(path, offset)
        size = part.size if size < 0 else size
        if size > max_bytes:
            raise FileRefused(errno.EFBIG, f"larger than {max_bytes} bytes", path)
        if not part.data and offset < size:
            raise FileRefused(errno.EBUSY, "it became shorter while it was read", path)
        offset += len(part.data)
        yield replace(part, data=part.data[: len(part.data) - max(0, offset - size)], size=size)


async def carry(source: Sandbox, path: str, target: Sandbox, max_bytes: int = 2 << 30) -> list[tuple[str, str]]:
    """Make `path` of `target` what it is in `source`, whatever was there before; (name, why) of what was left out.
    Raises as `parts` does; FileRefused where `target` has no room."""
    left_out: list[tuple[str, str]] = []
    await clear(target, path)
    async with aclosing(parts(source, path, max_bytes)) as found:
        async for part in found:
            await _folders(target).unpack(path, part)
            left_out += _left_out(part)
    return left_out


async def restore(sandbox: Sandbox, path: str, saved: Iterable[bytes], spared: str = "") -> None:
    """Make `path` what it was when `saved` were its parts; what lies in it under the name `spared` stays. Raises
    FileRefused, SandboxError."""
    await clear(sandbox, path, spared)
    for part in saved:
        await _folders(sandbox).unpack(path, part)


async def clear(sandbox: Sandbox, path: str, spared: str = "") -> None:
    """A folder at `path` with nothing in it but what has the name `spared`. Raises FileRefused, SandboxError."""
    folder, but = shlex.quote(path), f"! -name {shlex.quote(spared)} " if spared else ""
    command = f"mkdir -p -- {folder} && find {folder} -mindepth 1 -maxdepth 1 {but}-exec rm -rf -- {{}} +"
    result = await sandbox.exec(command, timeout_s=CLEAR_S)
    if result.exit_code:
        raise FileRefused(errno.EBUSY, result.stderr.decode(errors="replace").strip()[-200:], path)


def _folders(sandbox: Sandbox) -> Folders:
    if not isinstance(sandbox, Folders):
        raise BackendUnavailable(
            f"{type(sandbox).__name__} cannot carry folders: its sandboxes have no `pack` and `unpack`"
        )
    return sandbox


def _left_out(part: bytes) -> list[tuple[str, str]]:
    return [
        (entry.path.decode(errors="replace"), entry.data.decode(errors="replace"))
        for entry in entries(part)
        if entry.kind == "x"
    ]

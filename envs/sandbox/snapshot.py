"""Folders of a sandbox as they were at one moment, kept by this process and made again in other sandboxes.

    with await box.snapshot() as saved:                  what can be written in it: /testbed, /tmp, the home, ...
        await other.restore(saved)                       any sandbox, also on another node; as often as you like
    several = await box.fork(4)                          fresh sandboxes with the same files; whoever asks closes them

Files, folders, links, modes and times come along, sparse files as such. Owners do not (all is the user's of the new
sandbox), nor do hard links (each becomes a file), FIFOs, sockets, and what its own user may not read; `left_out` lists
those. Processes and shells do not: nothing runs while a snapshot is taken, and `restore` ends what runs.

A snapshot is a stranger's bytes in a memory file that nothing else can name. This process never unpacks it, and it goes
when it is closed or when its owner ends, however it ends.
"""

import fcntl
import os
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from sandboxrl.envs.sandbox.inside.folders import ENTRY

SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
PART_BYTES = 4 << 20
MAX_SNAPSHOT = 2 << 30
"""Bytes of a snapshot if nobody says otherwise, its records included."""


class Snapshot:
    """Records of folders in a memory file, sealed. Travels by pickle, as its bytes."""

    def __init__(self, folders: Sequence[str], descriptor: int, size: int) -> None:
        """Takes over the descriptor. Raises OSError when its contents can still be changed."""
        self.folders = tuple(folders)
        """Absolute paths, each a whole folder."""
        self.size = size
        """Bytes."""
        self.descriptor = descriptor
        try:
            os.ftruncate(descriptor, size)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SEALS)
        except BaseException:
            self.close()
            raise

    @staticmethod
    def of(folders: Sequence[str], data: bytes) -> "Snapshot":
        """One whose records came as bytes."""
        descriptor = memory_file(len(data))
        view = memoryview(data)
        at = 0
        while at < len(data):
            at += os.pwrite(descriptor, view[at:], at)
        return Snapshot(folders, descriptor, len(data))

    def data(self) -> bytes:
        """All of its records."""
        return b"".join(
            os.pread(self.descriptor, min(PART_BYTES, self.size - at), at) for at in range(0, self.size, PART_BYTES)
        )

    def left_out(self) -> list[tuple[str, str]]:
        """(path, why) of what is not in it. Raises ValueError for what are no records."""
        found, at = [], 0
        while at < self.size:
            head = os.pread(self.descriptor, ENTRY.size, at)
            if len(head) < ENTRY.size:
                raise ValueError("a record is cut off")
            kind, path_size, _, _, _, size = ENTRY.unpack(head)
            if kind == b"x":
                text = os.pread(self.descriptor, min(path_size + size, 1 << 16), at + ENTRY.size)
                path, why = text[:path_size], text[path_size:]
                found.append((f"/{path.decode(errors='replace')}", why.decode(errors="replace")))
            at += ENTRY.size + path_size + size
        return found

    def close(self) -> None:
        """Free its memory. Idempotent."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> "Snapshot":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return Snapshot.of, (self.folders, self.data())


def memory_file(size: int) -> int:
    """A descriptor of a memory file of `size` bytes that cannot grow. Its memory is taken now, and so counts as this
    process's, whoever writes to it. Raises OSError."""
    descriptor = os.memfd_create("snapshot", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        if size:
            os.posix_fallocate(descriptor, 0, size)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor

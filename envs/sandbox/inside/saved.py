"""Folders of a sandbox in one memory file of its host: saved to it and made again from it, copied by the kernel.

The file holds records (`envs/sandbox/inside/folders.py`) of all folders, with paths from `/`. What may run in here is
stopped while they are saved, so that they are of one moment, and ended before they are made again.
"""

from __future__ import annotations

import errno
import posix
import struct

from sandboxrl.envs.sandbox.inside.files import INNER, open_folder
from sandboxrl.envs.sandbox.inside.folders import ENTRY, MAX_PATH, SMALL_BYTES, Maker, copy, tree
from sandboxrl.envs.sandbox.inside.processes import stopped

WRITE_BYTES, READ_BYTES = 1 << 20, 1 << 20
MAX_ENTRIES = 1_000_000


def save(folders: list[bytes], file: int, room: int, most: int) -> int:
    """How many bytes of records `folders` are. They are in `file` when that is at most `room`, which is what the file
    holds: nothing is written beyond it, so that all of it is its maker's memory. Raises OSError for what is no folder,
    and for more than `most` bytes or a million entries."""
    with stopped():
        total = count = 0
        pending = bytearray()
        for folder in folders:
            for found in tree(folder, folder.lstrip(b"/") + b"/"):
                size = len(found) if isinstance(found, bytes) else found[2]
                total, count = total + size, count + 1
                if total > most or count > MAX_ENTRIES:
                    raise OSError(errno.EFBIG, f"more than {most >> 20} MiB or {MAX_ENTRIES} entries")
                if total > room:  # what is missing is only counted
                    continue
                if isinstance(found, bytes):
                    pending += found
                if isinstance(found, tuple) or len(pending) >= WRITE_BYTES:
                    written = total - size if isinstance(found, tuple) else total
                    _write(file, pending, written - len(pending))
                    pending.clear()
                if isinstance(found, tuple):
                    copy(file, total - size, *found)
        if total <= room:
            _write(file, pending, total - len(pending))
    return total


def load(folders: list[bytes], file: int, size: int) -> None:
    """Make `folders` what they were when `size` bytes of `file` were saved; nothing runs in here. A record of anything
    else is refused. Raises OSError."""
    for folder in folders:
        empty(folder)
    maker = Maker(posix.open("/", posix.O_PATH | INNER))
    try:
        _load(maker, tuple(folder.lstrip(b"/") + b"/" for folder in folders), file, size)
    except (ValueError, struct.error) as error:
        raise OSError(errno.EBADMSG, f"no records: {error}") from error
    finally:
        maker.close()


def _load(maker: Maker, allowed: tuple[bytes, ...], file: int, size: int) -> None:
    window, start = memoryview(b""), 0  # bytes of the file, and where they begin in it
    at = 0
    while at < size:
        if at + ENTRY.size + MAX_PATH + SMALL_BYTES > start + len(window) and start + len(window) < size:
            window, start = memoryview(posix.pread(file, READ_BYTES, at)), at
        kind, path_size, mode, modified, offset, length = ENTRY.unpack_from(window, at - start)
        begins = at + ENTRY.size + path_size
        at = begins + length
        if path_size > MAX_PATH or at > size:
            raise ValueError("not a record")
        path = bytes(window[begins - path_size - start : begins - start])
        if not path.startswith(allowed):
            raise OSError(errno.EINVAL, "a record of another folder")
        small = length <= SMALL_BYTES
        data = window[begins - start : at - start] if small else (file, begins, length)
        maker.make(kind, path, mode, modified, offset, data)


def empty(path: bytes) -> None:
    """Remove all that is in a folder, however deep it is; it is made if it is not there. No link is followed, and
    nothing runs in here meanwhile. Raises OSError."""
    above, _ = open_folder(path + b"/x", make=True)
    top = posix.open(".", posix.O_RDONLY | INNER, dir_fd=above)
    posix.close(above)
    count = 0
    try:
        while names := posix.listdir(top):
            for name in names:
                try:
                    posix.unlink(name, dir_fd=top)
                    continue
                except IsADirectoryError:
                    posix.chmod(name, 0o700, dir_fd=top)
                inner = posix.open(name, posix.O_RDONLY | INNER, dir_fd=top)
                try:
                    for child in posix.listdir(inner):
                        try:
                            posix.unlink(child, dir_fd=inner)
                        except IsADirectoryError:  # up, to the others
                            posix.chmod(child, 0o700, dir_fd=inner)
                            count = _moved(inner, child, top, count)
                finally:
                    posix.close(inner)
                posix.rmdir(name, dir_fd=top)
    finally:
        posix.close(top)


def _moved(inner: int, child: str, top: int, count: int) -> int:
    """Move a folder to `top` under a name that is free; the next count to try."""
    while True:
        count += 1
        try:
            posix.stat(f"{count}", dir_fd=top, follow_symlinks=False)
        except FileNotFoundError:
            posix.rename(child, f"{count}", src_dir_fd=inner, dst_dir_fd=top)
            return count


def _write(file: int, data: bytearray, at: int) -> None:
    view = memoryview(data)
    while view:
        written = posix.pwrite(file, view, at)
        view, at = view[written:], at + written
    view.release()

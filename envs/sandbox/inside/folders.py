"""Whole folders as data: read into records, and made again from records. No link is ever followed on either side.

    record   kind, u32 path length, u32 mode, i64 modified (ns), u64 offset, u64 size; path below the folder; data

    d   folder, made before what is in it
    f   file, or the part of one that begins at the offset; 0 makes it
    m   the mode and time of a folder or of a file of several parts, once all of it is there
    l   link; the data is where it points
    x   left out; the data says why (a FIFO, a socket, closed to its reader, too deep, a name too long)

What comes out of one sandbox may go into another: nothing in a record can reach above the folder it is unpacked in.
"""

from __future__ import annotations

import errno
import posix
import struct
import sys
from _stat import S_ISDIR, S_ISLNK, S_ISREG

from sandboxrl.envs.sandbox.inside.files import INNER, PASSIVE, open_folder, write_at

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = struct.Struct(">cIIqQQ")
PART_BYTES = 4 << 20
"""About how much one request asks for or brings."""
MAX_DEPTH = 100
MAX_PATH = 4000
READ_BYTES = 1 << 20
PERMISSIONS = 0o777
"""What is kept of a mode: neither setuid nor sticky."""


def entry(kind: bytes, path: bytes, mode: int, modified_ns: int, offset: int, data: bytes) -> bytes:
    return ENTRY.pack(kind, len(path), mode & PERMISSIONS, modified_ns, offset, len(data)) + path + data


def packed(path: bytes) -> Iterator[bytes]:
    """Records of all that is in the folder `path`, in parts of about PART_BYTES. Raises OSError for none."""
    above, name = open_folder(path, make=False)
    try:
        top = posix.open(name, posix.O_RDONLY | INNER, dir_fd=above)
    finally:
        posix.close(above)
    part = bytearray()
    for record in _tree(top, b"", 1):
        part += record
        if len(part) >= PART_BYTES:
            yield bytes(part)
            part.clear()
    yield bytes(part)


def _tree(folder: int, prefix: bytes, depth: int) -> Iterator[bytes]:
    """Records of what is in an open folder, which is closed at the end."""
    try:
        for found in posix.scandir(folder):
            name = found.name.encode(sys.getfilesystemencoding(), "surrogateescape")
            path = prefix + name
            try:
                yield from _one(folder, name, path, depth)
            except OSError as error:
                yield _left_out(path, error.strerror or "unreadable")
    finally:
        posix.close(folder)


def _one(folder: int, name: bytes, path: bytes, depth: int) -> Iterator[bytes]:
    """Records of what is called `name` in an open folder. Raises OSError."""
    found = posix.stat(name, dir_fd=folder, follow_symlinks=False)
    mode, modified = found.st_mode, found.st_mtime_ns
    if len(path) > MAX_PATH:
        yield _left_out(path[:MAX_PATH], "its name is too long")
    elif S_ISLNK(mode):
        yield entry(b"l", path, 0, modified, 0, posix.readlink(name, dir_fd=folder))
    elif S_ISDIR(mode):
        if depth == MAX_DEPTH:
            yield _left_out(path, "too deep")
            return
        inner = posix.open(name, posix.O_RDONLY | INNER, dir_fd=folder)
        yield entry(b"d", path, mode, modified, 0, b"")
        yield from _tree(inner, path + b"/", depth + 1)
        yield entry(b"m", path, mode, modified, 0, b"")
    elif S_ISREG(mode):
        file = posix.open(name, posix.O_RDONLY | PASSIVE, dir_fd=folder)
        try:
            yield from _file(file, path)
        finally:
            posix.close(file)
    else:
        yield _left_out(path, "not a regular file")


def _file(file: int, path: bytes) -> Iterator[bytes]:
    found = posix.fstat(file)
    if not S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    offset = 0
    while True:  # as long as it was when it was opened: it may be growing
        data = posix.pread(file, min(READ_BYTES, found.st_size - offset), offset)
        yield entry(b"f", path, found.st_mode, found.st_mtime_ns, offset, data)
        offset += len(data)
        if not data or offset >= found.st_size:
            break
    if offset >= READ_BYTES:
        yield entry(b"m", path, found.st_mode, found.st_mtime_ns, 0, b"")


def _left_out(path: bytes, why: str) -> bytes:
    return entry(b"x", path, 0, 0, 0, why.encode())


def unpack(path: bytes, records: memoryview) -> None:
    """Make what whole records say below the folder `path`, which is made if it is not there. Raises OSError; for what
    are no records ValueError or struct.error."""
    top, name = open_folder(path + b"/x", make=True)
    try:
        while records:
            kind, path_size, mode, modified, offset, size = ENTRY.unpack_from(records)
            start, end = ENTRY.size + path_size, ENTRY.size + path_size + size
            if end > len(records):
                raise ValueError("record longer than its frame")
            below, data, records = bytes(records[ENTRY.size : start]), records[start:end], records[end:]
            try:
                _make(top, kind, below, mode & PERMISSIONS, modified, offset, data)
            except OSError as error:
                where = below.decode("utf-8", "replace")
                raise OSError(error.errno, f"{error.strerror}: {where}") from error
    finally:
        posix.close(top)


def _make(top: int, kind: bytes, path: bytes, mode: int, modified: int, offset: int, data: memoryview) -> None:
    """One record below the open folder `top`. Raises OSError."""
    *parents, name = path.split(b"/")
    if any(part in (b"", b".", b"..") for part in (*parents, name)):
        raise OSError(errno.EINVAL, "not a path below the folder")
    folder = posix.dup(top)
    try:
        for part in parents:
            inner = posix.open(part, posix.O_PATH | INNER, dir_fd=folder)
            posix.close(folder)
            folder = inner
        if kind == b"d":
            posix.mkdir(name, 0o700, dir_fd=folder)
        elif kind == b"m":
            made = posix.open(name, posix.O_RDONLY | PASSIVE, dir_fd=folder)
            try:
                _finish(made, mode, modified)
            finally:
                posix.close(made)
        elif kind == b"l":
            posix.symlink(bytes(data), name, dir_fd=folder)
            posix.utime(name, ns=(modified, modified), dir_fd=folder, follow_symlinks=False)
        elif kind == b"f":
            flags = posix.O_WRONLY | PASSIVE | (0 if offset else posix.O_CREAT | posix.O_EXCL)
            made = posix.open(name, flags, 0o600, dir_fd=folder)
            try:
                write_at(made, data, offset)
                if not offset and len(data) < READ_BYTES:
                    _finish(made, mode, modified)
            finally:
                posix.close(made)
        elif kind != b"x":
            raise OSError(errno.EINVAL, "no such kind of record")
    finally:
        posix.close(folder)


def _finish(made: int, mode: int, modified: int) -> None:
    posix.fchmod(made, mode)
    posix.utime(made, ns=(modified, modified))

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

from sandboxrl.envs.sandbox.inside.files import INNER, PASSIVE, PERMISSIONS, open_folder, write_at

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Union  # of Python 3.9

    Piece = tuple[int, int, int]
    """(open file, offset, size) of the data that the record before it announces."""
    Found = Union[bytes, Piece]  # noqa: UP007

ENTRY = struct.Struct(">cIIqQQ")
PART_BYTES = 4 << 20
"""About how much one request asks for or brings."""
MAX_DEPTH = 100
MAX_PATH = 4000
READ_BYTES = 1 << 20
FROM_START = 0  # SEEK_SET
SMALL_BYTES = 64 << 10
"""Up to here a file's data lies in its record; what is larger follows it as a piece, for the kernel to copy."""


def entry(kind: bytes, path: bytes, mode: int, modified_ns: int, offset: int, data: bytes) -> bytes:
    return head(kind, path, mode, modified_ns, offset, len(data)) + data


def head(kind: bytes, path: bytes, mode: int, modified_ns: int, offset: int, size: int) -> bytes:
    """A record up to its data."""
    return ENTRY.pack(kind, len(path), mode & PERMISSIONS, modified_ns, offset, size) + path


def packed(path: bytes) -> Iterator[bytes]:
    """Records of all that is in the folder `path`, in parts of about PART_BYTES. Raises OSError for none."""
    part = bytearray()
    for found in tree(path, b""):
        if isinstance(found, bytes):
            part += found
        else:
            file, offset, size = found
            part += posix.pread(file, size, offset).ljust(size, b"\0")  # it may have become shorter
        if len(part) >= PART_BYTES:
            yield bytes(part)
            part.clear()
    yield bytes(part)


def tree(path: bytes, prefix: bytes) -> Iterator[Found]:
    """Records of all that is in the folder `path`, under names that begin with `prefix`. Raises OSError for none."""
    above, name = open_folder(path, make=False)
    try:
        top = posix.open(name, posix.O_RDONLY | INNER, dir_fd=above)
    finally:
        posix.close(above)
    return _tree(top, prefix, 1)


def _tree(folder: int, prefix: bytes, depth: int) -> Iterator[Found]:
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


def _one(folder: int, name: bytes, path: bytes, depth: int) -> Iterator[Found]:
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


def _file(file: int, path: bytes) -> Iterator[Found]:
    found = posix.fstat(file)
    mode, modified, size = found.st_mode, found.st_mtime_ns, found.st_size  # as it was when opened: it may be growing
    if not S_ISREG(mode):
        raise OSError(errno.EINVAL, "not a regular file")
    if size <= SMALL_BYTES:
        yield entry(b"f", path, mode, modified, 0, posix.pread(file, size, 0))
        return
    if not found.st_blocks or posix.lseek(file, 0, posix.SEEK_DATA):
        yield entry(b"f", path, mode, modified, 0, b"")  # it begins with a hole
    at = 0
    while found.st_blocks:
        try:
            at = posix.lseek(file, at, posix.SEEK_DATA)
        except OSError:  # a hole to its end
            break
        end = min(posix.lseek(file, at, posix.SEEK_HOLE), size)
        if at >= end:
            break
        while at < end:
            length = min(READ_BYTES, end - at)
            yield head(b"f", path, mode, modified, at, length)
            yield file, at, length
            at += length
    yield entry(b"m", path, mode, modified, size, b"")


def _left_out(path: bytes, why: str) -> bytes:
    return entry(b"x", path, 0, 0, 0, why.encode())


def unpack(path: bytes, records: memoryview) -> None:
    """Make what whole records say below the folder `path`, which is made if it is not there. Raises OSError; for what
    are no records ValueError or struct.error."""
    top, _ = open_folder(path + b"/x", make=True)
    maker = Maker(top)
    try:
        while records:
            kind, path_size, mode, modified, offset, size = ENTRY.unpack_from(records)
            start, end = ENTRY.size + path_size, ENTRY.size + path_size + size
            if end > len(records):
                raise ValueError("record longer than its frame")
            below, data, records = bytes(records[ENTRY.size : start]), records[start:end], records[end:]
            maker.make(kind, below, mode, modified, offset, data)
    finally:
        maker.close()


class Maker:
    """Makes what records say below an open folder, which it closes at its end. Raises OSError."""

    def __init__(self, top: int) -> None:
        self.top = top
        self.parents: list[bytes] = []  # of the record before, which is mostly in the same folder
        self.folder = posix.dup(top)

    def close(self) -> None:
        posix.close(self.folder)
        posix.close(self.top)

    def make(self, kind: bytes, path: bytes, mode: int, modified: int, offset: int, data: memoryview | Piece) -> None:
        """One record; data in a file is copied by the kernel."""
        try:
            *parents, name = path.split(b"/")
            if any(part in (b"", b".", b"..") for part in (*parents, name)):
                raise OSError(errno.EINVAL, "not a path below the folder")
            if parents != self.parents:
                self.enter(parents)
            _make(self.folder, kind, name, mode & PERMISSIONS, modified, offset, data)
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror}: {path.decode('utf-8', 'replace')}") from error

    def enter(self, parents: list[bytes]) -> None:
        """Open the folder of a record. No part of its name may be a link."""
        folder = posix.dup(self.top)
        try:
            for part in parents:
                inner = posix.open(part, posix.O_PATH | INNER, dir_fd=folder)
                posix.close(folder)
                folder = inner
        except BaseException:
            posix.close(folder)
            raise
        posix.close(self.folder)
        self.parents, self.folder = parents, folder


def _make(
    folder: int, kind: bytes, name: bytes, mode: int, modified: int, offset: int, data: memoryview | Piece
) -> None:
    """What is called `name` in an open folder. Raises OSError."""
    if kind == b"d":
        posix.mkdir(name, 0o700, dir_fd=folder)
    elif kind == b"m":
        made = posix.open(name, (posix.O_RDWR if offset else posix.O_RDONLY) | PASSIVE, dir_fd=folder)
        try:
            if offset:
                posix.ftruncate(made, offset)
            _finish(made, mode, modified)
        finally:
            posix.close(made)
    elif kind == b"l":
        assert not isinstance(data, tuple)
        posix.symlink(bytes(data), name, dir_fd=folder)
        posix.utime(name, ns=(modified, modified), dir_fd=folder, follow_symlinks=False)
    elif kind == b"f":
        flags = posix.O_WRONLY | PASSIVE | (0 if offset else posix.O_CREAT | posix.O_EXCL)
        made = posix.open(name, flags, 0o600, dir_fd=folder)
        try:
            if isinstance(data, tuple):
                copy(made, offset, *data)
            else:
                write_at(made, data, offset)
                if not offset and len(data) <= SMALL_BYTES:
                    _finish(made, mode, modified)
        finally:
            posix.close(made)
    elif kind != b"x":
        raise OSError(errno.EINVAL, "no such kind of record")


def copy(target: int, at: int, source: int, offset: int, size: int) -> None:
    """`size` bytes of an open file to `at` of another, by the kernel. Where the source ends early, the rest stays as
    it is. Raises OSError."""
    posix.lseek(target, at, FROM_START)
    while size:
        moved = posix.sendfile(target, source, offset, size)
        if not moved:
            return
        offset, size = offset + moved, size - moved


def _finish(made: int, mode: int, modified: int) -> None:
    posix.fchmod(made, mode)
    posix.utime(made, ns=(modified, modified))

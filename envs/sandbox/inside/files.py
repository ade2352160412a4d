"""Files of a sandbox: read and written without ever following a link or waiting for a FIFO or a device."""

from __future__ import annotations

import errno
import posix
from _stat import S_ISDIR, S_ISREG

from sandboxrl.envs.sandbox.inside.frames import RECORD

INNER = posix.O_DIRECTORY | posix.O_NOFOLLOW | posix.O_CLOEXEC
"""How a folder on the way is opened."""
PASSIVE = posix.O_NOFOLLOW | posix.O_NONBLOCK | posix.O_NOCTTY | posix.O_CLOEXEC
"""How a file is opened: without following, waiting or getting a terminal."""

PERMISSIONS = 0o777
"""What is kept of a mode: neither setuid nor sticky."""


def is_folder(path: bytes) -> bool:
    try:
        return S_ISDIR(posix.stat(path).st_mode)
    except OSError:
        return False


def open_folder(path: bytes, make: bool) -> tuple[int, bytes]:
    """(descriptor of the folder that holds `path`, last name): no component may be a link."""
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    if not path.startswith(b"/") or not parts or b".." in parts:
        raise OSError(errno.EINVAL, "not an absolute path of a file without '..'")
    flags = posix.O_PATH | INNER
    folder = posix.open("/", flags)
    try:
        for part in parts[:-1]:
            if make:
                try:
                    posix.mkdir(part, 0o755, dir_fd=folder)
                except FileExistsError:
                    pass
            inner = posix.open(part, flags, dir_fd=folder)
            posix.close(folder)
            folder = inner
    except BaseException:
        posix.close(folder)
        raise
    return folder, parts[-1]


def open_file(path: bytes, flags: int, make: bool = False) -> int:
    """A descriptor of the regular file `path`: never follows a link, never waits for a FIFO or a device."""
    folder, name = open_folder(path, make)
    try:
        file = posix.open(name, flags | PASSIVE, 0o644, dir_fd=folder)
    finally:
        posix.close(folder)
    if not S_ISREG(posix.fstat(file).st_mode):
        posix.close(file)
        raise OSError(errno.EINVAL, "not a regular file")
    return file


def write_at(file: int, data: bytes | memoryview, offset: int) -> None:
    while data:
        written = posix.pwrite(file, data, offset)
        data, offset = data[written:], offset + written


def read_file(path: bytes, limit: int) -> bytes:
    """A regular file of at most `limit` bytes. Raises OSError."""
    file = open_file(path, posix.O_RDONLY)
    try:
        if posix.fstat(file).st_size > limit:
            raise OSError(errno.EFBIG, f"larger than {limit} bytes")
        data = bytearray()
        while len(data) <= limit:
            part = posix.read(file, min(1 << 20, limit + 1 - len(data)))
            if not part:
                break
            data += part
    finally:
        posix.close(file)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"larger than {limit} bytes")
    return bytes(data)


def read_part(path: bytes, offset: int, size: int) -> tuple[bytes, int, int]:
    """(bytes of a regular file from `offset`, at most `size`; its whole size and permissions now). Raises OSError."""
    file = open_file(path, posix.O_RDONLY)
    try:
        found = posix.fstat(file)
        return posix.pread(file, size, offset), found.st_size, found.st_mode & PERMISSIONS
    finally:
        posix.close(file)


def write_files(payload: memoryview) -> None:
    """Records: u32 path length, u64 offset, u64 size, path, bytes. Offset 0 starts the file anew. Raises OSError; for
    what is no list of records ValueError or struct.error."""
    while payload:
        path_size, offset, size = RECORD.unpack_from(payload)
        payload = payload[RECORD.size :]
        end = path_size + size
        if end > len(payload):
            raise ValueError("record longer than its frame")
        path, data, payload = bytes(payload[:path_size]), payload[path_size:end], payload[end:]
        try:
            file = open_file(path, posix.O_WRONLY | posix.O_CREAT, make=True)
            try:
                if not offset:
                    posix.ftruncate(file, 0)
                write_at(file, data, offset)
            finally:
                posix.close(file)
        except OSError as error:
            where = path.decode("utf-8", "replace")
            raise OSError(error.errno, f"{error.strerror}: {where}") from error

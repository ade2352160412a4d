"""What is asked of the kernel before a sandbox is one: numbers of its headers, and calls that say what went wrong."""

from __future__ import annotations

import ctypes
import posix

NEW_MOUNTS, NEW_CGROUP, NEW_UTS, NEW_IPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
NEW_USER, NEW_PID, NEW_NETWORK = 0x10000000, 0x20000000, 0x40000000
READ_ONLY, NO_SUID, NO_DEVICES, NO_PROGRAMS, REMOUNT, BIND = 1, 2, 4, 8, 0x20, 0x1000
DETACH = 2
PRIVATE, RECURSIVE = 0x40000, 0x4000
SET_DUMPABLE, SET_SECCOMP, DROP_BOUNDING, NO_NEW_PRIVILEGES = 4, 22, 24, 38
SECCOMP_FILTER = 2
CAPABILITY_VERSION = 0x20080522
SET_GROUP, SET_USER = 1 << 6, 1 << 7
READ_FLAGS, WRITE_FLAGS, INTERFACE_UP = 0x8913, 0x8914, 1

libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: str, kind: str, flags: int, options: bytes = b"") -> None:
    """Names may be any bytes, as `posix` decodes them."""
    places = (text.encode("utf-8", "surrogateescape") for text in (source, target))
    check(libc.mount(*places, kind.encode(), flags, options), f"mount {target!a}")


def write(path: str, data: bytes) -> None:
    """In one call, as the kernel's files want it."""
    file = posix.open(path, posix.O_WRONLY | posix.O_CLOEXEC)
    try:
        posix.write(file, data)
    finally:
        posix.close(file)


def check(result: int, what: str) -> None:
    """Raise what the C library's call left in errno."""
    if result:
        raise OSError(ctypes.get_errno(), f"{what}: {posix.strerror(ctypes.get_errno())}")

"""A sandbox's way into a root filesystem folder, which is a stranger's: any link in it may lead anywhere, any program
may be anything.

The interpreter comes from the host and has everything in memory by now. What it does here it does as an ordinary user
with power over its own namespaces only, and it follows no link of the folder: a fresh root gets the folder's top-level
entries one by one, links as links, with all that is the sandbox's own beside them. The first program of the folder that
runs is a command's bash, when every capability is gone and the system call filter is in place.
"""

from __future__ import annotations

import posix
import sys

from sandboxrl.envs.sandbox.inside.files import INNER
from sandboxrl.envs.sandbox.inside.kernel import (
    BIND,
    DETACH,
    NO_DEVICES,
    NO_PROGRAMS,
    NO_SUID,
    READ_ONLY,
    RECURSIVE,
    REMOUNT,
    check,
    libc,
    mount,
)

GIVEN_ROOT, NEW_ROOT = "/run/nursery/root", "/run/nursery/new"
"""Where the nursery has the folder, and where the fresh root is made."""
NAMES, MEMORY = "/run/nursery/resolv.conf", "/run/nursery/meminfo"
"""The addresses of name servers, and what a sandbox is told of its memory."""
OWN = ("proc", "sys", "dev", "tmp", "run", "home", "testbed")
"""Top-level folders that are never taken from a root filesystem."""


def enter_root(folders: dict[bytes, bytes], has_names: bool) -> None:
    """Leave everything of the host behind. `folders` are the sandbox's own memory filesystems, by path."""
    sys.path.clear()  # nothing is imported from what is entered
    sys.path_importer_cache.clear()
    mount("tmpfs", NEW_ROOT, "tmpfs", NO_SUID | NO_DEVICES, b"mode=755,size=1048576,nr_inodes=1024")
    for entry in posix.scandir(GIVEN_ROOT):
        if entry.name not in OWN:
            _show(entry)
    for name in ("proc", "dev"):
        posix.mkdir(f"{NEW_ROOT}/{name}", 0o755)
    mount("proc", f"{NEW_ROOT}/proc", "proc", NO_SUID | NO_DEVICES | NO_PROGRAMS)
    mount(MEMORY, f"{NEW_ROOT}/proc/meminfo", "", BIND)
    mount("/dev", f"{NEW_ROOT}/dev", "", BIND | RECURSIVE)
    for path, options in folders.items():
        _mount_below(path, options)
    if has_names:
        place = _open_below(b"etc/resolv.conf", make=False)
        mount(NAMES, f"/proc/self/fd/{place}", "", BIND)
        posix.close(place)
    posix.chdir(NEW_ROOT)
    check(libc.pivot_root(b".", b"."), "pivot_root")
    check(libc.umount2(b".", DETACH), "umount")
    posix.chdir("/")
    mount("none", "/", "", REMOUNT | BIND | READ_ONLY | NO_SUID | NO_DEVICES)


def _show(entry: posix.DirEntry[str]) -> None:
    source, target = f"{GIVEN_ROOT}/{entry.name}", f"{NEW_ROOT}/{entry.name}"
    if entry.is_symlink():
        posix.symlink(posix.readlink(source), target)
        return
    if entry.is_dir(follow_symlinks=False):
        posix.mkdir(target, 0o755)
    elif entry.is_file(follow_symlinks=False):
        posix.close(posix.open(target, posix.O_CREAT | posix.O_EXCL | posix.O_CLOEXEC, 0o644))
    else:
        return
    mount(source, target, "", BIND | RECURSIVE)


def _mount_below(path: bytes, options: bytes) -> None:
    place = _open_below(path.lstrip(b"/"), make=True)
    mount("tmpfs", f"/proc/self/fd/{place}", "tmpfs", NO_SUID | NO_DEVICES, options)
    posix.close(place)


def _open_below(path: bytes, make: bool) -> int:
    """A place in the fresh root, none of whose parts may be a link. Raises OSError."""
    *parents, last = path.split(b"/")
    folder = posix.open(NEW_ROOT, posix.O_PATH | INNER)
    for part in (*parents, last):
        if make:
            try:
                posix.mkdir(part, 0o755, dir_fd=folder)
            except OSError:
                pass  # it is there; whether it is a folder is seen next
        kind = INNER if make or part is not last else posix.O_NOFOLLOW | posix.O_CLOEXEC
        inner = posix.open(part, posix.O_PATH | kind, dir_fd=folder)
        posix.close(folder)
        folder = inner
    return folder

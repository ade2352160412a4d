"""A sandbox lives as long as somebody holds the other end of its stream, and that shall be its owner alone: a child
that the owner forks (a loader of data, a pool of workers) would hold it too, and keep it beyond the owner's `kill -9`.
"""

import os
import resource

MAX_OPEN_FILES = 1 << 20
_held: dict[int, int] = {}
"""Descriptor -> inode of the socket: a number that somebody else closed may mean something else by now."""


def hold(descriptor: int) -> None:
    """From now on children that are forked get an empty descriptor in its place."""
    _held[descriptor] = os.fstat(descriptor).st_ino


def release(descriptor: int) -> None:
    """It is about to be closed, here as elsewhere."""
    _held.pop(descriptor, None)


def raise_open_files() -> None:
    """Each sandbox takes some descriptors of its owner: as many as this user may have, not as few as a login begins
    with."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _let_go() -> None:
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for descriptor, inode in _held.items():
        try:
            same = os.fstat(descriptor).st_ino == inode
        except OSError:  # it was closed, and the number is free
            continue
        if same:  # its number stays taken: whoever closes it closes nothing else
            os.dup2(nothing, descriptor, inheritable=False)
    os.close(nothing)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)

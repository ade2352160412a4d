"""Snapshots and forks of a sandbox: the memory file that its executor writes, and the sandboxes made from it."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from errno import EFBIG
from typing import Protocol

from sandboxrl.envs.sandbox.host.messages import Fields
from sandboxrl.envs.sandbox.protocol import FileRefused, Sandbox, Snapshots
from sandboxrl.envs.sandbox.snapshot import Snapshot, memory_file

FIRST_ROOM, ROOM_TO_GROW = 12 << 20, 1 << 20
"""Taken for a snapshot whose size nobody knows, and beyond a size that is known."""
TRIES = 3

Ask = Callable[[Fields, bytes, int], Awaitable[Fields]]
"""Sends a request with its payload and a descriptor beside it. Raises FileRefused, SandboxDied."""


class Forkable(Sandbox, Snapshots, Protocol):
    """A sandbox that can be forked."""


async def take(ask: Ask, folders: Sequence[bytes], max_bytes: int) -> Snapshot:
    """A snapshot of `folders`. Raises FileRefused, SandboxDied; KeyError or ValueError for an answer that is none."""
    room = min(FIRST_ROOM, max_bytes)
    for _ in range(TRIES):
        file = memory_file(room)
        try:
            fields = {b"op": b"save", b"room": b"%d" % room, b"max": b"%d" % max_bytes}
            size = int((await ask(fields, b"\0".join(folders), file))[b"size"])
            if 0 <= size <= room:
                return Snapshot([os.fsdecode(folder) for folder in folders], os.dup(file), size)
        finally:
            os.close(file)
        room = min(size + ROOM_TO_GROW, max_bytes)
    raise FileRefused(EFBIG, "it grows faster than it can be saved")


async def put_back(ask: Ask, folders: Sequence[bytes], snapshot: Snapshot) -> None:
    """Make `folders` what they were. Raises FileRefused, SandboxDied."""
    await ask({b"op": b"load", b"size": b"%d" % snapshot.size}, b"\0".join(folders), snapshot.descriptor)


async def forked(box: Snapshots, start: Callable[[], Awaitable[Forkable]], num_forks: int) -> list[Sandbox]:
    """Sandboxes that `start` makes, with the files of `box`: all, or none is left. Raises FileRefused, SandboxDied."""
    starting = [asyncio.ensure_future(start()) for _ in range(num_forks)]
    try:
        with await box.snapshot() as saved:
            forks = await asyncio.gather(*starting)
            await asyncio.gather(*(fork.restore(saved) for fork in forks))
    except BaseException:
        for one in starting:
            one.cancel()
        started = await asyncio.gather(*starting, return_exceptions=True)
        await asyncio.gather(*(fork.close() for fork in started if not isinstance(fork, BaseException)))
        raise
    return list(forks)

"""Sandboxes ready to hand out: started ahead, used once, closed always."""

import asyncio
import logging
import os
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

from sandboxrl.data.errors import InputError, nearest
from sandboxrl.data.plugin import plugged
from sandboxrl.envs.sandbox.bubblewrap import Bubblewrap
from sandboxrl.envs.sandbox.docker import Docker
from sandboxrl.envs.sandbox.host.lease import raise_open_files
from sandboxrl.envs.sandbox.own import opened, wrong_shape
from sandboxrl.envs.sandbox.protocol import NETWORKS, Backend, Sandbox, SandboxConfig, SandboxError

_log = logging.getLogger(__name__)


BACKENDS: Mapping[str, Callable[[SandboxConfig], Backend]] = {"bubblewrap": Bubblewrap, "docker": Docker}


def find_backend(value: str) -> Callable[[SandboxConfig], Backend]:
    """What makes the backend of that name, or a user's own. Raises InputError."""
    return plugged(value, BACKENDS, "sandbox.backend", wrong_shape)


def open_backend(config: SandboxConfig) -> Backend:
    """The backend that `config` names. Raises BackendUnavailable with the command that fixes it, InputError; never
    another backend."""
    if config.network not in NETWORKS:
        raise InputError(f"sandbox.network={config.network!r}{nearest(config.network, NETWORKS)}")
    make = find_backend(config.backend)
    raise_open_files()
    if config.backend not in BACKENDS:
        return opened(make, config)
    if config.options:
        raise InputError(f"sandbox.options: {config.backend} has none; they are for a backend of your own")
    return make(config)


class Pool:
    """Keeps `warm` started sandboxes of the backend's own image. Each is handed out once and never reused.

    At most `parallel_starts` sandboxes start at the same time (0: twice the number of cores; more only queues inside
    the kernel or the daemon). A start that fails is reported to whoever waits for a sandbox; with nobody waiting it is
    dropped, and the next demand tries again. The pool closes its backend.
    """

    def __init__(self, backend: Backend, warm: int = 8, parallel_starts: int = 0) -> None:
        self._backend = backend
        self._warm = warm
        self._starts = asyncio.Semaphore(parallel_starts or 2 * (os.cpu_count() or 1))
        self._ready: deque[Sandbox] = deque()
        self._waiters: deque[asyncio.Future[Sandbox]] = deque()
        self._starting = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = True
        self._unclosed: list[Sandbox] = []

    @asynccontextmanager
    async def sandbox(self, image: str = "") -> AsyncIterator[Sandbox]:
        """A fresh sandbox, closed at the end whatever happens. Raises SandboxDied, BackendUnavailable. That closing
        fails is no business of who used it, whose work is done: it is logged, and tried again."""
        if not self._open:
            raise RuntimeError("the pool is closed")
        box = await (self._start(image) if image else self._take())
        try:
            yield box
        finally:
            await self._close(box)

    async def fill(self) -> None:
        """Start warm sandboxes now and wait until they are ready or have failed."""
        self._pump()
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def close(self) -> None:
        """End the sandboxes that nobody took, and the backend. Those handed out are closed by their users; they may end
        here with the backend."""
        self._open = False
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for waiter in self._waiters:
            waiter.cancel()
        boxes = [*self._ready, *self._unclosed]
        self._ready.clear()
        self._unclosed.clear()
        try:
            failures = await asyncio.gather(*(box.close() for box in boxes), return_exceptions=True)
        finally:
            await self._backend.close()
        for failure in failures:
            if isinstance(failure, BaseException):
                raise failure

    async def _close(self, box: Sandbox) -> None:
        for one in (box, *self._unclosed):
            try:
                await one.close()
            except SandboxError as error:
                _log.warning("sandbox %s could not be closed yet: %s", one.id, error)
                if one is box:
                    self._unclosed.append(box)
            else:
                if one in self._unclosed:
                    self._unclosed.remove(one)

    async def _start(self, image: str = "") -> Sandbox:
        async with self._starts:
            return await self._backend.start(image)

    async def _take(self) -> Sandbox:
        while self._ready:
            box = self._ready.popleft()
            if box.alive:
                self._pump()
                return box
            await self._close(box)
        waiter: asyncio.Future[Sandbox] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._pump()
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                await self._close(waiter.result())  # it came while the caller was leaving
            raise

    def _pump(self) -> None:
        """One running start for each waiter and each missing warm sandbox."""
        wanted = len(self._waiters) + max(0, self._warm - len(self._ready))
        while self._open and self._starting < wanted:
            self._starting += 1
            task = asyncio.create_task(self._start_one())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _start_one(self) -> None:
        try:
            box = await self._start()
        except Exception as error:  # handed to the waiter, whose call raises it
            self._starting -= 1
            waiter = self._next_waiter()
            if waiter is not None:
                waiter.set_exception(error)
            return
        self._starting -= 1
        waiter = self._next_waiter()
        if waiter is not None:
            waiter.set_result(box)
        elif self._open and len(self._ready) < self._warm:
            self._ready.append(box)
        else:
            await self._close(box)

    def _next_waiter(self) -> "asyncio.Future[Sandbox] | None":
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                return waiter
        return None

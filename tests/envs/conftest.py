"""Runs one test body in a fresh sandbox of each backend: bubblewrap as this user, as an ordinary user, and docker."""

import asyncio
import ctypes
import functools
import os
import pickle
import platform
import subprocess
import traceback
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from sandboxrl.envs.sandbox.pool import open_backend
from sandboxrl.envs.sandbox.protocol import Backend, BackendUnavailable, Sandbox, SandboxConfig

DOCKER_IMAGE = os.environ.get("SANDBOXRL_TEST_IMAGE", "sandboxrl/base:local")
DOCKER_SOCKET = os.environ.get("SANDBOXRL_TEST_SOCKET", SandboxConfig().socket)
DOCKER_RUNTIME = os.environ.get("SANDBOXRL_TEST_RUNTIME", "")
"""So the same tests run over Podman, or over another runtime."""
ORDINARY_UID = 23456
SYSTEM_CALLS = {"x86_64": (116, 119, 117), "aarch64": (159, 149, 147)}
"""Of setgroups, setresgid and setresuid."""
KEPT = 3
"""Backends of one machine at most, beside those that a test opens itself."""
Body = Callable[..., Awaitable[Any]]

BACKENDS = [
    pytest.param("bubblewrap"),
    pytest.param("bubblewrap as an ordinary user"),
    pytest.param("docker", marks=pytest.mark.docker),
]


def docker_config(**changes: Any) -> SandboxConfig:
    """The docker backend that is tested."""
    found = {"backend": "docker", "image": DOCKER_IMAGE, "socket": DOCKER_SOCKET, "runtime": DOCKER_RUNTIME}
    return SandboxConfig(**(found | changes))


class Machine:
    """One way to start sandboxes in tests."""

    def __init__(self, name: str, keeper: "Keeper") -> None:
        self.name = name
        self.backend = name.split()[0]
        self.drops = name.endswith("user")
        self._keeper = keeper

    def config(self, **changes: Any) -> SandboxConfig:
        return docker_config(backend=self.backend, **changes)

    def run(self, body: Body, boxes: int = 1, kept: bool = True, **changes: Any) -> Any:
        """`body` with fresh sandboxes, which are closed afterwards; see `run_with_backend` for `kept`."""

        async def with_boxes(backend: Backend) -> Any:
            started: list[Sandbox] = []
            try:
                for _ in range(boxes):
                    started.append(await backend.start())
                return await body(*started)
            finally:
                for box in started:
                    await box.close()

        return self.run_with_backend(with_boxes, kept, **changes)

    def run_with_backend(self, body: Body, kept: bool = False, **changes: Any) -> Any:
        """`body` with a backend that is opened for it and closed afterwards; `kept`: with one that other tests use too,
        unless it does more than start sandboxes (`network`, `rootfs`)."""
        if kept and changes.keys() <= {"limits"}:
            return self._keeper.run(body, self.config(**changes))

        async def whole() -> Any:
            backend = open_backend(self.config(**changes))
            try:
                return await body(backend)
            finally:
                await backend.close()

        return self.call(lambda: asyncio.run(whole()))

    def call(self, function: Callable[[], Any]) -> Any:
        """`function()`, as an ordinary user where that is what is tested."""
        return as_ordinary_user(function) if self.drops else function()


class Keeper:
    """Keeps the backends opened last, for the next tests. They live in a thread, which may be another user's."""

    def __init__(self, ordinary: bool) -> None:
        self._ordinary = ordinary
        self._opened: OrderedDict[str, Backend] = OrderedDict()
        self._loop = asyncio.new_event_loop()
        self._thread = ThreadPoolExecutor(1, initializer=become_ordinary if ordinary else None)

    def run(self, body: Body, config: SandboxConfig) -> Any:
        """`body` with the backend of `config`. One under which a test failed is not used again."""
        return self._thread.submit(lambda: self._loop.run_until_complete(self._run(body, config))).result()

    def close(self) -> None:
        self._thread.submit(lambda: self._loop.run_until_complete(self._forget(0))).result()
        self._thread.shutdown()
        self._loop.close()

    async def _run(self, body: Body, config: SandboxConfig) -> Any:
        key = repr(config)
        if key not in self._opened:
            await self._forget(KEPT - 1)
            self._opened[key] = open_backend(config)
        self._opened.move_to_end(key)
        try:
            return await body(self._opened[key])
        except BaseException:
            await self._opened.pop(key).close()
            raise

    async def _forget(self, left: int) -> None:
        while len(self._opened) > left:
            _, oldest = self._opened.popitem(last=False)
            await oldest.close()


def become_ordinary() -> None:
    """Make this thread, and no other, an ordinary user's. The library's own calls would change every thread."""
    libc = ctypes.CDLL(None, use_errno=True)
    uid = ORDINARY_UID
    for number, arguments in zip(SYSTEM_CALLS[platform.machine()], ((0, None), (uid,) * 3, (uid,) * 3), strict=True):
        if libc.syscall(number, *arguments) != 0:
            raise OSError(ctypes.get_errno(), "cannot become an ordinary user")
    libc.prctl(4, 1, 0, 0, 0)  # dumpable again, as a process of that user is


def as_ordinary_user(function: Callable[[], Any]) -> Any:
    """`function()` in a forked child that is not root; its result or its failure comes back."""

    def dropped() -> Any:
        os.setgroups([])
        os.setresgid(ORDINARY_UID, ORDINARY_UID, ORDINARY_UID)
        os.setresuid(ORDINARY_UID, ORDINARY_UID, ORDINARY_UID)
        ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # dumpable again, as a process of that user is
        return function()

    return in_a_child(dropped)


def in_a_network_of_its_own(function: Callable[[], Any]) -> Any:
    """`function()` in a forked child where no interface, no filter rule and nothing of Docker is."""

    def alone() -> Any:
        if ctypes.CDLL(None).unshare(0x40000000) != 0:
            raise PermissionError("unshare")
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        return function()

    return in_a_child(alone)


def in_a_child(function: Callable[[], Any]) -> Any:
    """`function()` in a forked child; its result or its failure comes back."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            result: tuple[bool, Any] = (True, function())
        except BaseException:
            result = (False, traceback.format_exc())
        with os.fdopen(writer, "wb") as file:
            file.write(pickle.dumps(result))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        data = file.read()
    os.waitpid(child, 0)
    done, value = pickle.loads(data) if data else (False, "the child ended without a result")
    if not done:
        pytest.fail(value, pytrace=False)
    return value


@functools.cache
def why_not(backend: str) -> str:
    """Why this machine cannot run the backend, or nothing."""

    async def try_one() -> None:
        opened = open_backend(docker_config(backend=backend))
        try:
            await (await opened.start()).close()
        finally:
            await opened.close()

    try:
        asyncio.run(try_one())
    except BackendUnavailable as error:
        return str(error)
    return ""


@pytest.fixture(scope="session")
def keepers() -> Iterator[Callable[[bool], Keeper]]:
    """The keeper of this user and that of an ordinary one, made when first asked for."""
    made: dict[bool, Keeper] = {}

    def keeper(ordinary: bool) -> Keeper:
        if ordinary not in made:
            made[ordinary] = Keeper(ordinary)
        return made[ordinary]

    yield keeper
    for one in made.values():
        one.close()


@pytest.fixture(params=BACKENDS)
def machine(request: pytest.FixtureRequest, keepers: Callable[[bool], Keeper]) -> Machine:
    chosen = Machine(request.param, keepers(request.param.endswith("user")))
    if chosen.drops and os.getuid() != 0:
        pytest.skip("this user is an ordinary one already")
    if why_not(chosen.backend):
        pytest.skip(why_not(chosen.backend))
    return chosen

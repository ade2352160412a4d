"""Sandboxes on other nodes of a Ray cluster, so that GPU nodes and sandbox nodes can differ.

A node offers sandboxes by a custom resource: `ray start … --resources '{"sandboxes": 64}'` allows 64 at a time. Each
such node gets one `SandboxHost` actor per run; `RemoteBackend` spreads sandboxes over them, used like any backend:

    pool = Pool(RemoteBackend.open(config), warm=8)

Two channels: calls travel through Ray; the lease is a TCP connection from the user's process to the host. When that
process ends, however it ends, the kernel closes the connection and the host ends its sandboxes at once.
"""

import asyncio
import contextlib
import secrets
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sandboxrl.envs.sandbox.host import lease
from sandboxrl.envs.sandbox.pool import open_backend
from sandboxrl.envs.sandbox.protocol import (
    BackendUnavailable,
    Sandbox,
    SandboxConfig,
    SandboxDied,
    SandboxError,
    Snapshots,
)
from sandboxrl.rl.cluster.connect import end_with_raylet
from sandboxrl.rl.cluster.remote_box import HOST_LOST, RemoteBox, answered

RESOURCE = "sandboxes"
SHARE = 0.001
"""Of a node's resource, held by the actor itself: many runs may share a node."""
CONCURRENT_CALLS = 4096
KEEPALIVE_S = 10
LEASE_S = 30.0


class SandboxHost:
    """Ray actor: starts sandboxes on its node and passes calls on to them. At most `capacity` live at a time."""

    def __init__(self, config: SandboxConfig, capacity: int) -> None:
        end_with_raylet()
        self._backend = open_backend(config)
        self._room = asyncio.Semaphore(capacity)
        self._forking = asyncio.Lock()
        self._boxes: dict[str, dict[str, Sandbox]] = {}
        self._server: asyncio.Server | None = None

    async def lease_address(self) -> tuple[str, int]:
        """Where users hold their lease: (address, port)."""
        if self._server is None:
            self._server = await asyncio.start_server(self._hold_lease, ray.util.get_node_ip_address(), 0)
        return ray.util.get_node_ip_address(), self._server.sockets[0].getsockname()[1]

    async def start(self, holder: str, image: str) -> Any:
        """The id of a new sandbox of `holder`, or the SandboxError that prevented it."""
        if holder not in self._boxes:
            return SandboxDied("no lease: its connection is gone")
        await self._room.acquire()
        try:
            box = await self._backend.start(image)
        except SandboxError as error:
            self._room.release()
            return _plain(error)
        if holder not in self._boxes:  # its user died meanwhile
            await self._end(box)
            return SandboxDied("no lease: its connection is gone")
        self._boxes[holder][box.id] = box
        return box.id

    async def call(self, holder: str, identity: str, method: str, arguments: dict[str, Any]) -> Any:
        """The result of a sandbox's method, or the SandboxError it raised. Errors are values: Ray would wrap them."""
        box = self._boxes.get(holder, {}).get(identity)
        if box is None:
            return SandboxDied(f"sandbox {identity} is not here any more")
        if not hasattr(box, method):
            return BackendUnavailable(f"{type(box).__name__}, on another node, has no `{method}`")
        try:
            return await getattr(box, method)(**arguments)
        except SandboxError as error:
            return _plain(error)

    async def snapshot(self, holder: str, identity: str, folders: Sequence[str], max_bytes: int) -> Any:
        """(folders, records) of a snapshot, or the SandboxError that prevented it."""
        box = self._boxes.get(holder, {}).get(identity)
        if not isinstance(box, Snapshots):
            return SandboxDied(f"sandbox {identity} is not here any more, or has no snapshots")
        try:
            with await box.snapshot(folders, max_bytes) as saved:
                return saved.folders, saved.data()
        except SandboxError as error:
            return _plain(error)

    async def fork(self, holder: str, identity: str, num_forks: int) -> Any:
        """The ids of forks, here like the sandbox itself, or the SandboxError that prevented them."""
        box = self._boxes.get(holder, {}).get(identity)
        if not isinstance(box, Snapshots):
            return SandboxDied(f"sandbox {identity} is not here any more, or cannot be forked")
        async with self._forking:  # else two might wait for each other's room
            for _ in range(num_forks):
                await self._room.acquire()
        try:
            forks = await box.fork(num_forks)
        except BaseException as error:
            for _ in range(num_forks):
                self._room.release()
            if isinstance(error, SandboxError):
                return _plain(error)
            raise
        if holder not in self._boxes:  # its user died meanwhile
            await asyncio.gather(*(self._end(fork) for fork in forks))
            return SandboxDied("no lease: its connection is gone")
        self._boxes[holder] |= {fork.id: fork for fork in forks}
        return [fork.id for fork in forks]

    async def close_box(self, holder: str, identity: str) -> None:
        box = self._boxes.get(holder, {}).pop(identity, None)
        if box is not None:
            await self._end(box)

    async def count(self) -> int:
        """Live sandboxes of all holders."""
        return sum(map(len, self._boxes.values()))

    async def _end(self, box: Sandbox) -> None:
        try:
            await box.close()
        finally:
            self._room.release()

    async def _hold_lease(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _keep_alive(writer)
        holder = ""
        try:
            holder = (await reader.readline()).decode("ascii", "replace").strip()
            self._boxes.setdefault(holder, {})
            writer.write(b"held\n")
            await reader.read()  # until the user's process ends
        except OSError:
            pass  # its node is gone: the lease ends all the same
        finally:
            writer.close()
            boxes = self._boxes.pop(holder, {})
            await asyncio.gather(*(self._end(box) for box in boxes.values()))


def _plain(error: SandboxError) -> SandboxError:
    """An error that travels: of the classes of `sandboxrl.envs.sandbox.protocol`, without a cause."""
    return SandboxDied(str(error)) if isinstance(error, SandboxDied) else error


def _keep_alive(writer: asyncio.StreamWriter) -> None:
    """Notice within a minute that the other machine is gone without a word."""
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)


@dataclass
class _Host:
    """A sandbox host as its user sees it."""

    number: int
    actor: Any
    holder: str = ""
    """The name of the lease; a fresh one for each connection, as what an old one held has ended with it."""
    watch: "asyncio.Task[None] | None" = None
    leasing: asyncio.Lock = field(default_factory=asyncio.Lock)
    failures: int = 0
    """Of its last leases in a row: a host that cannot be reached is asked last."""


class RemoteBackend:
    """A backend over every node that offers sandboxes. Made by `open`; it belongs to the event loop it starts in."""

    name = "remote"

    def __init__(self, hosts: list[Any]) -> None:
        self._hosts = hosts
        self._known = [_Host(number, actor) for number, actor in enumerate(hosts)]
        self._held = dict.fromkeys(range(len(hosts)), 0)
        """By host: the sandboxes that were asked for and not given back."""
        self._leases: dict[int, asyncio.StreamWriter] = {}
        """By host, those that hold."""
        self._abandoned: set[asyncio.Task[None]] = set()

    @property
    def held(self) -> int:
        """Sandboxes that were asked for and not given back."""
        return sum(self._held.values())

    @staticmethod
    def open(config: SandboxConfig, resource: str = RESOURCE) -> "RemoteBackend":
        """One host actor on each node that offers `resource`. Raises BackendUnavailable when none does."""
        actor = ray.remote(SandboxHost)
        hosts = []
        for node in ray.nodes():
            capacity = int(node["Resources"].get(resource, 0)) if node["Alive"] else 0
            if capacity:
                here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                options = {"resources": {resource: SHARE}, "num_cpus": 0, "max_concurrency": CONCURRENT_CALLS}
                options["max_restarts"] = -1  # a host that is killed comes back; that of a lost node does not
                hosts.append(actor.options(scheduling_strategy=here, **options).remote(config, capacity))
        if not hosts:
            raise BackendUnavailable(
                f"no node of the Ray cluster offers sandboxes; start one with: ray start --address=… --resources "
                f"'{{\"{resource}\": 64}}'"
            )
        return RemoteBackend(hosts)

    async def start(self, image: str = "") -> RemoteBox:
        """A ready sandbox on the host that holds the fewest of ours. Raises BackendUnavailable, SandboxDied."""
        if not self._known:
            raise SandboxDied("every sandbox host of the cluster is gone")
        host = min(self._known, key=lambda host: (host.failures, self._held[host.number]))
        holder = await self._lease(host)
        gone = self._count(host)
        starting = asyncio.ensure_future(answered(host.actor.start.remote(holder, image)))
        try:
            answer = await asyncio.shield(starting)
        except HOST_LOST as error:
            gone()
            self._drop(host, error)  # the others go on
            raise SandboxDied(f"a sandbox host is gone: {error}") from error
        except asyncio.CancelledError:
            self._abandon(host, holder, starting, gone)
            raise
        if isinstance(answer, SandboxError):
            gone()
            raise answer
        return self._box(host, holder, answer, gone)

    async def close(self) -> None:
        """Give up the leases, which ends every sandbox of this backend, and the hosts."""
        for host in self._known:
            if host.watch is not None:
                host.watch.cancel()
        for number in list(self._leases):
            self._end_lease(number)
        for task in self._abandoned:
            task.cancel()
        for actor in self._hosts:
            with contextlib.suppress(*HOST_LOST):
                ray.kill(actor)

    def _count(self, host: _Host) -> Callable[[], None]:
        """One sandbox more on a host, until what comes back is called."""
        self._held[host.number] += 1
        given_back = False

        def gone() -> None:
            nonlocal given_back
            self._held[host.number] -= not given_back
            given_back = True

        return gone

    def _box(self, host: _Host, holder: str, identity: str, gone: Callable[[], None]) -> RemoteBox:
        def beside(identity: str) -> RemoteBox:
            return self._box(host, holder, identity, self._count(host))

        return RemoteBox(host.actor, holder, identity, gone, beside)

    def _abandon(self, host: _Host, holder: str, starting: "asyncio.Future[Any]", gone: Callable[[], None]) -> None:
        """Nobody waits for this start any more: what comes of it is ended."""

        async def end() -> None:
            try:
                answer = await starting
                if not isinstance(answer, SandboxError):
                    await host.actor.close_box.remote(holder, answer)
            except HOST_LOST as error:
                self._drop(host, error)
            finally:
                gone()

        task = asyncio.create_task(end())
        self._abandoned.add(task)
        task.add_done_callback(self._abandoned.discard)

    def _drop(self, host: _Host, error: RayError) -> None:
        """Never ask a host again whose node is lost. One that Ray is starting anew is asked last."""
        if isinstance(error, ActorUnavailableError):
            host.failures += 1
        elif host in self._known:
            self._known.remove(host)

    async def _lease(self, host: _Host) -> str:
        """The name of a lease that holds, taken anew where the last one broke. Raises SandboxDied."""
        async with host.leasing:
            if host.number in self._leases:
                return host.holder
            try:
                async with asyncio.timeout(LEASE_S):
                    address, port = await host.actor.lease_address.remote()
                    reader, writer = await asyncio.open_connection(address, port)
                    _keep_alive(writer)
                    holder = secrets.token_hex(16)
                    writer.write(holder.encode() + b"\n")
                    if await reader.readline() != b"held\n":
                        raise ConnectionError("no lease was given")
            except HOST_LOST as error:
                self._drop(host, error)
                raise SandboxDied(f"a sandbox host is gone: {error}") from error
            except (OSError, TimeoutError) as error:
                host.failures += 1
                raise SandboxDied(f"a sandbox host cannot be reached: {error!r}") from error
            host.holder, host.failures = holder, 0
            self._leases[host.number] = writer
            lease.hold(writer.get_extra_info("socket").fileno())
            host.watch = asyncio.create_task(self._watch(host, reader))
            return holder

    async def _watch(self, host: _Host, reader: asyncio.StreamReader) -> None:
        """Notice that a lease has ended, and its sandboxes with it."""
        with contextlib.suppress(OSError):
            await reader.read()
        self._end_lease(host.number)

    def _end_lease(self, number: int) -> None:
        writer = self._leases.pop(number)
        lease.release(writer.get_extra_info("socket").fileno())
        writer.close()

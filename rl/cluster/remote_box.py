"""A sandbox on another node, as its user holds it: calls go to its host actor (`rl/cluster/hosts.py`), errors come back
as values."""

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray.exceptions import ActorUnschedulableError, RayActorError

from sandboxrl.envs.sandbox.protocol import (
    WORKDIR,
    ExecResult,
    FilePart,
    Resources,
    Sandbox,
    SandboxDied,
    SandboxEnded,
    SandboxError,
    ShellResult,
)
from sandboxrl.envs.sandbox.snapshot import MAX_SNAPSHOT, Snapshot

HOST_LOST = (RayActorError, ActorUnschedulableError)
"""A host has ended; or the node is gone where Ray would start it anew."""


class RemoteBox:
    """A sandbox on another node (`sandboxrl.envs.sandbox.protocol.Sandbox`)."""

    def __init__(
        self,
        host: Any,
        holder: str,
        identity: str,
        gone: Callable[[], None],
        beside: "Callable[[str], RemoteBox]",
    ) -> None:
        """`gone` is called at its end; `beside` makes the box of another sandbox of the same host and holder."""
        self.id = identity
        self._host, self._holder, self._gone, self._beside = host, holder, gone, beside
        self._ended = self._closed = False

    @property
    def alive(self) -> bool:
        return not self._ended

    async def exec(
        self,
        command: str,
        timeout_s: float = 120.0,
        cwd: str = WORKDIR,
        env: Mapping[str, str] | None = None,
        max_bytes: int | None = None,
    ) -> ExecResult:
        arguments = {"command": command, "timeout_s": timeout_s, "cwd": cwd, "env": env, "max_bytes": max_bytes}
        result: ExecResult = await self._call("exec", arguments)
        return result

    async def shell(
        self, text: str, timeout_s: float = 120.0, is_input: bool = False, wait_s: float | None = None
    ) -> ShellResult:
        arguments = {"text": text, "timeout_s": timeout_s, "is_input": is_input, "wait_s": wait_s}
        result: ShellResult = await self._call("shell", arguments)
        return result

    async def read(self, path: str, max_bytes: int = 1 << 20) -> bytes:
        data: bytes = await self._call("read", {"path": path, "max_bytes": max_bytes})
        return data

    async def read_part(self, path: str, offset: int, max_bytes: int = 4 << 20) -> FilePart:
        part: FilePart = await self._call("read_part", {"path": path, "offset": offset, "max_bytes": max_bytes})
        return part

    async def write(self, files: Mapping[str, bytes]) -> None:
        await self._call("write", {"files": dict(files)})

    async def pack(self, path: str, cursor: str = "") -> tuple[bytes, str]:
        part: tuple[bytes, str] = await self._call("pack", {"path": path, "cursor": cursor})
        return part

    async def unpack(self, path: str, part: bytes) -> None:
        await self._call("unpack", {"path": path, "part": part})

    async def snapshot(self, folders: Sequence[str] = (), max_bytes: int = MAX_SNAPSHOT) -> Snapshot:
        asked = self._host.snapshot.remote(self._holder, self.id, tuple(folders), max_bytes)
        return Snapshot.of(*await self._answered(asked))

    async def restore(self, snapshot: Snapshot) -> None:
        await self._call("restore", {"snapshot": snapshot})

    async def fork(self, num_forks: int = 1) -> list[Sandbox]:
        asked = asyncio.ensure_future(answered(self._host.fork.remote(self._holder, self.id, num_forks)))
        try:
            identities = await self._answered(asyncio.shield(asked))
        except asyncio.CancelledError:
            asked.add_done_callback(self._discard)
            raise
        return [self._beside(identity) for identity in identities]

    def _discard(self, asked: "asyncio.Future[Any]") -> None:
        """Nobody waits for these forks any more."""
        if not asked.cancelled() and not asked.exception() and isinstance(asked.result(), list):
            for identity in asked.result():
                self._host.close_box.remote(self._holder, identity)

    async def resources(self) -> Resources:
        used: Resources = await self._call("resources", {})
        return used

    async def close(self) -> None:
        if not self._closed:
            self._ended = self._closed = True
            self._gone()
            with contextlib.suppress(*HOST_LOST):  # the host is gone, and its sandboxes with it
                await self._host.close_box.remote(self._holder, self.id)

    async def _call(self, method: str, arguments: dict[str, Any]) -> Any:
        if self._ended:
            raise SandboxDied(f"sandbox {self.id}: it was closed")
        return await self._answered(self._host.call.remote(self._holder, self.id, method, arguments))

    async def _answered(self, asked: Any) -> Any:
        try:
            answer = await asked
        except HOST_LOST as error:
            self._ended = True
            raise SandboxDied(f"sandbox {self.id}: its host is gone: {error}") from error
        if isinstance(answer, SandboxError):
            self._ended = isinstance(answer, SandboxDied | SandboxEnded)
            raise answer
        return answer


async def answered(reference: Any) -> Any:
    """What a call to an actor gives back, as something that can be a task."""
    return await reference

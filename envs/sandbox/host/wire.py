"""The host's side of a sandbox: `Box` speaks the executor's framed protocol (`envs/sandbox/inside/serve.py`) over
one stream.

Both backends hand out a `Box`; they differ only in how they start and end one. Every byte that arrives is a stranger's:
frames are bounded, fields are checked, and anything out of order ends the sandbox. A sandbox that does not answer in
time is ended by the host, whatever happens inside.

Size: one class is one end of one protocol; its calls share the table of answers that are waited for.
"""

import asyncio
import contextlib
import math
import os
import secrets
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from sandboxrl.envs.sandbox.host import lease
from sandboxrl.envs.sandbox.host.forks import forked, put_back, take
from sandboxrl.envs.sandbox.host.messages import (
    BATCH_BYTES,
    Fields,
    completed,
    encoded,
    file_frames,
    result_of,
    shell_result_of,
    wire_path,
)
from sandboxrl.envs.sandbox.inside.frames import FRAME, MAX_HEADER, MAX_PAYLOAD, pack_head, unpack_header
from sandboxrl.envs.sandbox.protocol import (
    WORKDIR,
    BackendUnavailable,
    ExecResult,
    FilePart,
    FileRefused,
    Limits,
    Resources,
    Sandbox,
    SandboxDied,
    SandboxEnded,
    SandboxError,
    ShellResult,
)
from sandboxrl.envs.sandbox.snapshot import MAX_SNAPSHOT, Snapshot

HELLO_S = 30.0
"""A sandbox that has not said it is ready by then never will."""
WATCHDOG_S = 10.0
"""Granted to the executor on top of a command's own time limit."""
FILE_OPERATION_S = 60.0
QUIET_S = 10.0
"""Of a command in the shell that persists, until whoever asked hears that it goes on."""
LARGE_BYTES = 64 << 10
"""A payload from here on is sent as it lies, not copied behind its header first."""
SEND_BUFFER_BYTES = 1 << 20
"""Asked of the kernel for each stream: how much goes to the executor at a time (212,992 if nobody asks)."""
SEND_AGAIN_S = 0.001
SNAPSHOT_S = 120.0


def new_id() -> str:
    """A name for a sandbox that no other sandbox of any run has."""
    return secrets.token_hex(8)


def executor_limits(limits: Limits, watch_memory: bool) -> dict[str, int]:
    """Bounds that the executor sets for itself and what it runs; `watch_memory` where no control group limits it."""
    bounds = {
        "processes": limits.processes,
        "open_files": limits.open_files,
        "file_bytes": limits.file_bytes,
        "core_bytes": 0,
    }
    if watch_memory:
        bounds["memory_bytes"] = limits.memory_bytes
    return bounds


@dataclass(frozen=True)
class Symptoms:
    """What is known, at its end, of a sandbox that nobody closed."""

    why: str
    farewell: str
    """What its PID 1 said when it gave up; empty when it ended without a word."""


Inquest = Callable[[Symptoms], Awaitable[str]]
"""Asks a backend whether a sandbox alone came to its end: how, or empty when the machine had a part in it."""


@dataclass(frozen=True)
class Kin:
    """What a backend knows of a sandbox that its forks need."""

    folders: tuple[str, ...]
    """All that can be written in it and is worth keeping."""
    start: Callable[[], Awaitable["Box"]]
    """A fresh one of the same image. Raises SandboxDied."""


class Box:
    """A started sandbox (`envs.sandbox.protocol.Sandbox`) behind a stream. `end` kills it and removes its traces,
    once. `inquest` tells an end that came from within from one that the machine had a part in; without one, every end
    is the machine's."""

    def __init__(
        self,
        identity: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        end: Callable[[], Awaitable[None]],
        output_bytes: int,
        inquest: Inquest | None = None,
        kin: Kin | None = None,
        counted: Callable[[], Resources] | None = None,
    ) -> None:
        self.id = identity
        self._reader, self._writer, self._end = reader, writer, end
        self._inquest, self._kin, self._counted = inquest, kin, counted
        self._last = Resources()
        self._output_bytes = output_bytes
        stream = writer.get_extra_info("socket")
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        self._stream = stream.fileno()
        lease.hold(self._stream)
        self._count = 0
        self._waiting: dict[bytes, asyncio.Future[tuple[Fields, bytes]]] = {}
        self._death: asyncio.Task[SandboxError] | None = None
        self._farewell = ""
        self._receiver: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None

    @property
    def alive(self) -> bool:
        """False once the sandbox is known to have ended."""
        return self._death is None

    @property
    def busy(self) -> bool:
        """Whether a request is in flight."""
        return bool(self._waiting)

    async def hello(self) -> None:
        """Wait until the executor is ready. Raises SandboxDied."""
        try:
            async with asyncio.timeout(HELLO_S):
                fields, _ = await self._frame()
        except (OSError, EOFError, ValueError, TimeoutError) as error:
            raise SandboxDied(f"sandbox {self.id} did not start: {error!r}") from error
        if fields.get(b"ready") != b"1":
            raise SandboxDied(f"sandbox {self.id} did not start: unexpected first frame")
        self._receiver = asyncio.create_task(self._receive())

    async def exec(
        self,
        command: str,
        timeout_s: float = 120.0,
        cwd: str = WORKDIR,
        env: Mapping[str, str] | None = None,
        max_bytes: int | None = None,
    ) -> ExecResult:
        """Run `command` with bash; see `envs.sandbox.protocol.Sandbox`. Raises SandboxDied; ValueError for a
        `timeout_s` that is not a positive number, an `env` that no process could have or `max_bytes` above 32 MiB."""
        if not (timeout_s > 0 and math.isfinite(timeout_s)):
            raise ValueError(f"timeout_s must be a positive number of seconds, not {timeout_s}")
        limit = self._output_bytes if max_bytes is None else max_bytes
        if not 0 <= limit <= MAX_PAYLOAD // 2:
            raise ValueError(f"max_bytes must be between 0 and {MAX_PAYLOAD // 2}, not {limit}")
        fields = {
            b"op": b"exec",
            b"timeout": repr(float(timeout_s)).encode(),
            b"keep": str(limit).encode(),
            b"cwd": wire_path(cwd),
        }
        for name, value in (env or {}).items():
            if not name or "=" in name or "\0" in name + value:
                raise ValueError(f"not an environment variable: {name!r}")
            fields[b"env." + encoded(name)] = encoded(value)
        reply, payload = await self._run(fields, command, timeout_s)
        try:
            return result_of(reply, payload, limit)
        except (KeyError, ValueError) as error:
            raise await self._protocol_error(error) from error

    async def shell(
        self, text: str, timeout_s: float = 120.0, is_input: bool = False, wait_s: float | None = None
    ) -> ShellResult:
        """Run or type `text` in the shell that persists; see `envs.sandbox.protocol.Shells`. Raises FileRefused,
        SandboxDied; ValueError for times that are not positive numbers."""
        for seconds in (timeout_s, 1.0 if wait_s is None else wait_s):
            if not (seconds > 0 and math.isfinite(seconds)):
                raise ValueError(f"timeout_s and wait_s must be positive numbers of seconds, not {seconds}")
        fields = {
            b"op": b"shell",
            b"input": b"%d" % is_input,
            b"timeout": repr(float(timeout_s)).encode(),
            b"quiet": repr(QUIET_S).encode(),
            b"wait": repr(float(wait_s or 0)).encode(),
            b"keep": str(self._output_bytes).encode(),
        }
        reply, payload = await self._run(fields, text, timeout_s)
        await self._check(reply)
        try:
            return shell_result_of(reply, payload, self._output_bytes)
        except (KeyError, ValueError) as error:
            raise await self._protocol_error(error) from error

    async def _run(self, fields: Fields, text: str, timeout_s: float) -> tuple[Fields, bytes]:
        reply, payload = await self._call(fields, encoded(text), timeout_s + WATCHDOG_S)
        if b"machine" in reply:
            self._die(f"this machine is short: {reply[b'machine'].decode(errors='replace')}", closed=True)
            raise await self._end_of_it()
        return reply, payload

    async def read(self, path: str, max_bytes: int = 1 << 20) -> bytes:
        """The bytes of a regular file, at most 64 MiB. Raises FileRefused, SandboxDied."""
        if not 0 <= max_bytes <= MAX_PAYLOAD:
            raise ValueError(f"max_bytes must be between 0 and {MAX_PAYLOAD}, not {max_bytes}")
        fields = {b"op": b"read", b"path": wire_path(path), b"max": b"%d" % max_bytes}
        reply, payload = await self._call(fields, b"", FILE_OPERATION_S)
        await self._check(reply, path)
        if len(payload) > max_bytes:
            raise await self._protocol_error(ValueError("more bytes than asked for"))
        return payload

    async def read_part(self, path: str, offset: int, max_bytes: int = BATCH_BYTES) -> FilePart:
        """A stretch of a regular file; see `envs.sandbox.protocol.Parts`. Raises FileRefused, SandboxDied; ValueError
        for an offset that no file has or more than 64 MiB."""
        if not (0 <= offset < 1 << 62 and 0 <= max_bytes <= MAX_PAYLOAD):
            raise ValueError(f"not a stretch of a file: {max_bytes} bytes from {offset}")
        fields = {b"op": b"read", b"path": wire_path(path), b"max": b"%d" % max_bytes, b"offset": b"%d" % offset}
        reply, payload = await self._call(fields, b"", FILE_OPERATION_S)
        await self._check(reply, path)
        try:
            part = FilePart(payload, int(reply[b"size"]), int(reply[b"mode"], 8))
            if len(payload) > max_bytes or part.size < 0 or not 0 <= part.mode <= 0o777:
                raise ValueError("not a stretch of a file")
        except (KeyError, ValueError) as error:
            raise await self._protocol_error(error) from error
        return part

    async def write(self, files: Mapping[str, bytes]) -> None:
        """Write files in order, making parent folders. Raises FileRefused, SandboxDied."""
        for frame in file_frames(files):
            reply, _ = await self._call({b"op": b"write"}, frame, FILE_OPERATION_S)
            await self._check(reply)

    async def pack(self, path: str, cursor: str = "") -> tuple[bytes, str]:
        """The next part of a folder as data; see `envs.sandbox.protocol.Sandbox`. Raises FileRefused, SandboxDied."""
        fields = {b"op": b"pack", b"path": wire_path(path)} | ({b"session": cursor.encode()} if cursor else {})
        reply, payload = await self._call(fields, b"", FILE_OPERATION_S)
        await self._check(reply, path)
        return payload, reply.get(b"session", b"").decode("ascii", "replace")

    async def unpack(self, path: str, part: bytes) -> None:
        """Make what a part of a folder holds; see `envs.sandbox.protocol.Sandbox`. Raises FileRefused, SandboxDied."""
        reply, _ = await self._call({b"op": b"unpack", b"path": wire_path(path)}, part, FILE_OPERATION_S)
        await self._check(reply)

    async def snapshot(self, folders: Sequence[str] = (), max_bytes: int = MAX_SNAPSHOT) -> Snapshot:
        """See `envs.sandbox.protocol.Snapshots`. Raises FileRefused, SandboxDied."""
        chosen = folders or (self._kin.folders if self._kin else (WORKDIR,))
        try:
            return await take(self._ask, [wire_path(folder) for folder in chosen], max_bytes)
        except (KeyError, ValueError) as error:
            raise await self._protocol_error(error) from error

    async def restore(self, snapshot: Snapshot) -> None:
        """See `envs.sandbox.protocol.Snapshots`. Raises FileRefused, SandboxDied."""
        await put_back(self._ask, [wire_path(folder) for folder in snapshot.folders], snapshot)

    async def fork(self, num_forks: int = 1) -> list[Sandbox]:
        """See `envs.sandbox.protocol.Snapshots`. Raises FileRefused, SandboxDied."""
        if self._kin is None:
            raise BackendUnavailable(f"sandbox {self.id} cannot be forked: nobody can start another like it")
        return await forked(self, self._kin.start, num_forks)

    async def resources(self) -> Resources:
        """See `envs.sandbox.protocol.Measured`. What the kernel did not count, PID 1 may have seen."""
        if self._death:
            await asyncio.wait([self._death])
            return self._last
        known = await self._kernels_count()
        reply, _ = await self._call({b"op": b"resources"}, b"", FILE_OPERATION_S)
        try:
            self._last = completed(known, reply)
        except (ValueError, OverflowError) as error:
            raise await self._protocol_error(error) from error
        return self._last

    async def _kernels_count(self) -> Resources:
        return await asyncio.to_thread(self._counted) if self._counted else Resources()

    async def nuke(self) -> None:
        """End every process in the sandbox, background ones too; the sandbox stays usable."""
        await self._call({b"op": b"nuke"}, b"", FILE_OPERATION_S)

    async def close(self) -> None:
        """End every process and remove every trace. Idempotent, and not interrupted by a cancelled caller. Where that
        failed, the next call tries again. Raises SandboxError."""
        if self._closing is None or (self._closing.done() and self._closing.exception()):
            self._closing = asyncio.create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        self._die("it was closed", closed=True)
        assert self._death is not None
        await asyncio.wait([self._death])  # an inquest looks at what goes below
        if self._receiver is not None:
            self._receiver.cancel()
        if not self._writer.is_closing():
            lease.release(self._stream)
            self._writer.close()
        await self._end()

    def send(self, data: bytes) -> None:
        """These very bytes to the executor, which ends when they are no frames: for tests of what it survives."""
        self._writer.write(data)

    async def _ask(self, fields: Fields, payload: bytes, descriptor: int) -> Fields:
        """Of whole folders, in a memory file."""
        reply, _ = await self._call(fields, payload, SNAPSHOT_S, descriptor)
        await self._check(reply)
        return reply

    async def _call(
        self, fields: Fields, payload: bytes, wait_s: float, descriptor: int | None = None
    ) -> tuple[Fields, bytes]:
        if self._death:
            raise await self._end_of_it()
        self._count += 1
        identity = b"%d" % self._count
        answer: asyncio.Future[tuple[Fields, bytes]] = asyncio.get_running_loop().create_future()
        self._waiting[identity] = answer
        try:
            async with asyncio.timeout(wait_s):
                head = pack_head({b"id": identity, **fields}, len(payload))
                if descriptor is not None:
                    await self._send_with(descriptor, head + payload)
                elif len(payload) < LARGE_BYTES:
                    self._writer.write(head + payload)
                else:
                    self._writer.write(head)
                    self._writer.write(memoryview(payload))
                await self._writer.drain()
                return await answer
        except TimeoutError as error:
            self._die(f"no answer within {wait_s:.0f} s")
            raise await self._end_of_it() from error
        except (OSError, RuntimeError) as error:  # uvloop, Ray's event loop, raises the latter: "the handler is closed"
            self._die(f"it ended ({error!r})")
            raise await self._end_of_it() from error
        finally:
            self._waiting.pop(identity, None)
            if answer.done() and not answer.cancelled():
                answer.exception()  # it may have come while the caller was leaving

    async def _send_with(self, descriptor: int, data: bytes) -> None:
        """A few bytes, and a descriptor beside them. Raises OSError."""
        with socket.socket(fileno=os.dup(self._stream)) as stream:
            while self._writer.transport.get_write_buffer_size():  # of others, whose turn is first
                await asyncio.sleep(SEND_AGAIN_S)
            while True:
                try:
                    sent = socket.send_fds(stream, [data], [descriptor])
                    break
                except BlockingIOError:
                    await asyncio.sleep(SEND_AGAIN_S)
        if sent < len(data):
            self._writer.write(data[sent:])

    async def _receive(self) -> None:
        try:
            while True:
                fields, payload = await self._frame()
                if b"farewell" in fields:
                    self._farewell = fields[b"farewell"].decode("utf-8", "replace")[:500]
                answer = self._waiting.pop(fields.get(b"id", b""), None)
                if answer is not None and not answer.done():
                    answer.set_result((fields, payload))
        except (OSError, EOFError, ValueError) as error:
            self._die(f"it ended ({error!r})")

    async def _frame(self) -> tuple[Fields, bytes]:
        header_size, payload_size = FRAME.unpack(await self._reader.readexactly(FRAME.size))
        if header_size > MAX_HEADER or payload_size > MAX_PAYLOAD:
            raise ValueError("frame too large")
        fields = unpack_header(await self._reader.readexactly(header_size))
        return fields, await self._reader.readexactly(payload_size)

    def _die(self, why: str, closed: bool = False) -> None:
        """From here on every call raises what the end is found to have been; with `closed` that is known already."""
        if self._death is None:
            self._death = asyncio.create_task(self._find_cause(why, closed))
            self._death.add_done_callback(lambda _: self._tell())

    async def _find_cause(self, why: str, closed: bool) -> SandboxError:
        symptoms = Symptoms(why, self._farewell)
        if not closed:
            known = {name: value for name, value in vars(await self._kernels_count()).items() if value is not None}
            self._last = replace(self._last, **known)
        try:
            inside = "" if closed or self._inquest is None else await self._inquest(symptoms)
        except (SandboxError, OSError) as error:
            return SandboxDied(f"sandbox {self.id}: {why}, and {error}")
        if inside:
            return SandboxEnded(f"sandbox {self.id}: {inside}")
        return SandboxDied(f"sandbox {self.id}: {why}")

    def _tell(self) -> None:
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(self._error())
        self._waiting.clear()

    async def _end_of_it(self) -> SandboxError:
        """What to raise; the sandbox is gone by then."""
        assert self._death is not None
        await asyncio.wait([self._death])
        if self._closing is None:
            with contextlib.suppress(SandboxError):  # whoever took the sandbox closes it too, and is told
                await self.close()
        return self._error()

    def _error(self) -> SandboxError:
        assert self._death is not None
        found = self._death.result()
        return type(found)(*found.args)  # each caller's own: they are raised in many places

    async def _check(self, reply: Fields, path: str = "") -> None:
        """Raise what the executor refused. A request it did not understand is not the model's fault."""
        if b"errno" not in reply:
            return
        message = reply.get(b"message", b"").decode("utf-8", "replace")
        if not reply[b"errno"].isdigit() or not int(reply[b"errno"]):
            raise await self._protocol_error(ValueError(message))
        number = int(reply[b"errno"])
        raise FileRefused(number, message, path) if path else FileRefused(number, message)

    async def _protocol_error(self, error: Exception) -> SandboxError:
        self._die(f"protocol error {error!r}")
        return await self._end_of_it()

"""Grading processes: a few, started when needed; one that hangs or dies is killed and replaced."""

import asyncio
import base64
import contextlib
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path
from typing import Any

import sandboxrl
from sandboxrl.envs.grading.protocol import Exhausted, GraderFailed
from sandboxrl.envs.sandbox.protocol import FileRefused, Sandbox

PROGRAM = "sandboxrl.envs.grading.processes.worker"
START_S = 120.0
"""For a grading process to start; it imports for about a second."""
LINE_BYTES = 64 << 20
"""The longest message of a grading process: a file that a user's reward writes or reads."""


class Workers:
    """A few processes of `PROGRAM`. Belongs to one event loop; close it at the end."""

    def __init__(self, limit: int, deadline_s: float, whole_environment: bool = False) -> None:
        """`whole_environment`: for a user's own code, which may need what is in it; a verifier does not."""
        self._whole_environment = whole_environment
        self._deadline_s = deadline_s
        self._slots = asyncio.Semaphore(limit)
        self._idle: list[Process] = []
        self._all: set[Process] = set()

    async def ask(self, request: dict[str, Any], patience: float = 1.0) -> dict[str, Any]:
        """The worker's reply, from a second, fresh process if the first does not answer. `patience`: how many times the
        deadline may pass on the clock; on the processor it is one. Raises Exhausted, GraderFailed."""
        failure, wall_s = "", self._deadline_s * patience
        async with self._slots:
            for _attempt in range(2):
                worker = self._idle.pop() if self._idle else await self._start()
                try:
                    reply = await self._exchange(worker, request | {"deadline_s": self._deadline_s, "wall_s": wall_s})
                except (TimeoutError, OSError, ValueError) as error:
                    failure = f"no answer within {wall_s:g} s" if isinstance(error, TimeoutError) else "it died"
                    await self._end(worker)
                    if worker.returncode == -signal.SIGXCPU:
                        raise Exhausted(f"used {self._deadline_s:g} s of processor time") from None
                    continue
                except BaseException:  # cancelled: its answer would be read as that of the next request
                    await self._end(worker)
                    raise
                self._idle.append(worker)
                if "error" not in reply:
                    return reply
                failure = reply["error"]
        raise GraderFailed(f"grading process ({request['kind']}): {failure}")

    async def run_own(self, request: dict[str, Any], sandbox: Sandbox | None) -> dict[str, Any]:
        """The reply to a request that may use `sandbox` meanwhile; asked once. Raises GraderFailed, SandboxError."""
        whole = request | {
            "deadline_s": self._deadline_s,
            "wall_s": self._deadline_s,
            "has_sandbox": sandbox is not None,
        }
        async with self._slots:
            worker = self._idle.pop() if self._idle else await self._start()
            try:
                async with asyncio.timeout(self._deadline_s):
                    reply = await self._exchange(worker, whole)
                    while "call" in reply:
                        reply = await self._exchange(worker, whole | await _performed(reply, sandbox))
            except (TimeoutError, ValueError, OSError) as error:
                await self._end(worker)
                if worker.returncode == -signal.SIGXCPU:
                    raise Exhausted(f"used {self._deadline_s:g} s of processor time") from None
                late = isinstance(error, TimeoutError)
                raise GraderFailed(
                    f"no score within {self._deadline_s:g} s (grader.deadline_s)" if late else "its process died"
                ) from None
            except BaseException:
                await self._end(worker)
                raise
            self._idle.append(worker)
            return reply

    async def _exchange(self, worker: Process, request: dict[str, Any]) -> dict[str, Any]:
        assert worker.stdin is not None and worker.stdout is not None
        if worker.stdin.is_closing():  # uvloop, Ray's event loop, raises a RuntimeError for a write to it
            raise BrokenPipeError("its process has ended")
        worker.stdin.write((json.dumps(request) + "\n").encode())
        await worker.stdin.drain()
        line = await asyncio.wait_for(worker.stdout.readline(), request["wall_s"])
        if not line:
            await worker.wait()  # it is at its end: how it ended is known in a moment
        reply: dict[str, Any] = json.loads(line)
        return reply

    async def _start(self) -> Process:
        root = str(Path(sandboxrl.__file__).resolve().parents[1])
        keep = ("PATH", "HOME", "LANG", "TMPDIR", "NLTK_DATA", "VIRTUAL_ENV")
        environment = {name: os.environ[name] for name in keep if name in os.environ}
        if self._whole_environment:
            environment = dict(os.environ)
        try:
            worker = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                PROGRAM,
                stdin=PIPE,
                stdout=PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                limit=LINE_BYTES,
                env=environment | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"},
                start_new_session=True,  # a Ctrl-C in the terminal is for the run, which then closes this
            )
        except OSError as error:
            raise GraderFailed(f"the grading process cannot be started: {error}") from error
        self._all.add(worker)
        assert worker.stdout is not None
        ready = b""
        try:
            ready = await asyncio.wait_for(worker.stdout.readline(), START_S)
        except TimeoutError:
            pass
        finally:
            if b"ready" not in ready:
                await self._end(worker)
        if b"ready" not in ready:
            raise GraderFailed(f"the grading process does not start; try `python -m {PROGRAM}`")
        return worker

    async def _end(self, worker: Process) -> None:
        self._all.discard(worker)
        if worker.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                worker.kill()
        await worker.wait()

    async def close(self) -> None:
        self._idle.clear()
        for worker in list(self._all):
            await self._end(worker)


async def _performed(asked: dict[str, Any], sandbox: Sandbox | None) -> dict[str, Any]:
    """One call of a user's reward on the sandbox, and what comes of it."""
    assert sandbox is not None
    arguments = asked["arguments"]
    try:
        match asked["call"]:
            case "exec":
                found = await sandbox.exec(**arguments)
                raw = {
                    "stdout": base64.b64encode(found.stdout).decode(),
                    "stderr": base64.b64encode(found.stderr).decode(),
                }
                return {"result": {**vars(found), **raw}}
            case "read":
                return {"result": base64.b64encode(await sandbox.read(**arguments)).decode()}
            case "write":
                await sandbox.write({path: base64.b64decode(data) for path, data in arguments["files"].items()})
                return {"result": None}
    except FileRefused as error:
        return {"refused": [error.errno, error.strerror, error.filename]}
    raise ValueError(f"no such call: {asked['call']}")

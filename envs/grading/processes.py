"""Grading processes: a few, started when needed; one that hangs or dies is killed and replaced."""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path
from typing import Any

import sandboxrl
from sandboxrl.envs.grading.protocol import Exhausted, GraderFailed

START_S = 120.0
"""For a grading process to start; it imports for about a second."""


class Workers:
    """A few `sandboxrl.envs.grading.worker` processes. Belongs to one event loop; close it at the end."""

    def __init__(self, limit: int, deadline_s: float) -> None:
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

    async def _exchange(self, worker: Process, request: dict[str, Any]) -> dict[str, Any]:
        assert worker.stdin is not None and worker.stdout is not None
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
        try:
            worker = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "sandboxrl.envs.grading.worker",
                stdin=PIPE,
                stdout=PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                limit=1 << 20,
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
            raise GraderFailed("the grading process does not start; try `python -m sandboxrl.envs.grading.worker`")
        return worker

    async def _end(self, worker: Process) -> None:
        self._all.discard(worker)
        if worker.returncode is None:
            worker.kill()
        await worker.wait()

    async def close(self) -> None:
        self._idle.clear()
        for worker in list(self._all):
            await self._end(worker)

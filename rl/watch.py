"""Nothing waits without a deadline: what every part of a run is waiting for, since when, and for how long at most.

    watch = Watch(config, run_dir, say)
    answer = await watch.bounded(work, "learner", "update 12", 600)     raises Stalled, after the stacks are in the log

A run's `status.json` is written anew every `poll_s` seconds; `sandboxrl status RUN` prints it. Stacks of the driver
and of every actor go to the log when a wait is over its limit, when the driver's event loop stands still, and on
SIGUSR1.
"""

import asyncio
import contextlib
import faulthandler
import functools
import io
import itertools
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sandboxrl.data.errors import InputError, described

STATUS = "status.json"
STACKS = "stacks.txt"
"""In a run folder: stacks of the driver's threads, written without its interpreter's help, so also when it hangs."""
LOOP_STANDS_STILL_S = 120.0

T = TypeVar("T")


@dataclass(frozen=True)
class WatchConfig:
    """The `watch:` part of a recipe: how long each part may take before it counts as lost."""

    poll_s: float = 5.0
    """Seconds between two looks at the rollout workers; each writes `status.json`."""
    worker_silent_s: float = 180.0
    """A rollout worker that has answered nothing for so long is replaced."""
    trajectory_grace_s: float = 3600.0
    """What starting the sandbox and grading may take in all, beyond `limits.timeout_s`; then the trajectory is lost."""
    start_s: float = 900.0
    """Starting actors: loading a model may take minutes."""
    update_s: float = 7200.0
    """One update of the learner. Beyond it the learner is lost."""
    publish_s: float = 900.0
    """One publication of weights. A worker that has not taken them by then is replaced."""
    save_s: float = 7200.0
    """Writing or reading a checkpoint."""
    learner_restarts: int = 3
    """How often a lost learner starts again from the last checkpoint before the run stops."""

    def __post_init__(self) -> None:
        for name in ("poll_s", "worker_silent_s", "trajectory_grace_s", "start_s", "update_s", "publish_s", "save_s"):
            if not getattr(self, name) > 0:
                raise InputError(f"watch.{name}: must be above 0, not {getattr(self, name)}")
        if self.learner_restarts < 0:
            raise InputError(f"watch.learner_restarts: must be at least 0, not {self.learner_restarts}")


class Stalled(Exception):
    """A wait was over its limit; the message says who, what and how long."""


@dataclass(frozen=True)
class Wait:
    who: str
    what: str
    since: float
    """`time.monotonic()`."""
    limit_s: float


class Watch:
    """The waits of one run. `say` writes a line to the run's log."""

    def __init__(self, config: WatchConfig, run_dir: Path, say: Callable[[str], None]) -> None:
        self.config, self._run_dir, self._say = config, run_dir, say
        self._waits: dict[int, Wait] = {}
        self._numbers = itertools.count()
        self._dumping = asyncio.Lock()
        self._beat = time.monotonic()
        self.looks: list[Callable[[], Awaitable[dict[str, Any]]]] = []
        """Each adds its part to `status.json`, and acts on what it sees."""
        self.stacks: list[Callable[[], Awaitable[dict[str, str]]]] = []
        """Each gives the stacks of some actors, by name."""

    async def bounded(self, work: Awaitable[T], who: str, what: str, limit_s: float) -> T:
        """The result of `work`, which is cancelled after `limit_s`. Raises Stalled then."""
        task = asyncio.ensure_future(work)
        with self.waiting(who, what, limit_s):
            try:
                await asyncio.wait({task}, timeout=limit_s)
                if task.done():
                    return task.result()
                stalled = f"{who}: {what} has taken more than {limit_s:g} s"
                await self.dump(stalled)
                raise Stalled(stalled)
            finally:
                task.add_done_callback(
                    lambda ended: ended.cancelled() or ended.exception()
                )  # it is told here, or given up
                task.cancel()

    @contextlib.contextmanager
    def waiting(self, who: str, what: str, limit_s: float) -> Iterator[None]:
        """Shown in the status while it lasts; whoever waits keeps to the limit itself."""
        key = next(self._numbers)
        self._waits[key] = Wait(who, what, time.monotonic(), limit_s)
        try:
            yield
        finally:
            del self._waits[key]

    async def dump(self, why: str) -> None:
        """Write what everything waits for, and the stacks of the driver and all actors, to the log."""
        if self._dumping.locked():
            return  # of what is written just now
        async with self._dumping:
            parts = {
                "waits": "\n".join(_line(wait) for wait in self._sorted_waits()) or "none",
                "driver": _own_stacks(),
            }
            for stacks in self.stacks:
                parts |= await stacks()
            self._say(f"stacks ({why})\n" + "\n".join(f"--- {name}\n{text.rstrip()}" for name, text in parts.items()))

    async def run(self) -> None:
        """Look at everything every `poll_s` seconds, until cancelled."""
        told: set[str] = set()
        threading.Thread(target=self._watch_the_loop, name="watch", daemon=True).start()
        while True:
            self._beat = time.monotonic()
            status: dict[str, Any] = {"pid": os.getpid(), "written": time.time(), "monotonic": self._beat}
            for look in self.looks:
                try:
                    status |= await look()
                except Exception as error:  # a mistake in what is shown must not blind the watchdog
                    problem = f"{getattr(look, '__qualname__', look)}: {described(error)}"
                    status["problems"] = [*status.get("problems", []), problem]
                    if problem not in told:
                        told.add(problem)
                        self._say(f"  the watchdog cannot see a part of the run: {problem}")
            status["waits"] = [
                {"who": w.who, "what": w.what, "for_s": round(time.monotonic() - w.since, 1), "limit_s": w.limit_s}
                for w in self._sorted_waits()
            ]
            try:
                _write(self._run_dir / STATUS, status)
            except OSError as error:  # the run itself says so when it cannot go on
                if (problem := described(error)) not in told:
                    told.add(problem)
                    print(f"{STATUS} could not be written: {problem}", file=sys.stderr)
            await asyncio.sleep(self.config.poll_s)

    @contextlib.contextmanager
    def on_signal(self) -> Iterator[None]:
        """SIGUSR1 writes the stacks: those of the driver's threads even while its event loop stands still."""
        loop = asyncio.get_running_loop()
        dumps: set[asyncio.Task[None]] = set()

        def dump() -> None:
            dumps.add(task := asyncio.ensure_future(self.dump("SIGUSR1")))
            task.add_done_callback(dumps.discard)

        loop.add_signal_handler(signal.SIGUSR1, dump)
        with (self._run_dir / STACKS).open("a") as file:
            faulthandler.register(signal.SIGUSR1, file=file, all_threads=True, chain=True)
            try:
                yield
            finally:
                faulthandler.unregister(signal.SIGUSR1)
                loop.remove_signal_handler(signal.SIGUSR1)

    def _watch_the_loop(self) -> None:
        """A thread of its own: the event loop cannot tell of itself that it stands still."""
        told = 0.0
        while threading.main_thread().is_alive():
            time.sleep(1.0)
            beat = self._beat
            if time.monotonic() - beat > LOOP_STANDS_STILL_S + self.config.poll_s and beat != told:
                told = beat
                with (self._run_dir / STACKS).open("a") as file:
                    file.write(f"{time.ctime()}: the driver's event loop stands still\n")
                    file.flush()
                    faulthandler.dump_traceback(file, all_threads=True)

    def _sorted_waits(self) -> list[Wait]:
        return sorted(self._waits.values(), key=lambda wait: wait.since)


def _line(wait: Wait) -> str:
    return f"{wait.who}: {wait.what}, for {time.monotonic() - wait.since:.1f} s of at most {wait.limit_s:g} s"


def _own_stacks() -> str:
    """Of this process: its threads, and where each task of the event loop waits."""
    text = io.StringIO()
    for thread, frame in sys._current_frames().items():
        text.write(f"thread {thread}\n{''.join(traceback.format_stack(frame)[-6:])}")
    for task in asyncio.all_tasks():
        task.print_stack(limit=4, file=text)
    return text.getvalue()


def _write(path: Path, status: dict[str, Any]) -> None:
    """Whole or not at all; not flushed to the disk, it is of use only while the process lives."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(status, indent=1) + "\n")
    partial.replace(path)


# --- the actors' side ----------------------------------------------------------------------------------------------


@functools.cache  # whoever asks again is told of the same file
def answer_with_stacks() -> dict[str, int]:
    """From now on SIGUSR1 writes the stacks of this process's threads into a file in memory, even when its interpreter
    is stuck in a call. Returns what `stacks_of` takes."""
    descriptor = os.memfd_create("stacks")
    faulthandler.register(signal.SIGUSR1, file=descriptor, all_threads=True)
    return {"pid": os.getpid(), "descriptor": descriptor}


def stacks_of(where: dict[str, int], patience_s: float = 2.0) -> str:
    """The stacks of a process on this machine that has called `answer_with_stacks`, or why there are none."""
    pid, file = where["pid"], Path(f"/proc/{where['pid']}/fd/{where['descriptor']}")
    try:
        before = file.stat().st_size
        os.kill(pid, signal.SIGUSR1)
        deadline, size = time.monotonic() + patience_s, before
        while time.monotonic() < deadline:
            time.sleep(0.1)
            size, last = file.stat().st_size, size
            if size == last > before:
                break
        with file.open("rb") as stream:
            stream.seek(before)
            text = stream.read().decode(errors="replace")
        return text or f"no answer; {_state(pid)}"
    except OSError as error:
        return f"process {pid} is gone: {error}"


def _state(pid: int) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((line for line in lines if line.startswith("State:")), "State: unknown")

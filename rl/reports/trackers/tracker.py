"""A tracker is a child process that is told what a run measures. It can neither slow the run nor end it.

    run ── put ──> bounded queue ── thread ──> pipe ──> child (rl/reports/trackers/child.py): a Tracker

The run only puts lines into a queue; a full one drops the line and counts it. Whatever happens to the child (its server
is gone, its folder is full, it hangs, it is killed) stays there: the run says so once and goes on, and at its end waits
at most `patience_s` before it ends the child's process group. When the run is killed the child reads the end of its
pipe and closes what it has.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypedDict

from sandboxrl.data.errors import InputError
from sandboxrl.envs.trajectory import Trajectory

START_S, PATIENCE_S = 10.0, 30.0
"""How long a run waits for a tracker when it starts and when it ends."""
MAX_WAITING = 256
"""Lines in the queue."""
MAX_COMPLETIONS = 64
"""Trajectories of one step or evaluation that a tracker gets."""
MAX_TEXT = 4000
"""Characters of one of their texts."""


class Completion(TypedDict):
    """One trajectory as a row of a tracker's table."""

    step: int
    task: str
    source: str
    reward: float | None
    stop: str
    turns: int
    question: str
    gold: str
    answer: str
    text: str
    """What the policy said, a turn after the other."""


class Tracker(Protocol):
    """What runs in the child. Any call may raise; that loses what it was told, and is reported."""

    def log(self, row: Mapping[str, float]) -> None:
        """The numbers of one step. `step` is among them; a resumed run tells some steps again."""
        ...

    def completions(self, name: str, step: int, rows: Sequence[Completion]) -> None:
        """Trajectories of a step (`name` is `training`) or of an evaluation set."""
        ...

    def finish(self, summary: Mapping[str, Any]) -> None:
        """The run has ended; `summary` is its summary.json, or `{"status": "killed"}` where nothing was told."""
        ...


def completion(step: int, one: Trajectory, question: str, gold: str) -> Completion:
    said = "\n\n".join(turn.text for turn in one.turns)
    return Completion(
        step=step,
        task=one.task_id,
        source=one.source,
        reward=one.reward,
        stop=str(one.stop),
        turns=len(one.turns),
        question=question[:MAX_TEXT],
        gold=gold[:MAX_TEXT],
        answer=one.answer[:MAX_TEXT],
        text=said[:MAX_TEXT],
    )


class Following:
    """The run's side of one tracker. `news` are lines for a person, to be printed by whoever owns the terminal."""

    def __init__(self, kind: str, settings: Mapping[str, Any], folder: Path, start_s: float, patience_s: float) -> None:
        """Start the child; its output goes to `folder/tracker_KIND.log`. Waits at most `start_s` for it to be ready.
        Raises InputError for what the user must change, such as a missing login."""
        self.kind, self._patience_s = kind, patience_s
        self.news: list[str] = []
        self._told = self._dropped = 0
        self._waited = False
        self._answers: queue.Queue[dict[str, Any]] = queue.Queue()
        self._queue: queue.Queue[str | None] = queue.Queue(MAX_WAITING)
        with (folder / f"tracker_{kind}.log").open("ab") as log:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "sandboxrl.rl.reports.trackers.child", kind, json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                text=True,
                encoding="utf-8",
                errors="replace",
            )
        for work in (self._send, self._hear):
            threading.Thread(target=work, name=f"{kind} tracker", daemon=True).start()
        answer = self._answer(start_s)
        self._waited = True
        if answer is None:
            self.news.append(f"{kind} has not started within {start_s:.0f} s; the run goes on, what it is told waits")
        elif refused := answer.get("refused"):
            self._end()
            raise InputError(f"{kind}: {refused}")
        elif told := answer.get("news"):
            self.news.append(f"{kind}: {told}")

    @property
    def pid(self) -> int:
        return self._child.pid

    def log(self, row: Mapping[str, Any]) -> None:
        self._put({"log": {key: value for key, value in row.items() if isinstance(value, int | float)}})

    def completions(self, name: str, step: int, rows: Sequence[Completion]) -> None:
        if rows:
            self._put({"completions": name, "step": step, "rows": list(rows[:MAX_COMPLETIONS])})

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Tell the end and wait for the child, at most `patience_s`."""
        deadline = time.monotonic() + self._patience_s
        for line in (json.dumps({"finish": summary}), None):
            try:
                self._queue.put(line, timeout=max(0.0, deadline - time.monotonic()))
            except queue.Full:
                break
        try:
            code = self._child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.news.append(f"{self.kind} did not end within {self._patience_s:.0f} s and was stopped")
        else:
            if code:
                self.news.append(f"{self.kind} ended with exit code {code}; see tracker_{self.kind}.log")
        self._end()
        lost = self._dropped
        while (answer := self._answer(0.5)) and "lost" in answer:
            lost += answer["lost"]
            if answer["lost"]:
                self.news.append(f"{self.kind}: {answer['error']}")
        if lost:
            self.news.append(f"{self.kind} was not told {lost} of {self._told + self._dropped} records")

    # --- inside ------------------------------------------------------------------------------------------------

    def _put(self, message: Mapping[str, Any]) -> None:
        try:
            self._queue.put_nowait(json.dumps(message))
        except queue.Full:
            self._dropped += 1
            if self._dropped == 1:
                self.news.append(f"{self.kind} is too slow or gone: what it cannot take is left out")
        else:
            self._told += 1

    def _send(self) -> None:
        """Thread: from the queue into the child's pipe, which may block for as long as the child does."""
        assert self._child.stdin is not None
        broken = False
        while (line := self._queue.get()) is not None:
            if broken:
                self._dropped += 1
                continue
            try:
                self._child.stdin.write(line + "\n")
                self._child.stdin.flush()
            except (OSError, ValueError) as error:  # the child has ended, or `_end` has closed the pipe
                broken = True
                self._dropped += 1
                self.news.append(f"{self.kind} has ended ({error}); the run goes on without it")
        try:
            self._child.stdin.close()
        except OSError:  # what was still buffered for a child that has ended
            return

    def _hear(self) -> None:
        """Thread: the child's answers."""
        assert self._child.stdout is not None
        for line in self._child.stdout:
            if not line.startswith('{"'):
                continue  # something a library has printed
            answer = json.loads(line)
            if self._waited and (late := answer.get("refused") or answer.get("news")):
                self.news.append(f"{self.kind}: {late}")
            else:
                self._answers.put(answer)

    def _answer(self, within_s: float) -> dict[str, Any] | None:
        """The next answer; None where none comes in time or the child ends without one."""
        deadline = time.monotonic() + within_s
        while True:
            try:
                return self._answers.get(timeout=0.05)
            except queue.Empty:
                if time.monotonic() > deadline or (self._child.poll() is not None and self._answers.empty()):
                    return None

    def _end(self) -> None:
        """End the child and what it has started: they are a process group of their own."""
        if self._child.poll() is None:
            os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait()


def follow(
    wanted: Mapping[str, Mapping[str, Any]], folder: Path, start_s: float = START_S, patience_s: float = PATIENCE_S
) -> list[Following]:
    """Start a tracker of each kind of `wanted` (kind -> settings of its class). Raises InputError; then none runs."""
    started: list[Following] = []
    try:
        for kind, settings in wanted.items():
            started.append(Following(kind, settings, folder, start_s, patience_s))
    except InputError:
        for one in started:
            one.finish({"status": "not started"})
        raise
    return started

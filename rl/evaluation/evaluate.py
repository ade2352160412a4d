"""Evaluation: many trials of many tasks against one model, appended as they end, resumable at any moment.

    trials ─> sample (sandboxrl.envs.rollout) ─> results.jsonl      one trajectory per line, whole or not there
                     └─ machine fault ─> failures.jsonl   tried again now, and by the next run; never scored

`kill -9` loses what was in flight and nothing else: a started line without its end is cut off at the next start, and a
trial's seed depends on nothing but the trial, so the results are those of an uninterrupted run.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sandboxrl.data.benchmarks import Selection
from sandboxrl.data.errors import InputError
from sandboxrl.data.files import held, read_object, write_whole
from sandboxrl.data.task import Task
from sandboxrl.envs.policy.protocol import Policy
from sandboxrl.envs.rollout import Environment, rollout
from sandboxrl.envs.trajectory import Trajectory, read_trajectories

MAX_QUESTION = 6000
"""Characters of a question that are kept beside its trajectory, for a person who reads it."""
RESULTS, FAILURES, SETTINGS = "results.jsonl", "failures.jsonl", "settings.json"
Key = tuple[str, str, str, int]
"""Benchmark, mode, task id, repeat."""


class EvaluationStopped(Exception):
    """The machine loses one trial after the other; going on would only waste time. Exit code 1."""


@dataclass(frozen=True)
class Trial:
    """One trajectory to be."""

    benchmark: str
    mode: str
    task: Task
    repeat: int
    seed: int
    max_tokens: int

    @property
    def key(self) -> Key:
        return self.benchmark, self.mode, self.task.id, self.repeat

    @property
    def digest(self) -> str:
        """Of the task as it was asked and graded."""
        return hashlib.sha256(self.task.to_json().encode()).hexdigest()[:16]


def plan(
    selections: Iterable[Selection], modes: Sequence[str], repeats: int, seed: int, max_tokens: int = 0
) -> list[Trial]:
    """Every trial: one mode after the other, so that their speeds can be compared, and in a mode every task once before
    any is repeated. `repeats` and `max_tokens` 0: each benchmark's own."""
    trials = []
    for selection in selections:
        one = selection.benchmark
        for mode in (mode for mode in modes if mode in one.modes):
            for repeat in range(repeats or one.repeats):
                for task in selection.tasks:
                    digest = hashlib.sha256(repr((seed, one.name, mode, task.id, repeat)).encode()).digest()
                    number = int.from_bytes(digest[:4], "big") >> 1
                    trials.append(Trial(one.name, mode, task, repeat, number, max_tokens or one.max_tokens))
    return trials


# ----------------------------------------------------------------------------------------------------------- the folder


class ResultFolder:
    """An evaluation folder, held by one process. `done` is what need not be sampled again."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Make the folder or take it up again. Raises InputError if it was made under other settings, or is in use."""
        path.mkdir(parents=True, exist_ok=True)
        self.path = path
        with contextlib.ExitStack() as stack:
            stack.enter_context(held(path, f"{path} is in use by another evaluation; name another --out"))
            self._require_same(settings)
            self.done = {key: row["metadata"]["digest"] for key, row in self._mended()}
            self._held = stack.pop_all()
        self._results = os.open(path / RESULTS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._failures = os.open(path / FAILURES, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def _require_same(self, settings: Mapping[str, Any]) -> None:
        file = self.path / SETTINGS
        wanted = json.loads(json.dumps(settings))
        results = self.path / RESULTS
        if file.exists() and results.exists() and results.stat().st_size:  # a start that was refused holds nothing
            found = read_object(file)
            for key in sorted(found.keys() | wanted.keys()):
                if found.get(key) != wanted.get(key):
                    raise InputError(
                        f"{self.path} was made with {key}={found.get(key)!r}, not {wanted.get(key)!r}; "
                        "name another --out"
                    )
            return
        if results.exists() and results.stat().st_size:
            raise InputError(f"{self.path} holds {RESULTS} but no {SETTINGS}; name another --out")
        write_whole(file, json.dumps(wanted, indent=1, ensure_ascii=False) + "\n")

    def _mended(self) -> Iterator[tuple[Key, dict[str, Any]]]:
        """The results so far; a last line that a kill left unfinished is cut off."""
        file = self.path / RESULTS
        if not file.exists():
            return
        with file.open("rb+") as handle:
            end = 0
            for number, line in enumerate(handle, start=1):
                if not line.endswith(b"\n"):
                    break
                end += len(line)
                try:
                    row = json.loads(line)
                    yield result_key(row), row
                except (ValueError, KeyError, TypeError) as error:
                    raise InputError(f"{file}:{number}: not a result: {error}") from None
            handle.truncate(end)

    def todo(self, trials: Sequence[Trial]) -> list[Trial]:
        """The trials without a result. Raises InputError where a task has changed since its result was made."""
        for trial in trials:
            if self.done.get(trial.key, trial.digest) != trial.digest:
                raise InputError(
                    f"{self.path} holds a result of {'/'.join(map(str, trial.key))} for a different task of that name; "
                    "the rows have changed: name another --out"
                )
        return [trial for trial in trials if trial.key not in self.done]

    def add(self, trial: Trial, trajectory: Trajectory) -> None:
        """Append one result, on disk when this returns."""
        _append(self._results, trajectory.to_dict())
        self.done[trial.key] = trial.digest

    def lost(self, trial: Trial, trajectory: Trajectory, attempt: int) -> None:
        """Note a machine fault."""
        row = dict(zip(("benchmark", "mode", "task_id", "repeat"), trial.key, strict=True))
        told = {"attempt": attempt, "stop": trajectory.stop, "error": trajectory.error, "time_s": time.time()}
        _append(self._failures, row | told)

    def close(self) -> None:
        os.close(self._results)
        os.close(self._failures)
        self._held.close()


def _append(file: int, row: Mapping[str, Any]) -> None:
    data = memoryview(json.dumps(row, ensure_ascii=False).encode("utf-8", errors="replace") + b"\n")
    while data:
        data = data[os.write(file, data) :]
    os.fsync(file)


def result_key(row: Mapping[str, Any]) -> Key:
    return row["metadata"]["benchmark"], row["mode"], row["task_id"], row["metadata"]["repeat"]


def read_results(path: Path) -> list[Trajectory]:
    """Every whole trajectory of an evaluation folder or a `.jsonl` file. Raises InputError."""
    file = path / RESULTS if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"{file}: no such file; name an evaluation folder or a .jsonl file of trajectories")
    return read_trajectories(file)


# --------------------------------------------------------------------------------------------------------- the sampling


class Sampler:
    """Samples trials with policies of one model, in this process. Conversations are spread over the policies."""

    def __init__(self, policies: Sequence[Policy], environment: Environment, keep_tokens: bool = False) -> None:
        """The mode and the token limits of `environment` give way to those of each trial."""
        self._policies, self._load = policies, [0] * len(policies)
        self._environment, self._keep_tokens = environment, keep_tokens

    async def __call__(self, trial: Trial) -> Trajectory:
        shared = self._environment
        per_turn = min(trial.max_tokens, shared.limits.max_tokens_per_turn)
        limits = replace(shared.limits, max_tokens=trial.max_tokens, max_tokens_per_turn=per_turn)
        environment = replace(shared, mode=trial.mode, limits=limits)
        i = self._load.index(min(self._load))
        self._load[i] += 1
        try:
            trajectory = await rollout(trial.task, self._policies[i], environment, trial.seed)
        finally:
            self._load[i] -= 1
        notes = {
            "benchmark": trial.benchmark,
            "repeat": trial.repeat,
            "digest": trial.digest,
            "arm": shared.arm.name,
            "placement": trial.task.placement,
            "question": trial.task.question[:MAX_QUESTION],
            "gold": trial.task.gold if len(trial.task.gold) <= 1000 else "",
        }
        tokens = trajectory.tokens if self._keep_tokens else None
        return replace(trajectory, tokens=tokens, metadata={**trajectory.metadata, **notes})


async def run_trials(
    trials: Sequence[Trial],
    sample: Callable[[Trial], Awaitable[Trajectory]],
    folder: ResultFolder,
    parallel: int = 16,
    attempts: int = 3,
    pause_s: float = 2.0,
    max_lost_in_a_row: int = 32,
    on_end: Callable[[Trial, Trajectory], None] = lambda trial, trajectory: None,
) -> list[Trial]:
    """Sample every trial that has no result yet, `parallel` at a time; the trials that the machine lost are returned.

    A machine fault is noted and tried again `attempts` times in all, after a pause that doubles. Raises
    EvaluationStopped when so many trials in a row were lost, and whatever `sample` raises (then nothing runs on).
    """
    waiting = iter(folder.todo(trials))
    lost: list[Trial] = []
    in_a_row = 0

    async def work() -> None:
        nonlocal in_a_row
        for trial in waiting:
            trajectory = await _attempted(trial, sample, folder, attempts, pause_s)
            on_end(trial, trajectory)
            if not trajectory.stop.machine_fault:
                in_a_row = 0
                continue
            lost.append(trial)
            in_a_row += 1
            if in_a_row >= max_lost_in_a_row:
                raise EvaluationStopped(f"{in_a_row} trials in a row were lost; the last: {trajectory.error}")

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(parallel):
                group.create_task(work())
    except ExceptionGroup as errors:  # the first one says what happened; the rest were cancelled or are the same
        raise errors.exceptions[0] from None
    return lost


async def _attempted(
    trial: Trial, sample: Callable[[Trial], Awaitable[Trajectory]], folder: ResultFolder, attempts: int, pause_s: float
) -> Trajectory:
    for attempt in range(1, attempts + 1):
        trajectory = await sample(trial)
        if not trajectory.stop.machine_fault:
            folder.add(trial, trajectory)
            return trajectory
        folder.lost(trial, trajectory, attempt)
        if attempt < attempts:
            await asyncio.sleep(pause_s * 2 ** (attempt - 1))
    return trajectory

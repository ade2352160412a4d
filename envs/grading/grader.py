"""Grading: a task and an answer to a score, whatever the kind of task needs.

    choice choices rouge exact number   a pure function, here
    math                                math-verify, in a process of its own with a deadline
    ifbench                             the official verifier, loose, in the same kind of process
    tests                               the repository's own tests, in the trajectory's sandbox
    judge_physics judge_equality        a judge model (`sandboxrl.envs.grading.judge`)

A score means the answer was judged. Whenever it could not be, GraderFailed is raised: the machine's fault, never a
zero.
"""

import asyncio
import json
import os
import posixpath
import secrets
import shlex
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import sandboxrl
from sandboxrl.data.errors import InputError, nearest
from sandboxrl.data.task import Task
from sandboxrl.envs.grading.rewards import REWARD_FUNCTIONS, check_gold
from sandboxrl.envs.grading.test_logs import READERS, resolved, without_colours
from sandboxrl.envs.sandbox.protocol import WORKDIR, FileRefused, Sandbox

SCHEMES = ("strict", "reference")
JUDGED = ("judge_physics", "judge_equality")
TEST_OUTPUT_BYTES = 16 << 20
HIDDEN_BYTES = 64 << 20
"""Of the files of a task that are taken out of its sandbox, together."""
HIDE_S = 300.0
START_S = 120.0
"""For a grading process to start; it imports for about a second."""


class GraderFailed(Exception):
    """The grader could not judge an answer. Never a score; the trajectory is dropped, or tried again."""


class Judge(Protocol):
    """What grades by asking a model (`sandboxrl.envs.grading.judge.ModelJudge`)."""

    async def grade(self, task: Task, answer: str) -> float:
        """Raises GraderFailed."""
        ...

    async def close(self) -> None: ...


@dataclass(frozen=True)
class GraderConfig:
    """The `grader:` part of a recipe."""

    scheme: str = "strict"
    """`strict`, or `reference`: the rules of the published RL release, for comparison only."""
    workers: int = 2
    """Processes for mathematics and IFBench."""
    deadline_s: float = 20.0
    """For one answer in such a process."""
    ifbench: str = ""
    """A checkout of allenai/IFBench; empty: the installed package."""


class Grader:
    """Grades answers, many at a time. Belongs to one event loop; close it at the end."""

    def __init__(self, config: GraderConfig | None = None, judge: Judge | None = None) -> None:
        self.config = config or GraderConfig()
        if self.config.scheme not in SCHEMES:
            raise InputError(f"unknown grader scheme {self.config.scheme!r}{nearest(self.config.scheme, SCHEMES)}")
        self._judge = judge
        self._workers = _Workers(self.config.workers, self.config.deadline_s)

    async def check(self, task: Task) -> None:
        """Raises InputError if this grader can never give `task` a score of 1: a gold that does not fit its kind, no
        judge, no IFBench verifier."""
        check_gold(task)
        if task.reward in JUDGED and self._judge is None:
            raise InputError(f"task {task.id} is graded by a judge model and none is configured (--judge)")
        if task.reward == "tests":
            parse_test_gold(task)
        if task.reward == "ifbench":
            try:
                reply = await self._workers.ask({"kind": "ifbench_names", "checkout": self.config.ifbench})
            except GraderFailed as error:
                raise InputError(
                    "IFBench needs its official verifier: install the package of github.com/allenai/IFBench, or "
                    f"name a checkout of it (--ifbench DIR): {error}"
                ) from None
            for name in json.loads(task.gold)["instruction_id_list"]:
                if name not in reply["names"]:
                    raise InputError(f"task {task.id}: the IFBench verifier does not know {name!r}")

    async def grade(
        self, task: Task, answer: str, sandbox: Sandbox | None = None, hidden: Mapping[str, bytes] | None = None
    ) -> float:
        """The score of `answer`, in [0, 1]. `sandbox` is where the answer was made (kind `tests` needs it), `hidden`
        what `hide_tests` took out of it.

        Raises GraderFailed when no judgement could be had, InputError when the task itself cannot be graded.
        """
        if task.reward == "tests":
            return await _run_tests(task, sandbox, hidden or {})
        if not answer.strip():
            return 0.0
        if task.reward in JUDGED:
            if self._judge is None:
                raise InputError(f"task {task.id} is graded by a judge model and none is configured")
            return await self._judge.grade(task, answer)
        if task.reward == "ifbench":
            request = {"kind": "ifbench", "gold": task.gold, "prompt": task.question, "answer": answer}
            return float((await self._workers.ask(request | {"checkout": self.config.ifbench}))["score"])
        if self.config.scheme == "reference":
            return await self._compare({"kind": "reference", "task": task.to_json(), "answer": answer}, task.gold)
        if task.reward == "math":
            return await self._compare({"kind": "math", "gold": task.gold, "answer": answer}, task.gold)
        return REWARD_FUNCTIONS[task.reward](task, answer)

    async def _compare(self, request: dict[str, Any], gold: str) -> float:
        """Math-verify on an answer. An answer that two fresh processes cannot digest, while they digest the gold
        itself, equals nothing: that is the answer's doing (`9^9^9^9`), and math-verify too calls it unequal."""
        try:
            return float((await self._workers.ask(request))["score"])
        except GraderFailed:
            if (await self._workers.ask(request | {"answer": gold}))["score"] != 1.0:
                raise
            return 0.0

    async def close(self) -> None:
        await self._workers.close()
        if self._judge is not None:
            await self._judge.close()


class _Workers:
    """A few `envs.grading.worker` processes, started when needed; one that hangs or dies is killed and replaced."""

    def __init__(self, limit: int, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self._slots = asyncio.Semaphore(limit)
        self._idle: list[Process] = []
        self._all: set[Process] = set()

    async def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The worker's reply, from a second, fresh process if the first does not answer. Raises GraderFailed."""
        failure = ""
        async with self._slots:
            for _attempt in range(2):
                worker = self._idle.pop() if self._idle else await self._start()
                try:
                    reply = await self._exchange(worker, request)
                except (TimeoutError, OSError, ValueError) as error:
                    failure = f"no answer within {self._deadline_s} s" if isinstance(error, TimeoutError) else "it died"
                    await self._end(worker)
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
        worker.stdin.write((json.dumps(request | {"deadline_s": self._deadline_s}) + "\n").encode())
        await worker.stdin.drain()
        reply: dict[str, Any] = json.loads(await asyncio.wait_for(worker.stdout.readline(), self._deadline_s))
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


# -------------------------------------------------------------------------------------------------- repository tests


@dataclass(frozen=True)
class TestGold:
    """The gold of a `tests` task, as JSON in `Task.gold`: either `expected`, or FAIL_TO_PASS and PASS_TO_PASS."""

    __test__ = False  # not a test case, whatever its name looks like to pytest

    command: str
    """Shell script, run in /testbed when the policy has finished. Its output names each test and its status."""
    expected: dict[str, str] | None = None
    """R2E-Gym: test -> status; as many tests as here must be seen, each with this status."""
    FAIL_TO_PASS: tuple[str, ...] = ()
    """SWE-bench: tests that must pass now."""
    PASS_TO_PASS: tuple[str, ...] = ()
    """SWE-bench: tests that must still pass."""
    log: str = "pytest"
    """How the output is written: one of `sandboxrl.envs.grading.test_logs.READERS`."""
    files: dict[str, str] | None = None
    """Path -> text, written just before the command: hidden tests never lie in the sandbox while the policy works."""
    prepare: str = ""
    """Shell script, run in /testbed before the policy's first turn."""
    hidden: tuple[str, ...] = ()
    """Files and folders of the image (absolute) that the policy must not see: taken out before its first turn, put back
    for the command."""
    timeout_s: float = 1800.0


def parse_test_gold(task: Task) -> TestGold:
    """Raises InputError for a gold that is not one."""
    try:
        gold = TestGold(**json.loads(task.gold))
    except (ValueError, TypeError) as error:
        raise InputError(f"task {task.id}: the gold of kind `tests` is not as documented: {error}") from None
    if gold.log not in READERS:
        raise InputError(f"task {task.id}: unknown test log {gold.log!r}{nearest(gold.log, READERS)}")
    if not gold.command or not (gold.expected or gold.FAIL_TO_PASS):
        raise InputError(f"task {task.id}: a `tests` gold needs a command, and expected or FAIL_TO_PASS")
    return gold


async def hide_tests(task: Task, sandbox: Sandbox) -> dict[str, bytes]:
    """Before the policy's first turn: take what `task` is graded by out of the sandbox, and return it for `grade`.

    It is kept on this side, where nothing that the policy does can change it. Raises GraderFailed when the image is not
    as the task says: without its tests nothing could be judged.
    """
    gold = parse_test_gold(task) if task.reward == "tests" else None
    if gold is None or not (gold.prepare or gold.hidden):
        return {}
    where, paths, hidden = task.image or "the sandbox", shlex.join(gold.hidden), {}
    listing = f"find {paths} -type f ! -name '*.pyc' -print0" if paths else ""
    found = await sandbox.exec(
        f"set -e\n(\n{gold.prepare}\n:) >&2\n{listing}", timeout_s=HIDE_S, max_bytes=TEST_OUTPUT_BYTES
    )
    names = found.stdout.decode(errors="surrogateescape").split("\0")[:-1]
    if found.exit_code or found.timed_out or found.stdout_bytes > len(found.stdout) or bool(paths) > bool(names):
        said = " ".join(found.stderr.decode(errors="replace").split())[-300:]
        raise GraderFailed(f"task {task.id}: its tests cannot be hidden in {where}: {said}")
    for name in names:
        hidden[name] = await sandbox.read(name, HIDDEN_BYTES)
        if sum(map(len, hidden.values())) > HIDDEN_BYTES:
            raise GraderFailed(f"task {task.id}: its tests are larger than {HIDDEN_BYTES} bytes")
    if names and (await sandbox.exec(f"rm -rf -- {paths}", timeout_s=HIDE_S)).exit_code:
        raise GraderFailed(f"task {task.id}: its tests cannot be removed from {where}")
    return hidden


async def _run_tests(task: Task, sandbox: Sandbox | None, hidden: Mapping[str, bytes]) -> float:
    if sandbox is None:
        raise InputError(f"task {task.id} is graded by running tests, which needs sandbox mode")
    gold = parse_test_gold(task)
    if gold.hidden and not hidden:
        raise GraderFailed(f"task {task.id}: its tests were not hidden before the first turn")
    files = {**hidden, **{path: text.encode() for path, text in (gold.files or {}).items()}}
    # what the policy left running would see the tests come, and change them; what it put in their place is none of them
    places = shlex.join(posixpath.join(WORKDIR, path) for path in (*gold.hidden, *(gold.files or {})))
    await sandbox.exec(f"kill -KILL -1 2>/dev/null; rm -rf -- {places}", timeout_s=HIDE_S)
    try:
        await sandbox.write(files)
    except FileRefused:  # the policy left something in the way that is not a regular file
        return 0.0
    # Python takes compiled code for current when the source has the same second and length: compile anew, elsewhere
    fresh = {"PYTHONPYCACHEPREFIX": f"/tmp/.tests-{secrets.token_hex(8)}"}
    # the folder: a shell that persists is where the policy went. One stream, in its order: what a script says on
    # standard error (`set -x`) marks what it says on standard output
    command = f"cd {WORKDIR}\nexec 2>&1\n{gold.command}"
    result = await sandbox.exec(command, timeout_s=gold.timeout_s, env=fresh, max_bytes=TEST_OUTPUT_BYTES)
    return 0.0 if result.timed_out else score_tests(gold, result.stdout.decode(errors="replace"))


def score_tests(gold: TestGold, output: str) -> float:
    """1.0 if the tests of `output` went as the gold says, else 0.0."""
    if gold.expected is None:
        return float(resolved(gold.log, gold.command, output, gold.FAIL_TO_PASS, gold.PASS_TO_PASS))
    seen = READERS[gold.log](without_colours(output))
    if not any("::" in name for name in gold.expected):  # R2E-Gym names tests `Class.test`
        seen = {".".join(name.split("::")[1:]) or name: status for name, status in seen.items()}
    wanted = {name.partition(" - ")[0]: status for name, status in gold.expected.items()}
    return float(seen == wanted)

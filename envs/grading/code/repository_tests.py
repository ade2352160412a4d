"""Repository tests: `tests` is 1 if the tests of a repository go as the gold says, run on the policy's work."""

import contextlib
import errno
import json
import posixpath
import secrets
import shlex
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass

from sandboxrl.data.errors import InputError, nearest
from sandboxrl.data.task import Task
from sandboxrl.envs.grading.code.test_logs import READERS, resolved, without_colours
from sandboxrl.envs.grading.code.work import CARRIED_BYTES, STEERING, Work
from sandboxrl.envs.grading.protocol import GraderFailed, Kind, Means, has_gold, no_gold
from sandboxrl.envs.sandbox.protocol import (
    DOCUMENTS,
    WORKDIR,
    FileRefused,
    Sandbox,
    SandboxError,
    end_processes,
)

TEST_OUTPUT_BYTES = 16 << 20
HIDDEN_BYTES = 64 << 20
"""Of the files of a task that are taken out of its sandbox, together."""
HIDE_S = 300.0
PLACES = ("fresh", "same")


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
    """How the output is written: one of `sandboxrl.envs.grading.code.test_logs.READERS`."""
    files: dict[str, str] | None = None
    """Path -> text, written just before the command: hidden tests never lie in the sandbox while the policy works."""
    prepare: str = ""
    """Shell script, run in /testbed before the policy's first turn, and in a fresh sandbox before its work comes."""
    hidden: tuple[str, ...] = ()
    """Files and folders of the image (absolute) that the policy must not see: taken out before its first turn, put back
    for the command."""
    where: str = "fresh"
    """`fresh`: a new sandbox of the same image, into which /testbed is carried as data, so that nothing else that the
    policy did to its machine counts. `same`: where the policy worked, whatever it made of that machine."""
    from_image: tuple[str, ...] = ()
    """With `fresh`: names (`conftest.py`, `*.pth`: at any depth) and paths (`bin/test`: below /testbed) that steer the
    tests and stay the image's, beside `sandboxrl.envs.grading.code.work.STEERING`."""
    from_work: tuple[str, ...] = ()
    """Of that list, what this task does test, for example `pyproject.toml` or `.git/`."""
    timeout_s: float = 1800.0


def parse_test_gold(task: Task) -> TestGold:
    """Raises InputError for a gold that is not one."""
    try:
        gold = TestGold(**json.loads(task.gold))
    except (ValueError, TypeError) as error:
        raise InputError(f"task {task.id}: the gold of kind `tests` is not as documented: {error}") from None
    if gold.log not in READERS:
        raise InputError(f"task {task.id}: unknown test log {gold.log!r}{nearest(gold.log, READERS)}")
    if gold.where not in PLACES:
        raise InputError(f"task {task.id}: unknown place for tests {gold.where!r}{nearest(gold.where, PLACES)}")
    if not gold.command or not (gold.expected or gold.FAIL_TO_PASS):
        raise InputError(f"task {task.id}: a `tests` gold needs a command, and expected or FAIL_TO_PASS")
    return gold


async def hide_tests(task: Task, sandbox: Sandbox) -> dict[str, bytes]:
    """Before the policy's first turn: take what `task` is graded by out of the sandbox, and return it for `grade`.

    It is kept on this side, where nothing that the policy does can change it. Raises GraderFailed when the image is not
    as the task says: without its tests nothing could be judged.
    """
    gold = parse_test_gold(task)
    if not (gold.prepare or gold.hidden):
        return {}
    where, paths, hidden = task.image or "the sandbox", shlex.join(gold.hidden), {}
    listing = f"find {paths} -type f ! -name '*.pyc' -print0" if paths else ""
    found = await sandbox.exec(f"{_prepared(gold)}\n{listing}", timeout_s=HIDE_S, max_bytes=TEST_OUTPUT_BYTES)
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


def _prepared(gold: TestGold) -> str:
    return f"set -e\n(\n{gold.prepare}\n:) >&2"


async def _grade(task: Task, answer: str, means: Means) -> float:
    sandbox, hidden = means.sandbox, means.hidden
    if sandbox is None:
        raise InputError(f"task {task.id} is graded by running tests, which needs sandbox mode")
    gold = parse_test_gold(task)
    if gold.hidden and not hidden:
        raise GraderFailed(f"task {task.id}: its tests were not hidden before the first turn")
    files = {**hidden, **{path: text.encode() for path, text in (gold.files or {}).items()}}
    places = [posixpath.join(WORKDIR, path) for path in (*gold.hidden, *(gold.files or {}))]
    await end_processes(sandbox)  # what the policy left running would see the tests come, or its work go
    if gold.where == "same":
        await sandbox.exec(f"rm -rf -- {shlex.join(places)}", timeout_s=HIDE_S)  # what it put in their place
        return await _run(gold, sandbox, files)
    try:
        return await _grade_carried(task, gold, means, files, places)
    except OSError as error:  # a FileRefused is one, and dealt with there
        raise GraderFailed(f"task {task.id}: its work could not be kept here meanwhile: {error}") from error


async def _grade_carried(
    task: Task, gold: TestGold, means: Means, files: Mapping[str, bytes], places: list[str]
) -> float:
    """In a fresh sandbox. Raises as `Kind.grade`, and OSError where this machine cannot hold the work meanwhile."""
    assert means.sandbox is not None
    if means.fresh is None:
        raise InputError(f"task {task.id} is tested in a fresh sandbox, and this grader has no pool to take it from")
    names = [name for name in (*STEERING, *gold.from_image) if name not in gold.from_work]
    with tempfile.TemporaryFile() as spool:
        work, refused = Work(spool, names, places), None
        try:
            await work.take(means.sandbox)
        except FileRefused as error:
            refused = error
        with contextlib.suppress(SandboxError):  # its pool sees to that again
            await means.sandbox.close()  # its place may be the one that the fresh one waits for
        if refused and refused.errno != errno.EFBIG:
            return 0.0  # there is no folder any more
        async with means.fresh(task.image) as fresh:
            if refused:
                return await _too_large(task, fresh)
            outside = [place for place in places if not place.startswith(f"{WORKDIR}/")]
            ready = f"{_prepared(gold)}\nrm -rf -- {shlex.join(outside)}"
            if (done := await fresh.exec(ready, timeout_s=HIDE_S)).exit_code:
                raise GraderFailed(f"task {task.id}: no fresh sandbox can be prepared: {done.stderr[-300:]!r}")
            documents = task.documents if task.placement == "sandbox" else {}
            try:
                await work.bring(fresh, {f"{DOCUMENTS}/{name}": text.encode() for name, text in documents.items()})
            except FileRefused:  # it fits no sandbox of this kind, or there is something else where a folder must be
                return 0.0
            return await _run(gold, fresh, files)


async def _too_large(task: Task, fresh: Sandbox) -> float:
    """The score of work that is too large to be carried. Raises GraderFailed where the image's own already is."""
    said = (await fresh.exec(f"du -sb {WORKDIR}", timeout_s=HIDE_S)).stdout.split()
    if not said or int(said[0]) > CARRIED_BYTES // 2:
        raise GraderFailed(
            f"task {task.id}: {WORKDIR} of {task.image or 'the sandbox'} is too large to be carried into a fresh "
            f"sandbox ({CARRIED_BYTES >> 20} MiB are allowed); the gold may say `where: same`"
        )
    return 0.0


async def _run(gold: TestGold, sandbox: Sandbox, files: Mapping[str, bytes]) -> float:
    """Write the tests, run them, and read what they print."""
    try:
        await sandbox.write(files)
    except FileRefused:  # the policy left something in the way that is not a regular file
        return 0.0
    # Python takes compiled code for current when the source has the same second and length: compile anew, elsewhere
    clean = {"PYTHONPYCACHEPREFIX": f"/tmp/.tests-{secrets.token_hex(8)}"}
    # the folder: a shell that persists is where the policy went. One stream, in its order: what a script says on
    # standard error (`set -x`) marks what it says on standard output
    command = f"cd {WORKDIR}\nexec 2>&1\n{gold.command}"
    result = await sandbox.exec(command, timeout_s=gold.timeout_s, env=clean, max_bytes=TEST_OUTPUT_BYTES)
    return 0.0 if result.timed_out else score_tests(gold, result.stdout.decode(errors="replace"))


def score_tests(gold: TestGold, output: str) -> float:
    """1.0 if the tests of `output` went as the gold says, else 0.0."""
    if gold.expected is None:
        return float(resolved(gold.log, gold.command, output, gold.FAIL_TO_PASS, gold.PASS_TO_PASS))
    seen = READERS[gold.log](without_colours(output))
    if not any("::" in name for name in gold.expected):  # R2E-Gym names tests `Class.test`
        seen = {".".join(name.split("::")[1:]) or name: status for name, status in seen.items()}
    wanted = {name.partition(" - ")[0]: status for name, status in gold.expected.items()}
    counted = {"PASSED", "FAILED", "ERROR", *wanted.values()}  # the official reader sees no skipped or xfailed test
    return float({name: status for name, status in seen.items() if status in counted} == wanted)


def _check(task: Task) -> None:
    has_gold(task)
    parse_test_gold(task)


TESTS = Kind(
    grade=_grade,
    check=_check,
    gold=no_gold,
    prepare=hide_tests,
    ask="The answer is one line that says what you changed; what counts is the state of the code in /testbed, against "
    "which tests are run.",
    needs="sandbox",
    modes=("sandbox",),
    reads_answer=False,
)

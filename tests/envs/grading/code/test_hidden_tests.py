"""Images that hold their own tests (R2E-Gym's form): the policy cannot find them, and they are whole when it is graded.

The image is a miniature made here: a repository with a fault in /testbed, its tests in /r2e_tests.
"""

import asyncio
import json
import secrets
import subprocess
from pathlib import Path
from typing import Any

import pytest

from sandboxrl.data.formats.r2e_gym import PREPARE
from sandboxrl.data.prompt.arms import load_arm
from sandboxrl.data.sources import load_source
from sandboxrl.data.task import Task
from sandboxrl.envs.grading.code.repository_tests import hide_tests
from sandboxrl.envs.grading.grader import Grader
from sandboxrl.envs.grading.protocol import GraderFailed
from sandboxrl.envs.policy.chat import TokenPolicy
from sandboxrl.envs.policy.scripted import ScriptedEngine, call, turns
from sandboxrl.envs.rollout import Environment, rollout
from sandboxrl.envs.sandbox.pool import Pool, open_backend
from sandboxrl.envs.sandbox.protocol import SandboxConfig
from sandboxrl.envs.tools.tool_set import tool_set
from sandboxrl.envs.trajectory import StopReason, Trajectory
from tests.envs.conftest import DOCKER_IMAGE, why_not
from tests.envs.small_chat import chat_format

FORM = chat_format("small hermes")
MARK = "XYZZY_4711"
CODE = "def add(a, b):\n    return a - b\n"
TESTS = f"""\
import unittest
from code_add import add
class TestAdd(unittest.TestCase):
    def test_two(self): self.assertEqual(add(2, 3), 5)
    def test_none(self): self.assertEqual(add(0, 0), 0)  # {MARK}
"""
RUN = f"""\
# {MARK}; as `pytest -rA` prints it
python3 -m unittest -v r2e_tests.test_1 2>&1 | sed -nE \\
    -e 's,^(test_[a-z]+) \\(r2e_tests.test_1.([A-Za-z]+).* ok$,PASSED r2e_tests/test_1.py::\\2::\\1,p' \\
    -e 's,^(test_[a-z]+) \\(r2e_tests.test_1.([A-Za-z]+).* (FAIL|ERROR)$,FAILED r2e_tests/test_1.py::\\2::\\1,p'
"""
SEARCH = (
    "find / -xdev '(' -name '*r2e*' -o -name 'run_tests*' -o -name '*test_1*' ')' 2>/dev/null; "
    f"grep -rIl '[{MARK[0]}]{MARK[1:]}' / --exclude-dir=proc --exclude-dir=sys 2>/dev/null; "
    f"grep -al '[{MARK[0]}]{MARK[1:]}' /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null; echo done"
)
MEND = "sed -i 's/a - b/a + b/' /testbed/code_add.py"
FORGED = TESTS.replace("add(2, 3), 5", "1, 1")
FAKE_PYTHON = (
    "real=$(readlink -f $(command -v python3)); printf '%s\\n' '#!/bin/sh' "
    "'echo \"test_two (r2e_tests.test_1.TestAdd.test_two) ... ok\"' "
    "'echo \"test_none (r2e_tests.test_1.TestAdd.test_none) ... ok\"' > /tmp/fake; chmod +x /tmp/fake; "
    "rm -f $real; cp /tmp/fake $real; python3 -c 0"
)
"""Passes every test where it runs."""
POLICIES = {
    "fixes it": ([MEND], 1.0),
    "does nothing": ([], 0.0),
    "fixes it wrongly": (["sed -i 's/a - b/5/' /testbed/code_add.py"], 0.0),
    "searches": ([SEARCH], 0.0),
    "brings tests of its own": (
        [
            f"mkdir -p /r2e_tests /testbed/r2e_tests; cat > /r2e_tests/test_1.py <<'END'\n{FORGED}END\n"
            "cp /r2e_tests/test_1.py /testbed/r2e_tests/; "
            "echo 'echo PASSED r2e_tests/test_1.py::TestAdd::test_two' > /testbed/run_tests.sh; mkfifo /r2e_tests/fifo"
        ],
        0.0,
    ),
    "waits for them": (
        [
            "setsid nohup sh -c 'echo waiting > /tmp/waits; while :; do sed -i s/5/-1/ /r2e_tests/test_1.py; done' "
            ">/dev/null 2>&1 & sleep 0.5; cat /tmp/waits"
        ],
        0.0,
    ),
    "replaces python": ([FAKE_PYTHON], 0.0),
    "replaces python and fixes it": ([MEND, FAKE_PYTHON], 1.0),
}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The name of the miniature image; it is removed again."""
    if why_not("docker"):
        pytest.skip(why_not("docker"))
    import docker

    folder = tmp_path_factory.mktemp("image")
    for name, text in {"code_add.py": CODE, "run_tests.sh": RUN, "tests/test_1.py": TESTS}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    (folder / "tests" / "data.bin").write_bytes(bytes(range(256)) * 1000)
    (folder / "Dockerfile").write_text(
        f"FROM {DOCKER_IMAGE}\nLABEL sandboxrl.workdir=layer\nWORKDIR /testbed\n"
        "COPY code_add.py run_tests.sh /testbed/\nCOPY tests /r2e_tests\n"
    )
    client = docker.from_env()
    tag = f"sandboxrl/test-r2e:{secrets.token_hex(4)}"  # another run of these tests may have the same image
    client.images.build(path=str(folder), tag=tag, rm=True)
    try:
        yield tag
    finally:
        client.images.remove(tag)
        client.close()


def r2e_task(folder: Path, image: str, **changes: Any) -> Task:
    """The task of a row in the published form."""
    row = {
        "repo_name": "tiny",
        "docker_image": image,
        "commit_hash": "abc",
        "problem_statement": "[ISSUE]add(2, 3) should be 5.[/ISSUE]",
        "expected_output_json": json.dumps({"TestAdd.test_two": "PASSED", "TestAdd.test_none": "PASSED"}),
        **changes,
    }
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
    return load_source({"source": "swe", "path": str(folder / "rows.jsonl")})[0]


def play(task: Task, *scripts: list[str]) -> list[Trajectory]:
    """A trajectory of `task` for each list of commands."""

    async def run() -> list[Trajectory]:
        pool = Pool(open_backend(SandboxConfig(backend="docker", image=DOCKER_IMAGE)), warm=0)
        grader, tools, arm = Grader(pool=pool), tool_set("paper"), load_arm("paper")
        try:
            played = []
            for commands in scripts:
                said = [*(call(FORM, "bash", command=one) for one in commands), call(FORM, "finish")]
                policy = TokenPolicy(ScriptedEngine(FORM, turns(FORM, said)), FORM)
                played.append(await rollout(task, policy, Environment(arm, tools=tools, pool=pool, grader=grader)))
            return played
        finally:
            await grader.close()
            await pool.close()

    return asyncio.run(run())


@pytest.mark.docker
def test_gold_scores_1_and_a_policy_that_searches_or_forges_scores_0(image: str, tmp_path: Path) -> None:
    found = dict(
        zip(POLICIES, play(r2e_task(tmp_path, image), *(script for script, _ in POLICIES.values())), strict=True)
    )
    assert {name: (one.stop, one.reward) for name, one in found.items()} == {
        name: (StopReason.FINISHED, reward) for name, (_, reward) in POLICIES.items()
    }
    said = found["searches"].turns[0].observations[0].text
    assert "done" in said and not any(word in said for word in ("r2e", "run_tests", "test_1", "/testbed")), said
    assert "waiting" in found["waits for them"].turns[0].observations[0].text


@pytest.mark.docker
def test_where_the_policy_worked_it_can_replace_python(image: str, tmp_path: Path) -> None:
    (played,) = play(r2e_task(tmp_path, image, test_where="same"), [FAKE_PYTHON])
    assert played.reward == 1.0  # which is why a fresh sandbox is the rule


@pytest.mark.docker
def test_the_same_search_finds_what_is_not_hidden(image: str) -> None:
    async def search() -> str:
        backend = open_backend(SandboxConfig(backend="docker", image=DOCKER_IMAGE))
        try:
            box = await backend.start(image)
            try:
                return (await box.exec(SEARCH)).stdout.decode()
            finally:
                await box.close()
        finally:
            await backend.close()

    said = asyncio.run(search())
    assert "/r2e_tests/test_1.py" in said and "/testbed/run_tests.sh" in said and len(said.split()) > 4, said


@pytest.mark.docker
def test_an_image_without_the_tests_is_the_machines_fault(image: str, tmp_path: Path) -> None:
    missing = r2e_task(tmp_path, image, test_command="true", hidden_paths=["/r2e_tests", "/no/such/tests"])
    (played,) = play(missing, [MEND])
    assert played.stop == StopReason.GRADER_FAILED and played.reward is None and not played.turns
    assert "/no/such/tests" in played.error and image in played.error


def gold(**fields: Any) -> Task:
    command = "sh '/testbed/kept/a b.sh'"
    asked = {"command": command, "expected": {"x": "PASSED"}, "where": "same", **fields}
    return Task("t", "swe", "q", json.dumps(asked), "tests")


def test_hidden_files_come_back_as_they_were_and_replace_what_stands_there(machine: Any) -> None:
    kept = {"/testbed/kept/a b.sh": b"cmp -s kept/deep/bytes other && echo PASSED t.py::x\n"}
    kept |= {"/testbed/kept/deep/bytes": bytes(range(256)), "/testbed/one.txt": b""}
    task = gold(hidden=["/testbed/kept", "/testbed/one.txt"], prepare="echo prepared > ready")

    async def body(box: Any) -> None:
        await box.write(kept | {"other": bytes(range(256))})
        hidden = await hide_tests(task, box)
        assert hidden == kept
        assert sorted((await box.exec("find . -type f")).stdout.split()) == [b"./other", b"./ready"]
        grader = Grader()
        assert await grader.grade(task, "", box, hidden) == 1.0
        await box.exec("rm -r kept; mkdir -p kept/a\\ b.sh one.txt; ln -s /etc kept/deep; echo > other")
        assert await grader.grade(task, "", box, hidden) == 0.0
        await box.write({"other": bytes(range(256))})
        assert await grader.grade(task, "", box, hidden) == 1.0
        assert (await box.exec("ls kept/deep")).stdout == b"bytes\n"
        with pytest.raises(GraderFailed, match="not hidden before the first turn"):
            await grader.grade(task, "", box)

    machine.run(body)


@pytest.mark.parametrize(
    "fields",
    [
        {"hidden": ["/testbed/none"]},
        {"prepare": "echo trouble >&2; exit 3"},
        {"prepare": "false\ntrue"},
        {"prepare": "("},
    ],
)
def test_what_cannot_be_hidden_is_never_graded(machine: Any, fields: dict[str, Any]) -> None:
    async def body(box: Any) -> None:
        with pytest.raises(GraderFailed, match="cannot be hidden"):
            await hide_tests(gold(**fields), box)

    machine.run(body)


def git(folder: Path, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    identity = ["-c", "user.name=n", "-c", "user.email=e@x"]
    return subprocess.run(["git", *identity, *words], cwd=folder, capture_output=True, text=True, check=check)


def test_the_history_that_solves_the_task_is_gone_and_the_work_stays(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q", "-b", "main")
    (tmp_path / "code.py").write_text(CODE)
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "fault")
    fault = git(tmp_path, "rev-parse", "HEAD").stdout
    (tmp_path / "test_1.py").write_text(TESTS)
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "fixed")
    git(tmp_path, "tag", "v2")
    blob = git(tmp_path, "rev-parse", "HEAD:test_1.py").stdout.strip()
    git(tmp_path, "checkout", "-q", "--detach", "HEAD~1")
    (tmp_path / "code.py").write_text(CODE + "# as the image has it\n")
    (tmp_path / "built.o").write_text("x")
    assert git(tmp_path, "cat-file", "-p", blob).stdout == TESTS

    subprocess.run(["bash", "-ec", PREPARE], cwd=tmp_path, check=True, capture_output=True)
    assert git(tmp_path, "cat-file", "-p", blob, check=False).returncode != 0
    assert git(tmp_path, "log", "--all", "--format=%H").stdout == fault
    assert git(tmp_path, "tag").stdout == "" and git(tmp_path, "remote").stdout == ""
    assert git(tmp_path, "status", "--short").stdout == " M code.py\n?? built.o\n"
    assert MARK not in git(tmp_path, "log", "--all", "-p", "--reflog").stdout

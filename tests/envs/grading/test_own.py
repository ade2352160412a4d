"""A user's own reward: whatever it does, the outcome is a score or GraderFailed."""

import asyncio
import logging
import time
from pathlib import Path

import pytest

from sandboxrl.data.errors import InputError
from sandboxrl.data.task import Task
from sandboxrl.envs.grading import Grader, GraderConfig, GraderFailed
from sandboxrl.envs.policy.scripted import MemorySandbox

REWARDS = """\
import asyncio, os, time
import beside

def good(task, answer, sandbox):
    return beside.HALF if answer == task.gold else 0

async def reads(task, answer, sandbox):
    await sandbox.write({"/testbed/a.bin": bytes(range(256))})
    return float(await sandbox.read("/testbed/a.bin") == bytes(range(256)))

def raises(task, answer, sandbox):
    raise KeyError("no such thing")

def hangs(task, answer, sandbox):
    time.sleep(600)

async def waits(task, answer, sandbox):
    await asyncio.sleep(600)

def spins(task, answer, sandbox):
    while True:
        pass

def dies(task, answer, sandbox):
    os._exit(3)

def nan(task, answer, sandbox):
    return float("nan")

def two(task, answer, sandbox):
    return 2

def text(task, answer, sandbox):
    return "1"

def nothing(task, answer, sandbox):
    pass

def narrow(task):
    return 1

NUMBER = 7
"""


@pytest.fixture
def rewards(tmp_path: Path) -> Path:
    (tmp_path / "beside.py").write_text("HALF = 0.5\n")
    (tmp_path / "rewards.py").write_text(REWARDS)
    return tmp_path / "rewards.py"


def grade(*named: str, deadline_s: float = 20.0) -> list[object]:
    async def go() -> list[object]:
        grader = Grader(GraderConfig(deadline_s=deadline_s))
        box = MemorySandbox()
        try:
            tasks = [Task("t", "s", "q", "x", name) for name in named]
            return list(await asyncio.gather(*(grader.grade(task, "x", box) for task in tasks), return_exceptions=True))
        finally:
            await grader.close()

    return asyncio.run(go())


def test_a_function_sees_its_neighbours_and_the_sandbox(rewards: Path) -> None:
    assert grade(f"{rewards}:good", f"{rewards}:reads") == [0.5, 1.0]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("raises", "raised KeyError: 'no such thing'"),
        ("dies", "its process died"),
        ("nan", "returned nan, which is no score"),
        ("two", "returned 2, which is no score"),
        ("text", "returned '1', which is no number"),
        ("nothing", "returned None, which is no number"),
    ],
)
def test_trouble_is_typed_and_never_a_zero(
    rewards: Path, name: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        (outcome,) = grade(f"{rewards}:{name}")
    assert isinstance(outcome, GraderFailed) and said in str(outcome) and f"rewards.py:{name}" in str(outcome)
    assert name != "raises" or "Traceback" in caplog.text


def test_what_hangs_ends_at_the_deadline(rewards: Path) -> None:
    before = time.monotonic()
    outcomes = grade(*(f"{rewards}:{name}" for name in ("hangs", "waits", "spins", "good")), deadline_s=4.0)
    assert all(isinstance(outcome, GraderFailed) for outcome in outcomes[:3]) and outcomes[3] == 0.5
    assert time.monotonic() - before < 90


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("rewards.py:narrow", r"must take \(task, answer, sandbox\)"),
        ("rewards.py:NUMBER", "must be a function"),
        ("rewards.py:god", "did you mean 'good'"),
        ("reward.py:good", "no such file"),
        ("no_such_package.rewards:good", "cannot be imported"),
    ],
)
def test_what_is_wrong_with_it_is_one_line_before_anything_starts(rewards: Path, value: str, said: str) -> None:
    value = f"{rewards.parent}/{value}" if ".py:" in value else value
    with pytest.raises(InputError, match=said) as caught:
        Grader(GraderConfig(kinds={"mine": value}))
    assert str(caught.value).startswith("grader.kinds.mine: ") and "\n" not in str(caught.value)


def test_an_unknown_reward_names_the_nearest() -> None:
    with pytest.raises(InputError, match="unknown reward 'roug'; did you mean 'rouge'"):
        Grader().kind(Task("t", "s", "q", "x", "roug"))

"""The grader: deadlines, and that trouble is never a zero."""

import asyncio
import os
import time

import pytest

from sandboxrl.data.errors import InputError
from sandboxrl.data.task import Task
from sandboxrl.envs.grading.grader import Grader, GraderConfig
from sandboxrl.envs.grading.protocol import GraderFailed
from tests.envs.grading.scoring import checked, graded
from tests.processes import children


def task(reward, gold, question="q", **fields):
    return Task("t", "s", question, gold, reward, **fields)


def test_every_kind_that_needs_no_company():
    pairs = [
        (task("choice", "B", options=("x", "y")), "B"),
        (task("math", r"\frac{1}{2}"), r"\boxed{0.5}"),
        (task("math", "588"), r"\boxed{589}"),
        (task("rouge", "a small house"), "a house"),
        (task("number", "7"), "7"),
        (task("math", "1"), " \n"),
    ]
    assert graded(pairs) == [1.0, 1.0, 0.0, pytest.approx(0.8), 1.0, 0.0]


def test_an_answer_that_hangs_math_verify_ends_at_the_deadline_and_harms_no_other():
    bomb = (task("math", "70"), r"\boxed{9^{9^{9^{9}}}}")
    before = time.monotonic()
    scores = graded([bomb, *[(task("math", "x+1"), r"\boxed{1+x}")] * 5], GraderConfig(deadline_s=2, workers=2))
    assert scores == [0.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert time.monotonic() - before < 30


def test_closing_leaves_no_process():
    async def go():
        before = children()
        grader = Grader()
        await grader.grade(task("math", "x"), "x")
        pids = children() - before
        await grader.close()
        return pids

    pids = asyncio.run(go())
    assert pids and not any(os.path.exists(f"/proc/{pid}") for pid in pids)


def test_a_prose_math_gold_is_an_error_and_not_a_score():
    (outcome,) = graded([(task("math", "3 dogs"), "3 cats")])
    assert isinstance(outcome, GraderFailed) and "unrelated prose" in str(outcome)
    with pytest.raises(InputError, match="prose"):
        checked(task("math", "3 dogs"))


def test_the_reference_scheme_is_its_own():
    half = (task("rouge", "1/2"), "0.5")  # there math-verify sees free text before ROUGE-L does
    assert graded([half], GraderConfig(scheme="reference")) == [1.0]
    assert graded([half]) == [0.0]
    with pytest.raises(InputError, match="did you mean 'strict'"):
        Grader(GraderConfig(scheme="strickt"))


def test_a_judged_task_without_a_judge_is_refused():
    with pytest.raises(InputError, match="judge"):
        checked(task("judge_physics", "1"))

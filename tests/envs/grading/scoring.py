"""The score of an answer: by a grader (`graded`), or in this process, for kinds that need neither judge nor sandbox."""

import asyncio
from collections.abc import Sequence

from sandboxrl.data.task import Task
from sandboxrl.envs.grading.answers.mathematics import math_score
from sandboxrl.envs.grading.grader import Grader, GraderConfig
from sandboxrl.envs.grading.kinds import KINDS


def score(task: Task, answer: str) -> float:
    found = KINDS[task.reward].score
    if found is None:
        assert task.reward == "math", task.reward
        return math_score(task.gold, answer) if answer.strip() else 0.0
    return found(task, answer, None)


def check(task: Task) -> None:
    KINDS[task.reward].check(task)


def extract(task: Task, reply: str) -> str:
    return KINDS[task.reward].extract(task, reply)


def graded(pairs: Sequence[tuple[Task, str]], config: GraderConfig | None = None) -> list[float | BaseException]:
    """Scores (or errors) of (task, answer) pairs, by one grader."""

    async def go() -> list[float | BaseException]:
        grader = Grader(config)
        try:
            return await asyncio.gather(*(grader.grade(*pair) for pair in pairs), return_exceptions=True)
        finally:
            await grader.close()

    return asyncio.run(go())


def checked(task: Task, config: GraderConfig | None = None) -> None:
    """Raises what the grader says of a task that it can never score 1."""

    async def go() -> None:
        grader = Grader(config)
        try:
            await grader.check(task)
        finally:
            await grader.close()

    asyncio.run(go())

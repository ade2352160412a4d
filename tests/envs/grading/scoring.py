"""The score of an answer, in this process: for kinds that need neither a judge nor a sandbox."""

from sandboxrl.data.task import Task
from sandboxrl.envs.grading.kinds import KINDS
from sandboxrl.envs.grading.mathematics import math_score


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

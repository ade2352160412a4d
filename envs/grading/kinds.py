"""The grading kinds: one table, by the names that a task's `reward` has."""

from collections.abc import Iterable

from sandboxrl.data.errors import InputError, nearest
from sandboxrl.data.plugin import is_own
from sandboxrl.envs.grading.answers.letters import CHOICE, CHOICES
from sandboxrl.envs.grading.answers.mathematics import MATH
from sandboxrl.envs.grading.answers.numbers import NUMBER
from sandboxrl.envs.grading.answers.structured import JSON, NEAR, NUMBERS, SET
from sandboxrl.envs.grading.answers.text import EXACT, ROUGE
from sandboxrl.envs.grading.code.program import PROGRAM
from sandboxrl.envs.grading.code.repository_tests import TESTS
from sandboxrl.envs.grading.judge import JUDGE_EQUALITY, JUDGE_PHYSICS, JUDGE_RUBRIC
from sandboxrl.envs.grading.own import own_kind
from sandboxrl.envs.grading.processes.ifbench import IFBENCH
from sandboxrl.envs.grading.protocol import Kind

KINDS: dict[str, Kind] = {
    "choice": CHOICE,
    "choices": CHOICES,
    "rouge": ROUGE,
    "exact": EXACT,
    "number": NUMBER,
    "math": MATH,
    "json": JSON,
    "set": SET,
    "numbers": NUMBERS,
    "near": NEAR,
    "program": PROGRAM,
    "tests": TESTS,
    "judge_physics": JUDGE_PHYSICS,
    "judge_equality": JUDGE_EQUALITY,
    "judge_rubric": JUDGE_RUBRIC,
    "ifbench": IFBENCH,
}


def kind_of(reward: str, others: Iterable[str] = ()) -> Kind:
    """The kind of a task's `reward`, which may be the user's own. Raises InputError for a name that is not in the
    table; `others` are names that would be right too."""
    if is_own(reward):
        return own_kind(reward, "reward")
    if reward not in KINDS:
        raise InputError(f"unknown reward {reward!r}{nearest(reward, [*KINDS, *others])} (or file.py:object)")
    return KINDS[reward]

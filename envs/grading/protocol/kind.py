"""A grading kind as one object, and what a kind may use to judge an answer.

A kind knows how a gold is checked, how a score is computed, how an answer is read out of a reply, which answer is right
and which is wrong, and how a prompt asks for it. `sandboxrl.envs.grading.kinds` is the table of those that are here; a
task's `reward` may name one of a user's own. Nothing outside a kind asks which kind it is.
"""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from sandboxrl.data.errors import InputError
from sandboxrl.data.task import Task
from sandboxrl.envs.grading.protocol.replies import free_text
from sandboxrl.envs.sandbox.protocol import Sandbox


class GraderFailed(Exception):
    """The grader could not judge an answer. Never a score; the trajectory is dropped, or tried again."""


class Exhausted(GraderFailed):
    """A grading process used up its processor time on one answer, whatever else the machine was doing."""


@dataclass(frozen=True)
class Rubric:
    """How a judge model is asked about an answer, and how its verdict is read."""

    name: str
    """Part of what a verdict is cached by."""
    prompt: Callable[[Task, str], str]
    """The one message that the judge sees, of a task and an answer."""
    read: Callable[[str], float | None]
    """What a reply decides, in [0, 1]; None if that cannot be said for certain."""


class Judge(Protocol):
    """What grades by asking a model (`sandboxrl.envs.grading.judge.ModelJudge`)."""

    usage: dict[str, int]
    """What judging has cost so far."""

    async def grade(self, task: Task, answer: str, rubric: Rubric) -> float:
        """Raises GraderFailed."""
        ...

    async def close(self) -> None: ...


class Sandboxes(Protocol):
    """Where a fresh sandbox comes from (`sandboxrl.envs.sandbox.pool.Pool`)."""

    def sandbox(self, image: str = "") -> AbstractAsyncContextManager[Sandbox]: ...


@dataclass(frozen=True)
class Means:
    """What a kind may use beside the task and the answer."""

    compute: Callable[..., Awaitable[dict[str, Any]]]
    """Asks a grading process (`envs.grading.processes.workers.Workers.ask`). Raises Exhausted, GraderFailed."""
    compute_own: Callable[[dict[str, Any], Sandbox | None], Awaitable[dict[str, Any]]]
    """Runs a user's own reward in such a process, and gives it the sandbox. Raises GraderFailed."""
    judge: Judge | None = None
    sandbox: Sandbox | None = None
    """Where the answer was made."""
    fresh: Callable[[str], AbstractAsyncContextManager[Sandbox]] | None = None
    """A new sandbox of an image (empty: the usual one); None: there are none here."""
    hidden: Mapping[str, bytes] = field(default_factory=dict)
    """What `Kind.prepare` took out of it."""
    ifbench: str = ""
    """A checkout of allenai/IFBench."""


Score = Callable[[Task, str, Sandbox | None], "float | Awaitable[float]"]
"""`(task, answer, sandbox or None)` -> a score in [0, 1], async or not."""


def has_gold(task: Task) -> None:
    if not task.gold.strip():
        raise InputError(f"task {task.id}: the gold is empty, so nothing can score 1")


def the_gold(task: Task) -> str | None:
    return task.gold


def no_gold(task: Task) -> str | None:
    return None


def no_such_words(task: Task) -> str:
    return "zyzzyva qwxz"


@dataclass(frozen=True)
class Kind:
    """One way to grade. Exactly one of `score` and `grade` is given."""

    score: Score | None = None
    """A pure function of task and answer."""
    grade: Callable[[Task, str, Means], Awaitable[float]] | None = None
    """In the place of `score`, for what needs more: a process with a deadline, a judge, a sandbox. Raises GraderFailed
    where no judgement can be had."""
    check: Callable[[Task], None] = has_gold
    """Raises InputError if no answer could score 1, or if the kind does not suit the gold."""
    ready: Callable[[Task, Means], Awaitable[None]] | None = None
    """Raises InputError if what the kind needs is not there."""
    extract: Callable[[Task, str], str] = free_text
    """LLM mode: the answer inside a final reply, in the form that the same task's answer.txt would have."""
    gold: Callable[[Task], str | None] = the_gold
    """An answer that must score 1; None where the gold describes a check and is not itself an answer."""
    wrong: Callable[[Task], str] = no_such_words
    """An answer that is certainly not right."""
    prepare: Callable[[Task, Sandbox], Awaitable[dict[str, bytes]]] | None = None
    """Before the policy's first turn: takes what it must not see out of its sandbox. `Means.hidden` gives it back."""
    ask: str = "The answer is plain text, as short as a full answer allows."
    """How a prompt asks for the answer where its arm does not say."""
    needs: str = ""
    """`judge`, `sandbox`, or `verifier` (IFBench's official one); empty: nothing."""
    modes: tuple[str, ...] = ("llm", "sandbox")
    reads_answer: bool = True
    """An empty answer scores 0 unasked. False: what counts is the state of the sandbox."""

    def __post_init__(self) -> None:
        if (self.score is None) == (self.grade is None):
            raise InputError("a grading kind has either a `score` or a `grade`")

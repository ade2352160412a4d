"""Grading: a task and an answer to a score, by the kind that the task names (`sandboxrl.envs.grading.kinds`).

A score means the answer was judged. Whenever it could not be, GraderFailed is raised: the machine's fault, never a
zero.
"""

import logging
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

from sandboxrl.data.errors import InputError, nearest
from sandboxrl.data.plugin import is_own
from sandboxrl.data.task import Task
from sandboxrl.envs.grading.answers.mathematics import compared
from sandboxrl.envs.grading.answers.release_rules import RULES
from sandboxrl.envs.grading.judge import endpoint_judge
from sandboxrl.envs.grading.kinds import kind_of
from sandboxrl.envs.grading.own import own_kind
from sandboxrl.envs.grading.processes.workers import Workers
from sandboxrl.envs.grading.protocol import Judge, Kind, Means, Sandboxes
from sandboxrl.envs.sandbox.protocol import Sandbox

_LOG = logging.getLogger(__name__)
SCHEMES = ("strict", "reference")


@dataclass(frozen=True)
class GraderConfig:
    """The `grader:` part of a recipe."""

    CARRIED_OUT: ClassVar = frozenset({"workers", "deadline_s", "ifbench"})
    """Keys that may change when a run goes on; the others are the experiment (`sandboxrl.rl.config`)."""
    scheme: str = "strict"
    """`strict`, or `reference`: the rules of the published RL release, for comparison only."""
    workers: int = 2
    """Processes for mathematics and IFBench, and as many for your own rewards."""
    deadline_s: float = 20.0
    """For one answer in such a process."""
    kinds: dict[str, str] = field(default_factory=dict)
    """Your own kinds by name: `NAME: rewards.py:score`. A name of our table is graded by yours."""
    judge: str = ""
    """The URL of an OpenAI-compatible server whose model judges the `judge_` kinds; empty: none."""
    judge_model: str = ""
    """That server's name for it."""
    judge_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds its key, on every node."""
    judge_cache: str = ""
    """Folder of verdicts, so that the same answer is judged once; empty: none is kept."""
    ifbench: str = ""
    """A checkout of allenai/IFBench; empty: the installed package."""


class Grader:
    """Grades answers, many at a time. Belongs to one event loop; close it at the end."""

    def __init__(
        self, config: GraderConfig | None = None, judge: Judge | None = None, pool: Sandboxes | None = None
    ) -> None:
        """`pool`: where tests get a fresh sandbox; without one they run where the policy worked."""
        self.config = config or GraderConfig()
        if self.config.scheme not in SCHEMES:
            raise InputError(f"unknown grader scheme {self.config.scheme!r}{nearest(self.config.scheme, SCHEMES)}")
        if judge is None and self.config.judge:
            given = (self.config.judge, self.config.judge_model, self.config.judge_key_env, self.config.judge_cache)
            judge = endpoint_judge(*given)
        self._judge = judge
        self._workers = Workers(self.config.workers, self.config.deadline_s)
        self._own_workers = Workers(self.config.workers, self.config.deadline_s, whole_environment=True)
        self._means = Means(self._workers.ask, self._own_workers.run_own, judge, ifbench=self.config.ifbench)
        if pool is not None:
            self._means = replace(self._means, fresh=pool.sandbox)
        self._own = {name: own_kind(value, f"grader.kinds.{name}") for name, value in self.config.kinds.items()}

    def kind(self, task: Task) -> Kind:
        """How `task` is graded. Raises InputError for an unknown reward."""
        if task.reward not in self._own and is_own(task.reward):
            self._own[task.reward] = own_kind(task.reward, f"task {task.id}: reward")
        return self._own.get(task.reward) or kind_of(task.reward, self._own)

    async def check(self, task: Task) -> None:
        """Raises InputError if this grader can never give `task` a score of 1: a gold that does not fit its kind, no
        judge, no IFBench verifier."""
        kind = self.kind(task)
        kind.check(task)
        if kind.ready is not None:
            await kind.ready(task, self._means)

    async def grade(
        self, task: Task, answer: str, sandbox: Sandbox | None = None, hidden: Mapping[str, bytes] | None = None
    ) -> float:
        """The score of `answer`, in [0, 1]. `sandbox` is where the answer was made (kind `tests` needs it), `hidden`
        what `Kind.prepare` took out of it.

        Raises GraderFailed when no judgement could be had, InputError when the task itself cannot be graded.
        """
        kind = self.kind(task)
        if kind.reads_answer and not answer.strip():
            return 0.0
        if self.config.scheme == "reference" and task.reward in RULES and task.reward not in self._own:
            request = {"kind": "reference", "task": task.to_json(), "answer": answer}
            return await compared(self._means, request, task.gold)
        if kind.grade is not None:
            return await kind.grade(task, answer, replace(self._means, sandbox=sandbox, hidden=hidden or {}))
        assert kind.score is not None
        score = kind.score(task, answer, sandbox)
        return await score if isinstance(score, Awaitable) else score

    async def close(self) -> None:
        await self._workers.close()
        await self._own_workers.close()
        if self._judge is not None:
            if any(self._judge.usage.values()):
                _LOG.info("judging has cost %s", ", ".join(f"{name} {n:,}" for name, n in self._judge.usage.items()))
            await self._judge.close()

"""One trajectory: a policy gets a task and a computer, acts turn by turn, and its answer is graded.

    task ─ prompt ─> policy ─ calls ─> tools in a sandbox ─ observations ─> policy ─ ... ─ finish
                                                                  /testbed/answer.txt ─> grader ─> score

`rollout` does not raise for what happens inside a trajectory: the outcome is a Trajectory with a StopReason that says
why it ended and whose doing that was. It raises InputError for a task, arm or backend that cannot be used at all. The
same function serves training, evaluation and a person's single prompt.
"""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from sandboxrl.data.errors import InputError, described
from sandboxrl.data.prompt.arms import Arm, render
from sandboxrl.data.task import Task
from sandboxrl.envs.grading.grader import Grader
from sandboxrl.envs.grading.kinds import kind_of
from sandboxrl.envs.grading.protocol import GraderFailed, Kind
from sandboxrl.envs.policy.protocol import Conversation, EngineLost, Policy, Reply
from sandboxrl.envs.sandbox.protocol import (
    ANSWER,
    DOCUMENTS,
    BackendUnavailable,
    FileRefused,
    Measured,
    Resources,
    Sandbox,
    SandboxEnded,
    SandboxError,
    Snapshots,
)
from sandboxrl.envs.sandbox.snapshot import Snapshot
from sandboxrl.envs.tools.tool import ToolFailed
from sandboxrl.envs.trajectory import Observation, StopReason, ToolCall, Trajectory, Turn

ANSWER_BYTES = 1 << 20


class SandboxPool(Protocol):
    """Where sandboxes come from: `envs.sandbox.Pool`, or anything else that hands out one at a time."""

    def sandbox(self, image: str = "") -> AbstractAsyncContextManager[Sandbox]:
        """A fresh sandbox, closed at the end. Raises SandboxDied, BackendUnavailable."""
        ...


class Tools(Protocol):
    """What the policy can do: `envs.tools.ToolSet`, or anything with its face."""

    @property
    def no_call_message(self) -> str:
        """What the model is told when a turn has no tool call."""
        ...

    def schemas(self) -> list[dict[str, Any]]:
        """OpenAI function schemas."""
        ...

    async def run(self, call: ToolCall, sandbox: Sandbox, timeout_s: float) -> Observation:
        """Carry out one call; a command may take `timeout_s`. Raises SandboxError, ToolFailed."""
        ...


@dataclass(frozen=True)
class RolloutLimits:
    """The `limits:` part of a recipe: what one trajectory may use."""

    max_turns: int = 100
    """Replies of the policy."""
    max_tokens: int = 65_536
    """Whole trajectory: prompt, sampled and environment tokens."""
    max_tokens_per_turn: int = 65_536
    """Sampled tokens of one reply."""
    timeout_s: float = 5400.0
    """Wall time of the dialogue, waiting for the engine included. Starting the sandbox and grading have their own."""
    command_timeout_s: float = 120.0
    """Wall time of one tool call; then everything it started is killed."""

    def __post_init__(self) -> None:
        for name in ("max_turns", "max_tokens", "max_tokens_per_turn"):
            if getattr(self, name) < 1:
                raise InputError(f"limits.{name} must be at least 1, not {getattr(self, name)}")
        for name in ("timeout_s", "command_timeout_s"):
            if not getattr(self, name) > 0:
                raise InputError(f"limits.{name} must be above 0, not {getattr(self, name)}")


@dataclass(frozen=True)
class Environment:
    """What every trajectory of a run or an evaluation needs: built once, used by many at a time."""

    arm: Arm
    """How a task is put to the policy."""
    mode: str = "sandbox"
    """`sandbox` (a computer from `pool`) or `llm` (one reply, no tools)."""
    limits: RolloutLimits = field(default_factory=RolloutLimits)
    tools: Tools | None = None
    """What the policy can do in its sandbox; None: nothing (mode `llm`)."""
    pool: SandboxPool | None = None
    """Where sandboxes come from; None in mode `llm`."""
    grader: Grader | None = None
    """None: nothing is scored."""

    def __post_init__(self) -> None:
        if self.mode == "sandbox" and (self.pool is None or self.tools is None):
            raise ValueError("sandbox mode needs a pool and tools")


@dataclass
class _Progress:
    """What has happened so far, kept outside the loop so that a failure or a timeout loses none of it."""

    turns: list[Turn] = field(default_factory=list)
    conversation: Conversation | None = None
    num_prompt: int = 0
    answer: str = ""
    score: float | None = None
    stop: StopReason = StopReason.CANCELLED
    """Why the dialogue ended."""
    resources: Resources | None = None
    graded: bool = False
    """Nothing more is wanted of the sandbox."""
    error: str = ""


async def rollout(
    task: Task,
    policy: Policy,
    environment: Environment,
    seed: int = 0,
    files: Mapping[str, bytes] | Snapshot | None = None,
    on_turn: Callable[[Turn], None] = lambda turn: None,
    on_end: Callable[[Sandbox], Awaitable[object]] | None = None,
) -> Trajectory:
    """One trajectory of `policy` on `task`.

    `files` are extra files to put into the sandbox (a person's inputs), or a snapshot of another sandbox that it starts
    with: its folders are what they were there, the task's documents included. `on_turn` sees each turn as it ends;
    `on_end` is awaited with the sandbox before it closes (a person's artifacts). Cancelling the task cancels everything
    in it.
    """
    started_s, clock = time.time(), time.monotonic()
    progress = _Progress()
    try:
        await _play(task, policy, environment, progress, seed, files or {}, on_turn, on_end)
        stop = progress.stop
    except BackendUnavailable:
        raise  # the input is wrong: no trajectory can run here
    except (EngineLost, GraderFailed, ToolFailed, SandboxError) as error:
        stop, progress.error = _lost(error, progress), described(error)
        if stop is StopReason.SANDBOX_ENDED:  # nothing can be read of it any more: its grade is that of no answer
            progress.score = None if environment.grader is None else 0.0

    return Trajectory(
        task_id=task.id,
        source=task.source,
        mode=environment.mode,
        stop=stop,
        turns=tuple(progress.turns),
        answer=progress.answer,
        score=None if stop.machine_fault else progress.score,
        reward=None if stop.machine_fault or progress.score is None else progress.score * stop.complete,
        tokens=progress.conversation.tokens() if progress.conversation else None,
        num_prompt=progress.num_prompt,
        seed=seed,
        started_s=started_s,
        wall_s=time.monotonic() - clock,
        resources=progress.resources,
        error=progress.error,
    )


async def _play(
    task: Task,
    policy: Policy,
    environment: Environment,
    progress: _Progress,
    seed: int,
    files: Mapping[str, bytes] | Snapshot,
    on_turn: Callable[[Turn], None],
    on_end: Callable[[Sandbox], Awaitable[object]] | None,
) -> None:
    """Sandbox, dialogue, answer, grade: what came of each is in `progress`, also when a later one fails."""
    grader = environment.grader
    kind = kind_of(task.reward) if grader is None else grader.kind(task)
    async with AsyncExitStack() as stack:
        sandbox = None
        hidden: Mapping[str, bytes] = {}
        if environment.mode == "sandbox":
            assert environment.pool is not None
            sandbox = await stack.enter_async_context(environment.pool.sandbox(task.image))
            if kind.prepare is not None:
                hidden = await kind.prepare(task, sandbox)
            await _furnish(sandbox, task, files)
        try:
            progress.stop = await _converse(task, kind, policy, environment, sandbox, seed, progress, on_turn)
        finally:  # what was made is worth keeping, also when the engine is lost
            progress.resources = await _resources(sandbox)
            if on_end is not None and sandbox is not None:
                await on_end(sandbox)
        progress.answer = await _answer(task, kind, sandbox, progress.turns)
        if grader is not None:
            progress.score = await grader.grade(task, progress.answer, sandbox, hidden)
        progress.graded = True


def _lost(error: Exception, progress: _Progress) -> StopReason:
    """What an error makes of the trajectory, and whose doing it was."""
    if isinstance(error, EngineLost):
        return StopReason.ENGINE_LOST
    if isinstance(error, GraderFailed):
        return StopReason.GRADER_FAILED
    if isinstance(error, ToolFailed):
        return StopReason.TOOL_FAILED
    if progress.graded:  # only the end of the sandbox went wrong, and whoever ends sandboxes sees to that
        return progress.stop
    if isinstance(error, SandboxEnded) and progress.turns:
        return StopReason.SANDBOX_ENDED
    return StopReason.SANDBOX_LOST  # the machine's doing; so is an end before the policy's first turn


async def _converse(
    task: Task,
    kind: Kind,
    policy: Policy,
    environment: Environment,
    sandbox: Sandbox | None,
    seed: int,
    progress: _Progress,
    on_turn: Callable[[Turn], None],
) -> StopReason:
    """The dialogue itself: turns are appended to `progress` as they end."""
    limits, tools = environment.limits, environment.tools
    deadline = time.monotonic() + limits.timeout_s
    schemas = tools.schemas() if sandbox is not None and tools is not None else []
    messages = render(task, environment.arm, environment.mode, kind.ask)
    conversation = progress.conversation = policy.start(messages, schemas, seed)
    progress.num_prompt = conversation.num_tokens

    while True:
        budget = min(limits.max_tokens_per_turn, limits.max_tokens - conversation.num_tokens)
        if budget <= 0:
            return StopReason.MAX_TOKENS
        before, num_known = time.monotonic(), conversation.num_tokens
        reply = await conversation.reply(budget, deadline - before)
        _count_late(progress, conversation.num_tokens - reply.num_sampled - num_known)
        turn = Turn(
            text=reply.text,
            calls=reply.calls,
            reasoning=reply.reasoning,
            start=reply.start,
            end=reply.end,
            cut=reply.finish != "stop",
            num_sampled=reply.num_sampled,
            sample_s=time.monotonic() - before,
        )
        progress.turns.append(turn)
        if sandbox is not None and tools is not None and reply.finish != "timeout":
            before = time.monotonic()
            observations = await _act(reply, tools, sandbox, limits.command_timeout_s, deadline)
            turn = replace(turn, observations=observations, tool_s=time.monotonic() - before)
            progress.turns[-1] = turn
        on_turn(turn)

        if any(observation.finished for observation in turn.observations):
            return StopReason.FINISHED
        if reply.finish == "timeout" or time.monotonic() >= deadline:
            return StopReason.TIMEOUT
        if reply.finish == "length" and reply.num_sampled == 0:
            return StopReason.MAX_TOKENS  # the context is full: there is no room for a single token
        if sandbox is None:
            return StopReason.MAX_TOKENS if turn.cut else StopReason.ANSWERED
        turns_left = limits.max_turns - len(progress.turns)
        if turns_left <= 0:
            return StopReason.MAX_TURNS
        num_environment = conversation.observe(_with_countdown(turn.observations, environment.arm, turns_left))
        progress.turns[-1] = replace(turn, num_environment=num_environment)


def _count_late(progress: _Progress, num_tokens: int) -> None:
    """An endpoint tells only with its reply how many tokens came before it: those of the prompt or of the last
    observations. Our own engines have counted them already, so for them there are none."""
    if progress.turns:
        last = progress.turns[-1]
        progress.turns[-1] = replace(last, num_environment=last.num_environment + max(0, num_tokens))
    else:
        progress.num_prompt += max(0, num_tokens)


async def _act(
    reply: Reply, tools: Tools, sandbox: Sandbox, timeout_s: float, deadline: float
) -> tuple[Observation, ...]:
    """Run the calls of a turn in order, each answered, up to and including a finish. What is left when the time of the
    trajectory is over is not run: one reply may hold hundreds of calls."""
    if not reply.calls:
        return (Observation(tools.no_call_message, is_error=True),)
    observations: list[Observation] = []
    for call in reply.calls:
        left_s = max(deadline - time.monotonic(), 0.1)
        observations.append(await tools.run(call, sandbox, min(timeout_s, left_s)))
        if observations[-1].finished or time.monotonic() >= deadline:
            break
    return tuple(observations)


def _with_countdown(observations: Sequence[Observation], arm: Arm, turns_left: int) -> list[Observation]:
    """The arm may tell the model how many turns it has left, after the last observation."""
    shown = list(observations)
    if arm.steps_remaining:
        shown[-1] = replace(shown[-1], text=f"{shown[-1].text}\nSteps Remaining: {turns_left}")
    return shown


async def _furnish(sandbox: Sandbox, task: Task, files: Mapping[str, bytes] | Snapshot) -> None:
    """Put the task's documents and a person's files where the prompt says they are. The gold answer stays out."""
    if isinstance(files, Snapshot):
        if not isinstance(sandbox, Snapshots):
            raise BackendUnavailable("a sandbox of this backend cannot start from a snapshot")
        await sandbox.restore(files)
        return
    documents = task.documents if task.placement == "sandbox" else {}
    wanted = {f"{DOCUMENTS}/{name}": text.encode() for name, text in documents.items()} | dict(files)
    if wanted:
        await sandbox.write(wanted)


async def _answer(task: Task, kind: Kind, sandbox: Sandbox | None, turns: Sequence[Turn]) -> str:
    """What is graded. A missing or refused answer file is an empty answer, the model's own doing."""
    if sandbox is None:
        return kind.extract(task, turns[-1].text) if turns else ""
    try:
        return (await sandbox.read(ANSWER, ANSWER_BYTES)).decode(errors="replace").strip()
    except FileRefused:
        return ""


async def _resources(sandbox: Sandbox | None) -> Resources | None:
    """What the sandbox has used; None where that is not known. That it has died is for those to say who need it."""
    if not isinstance(sandbox, Measured):
        return None
    try:
        return await sandbox.resources()
    except SandboxError:
        return None

"""One trajectory: why it ends, what it earns, that every limit holds; a scripted engine and a small computer."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from sandboxrl.data.errors import InputError
from sandboxrl.data.prompt.arms import load_arm
from sandboxrl.data.task import Task
from sandboxrl.envs.grading.grader import Grader
from sandboxrl.envs.grading.protocol import GraderFailed
from sandboxrl.envs.policy.chat import TokenPolicy
from sandboxrl.envs.policy.protocol import EngineLost
from sandboxrl.envs.policy.scripted import MemorySandbox, ScriptedEngine, call, turns
from sandboxrl.envs.rollout import Environment, RolloutLimits, rollout
from sandboxrl.envs.sandbox.pool import Pool
from sandboxrl.envs.sandbox.protocol import ANSWER, DOCUMENTS, ExecResult, SandboxDied, SandboxEnded
from sandboxrl.envs.sandbox.snapshot import Snapshot
from sandboxrl.envs.tools.tool_set import tool_set
from sandboxrl.envs.trajectory import StopReason, Trajectory
from tests.envs.small_chat import chat_format

FORM = chat_format("small hermes")
ARM = load_arm("paper")
TASK = Task("t", "s", "Which?", "B", "exact", documents={"a.txt": "the answer is B"})
FINISH = call(FORM, "finish")


def bash(command: str) -> str:
    return call(FORM, "bash", command=command)


class Computer(MemorySandbox):
    """`answer TEXT` writes the answer file, `sleep` takes all the time it gets, `die` is the machine's end of it and
    `end` its own."""

    async def exec(self, command: str, timeout_s: float = 120.0, *_: Any, **__: Any) -> ExecResult:
        if command == "die":
            raise SandboxDied("gone")
        if command == "end":
            raise SandboxEnded("out of memory")
        if command == "sleep":
            await asyncio.sleep(timeout_s)
        if command.startswith("answer "):
            await self.write({ANSWER: command.removeprefix("answer ").encode()})
        return ExecResult(0, b"", b"", command == "sleep", 0, 0, 0.0)


class Computers:
    def __init__(self) -> None:
        self.used: list[Computer] = []

    @asynccontextmanager
    async def sandbox(self, image: str = "") -> AsyncIterator[Computer]:
        self.used.append(Computer())
        try:
            yield self.used[-1]
        finally:
            await self.used[-1].close()


def environment(pool: Any, grader: Any = None, mode: str = "sandbox", **limits: Any) -> Environment:
    return Environment(ARM, mode, RolloutLimits(**limits), tool_set("paper"), pool, grader)


def play(script: Callable[[str, int], Any], mode: str = "sandbox", task: Task = TASK, **limits: Any) -> Trajectory:
    async def run() -> Trajectory:
        pool, grader = Computers(), Grader()
        policy = TokenPolicy(ScriptedEngine(FORM, script), FORM)
        try:
            return await rollout(task, policy, environment(pool, grader, mode, **limits), seed=3)
        finally:
            await grader.close()
            assert all(not box.alive for box in pool.used)

    return asyncio.run(run())


def lost(context: str, seed: int) -> str:
    raise EngineLost("gone")


ENDINGS: Mapping[str, tuple[Any, dict[str, Any], StopReason, float | None]] = {
    "finished and right": (turns(FORM, [bash("answer B"), FINISH]), {}, StopReason.FINISHED, 1.0),
    "finished and wrong": (turns(FORM, [bash("answer C"), FINISH]), {}, StopReason.FINISHED, 0.0),
    "finished without an answer": (turns(FORM, [FINISH]), {}, StopReason.FINISHED, 0.0),
    "out of turns": (turns(FORM, [bash("answer B")]), {"max_turns": 3}, StopReason.MAX_TURNS, 0.0),
    "cut in the first reply": (
        turns(FORM, ["x" * 500]),
        {"max_tokens_per_turn": 5, "max_turns": 1},
        StopReason.MAX_TURNS,
        0.0,
    ),
    "no room for a reply": (turns(FORM, [FINISH]), {"max_tokens": 2}, StopReason.MAX_TOKENS, 0.0),
    "out of time": (turns(FORM, [bash("answer B"), bash("sleep")]), {"timeout_s": 0.3}, StopReason.TIMEOUT, 0.0),
    "sandbox ended": (turns(FORM, [bash("answer B"), bash("end")]), {}, StopReason.SANDBOX_ENDED, 0.0),
    "sandbox lost": (turns(FORM, [bash("answer B"), bash("die")]), {}, StopReason.SANDBOX_LOST, None),
    "engine lost": (lost, {}, StopReason.ENGINE_LOST, None),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_each_ending_has_its_reason_and_its_reward(name: str) -> None:
    script, limits, stop, reward = ENDINGS[name]
    found = play(script, **limits)
    assert (found.stop, found.reward) == (stop, reward)
    assert bool(found.error) == (stop.machine_fault or stop is StopReason.SANDBOX_ENDED)
    if found.tokens is not None:
        assert sum(found.tokens.mask) == found.num_sampled
        assert len(found.tokens.ids) == found.num_prompt + found.num_sampled + found.num_environment
        for turn in found.turns:
            assert found.tokens.mask[turn.start : turn.end].tolist() == [1] * turn.num_sampled


def test_a_limit_takes_the_reward_and_not_the_score() -> None:
    found = play(turns(FORM, [bash("answer B")]), max_turns=2)
    assert (found.score, found.reward) == (1.0, 0.0)


def test_many_slow_calls_in_one_reply_share_the_time_of_the_trajectory() -> None:
    reply = "\n".join([bash("sleep")] * 50)
    started = time.monotonic()
    found = play(turns(FORM, [reply]), timeout_s=0.5, command_timeout_s=0.3)
    assert found.stop == StopReason.TIMEOUT and time.monotonic() - started < 3
    assert len(found.turns[0].calls) == 50 and 2 <= len(found.turns[0].observations) <= 4


def test_calls_after_a_finish_are_not_run() -> None:
    found = play(turns(FORM, [FINISH + "\n" + bash("answer B")]))
    assert found.stop == StopReason.FINISHED and found.answer == "" and len(found.turns[0].observations) == 1


def test_a_grader_that_fails_gives_no_reward() -> None:
    class Failing(Grader):
        async def grade(self, *_: Any) -> float:
            raise GraderFailed("no")

    async def run() -> Trajectory:
        policy = TokenPolicy(ScriptedEngine(FORM, turns(FORM, [FINISH])), FORM)
        pool: Any = Computers()
        return await rollout(TASK, policy, environment(pool, Failing()))

    found = asyncio.run(run())
    assert found.stop == StopReason.GRADER_FAILED and found.reward is None and found.score is None


def test_documents_are_where_the_prompt_says_and_the_gold_is_not() -> None:
    seen: dict[str, bytes] = {}

    async def run() -> Trajectory:
        policy = TokenPolicy(ScriptedEngine(FORM, turns(FORM, [FINISH])), FORM)

        async def look(sandbox: Any) -> None:
            seen.update(sandbox.files)

        pool: Any = Computers()
        return await rollout(TASK, policy, environment(pool), on_end=look)

    assert asyncio.run(run()).reward is None
    assert seen == {f"{DOCUMENTS}/a.txt": b"the answer is B"}


def test_one_reply_without_a_computer() -> None:
    found = play(turns(FORM, ["I think.\nAnswer: B"]), mode="llm")
    assert (found.stop, found.reward, found.answer, len(found.turns)) == (StopReason.ANSWERED, 1.0, "B", 1)
    cut = play(turns(FORM, ["Answer: B" + "x" * 500]), mode="llm", max_tokens_per_turn=5)
    assert (cut.stop, cut.reward) == (StopReason.MAX_TOKENS, 0.0)


@pytest.mark.parametrize("wrong", [{"max_turns": 0}, {"max_tokens": 0}, {"timeout_s": 0}, {"command_timeout_s": -1}])
def test_a_limit_that_allows_nothing_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"limits.{next(iter(wrong))}"):
        RolloutLimits(**wrong)


@pytest.mark.parametrize("error", [SandboxDied("Docker daemon: DELETE: refused"), SandboxEnded("gone")])
def test_an_error_while_closing_keeps_the_grade(error):
    class Sticky(Computers):
        @asynccontextmanager
        async def sandbox(self, image: str = "") -> AsyncIterator[Computer]:
            async with super().sandbox() as box:
                yield box
            raise error

    async def run() -> Trajectory:
        policy = TokenPolicy(ScriptedEngine(FORM, turns(FORM, [bash("answer B"), FINISH])), FORM)
        return await rollout(TASK, policy, environment(Sticky(), Grader()))

    found = asyncio.run(run())
    assert (found.stop, found.score, found.reward) == (StopReason.FINISHED, 1.0, 1.0)
    assert str(error) in found.error


def test_a_sandbox_that_ends_before_the_first_turn_is_the_machines():
    class Stillborn(Computer):
        async def write(self, files: Mapping[str, bytes]) -> None:
            raise SandboxEnded("no memory for the documents")

    class Stillborns(Computers):
        @asynccontextmanager
        async def sandbox(self, image: str = "") -> AsyncIterator[Computer]:
            yield Stillborn()

    async def run() -> Trajectory:
        policy = TokenPolicy(ScriptedEngine(FORM, turns(FORM, [FINISH])), FORM)
        return await rollout(TASK, policy, environment(Stillborns(), Grader()))

    assert asyncio.run(run()).stop is StopReason.SANDBOX_LOST


def test_a_trajectory_starts_from_a_snapshot(machine) -> None:
    """Another one goes on from its files: the answer was written there."""

    async def body(backend):
        pool, grader = Pool(backend, warm=0), Grader()
        policy = TokenPolicy(ScriptedEngine(FORM, turns(FORM, [FINISH])), FORM)
        try:
            async with pool.sandbox() as box:
                await box.exec("mkdir -p documents; echo B > answer.txt")
                with await box.snapshot() as saved:
                    found = await rollout(TASK, policy, environment(pool, grader), files=saved)
            assert (found.stop, found.answer, found.reward) == (StopReason.FINISHED, "B", 1.0)
        finally:
            await grader.close()
            await pool.close()

    machine.run_with_backend(body)


def test_a_sandbox_without_snapshots_cannot_start_from_one() -> None:
    async def run() -> None:
        policy = TokenPolicy(ScriptedEngine(FORM, turns(FORM, [FINISH])), FORM)
        with Snapshot.of(["/testbed"], b"") as saved, pytest.raises(InputError, match="snapshot"):
            await rollout(TASK, policy, environment(Computers()), files=saved)

    asyncio.run(run())

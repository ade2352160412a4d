"""A user's own agent as a policy: it plays whole trajectories, and what is wrong with it is typed."""

import asyncio
from pathlib import Path

import pytest

from sandboxrl.data.errors import InputError
from sandboxrl.data.prompt.arms import load_arm
from sandboxrl.data.task import Task
from sandboxrl.envs.grading.grader import Grader
from sandboxrl.envs.policy.own import load_policy
from sandboxrl.envs.rollout import Environment, RolloutLimits, rollout
from sandboxrl.envs.tools.tool_set import tool_set
from sandboxrl.envs.trajectory import StopReason, Trajectory
from tests.envs.test_rollout import Computers

CODE = """
import asyncio

async def agent(messages, tools, seed):
    if messages[-1]["role"] == "tool":
        return {"tool_calls": [{"name": "finish", "arguments": {}}]}
    assert [tool["function"]["name"] for tool in tools] == ["bash", "file_editor", "finish"]
    return {"content": "I answer.", "tool_calls": [{"name": "bash", "arguments": {"command": "answer B"}}]}

class Forwarding:
    async def __call__(self, messages, tools, seed):
        name = "finish" if messages[-1]["role"] == "tool" else "bash"
        arguments = "{}" if name == "finish" else '{"command": "answer B"}'
        return {"content": None, "tool_calls": [{"id": "x", "function": {"name": name, "arguments": arguments}}]}

async def raises(messages, tools, seed): 1 / 0
async def hangs(messages, tools, seed): await asyncio.sleep(1000)
async def number(messages, tools, seed): return 7
async def nameless(messages, tools, seed): return {"tool_calls": [{"arguments": {}}]}
async def broken_json(messages, tools, seed): return {"tool_calls": [{"name": "bash", "arguments": "{"}]}
async def short(messages): return ""
def not_async(messages, tools, seed): return ""
class Needs:
    def __init__(self, model): pass
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "agents.py").write_text(CODE)
    return f"{tmp_path}/agents.py"


def play(value: str) -> Trajectory:
    async def run() -> Trajectory:
        grader = Grader()
        limits = RolloutLimits(max_turns=4, timeout_s=1.0)
        environment = Environment(load_arm("paper"), "sandbox", limits, tool_set("paper"), Computers(), grader)
        try:
            return await rollout(Task("t", "s", "Which?", "B", "exact"), load_policy(value), environment)
        finally:
            await grader.close()

    return asyncio.run(run())


@pytest.mark.parametrize("name", ["agent", "Forwarding"])
def test_an_agent_plays_a_task(file: str, name: str) -> None:
    found = play(f"{file}:{name}")
    assert (found.stop, found.reward, found.answer, len(found.turns)) == (StopReason.FINISHED, 1.0, "B", 2)


@pytest.mark.parametrize(
    ("name", "stop", "message"),
    [
        ("raises", StopReason.ENGINE_LOST, "ZeroDivisionError"),
        ("number", StopReason.ENGINE_LOST, "gave back int"),
        ("nameless", StopReason.ENGINE_LOST, "a tool call has a `name`"),
        ("hangs", StopReason.TIMEOUT, ""),
        ("broken_json", StopReason.MAX_TURNS, ""),
    ],
)
def test_what_is_wrong_with_an_agent_is_typed(file: str, name: str, stop: StopReason, message: str) -> None:
    found = play(f"{file}:{name}")
    assert found.stop == stop and message in found.error
    if name == "broken_json":
        assert "not valid JSON" in found.turns[0].observations[0].text


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("short", r"must take \(messages, tools, seed\)"),
        ("not_async", "must be an async function"),
        ("Needs", "cannot be made without arguments"),
        ("agnt", "did you mean 'agent'"),
    ],
)
def test_what_cannot_be_a_policy_is_refused(file: str, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_policy(f"{file}:{name}")

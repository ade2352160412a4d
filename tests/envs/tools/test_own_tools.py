"""A user's own tools: checked when they are named, called like ours, and never a zero when their code is wrong."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from sandboxrl.data.errors import InputError
from sandboxrl.envs.policy.scripted import MemorySandbox
from sandboxrl.envs.tools.tool import ToolFailed
from sandboxrl.envs.tools.tool_set import tool_set
from sandboxrl.envs.trajectory import Observation, ToolCall

GOOD = """\
from sandboxrl import Tool, ToolRefused

async def run(sandbox, arguments, timeout_s):
    if arguments["times"] > 3:
        raise ToolRefused("three times at most")
    return arguments["word"] * arguments["times"]

say = Tool("say", run, "Say a word.", {"word": {"type": "string"}, "times": {"type": "integer"}})

async def broken(sandbox, arguments, timeout_s):
    return 1 / 0

async def number(sandbox, arguments, timeout_s):
    return 7

async def long(sandbox, arguments, timeout_s):
    return "x" * 100_000

def not_async(sandbox, arguments, timeout_s):
    return "x"

async def short(sandbox):
    return "x"

raises, answers_a_number, floods = Tool("raises", broken), Tool("number", number), Tool("floods", long)
sync, takes_too_little = Tool("sync", not_async), Tool("short", short)
untyped = Tool("untyped", broken, "", {"word": {}})
unknown = Tool("unknown", broken, "", {"word": {"type": "string"}}, required=("wort",))
twin = Tool("bash", broken)
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(GOOD)
    return f"{tmp_path}/mine.py"


def call(file: str, tool: str, **arguments: Any) -> Observation:
    tools = tool_set("paper", ["bash", "finish", f"{file}:{tool}"])
    name = tools.tools[-1].name
    return asyncio.run(tools.run(ToolCall(name, arguments, "id"), MemorySandbox(), 1.0))


def test_a_tool_is_shown_and_called_like_ours(file: str) -> None:
    tools = tool_set("paper", [f"{file}:say", "finish"])
    assert [schema["function"]["name"] for schema in tools.schemas()] == ["say", "finish"]
    assert tools.schemas()[0]["function"]["parameters"]["required"] == ["word", "times"]
    assert call(file, "say", word="ab", times=2).text == "abab"
    assert call(file, "say", word="ab", times=9).text == "Error: three times at most"
    assert call(file, "say", word="ab", times="2").text.startswith("Error: say: the argument 'times' must be a whole")
    assert len(call(file, "floods").text) < 20_000


@pytest.mark.parametrize(
    ("tool", "message"), [("raises", "ZeroDivisionError"), ("answers_a_number", "answered int, not text")]
)
def test_a_tool_whose_code_is_wrong_fails(file: str, tool: str, message: str) -> None:
    with pytest.raises(ToolFailed, match=message):
        call(file, tool)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (["bash"], "none of them ends a task; add finish"),
        (["bash", "finnish"], "unknown 'finnish'; did you mean 'finish'"),
        (["finish", "FILE:sync"], "must be an async function"),
        (["finish", "FILE:takes_too_little"], r"must take \(sandbox, arguments, timeout_s\)"),
        (["finish", "FILE:untyped"], "'word' needs a type"),
        (["finish", "FILE:unknown"], "requires 'wort'"),
        (["finish", "FILE:broken"], "must be a sandboxrl.Tool, not function"),
        (["finish", "bash", "FILE:twin"], "two of them are called 'bash'"),
        (["finish", "no_such.py:tool"], "no such file"),
    ],
)
def test_what_cannot_be_a_tool_is_refused_at_once(file: str, chosen: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tool_set("paper", [one.replace("FILE", file) for one in chosen])

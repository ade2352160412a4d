"""The tools of a model: what they are called, what they take, and the exact text each answers with.

    paper       bash, file_editor, finish                        the default
    reference   str_replace_editor, execute_bash, submit         names and observation format of the released checkpoint
    compact     the paper's names, the fewest words              for a model of a million parameters

Every call gets an answer that says exactly what was wrong with it: unknown tool, broken JSON, missing, unknown or
mistyped argument. A command that fails is an observation like any other. A recipe chooses among the tools of a set and
adds tools of its own: `tools: [bash, file_editor, finish, my_tools.py:search]`.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sandboxrl.data.errors import InputError, nearest
from sandboxrl.data.plugin import plugged
from sandboxrl.envs.sandbox.protocol import Sandbox
from sandboxrl.envs.tools.bash import bash_tool, compact, full, released
from sandboxrl.envs.tools.display import clip
from sandboxrl.envs.tools.editor import Wording, editor_tool
from sandboxrl.envs.tools.finish import finish_tool
from sandboxrl.envs.tools.shell import shell_tool
from sandboxrl.envs.tools.tool import Tool, wrong_shape
from sandboxrl.envs.trajectory import Observation, ToolCall

MAX_LINES, MAX_CHARS = 400, 16_000
"""Shown of what a user's own tool answers."""


@dataclass(frozen=True)
class ToolSet:
    """Tools as one arm offers them, in the order in which the model is shown them."""

    name: str
    tools: tuple[Tool, ...]
    described: bool = True
    """Say what tools and arguments are for; without it the schemas hold names and types only."""
    no_call_message: str = (
        "There was no tool call in your reply, so nothing was done. Every reply must call a tool; nobody can answer "
        "questions. When the answer is saved, call the tool that ends the task."
    )
    """What the model is told when a turn has no tool call."""

    def schemas(self) -> list[dict[str, Any]]:
        """OpenAI function schemas."""
        return [tool.schema(self.described) for tool in self.tools]

    async def run(self, call: ToolCall, sandbox: Sandbox, timeout_s: float) -> Observation:
        """Carry out one call; a command may take `timeout_s`. Raises SandboxError, ToolFailed."""
        clock = time.monotonic()
        named = {tool.name: tool for tool in self.tools}
        if call.name in named:
            answer = await named[call.name].call(call, sandbox, timeout_s)
        else:
            wrong = call.error or f"unknown tool {call.name!r}{nearest(call.name, named)}"
            answer = Observation(f"Error: {wrong}", call.name, call.id, is_error=True)
        return replace(answer, duration_s=time.monotonic() - clock)


def tool_set(name: str, chosen: Sequence[str] = (), persist_shell: bool = False) -> ToolSet:
    """One of TOOL_SETS by name; with `chosen` (names of its tools, and tools of a user's own) those, in that order;
    with `persist_shell` its shell is the one that stays. Raises InputError."""
    if name not in TOOL_SETS:
        raise InputError(f"unknown tool set {name!r}{nearest(name, TOOL_SETS)}")
    whole = TOOL_SETS[name]
    if persist_shell:
        stays = SHELLS[name]
        whole = replace(whole, tools=tuple(stays if tool.name == stays.name else tool for tool in whole.tools))
    if not chosen:
        return whole
    known = {tool.name: tool for tool in whole.tools}
    tools = [known.get(one) or _shortened(plugged(one, known, "tools", wrong_shape)) for one in chosen]
    names = [tool.name for tool in tools]
    if persist_shell and SHELLS[name] not in tools:
        raise InputError(f"sandbox.persist_shell: tools must hold {SHELLS[name].name}, which is the shell")
    for one in names:
        if names.count(one) > 1:
            raise InputError(f"tools: two of them are called {one!r}")
    if not any(tool.finishes for tool in tools):
        ending = [tool.name for tool in whole.tools if tool.finishes]
        raise InputError(f"tools: none of them ends a task; add {', '.join(ending)}")
    return replace(whole, tools=tuple(tools))


def _shortened(tool: Tool) -> Tool:
    """A user's tool with answers that are safe and short enough to show."""

    async def run(sandbox: Sandbox, arguments: Any, timeout_s: float) -> Any:
        said = await tool.run(sandbox, arguments, timeout_s)
        if isinstance(said, str):
            return clip(said, MAX_LINES, MAX_CHARS)
        return replace(said, text=clip(said.text, MAX_LINES, MAX_CHARS)) if isinstance(said, Observation) else said

    return replace(tool, run=run)


RELEASED_WORDING = Wording(
    viewed="Here's the result of running `cat -n` on {path}:",
    created="File created at {path}. Here's the result of running `cat -n` on {path}:",
    edited="The file {path} has been edited. Here's the result of running `cat -n` on a snippet of {path}:",
    folder="Here's the files and directories up to 2 levels deep in {path}, excluding hidden:",
    clipped="<response clipped: {left_out} more characters; search with `grep -n` for the lines you need>",
    review="Review the file and make sure that it is as expected. Edit it again if necessary.",
    echo=True,
)
COMPACT_WORDING = Wording(
    viewed="{path}:",
    created="Created {path}.",
    edited="Edited {path}.",
    folder="{path}:",
    clipped="[... {left_out} more characters ...]",
    snippets=False,
    max_chars=2_000,
)
TOOL_SETS = {
    "paper": ToolSet("paper", (bash_tool("bash", full), editor_tool("file_editor", Wording()), finish_tool("finish"))),
    "reference": ToolSet(
        "reference",
        (
            editor_tool("str_replace_editor", RELEASED_WORDING, "Execution output of \\[str_replace_editor]:\n"),
            bash_tool("execute_bash", released("execute_bash")),
            finish_tool("submit", "<<< Finished >>>"),
        ),
    ),
    "compact": ToolSet(
        "compact",
        (
            bash_tool("bash", compact, max_chars=2_000),
            editor_tool("file_editor", COMPACT_WORDING),
            finish_tool("finish"),
        ),
        described=False,
        no_call_message="No tool call. Call a tool.",
    ),
}
SHELLS = {"paper": shell_tool("bash"), "reference": shell_tool("execute_bash"), "compact": shell_tool("bash", 2_000)}
"""The shell that stays, by tool set (`sandbox.persist_shell`)."""

"""The shell that persists, as a tool: its arguments are those that agents with such a shell are used to."""

import re
from collections.abc import Mapping
from typing import Any

from sandboxrl.envs.sandbox.protocol import BackendUnavailable, Sandbox, ShellResult, Shells
from sandboxrl.envs.tools.display import clip, terminal_text
from sandboxrl.envs.tools.tool import Tool, ToolRefused
from sandboxrl.envs.trajectory import Observation

MAX_LINES = 80
_KEY = re.compile(r"C-([a-z\\])")
_NOTES = {
    "running": "[still running; wait with an empty command, answer with is_input, interrupt with C-c]",
    "waiting": "[waits for input; answer with is_input, interrupt with C-c]",
    "ended": "[the shell has ended; the next command starts a new one]",
}
_REFUSED = {
    "busy": "a command is still running, so this one was not run; answer it with is_input, wait for it with an empty "
    "command, or interrupt it with C-c",
    "idle": "no command is running that could take input",
}
_DESCRIPTION = (
    "Run a command with bash in one shell that stays: its folder, variables, functions and background jobs are there "
    "in the next call. A command that is silent for 10 seconds or waits for input goes on when the call returns."
)
_PARAMETERS = {
    "command": {
        "type": "string",
        "description": "The command, for example `python script.py`. Empty: wait for more output. `C-c`, `C-d`, `C-z`: "
        "press this key.",
    },
    "is_input": {"type": "boolean", "description": "The command is a line of input for the program that runs."},
    "timeout": {"type": "number", "description": "Return after this many seconds, even if it is still running."},
}


def shell_tool(name: str, max_chars: int = 16_000) -> Tool:
    async def run(sandbox: Sandbox, arguments: Mapping[str, Any], timeout_s: float) -> Observation:
        if not isinstance(sandbox, Shells):
            raise BackendUnavailable(f"sandbox.persist_shell: {type(sandbox).__name__} has no `shell`")
        command, wait_s = arguments["command"], arguments.get("timeout")
        if "\0" in command:
            raise ToolRefused("the command holds a NUL character, which no shell can take")
        if wait_s is not None and not 0 < wait_s < float("inf"):
            raise ToolRefused(f"the argument 'timeout' must be above 0, not {wait_s}")
        text, is_input = _typed(command, arguments.get("is_input", False))
        result = await sandbox.shell(text, timeout_s=timeout_s, is_input=is_input, wait_s=wait_s)
        if result.state in _REFUSED:
            raise ToolRefused(_REFUSED[result.state])
        return Observation(_shown(result, timeout_s, max_chars), exit_code=result.exit_code, timed_out=result.timed_out)

    return Tool(name, run, _DESCRIPTION, _PARAMETERS, required=("command",))


def _typed(command: str, is_input: bool) -> tuple[str, bool]:
    """What goes to the shell, and whether that is input."""
    if key := _KEY.fullmatch(command):
        return chr(ord(key[1].upper()) & 0x1F), True
    if not command.strip() and not is_input:
        return "", True
    return (command + "\n", True) if is_input and command else (command, is_input)


def _shown(result: ShellResult, timeout_s: float, max_chars: int) -> str:
    """What the terminal shows, and what has become of the command."""
    notes = [_NOTES[result.state]] if result.state in _NOTES else []
    if result.timed_out:
        notes.insert(0, f"[killed after {timeout_s:g} s; this is what it printed until then]")
    if result.exit_code is not None:
        code = result.exit_code if result.exit_code >= 0 else 128 - result.exit_code
        notes.insert(0, f"[exit code {code}]")
    output = clip(terminal_text(result.output), MAX_LINES, max_chars).rstrip("\n")
    return "\n".join([output, *notes] if output else notes)

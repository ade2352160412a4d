"""The shell: one command, and the text of its outcome in the form of each tool set."""

from collections.abc import Callable, Mapping
from typing import Any

from sandboxrl.envs.sandbox.protocol import ExecResult, Sandbox
from sandboxrl.envs.tools.display import clip, terminal_text
from sandboxrl.envs.tools.tool import Tool, ToolRefused
from sandboxrl.envs.trajectory import Observation

MAX_LINES = 80
_CUT = "[... {} left out ...]"
_RELEASED_CUT = f"{'-' * 50}\n<Observation truncated in middle for saving context>\n{'-' * 50}"

Shown = Callable[[ExecResult, float, int], str]
"""The outcome of a command, its time limit in seconds, and how many characters of each stream: what is shown."""


def bash_tool(name: str, shown: Shown, max_chars: int = 16_000) -> Tool:
    async def run(sandbox: Sandbox, arguments: Mapping[str, Any], timeout_s: float) -> Observation:
        command = arguments["command"]
        if not command.strip():
            raise ToolRefused("the command is empty")
        if "\0" in command:
            raise ToolRefused("the command holds a NUL character, which no shell can take")
        result = await sandbox.exec(command, timeout_s=timeout_s)
        text = shown(result, timeout_s, max_chars)
        return Observation(text, exit_code=result.exit_code, timed_out=result.timed_out)

    description = (
        "Run a command with bash in /testbed and get its exit code, standard output and standard error. "
        "Every call starts a fresh shell."
    )
    command = {"type": "string", "description": "The command, for example `python script.py`."}
    return Tool(name, run, description, {"command": command}, bounded=True)


def full(result: ExecResult, timeout_s: float, max_chars: int) -> str:
    """Exit code, notes and both streams, each under its name."""
    stdout, stderr = _streams(result, max_chars, _CUT)
    status = "none" if result.timed_out else str(_exit_code(result))
    if result.exit_code < 0 and not result.timed_out:
        status += f" (signal {-result.exit_code})"
    parts = [f"Exit code: {status}", *_notes(result, timeout_s)]
    parts += [f"[stdout]\n{stdout.rstrip(chr(10))}"] if stdout else []
    parts += [f"[stderr]\n{stderr.rstrip(chr(10))}"] if stderr else []
    return "\n".join(parts if stdout or stderr else [*parts, "(no output)"])


def compact(result: ExecResult, timeout_s: float, max_chars: int) -> str:
    """The streams, and what else there is to say only where there is something."""
    stdout, stderr = _streams(result, max_chars, _CUT)
    parts = [stdout.rstrip("\n"), stderr.rstrip("\n"), *_notes(result, timeout_s)]
    code = _exit_code(result)
    parts.append(f"[exit code {code}]" if code and not result.timed_out else "")
    return "\n".join(part for part in parts if part) or "(no output)"


def released(name: str) -> Shown:
    """The format of llm-in-sandbox 0.2.0, escaped brackets included."""

    def shown(result: ExecResult, timeout_s: float, max_chars: int) -> str:
        stdout, stderr = _streams(result, max_chars, _RELEASED_CUT)
        code = _exit_code(result)
        status = "-1" if result.timed_out else f"Error: Exit code {code}" if code else "0"
        stdout = stdout if stdout.strip() else ""
        if result.timed_out:
            stdout = f"The command took too long to execute (>{timeout_s:g}s)\n{stdout}"
        parts = [f"Exit code: {status}", f"Execution output of \\[{name}]:", f"\\[STDOUT]\n{stdout}"]
        return "\n".join(parts + [f"\\[STDERR]\n{stderr}"] * bool(stderr.strip()))

    return shown


def _streams(result: ExecResult, max_chars: int, cut: str) -> tuple[str, str]:
    stdout, stderr = (clip(terminal_text(data), MAX_LINES, max_chars, cut) for data in (result.stdout, result.stderr))
    return stdout, stderr


def _exit_code(result: ExecResult) -> int:
    """As a shell reports a signal."""
    return result.exit_code if result.exit_code >= 0 else 128 - result.exit_code


def _notes(result: ExecResult, timeout_s: float) -> list[str]:
    notes = []
    if result.timed_out:
        notes.append(f"[killed after {timeout_s:g} s; this is what it printed until then]")
    if result.background:
        notes.append("[a background process is still running]")
    return notes

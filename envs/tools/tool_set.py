"""The tools of a model: what they are called, what they take, and the exact text each answers with.

    paper       bash, file_editor, finish                        the default
    reference   str_replace_editor, execute_bash, submit         names and observation format of the released checkpoint
    compact     the paper's names, the fewest words              for a model of a million parameters

Every call gets an answer that says exactly what was wrong with it: unknown tool, broken JSON, missing, unknown or
mistyped argument. A command that fails is an observation like any other. Only SandboxDied is raised: the machine's
fault is not the model's business.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sandboxrl.data.errors import InputError, nearest
from sandboxrl.envs.sandbox.protocol import ExecResult, FileRefused, Sandbox
from sandboxrl.envs.tools.display import clip, terminal_text
from sandboxrl.envs.tools.editor import COMMANDS, EditRefused, Wording, edit
from sandboxrl.envs.trajectory import Observation, ToolCall

MAX_LINES = 80


@dataclass(frozen=True)
class ToolSet:
    """Three tools under the names of one arm."""

    name: str
    bash: str
    editor: str
    finish: str
    order: tuple[str, ...]
    """The tools as the model is shown them, by what they do: `bash`, `editor`, `finish`."""
    described: bool = True
    """Say what tools and arguments are for; without it the schemas hold names and types only."""
    released: bool = False
    """Observations in the format of llm-in-sandbox 0.2.0, escaped brackets included."""
    max_chars: int = 16_000
    """Shown of each of stdout and stderr."""
    finished: str = "Finished."
    no_call_message: str = (
        "There was no tool call in your reply, so nothing was done. Every reply must call a tool; nobody can answer "
        "questions. When the answer is saved, call the tool that ends the task."
    )
    """What the model is told when a turn has no tool call."""
    wording: Wording = field(default_factory=Wording)

    def schemas(self) -> list[dict[str, Any]]:
        """OpenAI function schemas, in the order in which the model is shown them."""
        found = []
        for kind in self.order:
            shown = ("type", "description", "enum", "items") if self.described else ("type", "items")
            properties = {
                name: {key: value for key, value in schema.items() if key in shown}
                for name, schema in _PARAMETERS[kind].items()
            }
            function: dict[str, Any] = {"name": getattr(self, kind)}
            if self.described:
                function["description"] = _DESCRIPTIONS[kind]
            function["parameters"] = {"type": "object", "properties": properties, "required": list(_REQUIRED[kind])}
            found.append({"type": "function", "function": function})
        return found

    async def run(self, call: ToolCall, sandbox: Sandbox, timeout_s: float) -> Observation:
        """Carry out one call; a command may take `timeout_s`. Raises SandboxDied."""
        clock = time.monotonic()
        observation = Observation("", call.name, call.id)
        try:
            arguments = self._checked(call)
            if call.name == self.bash:
                result = await sandbox.exec(arguments["command"], timeout_s=timeout_s)
                observation = replace(
                    observation,
                    text=self._output(result, timeout_s),
                    exit_code=result.exit_code,
                    timed_out=result.timed_out,
                )
            elif call.name == self.editor:
                observation = replace(observation, text=await edit(arguments, sandbox, timeout_s, self.wording))
            else:
                observation = replace(observation, text=self.finished, finished=True)
        except (_Wrong, EditRefused) as wrong:
            observation = replace(observation, text=f"Error: {wrong}", is_error=True)
        except FileRefused as refused:
            observation = replace(observation, text=f"Error: {refused}", is_error=True)
        if self.released and call.name == self.editor:
            observation = replace(observation, text=f"Execution output of \\[{self.editor}]:\n{observation.text}")
        return replace(observation, duration_s=time.monotonic() - clock)

    def _checked(self, call: ToolCall) -> dict[str, Any]:
        """The arguments of a call, all of them known and of the right type. Raises _Wrong."""
        if call.error:
            raise _Wrong(call.error)
        kinds = {self.bash: "bash", self.editor: "editor", self.finish: "finish"}
        if call.name not in kinds:
            raise _Wrong(f"unknown tool {call.name!r}{nearest(call.name, kinds)}")
        known, required = _PARAMETERS[kinds[call.name]], _REQUIRED[kinds[call.name]]
        arguments = {name: value for name, value in call.arguments.items() if value is not None}
        for name in arguments:
            if name not in known:
                hint = nearest(name, known) if known else "; it takes none"
                raise _Wrong(f"{call.name} has no argument {name!r}{hint}")
        for name in required:
            if name not in arguments:
                raise _Wrong(f"{call.name} needs the argument {name!r}")
        for name, value in arguments.items():
            if wanted := _mistyped(value, known[name]):
                raise _Wrong(f"{call.name}: the argument {name!r} must be {wanted}, not {value!a:.80}")
        if call.name == self.bash and not arguments["command"].strip():
            raise _Wrong("the command is empty")
        if call.name == self.bash and "\0" in arguments["command"]:
            raise _Wrong("the command holds a NUL character, which no shell can take")
        return arguments

    def _output(self, result: ExecResult, timeout_s: float) -> str:
        stdout, stderr = (self._shown(data) for data in (result.stdout, result.stderr))
        code = result.exit_code if result.exit_code >= 0 else 128 - result.exit_code  # as a shell reports a signal
        if self.released:
            status = "-1" if result.timed_out else f"Error: Exit code {code}" if code else "0"
            stdout = stdout if stdout.strip() else ""
            if result.timed_out:
                stdout = f"The command took too long to execute (>{timeout_s:g}s)\n{stdout}"
            parts = [f"Exit code: {status}", f"Execution output of \\[{self.bash}]:", f"\\[STDOUT]\n{stdout}"]
            return "\n".join(parts + [f"\\[STDERR]\n{stderr}"] * bool(stderr.strip()))
        notes = []
        if result.timed_out:
            notes.append(f"[killed after {timeout_s:g} s; this is what it printed until then]")
        if result.background:
            notes.append("[a background process is still running]")
        if not self.described:
            parts = [stdout.rstrip("\n"), stderr.rstrip("\n"), *notes]
            parts.append(f"[exit code {code}]" if code and not result.timed_out else "")
            return "\n".join(part for part in parts if part) or "(no output)"
        status = "none" if result.timed_out else str(code)
        if result.exit_code < 0 and not result.timed_out:
            status += f" (signal {-result.exit_code})"
        parts = [f"Exit code: {status}", *notes]
        parts += [f"[stdout]\n{stdout.rstrip(chr(10))}"] if stdout else []
        parts += [f"[stderr]\n{stderr.rstrip(chr(10))}"] if stderr else []
        return "\n".join(parts if stdout or stderr else [*parts, "(no output)"])

    def _shown(self, data: bytes) -> str:
        return clip(terminal_text(data), MAX_LINES, self.max_chars, _RELEASED_CUT if self.released else _CUT)


def tool_set(name: str) -> ToolSet:
    """One of TOOL_SETS by name. Raises InputError."""
    if name not in TOOL_SETS:
        raise InputError(f"unknown tool set {name!r}{nearest(name, TOOL_SETS)}")
    return TOOL_SETS[name]


class _Wrong(Exception):
    """The call cannot be carried out; the message tells the model why."""


def _mistyped(value: Any, schema: Mapping[str, Any]) -> str:
    """What the value should have been, or empty."""
    kind = schema["type"]
    if kind == "string" and not isinstance(value, str):
        return "text"
    if kind == "integer" and not _is_integer(value):
        return "a whole number"
    if kind == "array" and not (isinstance(value, list) and all(map(_is_integer, value))):
        return "a list of whole numbers"
    if "enum" in schema and value not in schema["enum"]:
        return "one of " + ", ".join(schema["enum"])
    return ""


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_CUT = "[... {} left out ...]"
_RELEASED_CUT = f"{'-' * 50}\n<Observation truncated in middle for saving context>\n{'-' * 50}"

_DESCRIPTIONS = {
    "bash": "Run a command with bash in /testbed and get its exit code, standard output and standard error. "
    "Every call starts a fresh shell.",
    "editor": "View a text file (with line numbers) or a directory, create a file, replace a piece of text that occurs "
    "exactly once, or insert lines.",
    "finish": "End the task. Call it when the answer is saved.",
}
_PARAMETERS: dict[str, dict[str, dict[str, Any]]] = {
    "bash": {"command": {"type": "string", "description": "The command, for example `python script.py`."}},
    "editor": {
        "command": {"type": "string", "enum": list(COMMANDS), "description": "What to do."},
        "path": {"type": "string", "description": "File or directory, for example `/testbed/script.py`."},
        "file_text": {"type": "string", "description": "For create: the whole content of the file."},
        "old_str": {"type": "string", "description": "For str_replace: the text to replace, exactly as in the file."},
        "new_str": {"type": "string", "description": "For str_replace: the new text. For insert: the lines to insert."},
        "insert_line": {"type": "integer", "description": "For insert: the line to insert after; 0 is the beginning."},
        "view_range": {
            "type": "array",
            "items": {"type": "integer"},
            "description": "For view: the first and the last line to show, counted from 1; -1 is the end.",
        },
    },
    "finish": {},
}
_REQUIRED = {"bash": ("command",), "editor": ("command", "path"), "finish": ()}

_PAPER = ToolSet("paper", "bash", "file_editor", "finish", order=("bash", "editor", "finish"))
TOOL_SETS = {
    "paper": _PAPER,
    "reference": ToolSet(
        "reference",
        "execute_bash",
        "str_replace_editor",
        "submit",
        order=("editor", "bash", "finish"),
        released=True,
        finished="<<< Finished >>>",
        wording=Wording(
            viewed="Here's the result of running `cat -n` on {path}:",
            created="File created at {path}. Here's the result of running `cat -n` on {path}:",
            edited="The file {path} has been edited. Here's the result of running `cat -n` on a snippet of {path}:",
            folder="Here's the files and directories up to 2 levels deep in {path}, excluding hidden:",
            clipped="<response clipped: {left_out} more characters; search with `grep -n` for the lines you need>",
            review="Review the file and make sure that it is as expected. Edit it again if necessary.",
            echo=True,
        ),
    ),
    "compact": replace(
        _PAPER,
        name="compact",
        described=False,
        max_chars=2_000,
        no_call_message="No tool call. Call a tool.",
        wording=Wording(
            viewed="{path}:",
            created="Created {path}.",
            edited="Edited {path}.",
            folder="{path}:",
            clipped="[... {left_out} more characters ...]",
            snippets=False,
            max_chars=2_000,
        ),
    ),
}

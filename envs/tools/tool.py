"""One tool: what the model learns about it, how a call is checked, and what it does in the sandbox.

async def search(sandbox, arguments, timeout_s):
    found = await sandbox.exec(f"grep -rn -- {shlex.quote(arguments['word'])} .", timeout_s=timeout_s)
    return found.stdout.decode(errors="replace") or "nothing found"

tool = Tool("search", search, "Find a word in the files.", {"word": {"type": "string", "description": "The word."}})
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sandboxrl.data.errors import described, nearest
from sandboxrl.envs.sandbox.protocol import FileRefused, Sandbox, SandboxError
from sandboxrl.envs.trajectory import Observation, ToolCall

GRACE_S = 10.0
"""What a tool may take beyond the time of its command: reading and writing files, answering."""
TYPES = ("string", "integer", "number", "boolean", "array", "object")


class ToolRefused(Exception):
    """The call was not carried out; the message tells the model why. Raised by a tool, never by `Tool.call`."""


class ToolFailed(Exception):
    """The code of a tool is wrong: it raised, hung or answered no text. The trajectory is lost, as to the machine."""


@dataclass(frozen=True)
class Tool:
    """What a model can call by name."""

    name: str
    run: Callable[[Sandbox, Mapping[str, Any], float], Awaitable[str | Observation]]
    """`await run(sandbox, arguments, timeout_s)` with arguments that were checked: the text the model is shown, or an
    Observation. It may raise ToolRefused, and what the sandbox raises."""
    description: str = ""
    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """JSON schema of each argument: `type` (one of TYPES), `description`, and `enum` or `items` where they apply."""
    required: tuple[str, ...] | None = None
    """Arguments that a call must have; None: all."""
    finishes: bool = False
    """The trajectory ends after a call that was right."""
    heading: str = ""
    """Comes before every answer, errors included."""
    bounded: bool = False
    """`run` waits for nothing but the sandbox, whose calls come to an end by themselves."""

    @property
    def needed(self) -> tuple[str, ...]:
        return tuple(self.parameters) if self.required is None else self.required

    def schema(self, descriptions: bool = True) -> dict[str, Any]:
        """OpenAI function schema; without `descriptions` it holds names and types only."""
        shown = ("type", "description", "enum", "items") if descriptions else ("type", "items")
        properties = {
            name: {key: value for key, value in schema.items() if key in shown}
            for name, schema in self.parameters.items()
        }
        function: dict[str, Any] = {"name": self.name}
        if descriptions and self.description:
            function["description"] = self.description
        function["parameters"] = {"type": "object", "properties": properties, "required": list(self.needed)}
        return {"type": "function", "function": function}

    async def call(self, call: ToolCall, sandbox: Sandbox, timeout_s: float) -> Observation:
        """Carry out one call. The model is told what is wrong with it. Raises SandboxError, ToolFailed."""
        answer = Observation("", call.name, call.id)
        try:
            said = await self._run(self._checked(call), sandbox, timeout_s)
            if isinstance(said, Observation):
                answer = replace(said, name=call.name, call_id=call.id)
            else:
                answer = replace(answer, text=said, finished=self.finishes)
        except (ToolRefused, FileRefused) as refused:
            answer = replace(answer, text=f"Error: {refused}", is_error=True)
        return replace(answer, text=self.heading + answer.text)

    async def _run(self, arguments: Mapping[str, Any], sandbox: Sandbox, timeout_s: float) -> str | Observation:
        try:
            running = self.run(sandbox, arguments, timeout_s)
            said: object = await (running if self.bounded else asyncio.wait_for(running, timeout_s + GRACE_S))
        except (ToolRefused, SandboxError):
            raise
        except TimeoutError as error:
            await sandbox.exec("true", timeout_s=GRACE_S)  # where it is the sandbox that does not answer, this says so
            raise ToolFailed(f"tool {self.name!r} did not answer within {timeout_s + GRACE_S:g} s") from error
        except Exception as error:
            raise ToolFailed(f"tool {self.name!r}: {described(error)}") from error
        if not isinstance(said, str | Observation):
            raise ToolFailed(f"tool {self.name!r} answered {type(said).__name__}, not text")
        return said

    def _checked(self, call: ToolCall) -> dict[str, Any]:
        """The arguments of a call, all of them known and of the right type. Raises ToolRefused."""
        if call.error:
            raise ToolRefused(call.error)
        arguments = {name: value for name, value in call.arguments.items() if value is not None}
        for name in arguments:
            if name not in self.parameters:
                hint = nearest(name, self.parameters) if self.parameters else "; it takes none"
                raise ToolRefused(f"{call.name} has no argument {name!r}{hint}")
        for name in self.needed:
            if name not in arguments:
                raise ToolRefused(f"{call.name} needs the argument {name!r}")
        for name, value in arguments.items():
            if wanted := _mistyped(value, self.parameters[name]):
                raise ToolRefused(f"{call.name}: the argument {name!r} must be {wanted}, not {value!a:.80}")
        return arguments


def wrong_shape(found: Any) -> str:
    """What is wrong with an object that should be a Tool; empty: nothing."""
    if not isinstance(found, Tool):
        return f"must be a sandboxrl.Tool, not {type(found).__name__}"
    if not found.name or not isinstance(found.name, str):
        return "its name must be text"
    if not any(map(inspect.iscoroutinefunction, (found.run, type(found.run).__call__))):
        return "its run must be an async function"
    try:
        inspect.signature(found.run).bind(None, {}, 0.0)
    except TypeError:
        return "its run must take (sandbox, arguments, timeout_s)"
    for name, schema in found.parameters.items():
        if not isinstance(schema, Mapping) or schema.get("type") not in TYPES:
            return f"the parameter {name!r} needs a type: {', '.join(TYPES)}"
    for name in found.needed:
        if name not in found.parameters:
            return f"it requires {name!r}, which is not among its parameters"
    return ""


def _mistyped(value: Any, schema: Mapping[str, Any]) -> str:
    """What the value should have been, or empty."""
    kind = schema["type"]
    if kind == "array":
        item = schema.get("items", {}).get("type", "")
        whole = isinstance(value, list) and (not item or all(_is(one, item) for one in value))
        return "" if whole else f"a list of {_NAMES[item][1]}" if item else "a list"
    if not _is(value, kind):
        return _NAMES[kind][0]
    if "enum" in schema and value not in schema["enum"]:
        return "one of " + ", ".join(map(str, schema["enum"]))
    return ""


_NAMES = {
    "string": ("text", "texts"),
    "integer": ("a whole number", "whole numbers"),
    "number": ("a number", "numbers"),
    "boolean": ("true or false", "true or false"),
    "object": ("an object", "objects"),
    "array": ("a list", "lists"),
}


def _is(value: Any, kind: str) -> bool:
    if kind in ("integer", "number"):
        return isinstance(value, int if kind == "integer" else int | float) and not isinstance(value, bool)
    return isinstance(value, {"string": str, "boolean": bool, "object": dict, "array": list}[kind])

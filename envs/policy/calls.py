"""Strict parsing of the tool calls a policy wrote: one ToolCall per attempt, and a bad one never hides the others.

    parse(text, "hermes")              <tool_call>{"name": ..., "arguments": {...}}</tool_call>
    parse(text, "qwen3_coder", tools)  <tool_call><function=NAME><parameter=KEY>VALUE</parameter></function></tool_call>

A call that cannot be understood carries `error`, one line that tells the policy what was wrong and where; nothing is
guessed. JSON is read by a JSON reader, so `</tool_call>` inside a string ends nothing. XML values are raw text: a value
ends at the first `</parameter>` that is followed by another parameter or by the end of the call, and never reaches
into another call.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from sandboxrl.data.errors import InputError, nearest
from sandboxrl.envs.trajectory import ToolCall

FORMATS = ("hermes", "qwen3_coder")

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_BLANK = re.compile(r"\s*")
_BOUNDARY = re.compile(r"</?tool_call>")
_FUNCTION = re.compile(r"<function=([^>\n]*)>")
_PARAMETER = re.compile(r"<parameter=([^>\n]*)>")
_VALUE_END = re.compile(r"</parameter>\s*(?=<parameter=|</function>\s*(?:</?tool_call>|\S*\Z)|</?tool_call>|\Z)")
_NEXT_CALL = re.compile(r"<tool_call>\s*<function=")


def parse(text: str, call_format: str, tools: Sequence[Mapping[str, Any]] = ()) -> tuple[str, tuple[ToolCall, ...]]:
    """What was said outside the calls (trimmed), and the calls in order with ids `call_0`, `call_1` …

    `tools` are OpenAI function schemas; only `qwen3_coder` needs them, to cast its untyped values.
    """
    if call_format not in FORMATS:
        raise InputError(f"unknown call format {call_format!r}{nearest(call_format, FORMATS)}")
    said: list[str] = []
    calls: list[ToolCall] = []
    at = 0
    while (start := text.find(OPEN, at)) >= 0:
        said.append(text[at:start])
        body = start + len(OPEN)
        try:
            if call_format == "hermes":
                name, arguments, at = _hermes(text, body)
            else:
                name, arguments, at = _coder(text, body, tools)
            call = ToolCall(name, arguments, f"call_{len(calls)}")
        except _Bad as bad:
            at = bad.resume
            call = ToolCall(bad.name, {}, f"call_{len(calls)}", bad.message)
        calls.append(call)
    said.append(text[at:])
    return "".join(said).strip(), tuple(calls)


def write(name: str, arguments: Mapping[str, Any], call_format: str) -> str:
    """The text of one call, as the chat templates of the format write it; `parse` is its inverse."""
    if call_format == "hermes":
        return f"{OPEN}\n{json.dumps({'name': name, 'arguments': dict(arguments)}, ensure_ascii=False)}\n{CLOSE}"
    values = (
        (key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        for key, value in arguments.items()
    )
    parameters = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in values)
    return f"{OPEN}\n<function={name}>\n{parameters}</function>\n{CLOSE}"


def read_arguments(value: Any) -> dict[str, Any]:
    """The arguments of a call as an object: an object, JSON text of one (twice encoded, too), or nothing (null, "").

    Raises ValueError with what is wrong, in words meant for the policy.
    """
    try:
        for _ in range(2):
            if isinstance(value, str):
                value = _load(value) if value.strip() else None
    except ValueError as error:
        raise ValueError(f"arguments are not valid JSON: {error}") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"arguments must be a JSON object, not {_kind(value)}")
    check_text(value)
    return value


def check_text(value: Any) -> None:
    """Raises ValueError if some text in `value` is not Unicode text (JSON escapes can spell half a surrogate pair)."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"text holds an unpaired surrogate {error.object[error.start]!a}") from None


class _Bad(Exception):
    def __init__(self, message: str, resume: int, name: str = "") -> None:
        super().__init__(message)
        self.message, self.resume, self.name = message, resume, name


def _hermes(text: str, body: int) -> tuple[str, dict[str, Any], int]:
    start = _skip_blank(text, body)
    try:
        value, end = _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError) as error:
        where = error.pos if isinstance(error, json.JSONDecodeError) else start
        reason = _explain(error, start)
        if text.startswith(CLOSE, start):
            reason = "the call is empty"
        raise _Bad(f"the tool call is not valid JSON: {reason}", _resume(text, where)) from None
    name = value.get("name") if isinstance(value, dict) else None
    name = name if isinstance(name, str) else ""
    close = _skip_blank(text, end)
    if not text.startswith(CLOSE, close):
        found = text[close : close + 20]
        found = f"unexpected text after the JSON object: {found!r}" if found else "the text ended after the JSON object"
        raise _Bad(f"the tool call has no {CLOSE}: {found}", _resume(text, close), name)
    end = close + len(CLOSE)
    if not isinstance(value, dict):
        raise _Bad(f"the tool call must be a JSON object, not {_kind(value)}", end)
    if not name:
        raise _Bad('the tool call has no "name" (it must be non-empty text)', end)
    if "arguments" not in value and (extra := sorted(set(value) - {"name", "id", "type"})):
        raise _Bad(f'the tool call has no "arguments" object; found {", ".join(map(repr, extra))} instead', end, name)
    try:
        check_text(name)
        return name, read_arguments(value.get("arguments")), end
    except ValueError as error:
        raise _Bad(str(error), end, name.encode("utf-8", "replace").decode()) from None


def _coder(text: str, body: int, tools: Sequence[Mapping[str, Any]]) -> tuple[str, dict[str, Any], int]:
    function = _FUNCTION.match(text, _skip_blank(text, body))
    if not function:
        found = text[_skip_blank(text, body) :][:20]
        raise _Bad(f"expected <function=NAME> after {OPEN}, found {found!r}", _resume(text, body))
    name = function[1].strip()
    if not name:
        raise _Bad("<function=> has no name", _resume(text, function.end()))
    schema = parameters_of(tools, name)
    arguments: dict[str, Any] = {}
    at = _skip_blank(text, function.end())
    while parameter := _PARAMETER.match(text, at):
        key = parameter[1].strip()
        end = _VALUE_END.search(text, parameter.end())
        following = _NEXT_CALL.search(text, parameter.end(), end.start() if end else len(text))
        if not end or following:
            raise _Bad(f"parameter {key!r} has no </parameter>", _resume(text, parameter.end()), name)
        if key in arguments:
            raise _Bad(f"parameter {key!r} is given twice", _resume(text, end.end()), name)
        value = text[parameter.end() : end.start()].removeprefix("\n").removesuffix("\n")
        arguments[key] = _cast(value, schema.get(key, {}))
        at = end.end()
    for tag in ("</function>", CLOSE):
        if not text.startswith(tag, at):
            found = text[at : at + 20]
            raise _Bad(f"the tool call has no {tag}: found {found!r} instead", _resume(text, at), name)
        at += len(tag)
        if tag != CLOSE:
            at = _skip_blank(text, at)
    return name, arguments, at


def parameters_of(tools: Sequence[Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    """JSON schemas of the parameters of one function; empty if there is no such function."""
    for tool in tools:
        function = tool.get("function", tool)
        if function.get("name") == name:
            properties: Mapping[str, Any] = (function.get("parameters") or {}).get("properties") or {}
            return properties
    return {}


def _cast(value: str, schema: Mapping[str, Any]) -> Any:
    """A raw value as the type its schema names; text that does not fit stays text, for the tool to refuse."""
    if schema.get("type", "string") == "string":
        return value
    try:
        return _load(value)
    except ValueError:
        return {"True": True, "False": False, "None": None}.get(value.strip(), value)


def _skip_blank(text: str, at: int) -> int:
    match = _BLANK.match(text, at)
    return match.end() if match else at


def _resume(text: str, at: int) -> int:
    """Where to read on after a bad call: behind its closing tag, or at the next opening tag, whichever comes first."""
    boundary = _BOUNDARY.search(text, at)
    if not boundary:
        return len(text)
    return boundary.end() if boundary[0] == CLOSE else boundary.start()


def _load(text: str) -> Any:
    text = text.strip()
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(_explain(error, 0)) from None


def _explain(error: ValueError | RecursionError, start: int) -> str:
    if isinstance(error, json.JSONDecodeError):
        what = error.msg.removesuffix(" at")
        if what == "Invalid control character":
            what += " (a newline in a string is written \\n)"
        return f"{what} at character {max(error.pos - start, 0)}"
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "a boolean"
    kinds = {str: "text", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return kinds.get(type(value), "null")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!a} is given twice")
        found[key] = value
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)

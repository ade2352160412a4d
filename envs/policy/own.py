"""A user's own agent as a Policy: an async function that is given the messages so far and answers with the next one.

    async def agent(messages, tools, seed):
        return "The answer is B."
        return {"content": "I look.", "tool_calls": [{"name": "bash", "arguments": {"command": "ls"}}]}

What answers may also be a Policy itself (an object with `start`), for one that keeps state or exact tokens.
"""

import asyncio
import inspect
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from sandboxrl.data.errors import described
from sandboxrl.data.plugin import plugged, takes
from sandboxrl.envs.policy.protocol import EngineLost, Message, Policy, Reply
from sandboxrl.envs.trajectory import Observation, Tokens, ToolCall

Answer = Callable[[Sequence[Message], Sequence[Mapping[str, Any]], int], Awaitable[str | Mapping[str, Any]]]


def load_policy(value: str) -> Policy:
    """The policy that `value` (`my_agent.py:agent`) names; a class is made once, without arguments. Raises
    InputError."""
    found: Any = plugged(value, {}, "policy", _wrong)
    made: Any = found() if inspect.isclass(found) else found
    policy: Policy = made if hasattr(made, "start") else FunctionPolicy(value, made)
    return policy


def _wrong(found: Any) -> str:
    if inspect.isclass(found):
        try:
            found = found()
        except Exception as error:
            return f"cannot be made without arguments: {described(error)}"
    if hasattr(found, "start"):
        return takes(found.start, ("messages", "tools", "seed"))
    if not any(map(inspect.iscoroutinefunction, (found, type(found).__call__))):
        return "must be an async function of (messages, tools, seed), or have a method start(messages, tools, seed)"
    return takes(found, ("messages", "tools", "seed"))


class FunctionPolicy:
    """A Policy made of an async function. What it raises, or gives back in a wrong form, is EngineLost: the
    trajectory is lost to the machine, never scored."""

    def __init__(self, name: str, answer: Answer) -> None:
        self.name, self.answer = name, answer

    def start(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], seed: int = 0
    ) -> "FunctionConversation":
        return FunctionConversation(self, messages, tools, seed)


class FunctionConversation:
    """One trajectory's messages, in the form of OpenAI's chat API. Tokens are not counted."""

    num_tokens = 0

    def __init__(
        self, policy: FunctionPolicy, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], seed: int
    ) -> None:
        self._policy, self._tools, self._seed = policy, tools, seed
        self._messages: list[dict[str, Any]] = [dict(message) for message in messages]
        self._num_calls = 0

    async def reply(self, max_tokens: int, timeout_s: float) -> Reply:
        messages = [dict(message) for message in self._messages]
        try:
            said = await asyncio.wait_for(self._policy.answer(messages, self._tools, self._seed), timeout_s)
        except TimeoutError:
            return Reply("", (), "timeout", 0)
        except EngineLost:
            raise
        except Exception as error:
            raise EngineLost(f"policy {self._policy.name}: {described(error)}") from error
        text, calls = self._read(said)
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if calls:
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": json.dumps(call.arguments)},
                }
                for call in calls
            ]
        self._messages.append(message)
        return Reply(text, calls, "stop", 0)

    def observe(self, observations: Sequence[Observation]) -> int:
        for one in observations:
            answers = {"role": "tool", "tool_call_id": one.call_id} if one.call_id else {"role": "user"}
            self._messages.append({**answers, "content": one.text})
        return 0

    def tokens(self) -> Tokens | None:
        return None

    def _read(self, said: object) -> tuple[str, tuple[ToolCall, ...]]:
        if isinstance(said, str):
            return said, ()
        if not isinstance(said, Mapping):
            raise EngineLost(f"policy {self._policy.name} gave back {type(said).__name__}, not text or a message")
        text, wanted = said.get("content") or "", said.get("tool_calls") or ()
        if not isinstance(text, str) or not isinstance(wanted, Sequence) or isinstance(wanted, str):
            raise EngineLost(f"policy {self._policy.name}: a message has text `content` and a list `tool_calls`")
        return text, tuple(self._call(one) for one in wanted)

    def _call(self, wanted: object) -> ToolCall:
        self._num_calls += 1
        call_id = f"call_{self._num_calls}"
        inner = wanted.get("function", wanted) if isinstance(wanted, Mapping) else {}
        name, arguments = inner.get("name"), inner.get("arguments", {})
        if not isinstance(name, str):
            raise EngineLost(
                f"policy {self._policy.name}: a tool call has a `name` and `arguments`, not {wanted!r:.80}"
            )
        try:
            arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        except ValueError as error:  # as a model may write it: the tool tells it so
            return ToolCall(name, {}, call_id, error=f"the arguments are not valid JSON: {error}")
        if not isinstance(arguments, Mapping):
            return ToolCall(name, {}, call_id, error="the arguments must be a JSON object")
        return ToolCall(name, dict(arguments), call_id)

"""Any OpenAI-compatible chat server as a Policy: vLLM, SGLang, a hosted service.

A server may fail in every way a network allows: refuse, hang, cut its answer, never end it, answer with something else.
All of that is retried within limits and then EngineLost, never a score; time that runs out while the server has not
answered is its failure too, not the policy's. What the model itself got wrong (a call of broken JSON) is answered like
any wrong call. One request is one whole JSON answer, read up to a bound: servers parse tool calls most reliably there.

The key comes from an environment variable and is written nowhere: not in a repr, an exception or a log.
"""

import asyncio
import json
import os
import random
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from sandboxrl.data.errors import InputError, nearest
from sandboxrl.envs.policy.calls import read_arguments
from sandboxrl.envs.policy.chat import turn_seed
from sandboxrl.envs.policy.protocol import EngineLost, Message, Reply, Sampling
from sandboxrl.envs.trajectory import Observation, Tokens, ToolCall

KEY_VARIABLE = "OPENAI_API_KEY"
MAX_SHRINKS = 20
_JITTER = random.Random()
_OVERFLOW = re.compile(
    r"context.?(?:length|window|size)|context limit|max_model_len|(?:prompt|input) is too long", re.I
)
_ROOM = tuple(  # how servers say what fits (`limit`) and what the prompt takes (`used`)
    re.compile(pattern, re.I | re.S)
    for pattern in (
        r"cannot be greater than max_model_len=(?P<limit>\d+)",  # vLLM 0.32; it fits the prompt in by itself
        r"length is (?P<limit>\d+) tokens.*?request has (?P<used>\d+) input tokens",  # vLLM
        r"length is (?P<limit>\d+) tokens.*?contains (?:at least )?(?P<used>\d+) (?:input tokens|characters)",  # vLLM
        r"length is (?P<limit>\d+) tokens.*?\((?P<used>\d+) in the messages",  # OpenAI, older vLLM
        r"length is (?P<limit>\d+) tokens.*?resulted in (?P<used>\d+) tokens",  # OpenAI
        r"length of (?P<limit>\d+) tokens.*?: (?P<used>\d+) tokens from the input",  # SGLang
        r"context limit: (?P<used>\d+) \+ \d+ > (?P<limit>\d+)",  # Anthropic
        r"too long: (?P<used>\d+) tokens > (?P<limit>\d+)",  # Anthropic
        r"n_ctx\W+(?P<limit>\d+)\D.*n_prompt_tokens\W+(?P<used>\d+)",  # llama.cpp
        r"n_prompt_tokens\W+(?P<used>\d+)\D.*n_ctx\W+(?P<limit>\d+)",
    )
)


class EndpointPolicy:
    """A model behind `base_url` (for example `http://localhost:8000/v1`).

    `extra_body` goes into every request as it is, last. `key_variable` names the environment variable with the key; the
    default one may be missing (a server of your own), another one may not. An answer is tried for `attempts` times,
    each for `request_timeout_s` at most. One instance belongs to one event loop; `close` it there.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        sampling: Sampling | None = None,
        *,
        extra_body: Mapping[str, Any] | None = None,
        key_variable: str = KEY_VARIABLE,
        attempts: int = 6,
        request_timeout_s: float = 1200.0,
        backoff_s: float = 0.5,
        max_backoff_s: float = 30.0,
        replay_reasoning: bool = True,
    ) -> None:
        """Size: a client's settings, each with a default; only `base_url` and `model` must be given."""
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"an endpoint is a URL such as http://localhost:8000/v1, not {_bare_url(base_url)!r}")
        if key_variable != KEY_VARIABLE and not os.environ.get(key_variable):
            raise InputError(f"the environment variable {key_variable}, which should hold the key, is not set")
        self.base_url, self.model, self.sampling = base_url, model, sampling or Sampling()
        self.extra_body = dict(extra_body or {})
        self.key_variable, self.attempts, self.request_timeout_s = key_variable, attempts, request_timeout_s
        self.backoff_s, self.max_backoff_s, self.replay_reasoning = backoff_s, max_backoff_s, replay_reasoning
        self._limit_field = "max_tokens"
        self._opened: Any = None

    def __repr__(self) -> str:
        return f"EndpointPolicy({self.name!r}, {self.model!r})"

    @property
    def name(self) -> str:
        """The URL without what may be secret in it."""
        return _bare_url(self.base_url)

    def start(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], seed: int = 0
    ) -> "EndpointConversation":
        return EndpointConversation(self, messages, tools, seed)

    async def check(self) -> None:
        """Ask what the server serves before long work begins. Raises InputError: nobody there, key or model refused."""
        import openai

        try:
            served = await self._client().models.list(timeout=30.0)
            names = [str(one.id) for one in served.data or ()]
        except openai.APIStatusError as error:
            if error.status_code in (401, 403):
                raise InputError(f"{self.name} refuses the key in {self.key_variable} ({error.status_code})") from None
            return  # not every server lists its models
        except openai.OpenAIError as error:
            raise InputError(f"{self.name} does not answer: {self._clean(str(error))}") from None
        except (ValueError, TypeError, AttributeError):
            return  # an answer of another shape: the first request will tell
        if names and self.model not in names:
            raise InputError(f"{self.name} does not serve {self.model!r}{nearest(self.model, names)}")

    async def complete(
        self, messages: Sequence[Message], tools: Sequence[Any], max_tokens: int, timeout_s: float, seed: int
    ) -> "Completion":
        """One answer, after as many attempts as it takes and `attempts` allows. Raises EngineLost."""
        deadline = time.monotonic() + timeout_s
        failures = shrunk = 0
        while True:
            left = deadline - time.monotonic()
            limit_s = min(left, self.request_timeout_s)
            try:
                if limit_s <= 0:
                    raise _Failed(f"no answer in the {timeout_s:.0f} s there were", final=True)
                async with asyncio.timeout(limit_s):
                    return await self._request(messages, tools, max_tokens, limit_s, seed)
            except TimeoutError:
                failure = _Failed(f"no complete answer within {limit_s:.1f} s", final=limit_s == left)
            except _Overflow as overflow:
                if overflow.left < 1:
                    return Completion("", "", [], "length", 0, 0, "")
                shrunk += 1
                if shrunk < MAX_SHRINKS:
                    max_tokens = overflow.left if overflow.left < max_tokens else max_tokens * 9 // 10
                    continue
                failure = _Failed("no number of tokens fits its context", final=True)
            except _OtherField:
                self._limit_field = "max_completion_tokens"
                continue
            except _Failed as error:
                failure = error
            failures += 1
            backoff_s = min(self.backoff_s * 2 ** (failures - 1), self.max_backoff_s) * _JITTER.uniform(0.5, 1.0)
            wait_s = max(failure.wait_s, backoff_s)
            if failure.final or failures >= self.attempts or wait_s >= deadline - time.monotonic():
                tries = f" (attempt {failures} of {self.attempts})" if self.attempts > 1 else ""
                raise EngineLost(f"{self.name}: {self._clean(str(failure))}{tries}") from None
            await asyncio.sleep(wait_s)

    async def close(self) -> None:
        if self._opened is not None:
            await self._opened.close()
            self._opened = None

    def _client(self) -> Any:
        if self._opened is None:
            from openai import AsyncOpenAI

            key = os.environ.get(self.key_variable) or "none"
            self._opened = AsyncOpenAI(api_key=key, base_url=self.base_url, max_retries=0)
        return self._opened

    async def _request(
        self, messages: Sequence[Message], tools: Sequence[Any], max_tokens: int, timeout_s: float, seed: int
    ) -> "Completion":
        import openai

        body: dict[str, Any] = {"temperature": self.sampling.temperature, "top_p": self.sampling.top_p, "seed": seed}
        for name, neutral in (("top_k", -1), ("min_p", 0.0), ("repetition_penalty", 1.0)):
            if (value := getattr(self.sampling, name)) != neutral:
                body[name] = value
        if tools:
            body["tools"] = list(tools)
        limit_field = self._limit_field
        body[limit_field] = max_tokens
        try:
            async with self._client().chat.completions.with_streaming_response.create(
                model=self.model, messages=list(messages), timeout=timeout_s, extra_body={**body, **self.extra_body}
            ) as response:
                data = await _read(response, (1 << 20) + 64 * max_tokens)
        except openai.APIStatusError as error:
            raise self._refusal(error, max_tokens, limit_field) from None
        except openai.OpenAIError as error:
            reason = error.__cause__ or error
            raise _Failed(f"{type(reason).__name__}: {reason}") from None
        return _completion(data, max_tokens)

    def _refusal(self, error: Any, max_tokens: int, limit_field: str) -> "_Failed | _Overflow | _OtherField":
        """What an answer with an error status means."""
        status, text = error.status_code, str(error.message)
        if status in (401, 403):
            return _Failed(f"the key in {self.key_variable} was refused ({status})", final=True)
        if status in (400, 413, 422):
            if "max_completion_tokens" in text and "instead" in text and limit_field == "max_tokens":
                return _OtherField()
            if _OVERFLOW.search(text) and (left := _room(text, max_tokens)) is not None:
                return _Overflow(left)
        retried = status in (408, 409, 425, 429) or status >= 500
        return _Failed(f"status {status}: {text}", _retry_after(error.response.headers), final=not retried)

    def _clean(self, text: str) -> str:
        """One bounded line without the key."""
        if key := os.environ.get(self.key_variable):
            text = text.replace(key, "***")
        return " ".join(text.replace(self.base_url, self.name).split())[:300]


class EndpointConversation:
    """One trajectory's messages. The server's own counts say how many tokens; without them the counts stay 0."""

    def __init__(
        self, policy: EndpointPolicy, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], seed: int
    ) -> None:
        self._policy, self._tools, self._seed = policy, tools, seed
        self._messages: list[dict[str, Any]] = [dict(message) for message in messages]
        self._unanswered: list[str] = []
        self._num_replies = 0
        self._num_tokens = 0

    @property
    def num_tokens(self) -> int:
        return self._num_tokens

    async def reply(self, max_tokens: int, timeout_s: float) -> Reply:
        """The model's next turn. A context that is full is an empty reply with finish `length`."""
        seed = turn_seed(self._seed, self._num_replies) >> 32  # 31 bits: what every server takes
        answer = await self._policy.complete(self._messages, self._tools, max_tokens, timeout_s, seed)
        self._num_replies += 1
        self._num_tokens = answer.num_tokens or self._num_tokens
        message: dict[str, Any] = {"role": "assistant", "content": answer.text}
        if answer.reasoning and self._policy.replay_reasoning:
            message[answer.reasoning_field] = answer.reasoning
        calls, replayed = _calls(answer.tool_calls, self._num_replies)
        if replayed:
            message["tool_calls"] = replayed
        self._messages.append(message)
        self._unanswered = [call.id for call in calls]
        return Reply(answer.text, calls, answer.finish, answer.num_sampled, reasoning=answer.reasoning)

    def observe(self, observations: Sequence[Observation]) -> int:
        """Every call of the last reply gets its answer by id; what answers no call becomes a user message."""
        by_id = {one.call_id: one.text for one in observations if one.call_id}
        for call_id in self._unanswered:
            text = by_id.pop(call_id, "This call was not carried out.")
            self._messages.append({"role": "tool", "tool_call_id": call_id, "content": text})
        self._unanswered = []
        said = [*by_id.values(), *(one.text for one in observations if not one.call_id)]
        self._messages += [{"role": "user", "content": text} for text in said]
        return 0

    def tokens(self) -> Tokens | None:
        return None


@dataclass(frozen=True)
class Completion:
    """What a server answered, checked."""

    text: str
    reasoning: str
    tool_calls: list[Any]
    """As they came: everything inside may be wrong."""
    finish: str
    num_sampled: int
    num_tokens: int
    """Prompt and answer, as the server counts."""
    reasoning_field: str
    """The name under which the server gives (and takes) reasoning."""


class _Failed(Exception):
    """One attempt failed; `final` means that another one would, too."""

    def __init__(self, message: str, wait_s: float = 0.0, final: bool = False) -> None:
        super().__init__(message)
        self.wait_s, self.final = wait_s, final


class _Overflow(Exception):
    """The context is full; `left` tokens may still be sampled."""

    def __init__(self, left: int) -> None:
        super().__init__(left)
        self.left = left


class _OtherField(Exception):
    """The server wants `max_completion_tokens`."""


async def _read(response: Any, max_bytes: int) -> bytes:
    data = bytearray()
    try:
        async for part in response.iter_bytes():
            data += part
            if len(data) > max_bytes:
                break
    except Exception as error:  # whatever the transport raises for a cut or garbled answer
        raise _Failed(f"the answer was cut: {type(error).__name__}: {error}") from None
    if len(data) > max_bytes:
        raise _Failed(f"the answer did not end within {max_bytes} bytes")
    return bytes(data)


def _completion(data: bytes, max_tokens: int) -> Completion:
    """Raises _Failed for anything that is not a chat completion."""
    try:
        row = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _Failed(f"the answer is not JSON: {error}") from None
    if isinstance(row, dict) and row.get("error"):
        raise _Failed(f"the answer is an error: {row['error']}")
    try:
        choice = row["choices"][0]
        message, finish = choice["message"], choice["finish_reason"]
        text = message.get("content") or ""
        field = "reasoning_content" if message.get("reasoning_content") else "reasoning"
        reasoning = message.get(field) or ""
        calls = message.get("tool_calls") or []
        usage = row.get("usage") or {}
        sampled, prompt = (int(usage.get(name) or 0) for name in ("completion_tokens", "prompt_tokens"))
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise _Failed(f"the answer is no chat completion: {type(error).__name__}: {error}") from None
    if not (isinstance(text, str) and isinstance(reasoning, str) and isinstance(calls, list)):
        raise _Failed("the answer is no chat completion: text, reasoning or calls have the wrong type")
    if not isinstance(finish, str) or finish in ("abort", "error", "content_filter"):
        raise _Failed(f"the answer did not end by itself: finish_reason {finish!r}")
    cut = finish in ("length", "max_tokens") or sampled > max_tokens
    finish = "length" if cut else "stop"
    return Completion(_unicode(text), _unicode(reasoning), calls, finish, sampled, prompt + sampled, field)


def _calls(raw: Sequence[Any], turn: int) -> tuple[tuple[ToolCall, ...], list[dict[str, Any]]]:
    """The calls of a reply, and the same calls as they may be sent back: unique ids, arguments that are objects."""
    calls: list[ToolCall] = []
    replayed: list[dict[str, Any]] = []
    for i, one in enumerate(raw):
        call_id = one.get("id") if isinstance(one, dict) else None
        function = one.get("function") if isinstance(one, dict) else None
        function = function if isinstance(function, dict) else {}
        name, value = function.get("name"), function.get("arguments")
        if not isinstance(call_id, str) or not call_id or call_id in {call.id for call in calls}:
            call_id = f"call_{turn}_{i}"
        try:
            if not isinstance(name, str) or not name:
                raise ValueError("the tool call has no name")
            call = ToolCall(_unicode(name), read_arguments(value), _unicode(call_id))
            sent = json.dumps(call.arguments, ensure_ascii=False)
        except ValueError as error:
            call = ToolCall(_unicode(str(name or "")), {}, _unicode(call_id), str(error))
            sent = json.dumps({"unreadable": _unicode(str(value))}, ensure_ascii=False)
        calls.append(call)
        replayed.append(
            {"id": call.id, "type": "function", "function": {"name": call.name or "unknown", "arguments": sent}}
        )
    return tuple(calls), replayed


def _unicode(text: str) -> str:
    """Half a surrogate pair, which JSON can spell and nothing can store, becomes a question mark."""
    return text.encode("utf-8", "replace").decode()


def _room(text: str, max_tokens: int) -> int | None:
    """Tokens that may still be sampled after an overflow, by the server's own words; without them half of what was
    asked for, and None (not known) from 64 down."""
    for pattern in _ROOM:
        if found := pattern.search(text):
            numbers = found.groupdict()
            return int(numbers["limit"]) - int(numbers.get("used") or 0)
    return max_tokens // 2 if max_tokens >= 128 else None


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds the server asks to wait (RFC 9110, section 10.2.3), 0 if it does not say."""
    value = headers.get("retry-after") or ""
    try:
        return max(float(value), 0.0)
    except ValueError:
        pass
    try:
        return max(parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except (TypeError, ValueError):
        return 0.0


def _bare_url(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))

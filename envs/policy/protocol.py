"""The seam between a rollout and whatever answers: an engine of our own (tokens) or a chat endpoint (messages).

    Policy.start(messages, tools) -> Conversation      one per trajectory
    Conversation.reply(...)       -> Reply             the policy speaks
    Conversation.observe(...)                          the computer answers

`envs/policy/chat.py` makes a Policy of an Engine (token-exact); `envs/policy/endpoint.py` makes one of any
OpenAI-compatible server.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sandboxrl.data.errors import InputError
from sandboxrl.envs.trajectory import Observation, Tokens, ToolCall

Message = Mapping[str, Any]
"""`{"role": ..., "content": ...}` as chat templates and OpenAI-compatible servers take it."""


class EngineLost(Exception):
    """The engine or endpoint failed, after its own retries. The machine's fault, never a score."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. Training needs the neutral values: anything that cuts the support (top_p, top_k, min_p,
    penalties) makes the engine's log-probabilities those of another distribution than the learner's."""

    temperature: float = 1.0
    """0: always the most likely token."""
    top_p: float = 1.0
    """Draw from the most likely tokens that hold this much probability."""
    top_k: int = -1
    """Draw from so many most likely tokens; -1: all."""
    min_p: float = 0.0
    """Drop tokens less likely than this share of the most likely one."""
    repetition_penalty: float = 1.0
    """Above 1: make tokens that occurred before less likely."""

    def __post_init__(self) -> None:
        for name, holds, valid in (
            ("temperature", self.temperature >= 0, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", self.top_k == -1 or self.top_k >= 1, "-1 or at least 1"),
            ("min_p", 0 <= self.min_p <= 1, "between 0 and 1"),
            ("repetition_penalty", self.repetition_penalty > 0, "above 0"),
        ):
            if not holds:
                raise InputError(f"sampling.{name} must be {valid}, not {getattr(self, name)}")


@dataclass(frozen=True)
class Sampled:
    """What an engine drew. `ids` ends with the stop token when `finish` is `stop`."""

    ids: list[int]
    logprobs: list[float]
    versions: list[int]
    finish: str
    """`stop` (drew a stop token), `length` (token limit) or `timeout`."""


class Engine(Protocol):
    """Token ids in, token ids out."""

    async def generate(
        self, ids: Sequence[int], max_tokens: int, sampling: Sampling, timeout_s: float, seed: int | None = None
    ) -> Sampled:
        """Continue `ids`. On timeout returns what was drawn so far. Raises EngineLost."""
        ...


@dataclass(frozen=True)
class Reply:
    """One turn of the policy, parsed."""

    text: str
    calls: tuple[ToolCall, ...]
    finish: str
    """As in Sampled; endpoints map their own reasons to these."""
    num_sampled: int
    start: int = -1
    end: int = -1
    reasoning: str = ""


class Conversation(Protocol):
    """One trajectory's dialogue, append-only."""

    @property
    def num_tokens(self) -> int:
        """Tokens of everything said so far, prompt included (an endpoint's own count, 0 before the first reply)."""
        ...

    async def reply(self, max_tokens: int, timeout_s: float) -> Reply:
        """The policy's next turn. Raises EngineLost."""
        ...

    def observe(self, observations: Sequence[Observation]) -> int:
        """Append the computer's answers to the last reply; returns the number of environment tokens (0 if unknown)."""
        ...

    def tokens(self) -> Tokens | None:
        """The exact tokens, or None where the policy gives none."""
        ...


class Policy(Protocol):
    def start(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], seed: int = 0) -> Conversation:
        """Open a conversation. `tools` are OpenAI function schemas; empty in LLM mode."""
        ...

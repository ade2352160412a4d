"""Policies without a model, one level above tokens: what `sandboxrl evaluate scripted:NAME` and the tests run.

They play a conversation as any chat endpoint would: with tools they write an answer to /testbed/answer.txt and finish,
without tools they reply with it. What they answer is a pure function of the prompt and the seed.
"""

import asyncio
import hashlib
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sandboxrl.data.errors import InputError, nearest
from sandboxrl.data.plugin import is_own
from sandboxrl.data.task import Task
from sandboxrl.envs.grading.kinds import KINDS, kind_of
from sandboxrl.envs.grading.protocol.replies import boxes
from sandboxrl.envs.policy.protocol import Message, Reply
from sandboxrl.envs.sandbox.protocol import ANSWER
from sandboxrl.envs.trajectory import Observation, Tokens, ToolCall

Answer = Callable[[str, int], str]
"""`answer(prompt, seed)`: the prompt's text and the trajectory's seed -> the answer; empty: none is given."""


class RehearsedPolicy:
    """Says what `answer` says, in two turns with tools (write, finish) and in one without. `delay_s` per turn."""

    def __init__(self, answer: Answer, delay_s: float = 0.0) -> None:
        self.answer = answer
        self.delay_s = delay_s

    def start(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], seed: int = 0
    ) -> "RehearsedConversation":
        prompt = "\n".join(str(message["content"]) for message in messages)
        names = [str(tool["function"]["name"]) for tool in tools]
        return RehearsedConversation(self.answer(prompt, seed), names, self.delay_s, prompt)


class RehearsedConversation:
    def __init__(self, answer: str, tools: Sequence[str], delay_s: float, prompt: str) -> None:
        self._delay_s = delay_s
        self._num_tokens = _count(prompt)
        shell = next((name for name in tools if "bash" in name), "bash")
        finish = next((name for name in tools if name in ("finish", "submit")), "finish")
        write = ToolCall(shell, {"command": f"printf %s {shlex.quote(answer)} > {ANSWER}"}, id="write")
        self._turns = [(answer, ())] if not tools else [("", (write,))] * bool(answer) + [("", (ToolCall(finish, {}),))]

    @property
    def num_tokens(self) -> int:
        return self._num_tokens

    async def reply(self, max_tokens: int, timeout_s: float) -> Reply:
        await asyncio.sleep(self._delay_s)
        text, calls = self._turns[0]
        if len(self._turns) > 1:
            del self._turns[0]
        num_sampled = _count(text + "".join(str(call.arguments) for call in calls))
        self._num_tokens += num_sampled
        return Reply(text, calls, "stop", num_sampled)

    def observe(self, observations: Sequence[Observation]) -> int:
        num_environment = sum(_count(observation.text) for observation in observations)
        self._num_tokens += num_environment
        return num_environment

    def tokens(self) -> Tokens | None:
        return None


def _count(text: str) -> int:
    """A stand-in for tokens: four characters each."""
    return 1 + len(text) // 4


NAMES = ("gold", "guess", "silent", "judge")


def rehearsed(name: str, tasks: Iterable[Task]) -> RehearsedPolicy:
    """The policy of `scripted:NAME[:DELAY_S]`. `gold` knows the answers of `tasks`; `guess` knows half of them (which
    half is a function of the prompt and the seed); `silent` none; `judge` answers what `envs.grading.judge` asks by
    comparing text with text. Raises InputError."""
    name, _, delay = name.partition(":")
    if name not in NAMES:
        raise InputError(f"unknown scripted policy {name!r}{nearest(name, NAMES)}")
    golds = {task.question: _gold(task) or "no such answer" for task in tasks}

    def gold(prompt: str, seed: int) -> str:
        fitting = [question for question in golds if question in prompt]
        return golds[max(fitting, key=len)] if fitting else ""

    def guess(prompt: str, seed: int) -> str:
        digest = hashlib.sha256(f"{seed}\n{prompt}".encode()).digest()
        return gold(prompt, seed) if digest[0] % 2 else "no such answer"

    def silent(prompt: str, seed: int) -> str:
        return ""

    answers = {"gold": gold, "guess": guess, "silent": silent, "judge": _verdict}
    try:
        return RehearsedPolicy(answers[name], float(delay or 0))
    except ValueError:
        raise InputError(f"scripted policy {name}: {delay!r} is not a delay in seconds") from None


def _gold(task: Task) -> str | None:
    """An answer that is right; the gold itself for a kind that only the recipe knows."""
    own = task.reward not in KINDS and not is_own(task.reward)
    return task.gold if own else kind_of(task.reward).gold(task)


def _verdict(prompt: str, seed: int) -> str:
    sides = re.findall(r"<(?:reference_answer|official_answer|student|candidate)>\n(.*?)\n</", prompt, re.DOTALL)
    said = [[side[start:end] for start, end in boxes(side)] or [side.strip()] for side in sides]
    equal = len(said) == 2 and said[0] == said[1]
    if "## Equivalence Judgement" in prompt:
        return f"## Equivalence Judgement\n{'TRUE' if equal else 'FALSE'}\n## Justification\nCompared as text."
    if "<rubric>" in prompt:
        return "10" if equal else "0"
    return "CORRECT" if equal else "INCORRECT"

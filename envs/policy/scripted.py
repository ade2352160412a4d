"""Shipped fakes: an engine that says what a script tells it to, and a sandbox that is a dictionary.

    TokenPolicy(ScriptedEngine(chat_format, expert(chat_format, "B")), chat_format)

A script is a function of what the policy has seen so far; the ready ones are made of `turns`.
"""

import asyncio
import errno
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sandboxrl.envs.policy import calls
from sandboxrl.envs.policy.chat import ChatFormat
from sandboxrl.envs.policy.protocol import Sampled, Sampling
from sandboxrl.envs.sandbox.protocol import ANSWER, DOCUMENTS, WORKDIR, ExecResult, FileRefused, SandboxError

Script = Callable[[str, int], str | Sequence[int]]
"""`script(context, seed)`: the decoded conversation so far and the turn's seed -> the next turn, without the token that
ends it, or exact ids that are used as they are (a turn of ids ends only with a stop token). It may raise EngineLost."""


class ScriptedEngine:
    """An Engine without a model. Deterministic: the same context and seed give the same tokens and log-probs."""

    def __init__(self, chat_format: ChatFormat, script: Script, delay_s: float = 0.0) -> None:
        self.chat_format, self.script, self.delay_s = chat_format, script, delay_s
        self.version = 0
        """Weight version of what is sampled from now on."""

    async def generate(
        self, ids: Sequence[int], max_tokens: int, sampling: Sampling, timeout_s: float, seed: int | None = None
    ) -> Sampled:
        if self.delay_s > timeout_s:
            await asyncio.sleep(max(timeout_s, 0.0))
            return Sampled([], [], [], "timeout")
        await asyncio.sleep(self.delay_s)
        said = self.script(self.chat_format.decode(ids), seed or 0)
        drawn = [*self.chat_format.reply_ids(said), self.chat_format.end_id] if isinstance(said, str) else list(said)
        drawn = drawn[:max_tokens]
        finish = "stop" if drawn and drawn[-1] in self.chat_format.stop_ids else "length"
        return Sampled(drawn, [logprob(index) for index in drawn], [self.version] * len(drawn), finish)


def logprob(index: int) -> float:
    """The log-probability a ScriptedEngine reports for a token: between -1 and -1/16, by the id alone."""
    return -(1 + index % 16) / 16


def turns(chat_format: ChatFormat, texts: Sequence[str]) -> Script:
    """Says `texts[k]` in its k-th turn and repeats the last one from then on. Turns are counted in the context."""
    opening = chat_format.turn_opening

    def script(context: str, seed: int) -> str:
        return texts[min(max(context.count(opening) - 1, 0), len(texts) - 1)]

    return script


def call(chat_format: ChatFormat, name: str, **arguments: Any) -> str:
    """The text of one tool call in the model's own format."""
    return calls.write(name, arguments, chat_format.call_format)


def expert(
    chat_format: ChatFormat, answer: str, word: str = "the", shell: str = "bash", finish: str = "finish"
) -> Script:
    """Lists the documents, searches them for `word`, writes `answer` to the answer file, looks at it and finishes."""
    commands = (
        f"ls -l {DOCUMENTS}",
        f"grep -rn -- {shlex.quote(word)} {DOCUMENTS} | head -n 5",
        f"printf %s {shlex.quote(answer)} > {ANSWER}",
        f"cat {ANSWER}",
    )
    said = [call(chat_format, "bash", command=command) for command in commands]
    return turns(chat_format, [*said, call(chat_format, "finish")])


def idler(chat_format: ChatFormat) -> Script:
    """Looks around for ever and never finishes."""
    return turns(chat_format, [call(chat_format, "bash", command="ls")])


def talker(chat_format: ChatFormat, text: str = "The answer is B.") -> Script:
    """Never calls a tool; in LLM mode, a complete reply."""
    return turns(chat_format, [text])


def stumbler(chat_format: ChatFormat, answer: str) -> Script:
    """Gets everything wrong that can be wrong, then writes `answer` and finishes."""
    write = call(chat_format, "bash", command=f"printf %s {shlex.quote(answer)} > {ANSWER}")
    unknown = call(chat_format, "basch", command="ls")
    missing = call(chat_format, "bash")
    broken = write.replace("</tool_call>", "").replace("</function>", "").replace('"}}', "")
    return turns(
        chat_format,
        ["I will think first.", broken, unknown, missing, "<tool_call>\n7\n</tool_call>", broken + "\n" + write]
        + [call(chat_format, "finish")],
    )


class MemorySandbox:
    """A Sandbox that is a dictionary of files: reads and writes, runs nothing."""

    def __init__(self, files: Mapping[str, bytes] | None = None) -> None:
        self.id = "memory"
        self.files: dict[str, bytes] = {}
        self.files.update({_absolute(path): data for path, data in (files or {}).items()})
        self._open = True

    @property
    def alive(self) -> bool:
        return self._open

    async def exec(
        self,
        command: str,
        timeout_s: float = 120.0,
        cwd: str = WORKDIR,
        env: Mapping[str, str] | None = None,
        max_bytes: int | None = None,
    ) -> ExecResult:
        raise SandboxError("a MemorySandbox runs no commands")

    async def read(self, path: str, max_bytes: int = 1 << 20) -> bytes:
        path = _absolute(path)
        if path not in self.files:
            folder = any(name.startswith(path.rstrip("/") + "/") for name in self.files)
            code = errno.EISDIR if folder else errno.ENOENT
            raise FileRefused(code, "is a directory" if folder else "no such file", path)
        if len(self.files[path]) > max_bytes:
            raise FileRefused(errno.EFBIG, f"larger than {max_bytes} bytes", path)
        return self.files[path]

    async def write(self, files: Mapping[str, bytes]) -> None:
        self.files.update({_absolute(path): bytes(data) for path, data in files.items()})

    async def close(self) -> None:
        self.files.clear()
        self._open = False


def _absolute(path: str) -> str:
    return path if path.startswith("/") else f"{WORKDIR}/{path}"

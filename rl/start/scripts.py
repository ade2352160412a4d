"""Scripted policies of mixed quality: they play tiny tasks through the real rollout loop, in a sandbox that is a
dictionary, so that their trajectories hold the very tokens that a model will meet there.
"""

import asyncio
import random
import re
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from sandboxrl.data.builtin import LETTERS, NOTE_WORDS
from sandboxrl.data.prompt.arms import load_arm
from sandboxrl.data.task import Task
from sandboxrl.envs.policy.chat import ChatFormat, TokenPolicy
from sandboxrl.envs.policy.scripted import MemorySandbox, ScriptedEngine, call
from sandboxrl.envs.rollout import Environment, RolloutLimits, rollout
from sandboxrl.envs.sandbox.protocol import ANSWER, DOCUMENTS, WORKDIR, ExecResult, Sandbox
from sandboxrl.envs.tools.tool_set import tool_set
from sandboxrl.envs.trajectory import Trajectory

ARM = load_arm("compact")
TOOLS = tool_set(ARM.tool_set)
LIMITS = RolloutLimits(max_turns=8, max_tokens=4096, max_tokens_per_turn=1024)


SCRIPTS = {
    "searches": ("look", "search", "answer", "finish"),
    "quits": ("look", "finish"),
    "guesses": ("answer", "finish"),
    "forgets": ("look", "search", "finish"),
}
"""Script -> what its turns do. Only the first solves its task."""
FLAWS = {"quits": 2, "guesses": 2, "forgets": 1}
"""Relative shares of the flawed scripts. None of them copies a wrong word: that would ruin copying, and practice alone
does not bring it back."""


@dataclass
class Player:
    """Plays one task by a script. Call it as a script of ScriptedEngine; it is used for one trajectory."""

    chat_format: ChatFormat
    task: Task
    script: str
    rng: random.Random
    copied: list[str] = field(default_factory=list)
    """What each turn so far copied from its context; empty text where nothing."""

    def __call__(self, context: str, seed: int) -> str:
        key, copied = search_key(self.task), ""
        match SCRIPTS[self.script][len(self.copied)]:
            case "look":
                said = self._call("bash", command=f"ls {DOCUMENTS}")
            case "search":
                copied = key
                said = self._call("bash", command=f"grep -r {key} {DOCUMENTS}")
            case "answer":
                if self.script == "searches":
                    copied = context.rpartition(f":{key}=")[2].partition("\n")[0]
                answer = copied or self._guess()
                said = self._call("file_editor", command="create", path=ANSWER, file_text=answer)
            case _:
                said = self._call("finish")
        self.copied.append(copied)
        return said

    def copying_turns(self) -> list[int]:
        return [turn for turn, copied in enumerate(self.copied) if copied]

    def _call(self, name: str, **arguments: str) -> str:
        return call(self.chat_format, name, **arguments)

    def _guess(self) -> str:
        """An answer of the right form."""
        match self.task.metadata["form"]:
            case "code":
                return str(self.rng.randrange(1000, 10000))
            case "gate":
                return self.rng.choice(LETTERS)
            case "gates":
                return ", ".join(sorted(self.rng.sample(LETTERS, self.rng.choice((2, 3)))))
            case _:
                return " ".join(self.rng.sample(NOTE_WORDS, 3))


def search_key(task: Task) -> str:
    """The word that a tiny question asks about: its last."""
    return task.question.rstrip("?").rpartition(" ")[2]


def play_all(players: Iterable[Player], pool: Any = None) -> list[Trajectory]:
    """The trajectories of the players, in order, ungraded; in the sandboxes of `pool` (None: a Shelf each)."""

    environment = Environment(ARM, limits=LIMITS, tools=TOOLS, pool=pool or _ShelfPool())

    async def play(player: Player) -> Trajectory:
        policy = TokenPolicy(ScriptedEngine(player.chat_format, player), player.chat_format)
        return await rollout(player.task, policy, environment)

    async def run() -> list[Trajectory]:
        return [await play(player) for player in players]

    return asyncio.run(run())


class Shelf:
    """A Sandbox that is a dictionary and knows the two commands of the scripts: `ls FOLDER`, `grep -r WORD FOLDER`.

    It answers them byte for byte as a real one does (`tests/rl/start/test_start.py` compares). Any other is a
    ValueError.
    """

    alive = True

    def __init__(self) -> None:
        self._memory = MemorySandbox()
        self.id = self._memory.id
        self.read, self.write, self.close = self._memory.read, self._memory.write, self._memory.close

    async def exec(
        self,
        command: str,
        timeout_s: float = 120.0,
        cwd: str = WORKDIR,
        env: Mapping[str, str] | None = None,
        max_bytes: int | None = None,
    ) -> ExecResult:
        found = re.fullmatch(r"ls (?P<folder>/\S+)|grep -r (?P<word>\w+) (?P<below>/\S+)", command)
        if not found:
            raise ValueError(f"no script uses the command {command!r}")
        folder = f"{found['folder'] or found['below']}/"
        lines: list[str] = []
        for path, data in sorted(self._memory.files.items()):
            if not path.startswith(folder):
                continue
            if found["folder"]:
                lines.append(path.removeprefix(folder))
            else:
                lines += [f"{path}:{line}" for line in data.decode().splitlines() if found["word"] in line]
        output = "".join(f"{line}\n" for line in lines).encode()
        return ExecResult(int(not lines), output, b"", False, len(output), 0, 0.0)


class _ShelfPool:
    """What `rollout` needs of a pool."""

    @asynccontextmanager
    async def sandbox(self, image: str = "") -> AsyncIterator[Sandbox]:
        yield Shelf()

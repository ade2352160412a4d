"""One trajectory: what the policy said, what the computer answered, the exact tokens, why it ended.

Tokens of a trajectory (when the policy is one of our own engines) are append-only:

    prompt ids | sampled turn 1 | observation 1 | sampled turn 2 | ...
    mask   0   |       1        |       0       |       1        |

Sampled ids and log-probabilities are the engine's own and are never re-encoded.
"""

import dataclasses
import enum
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sandboxrl.data.errors import InputError, one_line
from sandboxrl.data.task import Task
from sandboxrl.envs.sandbox.protocol import Resources


class StopReason(enum.StrEnum):
    """Why a trajectory ended, and whose doing that was."""

    FINISHED = "finished"  # called finish
    ANSWERED = "answered"  # LLM mode: the reply is complete
    MAX_TURNS = "max_turns"
    MAX_TOKENS = "max_tokens"
    TIMEOUT = "timeout"  # the policy used up the wall time of the trajectory
    SANDBOX_ENDED = "sandbox_ended"  # what the policy ran ended its sandbox, and nothing else
    SANDBOX_LOST = "sandbox_lost"
    ENGINE_LOST = "engine_lost"
    GRADER_FAILED = "grader_failed"
    TOOL_FAILED = "tool_failed"  # the code of a user's own tool is wrong
    CANCELLED = "cancelled"

    @property
    def complete(self) -> bool:
        """The policy ended it by its own decision."""
        return self in (StopReason.FINISHED, StopReason.ANSWERED)

    @property
    def policy_fault(self) -> bool:
        """A limit was used up without finishing, or the sandbox was: reward 0, or masked out of the loss."""
        return self in (StopReason.MAX_TURNS, StopReason.MAX_TOKENS, StopReason.TIMEOUT, StopReason.SANDBOX_ENDED)

    @property
    def machine_fault(self) -> bool:
        """No reward at all: the trajectory is dropped and sampled again."""
        return not self.complete and not self.policy_fault


@dataclass(frozen=True)
class ToolCall:
    """One tool call as the policy wrote it. `error` says what is wrong with it; then `arguments` is empty."""

    name: str
    arguments: dict[str, Any]
    id: str = ""
    error: str = ""


@dataclass(frozen=True)
class Observation:
    """The answer to one tool call (or to a turn without a call: `name` is empty)."""

    text: str
    name: str = ""
    call_id: str = ""
    is_error: bool = False
    """The call itself was wrong (unknown tool, bad argument); a command that exits non-zero is not an error."""
    finished: bool = False
    exit_code: int | None = None
    timed_out: bool = False
    duration_s: float = 0.0


@dataclass(frozen=True)
class Turn:
    text: str
    """What the policy said, special tokens included, without the token that closes the turn and the reasoning."""
    calls: tuple[ToolCall, ...] = ()
    observations: tuple[Observation, ...] = ()
    reasoning: str = ""
    start: int = -1
    """The sampled tokens are `ids[start:end]`; -1 where the policy gives no tokens."""
    end: int = -1
    cut: bool = False
    """The reply reached its token limit."""
    num_sampled: int = 0
    num_environment: int = 0
    sample_s: float = 0.0
    tool_s: float = 0.0


@dataclass(frozen=True, eq=False)
class Tokens:
    """Parallel arrays over the whole trajectory, prompt included. Made of any sequences of numbers.

    Arrays, because a step may hold millions of tokens: Python numbers take seconds to send and to pack.
    """

    ids: np.ndarray
    """int32 [tokens]."""
    mask: np.ndarray
    """int8 [tokens]: 1 on sampled tokens, 0 elsewhere."""
    logprobs: np.ndarray
    """float32 [tokens]: the engine's log-probability of each sampled token at the sampling temperature; 0 elsewhere."""
    versions: np.ndarray
    """int32 [tokens]: weight version that sampled each token; -1 elsewhere."""

    def __post_init__(self) -> None:
        for name, kind in (("ids", np.int32), ("mask", np.int8), ("logprobs", np.float32), ("versions", np.int32)):
            try:
                object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=kind))
            except OverflowError as error:
                raise ValueError(f"tokens: {name}: {error}") from None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokens) and all(
            np.array_equal(mine, theirs) for mine, theirs in zip(vars(self).values(), vars(other).values(), strict=True)
        )

    __hash__ = None  # type: ignore[assignment]  # arrays can change

    @property
    def num_sampled(self) -> int:
        return int(self.mask.sum())

    def to_lists(self) -> dict[str, list[Any]]:
        return {name: array.tolist() for name, array in vars(self).items()}


@dataclass(frozen=True)
class Trajectory:
    task_id: str
    source: str
    mode: str
    """`sandbox` or `llm`."""
    stop: StopReason
    turns: tuple[Turn, ...]
    answer: str = ""
    """What was graded: /testbed/answer.txt, or the answer in the last reply in LLM mode."""
    score: float | None = None
    """What the grader said, in [0, 1]; None: not graded (the machine's fault)."""
    reward: float | None = None
    """What training uses: the score, or 0 where the policy used up a limit; None with a machine fault."""
    tokens: Tokens | None = None
    num_prompt: int = 0
    seed: int = 0
    started_s: float = 0.0
    """Unix time."""
    wall_s: float = 0.0
    resources: Resources | None = None
    """What its sandbox had used when the dialogue ended; None without a sandbox, or where its backend does not tell."""
    error: str = ""
    """One line about a machine fault, how the policy ended its sandbox, or how closing that failed."""
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def num_sampled(self) -> int:
        return sum(turn.num_sampled for turn in self.turns)

    @property
    def num_environment(self) -> int:
        return sum(turn.num_environment for turn in self.turns)

    @property
    def tool_s(self) -> float:
        return sum(turn.tool_s for turn in self.turns)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` is its inverse."""
        row = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        turns = tuple(dataclasses.asdict(turn) for turn in self.turns)
        used = dataclasses.asdict(self.resources) if self.resources else None
        return row | {"turns": turns, "tokens": self.tokens.to_lists() if self.tokens else None, "resources": used}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> tuple["Trajectory", dict[str, Any]]:
        """Of a line of a trajectory file: the trajectory, and what its writer put beside it (a trainer: `step`,
        `advantage`, `question`, `gold`, `token_text`, `learner_logprobs`)."""
        known = {field.name for field in dataclasses.fields(cls)}
        own = {key: value for key, value in row.items() if key in known}
        return cls.from_dict(own), {key: value for key, value in row.items() if key not in known}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> "Trajectory":
        """What a run writes beside it (`step`, `advantage`, `token_text`, …) is left aside."""
        row = {field.name: row[field.name] for field in dataclasses.fields(cls) if field.name in row}
        row["stop"] = StopReason(row["stop"])
        row["turns"] = tuple(
            Turn(
                **{
                    **turn,
                    "calls": tuple(ToolCall(**call) for call in turn["calls"]),
                    "observations": tuple(Observation(**one) for one in turn["observations"]),
                }
            )
            for turn in row["turns"]
        )
        row["tokens"] = Tokens(**row["tokens"]) if row.get("tokens") else None
        row["resources"] = Resources(**row["resources"]) if row.get("resources") else None
        return cls(**row)


@dataclass(frozen=True)
class Group:
    """The trajectories of one task, those lost to the machine already left out."""

    index: int
    """Position in the stream of started groups; with the recipe's seed it fixes every random draw of the group."""
    task: Task
    trajectories: tuple[Trajectory, ...]

    @property
    def rewards(self) -> list[float]:
        return [t.reward for t in self.trajectories if t.reward is not None]

    def age(self, version: int) -> int:
        """How many updates before `version` its oldest token was sampled; 0 where not one token was (out of time)."""
        sampled = [t.tokens.versions[t.tokens.mask == 1] for t in self.trajectories if t.tokens]
        oldest = min((int(versions.min()) for versions in sampled if versions.size), default=version)
        return version - oldest


def read_trajectories(path: str | Path) -> list[Trajectory]:
    """Every whole trajectory of a `.jsonl` file, as runs and evaluations write them. Raises InputError."""
    found = []
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break  # still being written, or cut off by a kill
                try:
                    found.append(Trajectory.from_dict(json.loads(line)))
                except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                    raise InputError(f"{path}:{number}: not a trajectory: {one_line(error)}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    return found

"""The keys of a recipe that an evaluation takes too, and what of them makes its results those of one experiment."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sandboxrl.data.errors import InputError
from sandboxrl.envs.grading.grader import GraderConfig
from sandboxrl.envs.policy.protocol import Sampling
from sandboxrl.envs.rollout import RolloutLimits
from sandboxrl.envs.sandbox.protocol import SandboxConfig
from sandboxrl.rl.config import with_overrides
from sandboxrl.rl.engine.config import EngineConfig

UNLIMITED = 1 << 30
"""Tokens of a reply: as many as the trajectory has left."""


@dataclass(frozen=True)
class EvaluationSettings:
    """As in a recipe; `limits.max_tokens` gives way to each benchmark's own where it was not given."""

    num_workers: int = 1
    sandbox: SandboxConfig = field(default_factory=SandboxConfig)
    limits: RolloutLimits = field(default_factory=RolloutLimits)
    sampling: Sampling = field(default_factory=Sampling)
    grader: GraderConfig = field(default_factory=GraderConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)

    def __post_init__(self) -> None:
        if self.num_workers < 1:
            raise InputError(f"num_workers: must be at least 1, not {self.num_workers}")

    def experiment(self) -> dict[str, Any]:
        """What must be the same for results to stand in one folder."""
        parts: dict[str, Any] = {
            "sandbox": self.sandbox,
            "grader": self.grader,
            "limits": self.limits,
            "engine": self.engine,
        }
        kept = {
            name: {k: v for k, v in asdict(part).items() if k not in getattr(part, "CARRIED_OUT", ())}
            for name, part in parts.items()
        }
        if self.sandbox.backend != "docker":
            del kept["sandbox"]["image"]
        return kept


def evaluation_settings(words: Sequence[str], sampling: Sampling) -> tuple[EvaluationSettings, set[str]]:
    """`key=value` words over the defaults and `sampling`; the settings and the keys that were given. Few sandboxes are
    kept ready: a model is slower than a sandbox, and what is left over at the end was started for nothing."""
    limits = RolloutLimits(max_tokens_per_turn=UNLIMITED)
    return with_overrides(EvaluationSettings(limits=limits, sampling=sampling, sandbox=SandboxConfig(warm=2)), words)

"""The `learner:` part of a recipe."""

import math
from dataclasses import dataclass
from typing import ClassVar

from sandboxrl.data.errors import InputError, nearest

DEVICES = ("auto", "cpu", "cuda")
DTYPES = ("auto", "float32", "bfloat16")
SCHEDULES = ("constant", "linear", "cosine")


@dataclass(frozen=True)
class LearnerConfig:
    CARRIED_OUT: ClassVar = frozenset(
        {
            "world_size", "nodes", "device", "max_tokens_per_row", "logprob_chunk", "gradient_checkpointing", "threads",
            "timeout_s", "attention_crossover", "offload",
        }
    )  # fmt: skip
    """Keys that may change when a run goes on; the others are the experiment (`sandboxrl.rl.config`)."""
    world_size: int = 1
    """Learner processes over which parameters, gradients and optimizer state are sharded; one GPU each on GPUs."""
    nodes: str = ""
    """Only on Ray nodes that offer this custom resource; empty: anywhere."""
    device: str = "auto"
    """auto (cuda if there is one) | cpu | cuda."""
    dtype: str = "auto"
    """Of activations and products: float32 | bfloat16 | auto (bfloat16 on a GPU, else float32). Parameters, gradients
    and optimizer state are always float32."""
    learning_rate: float = 1e-6
    """Of AdamW, at its highest."""
    warmup_steps: int = 0
    """Optimizer steps over which the learning rate rises linearly to its highest value."""
    schedule: str = "constant"
    """How the learning rate goes on after the warm-up: constant | linear | cosine (both fall to the floor)."""
    schedule_floor: float = 0.0
    """Where a falling learning rate ends, as a share of the highest."""
    schedule_steps: int = 0
    """Optimizer steps, the warm-up included, after which a falling learning rate is at its floor and stays there; 0:
    those of the whole run, steps x minibatches."""
    weight_decay: float = 0.01
    """Decoupled, on every parameter."""
    beta1: float = 0.9
    """Decay of Adam's mean of gradients."""
    beta2: float = 0.999
    """Decay of Adam's mean of squared gradients."""
    max_grad_norm: float = 1.0
    """Gradients longer than this are scaled down to it."""
    minibatches: int = 1
    """Optimizer steps per batch; every group is spread over all of them."""
    max_tokens_per_row: int = 65_536
    """Trajectories are packed into rows of at most this many tokens; one row is one forward and backward pass. At least
    limits.max_tokens, as no trajectory is cut."""
    attention_crossover: int = 0
    """Tokens at which a trajectory's attention costs as much as its matrix products (24,700 for Qwen3-4B). Rows are
    made equal by length + length^2 / this; 0: by length alone, right for trajectories that are far shorter."""
    logprob_chunk: int = 2048
    """Tokens whose logits (vocabulary wide) are in memory at once."""
    gradient_checkpointing: bool = True
    """Recompute each layer in the backward pass instead of keeping its activations."""
    offload: bool = False
    """Keep parameters, gradients and optimizer state in host memory (16 bytes per parameter, all ranks), and let the
    CPU make the optimizer step. For a GPU that cannot hold them; with `threads` raised."""
    threads: int = 1
    """CPU threads of each process."""
    timeout_s: float = 600.0
    """A collective that waits longer for another rank fails. Reading the model does not count."""

    def __post_init__(self) -> None:
        for name, valid in (("device", DEVICES), ("dtype", DTYPES), ("schedule", SCHEDULES)):
            value = getattr(self, name)
            if value not in valid:
                raise InputError(f"learner.{name}: unknown value {value!r}{nearest(str(value), valid)}")
        for name in ("world_size", "minibatches", "max_tokens_per_row", "logprob_chunk", "threads"):
            if getattr(self, name) < 1:
                raise InputError(f"learner.{name} must be at least 1")
        for name in ("learning_rate", "weight_decay", "warmup_steps", "schedule_steps", "attention_crossover"):
            if getattr(self, name) < 0:
                raise InputError(f"learner.{name} must not be negative")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"learner.{name} must lie in [0, 1)")
        for name in ("max_grad_norm", "timeout_s"):
            if getattr(self, name) <= 0:
                raise InputError(f"learner.{name} must be above 0")
        if not 0 <= self.schedule_floor < 1:
            raise InputError("learner.schedule_floor must lie in [0, 1)")
        for name in ("schedule_floor", "schedule_steps"):
            if self.schedule == "constant" and getattr(self, name):
                raise InputError(f"learner.{name} has an effect only with schedule linear or cosine")
        if self.schedule_steps and self.schedule_steps <= self.warmup_steps:
            raise InputError(
                f"learner.warmup_steps: {self.warmup_steps} leaves nothing of a schedule of {self.schedule_steps} "
                "optimizer steps"
            )

    def compute_dtype(self, on_gpu: bool) -> str:
        """What `auto` stands for."""
        if self.dtype == "auto":
            return "bfloat16" if on_gpu else "float32"
        return self.dtype


def learning_rate(config: LearnerConfig, num_updates: int) -> float:
    """Of the optimizer step after `num_updates` of them. Raises ValueError for a schedule that does not say when it
    ends: `Recipe.learner_of_run` knows."""
    rise = min(1.0, (num_updates + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.schedule == "constant":
        return config.learning_rate * rise
    if not config.schedule_steps:
        raise ValueError(f"schedule {config.schedule} needs schedule_steps")
    done = (num_updates - config.warmup_steps) / (config.schedule_steps - config.warmup_steps)
    done = min(1.0, max(0.0, done))
    left = 1 - done if config.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return config.learning_rate * rise * (config.schedule_floor + (1 - config.schedule_floor) * left)

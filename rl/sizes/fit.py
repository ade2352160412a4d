"""Whether a recipe fits its GPUs, and which settings would.

    problems(recipe, shape, gpu_bytes)    why it cannot run, each with the knob to turn; empty: it fits
    candidates(recipe, shape, gpu_bytes)  changes of the learner that fit, best first

Memory of the learner is that of `rl/sizes/memory.py` with its margin. Sizes of GPUs are given in bytes (80 GB = 80e9,
what cards of that name have at least).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from sandboxrl.rl.config import Recipe
from sandboxrl.rl.learner.config import LearnerConfig
from sandboxrl.rl.sizes.memory import Memory, learner_memory
from sandboxrl.rl.sizes.shapes import Shape

GPUS_GB = (80, 141, 180)
"""Memory of GPUs that people have: H100 and A100; H200; B200."""
ENGINE_OVERHEAD = 3e9
"""CUDA context, graphs and activations of an engine, beside weights and KV cache."""
ENGINE_ASLEEP = 1.5e9
"""What an engine that sleeps does not give back."""
WIRE = 2e9
"""Buffers of a publication, and one whole tensor of the learner's."""
RANKS = (1, 2, 4, 8, 16, 32)
ROW_SIZES = (262_144, 131_072, 65_536, 32_768, 16_384, 8_192, 4_096, 2_048)
TRAINED_SHARE = 2 / 3
"""Of a full row, the most that agentic trajectories are seen to have of the model's own tokens."""


@dataclass(frozen=True)
class EngineMemory:
    """Bytes of one of an engine's GPUs."""

    weights: float
    kv_per_token: float
    kv: float
    """What is left for the KV cache."""

    def full_trajectories(self, tokens: int) -> float:
        """How many of `tokens` fit at once."""
        return self.kv / (self.kv_per_token * tokens)


def learner_of(recipe: Recipe, shape: Shape, learner: LearnerConfig | None = None) -> Memory:
    """Of one rank with full rows, on a GPU."""
    learner = learner or recipe.learner_of_run
    return learner_memory(shape, learner, learner.max_tokens_per_row, round(learner.max_tokens_per_row * TRAINED_SHARE))


def engine_of(recipe: Recipe, shape: Shape, gpu_bytes: float) -> EngineMemory:
    engine = recipe.engine
    width = 4 if engine.compute_dtype(cpu=False) == "float32" else 2
    weights = width * shape.parameters / engine.tensor_parallel_size
    share = engine.gpu_memory_utilization * gpu_bytes
    kv = engine.kv_cache_bytes or max(0.0, share - weights - ENGINE_OVERHEAD)
    heads_here = max(1, shape.kv_heads // engine.tensor_parallel_size) / shape.kv_heads  # heads are copied, never cut
    return EngineMemory(weights, shape.kv_bytes_per_token(width) * heads_here, kv)


def gpus(recipe: Recipe) -> Mapping[str, int]:
    """How many each part takes, and all of them."""
    learner, engines = recipe.learner.world_size, recipe.num_workers * recipe.engine.tensor_parallel_size
    total = learner if recipe.placement == "together" else learner + engines
    return {"learner": learner, "engines": engines, "in all": total}


def resident(recipe: Recipe, shape: Shape) -> float:
    """What the learner holds while the engine works: weights and Adam, where they are on the GPU."""
    return 0.0 if recipe.learner.offload else 12 * shape.parameters / recipe.learner.world_size


def problems(recipe: Recipe, shape: Shape, gpu_bytes: float, memory: Memory | None = None) -> list[str]:
    """`memory`: the learner's as a dry run found it, else by formula."""
    memory, found, gb = memory or learner_of(recipe, shape), [], gpu_bytes / 1e9
    engine, together = engine_of(recipe, shape, gpu_bytes), recipe.placement == "together"
    needed = memory.needed + (ENGINE_ASLEEP if together else 0)
    if needed > gpu_bytes:
        found.append(
            f"the learner needs {needed / 1e9:.0f} GB on each GPU and has {gb:.0f}: raise learner.world_size, lower "
            "learner.max_tokens_per_row, or set learner.offload=true"
        )
    full = engine.full_trajectories(recipe.engine.max_model_len)
    if full < 1:
        found.append(
            f"the engine's KV cache holds {full:.2f} of one sequence of engine.max_model_len "
            f"({recipe.engine.max_model_len:,} tokens): raise engine.tensor_parallel_size or "
            "engine.gpu_memory_utilization, or lower engine.max_model_len"
        )
    if together:
        held = resident(recipe, shape)
        share = engine.weights + engine.kv + ENGINE_OVERHEAD
        if held + share + ENGINE_ASLEEP > gpu_bytes:
            found.append(
                f"engine ({share / 1e9:.0f} GB) and learner ({held / 1e9:.0f} GB, while it waits) need more than the "
                f"{gb:.0f} GB of a GPU: lower engine.gpu_memory_utilization, or set learner.offload=true"
            )
        if held + engine.weights + WIRE + ENGINE_ASLEEP > gpu_bytes:
            found.append(f"the engine's weights do not fit beside the learner's {held / 1e9:.0f} GB: raise world_size")
    return found


def notes(recipe: Recipe) -> list[str]:
    """What works and costs: said, not refused."""
    found = []
    if recipe.groups_per_step % recipe.num_workers:
        found.append(
            f"num_workers {recipe.num_workers} does not divide groups_per_step {recipe.groups_per_step}: a group stays "
            "on one engine, so some engines do one group more than others"
        )
    return found


@dataclass(frozen=True)
class Candidate:
    changes: Mapping[str, object]
    """Keys of the recipe and their values."""
    memory: Memory


def candidates(recipe: Recipe, shape: Shape, gpu_bytes: float) -> list[Candidate]:
    """Ranks, checkpointing, offload and row sizes that fit: first the fewest ranks, then without offload, without
    computing layers again, with the longest rows. A row is never shorter than the longest trajectory, which would
    have one of its own and be just as long."""
    longest = recipe.limits.max_tokens
    rows = [size for size in ROW_SIZES if size >= longest] or [longest]
    found = []
    for ranks, offload, checkpointing, row in product(RANKS, (False, True), (False, True), rows):
        changes = {
            "world_size": ranks,
            "offload": offload,
            "gradient_checkpointing": checkpointing,
            "max_tokens_per_row": row,
        }
        changed = recipe_with(recipe, **changes)
        if changed is not None and not problems(changed, shape, gpu_bytes, memory := learner_of(changed, shape)):
            found.append(Candidate({f"learner.{name}": value for name, value in changes.items()}, memory))
    return found


def recipe_with(recipe: Recipe, **changes: Any) -> Recipe | None:
    """With these changes of its learner, and as many engines as go with them; None where they do not go together."""
    learner, width = replace(recipe.learner_of_run, **changes), recipe.engine.tensor_parallel_size
    if recipe.placement != "together":
        return replace(recipe, learner=learner)
    if learner.world_size % width:
        return None
    return replace(recipe, learner=learner, num_workers=learner.world_size // width)

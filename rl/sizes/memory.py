"""Memory of one learner rank by part and phase, by formula. `rl/sizes/dry_run.py` finds the same numbers by running the
learner on tensors without values; a test holds the two together within 10 %.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from sandboxrl.rl.learner.config import LearnerConfig
from sandboxrl.rl.sizes.shapes import Shape

PHASES = ("forward", "backward", "optimizer")
STATE = ("weights", "gradients", "Adam")
"""Parts that `learner.offload` keeps in host memory."""
GATHERED, KEPT, WORKING = "gathered weights", "kept for the backward pass", "working memory"
PARTS = (*STATE, GATHERED, KEPT, WORKING)


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank."""

    phases: Mapping[str, Mapping[str, float]]
    """Phase -> part -> bytes at the moment when the phase holds most."""
    host: float = 0.0
    """Held in host memory instead, with `learner.offload`."""
    unseen: Mapping[str, float] = field(default_factory=dict)
    """What neither formula nor dry run sees, by name: a margin to keep free."""

    def of(self, phase: str) -> float:
        return sum(self.phases[phase].values())

    @property
    def peak(self) -> float:
        """The most that tensors take at any moment."""
        return max(self.of(phase) for phase in self.phases)

    @property
    def needed(self) -> float:
        """The peak and the margin: what a GPU must have."""
        return self.peak + sum(self.unseen.values())


def learner_memory(shape: Shape, learner: LearnerConfig, row: int, trained: int, gpu: bool = True) -> Memory:
    """Of one rank that computes rows of `row` tokens, `trained` of them trained on."""
    width = 2 if learner.compute_dtype(gpu) == "bfloat16" else 4
    shard = 4 * shape.parameters / learner.world_size
    layer, root = width * shape.layer_parameters(), width * shape.root_parameters
    state = {"weights": shard, "Adam": 2 * shard}
    host = 0.0
    if learner.offload:
        host, state = 16 * shape.parameters / learner.world_size, {}
    forward, again = _layer_forward(shape, row, width), _layer_backward(shape, row, width)
    inputs = shape.layers * width * row * shape.hidden
    kept = inputs if learner.gradient_checkpointing else shape.layers * _layer_saved(shape, row, width)
    last = width * row * shape.hidden * 2 + 4 * row * shape.hidden  # the last norm's input in both types, its output
    selected = width * trained * shape.hidden
    logits = 4 * min(trained, learner.logprob_chunk) * shape.vocabulary
    phases = {
        "forward": state | {GATHERED: root + layer, KEPT: kept, WORKING: max(forward, last + selected + logits)},
        "optimizer": state | ({} if learner.offload else {"gradients": shard}),
    }
    # The head comes first, when no layer has a gradient yet but all inputs are kept; then layer by layer gradients
    # come as inputs go. One of the two ends is the highest.
    of_head = 4 * shape.embedding + width * shape.embedding
    head = {
        GATHERED: root,
        KEPT: kept,
        WORKING: last + 2 * selected + of_head + 2 * logits,
    }
    reduced = 4 * shape.layer_parameters() + layer
    first = {
        GATHERED: root + layer,
        KEPT: kept,
        WORKING: again + width * row * shape.hidden + reduced + (width + 4) * shape.root_parameters * 0,
    }
    gradients = 0.0 if learner.offload else shard
    grown, shrunk = gradients / shape.layers, kept / shape.layers
    moments = [state | {"gradients": 0.0} | head]
    root_gradient = width * shape.root_parameters
    for done in (0, shape.layers - 1):
        moment = dict(first)
        moment[KEPT] = kept - done * shrunk
        moment[WORKING] += root_gradient
        moments.append(state | {"gradients": done * grown} | moment)
    phases["backward"] = max(moments, key=lambda parts: sum(parts.values()))
    return Memory(phases, host, unseen(shape, learner, max(sum(p.values()) for p in phases.values()), width))


def unseen(shape: Shape, learner: LearnerConfig, peak: float, width: int) -> dict[str, float]:
    """What runs on a GPU beside the tensors of one stream."""
    layer = shape.layer_parameters()
    margin = {"CUDA context and libraries": 1.5e9, "fragmentation (4 %)": 0.04 * peak}
    if learner.world_size > 1:
        margin["NCCL buffers"] = 1.0e9
        # the next layer's weights arrive, and the last one's gradients leave, while this one computes
        margin["communication ahead of computation"] = (width + 4.0) * layer + width * layer
    return margin


def _layer_forward(shape: Shape, row: int, width: int) -> float:
    """Most of what one layer holds at once in its forward pass, nothing kept of it."""
    return row * width * (2 * shape.hidden + 3 * shape.experts_per_token * shape.intermediate)


def _layer_saved(shape: Shape, row: int, width: int) -> float:
    """What the backward pass of one layer needs of its forward pass."""
    return row * width * (6 * shape.hidden + 4 * shape.experts_per_token * shape.intermediate)


def _layer_backward(shape: Shape, row: int, width: int) -> float:
    """Most of what one layer holds when it is computed again and differentiated."""
    return _layer_saved(shape, row, width) + row * width * 2 * shape.experts_per_token * shape.intermediate

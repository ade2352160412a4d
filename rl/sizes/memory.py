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
    one, shard = shape.layer_parameters(), 4 * shape.parameters / learner.world_size
    state = {} if learner.offload else {"weights": shard, "Adam": 2 * shard}
    of_layer = 0.0 if learner.offload else 4 * one / learner.world_size  # gradients of one layer, once they are sharded
    arriving = width * one  # a layer's weights as they come, beside where they are put
    hidden = width * row * shape.hidden
    saved = row * _saved_per_token(shape, width)
    per_layer = hidden if learner.gradient_checkpointing else saved
    ends = (4 + 2 * width) * row * shape.hidden + width * trained * shape.hidden  # the last norm, what the head takes
    kept, root = shape.layers * per_layer, width * shape.root_parameters
    logits = min(trained, learner.logprob_chunk) * shape.vocabulary
    forward = max(
        {GATHERED: root + width * one, KEPT: kept, WORKING: arriving + row * _forward_per_token(shape, width)},
        {GATHERED: root, KEPT: kept + ends, WORKING: 4 * logits},
        key=_total,
    )
    # Backwards the head comes first: its gradient in float32, and a chunk's logits in both types or its share of that.
    of_chunk = width * logits + 4 * max(logits, shape.embedding)
    head = 4 * shape.embedding + of_chunk + width * trained * shape.hidden
    moments = [{GATHERED: root, KEPT: kept + ends, WORKING: head}]
    # Then layer by layer inputs go and gradients come, so the second layer or the last one is the highest moment.
    again = saved + row * _backward_per_token(shape, width)
    for done in (1, shape.layers - 1):
        moments.append(
            {
                GATHERED: root + width * one,
                KEPT: kept - done * per_layer,
                "gradients": done * of_layer,
                # the gradient of the head, that of the layer before on its way out, this layer's own
                WORKING: width * shape.embedding + 4 * one + arriving + again - (0 if per_layer == hidden else saved),
            }
        )
    moments.append({"gradients": shape.layers * of_layer, WORKING: (width + 4) * shape.root_parameters})
    backward = max(moments, key=_total)
    optimizer = {} if learner.offload else {"gradients": shard}
    phases = {"forward": state | forward, "backward": state | backward, "optimizer": state | optimizer}
    peak = max(map(_total, phases.values()))
    host = 16 * shape.parameters / learner.world_size if learner.offload else 0.0
    return Memory(phases, host, unseen(shape, learner, peak, logits))


def _total(parts: Mapping[str, float]) -> float:
    return sum(parts.values())


def _forward_per_token(shape: Shape, width: int) -> float:
    """Most of what one layer holds at once per token, nothing kept of it: its MLP, and the hidden state beside it."""
    if shape.experts:
        return width * (4 * shape.experts_per_token * shape.hidden + 4 * shape.hidden)
    return width * (3 * shape.intermediate + 2 * shape.hidden)


def _saved_per_token(shape: Shape, width: int) -> float:
    """What the backward pass of one layer needs of its forward pass: the MLP's products, queries, keys and values
    before and after norm and rotation, attention's output, both norms' inputs in float32 and what comes between."""
    mlp = 4 * shape.experts_per_token * shape.intermediate
    if shape.experts:
        mlp += 2 * shape.experts_per_token * shape.hidden
    return width * mlp + (4 + 3 * width) * (shape.queries + shape.keys) + (8 + 4 * width) * shape.hidden


def _backward_per_token(shape: Shape, width: int) -> float:
    """What comes on top while one layer is differentiated: gradients of the widest part of the MLP."""
    if shape.experts:
        return width * (3 * shape.experts_per_token * shape.hidden + shape.hidden)
    return width * (2 * shape.intermediate + shape.hidden)


def unseen(shape: Shape, learner: LearnerConfig, peak: float, logits: int) -> dict[str, float]:
    """What a GPU holds beside the tensors of one stream; `logits` is the count of a chunk's."""
    margin = {
        "CUDA context and libraries": 1.5e9,
        "fragmentation (4 %)": 0.04 * peak,
        "inside kernels: exponentials of a chunk's logits": 4.0 * logits,
    }
    if learner.world_size > 1:
        margin["NCCL buffers"] = 1.0e9
        # the next layer's weights arrive, and the last one's gradients leave, while this one computes
        margin["communication ahead of computation"] = 8.0 * shape.layer_parameters()
    return margin

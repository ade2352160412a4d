"""The sizes of a Qwen3, dense or mixture of experts: parameters, KV cache, operations. From its config.json alone.

The two models of the shipped recipes are known by name, so nothing is downloaded to plan a run of them.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandboxrl.rl.start.config import SHIPPED, START_PREFIX

QWEN3_4B: dict[str, Any] = {
    "model_type": "qwen3",
    "vocab_size": 151936,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 262144,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5e6},
    "tie_word_embeddings": True,
}
QWEN3_CODER_30B_A3B: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 5472,
    "moe_intermediate_size": 768,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "max_position_embeddings": 262144,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e7},
    "tie_word_embeddings": False,
}
KNOWN = {
    "Qwen/Qwen3-4B-Instruct-2507": QWEN3_4B,
    "Qwen/Qwen3-Coder-30B-A3B-Instruct": QWEN3_CODER_30B_A3B,
}


@dataclass(frozen=True)
class Shape:
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    """Of the dense MLP, or of one expert."""
    experts: int
    """0: a dense model."""
    experts_per_token: int
    """1 for a dense model."""
    vocabulary: int
    tied: bool

    @classmethod
    def of(cls, config: dict[str, Any]) -> "Shape":
        """From the values of a config.json."""
        experts = config.get("num_experts") or config.get("num_local_experts") or 0  # Transformers writes the latter
        return cls(
            hidden=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            kv_heads=config["num_key_value_heads"],
            head_dim=config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
            intermediate=config["moe_intermediate_size"] if experts else config["intermediate_size"],
            experts=experts,
            experts_per_token=config["num_experts_per_tok"] if experts else 1,
            vocabulary=config["vocab_size"],
            tied=bool(config.get("tie_word_embeddings")),
        )

    @property
    def queries(self) -> int:
        """Numbers in the queries of a token."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        return self.kv_heads * self.head_dim

    def layer_parameters(self, active: bool = False) -> int:
        """Of one layer, its norms included; `active`: those that one token meets."""
        attention = self.hidden * (2 * self.queries + 2 * self.keys) + 2 * self.head_dim + 2 * self.hidden
        experts = self.experts_per_token if active else max(1, self.experts)
        return attention + 3 * experts * self.hidden * self.intermediate + self.experts * self.hidden

    @property
    def embedding(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def root_parameters(self) -> int:
        """Of what is no layer: embedding, head and last norm."""
        return self.embedding * (1 if self.tied else 2) + self.hidden

    @property
    def parameters(self) -> int:
        return self.layers * self.layer_parameters() + self.root_parameters

    def kv_bytes_per_token(self, width: int) -> int:
        """Keys and values of all layers for one token; `width` bytes per number."""
        return 2 * self.layers * self.keys * width

    @property
    def attention_crossover(self) -> int:
        """Tokens at which a trajectory's attention takes as many operations as its matrix products in a layer."""
        return round(self.layer_parameters(active=True) / self.queries)

    def model_flops(self, lengths: Sequence[int], trained: int) -> float:
        """Operations of one forward and one backward pass over trajectories of `lengths`, as model-FLOP utilisation
        counts them: nothing for what is computed again. 6 per active parameter of the layers and token, 6 per number
        of the head and trained token, 6 times queries x length^2 for causal attention (half of the full square)."""
        matrices = 6 * self.layers * self.layer_parameters(active=True) * sum(lengths)
        attention = 6 * self.layers * self.queries * sum(n * n for n in lengths)
        return float(matrices + attention + 6 * self.embedding * trained)


def config_of(path: str) -> dict[str, Any] | None:
    """The config.json of a model folder or of a starting policy, or of a model that is known by name; None for
    others."""
    folder = (
        SHIPPED / path.removeprefix(START_PREFIX).partition("@")[0] if path.startswith(START_PREFIX) else Path(path)
    )
    file = folder / "config.json"
    if path and file.is_file():
        return dict(json.loads(file.read_text()))
    return KNOWN.get(path)


def shape_of(path: str) -> Shape | None:
    config = config_of(path)
    return Shape.of(config) if config else None

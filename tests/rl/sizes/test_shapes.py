"""Sizes by formula against models that were really made, and by hand."""

import pytest

from sandboxrl.rl.sizes.shapes import QWEN3_4B, QWEN3_CODER_30B_A3B, Shape, config_of, shape_of
from tests.rl.learner.test_model import tiny_mixture
from tests.rl.tiny import tiny_model


@pytest.mark.parametrize("kind", ["tied", "untied", "mixture"])
def test_parameters_are_those_of_the_model(kind, tmp_path):
    model = tiny_mixture() if kind == "mixture" else tiny_model(tied=kind == "tied")
    model.save_pretrained(tmp_path)
    shape = shape_of(str(tmp_path))
    assert shape is not None
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert shape.layer_parameters() == sum(p.numel() for p in model.model.layers[0].parameters())


def test_the_models_of_the_recipes_are_known_by_name():
    assert Shape.of(QWEN3_4B).parameters == 4_022_468_096
    coder = Shape.of(QWEN3_CODER_30B_A3B)
    assert coder.parameters == 30_532_122_624
    active = coder.layers * coder.layer_parameters(active=True) + coder.root_parameters
    assert active == pytest.approx(3.3e9, rel=0.02)
    assert config_of("Qwen/Qwen3-4B-Instruct-2507") == QWEN3_4B
    assert config_of("no/such-model") is None


def test_attention_and_matrices_cost_the_same_at_the_crossover():
    shape = Shape.of(QWEN3_4B)
    n = shape.attention_crossover
    assert n == pytest.approx(24_640, abs=10)
    no_head = shape.model_flops([n], trained=0)
    assert shape.model_flops([2 * n], 0) / no_head == pytest.approx(3, rel=1e-3)  # (2 + 4) / (1 + 1)


def test_operations_by_hand():
    """One token of one layer: 6 per parameter and 6 per query; nothing else."""
    one = Shape(hidden=4, layers=1, heads=2, kv_heads=1, head_dim=3, intermediate=5, experts=0, experts_per_token=1,
                vocabulary=7, tied=True)  # fmt: skip
    assert one.layer_parameters() == 4 * 6 + 2 * 4 * 3 + 6 * 4 + 2 * 3 + 2 * 4 + 3 * 4 * 5
    assert one.model_flops([1], trained=1) == 6 * one.layer_parameters() + 6 * 6 + 6 * 28
    assert one.kv_bytes_per_token(2) == 2 * 3 * 2

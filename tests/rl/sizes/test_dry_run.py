"""The dry run follows the learner's own step, and the formulas say what it finds."""

import dataclasses

import pytest

from sandboxrl.rl.grpo import LossConfig
from sandboxrl.rl.learner.config import LearnerConfig
from sandboxrl.rl.sizes.dry_run import dry_run
from sandboxrl.rl.sizes.memory import GATHERED, KEPT, PHASES, STATE, WORKING, learner_memory
from sandboxrl.rl.sizes.shapes import QWEN3_4B, QWEN3_CODER_30B_A3B, Shape

DENSE = QWEN3_4B | {"num_hidden_layers": 3}
MIXTURE = QWEN3_CODER_30B_A3B | {"num_hidden_layers": 3}
SMALL = QWEN3_4B | {
    "num_hidden_layers": 3,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 32_000,
    "tie_word_embeddings": False,
}


def both(config, learner, row):
    """Dry run and formula of the same."""
    found = dry_run(config, learner, LossConfig(), row)
    return found, learner_memory(Shape.of(config), learner, row, row * 2 // 3)


def assert_close(config, learner, row, within=0.1):
    found, formula = both(config, learner, row)
    assert found.parameters == Shape.of(config).parameters
    for phase in PHASES:
        assert formula.of(phase) == pytest.approx(found.memory.of(phase), rel=within, abs=1e8), phase
    assert formula.peak == pytest.approx(found.memory.peak, rel=within)
    assert formula.needed == pytest.approx(found.memory.needed, rel=within)
    assert formula.host == pytest.approx(found.memory.host, rel=within)


@pytest.mark.parametrize("ranks, row", [(1, 65_536), (2, 8_192), (16, 32_768)])
@pytest.mark.parametrize("config", [DENSE, MIXTURE, SMALL], ids=["dense", "mixture", "small"])
def test_formula_and_dry_run_agree(config, ranks, row):
    assert_close(config, LearnerConfig(world_size=ranks), row)


@pytest.mark.parametrize("config", [MIXTURE, SMALL], ids=["mixture", "small"])
@pytest.mark.parametrize(
    "change", [{"gradient_checkpointing": False}, {"offload": True}, {"logprob_chunk": 256}], ids=str
)
def test_they_agree_on_every_knob_that_takes_memory(config, change):
    assert_close(config, LearnerConfig(world_size=2, **change), 16_384)


@pytest.mark.heavy
@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("config, ranks", [(QWEN3_4B, 1), (QWEN3_4B, 2), (QWEN3_CODER_30B_A3B, 8)], ids=str)
def test_they_agree_at_true_size(config, ranks):
    """About half a minute each on a quiet core."""
    assert_close(config, LearnerConfig(world_size=ranks), 65_536)


def test_what_state_takes_by_hand():
    """16 bytes per parameter over all ranks, and no more in the optimizer's step: fused, it copies nothing."""
    found, _ = both(DENSE, LearnerConfig(world_size=2), 8_192)
    shard = 4 * found.parameters / 2
    parts = found.memory.phases["optimizer"]
    assert {name: parts[name] for name in STATE} == {
        "weights": pytest.approx(shard, rel=1e-3),
        "gradients": pytest.approx(shard, rel=1e-3),
        "Adam": pytest.approx(2 * shard, rel=1e-3),
    }
    assert found.memory.of("optimizer") == pytest.approx(4 * shard, rel=0.01)
    assert found.operators["_fused_adamw_.default"] == 1


def test_one_attention_call_per_row_however_many_sequences():
    """And one more where a layer is computed again."""
    for sequences in (1, 64):
        found = dry_run(DENSE, LearnerConfig(world_size=2), LossConfig(), 8_192, sequences)
        assert found.operators["torch_attn._varlen_attn.default"] == 2 * DENSE["num_hidden_layers"]
        assert found.operators["torch_attn._varlen_attn_backward.default"] == DENSE["num_hidden_layers"]
        assert found.operators["mm.dtype"] > 0, "the head's products take bfloat16 and give float32"
        assert not [name for name in found.operators if "softmax" in name or "scaled_dot" in name]


def test_no_logits_of_a_whole_row_exist():
    """They would take 20 times what the row takes: doubling the chunk adds one chunk's, not the row's."""
    small, large = (both(SMALL, LearnerConfig(logprob_chunk=n), 16_384)[0].memory for n in (1024, 2048))
    chunk = 4 * 1024 * SMALL["vocab_size"]
    assert large.of("forward") - small.of("forward") == pytest.approx(chunk, rel=0.1)


def test_what_doubles_memory_fails_here():
    """The test of the tests: a model twice as wide, a second copy of the row, kept activations."""
    found, formula = both(SMALL, LearnerConfig(), 16_384)
    wide = Shape.of(SMALL | {"hidden_size": 1024})
    assert learner_memory(wide, LearnerConfig(), 16_384, 10_922).peak > 1.3 * found.memory.peak
    longer = learner_memory(Shape.of(SMALL), LearnerConfig(), 32_768, 21_845)
    assert longer.peak > 1.4 * found.memory.peak
    kept, _ = both(SMALL, LearnerConfig(gradient_checkpointing=False), 16_384)
    assert kept.memory.phases["forward"][KEPT] > 5 * found.memory.phases["forward"][KEPT]
    assert formula.phases.keys() == found.memory.phases.keys()


def test_offload_leaves_no_state_on_the_gpu():
    found, _ = both(DENSE, LearnerConfig(world_size=1, offload=True), 8_192)
    assert not any(part in parts for parts in found.memory.phases.values() for part in STATE)
    assert found.memory.host == pytest.approx(16 * found.parameters, rel=0.01)


@pytest.mark.parametrize("loss", [LossConfig(policy_loss="gspo"), LossConfig(policy_loss="dppo", old_logprobs="engine"),
                                  LossConfig(policy_loss="cispo", importance="sequence")], ids=str)  # fmt: skip
def test_every_loss_runs_without_values(loss):
    """A loss that asked the GPU for a number would make it wait, and fail here."""
    found = dry_run(SMALL, LearnerConfig(), loss, 2_048)
    assert found.memory.phases["backward"][WORKING] > 0
    assert found.memory.phases["backward"][GATHERED] > 0


def test_a_dry_run_leaves_this_process_as_it_was():
    import torch
    import torch.distributed as dist

    before = torch.UntypedStorage.resize_, torch.Tensor.backward
    dry_run(SMALL, dataclasses.replace(LearnerConfig(), world_size=4), LossConfig(), 1_024)
    assert (torch.UntypedStorage.resize_, torch.Tensor.backward) == before
    assert not dist.is_initialized()
    assert torch.ones(2).sum().item() == 2

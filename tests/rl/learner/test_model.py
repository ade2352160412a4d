"""Log-probabilities of packed rows: equal to full logits, in value and in gradient."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from sandboxrl.data.errors import InputError
from sandboxrl.rl.learner.model import SelectedLogprobs, load_policy, named_weights
from tests.rl.tiny import VOCABULARY, tiny_model


def tiny_mixture() -> Qwen3MoeForCausalLM:
    torch.manual_seed(1)
    config = Qwen3MoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        moe_intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        num_experts=8,
        num_experts_per_tok=2,
        tie_word_embeddings=False,
        max_position_embeddings=2048,
    )
    return Qwen3MoeForCausalLM(config).eval()


@pytest.fixture(scope="module", params=["tied", "untied", "mixture"])
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param)
    model = tiny_mixture() if request.param == "mixture" else tiny_model(tied=request.param == "tied")
    model.save_pretrained(path)
    return path


def sequences(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCABULARY, (n,), generator=generator) for n in lengths]


def packed(parts, trained):
    """Arguments of Policy.forward; `trained` lists positions within each part."""
    starts = [sum(len(p) for p in parts[:i]) for i in range(len(parts))]
    return (
        torch.cat(parts),
        torch.cat([torch.arange(len(part)) for part in parts]),
        [len(part) for part in parts],
        torch.tensor(
            [start + t for start, positions in zip(starts, trained, strict=True) for t in positions], dtype=torch.long
        ),
    )


TRAINED = [[1, 2, 5, 9], [3], [], [7, 8, 9, 10, 11]]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk", [1, 3, 4096])
def test_packed_and_chunked_equals_separate_and_full(folder, temperature, chunk):
    """I3 and I11: each sequence alone through the plain model with full logits, against one packed row in chunks."""
    parts = sequences([10, 4, 6, 12])
    reference = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    expected = torch.cat(
        [
            F.log_softmax(reference(part[None]).logits[0] / temperature, -1)[
                [t - 1 for t in positions], part[positions]
            ]
            for part, positions in zip(parts, TRAINED, strict=True)
        ]
    )
    policy = load_policy(folder, chunk)
    found = policy(*packed(parts, TRAINED), temperature)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)

    direction = torch.linspace(-1, 1, len(found))
    (expected * direction).sum().backward()
    (found * direction).sum().backward()
    mine = dict(policy.language_model.named_parameters())
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(
            mine[name].grad, parameter.grad, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_a_sequence_does_not_see_its_neighbours(folder):
    one, two = sequences([10, 12])
    other = sequences([12], seed=9)[0]
    policy = load_policy(folder, 64)
    with torch.no_grad():
        before = policy(*packed([one, two, one], [[4, 9], [], [4, 9]]))
        after = policy(*packed([one, other, one], [[4, 9], [], [4, 9]]))
    torch.testing.assert_close(before, after)
    torch.testing.assert_close(before[:2], before[2:])


def test_a_row_that_trains_nothing_has_a_zero_gradient(folder):
    policy = load_policy(folder, 64)
    found = policy(*packed(sequences([5]), [[]]))
    found.sum().backward()
    assert found.shape == (0,)
    assert all(p.grad is not None and not p.grad.any() for p in policy.parameters())


def test_temperature_by_hand():
    head, hidden = torch.eye(3), torch.tensor([[2.0, 1.0, 0.0]] * 3)
    targets = torch.arange(3)
    at_one = SelectedLogprobs.apply(hidden, head, targets, 1.0, 2)
    assert at_one.tolist() == pytest.approx([-0.407606, -1.407606, -2.407606], abs=1e-6)
    cooler = SelectedLogprobs.apply(hidden, head, targets, 0.7, 2)
    assert cooler.tolist() == pytest.approx([-0.260118, -1.688690, -3.117261], abs=1e-6)


def test_the_gradient_of_the_chunked_head_is_exact():
    torch.manual_seed(0)
    hidden = torch.randn(7, 5, requires_grad=True)
    head = torch.randn(11, 5, requires_grad=True)
    targets, direction = torch.randint(0, 11, (7,)), torch.randn(7)
    expected = torch.autograd.grad(
        (F.log_softmax(hidden @ head.T / 0.7, -1)[range(7), targets] * direction).sum(), (hidden, head)
    )
    found = torch.autograd.grad(
        (SelectedLogprobs.apply(hidden, head, targets, 0.7, 3) * direction).sum(), (hidden, head)
    )
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5)


def test_bfloat16_heads_add_up_in_float32():
    torch.manual_seed(0)
    hidden, head = torch.randn(64, 32).bfloat16(), torch.randn(500, 32).bfloat16().requires_grad_()
    targets = torch.randint(0, 500, (64,))
    wide = head.detach().float().requires_grad_()
    expected = F.log_softmax(hidden.float() @ wide.T, -1)[range(64), targets]
    found = SelectedLogprobs.apply(hidden, head, targets, 1.0, 4)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    expected.sum().backward()
    found.sum().backward()
    torch.testing.assert_close(head.grad.float(), wide.grad, atol=0.02, rtol=0.01)


def test_weights_have_the_names_and_values_of_the_folder(folder):
    saved = load_file(folder / "model.safetensors")
    found = dict(named_weights(load_policy(folder, 64)))
    assert found.keys() == saved.keys()
    assert all(torch.equal(found[name], saved[name]) for name in saved)
    halves = dict(named_weights(load_policy(folder, 64), torch.bfloat16))
    assert all(torch.equal(halves[name], saved[name].bfloat16()) for name in saved)
    described = list(named_weights(load_policy(folder, 64), torch.bfloat16, described=True))
    assert [(name, t.shape, t.dtype) for name, t in described] == [(n, t.shape, t.dtype) for n, t in halves.items()]
    assert all(tensor.is_meta for _, tensor in described)


def test_without_its_weights_a_model_has_the_same_form_and_takes_no_memory(folder):
    """So the other ranks wait for rank 0's values; that they compute with these, `test_two_ranks_...` shows."""
    whole, empty = load_policy(folder, 64), load_policy(folder, 64, with_weights=False)
    for kind in ("named_parameters", "named_buffers"):
        there = {name: tensor.shape for name, tensor in getattr(whole, kind)()}
        assert there == {name: tensor.shape for name, tensor in getattr(empty, kind)() if tensor.is_meta}


def test_a_model_that_cannot_be_computed_is_refused(tmp_path):
    with pytest.raises(InputError, match="config.json"):
        load_policy(tmp_path, 64)
    small = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    LlamaForCausalLM(LlamaConfig(**small, num_attention_heads=2, attention_dropout=0.1)).save_pretrained(tmp_path / "d")
    with pytest.raises(InputError, match="dropout"):
        load_policy(tmp_path / "d", 64)
    sliding = tiny_model()
    sliding.config.layer_types = ["full_attention", "sliding_attention"]
    sliding.save_pretrained(tmp_path / "s")
    with pytest.raises(InputError, match="full attention"):
        load_policy(tmp_path / "s", 64)
    windowed = MistralConfig(**small, num_attention_heads=2, num_key_value_heads=2, sliding_window=8)
    MistralForCausalLM(windowed).save_pretrained(tmp_path / "m")
    with pytest.raises(InputError, match="full attention"):
        load_policy(tmp_path / "m", 64)

"""One call per sequence and one call per row are the same attention, in float64, gradients included.

The kernel behind `varlen_attn` exists on GPUs only. Here a plain one stands in for it, written from the operator's
documentation and from nothing of ours, so what is compared is everything that we tell the operator.
"""

import math
import random

import pytest
import torch
from torch import Tensor

from sandboxrl.rl.learner.attention import packed_attention, varlen_attention


def parts(query, key, value, cu, scale, window):
    """Of each sequence: its place in the row, query, key and value as [head, token, dim], scores with what is not seen
    at minus infinity. `window` is how many keys before and after a query are seen; -1: all."""
    group = query.shape[1] // key.shape[1]
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    for start, end in zip(cu[:-1].tolist(), cu[1:].tolist(), strict=True):
        q, k, v = (tensor[start:end].transpose(0, 1) for tensor in (query, key, value))
        k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
        distance = torch.arange(end - start)[None] - torch.arange(end - start)[:, None]
        hidden = torch.zeros_like(distance, dtype=torch.bool)
        if window[0] >= 0:
            hidden |= distance < -window[0]
        if window[1] >= 0:
            hidden |= distance > window[1]
        yield slice(start, end), q, k, v, (q @ k.transpose(1, 2) * scale).masked_fill(hidden, -torch.inf), scale


@torch.library.register_kernel("torch_attn::_varlen_attn", "cpu")
def forward(q, k, v, cu_q, cu_k, max_q, max_k, is_causal=False, scale=None, window_size=None, enable_gqa=False,
            seqused_k=None, block_table=None, num_splits=None):  # fmt: skip
    assert cu_q.dtype == torch.int32
    assert torch.equal(cu_q, cu_k)
    assert (cu_q[0], cu_q[-1], cu_q.diff().max()) == (0, len(q), max_q)
    assert max_q == max_k
    assert enable_gqa or q.shape[1] == k.shape[1]
    out, sums = torch.empty_like(q), q.new_empty(q.shape[1], len(q))
    for part, _, _, values, scores, _ in parts(q, k, v, cu_q, scale, window_size):
        out[part] = (scores.softmax(-1) @ values).transpose(0, 1)
        sums[:, part] = scores.logsumexp(-1)
    return out, sums, torch.zeros(2, dtype=torch.uint64)


@torch.library.register_kernel("torch_attn::_varlen_attn_backward", "cpu")
def backward(grad, q, k, v, out, sums, cu_q, cu_k, max_q, max_k, is_causal, rng_state, scale=None, window_size=None):
    """By hand: autograd is off in here."""
    of_q, of_k, of_v = (torch.empty_like(tensor) for tensor in (q, k, v))

    def together(of_heads: Tensor, like: Tensor) -> Tensor:
        """Query heads that share a key head add up."""
        return of_heads.unflatten(0, (like.shape[1], -1)).sum(1).transpose(0, 1)

    for part, queries, keys, values, scores, factor in parts(q, k, v, cu_q, scale, window_size):
        share = (scores - sums[:, part, None]).exp()
        of_out = grad[part].transpose(0, 1)
        of_share = of_out @ values.transpose(1, 2)
        of_scores = share * (of_share - (of_out * out[part].transpose(0, 1)).sum(-1, keepdim=True)) * factor
        of_q[part] = (of_scores @ keys).transpose(0, 1)
        of_k[part] = together(of_scores.transpose(1, 2) @ queries, k)
        of_v[part] = together(share.transpose(1, 2) @ of_out, v)
    return of_q, of_k, of_v


class Heads(torch.nn.Module):
    """What the attention functions ask of the layer they are called from."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.num_key_value_groups, self.is_causal = groups, True


def both(lengths, heads, kv_heads, seed=0, scaling=None):
    """[output, gradients of query, key and value] of each way."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(lengths)
    shapes = [(1, heads, total, 16), (1, kv_heads, total, 16), (1, kv_heads, total, 16)]
    inputs = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    direction = torch.randn(1, total, heads, 16, generator=generator, dtype=torch.float64)
    starts = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32)
    for attention in (packed_attention, varlen_attention):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        scale = 1 / 4 if scaling is None else scaling
        out, _ = attention(Heads(heads // kv_heads), *leaves, None, lengths=lengths, starts=starts, scaling=scale)
        yield [out.detach(), *torch.autograd.grad((out * direction).sum(), leaves)]


@pytest.mark.parametrize("heads, kv_heads", [(4, 4), (8, 2), (3, 1)])
@pytest.mark.parametrize("lengths", [[1], [37], [1] * 20, [1, 50, 1, 2, 33], [64, 64]], ids=str)
def test_one_call_per_row_is_one_call_per_sequence(lengths, heads, kv_heads):
    packed, varlen = both(lengths, heads, kv_heads)
    for mine, theirs in zip(varlen, packed, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-10, rtol=0)


@pytest.mark.parametrize("seed", range(10))
def test_they_agree_on_random_lengths(seed):
    rng = random.Random(seed)
    kv_heads = rng.choice([1, 2, 4])
    lengths = [rng.randint(1, 40) for _ in range(rng.randint(1, 12))]
    packed, varlen = both(lengths, kv_heads * rng.choice([1, 2, 4]), kv_heads, seed, scaling=rng.uniform(0.05, 1))
    for mine, theirs in zip(varlen, packed, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-10, rtol=0)


def test_the_whole_policy_is_the_same_with_either(tmp_path):
    """Also through the model: which function a layer calls, and where it learns the sequences from."""
    from sandboxrl.rl.learner.model import load_policy
    from tests.rl.learner.test_model import packed, sequences
    from tests.rl.tiny import tiny_model

    tiny_model().save_pretrained(tmp_path)
    arguments = packed(sequences([10, 1, 6, 12]), [[1, 5, 9], [], [2], [7, 8]])
    found = {}
    for gpu_kernels in (False, True):
        policy = load_policy(tmp_path, 4, gpu_kernels=gpu_kernels).double()
        policy.gpu_kernels = False  # the product that only GPUs have is not what is compared
        logprobs = policy(*arguments)
        (logprobs * torch.linspace(-1, 1, len(logprobs))).sum().backward()
        found[gpu_kernels] = [logprobs.detach(), *(p.grad for p in policy.parameters())]
    for mine, theirs in zip(found[True], found[False], strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-6, rtol=1e-5)

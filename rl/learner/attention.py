"""Causal attention within each of the sequences that lie one after the other in a row.

| name | where | how |
|---|---|---|
| `packed_sdpa` | CPU, and any float32 | one call per sequence |
| `packed_varlen` | GPUs, half precision | one call per row, told where the sequences begin |

Both compute the same: no mask of row x row exists (4 GB at 65,536 tokens) and nothing is computed between sequences.
On a GPU one call per sequence would be planned anew by cuDNN for every length it has not met, three times a sequence.
"""

import logging
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import activate_flash_attention_impl, list_flash_attention_impls
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

PACKED, VARLEN = "packed_sdpa", "packed_varlen"
HOPPER = (9, 0)
"""The compute capability that FlashAttention 3 is written for."""


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    lengths: list[int],
    starts: Tensor,
    **options: Any,
) -> tuple[Tensor, None]:
    """One causal call per sequence without a mask: the kernels without a mask are the fast ones.

    Query, key and value have the shape [1, heads, tokens, head_dim]; the answer is [1, tokens, heads, head_dim].
    `starts` is for `varlen_attention`.
    """
    assert attention_mask is None
    options["is_causal"] = True
    parts = zip(*(tensor.split(lengths, dim=2) for tensor in (query, key, value)), strict=True)
    found = [sdpa_attention_forward(module, q, k, v, None, **options)[0] for q, k, v in parts]
    return torch.cat(found, dim=1), None


def varlen_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    lengths: list[int],
    starts: Tensor,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """One call for the row. Shapes as in `packed_attention`; `starts`, int32 [sequences + 1], is where each begins."""
    assert attention_mask is None
    longest = max(lengths)
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    out = varlen_attn(
        q,
        k,
        v,
        starts,
        starts,
        longest,
        longest,
        scale=scaling,
        window_size=(-1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(out, Tensor)
    return out[None], None


AttentionInterface.register(PACKED, packed_attention)
AttentionInterface.register(VARLEN, varlen_attention)


def take_fastest_kernel(device: torch.device) -> str:
    """Have `varlen_attention` use FlashAttention 3 where it is installed and made for this GPU, else torch's own
    FlashAttention 2. Returns which."""
    fits = torch.cuda.get_device_capability(device) == HOPPER and "FA3" in list_flash_attention_impls()
    if not fits or find_spec("flash_attn_interface") is None:
        return "FA2"
    try:
        activate_flash_attention_impl("FA3")
    except (ImportError, RuntimeError) as error:  # a build for another torch: the other kernel is as exact
        logging.getLogger(__name__).warning("FlashAttention 3 is installed but cannot be used: %s", error)
        return "FA2"
    return "FA3"

"""The policy as the learner computes it: Hugging Face weights sharded over a mesh, log-probabilities of packed rows.

One forward pass of `Policy` answers the log-probabilities of the trained tokens of a row. The logits of the row (tokens
x vocabulary: 40 GB for 64k tokens of Qwen3) never exist: hidden states are kept only where the next token is trained
on, and the vocabulary is gone through a chunk of tokens at a time, forwards and backwards.

The output head runs inside the forward pass of the sharded root module, so that FSDP has its weight gathered there,
tied to the embedding or not.
"""

from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.core_model_loading import revert_weight_conversion

from sandboxrl.data.errors import InputError, described
from sandboxrl.rl.learner.attention import PACKED, VARLEN


class SelectedLogprobs(torch.autograd.Function):
    """log_softmax(hidden @ head.T / temperature)[target] for each position, a chunk of positions at a time.

    hidden [n, d], head [vocabulary, d], targets [n] -> float32 [n]. Products accumulate in float32 whatever the type of
    the inputs. The backward pass computes each chunk's logits again and adds up the head's gradient in float32. With
    `gpu_kernels` products are those that only GPUs have.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        targets: Tensor,
        temperature: float,
        chunk: int,
        gpu_kernels: bool = False,
    ) -> Tensor:
        logprobs = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        log_z = torch.empty_like(logprobs)
        for i in range(0, len(hidden), chunk):
            part = slice(i, i + chunk)
            logits = _product(hidden[part], head.t(), gpu_kernels).div_(temperature)
            log_z[part] = logits.logsumexp(-1)
            logprobs[part] = logits.gather(-1, targets[part, None])[:, 0] - log_z[part]
            del logits  # else it is there while the next chunk's are made
        ctx.save_for_backward(hidden, head, targets, log_z)
        ctx.temperature, ctx.chunk, ctx.gpu_kernels = temperature, chunk, gpu_kernels
        return logprobs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        hidden, head, targets, log_z = ctx.saved_tensors
        of_hidden = torch.empty_like(hidden)
        of_head = torch.zeros(head.shape, dtype=torch.float32, device=head.device)
        for i in range(0, len(hidden), ctx.chunk):
            part = slice(i, i + ctx.chunk)
            logits = _product(hidden[part], head.t(), ctx.gpu_kernels).div_(ctx.temperature)
            scale = gradient[part, None] / ctx.temperature
            # d logp[target] / d logits = (1[target] - softmax) / temperature
            of_logits = logits.sub_(log_z[part, None]).exp_().mul_(-scale)
            of_logits.scatter_add_(-1, targets[part, None], scale)
            of_logits = of_logits.to(hidden.dtype)
            of_hidden[part] = of_logits @ head
            del logits
            of_head += _product(of_logits.t(), hidden[part], ctx.gpu_kernels)
            del of_logits
        return of_hidden, of_head.to(head.dtype), None, None, None, None


def _product(left: Tensor, right: Tensor, gpu_kernels: bool) -> Tensor:
    """left @ right in float32, also for bfloat16 inputs."""
    if gpu_kernels and left.dtype != torch.float32:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()


class Policy(nn.Module):
    """A causal language model that answers with log-probabilities. The root module that is sharded."""

    language_model: Any
    """A transformers model. To a type checker, all that a plain module holds may be a tensor."""

    def __init__(self, language_model: nn.Module, chunk: int, gpu_kernels: bool = False) -> None:
        """`gpu_kernels`: one attention call per row, and products that take bfloat16 and give float32. The dry run
        asks for them on a machine without a GPU, where they have shapes and no values."""
        super().__init__()
        self.language_model = language_model
        self.chunk, self.gpu_kernels = chunk, gpu_kernels
        self.language_model.set_attn_implementation(VARLEN if gpu_kernels else PACKED)

    def forward(
        self, ids: Tensor, positions: Tensor, lengths: list[int], trained: Tensor, temperature: float = 1.0
    ) -> Tensor:
        """Log-probability of each trained token given those before it in its trajectory: float32 [trained].

        `ids`, `positions` [tokens] and `lengths` describe one packed row (see rl.learner.batch.Row); `trained` are
        ascending indices into it.
        """
        starts = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=ids.device)
        hidden = self.language_model.model(
            input_ids=ids[None], position_ids=positions[None], use_cache=False, lengths=lengths, starts=starts
        ).last_hidden_state[0]
        head = self.language_model.lm_head.weight
        options = temperature, self.chunk, self.gpu_kernels
        found: Tensor = SelectedLogprobs.apply(hidden[trained - 1], head, ids[trained], *options)  # type: ignore[no-untyped-call]
        return found


def load_policy(folder: str | Path, chunk: int, with_weights: bool = True, gpu_kernels: bool = False) -> Policy:
    """The model of a Hugging Face folder on the CPU, in the dtype it was saved in; without its weights on device meta,
    where it takes no memory. Raises InputError for a model that the learner cannot compute."""
    if not (Path(folder) / "config.json").is_file():
        raise InputError(f"{folder} is no Hugging Face model folder: it has no config.json")
    return policy_of(_read(AutoConfig, folder), folder, chunk, with_weights, gpu_kernels)


def _read(kind: Any, folder: str | Path, **options: Any) -> Any:
    """`kind.from_pretrained`, which reads a damaged file with errors of every kind. Raises InputError."""
    try:
        return kind.from_pretrained(folder, **options)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise InputError(f"{folder} cannot be read: {described(error)}") from error


def policy_of(config: Any, folder: str | Path, chunk: int, with_weights: bool, gpu_kernels: bool) -> Policy:
    """`load_policy`, given the folder's configuration. Without weights the folder need not be there."""
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds - {"full_attention"} or getattr(config, "sliding_window", None):
        raise InputError(
            f"{folder}: {config.model_type} has layers without full attention, which rows cannot be packed for"
        )
    if with_weights:
        model = _read(AutoModelForCausalLM, folder, dtype="auto")
    else:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    if getattr(config, "attention_dropout", 0) or any(m.p for m in model.modules() if isinstance(m, nn.Dropout)):
        raise InputError(
            f"{folder}: {config.model_type} has dropout, so its log-probabilities would not be the engine's"
        )
    head, layers = getattr(model, "lm_head", None), getattr(getattr(model, "model", None), "layers", None)
    if layers is None or not isinstance(head, nn.Linear) or head.bias is not None:
        raise InputError(f"{folder}: {config.model_type} is not built as model.layers with a plain lm_head")
    return Policy(model, chunk, gpu_kernels)


def shard(
    policy: Policy, mesh: DeviceMesh, compute_dtype: torch.dtype, gradient_checkpointing: bool, offload: bool = False
) -> None:
    """Spread the parameters over the mesh, each layer a unit, the embedding and the head with the root.

    Parameters become float32 whatever they were saved in; with `compute_dtype` bfloat16 they are gathered and
    multiplied as bfloat16 and gradients are reduced in float32. Goes layer by layer: no GPU ever holds the whole model.
    Rank 0 has the weights and hands them to the others, so that the machines hold the model once and not once a rank.
    With `offload` parameters, and with them gradients and optimizer state, stay in host memory.
    """
    mixed = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32)
    options: dict[str, Any] = {
        "mesh": mesh,
        "mp_policy": MixedPrecisionPolicy() if compute_dtype == torch.float32 else mixed,
    }
    if offload and mesh.device_type != "cpu":
        options["offload_policy"] = CPUOffloadPolicy()
    if gradient_checkpointing:
        policy.language_model.gradient_checkpointing_enable({"use_reentrant": False})
    for unit in (*policy.language_model.model.layers, policy):
        _place(unit, torch.device(mesh.device_type))
        fully_shard(unit, **options)
    policy.train()


def check_same_form(policy: Policy) -> None:
    """Raises InputError unless the model has the same tensors on every rank. A collective."""
    forms: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(forms, _form(policy))
    if any(form != forms[0] for form in forms):
        raise InputError(
            "the model's folder holds other tensors than its config.json describes (a head of its own where it says "
            "tie_word_embeddings, or quantized weights); the ranks of a learner need one form"
        )


def _form(policy: Policy) -> list[tuple[str, tuple[int, ...], str]]:
    """(name, shape, first name of the same tensor) of every parameter and buffer."""
    first: dict[Tensor, str] = {}
    tensors = (*policy.named_parameters(remove_duplicate=False), *policy.named_buffers(remove_duplicate=False))
    return [(name, tuple(tensor.shape), first.setdefault(tensor, name)) for name, tensor in tensors]


def _place(unit: nn.Module, device: torch.device) -> None:
    """Put what of `unit` is not sharded yet on the device, in float32, with rank 0's values on every rank. A tensor
    that two modules share stays shared."""
    placed: dict[Tensor, Tensor] = {}
    tables: list[dict[str, Any]] = [kept for module in unit.modules() for kept in (module._parameters, module._buffers)]
    for table in tables:
        for name, tensor in table.items():
            if tensor is None or isinstance(tensor, DTensor):
                continue
            if tensor not in placed:
                placed[tensor] = _placed(tensor, device)
            table[name] = placed[tensor]


def _placed(tensor: Tensor, device: torch.device) -> Tensor:
    """Rank 0's values of `tensor` on the device, as a parameter if it is one."""
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    whole = torch.empty_like(tensor, dtype=dtype, device=device) if tensor.is_meta else tensor.detach()
    whole = whole.to(device, dtype).contiguous()
    dist.broadcast(whole, src=0)
    return nn.Parameter(whole, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else whole


def named_weights(
    policy: Policy, dtype: torch.dtype | None = None, described: bool = False, device: torch.device | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Every weight under the name and in the form that it has in a Hugging Face folder, a tied head left out.

    A tensor is still sharded (`full_tensor()` gathers it, a collective) unless its form in the folder differs from the
    one in memory, as with the experts of a mixture, which are gathered here. So every rank must iterate to the end.
    With `described` tensors have a shape and a dtype only (device meta), and nothing is gathered. On `device` they are
    gathered, wherever they are kept.
    """
    model = policy.language_model
    for name, parameter in model.named_parameters():
        form = torch.empty(parameter.shape, dtype=dtype or parameter.dtype, device="meta")
        as_saved = revert_weight_conversion(model, {name: form})
        if described:
            yield from as_saved.items()
            continue
        tensor = parameter.detach().to(device, form.dtype)
        if list(as_saved) == [name]:
            yield name, tensor
        else:
            whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
            yield from revert_weight_conversion(model, {name: whole}).items()

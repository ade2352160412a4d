"""What vLLM's worker lacks on CPU. Importing it registers all of it with vLLM, in the process that holds the worker.

- Weight transfer. vLLM has backends for GPUs only (nccl, ipc); `shm` makes a CPU engine be updated by the very calls
  that update a GPU engine. `sandboxrl.rl.learner.weights` is its other end.
- Sleep. vLLM's CPU worker takes no notice of it; here it gives the KV cache's memory back.
- Fused norms. vLLM compiles its RMSNorm for CPUs but offers it to GPUs only, and takes six passes instead. With them a
  small model's engine needs a tenth less time.
"""

from dataclasses import dataclass
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from vllm import ir
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

FUSED_NORMS = "cpu_fused"
"""The name of their provider, for `EngineArgs.ir_op_priority`."""


@dataclass
class SharedInit(WeightTransferInitInfo):
    """Nothing to agree on beforehand."""


@dataclass
class SharedUpdate(WeightTransferUpdateInfo):
    path: str
    """A safetensors file, parameters by their Hugging Face names."""
    label: str
    """What the file says of itself; a path that another process has taken over does not say it."""


class SharedMemoryTransfer(WeightTransferEngine[SharedInit, SharedUpdate]):
    """Reads a whole checkpoint from a file in memory."""

    init_info_cls = SharedInit
    update_info_cls = SharedUpdate

    def init_transfer_engine(self, init_info: SharedInit) -> None:
        pass

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: SharedUpdate) -> None:
        with safe_open(update_info.path, "pt") as file:
            label = (file.metadata() or {}).get("label")
            if label != update_info.label:
                raise RuntimeError(f"{update_info.path} holds {label!r}, not {update_info.label!r}")
            model: Any = self.model
            model.load_weights((name, file.get_tensor(name)) for name in file.keys())

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        repack_cpu(self.model)

    def shutdown(self) -> None:
        pass


def repack_cpu(model: torch.nn.Module) -> None:
    """Pack again every matrix product whose layer still holds its plain 2-D weight.

    On CPU vLLM packs the weight of each product into a handle when it is loaded, and a reload packs again only layers
    that received a tensor. A tied `lm_head` receives none: without this it would go on computing with the old weights,
    and nothing would say so.
    """
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if hasattr(module, "cpu_linear") and weight is not None and weight.dim() == 2 and weight.numel():
            method: Any = module.quant_method
            method.process_weights_after_loading(module)


def drop_kv_cache(worker: Any) -> list[int]:
    """Give the memory of the KV cache back; vLLM's CPU worker ignores `sleep`. Its tensors stay, without storage.
    Returns what `restore_kv_cache` needs."""
    storages = _kv_storages(worker)
    sizes = [storage.nbytes() for storage in storages]
    for storage in storages:
        storage.resize_(0)
    return sizes


def restore_kv_cache(worker: Any, sizes: list[int]) -> None:
    """Memory for the KV cache again, all zeros."""
    for storage, size in zip(_kv_storages(worker), sizes, strict=True):
        storage.resize_(size)
        storage.fill_(0)


def _kv_storages(worker: Any) -> list[Any]:
    """Each `torch.UntypedStorage` once: layers may share one."""
    storages = [tensor.untyped_storage() for tensor in worker.model_runner.kv_caches]
    return list({storage._cdata: storage for storage in storages}.values())


def _norm_fits(x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None) -> bool:
    """The kernel takes one dtype and whole vectors of at most 16 numbers; what it does not take goes the slow way."""
    return weight is not None and weight.dtype == x.dtype and variance_size is None and x.shape[-1] % 16 == 0


@ir.ops.rms_norm.register_impl(FUSED_NORMS, supports_args=_norm_fits)
def rms_norm(x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None) -> Tensor:
    """`weight * x / sqrt(mean(x**2) + epsilon)` over the last dimension."""
    x = x.contiguous()  # the kernel does not look at strides, and queries and keys are slices of one product
    out = torch.empty_like(x)
    torch.ops._C.rms_norm(out, x, weight, epsilon)
    return out


def _sum_norm_fits(
    x: Tensor, x_residual: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> bool:
    fits = _norm_fits(x, weight, epsilon, variance_size) and x_residual.dtype == x.dtype
    return fits and x.is_contiguous() and x_residual.is_contiguous()


@ir.ops.fused_add_rms_norm.register_impl(FUSED_NORMS, supports_args=_sum_norm_fits, inplace=True)
def fused_add_rms_norm(
    x: Tensor, x_residual: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """(`rms_norm` of the sum, the sum), in place of `x` and `x_residual`."""
    torch.ops._C.fused_add_rms_norm(x, x_residual, weight, epsilon)
    return x, x_residual


WeightTransferEngineFactory.register_engine("shm", SharedMemoryTransfer)

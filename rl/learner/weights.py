"""New weights from the learner to the rollout workers: the learner's end.

    publisher = Publisher(backend, run, rank)                       one per learner rank
    lost = publisher.publish(weights, version, workers)             every rank, same arguments

`weights` yields `(Hugging Face name, tensor)`; a tensor sharded over ranks is gathered here, one at a time. Gathering
is a collective, so every rank takes part; only rank 0 sends. When `publish` returns, every worker that it does not
report lost samples with `version`, its prefix cache is empty, and nothing of the transfer is left.

| backend | for | how |
|---|---|---|
| `shm` | workers on CPU, same machine | a file in memory that no directory lists and that dies with this process |
| `nccl` | workers on GPUs of their own | vLLM's broadcast |
| `ipc` | workers that share the learner's GPU | vLLM's CUDA handles |

`nccl` and `ipc` are written against vLLM 0.32 and have never run: no GPU was at hand. `shm` is tested.
"""

import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import ray
import torch
from safetensors.torch import save

BACKENDS = ("shm", "nccl", "ipc")


class SharedWeights:
    """A checkpoint in memory under `/proc/PID/fd/N`: gone when closed, and also when this process is killed.

    `/dev/shm` would leave files behind after a crash, and is 64 MB in a default container.
    """

    def __init__(self, weights: Iterable[tuple[str, torch.Tensor]], label: str) -> None:
        content = save({name: full(tensor).contiguous() for name, tensor in weights}, {"label": label})
        self._file = os.fdopen(os.memfd_create("weights", os.MFD_CLOEXEC), "wb")
        self._file.write(content)
        self._file.flush()
        self.info = {"path": f"/proc/{os.getpid()}/fd/{self._file.fileno()}", "label": label}
        """What `RolloutWorker.load_weights` takes."""

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "SharedWeights":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Publisher:
    """Sends weights; one per learner rank."""

    def __init__(self, backend: str, run: str, rank: int = 0) -> None:
        assert backend in BACKENDS, backend
        self._backend, self._run, self._rank = backend, run, rank
        self._sender: _GpuSender | None = None

    def publish(
        self,
        weights: Iterable[tuple[str, torch.Tensor]],
        version: int,
        workers: Sequence[Any],
        described: Iterable[tuple[str, torch.Tensor]] = (),
    ) -> list[tuple[int, str]]:
        """Give `workers` (RolloutWorker actor handles) the weights; on a GPU `described` tells names, shapes and dtypes
        ahead (see sandboxrl.rl.learner.model.named_weights), so that one tensor at a time is whole in memory. Returns
        `(index, what happened)` of each worker that was lost on the way (rank 0; other ranks return nothing). Raises
        whatever ends a transfer on a GPU: a broadcast cannot go on without one of its members."""
        if self._backend == "shm":
            return self._publish_shared(weights, version, workers)
        if self._sender is None or self._sender.workers != list(workers):
            self.close()
            self._sender = _GpuSender(self._backend, self._rank, list(workers))
        self._sender.send(weights, described, version)
        return []

    def _publish_shared(
        self, weights: Iterable[tuple[str, torch.Tensor]], version: int, workers: Sequence[Any]
    ) -> list[tuple[int, str]]:
        if self._rank != 0:
            for _, tensor in weights:
                full(tensor)
            return []
        with SharedWeights(weights, f"{self._run} {version}") as shared:
            loading = [worker.load_weights.remote(shared.info, version) for worker in workers]
            lost = []
            for index, reference in enumerate(loading):
                try:
                    ray.get(reference)
                except ray.exceptions.RayError as error:
                    lost.append((index, str(error).strip().splitlines()[-1]))
            return lost

    def close(self) -> None:
        if self._sender is not None:
            self._sender.close()
            self._sender = None


class _GpuSender:
    """vLLM's own trainer side, driving our workers. Never run: see the head of this file."""

    def __init__(self, backend: str, rank: int, workers: list[Any]) -> None:
        self._backend, self._rank, self.workers = backend, rank, workers
        self._engine: Any = None
        self._weights: Iterable[tuple[str, torch.Tensor]] = ()
        self._described: list[tuple[str, torch.Tensor]] = []
        self._client = _Client(workers)

    def send(
        self,
        weights: Iterable[tuple[str, torch.Tensor]],
        described: Iterable[tuple[str, torch.Tensor]],
        version: int,
    ) -> None:
        self._client.version, self._weights, self._described = version, weights, list(described)
        try:
            if self._engine is None:
                self._engine = self._open()
            self._engine.send_weights()
        finally:
            self._weights = ()

    def _open(self) -> Any:
        from vllm.distributed.weight_transfer import ParamMeta, WeightSource, WeightTransferTrainerFactory
        from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        sender = self

        class Source(WeightSource):
            """Names and shapes without gathering; the tensors gathered one at a time."""

            def metadata(self) -> list[Any]:
                return [ParamMeta(name, t.dtype, tuple(t.shape)) for name, t in sender._described]

            def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
                return ((name, full(tensor)) for name, tensor in sender._weights)

        if self._backend == "ipc":
            init: Any = IPCTrainerInitInfo(rank=self._rank, packed=True)
        else:
            ranks = sum(self._client.num_ranks()) if self._rank == 0 else 0
            init = NCCLTrainerInitInfo(ray.util.get_node_ip_address(), free_port(), 1 + ranks, rank=self._rank)
        return WeightTransferTrainerFactory.trainer_init(init, client=self._client, source=Source())

    def close(self) -> None:
        if self._engine is not None:
            self._engine.shutdown()
            self._engine = None


class _Client:
    """vLLM's control plane over our actors: the four calls of `VLLMWeightSyncClient`."""

    def __init__(self, workers: list[Any]) -> None:
        self._workers = workers
        self.version = 0

    def num_ranks(self) -> list[int]:
        """Tensor-parallel ranks of each worker."""
        return ray.get([worker.num_ranks.remote() for worker in self._workers])

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Each worker is an engine of its own that counts its ranks from 0: each gets its own offset in the group."""
        infos = [dict(init_info) for _ in self._workers]
        if "rank_offset" in init_info:
            offset = init_info["rank_offset"]
            for info, ranks in zip(infos, self.num_ranks(), strict=True):
                info["rank_offset"] = offset
                offset += ranks
        ray.get([w.init_weight_transfer.remote(info) for w, info in zip(self._workers, infos, strict=True)])

    def start_weight_update(self) -> None:
        ray.get([worker.start_weight_update.remote() for worker in self._workers])

    def update_weights(self, update_info: Any) -> None:
        ray.get([worker.update_weights.remote(update_info) for worker in self._workers])

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        ray.get([worker.finish_weight_update.remote(self.version) for worker in self._workers])


def full(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a tensor that may be sharded over ranks (then a collective)."""
    gather = getattr(tensor, "full_tensor", None)
    return (gather() if gather else tensor).detach()


def free_port() -> int:
    """A TCP port nobody listens on right now."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        return int(listener.getsockname()[1])

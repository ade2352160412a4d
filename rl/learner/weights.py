"""New weights from the learner to the rollout workers: the learner's end.

    publisher = Publisher(backend, run, rank)                       one per learner rank
    lost = publisher.publish(weights, version, workers)             every rank, same arguments

One protocol for all backends. Who is a member is settled by the caller before each publication and does not change
during it. `weights` yields `(Hugging Face name, tensor)`; a tensor sharded over ranks is gathered here, one at a time.
Gathering is a collective, so every rank takes part, to the last tensor, whatever becomes of the members; only rank 0
sends. Every wait has a deadline and watches the members. When `publish` returns, every worker that it does not report
lost samples with `version`, its prefix cache is empty, and nothing of the transfer is left. A lost one is replaced by
the caller, and the fresh one gets the weights in a publication of its own.

| backend | for | how |
|---|---|---|
| `shm` | workers on CPU, same machine | a file in memory that no directory lists and that dies with this process |
| `tcp` | workers on CPU, any machine | a stream to each worker (`rl/learner/stream.py`), in parts, never whole here |
| `nccl` | workers on GPUs of their own | vLLM's broadcast |
| `ipc` | workers that share the learner's GPU | vLLM's CUDA handles |

Names, shapes and dtypes are read once, not at each publication. `nccl` and `ipc` are written against vLLM 0.32 and have
never run: no GPU was at hand. vLLM also has sharded transfers (`nccl_m2n`, `sharded_rdt`: each learner rank sends its
share); one would be another class beside `_GpuSender`, under the same calls.
"""

import json
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import ray
import torch

from sandboxrl.rl.learner.stream import Sender, open_memory

BACKENDS = ("shm", "tcp", "nccl", "ipc")
CONNECT_S = 120.0
"""How long a worker may take to ask for the weights once it was told to: its event loop answers at once."""
PUBLISH_S = 900.0
"""How long a publication may take in all, unless the caller says otherwise."""
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""As a safetensors header names them."""

Weights = Iterable[tuple[str, torch.Tensor]]


class Layout:
    """A safetensors file of tensors with these names, shapes and dtypes, in this order; their values come later."""

    def __init__(self, described: Weights) -> None:
        self.names: list[tuple[str, tuple[int, ...], torch.dtype]] = []
        entries, start = {}, 0
        for name, tensor in described:
            end = start + tensor.numel() * tensor.element_size()
            entries[name] = {
                "dtype": DTYPES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [start, end],
            }
            self.names.append((name, tuple(tensor.shape), tensor.dtype))
            start = end
        self._entries, self._num_values = json.dumps(entries)[1:-1], start

    def header(self, label: str) -> bytes:
        """The file up to its values; the label is in its metadata."""
        about = json.dumps({"__metadata__": {"label": label}})[1:-1]
        text = ("{" + ", ".join(part for part in (about, self._entries) if part) + "}").encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    def num_bytes(self, label: str) -> int:
        return len(self.header(label)) + self._num_values

    def parts(self, weights: Weights, label: str) -> Iterator[memoryview]:
        """The whole file, a tensor at a time, each gathered when its turn comes. Raises RuntimeError for a tensor that
        is not the one described."""
        yield memoryview(self.header(label))
        expected = iter(self.names)
        for name, tensor in weights:
            whole = full(tensor).contiguous()
            found, described = (name, tuple(whole.shape), whole.dtype), next(expected, None)
            if found != described:
                raise RuntimeError(f"the learner sends {found}, but described {described}")
            yield whole.cpu().reshape(-1).view(torch.uint8).numpy().data
        if (missing := next(expected, None)) is not None:
            raise RuntimeError(f"the learner described {missing}, and did not send it")


class SharedWeights:
    """A checkpoint in memory under `/proc/PID/fd/N`: gone when closed, and also when this process is killed.

    `/dev/shm` would leave files behind after a crash, and is 64 MB in a default container.
    """

    def __init__(self, weights: Weights, label: str, layout: Layout | None = None) -> None:
        if layout is None:
            weights = list(weights)
            layout = Layout(weights)
        self._file, self.info = open_memory(label)
        for part in layout.parts(weights, label):
            self._file.write(part)
        self._file.flush()

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
        self._layout: Layout | None = None
        self._sender: _GpuSender | None = None

    def publish(
        self,
        weights: Weights,
        version: int,
        workers: Sequence[Any],
        described: Weights = (),
        timeout_s: float = PUBLISH_S,
    ) -> list[tuple[int, str]]:
        """Give `workers` (RolloutWorker actor handles) the weights. `described` tells names, shapes and dtypes ahead
        (see sandboxrl.rl.learner.model.named_weights), so that one tensor at a time is whole in memory; it is read the
        first time only. Returns `(index, what happened)` of each worker that was lost on the way (rank 0; other ranks
        return nothing). Takes `timeout_s` at most, and the time to gather the tensors."""
        deadline = time.monotonic() + timeout_s
        if self._layout is None:
            described = list(described)
            if not described:
                weights = described = list(weights)
            self._layout = Layout(described)
        if self._backend in ("nccl", "ipc"):
            return self._publish_on_gpus(weights, version, workers, deadline)
        if self._rank != 0:
            _gather(weights)
            return []
        label = f"{self._run} {version}"
        if self._backend == "shm":
            with SharedWeights(weights, label, self._layout) as shared:
                return _outcomes([worker.load_weights.remote(shared.info, version) for worker in workers], deadline)
        return self._stream(weights, version, workers, label, deadline)

    def _stream(
        self, weights: Weights, version: int, workers: Sequence[Any], label: str, deadline: float
    ) -> list[tuple[int, str]]:
        assert self._layout is not None
        names = [str(index) for index in range(len(workers))]
        host = ray.util.get_node_ip_address()
        with Sender(names, self._layout.num_bytes(label), host) as sender:
            loading = [
                worker.receive_weights.remote(sender.info(name), label, version)
                for name, worker in zip(names, workers, strict=True)
            ]
            sender.connect(min(CONNECT_S, deadline - time.monotonic()), lambda: _failures(loading))
            for part in self._layout.parts(weights, label):
                sender.send(part)
            lost = sender.finish()
            return _outcomes(loading, deadline, lost)

    def _publish_on_gpus(
        self, weights: Weights, version: int, workers: Sequence[Any], deadline: float
    ) -> list[tuple[int, str]]:
        """A group of the same members is used again; any other is closed first, so that a worker brought up to date
        alone, or one that died, leaves nothing behind."""
        assert self._layout is not None
        if self._sender is None or self._sender.workers != list(workers):
            self.close()
            self._sender = _GpuSender(self._backend, self._rank, list(workers), self._layout)
        lost = self._sender.send(weights, version, deadline)
        if lost:
            self.close()
        return lost

    def close(self) -> None:
        if self._sender is not None:
            self._sender.close()
            self._sender = None


class _GpuSender:
    """vLLM's own trainer side, driving our workers. Never run: see the head of this file."""

    def __init__(self, backend: str, rank: int, workers: list[Any], layout: Layout) -> None:
        self._backend, self._rank, self.workers, self._layout = backend, rank, workers, layout
        self._engine: Any = None
        self._weights: Iterator[tuple[str, torch.Tensor]] = iter(())
        self._client = _Client(workers)

    def send(self, weights: Weights, version: int, deadline: float) -> list[tuple[int, str]]:
        """Returns who was lost: a broadcast in which one member dies is cut off, and is lost to all that had not
        finished. Every rank comes back, having gathered every tensor."""
        self._client.version, self._client.deadline, self._weights = version, deadline, iter(weights)
        finished = threading.Event()
        try:
            if self._rank == 0:
                threading.Thread(target=self._guard, args=(finished,), name="weights", daemon=True).start()
            if self._engine is None:
                self._engine = self._open()
            self._engine.send_weights()
            return []
        except Exception as error:  # what NCCL, CUDA and vLLM raise when a member is gone has no common class
            _gather(self._weights)  # the other ranks still do
            failed = self._client.failures()
            reason = f"the transfer was cut off: {error}"
            return [(i, failed.get(str(i), reason)) for i in range(len(self.workers)) if i not in self._client.finished]
        finally:
            finished.set()
            self._weights = iter(())

    def _guard(self, finished: threading.Event) -> None:
        """Cut the broadcast off when a member has failed or the time is up: NCCL itself would wait for ever."""
        while not finished.wait(0.5):
            if self._client.failures() or time.monotonic() > self._client.deadline:
                group = getattr(self._engine, "model_update_group", None)
                if group is not None:
                    group.destroy()
                return

    def _open(self) -> Any:
        from vllm.distributed.weight_transfer import ParamMeta, WeightSource, WeightTransferTrainerFactory
        from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        sender = self
        metadata = [ParamMeta(name, dtype, shape) for name, shape, dtype in self._layout.names]

        class Source(WeightSource):
            """Names and shapes without gathering; the tensors gathered one at a time."""

            def metadata(self) -> list[Any]:
                return metadata

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
            if self._rank == 0:  # a worker that opens another group would keep this one open as well
                _outcomes([w.close_weight_transfer.remote() for w in self.workers], time.monotonic() + CONNECT_S)


class _Client:
    """vLLM's control plane over our actors: the four calls of `VLLMWeightSyncClient`, each with a deadline."""

    def __init__(self, workers: list[Any]) -> None:
        self._workers = workers
        self._pending: list[Any] = []
        self.version, self.deadline = 0, 0.0
        self.finished: set[int] = set()
        """Workers that sample with the new weights."""

    def failures(self) -> dict[str, str]:
        """Of the call that is under way: which workers have failed, and how."""
        return _failures(self._pending)

    def num_ranks(self) -> list[int]:
        """Tensor-parallel ranks of each worker."""
        return self._all([worker.num_ranks.remote() for worker in self._workers])

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Each worker is an engine of its own that counts its ranks from 0: each gets its own offset in the group."""
        infos = [dict(init_info) for _ in self._workers]
        if "rank_offset" in init_info:
            offset = init_info["rank_offset"]
            for info, ranks in zip(infos, self.num_ranks(), strict=True):
                info["rank_offset"] = offset
                offset += ranks
        self._all([w.init_weight_transfer.remote(info) for w, info in zip(self._workers, infos, strict=True)])

    def start_weight_update(self) -> None:
        self.finished = set()
        self._all([worker.start_weight_update.remote() for worker in self._workers])

    def update_weights(self, update_info: Any) -> None:
        self._all([worker.update_weights.remote(update_info) for worker in self._workers])

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        finishing = [worker.finish_weight_update.remote(self.version) for worker in self._workers]
        lost = _outcomes(finishing, self.deadline)
        self.finished = set(range(len(self._workers))) - {index for index, _ in lost}
        if lost:
            raise RuntimeError(lost[0][1])

    def _all(self, references: list[Any]) -> list[Any]:
        """Every worker's answer. Raises for the first that fails, and when the deadline is over."""
        self._pending = references
        while len(self._ready()) < len(references):
            if failed := self.failures():
                raise RuntimeError(next(iter(failed.values())))
            if time.monotonic() > self.deadline:
                raise TimeoutError("a worker did not answer in time")
        return ray.get(references)

    def _ready(self) -> list[Any]:
        return ray.wait(self._pending, num_returns=len(self._pending), timeout=0.5)[0]


def _outcomes(references: list[Any], deadline: float, lost: dict[str, str] | None = None) -> list[tuple[int, str]]:
    """`(index, what happened)` of each call that failed, or has not ended by the deadline, or is `lost` already."""
    known = dict(lost or {})
    waiting = [reference for index, reference in enumerate(references) if str(index) not in known]
    if waiting:
        ray.wait(waiting, num_returns=len(waiting), timeout=max(0.0, deadline - time.monotonic()))
    ready = set(ray.wait(references, num_returns=len(references), timeout=0)[0]) if references else set()
    failed = _failures(references)
    for index, reference in enumerate(references):
        if str(index) in failed:
            known.setdefault(str(index), failed[str(index)])
        elif reference not in ready:
            known.setdefault(str(index), "it did not take the new weights in time")
    return sorted((int(name), reason) for name, reason in known.items())


def _failures(references: list[Any]) -> dict[str, str]:
    """Index, as text, and last line of the error of each call that has failed so far."""
    found = {}
    ready = ray.wait(references, num_returns=len(references), timeout=0)[0] if references else []
    for reference in ready:
        try:
            ray.get(reference)
        except ray.exceptions.RayError as error:
            found[str(references.index(reference))] = str(error).strip().splitlines()[-1]
    return found


def _gather(weights: Weights) -> None:
    """Take part in gathering all that is left of them."""
    for _, tensor in weights:
        full(tensor)


def full(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a tensor that may be sharded over ranks (then a collective)."""
    gather = getattr(tensor, "full_tensor", None)
    return (gather() if gather else tensor).detach()


def free_port() -> int:
    """A TCP port nobody listens on right now."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        return int(listener.getsockname()[1])

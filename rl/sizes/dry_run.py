"""The learner's own step at true size without a GPU: which memory it takes, by part and phase, and what it runs.

The model, its sharding, row, loss and optimizer are the learner's: `Learner.build`, `backward`, `clip` and `apply` run
as in training, on tensors that have shapes but no values (FakeTensorMode) and in a process group without other
processes. Every storage that is made, grows, shrinks and goes is followed, so the answer needs no formula. Device
`cpu` stands for the GPU, with the kernels that a GPU takes.

It does not see what is no tensor of one stream; `sandboxrl.rl.sizes.memory.unseen` names that and adds a margin.
"""

import time
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig

from sandboxrl.rl.grpo import LossConfig
from sandboxrl.rl.learner.batch import Row
from sandboxrl.rl.learner.config import LearnerConfig
from sandboxrl.rl.learner.learner import Learner
from sandboxrl.rl.learner.model import policy_of
from sandboxrl.rl.sizes.memory import GATHERED, KEPT, STATE, WORKING, Memory, unseen
from sandboxrl.rl.sizes.shapes import Shape


@dataclass(frozen=True)
class DryRun:
    memory: Memory
    operators: Counter[str]
    """Operator -> calls in one step."""
    parameters: int
    seconds: float
    """What the dry run itself took."""


def dry_run(
    config: dict[str, Any],
    learner: LearnerConfig,
    loss: LossConfig,
    row: int,
    num_sequences: int = 1,
    trained: int | None = None,
) -> DryRun:
    """One rank's second step (the first one makes the optimizer's state) on a row of `row` tokens in `num_sequences`
    trajectories, `trained` of the tokens trained on (two thirds where not given). `config` holds the values of a
    config.json. Raises InputError for a model that the learner cannot compute."""
    began = time.monotonic()
    learner = replace(learner, device="auto")
    gpu_kernels = learner.compute_dtype(on_gpu=True) == "bfloat16"
    policy = policy_of(_configuration(config), config["model_type"], learner.logprob_chunk, False, gpu_kernels)
    core, ledger = Learner(1 % learner.world_size, learner), Ledger()
    work = _row(row, num_sequences, trained if trained is not None else row * 2 // 3)
    with _ranks(learner.world_size) as mesh, FakeTensorMode(allow_non_fake_inputs=True), ledger:
        core.build(policy, mesh, loss)
        ledger.name("weights", core.policy.parameters())
        for step in range(2):
            ledger.begin("forward" if step else "")
            with _told_at_backward(ledger, "backward" if step else ""):
                core.backward(work, None, compare=True)
            ledger.name("gradients", (p.grad for p in core.policy.parameters()))
            core.clip()
            ledger.begin("optimizer" if step else "")
            core.apply()
            ledger.name("Adam", (t for state in core.optimizer.state.values() for t in state.values()))
        ledger.begin("")
        parameters = sum(p.numel() for p in policy.parameters())
    memory = ledger.memory(apart=STATE if learner.offload else ())
    shape = Shape.of(config)
    margin = unseen(shape, learner, memory.peak, min(len(work.trained), learner.logprob_chunk) * shape.vocabulary)
    return DryRun(replace(memory, unseen=margin), ledger.operators, parameters, time.monotonic() - began)


class Ledger(TorchDispatchMode):
    """Follows the bytes of every storage: made by an operator, resized by FSDP, gone with its last tensor."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operators: Counter[str] = Counter()
        self._live: dict[int, tuple[int, int]] = {}
        """Address of a storage -> its number and bytes."""
        self._changes: list[tuple[int, int]] = []
        """(number of a storage, bytes more or less), in the order of events."""
        self._parts: dict[int, str] = {}
        """Number of a storage -> part; others are classed by the phases they live through."""
        self._phases: list[tuple[str, int]] = [("", 0)]
        """(phase, index into _changes where it begins)."""
        self._num_storages = 0

    def __enter__(self) -> "Ledger":
        super().__enter__()  # type: ignore[no-untyped-call]
        self._resize = torch.UntypedStorage.resize_
        ledger = self

        def resize_(storage: torch.UntypedStorage, size: int) -> None:
            ledger._resize(storage, size)
            if storage._cdata in ledger._live:
                number, before = ledger._live[storage._cdata]
                ledger._parts[number] = GATHERED  # FSDP alone resizes: what it gathers, and when it lets go of it
                ledger._live[storage._cdata] = number, size
                ledger._changes.append((number, size - before))

        torch.UntypedStorage.resize_ = resize_  # type: ignore[method-assign, assignment]
        return self

    def __exit__(self, *error: Any) -> None:
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # it comes again with the local tensors
        out = function(*args, **(kwargs or {}))
        if self._phases[-1][0]:
            self.operators[str(function).removeprefix("aten.")] += 1
        for tensor in tree_leaves(out):
            if isinstance(tensor, FakeTensor) and tensor.device.type == "cpu":
                self._see(tensor.untyped_storage())
        return out

    def _see(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._live:
            return
        number, self._num_storages = self._num_storages, self._num_storages + 1
        self._live[storage._cdata] = number, storage.nbytes()
        self._changes.append((number, storage.nbytes()))
        weakref.finalize(storage, self._gone, storage._cdata)

    def _gone(self, address: int) -> None:
        number, held = self._live.pop(address)
        self._changes.append((number, -held))

    def begin(self, phase: str) -> None:
        """What follows belongs to `phase`; empty: to none that is reported."""
        self._phases.append((phase, len(self._changes)))

    def name(self, part: str, tensors: Iterator[Tensor | None]) -> None:
        for tensor in tensors:
            local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
            if local is not None and local.untyped_storage()._cdata in self._live:
                self._parts[self._live[local.untyped_storage()._cdata][0]] = part

    def memory(self, apart: tuple[str, ...] = ()) -> Memory:
        """The highest moment of each phase. Parts in `apart` are not on the GPU."""
        kept = self._alive_at_the_end_of("forward")
        held: Counter[str] = Counter()
        peaks: dict[str, dict[str, float]] = {}
        host = 0.0
        ends = [start for _, start in self._phases[1:]] + [len(self._changes)]
        for (phase, start), end in zip(self._phases, ends, strict=True):
            highest = -1.0
            for number, change in [(-1, 0), *self._changes[start:end]]:  # what a phase begins with counts too
                held[self._parts.get(number, KEPT if number in kept else WORKING)] += change
                on_gpu = sum(value for name, value in held.items() if name not in apart)
                host = max(host, sum(held[name] for name in apart))
                if phase and on_gpu > highest:
                    highest = on_gpu
                    peaks[phase] = {name: float(value) for name, value in held.items() if value and name not in apart}
        return Memory(peaks, host)

    def _alive_at_the_end_of(self, phase: str) -> set[int]:
        position = next(index for index, (name, _) in enumerate(self._phases) if name == phase)
        held: Counter[int] = Counter()
        for number, change in self._changes[: self._phases[position + 1][1]]:
            held[number] += change
        return {number for number, size in held.items() if size}


def _configuration(config: dict[str, Any]) -> Any:
    values = {name: value for name, value in config.items() if name != "model_type"}
    return AutoConfig.for_model(config["model_type"], **values)


def _row(tokens: int, num_sequences: int, trained: int) -> Row:
    """Sequences of like lengths; the last tokens of each are trained on."""
    lengths = np.full(num_sequences, tokens // num_sequences, dtype=np.int64)
    lengths[0] += tokens - lengths.sum()
    shares = np.minimum(lengths - 1, -(-trained // num_sequences))
    ends = lengths.cumsum()
    at = np.concatenate([np.arange(end - share, end) for end, share in zip(ends, shares, strict=True)])[-trained:]
    numbers = np.zeros(len(at), dtype=np.float32)
    return Row(
        ids=np.zeros(tokens, dtype=np.int64),
        lengths=lengths,
        trained=at,
        trajectory=np.searchsorted(ends, at, side="right"),
        engine=numbers,
        advantages=numbers,
        weights=numbers,
        fresh=np.ones(len(at), dtype=bool),
    )


@contextmanager
def _ranks(world_size: int) -> Iterator[DeviceMesh]:
    """Collectives that do nothing, of as many ranks as asked for."""
    dist.init_process_group("fake", rank=1 % world_size, world_size=world_size, store=FakeStore())
    try:
        yield init_device_mesh("cpu", (world_size,), mesh_dim_names=("shard",))
    finally:
        dist.destroy_process_group()


@contextmanager
def _told_at_backward(ledger: Ledger, phase: str) -> Iterator[None]:
    """Begin `phase` when the backward pass begins, inside of the learner's own code."""
    backward = Tensor.backward

    def told(self: Tensor, *args: Any, **kwargs: Any) -> None:
        ledger.begin(phase)
        backward(self, *args, **kwargs)  # type: ignore[no-untyped-call]

    Tensor.backward = told  # type: ignore[method-assign]
    try:
        yield
    finally:
        Tensor.backward = backward  # type: ignore[method-assign]

"""One rank of the learner: sharded weights, AdamW, one update per batch of packed rows.

    learner = Learner(rank, config)
    learner.setup(address, model_dir, loss, temperature)      every rank; address = rank 0's address()
    stats = learner.update(batch.of_rank(rank))               every rank; the numbers are those of all ranks

Every method but `address` is a collective: all ranks call it, in the same order.
All numbers of the loss come with the rows (rl.learner.batch), so nothing here depends on how they are spread over
ranks. FSDP averages gradients over ranks, the loss is a sum, therefore it is multiplied by the world size.

The learner draws no random numbers (a model with dropout is refused: its log-probabilities would not be the engine's),
so weights, optimizer state and the number of updates are all there is to save.
"""

import hashlib
import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import numpy as np
import ray
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule

from sandboxrl.data.errors import InputError, described
from sandboxrl.rl.grpo import LossConfig, k3, token_loss
from sandboxrl.rl.hub_model import local_folder
from sandboxrl.rl.learner.attention import take_fastest_kernel
from sandboxrl.rl.learner.batch import Row
from sandboxrl.rl.learner.checkpoint import LEARNER
from sandboxrl.rl.learner.config import LearnerConfig, learning_rate
from sandboxrl.rl.learner.model import Policy, check_same_form, load_policy, named_weights, shard
from sandboxrl.rl.learner.sharded import read_sharded
from sandboxrl.rl.learner.weights import PUBLISH_S, Publisher, full

SUMS = ("loss", "held", "trained", "not_finite", "compared", "difference", "k3")
"""What is added up over rows and ranks in one optimizer step."""
LOAD_TIMEOUT = timedelta(hours=2)
"""How long the ranks wait for each other to appear, and for rank 0 to read the model; whoever started them watches."""
READ = "model"
"""The key under which rank 0 says that it has read the model."""
LOOPBACK = "127.0.0.1"


class NotFinite(Exception):
    """Log-probabilities under the learner's weights are infinite or not a number. Raised on every rank."""


class Learner:
    def __init__(self, rank: int, config: LearnerConfig) -> None:
        self.rank, self.config = rank, config
        self.num_updates = 0
        """Optimizer steps made so far."""
        self._publisher: Publisher | None = None
        self._learned: list[tuple[Row, Tensor]] = []
        """Rows of the last update and the log-probabilities of their trained tokens before its first step."""
        self._store: dist.Store | None = None
        self._saving: Future[Any] | None = None
        self._saving_group: dist.ProcessGroup | None = None

    def address(self) -> str:
        """`host:port` on this machine where the ranks can meet. Somebody listens there from now on, so nobody else can
        take the port before the others come."""
        host = ray.util.get_node_ip_address()
        self._store = _store_at(host, 0)
        return f"{host}:{self._store.port}"

    def setup(self, address: str, model_dir: str, loss: LossConfig, temperature: float = 1.0) -> None:
        """Meet the other ranks and load the model. `temperature` is that of sampling: log-probabilities are taken of
        logits / temperature. Raises InputError for a model or device that cannot be used."""
        config = self.config
        on_gpu = config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())
        if on_gpu and not torch.cuda.is_available():
            raise InputError("learner.device: cuda, but torch sees no GPU here")
        torch.set_num_threads(config.threads)
        gpu_kernels = on_gpu and config.compute_dtype(on_gpu) == "bfloat16"
        if on_gpu:
            torch.cuda.set_device(self.rank % torch.cuda.device_count())
        if gpu_kernels:
            take_fastest_kernel(torch.device("cuda"))
        store = self._meet(address, on_gpu)
        policy = self._read(store, model_dir, gpu_kernels)
        check_same_form(policy)
        mesh = init_device_mesh("cuda" if on_gpu else "cpu", (config.world_size,), mesh_dim_names=("shard",))
        self.build(policy, mesh, loss, temperature)

    def _meet(self, address: str, on_gpu: bool) -> dist.Store:
        """The ranks as one process group; before anything that takes long, so that a rank that is missing shows."""
        host, _, port = address.rpartition(":")
        if self._store is None and self.rank == 0:
            self._store = _store_at(host, int(port))
        elif self._store is None:
            self._store = dist.TCPStore(host, int(port), is_master=False, wait_for_workers=False, timeout=LOAD_TIMEOUT)
        if host == LOOPBACK:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            store=self._store,
            rank=self.rank,
            world_size=self.config.world_size,
            timeout=timedelta(seconds=self.config.timeout_s),
        )
        return self._store

    def _read(self, store: dist.Store, model_dir: str, gpu_kernels: bool) -> Policy:
        """The model, with its weights on rank 0. The others wait for it here, where no collective's time runs."""
        if self.rank:
            model_dir = local_folder(model_dir, weights=False)
            policy = load_policy(model_dir, self.config.logprob_chunk, with_weights=False, gpu_kernels=gpu_kernels)
            if (outcome := store.get(READ).decode()) != "read":
                raise RuntimeError(f"rank 0 could not read the model: {outcome}")
            return policy
        try:
            model_dir = local_folder(model_dir)
            policy = load_policy(model_dir, self.config.logprob_chunk, with_weights=True, gpu_kernels=gpu_kernels)
        except Exception as error:
            store.set(READ, described(error))
            raise
        store.set(READ, "read")
        return policy

    def build(self, policy: Policy, mesh: DeviceMesh, loss: LossConfig, temperature: float = 1.0) -> None:
        """Spread the model over the ranks of `mesh` and make its optimizer."""
        config, on_gpu = self.config, mesh.device_type == "cuda" or policy.gpu_kernels
        dtype = getattr(torch, config.compute_dtype(on_gpu))
        shard(policy, mesh, dtype, config.gradient_checkpointing, config.offload)
        self.policy, self.loss, self.temperature = policy, loss, temperature
        self.device = torch.device(mesh.device_type)
        self.optimizer = torch.optim.AdamW(
            policy.parameters(),
            lr=config.learning_rate,
            betas=(config.beta1, config.beta2),
            weight_decay=config.weight_decay,
            # else torch copies the shard once more in each step; on a CPU its plain way is the one that always was
            fused=True if on_gpu or config.offload else None,
        )

    def update(self, steps: Sequence[Sequence[Row]], probe: Row | None = None) -> dict[str, float]:
        """This rank's rows, a sequence per optimizer step; no step at all leaves the weights alone. A step whose loss
        or gradient is not finite is not made, and counts in steps_skipped only. Raises NotFinite where the
        log-probabilities of `probe` are not: then the weights are lost.

        loss and grad_norm (before clipping) are means over the optimizer steps; clip_fraction is the share of trained
        tokens that a bound of the loss holds. mismatch/* compare the learner before its first step with the engine,
        over the tokens sampled under the learner's own weights (mismatch/tokens of them), those of `probe` included: it
        is the same on every rank and is compared only, so engine and learner are compared also in a step that has
        nothing fresh, or nothing at all, to train on.
        """
        self._learned = []
        totals, worst = self._compare(probe)
        starts = self._log_probabilities_at_start(steps)
        grad_norms: list[float] = []
        num_skipped = 0
        for rows, olds in zip(steps, starts, strict=True):
            first = not grad_norms
            sums, largest = torch.zeros_like(totals), torch.zeros_like(worst)
            for row, old in zip(rows, olds, strict=True):
                found, difference = self.backward(row, old, compare=first or old is not None)
                sums += found
                largest = largest.maximum(difference)
            dist.all_reduce(sums)
            dist.all_reduce(largest, dist.ReduceOp.MAX)
            grad_norm = self._step(sums)
            if grad_norm is None:
                num_skipped += 1
                continue
            grad_norms.append(grad_norm)
            totals += sums
            worst = worst.maximum(largest)
        total = dict(zip(SUMS, totals.tolist(), strict=True))
        num_steps, compared = max(1, len(grad_norms)), max(1.0, total["compared"])
        made = {"loss": total["loss"] / num_steps, "grad_norm": sum(grad_norms) / num_steps}
        return {
            **(made if grad_norms or not num_skipped else {}),
            "clip_fraction": total["held"] / max(1.0, total["trained"]),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "tokens/trained": total["trained"],
            "optimizer_steps": float(len(grad_norms)),
            "steps_skipped": float(num_skipped),
            "mismatch/logprob_max": worst.item(),
            "mismatch/logprob_mean": total["difference"] / compared,
            "mismatch/kl": total["k3"] / compared,
            "mismatch/tokens": total["compared"],
        }

    def _compare(self, probe: Row | None) -> tuple[Tensor, Tensor]:
        """SUMS of a row that is compared and not trained on, and its largest difference to the engine, float64."""
        sums = torch.zeros(len(SUMS), dtype=torch.float64, device=self.device)
        if probe is None or not probe.fresh.any():
            return sums, sums.new_zeros(())
        difference = self._tensor((self.logprobs([probe])[0] - probe.engine)[probe.fresh]).double()
        if not difference.isfinite().all():  # no bound would catch it: nan is not above anything
            raise NotFinite(f"update {self.num_updates + 1}: log-probabilities of the probe are not finite")
        found = (("compared", len(difference)), ("difference", difference.abs().sum()), ("k3", k3(difference).sum()))
        for name, value in found:
            sums[SUMS.index(name)] = value
        return sums, difference.abs().max()

    @torch.no_grad()
    def logprobs(self, rows: Sequence[Row]) -> list[np.ndarray]:
        """Log-probabilities of the trained tokens of each row under the present weights, float32."""
        found = [self._forward(row).cpu().numpy() for row in rows]
        cast(FSDPModule, self.policy).reshard()  # the root stays gathered after a forward pass without a backward pass
        return found

    def learned(self) -> dict[int, np.ndarray]:
        """Place in the batch -> log-probabilities, float32, of the trained tokens of that trajectory before the first
        step of the last update, for the trajectories of this rank. Not there: trajectories that train nothing, and with
        `old_logprobs: engine` those of the second minibatch and later, which were computed after the first step."""
        found = {}
        for row, start in self._learned:
            logprobs = start.float().cpu().numpy()
            for member, place in enumerate(row.places):
                found[place] = logprobs[row.trajectory == member]
        return found

    def weights(self, dtype: torch.dtype | None = None, described: bool = False) -> Iterator[tuple[str, Tensor]]:
        """See sandboxrl.rl.learner.model.named_weights."""
        return named_weights(self.policy, dtype, described, self.device)

    def digest(self) -> str:
        """SHA-256 over the names and bytes of all weights, gathered one at a time."""
        found = hashlib.sha256()
        for name, tensor in self.weights():
            found.update(name.encode())
            found.update(full(tensor).cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return found.hexdigest()

    def publish(
        self,
        workers: Sequence[Any],
        version: int,
        backend: str = "shm",
        run: str = "",
        dtype: str = "float32",
        timeout_s: float = PUBLISH_S,
    ) -> list[tuple[int, str]]:
        """Give the rollout workers these weights as `version`; see sandboxrl.rl.learner.weights.Publisher.publish."""
        if self._publisher is None:
            self._publisher = Publisher(backend, run, self.rank)
        weights, described = self.weights(getattr(torch, dtype)), self.weights(getattr(torch, dtype), described=True)
        return self._publisher.publish(weights, version, workers, described, timeout_s)

    def save(self, folder: str) -> None:
        """Write this rank's share under `folder`. Complete when every rank has returned; see rl.learner.checkpoint."""
        self.begin_save(folder)
        self.finish_save()

    def begin_save(self, folder: str) -> None:
        """Copy this rank's share to host memory and have it written under `folder` while training goes on."""
        assert self._saving is None, "a save is going on"
        model, optimizer = get_state_dict(self.policy, self.optimizer)
        state = {"model": model, "optimizer": optimizer, "num_updates": self.num_updates}
        if self._saving_group is None:  # writing ends with a collective, which must not meet those of training
            self._saving_group = dist.new_group(backend="gloo")
        saving = dcp.async_save(state, checkpoint_id=Path(folder) / LEARNER, process_group=self._saving_group)
        assert isinstance(saving, Future)
        self._saving = saving

    def is_saved(self) -> bool:
        """Whether `finish_save` would return at once."""
        return self._saving is None or self._saving.done()

    def finish_save(self) -> None:
        """Wait until what `begin_save` began is written. Raises OSError where it cannot be."""
        saving, self._saving = self._saving, None
        if saving is None:
            return
        try:
            saving.result()
        except CheckpointException as error:  # no Exception to Python: nobody above would catch it
            reason, _ = next(iter(error.failures.values()))
            raise OSError(f"the learner's state cannot be saved: {described(reason)}") from reason

    def load(self, folder: str) -> None:
        """Continue from what `save` wrote, at this or any other world size."""
        model, optimizer = get_state_dict(self.policy, self.optimizer)
        state: dict[str, Any] = {"model": model, "optimizer": optimizer, "num_updates": 0}
        read_sharded(state, Path(folder) / LEARNER)
        set_state_dict(
            self.policy, self.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
        )
        self.num_updates = state["num_updates"]
        cast(FSDPModule, self.policy).reshard()

    def close(self) -> None:
        if self._publisher is not None:
            self._publisher.close()
        dist.destroy_process_group()

    def _log_probabilities_at_start(self, steps: Sequence[Sequence[Row]]) -> list[list[Tensor | None]]:
        """The learner's log-probabilities before the first step, where they cannot be had for nothing: from the second
        step on. None stands for "those of the forward pass itself"."""
        if self.loss.old_logprobs == "engine":
            return [[None] * len(rows) for rows in steps]
        found: list[list[Tensor | None]] = [[None] * len(rows) for rows in steps[:1]]
        for rows in steps[1:]:
            found.append([torch.from_numpy(x).to(self.device) for x in self.logprobs(rows)])
        return found

    def _forward(self, row: Row) -> Tensor:
        ids, positions, trained = (self._tensor(x) for x in (row.ids, row.positions, row.trained))
        logprobs: Tensor = self.policy(ids, positions, row.lengths.tolist(), trained, self.temperature)
        return logprobs

    def backward(self, row: Row, old: Tensor | None, compare: bool) -> tuple[Tensor, Tensor]:
        """Add the gradient of one row. Returns its SUMS and the largest difference to the engine, float64."""
        logprobs = self._forward(row)
        now, engine = logprobs.detach(), self._tensor(row.engine)
        fresh = self._tensor(np.flatnonzero(row.fresh))  # numbers, not a mask: their count is known without the GPU
        start = now if old is None else old
        losses, held = token_loss(
            logprobs,
            engine if self.loss.old_logprobs == "engine" else start,
            engine,
            self._tensor(row.advantages),
            self._tensor(row.trajectory),
            self.loss,
        )
        loss = (losses * self._tensor(row.weights)).sum()
        (loss * self.config.world_size).backward()
        difference = (start - engine)[fresh] if compare else engine[:0]
        if compare:
            self._learned.append((row, start))
        sums = (
            loss,
            held.sum(),
            len(now),
            (~now.isfinite()).sum(),
            len(difference),
            difference.abs().sum(),
            k3(difference).sum(),
        )
        found = torch.stack([torch.as_tensor(x, device=self.device).detach().double() for x in sums])
        return found, difference.abs().max().double() if len(difference) else found.new_zeros(())

    def _step(self, sums: Tensor) -> float | None:
        """Clip, check and apply the gradient. Returns its norm before clipping; None: something is not finite, on every
        rank, and the weights are as they were."""
        total = dict(zip(SUMS, sums.tolist(), strict=True))
        grad_norm = full(self.clip()).item()
        if total["not_finite"] or not np.isfinite([total["loss"], grad_norm]).all():
            self.optimizer.zero_grad()
            return None
        self.apply()
        return grad_norm

    def clip(self) -> Tensor:
        """Scale the gradient down to `max_grad_norm`; its norm before that."""
        return torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.config.max_grad_norm)

    def apply(self) -> None:
        """One optimizer step with the gradient that is there, which is gone then."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.num_updates)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.num_updates += 1

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.array(array)).to(self.device)


def _store_at(host: str, port: int) -> dist.TCPStore:
    """Where ranks meet, listening on `host` alone: by itself it would on every address of the machine."""
    listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    port = listener.getsockname()[1]
    return dist.TCPStore(
        host,
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=LOAD_TIMEOUT,
        master_listen_fd=listener.detach(),
    )


def export(checkpoint: str | Path, model_dir: str | Path, out: str | Path) -> None:
    """A Hugging Face folder with the weights of a checkpoint, in the dtype of the model the run started from.

    Everything else (tokenizer, chat template, generation config) is that model's. Needs no GPU and no running learner.
    """
    saved = Path(checkpoint) / LEARNER
    if not (saved / ".metadata").is_file():
        raise InputError(f"{checkpoint} is no complete checkpoint: it has no {LEARNER}/.metadata")
    policy = load_policy(model_dir, chunk=1)
    dtype = policy.language_model.dtype
    policy.float()
    read_sharded({"model": policy.state_dict()}, saved)
    policy.language_model.to(dtype).save_pretrained(out)
    for file in Path(model_dir).iterdir():
        is_weights = file.suffix in (".safetensors", ".bin", ".pt", ".pth", ".gguf") or file.name.endswith(
            ".index.json"
        )
        if file.is_file() and not is_weights and not (Path(out) / file.name).exists():
            shutil.copy(file, Path(out) / file.name)

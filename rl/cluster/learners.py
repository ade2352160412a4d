"""The learner ranks of a run, Ray actors, behind the face that the trainer knows (`sandboxrl.rl.trainer.Learners`).

They hold the optimizer's state, so one that is lost takes the others with it: all start again from the last
checkpoint, inside the run. Whether a failure is the machine's (a rank is dead, out of memory or over its deadline:
LearnerLost) or a mistake (RunFailed) is decided here.
"""

import asyncio
import time
from collections.abc import Awaitable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError, RayTaskError

from sandboxrl.data.plugin import Code
from sandboxrl.rl.cluster.connect import cause, end_with_raylet, stacks_of_actors, whereabouts
from sandboxrl.rl.cluster.placement import Placement
from sandboxrl.rl.cluster.workers import RayWorkers, died, raised, wait_for_start
from sandboxrl.rl.config import Recipe
from sandboxrl.rl.engine.config import KV_CACHE, WEIGHTS, garbage_left_alone, on_cpu, weight_backend
from sandboxrl.rl.grpo import LossConfig, find_policy_loss
from sandboxrl.rl.learner.batch import Batch, Row
from sandboxrl.rl.learner.checkpoint import LEARNER
from sandboxrl.rl.learner.config import LearnerConfig
from sandboxrl.rl.own_code import code_of
from sandboxrl.rl.trainer import LearnerLost, RunFailed, Workers
from sandboxrl.rl.watch import Stalled, Watch

ALIVE_S = 10.0
"""How long to look, when one rank failed, whether another is dead: its failure is only the echo then."""
PUBLISH_MARGIN_S = 300.0
"""Beyond the workers' own deadline: gathering the tensors takes time as well."""
SAVED_POLL_S = 0.2
OUT_OF_MEMORY = ("OutOfMemoryError", "MemoryError")
"""What torch and Python raise, by name: this process does not import torch."""


@ray.remote
class LearnerRank:
    """An `rl.learner.learner.Learner` in a process of its own, the only one that imports torch: that takes seconds."""

    def __init__(self, rank: int, config: LearnerConfig, code: Code) -> None:
        end_with_raylet()
        code.install()
        with garbage_left_alone():
            from sandboxrl.rl.learner.learner import Learner

        self._learner = Learner(rank, config)

    def where(self) -> dict[str, Any]:
        return whereabouts()

    def address(self) -> str:
        return self._learner.address()

    def setup(self, address: str, model_dir: str, loss: LossConfig, temperature: float) -> None:
        find_policy_loss(loss.policy_loss)  # a user's own: said before the model is loaded, where it is not there
        self._learner.setup(address, model_dir, loss, temperature)

    def load(self, folder: str) -> None:
        self._learner.load(folder)

    def update(self, steps: Sequence[Sequence[Row]], probe: Row | None) -> dict[str, float]:
        return self._learner.update(steps, probe)

    def learned(self) -> dict[int, np.ndarray]:
        return self._learner.learned()

    def publish(
        self, workers: Sequence[Any], version: int, backend: str, run: str, dtype: str, timeout_s: float
    ) -> list[tuple[int, str]]:
        return self._learner.publish(workers, version, backend, run, dtype, timeout_s)

    def begin_save(self, folder: str) -> None:
        self._learner.begin_save(folder)

    def is_saved(self) -> bool:
        return self._learner.is_saved()

    def finish_save(self) -> None:
        self._learner.finish_save()

    def digest(self) -> str:
        return self._learner.digest()


class RayLearners:
    """The learner ranks as one."""

    def __init__(
        self, recipe: Recipe, model_dir: str, watch: Watch, placement: Placement, sharing: RayWorkers | None = None
    ) -> None:
        """`sharing`: the workers whose GPUs these are too; they sleep from the beginning of an update to the end of the
        publication after it."""
        self._recipe, self._model_dir, self._watch = recipe, model_dir, watch
        self._placement, self._sharing = placement, sharing
        self._ranks: list[Any] = []
        self._where: list[dict[str, Any]] = []
        """Node and process of each rank, for its stacks."""
        self._version = 0
        """Of the weights that the learner holds: the number of batches it has been updated with."""
        self._busy = asyncio.Lock()
        """A worker that is replaced during an update must get the weights under their right version."""
        watch.stacks.append(self._stacks)

    async def start(self, version: int = 0, checkpoint: str = "") -> None:
        """Load the model, and the state of `checkpoint` where one is given. A rank that dies meanwhile is no reason to
        give up, `watch.learner_restarts` times. Raises LearnerLost, RunFailed, InputError."""
        for left in reversed(range(self._watch.config.learner_restarts + 1)):
            try:
                await self._start(version, checkpoint)
                return
            except LearnerLost:
                if not left:
                    raise
                await self.stop()

    async def _start(self, version: int, checkpoint: str) -> None:
        config, code = self._recipe.learner_of_run, code_of(self._recipe)
        kind: Any = LearnerRank  # what `ray.remote` made of the class
        self.take(
            [
                kind.options(**self._placement.of_rank(rank)).remote(rank, config, code)
                for rank in range(config.world_size)
            ]
        )
        self._where = await self._started([rank.where.remote() for rank in self._ranks])
        [address] = await self._started([self._ranks[0].address.remote()])
        recipe = self._recipe
        starting = [
            rank.setup.remote(address, self._model_dir, recipe.loss, recipe.sampling.temperature)
            for rank in self._ranks
        ]
        await self._started(starting)
        if checkpoint:
            loading = [rank.load.remote(checkpoint) for rank in self._ranks]
            await self._all(loading, f"reading {checkpoint}", self._watch.config.save_s)
        self._version = version

    def take(self, ranks: Sequence[Any]) -> None:
        """These actors are the ranks from now on, in their order."""
        self._ranks = list(ranks)

    def node(self) -> str:
        """The Ray node of rank 0, which publishes the weights."""
        return str(self._where[0]["node"])

    async def _started(self, references: list[Any]) -> list[Any]:
        try:
            return await wait_for_start(self._watch, "learners", references)
        except RunFailed as error:
            if died(error) or await self._dead_rank():
                raise LearnerLost(str(error)) from error
            raise

    async def restart(self, version: int, checkpoint: str = "") -> None:
        """Replace all ranks with fresh ones."""
        async with self._busy:
            await self.stop()
            await self.start(version, checkpoint)

    async def update(self, batch: Batch) -> Mapping[str, float]:
        if self._sharing is not None:
            await self._sharing.sleep()  # not within the lock: a worker that is starting must get its weights first
        async with self._busy:
            updating = [r.update.remote(batch.of_rank(i), batch.probe) for i, r in enumerate(self._ranks)]
            stats = await self._all(updating, f"update {self._version + 1}", self._watch.config.update_s)
            self._version += 1
        return dict(stats[0])

    async def learned(self) -> Mapping[int, np.ndarray]:
        async with self._busy:
            asking = [rank.learned.remote() for rank in self._ranks]
            ranks = await self._all(asking, "its log-probabilities of the last batch", self._watch.config.update_s)
        return {place: logprobs for rank in ranks for place, logprobs in rank.items()}

    async def publish(self, workers: Workers, version: int) -> None:
        assert isinstance(workers, RayWorkers), "actors give each other the weights"
        assert version == self._version, f"the learner holds version {self._version}, not {version}"
        if self._sharing is not None:
            await self._sharing.wake(WEIGHTS)  # the KV cache later: both, and a whole tensor of ours, may be too much
        members = workers.members()
        for index, reason in await self._give(members):
            workers.lose(members[index], reason)
        workers.give_weights = self._give
        if self._sharing is not None:
            await self._sharing.wake(KV_CACHE)

    async def save(self, path: str) -> Awaitable[None]:
        async with self._busy:
            beginning = [rank.begin_save.remote(path) for rank in self._ranks]
            await self._all(beginning, f"copying what {path} is to hold", self._watch.config.save_s)
        return self._finish_save(path)

    async def _finish_save(self, path: str) -> None:
        """Look now and then, between updates; a rank that waited for its disk would hold up the others."""
        limit_s, ranks = self._watch.config.save_s, self._ranks
        with self._watch.waiting("learner", f"writing {path}", limit_s):
            deadline = time.monotonic() + limit_s
            while not all(await self._all([rank.is_saved.remote() for rank in ranks], f"writing {path}", limit_s)):
                if time.monotonic() > deadline:
                    raise LearnerLost(f"learner: writing {path} has taken more than {limit_s:g} s")
                await asyncio.sleep(SAVED_POLL_S)
        await self._all([rank.finish_save.remote() for rank in ranks], f"writing {path}", limit_s)
        if not (Path(path) / LEARNER / ".metadata").is_file():
            raise RunFailed(f"what the learners saved in {path} is not seen here: `out` must be on a folder they share")

    async def digest(self) -> str:
        """Of all weights, to the bit."""
        asking = [rank.digest.remote() for rank in self._ranks]
        return str((await self._all(asking, "a digest of its weights", self._watch.config.save_s))[0])

    async def stop(self) -> None:
        for rank in self._ranks:
            ray.kill(rank)
        self._ranks = []

    async def _give(self, workers: list[Any]) -> list[tuple[int, str]]:
        """Give these workers the weights; returns `(index, what happened)` of each that was lost on the way."""
        engine, limit_s = self._recipe.engine_of_run, self._watch.config.publish_s
        dtype = engine.compute_dtype(on_cpu())
        async with self._busy:
            version = self._version
            arguments = (workers, version, weight_backend(engine), self._recipe.name, dtype, limit_s)
            publishing = [rank.publish.remote(*arguments) for rank in self._ranks]
            lost = await self._all(publishing, f"publishing version {version}", limit_s + PUBLISH_MARGIN_S)
        return list(lost[0])

    async def _all(self, references: list[Any], what: str, limit_s: float) -> list[Any]:
        """Every rank's answer. One that fails leaves the others in a collective for ever, so the first error counts.
        Raises LearnerLost, RunFailed, InputError."""
        try:
            return list(await self._watch.bounded(asyncio.gather(*references), "learner", what, limit_s))
        except Stalled as error:
            raise LearnerLost(str(error)) from error
        except RayTaskError as error:
            if dead := await self._dead_rank():
                raise LearnerLost(dead) from error
            if type(error.cause).__name__ in OUT_OF_MEMORY:
                raise LearnerLost(f"a learner is out of memory: {cause(error)}") from error
            raise raised("a learner failed", error) from error
        except RayError as error:
            raise LearnerLost(f"a learner is lost: {cause(error)}") from error

    async def _dead_rank(self) -> str:
        """Which rank's process is gone, and why; empty: none is. One that is in a collective does not answer."""
        asking = [asyncio.ensure_future(rank.where.remote()) for rank in self._ranks]
        try:
            await asyncio.wait(asking, timeout=ALIVE_S, return_when=asyncio.FIRST_EXCEPTION)
            for number, answer in enumerate(asking):
                if answer.done() and isinstance(answer.exception(), RayError):
                    return f"learner rank {number} is lost: {cause(answer.exception())}"
            return ""
        finally:
            for answer in asking:
                answer.cancel()

    async def _stacks(self) -> dict[str, str]:
        return await stacks_of_actors({f"learner rank {i}": where for i, where in enumerate(self._where)})

"""The Ray actors of a run behind the two faces that the trainer knows: `Workers` and `Learners`.

Rollout workers are cattle: one that dies is replaced by a fresh one that gets the learner's current weights, and its
trajectories are sampled again. A learner that dies ends the run (it holds the optimizer state); the run then continues
from its last checkpoint.
"""

import asyncio
import contextlib
import hashlib
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import ray
from ray.exceptions import RayError, RayTaskError

from sandboxrl.data.errors import InputError
from sandboxrl.data.plugin import Code
from sandboxrl.data.prompt.arms import load_arm
from sandboxrl.data.task import Task
from sandboxrl.envs.policy.protocol import EngineLost
from sandboxrl.envs.trajectory import Group, StopReason, Tokens, Trajectory
from sandboxrl.rl.cluster.connect import cause
from sandboxrl.rl.cluster.worker import RolloutWorker
from sandboxrl.rl.config import Recipe
from sandboxrl.rl.engine.config import check_runs_here, garbage_left_alone, on_cpu, weight_backend, worker_environment
from sandboxrl.rl.grpo import LossConfig, find_policy_loss
from sandboxrl.rl.learner.batch import Batch, Row
from sandboxrl.rl.learner.checkpoint import LEARNER
from sandboxrl.rl.learner.config import LearnerConfig
from sandboxrl.rl.own_code import code_of
from sandboxrl.rl.reports.run_folder import Log
from sandboxrl.rl.trainer import RunFailed

START_TIMEOUT_S = 900.0
"""Loading a model may take minutes; resources that the cluster does not have would be waited for without an end."""
MAX_REPLACEMENTS_IN_A_ROW = 3
"""Of one worker, without a trajectory in between: the next one would die too. A lost node takes many at once."""

T = TypeVar("T")


def seed_of(*parts: object) -> int:
    """A 31-bit seed that depends on nothing but `parts`."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "big") >> 1


class RayWorkers:
    """The rollout workers as one. A group stays on one worker, so that its trajectories share the prompt's KV cache."""

    retry_after_s = 2.0
    """Before a trajectory is sampled again; four times as long before the next attempt. A daemon that is started again
    is back within seconds, and every trajectory in flight would have used up its attempts by then."""
    stop_timeout_s = 30.0
    """How long workers may take to close engine and sandboxes before they are killed: one that never started, or whose
    engine is stuck, would be waited for without an end."""

    def __init__(self, recipe: Recipe, model_dir: str, log: Log) -> None:
        self._recipe, self._model_dir, self._log = recipe, model_dir, log
        self._handles: list[Any] = []
        self._load: list[int] = []
        self._places = [asyncio.Semaphore(recipe.engine.max_num_seqs) for _ in range(recipe.num_workers)]
        self._replacing = [asyncio.Lock() for _ in range(recipe.num_workers)]
        self._num_replaced = [0] * recipe.num_workers
        self.give_weights: Callable[[list[Any]], Awaitable[Any]] | None = None
        """Called with fresh workers; set by the learners once they have published anything."""

    async def start(self) -> None:
        check_runs_here(self._recipe.engine)
        count = self._recipe.num_workers
        self._handles, self._load = [self._spawn() for _ in range(count)], [0] * count
        await self._wait_for([handle.start.remote() for handle in self._handles])

    @property
    def handles(self) -> list[Any]:
        return list(self._handles)

    async def sample_group(self, task: Task, index: int, size: int) -> Group:
        """The trajectories of one task. What the machine loses is sampled again, `retries` times."""
        worker = self._least_loaded(size)
        try:
            found = await together(
                self._sample(worker, task, ("train", index, member), self._recipe.sampling) for member in range(size)
            )
        finally:
            self._load[worker] -= size
        kept = tuple(t for t in found if not t.stop.machine_fault)
        return Group(index, task, kept)

    async def evaluate(self, tasks: Sequence[Task], step: int) -> list[Trajectory]:
        """One trajectory for each of `tasks`, in their order, with the evaluation's sampling."""
        sampling = self._recipe.evaluation.sampling

        async def one(position: int, task: Task) -> Trajectory:
            worker = self._least_loaded(1)
            try:
                return await self._sample(worker, task, ("eval", step, position), sampling)
            finally:
                self._load[worker] -= 1

        return await together(one(position, task) for position, task in enumerate(tasks))

    async def probe(self) -> list[Tokens]:
        """A few tokens of every worker under its present weights; a worker that is lost just now has none."""
        sampling = self._recipe.sampling
        probes = await asyncio.gather(
            *(handle.probe.remote(sampling) for handle in self._handles), return_exceptions=True
        )
        for failed in probes:
            if isinstance(failed, RayTaskError) and not isinstance(failed.cause, EngineLost):
                raise raised("a probe failed", failed)
        return [probe for probe in probes if isinstance(probe, Tokens)]

    async def stop(self) -> None:
        """End every worker, its engine and its sandboxes."""
        handles, self._handles = self._handles, []
        stopping = asyncio.gather(*(handle.stop.remote() for handle in handles), return_exceptions=True)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stopping, self.stop_timeout_s)
        for handle in handles:
            ray.kill(handle)

    async def _sample(self, worker: int, task: Task, key: tuple[object, ...], sampling: Any) -> Trajectory:
        """One trajectory; the last of the attempts is returned even when the machine lost it. An exception inside a
        worker is neither the policy's nor the machine's fault, but wrong input or a mistake of ours: it is raised."""
        recipe = self._recipe
        for attempt in range(recipe.retries + 1):
            seed = seed_of(recipe.seed, *key, attempt)
            async with self._places[worker]:
                handle = self._handles[worker]
                try:
                    trajectory = await handle.sample.remote(task, seed, sampling)
                except RayTaskError as error:
                    raise raised("a rollout failed", error) from error
                except RayError as error:
                    trajectory = Trajectory(
                        task.id, task.source, recipe.mode, StopReason.ENGINE_LOST, turns=(), error=cause(error)
                    )
                    self._log.lost(trajectory)
                    await self._replace(worker, handle, error)
                    continue
            if not trajectory.stop.machine_fault:
                self._num_replaced[worker] = 0
                return trajectory
            self._log.lost(trajectory)
            if not await self._healthy(handle):
                await self._replace(worker, handle, RuntimeError(trajectory.error))
            elif attempt < recipe.retries:
                await asyncio.sleep(self.retry_after_s * 4**attempt)
        return trajectory

    async def _healthy(self, handle: Any) -> bool:
        try:
            return bool(await handle.healthy.remote())
        except RayError:
            return False

    async def _replace(self, worker: int, dead: Any, error: BaseException) -> None:
        """Put a fresh worker in the place of `dead`; whoever comes second finds it done."""
        async with self._replacing[worker]:
            if self._handles[worker] is not dead:
                return
            self._num_replaced[worker] += 1
            reason = cause(error)
            if self._num_replaced[worker] > MAX_REPLACEMENTS_IN_A_ROW:
                raise RunFailed(f"rollout worker {worker} keeps dying: {reason}")
            self._log.say(f"  rollout worker {worker} is lost and replaced: {reason}")
            ray.kill(dead)
            fresh = self._spawn()
            await self._wait_for([fresh.start.remote()])
            if self.give_weights is not None:
                await self.give_weights([fresh])
            self._handles[worker] = fresh

    def _least_loaded(self, size: int) -> int:
        worker = min(range(len(self._load)), key=self._load.__getitem__)
        self._load[worker] += size
        return worker

    def _spawn(self) -> Any:
        recipe = self._recipe
        gpus = 0 if on_cpu() else recipe.engine.tensor_parallel_size
        options = RolloutWorker.options(
            num_cpus=0 if on_cpu() else 1,
            num_gpus=gpus,
            max_concurrency=4 * recipe.engine.max_num_seqs + 16,
            runtime_env={"env_vars": worker_environment(recipe.engine)},
        )
        return options.remote(
            model=self._model_dir,
            engine=recipe.engine,
            sandbox=replace(recipe.sandbox, rootfs=_absolute(recipe.sandbox.rootfs)),
            limits=recipe.limits,
            arm=load_arm(recipe.prompt),
            tool_set=recipe.tool_set,
            tools=recipe.tools,
            code=code_of(recipe),
            call_format=recipe.model.call_format,
            mode=recipe.mode,
            chat_template=recipe.model.chat_template and Path(recipe.model.chat_template).read_text(),
            grader=replace(recipe.grader, ifbench=_absolute(recipe.grader.ifbench)),
        )

    async def _wait_for(self, references: list[Any]) -> None:
        await wait_for_start("rollout workers", references)


@ray.remote
class LearnerRank:
    """An `rl.learner.learner.Learner` in a process of its own, the only one that imports torch: that takes seconds."""

    def __init__(self, rank: int, config: LearnerConfig, code: Code) -> None:
        code.install()
        with garbage_left_alone():
            from sandboxrl.rl.learner.learner import Learner

        self._learner = Learner(rank, config)

    def address(self) -> str:
        return self._learner.address()

    def setup(self, address: str, model_dir: str, loss: LossConfig, temperature: float) -> None:
        find_policy_loss(loss.policy_loss)  # a user's own: said before the model is loaded, where it is not there
        self._learner.setup(address, model_dir, loss, temperature)

    def load(self, folder: str) -> None:
        self._learner.load(folder)

    def update(self, steps: Sequence[Sequence[Row]], probe: Row | None) -> dict[str, float]:
        return self._learner.update(steps, probe)

    def publish(
        self, workers: Sequence[Any], version: int, backend: str, run: str, dtype: str
    ) -> list[tuple[int, str]]:
        return self._learner.publish(workers, version, backend, run, dtype)

    def save(self, folder: str) -> None:
        self._learner.save(folder)


class RayLearners:
    """The learner ranks as one."""

    def __init__(self, recipe: Recipe, model_dir: str, log: Log) -> None:
        self._recipe, self._model_dir, self._log = recipe, model_dir, log
        self._ranks: list[Any] = []
        self._version = 0
        """Of the weights that the learner holds: the number of batches it has been updated with."""
        self._busy = asyncio.Lock()
        """A worker that is replaced during an update must get the weights under their right version."""

    async def start(self, version: int = 0, checkpoint: str = "") -> None:
        """Load the model, and the state of `checkpoint` where one is given."""
        config, on_gpu = self._recipe.learner_of_run, self._recipe.learner.device != "cpu" and not on_cpu()
        options = {"num_cpus": int(on_gpu), "num_gpus": int(on_gpu)}
        environment = {"env_vars": {"OMP_NUM_THREADS": str(config.threads), "TOKENIZERS_PARALLELISM": "false"}}
        code = code_of(self._recipe)
        self._ranks = [
            LearnerRank.options(**options, runtime_env=environment).remote(rank, config, code)
            for rank in range(config.world_size)
        ]
        [address] = await wait_for_start("learners", [self._ranks[0].address.remote()])
        recipe = self._recipe
        starting = [
            rank.setup.remote(address, self._model_dir, recipe.loss, recipe.sampling.temperature)
            for rank in self._ranks
        ]
        await wait_for_start("learners", starting)
        if checkpoint:
            await self._all([rank.load.remote(checkpoint) for rank in self._ranks])
        self._version = version

    async def update(self, batch: Batch) -> Mapping[str, float]:
        async with self._busy:
            stats = await self._all([r.update.remote(batch.of_rank(i), batch.probe) for i, r in enumerate(self._ranks)])
            self._version += 1
        return dict(stats[0])

    async def learned(self) -> Mapping[int, np.ndarray]:
        async with self._busy:
            ranks = await self._all([rank.call.remote("learned") for rank in self._ranks])
        return {place: logprobs for rank in ranks for place, logprobs in rank.items()}

    async def publish(self, workers: RayWorkers, version: int) -> None:
        assert version == self._version, f"the learner holds version {self._version}, not {version}"
        await self._give(workers.handles)
        workers.give_weights = self._give

    async def save(self, path: str) -> None:
        await self._all([rank.save.remote(path) for rank in self._ranks])
        if not (Path(path) / LEARNER / ".metadata").is_file():
            raise RunFailed(f"what the learners saved in {path} is not seen here: `out` must be on a folder they share")

    async def stop(self) -> None:
        for rank in self._ranks:
            ray.kill(rank)
        self._ranks = []

    async def _give(self, workers: list[Any]) -> None:
        engine = self._recipe.engine
        dtype = engine.dtype if engine.dtype != "auto" else ("float32" if on_cpu() else "bfloat16")
        async with self._busy:
            lost = await self._all(
                [
                    rank.publish.remote(workers, self._version, weight_backend(engine), self._recipe.name, dtype)
                    for rank in self._ranks
                ]
            )
        for index, reason in lost[0]:
            self._log.say(f"  a rollout worker ({index}) did not take the new weights and will be replaced: {reason}")

    async def _all(self, references: list[Any]) -> list[Any]:
        """Every rank's answer. One that fails leaves the others in a collective for ever, so the first error counts."""
        try:
            return list(await asyncio.gather(*references))
        except RayError as error:
            raise raised("a learner failed", error) from error


async def together(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all; when one raises, or this is cancelled, none of the others goes on."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


async def wait_for_start(who: str, references: list[Any]) -> list[Any]:
    """Their answers. Raises InputError where an actor found the input wrong, else RunFailed."""
    try:
        return await asyncio.wait_for(asyncio.gather(*references), START_TIMEOUT_S)
    except TimeoutError:
        have = {name: value for name, value in ray.cluster_resources().items() if name in ("CPU", "GPU", "memory")}
        raise RunFailed(f"the {who} did not start within {START_TIMEOUT_S:.0f} s; the cluster has {have}") from None
    except RayError as error:
        raise raised(f"the {who} did not start", error) from error


def raised(what: str, error: RayError) -> Exception:
    """What an error of an actor is here: wrong input stays wrong input, anything else ends the run."""
    inner = getattr(error, "cause", None)
    return inner if isinstance(inner, InputError) else RunFailed(f"{what}: {cause(error)}")


def _absolute(path: str) -> str:
    """A worker's working directory may be another one. Empty stays empty."""
    return path and str(Path(path).resolve())

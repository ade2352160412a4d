"""The rollout workers of a run, Ray actors, behind the face that the trainer knows (`sandboxrl.rl.trainer.Workers`).

Rollout workers are cattle: one that dies, answers nothing or does not take new weights is replaced by a fresh one that
gets the learner's current weights in a publication of its own, and its trajectories are sampled again.
"""

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from sandboxrl.data.errors import InputError
from sandboxrl.data.task import Task
from sandboxrl.envs.policy.protocol import EngineLost, Sampling
from sandboxrl.envs.trajectory import Group, StopReason, Tokens, Trajectory
from sandboxrl.rl.cluster.connect import cause, stacks_of_actors
from sandboxrl.rl.cluster.placement import Placement
from sandboxrl.rl.cluster.worker import RolloutWorker, WorkerSpec
from sandboxrl.rl.config import Recipe
from sandboxrl.rl.engine.config import KV_CACHE, check_runs_here
from sandboxrl.rl.reports.run_folder import Log
from sandboxrl.rl.trainer import LearnerLost, RunFailed
from sandboxrl.rl.watch import Stalled, Watch

HEALTHY_S = 30.0
"""How long a worker may take to say whether its engine lives."""
PROBE_S = 180.0
"""How long a probe may take: the worker's own limit, and the way."""
RETRY_AT_MOST_S = 60.0
"""Before a trajectory that the machine lost is sampled again, however often that was."""
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

    def __init__(
        self,
        recipe: Recipe,
        model_dir: str,
        log: Log,
        watch: Watch,
        placement: Placement,
        spawn: Callable[[int], Any] | None = None,
    ) -> None:
        """`spawn` starts the actor of one worker, by its number; without it, a `RolloutWorker` of the recipe."""
        self._recipe, self._model_dir, self._log, self._watch = recipe, model_dir, log, watch
        self._placement = placement
        self._spawn = spawn or self._rollout_worker
        self._handles: list[Any] = []
        self._where: dict[Any, dict[str, Any]] = {}
        """Node and process of each worker, for its stacks."""
        self._heard: dict[Any, float] = {}
        """When each worker last answered a look, monotonic."""
        self._looking: dict[Any, asyncio.Task[Any]] = {}
        self._replacements: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        """What ends the run at the next publication: a replacement that nobody waits for has failed."""
        self._load: list[int] = []
        self._places = [asyncio.Semaphore(recipe.engine.max_num_seqs) for _ in range(recipe.num_workers)]
        self._replacing = [asyncio.Lock() for _ in range(recipe.num_workers)]
        self._num_replaced = [0] * recipe.num_workers
        self._asleep = False
        self._room = asyncio.Event()
        """There is memory for a fresh engine: not while the others sleep so that the learner has it."""
        self._room.set()
        self.give_weights: Callable[[list[Any]], Awaitable[list[tuple[int, str]]]] | None = None
        """Called with fresh workers, returns which were lost and why; set by the learners once they have published."""
        watch.looks.append(self._look)
        watch.stacks.append(self._stacks)

    async def start(self) -> None:
        check_runs_here(self._recipe.engine_of_run)
        count = self._recipe.num_workers
        with self._log.progress.stage("engines and sandboxes"):
            for left in reversed(range(MAX_REPLACEMENTS_IN_A_ROW)):
                self.take([self._spawn(worker) for worker in range(count)])
                try:
                    await self._start(self._handles)
                    break
                except RunFailed as error:
                    if not left or not died(error):
                        raise
                    for handle in self._handles:
                        self._forget(handle)
                        ray.kill(handle)
        seconds = [self._where[handle]["seconds"] for handle in self._handles]
        for stage in seconds[0]:
            self._log.progress.done(f"of it {stage}", max(one[stage] for one in seconds))

    def take(self, handles: Sequence[Any]) -> None:
        """These actors are the workers from now on, as many as the recipe asks for."""
        self._handles, self._load = list(handles), [0] * len(handles)

    def members(self) -> list[Any]:
        """Who takes part in the next publication: all that are not being replaced just now. Raises what has ended a
        replacement for good."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        return [one for one, lock in zip(self._handles, self._replacing, strict=True) if not lock.locked()]

    def lose(self, handle: Any, reason: str) -> None:
        """Replace a worker that somebody found dead, silent or without the new weights, while the run goes on."""
        if handle in self._handles:
            worker = self._handles.index(handle)
            task = asyncio.ensure_future(self._replace_quietly(worker, handle, reason))
            self._replacements.add(task)
            task.add_done_callback(self._replacements.discard)

    async def sleep(self) -> None:
        """Have every engine give its memory back and freeze what it is drawing, for a learner on the same GPUs. When
        this returns, nothing of them is there: one that cannot sleep is ended. A fresh one waits for `wake`."""
        if self._asleep:
            return
        self._room.clear()
        for lock in self._replacing:  # one that is starting just now is waited for
            async with lock:
                pass
        self._asleep, freed = True, 0
        for handle, outcome in (await self._each("sleep")).items():
            if isinstance(outcome, BaseException):
                ray.kill(handle)
                self.lose(handle, f"it could not sleep: {cause(outcome)}")
            else:
                freed += outcome
        self._log.note(f"engines sleep: {freed:,} bytes given back")

    async def wake(self, part: str) -> None:
        """First `weights`, which then must be given to all, then `kv_cache`: they go on."""
        if not self._asleep:
            return
        for handle, outcome in (await self._each("wake", part)).items():
            if isinstance(outcome, BaseException):
                self.lose(handle, f"it did not wake: {cause(outcome)}")
        if part == KV_CACHE:
            self._asleep = False
            self._room.set()

    async def _each(self, method: str, *arguments: Any) -> dict[Any, Any]:
        """Every worker's answer, or what it failed with."""
        handles = list(self._handles)
        asking = asyncio.gather(*(getattr(h, method).remote(*arguments) for h in handles), return_exceptions=True)
        try:
            answers = await self._watch.bounded(asking, "rollout workers", method, self._watch.config.publish_s)
        except Stalled as error:
            answers = [error] * len(handles)
        return dict(zip(handles, answers, strict=True))

    def nodes(self) -> list[str]:
        """The Ray node of each worker."""
        return [str(self._where[handle]["node"]) for handle in self._handles]

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
        probing = [asyncio.ensure_future(handle.probe.remote(sampling)) for handle in self._handles]
        try:
            with self._watch.waiting("rollout workers", "a probe of each", PROBE_S):
                await asyncio.wait(probing, timeout=PROBE_S)
            found = []
            for probe in probing:
                failed = probe.exception() if probe.done() else None
                if isinstance(failed, RayTaskError) and not isinstance(failed.cause, EngineLost):
                    raise raised("a probe failed", failed)
                if probe.done() and failed is None:
                    found.append(probe.result())
            return found
        finally:
            for probe in probing:
                probe.cancel()

    async def stop(self) -> None:
        """End every worker, its engine and its sandboxes."""
        handles, self._handles = self._handles, []
        for task in [*self._replacements, *self._looking.values()]:
            task.cancel()
        stopping = asyncio.gather(*(handle.stop.remote() for handle in handles), return_exceptions=True)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stopping, self.stop_timeout_s)
        for handle in handles:
            ray.kill(handle)

    async def _sample(self, worker: int, task: Task, key: tuple[object, ...], sampling: Any) -> Trajectory:
        """One trajectory; the last of the attempts is returned even when the machine lost it. Each has the same seed:
        what the machine has lost is drawn again as it was, so a fault of the machine moves no weight, and a policy that
        breaks its sandbox gets no other draw for it. An exception inside a worker is neither the policy's nor the
        machine's fault, but wrong input or a mistake of ours: it is raised."""
        recipe = self._recipe
        seed = seed_of(recipe.seed, *key, 0)
        for attempt in range(recipe.retries + 1):
            async with self._places[worker]:
                handle = self._handles[worker]
                try:
                    trajectory = await self._ask(handle, task, seed, sampling)
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
                self._log.ended(trajectory)
                return trajectory
            self._log.lost(trajectory)
            if not await self._healthy(handle):
                await self._replace(worker, handle, RuntimeError(trajectory.error))
            elif attempt < recipe.retries:
                await asyncio.sleep(min(self.retry_after_s * 4**attempt, RETRY_AT_MOST_S))
        return trajectory

    async def _ask(self, handle: Any, task: Task, seed: int, sampling: Sampling) -> Trajectory:
        """A trajectory of this worker. One that takes longer than every limit in it allows is lost to the machine."""
        limit_s = self._recipe.limits.timeout_s + self._watch.config.trajectory_grace_s
        reference = handle.sample.remote(task, seed, sampling)
        answer = asyncio.ensure_future(reference)
        try:
            await asyncio.wait({answer}, timeout=limit_s)
            if answer.done():
                found: Trajectory = answer.result()
                return found
        finally:
            if not answer.done():  # nobody wants it any more: the worker must not go on with it
                answer.cancel()
                ray.cancel(reference)
        error = f"the trajectory has not ended within {limit_s:g} s"
        return Trajectory(task.id, task.source, self._recipe.mode, StopReason.SANDBOX_LOST, turns=(), error=error)

    async def _healthy(self, handle: Any) -> bool:
        try:
            return bool(await asyncio.wait_for(handle.healthy.remote(), HEALTHY_S))
        except (RayError, TimeoutError):
            return False

    async def _replace_quietly(self, worker: int, dead: Any, reason: str) -> None:
        try:
            await self._replace(worker, dead, RuntimeError(reason))
        except LearnerLost:
            pass  # the trainer meets it itself; the worker is found dead once more when the learner is back
        except Exception as error:
            self._failure = error

    async def _replace(self, worker: int, dead: Any, error: BaseException) -> None:
        """Replace `dead` with a fresh worker; a second caller finds it done."""
        await self._room.wait()
        async with self._replacing[worker]:
            if self._handles[worker] is not dead:
                return
            reason = cause(error)
            while True:
                self._num_replaced[worker] += 1
                if self._num_replaced[worker] > MAX_REPLACEMENTS_IN_A_ROW:
                    raise RunFailed(f"rollout worker {worker} keeps dying: {reason}")
                self._log.recovered("workers", f"rollout worker {worker} is lost and replaced: {reason}")
                self._forget(dead)
                ray.kill(dead)
                fresh = self._spawn(worker)
                try:
                    await self._start([fresh])
                    lost = await self.give_weights([fresh]) if self.give_weights is not None else []
                except RunFailed as failed:
                    if isinstance(failed, LearnerLost):
                        ray.kill(fresh)
                        raise
                    dead, reason = fresh, str(failed)
                    continue
                if not lost:
                    self._handles[worker] = fresh
                    return
                dead, reason = fresh, lost[0][1]

    def _least_loaded(self, size: int) -> int:
        worker = min(range(len(self._load)), key=self._load.__getitem__)
        self._load[worker] += size
        return worker

    def _rollout_worker(self, worker: int) -> Any:
        recipe = self._recipe
        where, concurrency = self._placement.of_worker(worker), 4 * recipe.engine.max_num_seqs + 16
        kind: Any = RolloutWorker  # what `ray.remote` made of the class
        options = kind.options(**where, max_concurrency=concurrency)
        return options.remote(WorkerSpec.of(recipe, self._model_dir))

    async def _start(self, handles: list[Any]) -> None:
        started = [handle.start.remote() for handle in handles]
        for handle, where in zip(handles, await wait_for_start(self._watch, "rollout workers", started), strict=True):
            self._where[handle], self._heard[handle] = where, time.monotonic()

    def _forget(self, handle: Any) -> None:
        self._where.pop(handle, None)
        self._heard.pop(handle, None)
        if (looking := self._looking.pop(handle, None)) is not None:
            looking.cancel()

    async def _look(self) -> dict[str, Any]:
        """What every worker says of itself; one that has said nothing for too long is replaced. Waits for nobody."""
        shown, now = [], time.monotonic()
        for index, handle in enumerate(self._handles):
            if handle not in self._heard or self._replacing[index].locked():
                shown.append({"worker": index, "state": "starting"})
                continue
            looking = self._looking.get(handle)
            answer: dict[str, Any] = {}
            if looking is not None and looking.done():
                failed = looking.exception()
                if failed is None:
                    self._heard[handle], answer = now, looking.result()
                elif not isinstance(failed, RayTaskError):
                    self.lose(handle, cause(failed))
            if looking is None or looking.done():
                self._looking[handle] = asyncio.ensure_future(handle.status.remote())
            silent_s = now - self._heard[handle]
            shown.append({"worker": index, "silent_s": round(silent_s, 1), **answer})
            if silent_s > self._watch.config.worker_silent_s:
                reason = f"it has answered nothing for {silent_s:.0f} s"
                await self._watch.dump(f"rollout worker {index}: {reason}")
                self.lose(handle, reason)
        return {"workers": shown}

    async def _stacks(self) -> dict[str, str]:
        names = {f"rollout worker {i}": self._where[h] for i, h in enumerate(self._handles) if h in self._where}
        return await stacks_of_actors(names)


async def together(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all; when one raises, or this is cancelled, none of the others goes on."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


async def wait_for_start(watch: Watch, who: str, references: list[Any]) -> list[Any]:
    """Their answers. Raises InputError where an actor found the input wrong, else RunFailed."""
    limit_s = watch.config.start_s
    try:
        return list(await watch.bounded(asyncio.gather(*references), who, "starting", limit_s))
    except Stalled:  # resources that the cluster does not have would be waited for without an end
        have = {name: value for name, value in ray.cluster_resources().items() if name in ("CPU", "GPU", "memory")}
        raise RunFailed(f"the {who} did not start within {limit_s:.0f} s; the cluster has {have}") from None
    except RayError as error:
        raise raised(f"the {who} did not start", error) from error


def died(error: RunFailed) -> bool:
    """Whether an actor died; one that says itself why it cannot start would say so again."""
    return isinstance(error.__cause__, RayError) and not isinstance(error.__cause__, RayTaskError)


def raised(what: str, error: RayError) -> Exception:
    """What an error of an actor is here: wrong input stays wrong input, anything else ends the run."""
    inner = getattr(error, "cause", None)
    return inner if isinstance(inner, InputError) else RunFailed(f"{what}: {cause(error)}")

"""Rollout workers that die, fall silent or do not take new weights are replaced while the run goes on, with real actors
that do nothing else."""

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import ray

from sandboxrl.data.task import Task
from sandboxrl.envs.trajectory import StopReason, Trajectory
from sandboxrl.rl.cluster.connect import whereabouts
from sandboxrl.rl.cluster.placement import Placement
from sandboxrl.rl.cluster.workers import RayWorkers
from sandboxrl.rl.config import load_recipe
from sandboxrl.rl.reports.run_folder import Log
from sandboxrl.rl.trainer import RunFailed
from sandboxrl.rl.watch import Watch

pytestmark = [pytest.mark.heavy, pytest.mark.usefixtures("ray_cluster")]

ROOT = Path(__file__).resolve().parents[3]
TASK = Task(id="t", source="s", question="?", gold="1", reward="exact")


@ray.remote
class Idle:
    """Answers what a rollout worker answers."""

    def __init__(self, starts: bool) -> None:
        self.starts, self.version_now = starts, -1

    async def pid(self) -> int:
        return os.getpid()

    async def start(self) -> dict[str, Any]:
        if not self.starts:
            os._exit(1)
        return whereabouts() | {"seconds": {}}

    async def sample(self, task: Task, seed: int, sampling: Any) -> Trajectory:
        await asyncio.sleep(0.5)
        return Trajectory(task.id, task.source, "sandbox", StopReason.FINISHED, (), reward=1.0)

    async def take(self, version: int) -> None:
        self.version_now = version

    async def status(self) -> dict[str, Any]:
        return {"trajectories": 0, "engine_requests": 0, "slowest": [], "version": self.version_now}

    async def healthy(self) -> bool:
        return True

    async def sleep(self) -> int:
        return 100

    async def wake(self, part: str) -> None:
        pass

    async def stop(self) -> None:
        pass


class Spawner:
    """Starts actors that are there at once; `starts` says which of them, by number, start at all."""

    def __init__(self) -> None:
        self.num_spawned = 0
        self.starts: Callable[[int], bool] = lambda number: True

    def __call__(self, worker: int) -> Any:
        self.num_spawned += 1
        return Idle.options(num_cpus=0, max_concurrency=100).remote(self.starts(self.num_spawned - 1))


Work = Callable[[RayWorkers, Spawner], Awaitable[None]]


def living(folder: Path, work: Work, *words: str) -> Log:
    """`work` with two workers, watched as those of a run are; the run's log afterwards."""
    watched = ("watch.poll_s=0.2", "watch.worker_silent_s=3")
    recipe = load_recipe(ROOT / "recipes/tiny.yaml", [f"out={folder}", "name=run", "num_workers=2", *watched, *words])
    log, spawner = Log(recipe, 0, token_text=str), Spawner()
    watch = Watch(recipe.watch, recipe.run_dir, log.say)
    workers = RayWorkers(recipe, "", log, watch, Placement(recipe, gpus=False), spawner)

    async def live() -> None:
        watching = asyncio.create_task(watch.run())
        try:
            await workers.start()
            await work(workers, spawner)
        finally:
            watching.cancel()
            await workers.stop()

    asyncio.run(asyncio.wait_for(live(), 120))
    return log


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


async def give(handles: list[Any]) -> list[tuple[int, str]]:
    await asyncio.gather(*(handle.take.remote(7) for handle in handles))
    return []


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_worker_that_dies_or_stands_still_is_replaced_and_its_trajectories_are_sampled_again(
    tmp_path: Path, how: signal.Signals
) -> None:
    async def work(workers: RayWorkers, spawner: Spawner) -> None:
        workers.give_weights = give
        victim, other = workers.members()
        pid = await victim.pid.remote()
        sampling = asyncio.create_task(workers.sample_group(TASK, 0, 8))  # on worker 0, the least loaded
        await asyncio.sleep(0.2)
        os.kill(pid, how)
        assert len((await sampling).trajectories) == 8
        fresh, same = workers.members()
        assert fresh is not victim and same is other and spawner.num_spawned == 3
        assert (await fresh.status.remote())["version"] == 7

    found = living(tmp_path, work)
    assert found.step_counts["recovered/workers"] == 1
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "rollout worker 0 is lost and replaced" in log
    if how is signal.SIGSTOP:
        assert "it has answered nothing for" in log and "State:\tT (stopped)" in log  # the stacks came first


def test_who_is_being_replaced_takes_no_part_in_a_publication(tmp_path: Path) -> None:
    async def work(workers: RayWorkers, spawner: Spawner) -> None:
        gate = asyncio.Event()

        async def slowly(handles: list[Any]) -> list[tuple[int, str]]:
            await gate.wait()
            return await give(handles)

        workers.give_weights = slowly
        first, second = workers.members()
        workers.lose(first, "it did not take the new weights")
        await until(lambda: len(workers.members()) == 1)
        assert workers.members() == [second]
        gate.set()
        await until(lambda: len(workers.members()) == 2)
        assert first not in workers.members()

    living(tmp_path, work)


def test_all_sleep_before_the_learner_works_and_a_fresh_one_waits(tmp_path: Path) -> None:
    """Whoever is starting is waited for; whoever would start waits until there is memory again."""

    async def work(workers: RayWorkers, spawner: Spawner) -> None:
        workers.lose(workers.members()[0], "gone")
        await until(lambda: len(workers.members()) == 1)
        await workers.sleep()
        assert len(workers.members()) == 2 and spawner.num_spawned == 3
        await workers.sleep()  # a second time does nothing
        workers.lose(workers.members()[0], "gone too")
        await asyncio.sleep(0.2)
        await workers.wake("weights")
        assert spawner.num_spawned == 3
        await workers.wake("kv_cache")
        await until(lambda: spawner.num_spawned == 4 and len(workers.members()) == 2)
        await workers.wake("kv_cache")

    living(tmp_path, work)
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count("engines sleep") == log.count("engines sleep: 200 bytes given back") == 1


def test_a_replacement_that_fails_is_tried_again_and_not_for_ever(tmp_path: Path) -> None:
    async def work(workers: RayWorkers, spawner: Spawner) -> None:
        spawner.starts = lambda number: number != 2
        workers.lose(workers.members()[0], "gone")
        await until(lambda: spawner.num_spawned == 4 and len(workers.members()) == 2)
        spawner.starts = lambda number: False
        workers.lose(workers.members()[1], "gone")
        with pytest.raises(RunFailed, match="rollout worker 1 keeps dying"):
            await until(lambda: workers.members() == [])

    living(tmp_path, work)


def test_a_trajectory_that_outlives_every_limit_is_lost(tmp_path: Path) -> None:
    async def work(workers: RayWorkers, spawner: Spawner) -> None:
        workers.retry_after_s = 0.01
        assert (await workers.sample_group(TASK, 0, 2)).trajectories == ()

    found = living(tmp_path, work, "limits.timeout_s=0.1", "watch.trajectory_grace_s=0.1")
    assert found.step_counts["dropped"] == 6
    assert "has not ended within 0.2 s" in (tmp_path / "run" / "log.txt").read_text()

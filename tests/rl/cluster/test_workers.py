"""The faces over the Ray actors: what an exception in a worker means, and that nothing waits without an end."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import RayTaskError

from sandboxrl.data.errors import InputError
from sandboxrl.data.task import Task
from sandboxrl.envs.policy.protocol import EngineLost
from sandboxrl.envs.trajectory import StopReason, Trajectory
from sandboxrl.rl.cluster.placement import Placement
from sandboxrl.rl.cluster.workers import RayWorkers, together
from sandboxrl.rl.config import Recipe, load_recipe
from sandboxrl.rl.reports.run_folder import Log
from sandboxrl.rl.trainer import RunFailed
from sandboxrl.rl.watch import Watch, WatchConfig
from tests.ray_cluster import RayCluster

ROOT = Path(__file__).resolve().parents[3]
TASK = Task(id="t", source="s", question="?", gold="1", reward="exact")


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(recipe_in(tmp_path), 0, token_text=str)


@pytest.fixture
def workers(tmp_path: Path, log: Log) -> RayWorkers:
    recipe = recipe_in(tmp_path)
    return RayWorkers(recipe, "", log, Watch(WatchConfig(), tmp_path, log.say), Placement(recipe, gpus=False))


def recipe_in(folder: Path) -> Recipe:
    return load_recipe(ROOT / "recipes/tiny.yaml", [f"out={folder}", "name=run"])


class Remote:
    """A method of an actor, without the actor: it answers in this process."""

    def __init__(self, answer: Callable[..., Awaitable[Any]]) -> None:
        self.remote = answer


class Actor:
    """A rollout worker of which each call raises, or answers with, the next of `outcomes`."""

    def __init__(self, *outcomes: Any) -> None:
        self.outcomes = list(outcomes)
        self.sample = self.probe = Remote(self._next)
        self.healthy = Remote(self._healthy)

    async def _next(self, *_: Any) -> Any:
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise RayTaskError("sample", f"Traceback\n{outcome!r}", outcome).as_instanceof_cause()
        return outcome

    async def _healthy(self) -> bool:
        return True


def sample(workers: RayWorkers, actor: Actor, size: int = 1) -> Any:
    workers.take([actor])
    return asyncio.run(workers.sample_group(TASK, 0, size))


@pytest.mark.parametrize("error", [RuntimeError("a mistake"), InputError("a wrong task")])
def test_an_exception_in_a_healthy_worker_ends_the_run_and_not_the_worker(
    workers: RayWorkers, error: Exception
) -> None:
    expected = InputError if isinstance(error, InputError) else RunFailed
    with pytest.raises(expected, match=str(error)):
        sample(workers, Actor(error))


def test_what_the_machine_loses_is_sampled_again_and_counted_once(workers: RayWorkers, log: Log) -> None:
    workers.retry_after_s = 0.05
    started = time.monotonic()
    lost = Trajectory("t", "s", "sandbox", StopReason.SANDBOX_LOST, (), error="gone")
    good = Trajectory("t", "s", "sandbox", StopReason.FINISHED, (), reward=1.0)
    assert sample(workers, Actor(lost, lost, good)).trajectories == (good,)
    assert log.step_counts["dropped"] == 2
    assert time.monotonic() - started >= 0.05 + 0.2
    assert sample(workers, Actor(*[lost] * 3)).trajectories == ()
    assert log.step_counts["dropped"] == 5
    assert (log.dir / "log.txt").read_text().count("lost to the machine") == 1


def test_a_lost_engine_has_no_probe_and_a_broken_probe_is_told(workers: RayWorkers) -> None:
    workers.take([Actor(EngineLost("gone"))])
    assert asyncio.run(workers.probe()) == []
    workers.take([Actor(ValueError("a mistake"))])
    with pytest.raises(RunFailed, match="a mistake"):
        asyncio.run(workers.probe())


def test_when_one_of_many_fails_the_others_do_not_go_on() -> None:
    ended: list[str] = []

    async def slow() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("slow")

    async def bad() -> None:
        await asyncio.sleep(0)
        raise RunFailed("bad")

    async def both() -> None:
        with pytest.raises(RunFailed):
            await together([slow(), bad()])
        await asyncio.sleep(0)
        assert ended == ["slow"]

    asyncio.run(both())


@pytest.mark.heavy
def test_workers_that_never_started_or_never_stop_are_not_waited_for(
    workers: RayWorkers, ray_cluster: RayCluster
) -> None:
    class Stuck:
        async def stop(self) -> None:
            await asyncio.sleep(3600)

    workers.stop_timeout_s = 1.0
    actor = ray.remote(Stuck)
    workers.take([actor.options(num_cpus=0).remote(), actor.options(num_cpus=1000).remote()])
    asyncio.run(asyncio.wait_for(workers.stop(), 20))

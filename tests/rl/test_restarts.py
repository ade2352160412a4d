"""A lost learner starts again from the last checkpoint inside the run, a few times; nothing is sampled twice."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from sandboxrl.data.errors import InputError
from sandboxrl.data.task import Task
from sandboxrl.rl.cluster.learners import RayLearners
from sandboxrl.rl.cluster.placement import Placement
from sandboxrl.rl.learner.checkpoint import Checkpoints
from sandboxrl.rl.reports.run_folder import Log, read_jsonl
from sandboxrl.rl.run import train_to_the_end
from sandboxrl.rl.trainer import LearnerLost, RunFailed
from sandboxrl.rl.watch import Watch, WatchConfig
from tests.rl.reports.test_events import DrawingWorkers, rewards
from tests.rl.test_trainer import CountingLearners, recipe_in, run, stream, task


class Mortal(CountingLearners):
    """Is lost at the updates of the versions `dies_at`, each time once."""

    def __init__(self, dies_at: Sequence[int]) -> None:
        super().__init__()
        self.dies_at, self.restarted = list(dies_at), []

    async def update(self, batch: Any) -> dict[str, float]:
        if self.dies_at and self.updates == self.dies_at[0]:
            self.dies_at.pop(0)
            raise LearnerLost("learner rank 1 is lost: its process died")
        return await super().update(batch)

    async def restart(self, version: int, checkpoint: str = "") -> None:
        assert bool(version) == bool(checkpoint)
        if checkpoint:
            assert (Path(checkpoint) / "updates").read_text() == str(version)
        self.updates = version
        self.restarted.append(version)


def train_all(recipe: Any, workers: DrawingWorkers, learners: Mortal) -> Log:
    log = Log(recipe, Checkpoints(recipe.run_dir).latest()[0], token_text=str)
    inputs: Any = SimpleNamespace(train=stream(), eval_sets={"set": [task(9000)]})
    asyncio.run(train_to_the_end(recipe, inputs, workers, learners, log))  # type: ignore[arg-type]
    return log


@pytest.mark.parametrize("max_staleness", [0, 2])
def test_a_lost_learner_goes_on_from_the_last_checkpoint_and_nothing_is_sampled_twice(
    tmp_path: Path, max_staleness: int
) -> None:
    overrides = [f"max_staleness={max_staleness}", "checkpoint.every=2", "evaluation.every=3", "steps=8"]
    calm = recipe_in(tmp_path / "calm", *overrides)
    run(calm, DrawingWorkers(1), CountingLearners())

    class Once(DrawingWorkers):
        async def sample_group(self, task: Task, index: int, size: int) -> Any:
            group = await super().sample_group(task, index, size)
            completed.append(index)
            return group

    completed: list[int] = []
    recipe, learners = recipe_in(tmp_path / "lost", *overrides), Mortal([1, 5, 7])
    log = train_all(recipe, Once(1), learners)
    assert learners.restarted == [0, 4, 6]
    assert [row["step"] for row in log.rows if "reward/mean" in row] == list(range(1, 9))
    assert sum(row["recovered/learner"] for row in log.rows if "reward/mean" in row) >= 1
    assert sorted(log.eval_scores()) == [0, 3, 6, 8]
    assert sorted(rewards(recipe.run_dir)) == sorted(rewards(calm.run_dir)) == list(range(16))
    assert len(completed) == len(set(completed))
    assert (recipe.run_dir / "log.txt").read_text().count("the learner starts again from step") == 3
    assert [row["step"] for row in read_jsonl(recipe.run_dir / "metrics.jsonl") if "reward/mean" in row] == [
        *range(1, 9)
    ]


def test_a_learner_that_is_lost_too_often_ends_the_run(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path, "watch.learner_restarts=2", "checkpoint.every=1")
    learners = Mortal([2, 2, 2])
    with pytest.raises(RunFailed, match="its process died; that is loss 3, watch.learner_restarts allows 2") as told:
        train_all(recipe, DrawingWorkers(1), learners)
    assert not isinstance(told.value, LearnerLost) and learners.restarted == [2, 2]


def failed(cause: Exception) -> RayTaskError:
    return RayTaskError("update", f"Traceback\n{cause!r}", cause).as_instanceof_cause()


class Rank:
    """A learner rank. Asked to update, it gives `outcome`: a value, an error, or that many seconds of waiting; asked
    `where` it is, it answers, never does, or is dead."""

    def __init__(self, outcome: Any, state: str) -> None:
        self.update, self.where = SimpleNamespace(remote=self._update), SimpleNamespace(remote=self._where)
        self.outcome, self.state = outcome, state

    async def _update(self, rows: Any, probe: Any) -> Any:
        if isinstance(self.outcome, Exception):
            raise self.outcome
        await asyncio.sleep(self.outcome if isinstance(self.outcome, float) else 0)
        return self.outcome

    async def _where(self) -> dict[str, int]:
        if self.state == "dead":
            raise ActorDiedError()
        if self.state == "busy":
            await asyncio.sleep(3600)
        return {}


@pytest.mark.parametrize(
    ("outcomes", "ranks", "expected", "said"),
    [
        ([1, ActorDiedError()], ["", ""], LearnerLost, "a learner is lost"),
        ([1, failed(RuntimeError("connection closed by peer"))], ["busy", "dead"], LearnerLost, "rank 1 is lost"),
        ([1, failed(MemoryError("no memory"))], ["", ""], LearnerLost, "out of memory"),
        ([1, failed(ValueError("a mistake"))], ["", ""], RunFailed, "a mistake"),
        ([1, failed(InputError("a wrong model"))], ["", ""], InputError, "a wrong model"),
        ([1, 3600.0], ["", "busy"], LearnerLost, "learner: update 1 has taken more than 0.3 s"),
    ],
)
def test_what_becomes_of_a_rank_that_fails(
    tmp_path: Path, outcomes: list[Any], ranks: list[str], expected: type[Exception], said: str
) -> None:
    """Dead, out of memory or over its deadline: the machine's doing. Anything else would come again."""

    async def ask() -> None:
        recipe, watch = recipe_in(tmp_path), Watch(WatchConfig(update_s=0.3), tmp_path, lambda line: None)
        learners = RayLearners(recipe, "", watch, Placement(recipe, gpus=False))
        watch.stacks.clear()  # of processes, which these ranks are not
        learners.take([Rank(outcome, state) for outcome, state in zip(outcomes, ranks, strict=True)])
        await learners.update(SimpleNamespace(of_rank=lambda rank: [], probe=None))  # type: ignore[arg-type]

    with pytest.raises(expected, match=said) as told:
        asyncio.run(ask())
    assert type(told.value) is expected

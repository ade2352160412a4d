"""The training loop, driven by small workers and learners that count: order, staleness, replacement, loss, resume."""

import asyncio
import random
from collections.abc import Awaitable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sandboxrl.data.errors import InputError
from sandboxrl.data.files import read_jsonl
from sandboxrl.data.stream import TaskStream
from sandboxrl.data.task import Task
from sandboxrl.envs.trajectory import Group, StopReason, Tokens, Trajectory, Turn
from sandboxrl.rl.config import Recipe, load_recipe
from sandboxrl.rl.hooks import load_hooks
from sandboxrl.rl.learner.checkpoint import Checkpoints
from sandboxrl.rl.reports.run_folder import Log
from sandboxrl.rl.run import prepare
from sandboxrl.rl.trainer import RunFailed, Work, train

ROOT = Path(__file__).resolve().parents[2]


def recipe_in(folder: Path, *overrides: str) -> Recipe:
    fixed = ["steps=6", "groups_per_step=2", "group_size=2", "evaluation.every=0", "max_staleness=0", "name=run"]
    return load_recipe(ROOT / "recipes/tiny.yaml", [*fixed, f"out={folder}", "learner.minibatches=1", *overrides])


def trajectory(task: Task, reward: float, version: int, stop: StopReason = StopReason.FINISHED) -> Trajectory:
    tokens = Tokens([1, 2, 3], [0, 0, 1], [0.0, 0.0, -0.5], [-1, -1, version])
    turn = Turn("x", start=2, end=3, num_sampled=1)
    return Trajectory(task.id, task.source, "sandbox", stop, (turn,), "a", reward, reward, tokens, num_prompt=2)


class CountingWorkers:
    """Sample after a random while, with the version of the weights at the end."""

    def __init__(self, seed: int = 0) -> None:
        self.version, self.in_flight, self.most_in_flight = 0, 0, 0
        self.sampled: list[str] = []
        self.versions_at_start: dict[int, int] = {}
        self.random = random.Random(seed)
        self.uninformative: set[int] = set()
        self.lost: set[int] = set()

    async def sample_group(self, task: Task, index: int, size: int) -> Group:
        self.sampled.append(task.id)
        self.versions_at_start[index] = version = self.version
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        await asyncio.sleep(self.random.random() * 0.004)
        self.in_flight -= 1
        if index in self.lost:
            return Group(index, task, ())
        rewards = [0.5] * size if index in self.uninformative else [float(i % 2) for i in range(size)]
        return Group(index, task, tuple(trajectory(task, r, version) for r in rewards))

    async def evaluate(self, tasks: Sequence[Task], step: int) -> list[Trajectory]:
        return [trajectory(task, 1.0, self.version) for task in tasks]

    async def probe(self) -> list[Tokens]:
        return []


class CountingLearners:
    def __init__(self, mismatch: float = 1e-5) -> None:
        self.mismatch, self.updates = mismatch, 0

    async def update(self, batch: Any) -> dict[str, float]:
        self.updates += 1
        await asyncio.sleep(0.002)
        return {"mismatch/logprob_max": self.mismatch, "loss": 0.0}

    async def learned(self) -> dict[int, Any]:
        return {1: np.array([-0.25], dtype=np.float32)}

    async def publish(self, workers: CountingWorkers, version: int) -> None:
        workers.version = version

    async def save(self, path: str) -> Awaitable[None]:
        updates = self.updates

        async def write() -> None:
            await asyncio.sleep(0.003)
            (Path(path) / "updates").write_text(str(updates))

        return write()


def task(i: int) -> Task:
    return Task(id=f"t{i}", source="s", question="?", gold="1", reward="exact")


def stream() -> TaskStream:
    return TaskStream({"s": [task(i) for i in range(1000)]}, {}, seed=0)


def run(recipe: Recipe, workers: CountingWorkers, learners: CountingLearners) -> Log:
    checkpoints = Checkpoints(recipe.run_dir, recipe.checkpoint.keep)
    log = Log(recipe, checkpoints.latest()[0], token_text=str)
    work = Work(stream(), {"set": [task(9000)]}, load_hooks(recipe.hooks), log.eval_scores())
    asyncio.run(train(recipe, work, workers, learners, checkpoints, log))
    return log


@pytest.mark.parametrize("max_staleness", [0, 1, 3])
def test_staleness_is_bounded_and_the_bound_is_used(tmp_path: Path, max_staleness: int) -> None:
    recipe = recipe_in(tmp_path, f"max_staleness={max_staleness}", "steps=12")
    workers = CountingWorkers()
    log = run(recipe, workers, CountingLearners())
    ages = [row["staleness/max"] for row in log.rows if "reward/mean" in row]
    assert len(ages) == 12
    assert max(ages) == max_staleness
    assert workers.most_in_flight == 2 * (1 + max_staleness)
    assert not any(row["groups/too_old"] for row in log.rows if "reward/mean" in row)


def test_uninformative_groups_are_replaced_up_to_the_limit(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path, "replace_uninformative=3", "steps=1")
    workers = CountingWorkers()
    workers.uninformative = set(range(100))
    rows = run(recipe, workers, CountingLearners()).rows
    step = next(row for row in rows if "reward/mean" in row)
    assert step["groups/replaced"] == 3 and step["groups/informative"] == 0
    assert len(workers.sampled) == 2 + 3


def test_lost_groups_are_replaced_and_too_many_end_the_run(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path, "steps=2", "max_lost_groups=3")
    workers = CountingWorkers()
    workers.lost = {0, 1}
    log = run(recipe, workers, CountingLearners())
    assert [row["trajectories"] for row in log.rows if "reward/mean" in row] == [4, 4]
    workers = CountingWorkers()
    workers.lost = set(range(100))
    with pytest.raises(RunFailed, match="3 groups in a row"):
        run(replace(recipe, name="other"), workers, CountingLearners())


def test_a_mismatch_between_engine_and_learner_ends_the_run(tmp_path: Path) -> None:
    learners = CountingLearners(mismatch=0.3)
    with pytest.raises(RunFailed, match="disagree"):
        run(recipe_in(tmp_path), CountingWorkers(), learners)
    assert learners.updates == 1


def test_a_saved_trajectory_says_what_was_asked_and_what_the_learner_thought(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path, "steps=1")
    run(recipe, CountingWorkers(), CountingLearners())
    rows = read_jsonl(recipe.run_dir / "trajectories/step_000001.jsonl")
    assert [(row["question"], row["gold"]) for row in rows] == [("?", "1")] * 4
    assert [row.get("learner_logprobs") for row in rows] == [None, [-0.25], None, None]
    (evaluated,) = read_jsonl(recipe.run_dir / "trajectories/eval_set_000001.jsonl")
    assert (evaluated["question"], evaluated["gold"]) == ("?", "1")


class Killed(Exception):
    pass


@pytest.mark.parametrize("max_staleness", [0, 2])
def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, max_staleness: int) -> None:
    """Killed after step 5, last checkpoint at step 4: the same tasks are consumed as without the kill, none twice."""
    overrides = [f"max_staleness={max_staleness}", "checkpoint.every=2", "evaluation.every=2"]
    whole = run(recipe_in(tmp_path / "whole", *overrides), CountingWorkers(), CountingLearners())

    class Mortal(CountingLearners):
        async def update(self, batch: Any) -> dict[str, float]:
            if self.updates == 5:
                raise Killed
            return await super().update(batch)

    recipe = recipe_in(tmp_path / "killed", *overrides)
    with pytest.raises(Killed):
        run(recipe, CountingWorkers(), Mortal())
    with (recipe.run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "torn')
    resumed = run(recipe, CountingWorkers(1), CountingLearners())

    def steps(rows: list[dict[str, Any]]) -> list[int]:
        return [row["step"] for row in rows if "reward/mean" in row]

    assert steps(resumed.rows) == steps(whole.rows) == [1, 2, 3, 4, 5, 6]
    assert steps(read_jsonl(recipe.run_dir / "metrics.jsonl")) == [1, 2, 3, 4, 5, 6]
    assert sorted(resumed.eval_scores()) == [0, 2, 4, 6]

    def consumed(folder: Path) -> list[tuple[int, str]]:
        files = sorted((folder / "run/trajectories").glob("step_*.jsonl"))
        return [(row["group"], row["task_id"]) for file in files for row in read_jsonl(file)]

    assert consumed(tmp_path / "killed") == consumed(tmp_path / "whole")


def test_zero_steps_only_evaluate(tmp_path: Path) -> None:
    log = run(recipe_in(tmp_path, "steps=0"), CountingWorkers(), CountingLearners())
    assert log.eval_scores() == {0: {"set": 1.0}}


def test_a_group_that_ran_out_of_time_before_its_first_token_is_a_group_like_any_other(tmp_path: Path) -> None:
    class Slow(CountingWorkers):
        async def sample_group(self, task: Task, index: int, size: int) -> Group:
            nothing = Tokens([1, 2], [0, 0], [0.0, 0.0], [-1, -1])
            one = Trajectory(task.id, "s", "sandbox", StopReason.TIMEOUT, (), score=0.0, reward=0.0, tokens=nothing)
            return Group(index, task, (one,) * size)

    log = run(recipe_in(tmp_path, "steps=1"), Slow(), CountingLearners())
    (row,) = [row for row in log.rows if "reward/mean" in row]
    assert row["staleness/max"] == 0 and row["stop/timeout"] == 1


def test_a_run_killed_between_two_evaluation_sets_evaluates_the_other_one(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path, "steps=0")
    log = Log(recipe, 0, token_text=str)
    log.evaluation("first", 0, 0.0, [task(0)], [trajectory(task(0), 0.0, 0)], 1.0)
    sets = {"first": [task(1)], "second": [task(2)]}
    log = Log(recipe, 0, token_text=str)
    checkpoints = Checkpoints(recipe.run_dir, 2)
    asyncio.run(
        train(
            recipe,
            Work(stream(), sets, scores=log.eval_scores()),
            CountingWorkers(),
            CountingLearners(),
            checkpoints,
            log,
        )
    )
    assert log.eval_scores() == {0: {"first": 0.0, "second": 1.0}}


def test_an_evaluation_that_the_machine_lost_has_no_score(tmp_path: Path) -> None:
    class Lost(CountingWorkers):
        async def evaluate(self, tasks: Sequence[Task], step: int) -> list[Trajectory]:
            return [Trajectory(t.id, "s", "sandbox", StopReason.SANDBOX_LOST, ()) for t in tasks]

    with pytest.raises(RunFailed, match="every trajectory was lost"):
        run(recipe_in(tmp_path, "steps=0"), Lost(), CountingLearners())
    assert read_jsonl(tmp_path / "run/metrics.jsonl") == []


class ScoringWorkers(CountingWorkers):
    """Score `scores[step]` in the evaluation of a step."""

    def __init__(self, scores: dict[int, float]) -> None:
        super().__init__()
        self.scores = scores

    async def evaluate(self, tasks: Sequence[Task], step: int) -> list[Trajectory]:
        return [trajectory(task, self.scores[step], self.version) for task in tasks]


def test_the_best_checkpoint_stays_and_every_evaluated_step_is_one(tmp_path: Path) -> None:
    scores = {0: 0.9, 2: 0.4, 4: 0.8, 6: 0.8, 8: 0.3, 10: 0.5}
    keys = ["checkpoint.best=set", "checkpoint.keep=1", "checkpoint.every=3", "evaluation.every=2", "steps=10"]
    recipe = recipe_in(tmp_path, *keys)
    run(recipe, ScoringWorkers(scores), CountingLearners())
    checkpoints = Checkpoints(recipe.run_dir)
    assert checkpoints.steps() == [6, 10]  # the later of two equals; the untrained model is no checkpoint
    assert checkpoints.protected()["best"] == 6


def test_a_run_that_goes_on_remembers_its_best(tmp_path: Path) -> None:
    keys = ["checkpoint.best=set", "checkpoint.keep=1", "checkpoint.every=0", "evaluation.every=2"]
    recipe = recipe_in(tmp_path, *keys, "steps=4")
    run(recipe, ScoringWorkers({0: 0.1, 2: 0.9, 4: 0.2}), CountingLearners())
    longer = recipe_in(tmp_path, *keys, "steps=8")
    run(longer, ScoringWorkers({6: 0.3, 8: 0.4}), CountingLearners())
    assert Checkpoints(recipe.run_dir).steps() == [2, 8]


def test_a_best_that_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="without an evaluation"):
        recipe_in(tmp_path, "checkpoint.best=set", "evaluation.after=false")
    with pytest.raises(InputError, match="did you mean 'heldout'"):
        prepare(recipe_in(tmp_path, "checkpoint.best=heldot", "sandbox.backend=bubblewrap"))

"""What was sampled before a kill is used after it, unless it is damaged or would be sampled otherwise now."""

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxrl.data.task import Task
from sandboxrl.envs.trajectory import Group
from sandboxrl.rl.config import Recipe
from sandboxrl.rl.reports.events import Journal, read_events
from sandboxrl.rl.reports.run_folder import read_jsonl
from tests.rl.test_trainer import CountingLearners, CountingWorkers, Killed, recipe_in, run, task, trajectory


class DrawingWorkers(CountingWorkers):
    """Rewards are drawn: a group that is sampled again has others."""

    async def sample_group(self, task: Task, index: int, size: int) -> Group:
        await super().sample_group(task, index, size)
        rewards = [self.random.random() for _ in range(size)]
        return Group(index, task, tuple(trajectory(task, r, self.versions_at_start[index]) for r in rewards))


class Mortal(CountingLearners):
    """Dies before its 6th update."""

    async def update(self, batch: Any) -> dict[str, float]:
        if self.updates == 5:
            raise Killed
        return await super().update(batch)


def rewards(folder: Path) -> dict[int, list[float]]:
    found: dict[int, list[float]] = {}
    for file in sorted((folder / "trajectories").glob("step_*.jsonl")):
        for row in read_jsonl(file):
            found.setdefault(row["group"], []).append(row["reward"])
    return found


@pytest.mark.parametrize("max_staleness", [0, 1, 3])
def test_what_was_sampled_before_a_kill_is_not_drawn_again(tmp_path: Path, max_staleness: int) -> None:
    recipe = recipe_in(tmp_path, f"max_staleness={max_staleness}", "checkpoint.every=2", "steps=8")
    before = DrawingWorkers(1)
    with pytest.raises(Killed):
        run(recipe, before, Mortal())
    sampled = {
        int(file.stem): [json.loads(line)["reward"] for line in file.read_text().splitlines()[1:]]
        for file in (recipe.run_dir / "groups").glob("*.jsonl")
    }
    after = DrawingWorkers(2)
    run(recipe, after, CountingLearners())
    consumed = rewards(recipe.run_dir)
    assert sorted(consumed) == list(range(8 * 2))
    kept = {index: rewards for index, rewards in sampled.items() if index >= 4 * 2}  # the checkpoint holds 4 steps
    assert len(kept) >= 2 * 2
    assert {index: consumed[index] for index in kept} == kept
    assert not set(after.versions_at_start) & set(kept)
    events = read_events(recipe.run_dir)
    assert {e["group"] for e in events if e["event"] == "recovered"} == set(kept)
    trained = [e for e in events if e["event"] == "trained"]
    assert [e["step"] for e in trained] == [1, 2, 3, 4, 5, 5, 6, 7, 8]
    assert trained[4]["groups"] == trained[5]["groups"] == [8, 9]


def journal(folder: Path, *overrides: str, resume_step: int = 0) -> Journal:
    recipe = recipe_in(folder, *overrides)
    recipe.run_dir.mkdir(parents=True, exist_ok=True)
    return Journal(recipe, resume_step)


def group(index: int = 3, version: int = 2) -> Group:
    one = task(index)
    return Group(index, one, tuple(trajectory(one, reward, version) for reward in (0.1, 1.0)))


def test_a_group_comes_back_as_it_was_and_a_damaged_one_does_not(tmp_path: Path) -> None:
    asyncio.run(journal(tmp_path).completed(group()))
    (file,) = (tmp_path / "run" / "groups").glob("*.jsonl")
    assert journal(tmp_path).recover(3, task(3)) == group()
    assert journal(tmp_path).recover(4, task(4)) is None
    assert journal(tmp_path).recover(3, task(4)) is None
    whole, again = file.read_bytes(), journal(tmp_path)
    for position in range(len(whole) - 1):  # all but the last line break
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        found = again.recover(3, task(3))
        assert found is None or found == group(), position
    file.write_bytes(whole[: len(whole) // 2])
    assert journal(tmp_path).recover(3, task(3)) is None


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return recipe_in(tmp_path_factory.mktemp("fuzz"))


@settings(max_examples=500, deadline=None)
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_no_group_file_and_no_event_log_breaks_a_run(fuzzed: Recipe, content: bytes) -> None:
    run_dir = fuzzed.run_dir
    (run_dir / "groups").mkdir(parents=True, exist_ok=True)
    (run_dir / "groups" / "000003.jsonl").write_bytes(content)
    (run_dir / "events.jsonl").write_bytes(content)
    again = Journal(fuzzed, 0)
    assert again.recover(3, task(3)) is None
    assert read_events(run_dir)[-1]["event"] == "started"
    again.close()


def test_under_another_learning_rate_only_what_the_checkpoint_covers_is_used(tmp_path: Path) -> None:
    asyncio.run(journal(tmp_path).completed(group(version=2)))
    assert journal(tmp_path, "learner.learning_rate=0.5", resume_step=1).recover(3, task(3)) is None
    assert journal(tmp_path, "learner.learning_rate=0.5", resume_step=2).recover(3, task(3)) == group(version=2)
    assert journal(tmp_path, "evaluation.every=7", resume_step=1).recover(3, task(3)) == group(version=2)


def test_lost_groups_are_not_kept(tmp_path: Path) -> None:
    asyncio.run(journal(tmp_path).completed(Group(3, task(3), ())))
    assert journal(tmp_path).recover(3, task(3)) is None


def test_groups_that_no_checkpoint_needs_are_removed(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path, "checkpoint.every=1", "steps=6", "max_staleness=1")
    run(recipe, random_workers(), CountingLearners())
    left = sorted(int(file.stem) for file in (recipe.run_dir / "groups").glob("*.jsonl"))
    assert left and left[0] >= 4 * 2  # the last but one checkpoint is of step 5


def random_workers() -> DrawingWorkers:
    return DrawingWorkers(random.randrange(1 << 30))


def test_a_torn_event_is_cut_off(tmp_path: Path) -> None:
    first = journal(tmp_path)
    first.published(1)
    with (tmp_path / "run" / "events.jsonl").open("a") as file:
        file.write('{"t": 1, "event": "publ')
    journal(tmp_path).published(2)
    assert [e["event"] for e in read_events(tmp_path / "run")] == ["started", "published", "started", "published"]

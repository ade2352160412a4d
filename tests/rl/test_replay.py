"""A replay gives the learner exactly what the run gave it, whatever was stale, replaced or killed."""

import dataclasses
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sandboxrl.data.errors import InputError
from sandboxrl.envs.trajectory import Group, Tokens
from sandboxrl.launch.__main__ import main
from sandboxrl.rl.config import save_recipe
from sandboxrl.rl.learner.batch import Batch, Row, build_batch
from sandboxrl.rl.replay import saved_groups
from sandboxrl.rl.reports.events import read_events
from tests.rl.reports.test_events import DrawingWorkers
from tests.rl.test_trainer import CountingLearners, Killed, recipe_in, run


class UnevenWorkers(DrawingWorkers):
    """Trajectories of many lengths with log-probabilities of many digits."""

    async def sample_group(self, task: Any, index: int, size: int) -> Group:
        group = await super().sample_group(task, index, size)
        version = self.versions_at_start[index]

        def uneven(one: Any) -> Any:
            num = self.random.randint(2, 40)
            logprobs = [0.0, *(-self.random.expovariate(1.0) for _ in range(num))]
            tokens = Tokens(range(num + 1), [0] + [1] * num, logprobs, [-1] + [version] * num)
            return dataclasses.replace(one, tokens=tokens, reward=0.5 if index in self.uninformative else one.reward)

        return dataclasses.replace(group, trajectories=tuple(map(uneven, group.trajectories)))


class Remembering(CountingLearners):
    """Keeps each batch; dies before the update `dies_at`."""

    def __init__(self, dies_at: int = -1) -> None:
        super().__init__()
        self.batches: list[Batch] = []
        self.dies_at = dies_at

    async def update(self, batch: Batch) -> dict[str, float]:
        if self.updates == self.dies_at:
            raise Killed
        self.batches.append(batch)
        return await super().update(batch)


def rows_of(batch: Batch) -> list[Row]:
    return [row for ranks in batch.minibatches for rank in ranks for row in rank]


@pytest.mark.parametrize("max_staleness", [0, 1, 2])
@pytest.mark.parametrize("killed", [False, True])
def test_the_learner_gets_what_it_got(tmp_path: Path, max_staleness: int, killed: bool) -> None:
    recipe = recipe_in(
        tmp_path, f"max_staleness={max_staleness}", "replace_uninformative=2", "checkpoint.every=2", "steps=6"
    )
    workers, others = UnevenWorkers(1), UnevenWorkers(2)
    workers.uninformative = others.uninformative = {1, 4}
    before, learners = Remembering(dies_at=5), Remembering()
    if killed:
        with pytest.raises(Killed):
            run(recipe, workers, before)
    run(recipe, others, learners)
    batches = (before.batches[:4] if killed else []) + learners.batches
    groups = dict(saved_groups(recipe.run_dir, 0, 6))
    trained = [e["groups"] for e in read_events(recipe.run_dir) if e["event"] == "trained"]
    assert not {1, 4} & {index for indices in trained for index in indices}
    assert len(batches) == len(groups) == 6
    for step, batch in enumerate(batches, start=1):
        again = build_batch(groups[step], recipe.loss, recipe.learner, step - 1)
        assert again.advantages == batch.advantages
        found, expected = rows_of(again), rows_of(batch)
        assert len(found) == len(expected) > 0
        for one, other in zip(found, expected, strict=True):
            for name, array in vars(other).items():
                assert np.array_equal(vars(one)[name], array), name
                assert np.asarray(vars(one)[name]).dtype == np.asarray(array).dtype, name


def test_what_a_replay_lacks_is_said(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path, "steps=4", "save_trajectories_every=2")
    run(recipe, UnevenWorkers(1), CountingLearners())
    with pytest.raises(InputError, match="step_000003.jsonl: not there; a replay needs save_trajectories_every: 1"):
        dict(saved_groups(recipe.run_dir, 1, 4))
    file = recipe.run_dir / "trajectories" / "step_000002.jsonl"
    whole = file.read_text()
    file.write_text(whole.replace('"mask"', '"musk"', 1))
    with pytest.raises(InputError, match="step_000002.jsonl is damaged"):
        dict(saved_groups(recipe.run_dir, 1, 2))
    lines = whole.splitlines(keepends=True)
    file.write_text("".join(lines[2:]))
    with pytest.raises(InputError, match=r"holds groups \[3\], but \[2, 3\] were trained on"):
        dict(saved_groups(recipe.run_dir, 1, 2))


def test_a_trajectory_file_with_any_change_is_read_or_refused(tmp_path: Path) -> None:
    rng = random.Random(0)
    recipe = recipe_in(tmp_path, "steps=1")
    run(recipe, UnevenWorkers(1), CountingLearners())
    file = recipe.run_dir / "trajectories" / "step_000001.jsonl"
    whole, num_refused = file.read_bytes(), 0
    for _ in range(2000):
        start = rng.randrange(len(whole))
        junk = rng.choice(
            [rng.randbytes(rng.randrange(4)), b"null", b"[]", b"{}", b"1e999", b'"x"', b"-1", b"99999999999"]
        )
        file.write_bytes(whole[:start] + junk + whole[start + rng.randrange(8) :])
        try:
            dict(saved_groups(recipe.run_dir, 0, 1))
        except InputError as error:
            num_refused += 1
            assert "step_000001.jsonl" in str(error)
    assert num_refused > 500


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--to-step", "3"], "--to-step: has no effect without --replay"),
        (["--replay", "--from-step", "9"], "there is no step to compute"),
        (["--replay", "name=run"], "a folder of its own"),
    ],
)
def test_a_replay_that_cannot_be_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    recipe = recipe_in(tmp_path, "steps=2")
    run(recipe, UnevenWorkers(1), CountingLearners())
    save_recipe(recipe, recipe.run_dir / "recipe.yaml")
    assert main(["train", str(recipe.run_dir), *words]) == 2
    assert said in capsys.readouterr().err

"""The learning rate over a run, and settings of it that have no meaning."""

import pytest

from sandboxrl.data.errors import InputError
from sandboxrl.rl.config import load_recipe
from sandboxrl.rl.learner.config import SCHEDULES, LearnerConfig, learning_rate


def rates(count: int, **settings) -> list[float]:
    config = LearnerConfig(learning_rate=2.0, **settings)
    return [learning_rate(config, update) for update in range(count)]


def test_each_schedule_by_hand():
    assert rates(3) == [2, 2, 2]
    assert rates(4, warmup_steps=2) == [1, 2, 2, 2]
    assert rates(6, schedule="linear", schedule_steps=4) == [2, 1.5, 1, 0.5, 0, 0]
    assert rates(6, schedule="linear", schedule_steps=4, schedule_floor=0.5) == [2, 1.75, 1.5, 1.25, 1, 1]
    assert rates(6, schedule="cosine", schedule_steps=4) == pytest.approx([2, 1 + 0.5**0.5, 1, 1 - 0.5**0.5, 0, 0])
    assert rates(7, schedule="linear", schedule_steps=6, warmup_steps=2) == [1, 2, 2, 1.5, 1, 0.5, 0]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_it_rises_then_never_rises_again_and_stays_above_the_floor(schedule):
    falling = {} if schedule == "constant" else {"schedule_steps": 40, "schedule_floor": 0.1}
    found = rates(60, schedule=schedule, warmup_steps=10, **falling)
    assert found[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert found[10:] == sorted(found[10:], reverse=True) and max(found) == 2
    assert min(found[10:]) == (2 if schedule == "constant" else pytest.approx(0.2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"schedule_floor": 0.1}, "has an effect only with schedule"),
        ({"schedule_steps": 5}, "has an effect only with schedule"),
        ({"schedule": "linear", "schedule_floor": 1.0}, r"\[0, 1\)"),
        ({"schedule": "linear", "schedule_steps": -1}, "must not be negative"),
        ({"schedule": "linear", "schedule_steps": 5, "warmup_steps": 5}, "leaves nothing"),
    ],
)
def test_a_schedule_without_a_meaning_is_refused(settings, message):
    with pytest.raises(InputError, match=message):
        LearnerConfig(**settings)


def test_a_run_knows_when_its_schedule_ends():
    recipe = load_recipe("recipes/tiny.yaml", ["learner.schedule=linear", "steps=10", "learner.minibatches=3"])
    assert recipe.learner_of_run.schedule_steps == 30 and recipe.learner.schedule_steps == 0
    given = load_recipe("recipes/tiny.yaml", ["learner.schedule=linear", "learner.schedule_steps=7"])
    assert given.learner_of_run.schedule_steps == 7
    constant = load_recipe("recipes/tiny.yaml", ["learner.schedule=constant", "learner.schedule_floor=0"])
    assert constant.learner_of_run == constant.learner
    with pytest.raises(InputError, match="leaves nothing"):
        load_recipe("recipes/tiny.yaml", ["learner.schedule=linear", "steps=2", "learner.warmup_steps=4"])
    with pytest.raises(ValueError, match="schedule_steps"):
        learning_rate(LearnerConfig(schedule="linear"), 0)

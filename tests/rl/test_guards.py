"""Each guard speaks once when its number goes wrong, names the file to look at, and is silent on a good run."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sandboxrl.data.errors import InputError
from sandboxrl.rl.guards import Guards, GuardsConfig, alarms, skipped_in_a_row
from sandboxrl.rl.trainer import RunFailed
from tests.rl.test_trainer import CountingLearners, CountingWorkers, recipe_in, run

NUM_STEPS = 40


def good_run(seed: int, num_steps: int = NUM_STEPS) -> list[dict[str, Any]]:
    """A run that learns: rewards rise to near 1, with the noise of few groups, and entropy falls."""
    rng, rows = random.Random(seed), []
    for step in range(1, num_steps + 1):
        at = step / num_steps
        finished = min(1.0, 0.8 + 0.2 * at + rng.gauss(0, 0.03))
        rows.append(
            {
                "step": step,
                "reward/mean": min(1.0, max(0.0, 0.3 + 0.6 * at + rng.gauss(0, 0.06))),
                "stop/finished": finished,
                "stop/max_turns": 1 - finished,
                "entropy/sampled": 0.3 * (1.2 - at) + rng.gauss(0, 0.01),
                "tokens/sampled": 60 + 60 * at + rng.gauss(0, 5),
                "mismatch/logprob_mean": 1e-6 * (1 + rng.random()),
                "groups/informative": min(1.0, max(0.0, 1.1 - 0.8 * at + rng.gauss(0, 0.1))),
                "source/math/lost": 0.02 * rng.random(),
                "lost/reward_correlation": rng.gauss(0, 0.1),
            }
        )
        if step % 10 == 0:
            rows.append({"step": step, "eval/heldout/score": 0.3 + 0.6 * at + rng.gauss(0, 0.02)})
    return rows


@pytest.mark.parametrize("seed", range(10))
def test_a_run_that_is_well_has_no_alarm_at_any_step(seed: int) -> None:
    rows = good_run(seed)
    assert not [
        alarms(rows[:num], GuardsConfig()) for num in range(len(rows) + 1) if alarms(rows[:num], GuardsConfig())
    ]


def set_to(key: str, value: float) -> Callable[[dict[str, Any]], None]:
    return lambda row: row.update({key: value})


def gives_up(row: dict[str, Any]) -> None:
    row.update({"stop/finished": 0.4, "stop/max_turns": 0.6})


@pytest.mark.parametrize(
    ("guard", "spoil", "said"),
    [
        ("reward", set_to("reward/mean", 0.2), "the mean reward has fallen from"),
        ("finish", gives_up, "of the trajectories finish"),
        ("entropy", set_to("entropy/sampled", 0.005), "the entropy of what is sampled"),
        ("length", set_to("tokens/sampled", 900.0), "900 sampled tokens"),
        ("mismatch", set_to("mismatch/logprob_mean", 1e-4), "engine and learner differ by 0.0001"),
        ("informative", set_to("groups/informative", 0.0), "only 0.0% of the groups"),
        ("stop/max_turns", gives_up, "max_turns ends 60%"),
        ("lost/math", set_to("source/math/lost", 0.4), "loses 40% of the trajectories of 'math'"),
        ("hacking", set_to("lost/reward_correlation", -0.8), "correlation -0.80"),
    ],
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_each_guard_speaks_once_and_knows_since_when(
    guard: str, spoil: Callable[[dict[str, Any]], None], said: str, seed: int
) -> None:
    rows = [row for row in good_run(seed) if "reward/mean" in row]
    for row in rows[30:]:
        spoil(row)
    guards, found = Guards(GuardsConfig(), []), []
    for num in range(1, len(rows) + 1):
        found += [(num, alarm) for alarm in guards.look(rows[:num]) if alarm.guard == guard]
    ((num, alarm),) = found
    assert 30 < num <= 36 and 29 <= alarm.good_until < num
    assert f"trajectories/step_{num:06d}.jsonl" in alarm.message
    assert said in {a.guard: a.message for a in alarms(rows, GuardsConfig())}[guard]
    assert not [a for a in Guards(GuardsConfig(), rows[:num]).look(rows[:num]) if a.guard == guard]
    off = GuardsConfig(**{guard.split("/")[0]: 0.0})
    assert guard not in {a.guard for a in alarms(rows, off)}


def test_a_score_that_falls_off_is_named_with_the_step_that_was_best() -> None:
    rows = [{"step": step, "eval/heldout/score": score} for step, score in ((0, 0.3), (10, 0.909), (20, 0.706))]
    assert not alarms(rows[:2], GuardsConfig())
    (alarm,) = alarms(rows, GuardsConfig())
    assert alarm.good_until == 10 and "from 0.909 (step 10) to 0.706" in alarm.message
    assert "trajectories/eval_heldout_000020.jsonl" in alarm.message


def test_steps_that_were_skipped_are_counted_back_from_the_last() -> None:
    rows = [{"step": i, "reward/mean": 0.0, "steps_skipped": float(skipped)} for i, skipped in enumerate([1, 0, 1, 1])]
    assert skipped_in_a_row(rows) == 2 and skipped_in_a_row(rows[:2]) == 0 and skipped_in_a_row(rows[:1]) == 1
    assert skipped_in_a_row([]) == 0


class NeverFinite(CountingLearners):
    async def update(self, batch: Any) -> dict[str, float]:
        return await super().update(batch) | {"steps_skipped": 1.0}


def test_a_run_of_skipped_steps_stops(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="3 steps in a row were skipped"):
        run(recipe_in(tmp_path), CountingWorkers(), NeverFinite())


@pytest.mark.parametrize("action", ["warn", "stop"])
def test_an_alarm_warns_and_stops_when_told_to(tmp_path: Path, action: str) -> None:
    recipe = recipe_in(tmp_path, f"guards.action={action}", "guards.window=2", "steps=8", "checkpoint.every=2")
    workers = CountingWorkers()
    workers.uninformative = set(range(8, 100))  # from the fifth step on
    if action == "warn":
        run(recipe, workers, CountingLearners())
    else:
        with pytest.raises(RunFailed, match="guards.informative: .* from before it is of step 4"):
            run(recipe, workers, CountingLearners())
    log = (recipe.run_dir / "log.txt").read_text()
    assert log.count("warning: guards.informative") == 1 and "is of step 4" in log


def test_a_limit_below_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="guards.reward"):
        GuardsConfig(reward=-1)
    with pytest.raises(InputError, match="guards.window"):
        GuardsConfig(window=0)

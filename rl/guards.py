"""Collapse is noticed: what a run's own numbers say when it goes wrong.

    guards = Guards(recipe.guards, rows)      rows of metrics.jsonl, oldest first
    for alarm in guards.look(rows): ...       after each step and evaluation: alarm.message, alarm.good_until

A guard compares the mean of the last `window` steps with the same run's best, or first, such mean. It speaks when that
begins to be so, not again at every step, and once more if it has been well in between. It knows nothing but the rows,
so a run that goes on after a kill has the alarms it would have had.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sandboxrl.data.errors import InputError

POLICY_STOPS = ("max_turns", "max_tokens", "timeout", "sandbox_ended")
LIMITS = (
    *("not_finite", "evaluation", "reward", "finish", "entropy", "length", "mismatch", "informative", "stop", "lost"),
    "hacking",
)
FINISHED = ("stop/finished", "stop/answered")


@dataclass(frozen=True)
class GuardsConfig:
    """The `guards:` part of a recipe. A limit of 0 turns its guard off."""

    action: Literal["warn", "stop"] = "warn"
    """`stop`: the first alarm ends the run, and names the last checkpoint from before it."""
    window: int = 5
    """Steps that are averaged; nothing is judged before twice as many."""
    not_finite: int = 3
    """The run stops after so many steps in a row that were skipped because loss or gradient was not finite."""
    evaluation: float = 0.15
    """Alarm when the score on an evaluation set has lost this share of its best."""
    reward: float = 0.3
    """Alarm when the mean reward has lost this share of its best."""
    finish: float = 0.2
    """Alarm when the share of trajectories that finish is this much below its best."""
    entropy: float = 0.05
    """Alarm when the entropy of what is sampled is below this share of what it was at first."""
    length: float = 4.0
    """Alarm when trajectories hold so many times the sampled tokens they held at first."""
    mismatch: float = 10.0
    """Alarm when engine and learner differ so many times as much as at first (`mismatch/logprob_mean`)."""
    informative: float = 0.05
    """Alarm when a smaller share of groups has rewards that differ."""
    stop: float = 0.3
    """Alarm when the share of trajectories that use up one of their limits has grown by this much."""
    lost: float = 0.1
    """Alarm when the machine loses this share of the trajectories of one source, and more than at first."""
    hacking: float = 0.4
    """Alarm when the machine loses trajectories of groups with low rewards rather: at this correlation."""

    def __post_init__(self) -> None:
        if self.window < 1:
            raise InputError(f"guards.window: must be at least 1, not {self.window}")
        for name in LIMITS:
            if not getattr(self, name) >= 0:
                raise InputError(f"guards.{name}: must be at least 0, not {getattr(self, name)}")


@dataclass(frozen=True)
class Alarm:
    guard: str
    """The key of the guard; with the source or limit it is about."""
    message: str
    good_until: int
    """The last step of which the guard had nothing to say against."""


class Guards:
    """The guards of one run, from the rows (of metrics.jsonl) that it has already: what was said of those is known."""

    def __init__(self, config: GuardsConfig, rows: Sequence[Mapping[str, Any]]) -> None:
        self._config = config
        self._known = {alarm.guard for alarm in alarms(rows, config)}

    def look(self, rows: Sequence[Mapping[str, Any]]) -> list[Alarm]:
        """What is wrong now and was not at the last look."""
        found = alarms(rows, self._config)
        new = [alarm for alarm in found if alarm.guard not in self._known]
        self._known = {alarm.guard for alarm in found}
        return new


def skipped_in_a_row(rows: Sequence[Mapping[str, Any]]) -> int:
    """How many of the last steps made no update because something was not finite."""
    steps = [row for row in rows if "reward/mean" in row]
    return next((i for i, row in enumerate(reversed(steps)) if not row.get("steps_skipped")), len(steps))


def alarms(rows: Sequence[Mapping[str, Any]], config: GuardsConfig) -> list[Alarm]:
    """Everything that is wrong at the last of `rows`, oldest first, those of evaluations among them."""
    steps = [row for row in rows if "reward/mean" in row]
    found = list(_of_evaluations(rows, config))
    if len(steps) >= 2 * config.window:
        found += [*_of_rewards(steps, config), *_of_tokens(steps, config), *_of_the_machine(steps, config)]
    return found


def _of_evaluations(rows: Sequence[Mapping[str, Any]], config: GuardsConfig) -> Iterator[Alarm]:
    keys = {key for row in rows for key in row if key.startswith("eval/") and key.endswith("/score")}
    for key in sorted(keys) if config.evaluation else ():
        scores = [(float(row[key]), int(row["step"])) for row in rows if key in row]
        best, good_until = max(scores)
        last, step = scores[-1]
        if last < best * (1 - config.evaluation):
            name = key.split("/")[1]
            told = f"the score on {name!r} has fallen from {best:.3f} (step {good_until}) to {last:.3f}"
            yield Alarm(f"evaluation/{name}", _told("evaluation", told, f"eval_{name}", step), good_until)


def _of_rewards(steps: Sequence[Mapping[str, Any]], config: GuardsConfig) -> Iterator[Alarm]:
    means = _Means(steps, config.window)
    rewards, finished = means.of(_value("reward/mean")), means.of(_finished)
    informative = means.of(_value("groups/informative"))
    floor = max(rewards) * (1 - config.reward)
    if config.reward and rewards[-1] < floor:
        told = f"the mean reward has fallen from {max(rewards):.3g} to {rewards[-1]:.3g}"
        yield means.alarm("reward", told, [value >= floor for value in rewards])
    floor = max(finished) - config.finish
    if config.finish and finished[-1] < floor:
        told = f"{finished[-1]:.0%} of the trajectories finish, {max(finished):.0%} did before"
        yield means.alarm("finish", told, [value >= floor for value in finished])
    if informative[-1] < config.informative:
        told = f"only {informative[-1]:.1%} of the groups have rewards that differ: there is little to learn from"
        yield means.alarm("informative", told, [value >= config.informative for value in informative])
    for stop in POLICY_STOPS:
        shares = means.of(_value(f"stop/{stop}"))
        if config.stop and shares[-1] > shares[0] + config.stop:
            told = f"{stop} ends {shares[-1]:.0%} of the trajectories, {shares[0]:.0%} at first"
            yield means.alarm(f"stop/{stop}", told, [value <= shares[0] + config.stop for value in shares])


def _of_tokens(steps: Sequence[Mapping[str, Any]], config: GuardsConfig) -> Iterator[Alarm]:
    means = _Means(steps, config.window)
    entropy = means.of(_value("entropy/sampled"))
    if entropy[-1] < (floor := config.entropy * entropy[0]):
        told = f"the entropy of what is sampled has fallen from {entropy[0]:.3g} to {entropy[-1]:.3g} nats per token"
        yield means.alarm("entropy", told, [value >= floor for value in entropy])
    lengths = means.of(_value("tokens/sampled"))
    if config.length and lengths[-1] > (top := config.length * lengths[0]) > 0:
        told = f"a trajectory holds {lengths[-1]:.0f} sampled tokens, {lengths[0]:.0f} at first"
        yield means.alarm("length", told, [value <= top for value in lengths])
    differences = means.of(_value("mismatch/logprob_mean"))
    if config.mismatch and differences[-1] > (top := config.mismatch * differences[0]) > 0:
        told = f"engine and learner differ by {differences[-1]:.2g} a token in the mean, {differences[0]:.2g} at first"
        yield means.alarm("mismatch", told, [value <= top for value in differences])


def _of_the_machine(steps: Sequence[Mapping[str, Any]], config: GuardsConfig) -> Iterator[Alarm]:
    means = _Means(steps, config.window)
    recent = steps[-config.window :]
    for source in sorted({key.split("/")[1] for row in recent for key in row if _is_lost_share(key)}):
        shares = means.of(_value(f"source/{source}/lost"))
        if config.lost and shares[-1] > max(config.lost, 1.5 * shares[0]):
            told = f"the machine loses {shares[-1]:.0%} of the trajectories of {source!r}, {shares[0]:.0%} at first"
            yield means.alarm(f"lost/{source}", told, [value <= config.lost for value in shares])
    correlations = means.of(_value("lost/reward_correlation"))
    if config.hacking and correlations[-1] < -config.hacking:
        told = f"groups with low rewards lose more trajectories to the machine: correlation {correlations[-1]:.2f}"
        yield means.alarm("hacking", told, [value >= -config.hacking for value in correlations])


class _Means:
    """Moving averages of one run."""

    def __init__(self, steps: Sequence[Mapping[str, Any]], window: int) -> None:
        self._steps, self._window = steps, window

    def of(self, measure: Callable[[Mapping[str, Any]], float]) -> list[float]:
        """The mean of each `window` steps that follow one another, the first of them first."""
        total = [0.0, *itertools.accumulate(measure(row) for row in self._steps)]
        return [(total[i + self._window] - total[i]) / self._window for i in range(len(total) - self._window)]

    def alarm(self, guard: str, told: str, well: Sequence[bool]) -> Alarm:
        """`well` says of each mean whether the guard was content with it."""
        last_good = max((i for i, content in enumerate(well) if content), default=0)
        good_until = int(self._steps[last_good + self._window - 1]["step"])
        return Alarm(guard, _told(guard.split("/")[0], told, "step", int(self._steps[-1]["step"])), good_until)


def _told(key: str, told: str, kind: str, step: int) -> str:
    return f"guards.{key}: {told}; look at trajectories/{kind}_{step:06d}.jsonl"


def _value(key: str) -> Callable[[Mapping[str, Any]], float]:
    return lambda row: float(row.get(key) or 0.0)


def _finished(row: Mapping[str, Any]) -> float:
    return sum(float(row.get(key) or 0.0) for key in FINISHED)


def _is_lost_share(key: str) -> bool:
    return key.startswith("source/") and key.endswith("/lost")

"""Group-relative policy optimization for a model that acts on a computer, whole, on one page.

    tasks -> groups of trajectories -> rewards -> advantages -> gradient -> new weights -> (again)
              `-- Workers (vLLM) --'            `-- Learners (FSDP2) --'

Synchronous and asynchronous training are the same loop. `max_staleness` is how many updates the rollout workers may
run ahead of the learner; at 0 every token is on-policy. Groups are consumed in the order they were started and new ones
start only after new weights are published, so the age of every group is bounded by construction; the bound is checked
on every token against the engine's own weight versions.

This file never names Ray, torch or vLLM: `Workers` and `Learners` are faces over the actors (`rl/cluster/`).
"""

import asyncio
import statistics
import time
from collections import deque
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np

from sandboxrl.data.stream import TaskStream
from sandboxrl.data.task import Task
from sandboxrl.envs.trajectory import Group, Tokens, Trajectory
from sandboxrl.rl.config import Recipe
from sandboxrl.rl.grpo import informative
from sandboxrl.rl.guards import Guards, skipped_in_a_row
from sandboxrl.rl.hooks import Hooks
from sandboxrl.rl.learner.batch import Batch, build_batch
from sandboxrl.rl.learner.checkpoint import Checkpoints
from sandboxrl.rl.reports.events import Journal
from sandboxrl.rl.reports.run_folder import Log


class RunFailed(Exception):
    """The run cannot go on; the message says why and what to look at. Exit code 1."""


class LearnerLost(RunFailed):
    """The machine has taken a learner rank. The run goes on from the last checkpoint with fresh ones, a few times."""


class Workers(Protocol):
    async def sample_group(self, task: Task, index: int, size: int) -> Group:
        """Never raises for a lost trajectory; the group is then smaller."""
        ...

    async def evaluate(self, tasks: Sequence[Task], step: int) -> list[Trajectory]:
        """One trajectory of each task, in their order."""
        ...

    async def probe(self) -> list[Tokens]:
        """A few tokens of every worker under its present weights: the learner checks them, however stale the groups
        of the next step are."""
        ...


class Learners(Protocol):
    async def update(self, batch: Batch) -> Mapping[str, float]:
        """One batch, one optimizer step (or `learner.minibatches` of them). Returns metrics."""
        ...

    async def learned(self) -> Mapping[int, np.ndarray]:
        """Of the last batch: place of a trajectory, counted over its groups -> the learner's log-probabilities, before
        the update, of its sampled tokens, float32. Without those that train nothing."""
        ...

    async def publish(self, workers: Workers, version: int) -> None:
        """Every worker samples with the learner's weights, called `version`, from here on."""
        ...

    async def save(self, path: str) -> Awaitable[None]:
        """See `Saver` in sandboxrl.rl.learner.checkpoint: training goes on while it is written."""
        ...


@dataclass
class InFlight:
    """Groups being sampled, oldest first."""

    workers: Workers
    tasks: TaskStream
    group_size: int
    journal: Journal
    num_started: int = 0
    waiting: deque[tuple[int, Task, asyncio.Task[Group]]] = field(default_factory=deque)

    def start(self, num_groups: int) -> None:
        for _ in range(num_groups):
            self._start(self.num_started, next(self.tasks))
            self.num_started += 1

    def _start(self, index: int, task: Task) -> None:
        self.waiting.append((index, task, asyncio.create_task(self._sample(index, task))))

    async def _sample(self, index: int, task: Task) -> Group:
        """What was sampled before a kill is used, not drawn again."""
        if known := self.journal.recover(index, task):
            return known
        self.journal.dispatched(index, task)
        group = await self.workers.sample_group(task, index, self.group_size)
        keeping = asyncio.ensure_future(self.journal.completed(group))
        try:
            await asyncio.shield(keeping)
        finally:
            await keeping  # also where the run goes back to a checkpoint just now
        return group

    async def oldest(self) -> Group:
        """Consume the oldest group; it stays in flight until it is complete."""
        group = await self.waiting[0][2]
        self.waiting.popleft()
        return group

    async def cancel(self) -> None:
        for _, _, sampling in self.waiting:
            sampling.cancel()
        await asyncio.gather(*(sampling for _, _, sampling in self.waiting), return_exceptions=True)
        self.waiting.clear()

    def state(self) -> dict[str, Any]:
        """What a resumed run needs to start the same groups again."""
        pending = [[index, task.to_json()] for index, task, _ in self.waiting]
        return {"num_started": self.num_started, "pending": pending, "tasks": self.tasks.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.tasks.load_state(state["tasks"])
        self.num_started = state["num_started"]
        for index, task in state["pending"]:
            self._start(index, Task.from_json(task))


@dataclass(frozen=True)
class Work:
    """What a run trains on and is measured by."""

    tasks: TaskStream
    eval_sets: Mapping[str, Sequence[Task]]
    hooks: Hooks = field(default_factory=lambda: Hooks({}))
    scores: dict[int, dict[str, float]] = field(default_factory=dict)
    """step -> set -> score, those of an earlier part of the run included."""


async def train(
    recipe: Recipe, work: Work, workers: Workers, learners: Learners, checkpoints: Checkpoints, log: Log
) -> str:
    """Run the recipe from the last checkpoint (or the start) to its last step. Returns why a hook stopped it before
    that, else nothing."""
    step, state = checkpoints.latest()
    await learners.publish(workers, step)
    probes = asyncio.create_task(workers.probe())
    in_flight = InFlight(workers, work.tasks, recipe.group_size, log.journal)
    guards, stop = Guards(recipe.guards, log.rows), ""
    if state:
        in_flight.load_state(state)
    try:
        while True:
            if wants_evaluation(recipe, step):
                await evaluate(recipe, work, workers, log, step)
                await checkpoints.settled()
                if best := best_step(work.scores, recipe.checkpoint.best, checkpoints.steps()):
                    checkpoints.protect("best", best)
                check_guards(recipe, guards, log, checkpoints)
            if stop or step >= recipe.steps:
                await checkpoints.settled()
                return stop
            clock = log.clock()
            in_flight.start(recipe.groups_per_step * (1 + recipe.max_staleness) - len(in_flight.waiting))
            groups = await collect(recipe, in_flight, step, log)  # 1. wait for the oldest groups
            clock.lap("time/rollout_s")
            trajectories, kept_kv = [g.trajectories for g in groups], recipe.engine.keep_kv
            batch = build_batch(trajectories, recipe.loss, recipe.learner, step, await probes, kept_kv)
            stats = await learners.update(batch)  # 2. advantages, loss, one optimizer step
            clock.lap("time/learn_s")
            check_agreement(recipe, stats, step)
            step += 1
            await learners.publish(workers, step)  # 3. publish
            log.journal.published(step)
            probes = asyncio.create_task(workers.probe())
            clock.lap("time/sync_s")
            row = log.measure(step, groups, batch, stats, clock)  # 4. report
            columns, stop = await work.hooks(step, groups, row)
            log.step(row | columns, groups, batch, await learners.learned())
            if stop or wants_checkpoint(recipe, step):
                state = in_flight.state()
                await checkpoints.save(step, state, learners, partial(log.journal.saved, step, state))  # 5. survive
            check_guards(recipe, guards, log, checkpoints)
    finally:
        probes.cancel()
        await in_flight.cancel()
        await checkpoints.close()


async def collect(recipe: Recipe, in_flight: InFlight, step: int, log: Log) -> list[Group]:
    """The groups of one step, in the order they were started.

    A group that the machine lost, or that is older than `max_staleness`, is replaced. One whose rewards are all equal
    is replaced too, up to `replace_uninformative` of them a step.
    """
    groups: list[Group] = []
    num_replaced = num_lost_in_a_row = 0
    while len(groups) < recipe.groups_per_step:
        group = await in_flight.oldest()
        log.consumed(group)
        if len(group.rewards) < min(2, recipe.group_size):
            num_lost_in_a_row += 1
            if num_lost_in_a_row >= recipe.max_lost_groups:
                raise RunFailed(
                    f"{num_lost_in_a_row} groups in a row were lost to the machine; the last error: {log.last_error}"
                )
            in_flight.start(1)
            continue
        num_lost_in_a_row = 0
        if group.age(step) > recipe.max_staleness:
            log.too_old(group)
            in_flight.start(1)
        elif not informative(group.rewards) and num_replaced < recipe.replace_uninformative:
            num_replaced += 1
            log.uninformative(group)
            in_flight.start(1)
        else:
            groups.append(group)
    return groups


async def evaluate(recipe: Recipe, work: Work, workers: Workers, log: Log, step: int) -> None:
    """Score every evaluation set that is not scored yet, with the weights that the workers have now."""
    for name, tasks in work.eval_sets.items():
        if name in work.scores.get(step, {}):
            continue
        started = time.monotonic()
        repeated = [task for task in tasks for _ in range(recipe.evaluation.repeats)]
        log.evaluating(name, len(repeated))
        trajectories = await workers.evaluate(repeated, step)
        rewards = [t.reward for t in trajectories if t.reward is not None]
        if not rewards:
            raise RunFailed(f"evaluation of {name!r}: every trajectory was lost to the machine ({log.last_error})")
        score = work.scores.setdefault(step, {})[name] = statistics.fmean(rewards)
        log.evaluation(name, step, score, repeated, trajectories, time.monotonic() - started)


def best_step(scores: Mapping[int, Mapping[str, float]], name: str, steps: Sequence[int]) -> int:
    """Of `steps`, the one with the highest score on the evaluation set `name`; the later of two equals; 0: none."""
    known = {step: found[name] for step, found in scores.items() if step in steps and name in found}
    return max(known, key=lambda step: (known[step], step), default=0)


def check_agreement(recipe: Recipe, stats: Mapping[str, float], step: int) -> None:
    """Engine and learner must give a token the same probability, or the gradient is that of another policy."""
    name, bound = recipe.logprob_bound
    if not stats[name] <= bound:  # so that a difference that is not a number stops the run too
        raise RunFailed(
            f"step {step}: engine and learner disagree on sampled tokens: {name} is {stats[name]:.3g}, more than "
            f"{bound:g}: the engine does not sample with the learner's weights"
        )


def check_guards(recipe: Recipe, guards: Guards, log: Log, checkpoints: Checkpoints) -> None:
    """Say what begins to go wrong; stop the run where the recipe says so, or where it makes no more updates."""
    limit = recipe.guards.not_finite
    if limit and skipped_in_a_row(log.rows) >= limit:
        raise RunFailed(f"{limit} steps in a row were skipped: loss or gradient was not finite (guards.not_finite)")
    for alarm in guards.look(log.rows):
        good = max((step for step in checkpoints.steps() if step <= alarm.good_until), default=0)
        log.say(f"  warning: {alarm.message}; the last checkpoint from before it is of step {good}")
        if recipe.guards.action == "stop":
            raise RunFailed(f"{alarm.message}; the last checkpoint from before it is of step {good}")


def wants_evaluation(recipe: Recipe, step: int) -> bool:
    """Before the first update, every so many steps, and after the last."""
    if step == 0:
        return recipe.evaluation.before
    return (step == recipe.steps and recipe.evaluation.after) or due(step, recipe.evaluation.every)


def wants_checkpoint(recipe: Recipe, step: int) -> bool:
    """Every so many steps and after the last; where the best is kept, whatever is evaluated."""
    best = bool(recipe.checkpoint.best) and wants_evaluation(recipe, step)
    return best or step == recipe.steps or due(step, recipe.checkpoint.every)


def due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0

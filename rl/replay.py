"""The learner's side of a run once more, from the trajectories it has saved: no engine, no sandbox, the same numbers.

    replayed = await replay(recipe, run_dir, model_dir, first=0, last=40, say=print)

Starts from the run's checkpoint of `first` (0: the model it started from), gives the learner the groups of each step in
the order in which it was given them, and compares loss and gradient norm with those of `metrics.jsonl`, and the weights
at the end with those of the run's checkpoint of `last`, where there is one. On one kind of processor and with the same
`learner` all are equal bit for bit, at any staleness. With another loss or learning rate it is a debugger's tool.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from sandboxrl.data.errors import InputError
from sandboxrl.data.files import read_jsonl, write_jsonl
from sandboxrl.envs.trajectory import Trajectory
from sandboxrl.rl.cluster.connect import connect
from sandboxrl.rl.cluster.learners import RayLearners
from sandboxrl.rl.cluster.placement import Placement
from sandboxrl.rl.config import Recipe
from sandboxrl.rl.engine.config import on_cpu
from sandboxrl.rl.learner.batch import build_batch
from sandboxrl.rl.learner.checkpoint import Checkpoints
from sandboxrl.rl.reports.events import read_events
from sandboxrl.rl.watch import Watch

COMPARED = ("loss", "grad_norm")
FIELDS = {field.name for field in dataclasses.fields(Trajectory)}


@dataclass(frozen=True)
class Replayed:
    rows: list[dict[str, float]]
    """Of each step: what the learner said."""
    differing: list[int]
    """Steps whose loss or gradient norm is not the recorded one."""
    weights_equal: bool | None
    """Whether the weights at the end are those of the run's checkpoint; None: it has none of that step."""


async def replay(
    recipe: Recipe, run_dir: Path, model_dir: str, first: int, last: int, say: Callable[[str], None]
) -> Replayed:
    """Compute steps `first` + 1 to `last` again under `recipe`; `replay.jsonl` in its run folder holds what came out,
    and its checkpoint of `last` the weights. Raises InputError where the run has not kept what that needs."""
    groups = dict(saved_groups(run_dir, first, last))
    recorded = {row["step"]: row for row in read_jsonl(run_dir / "metrics.jsonl") if "reward/mean" in row}
    kept = Checkpoints(run_dir)
    if first and (first not in kept.steps() or (problem := kept.problem(first))):
        raise InputError(problem if first in kept.steps() else f"{run_dir} has no checkpoint of step {first}")
    recipe.run_dir.mkdir(parents=True, exist_ok=True)
    watch = Watch(recipe.watch, recipe.run_dir, say)
    rows, differing = [], []
    connect(recipe.cluster)
    learners = RayLearners(recipe, model_dir, watch, Placement(recipe, not on_cpu()))
    try:
        await learners.start(first, kept.folder(first))
        for step in range(first + 1, last + 1):
            batch = build_batch(groups[step], recipe.loss, recipe.learner, step - 1, kept_kv=recipe.engine.keep_kv)
            stats = await learners.update(batch)
            rows.append({"step": step, **stats})
            before = recorded.get(step, {})
            equal = all(stats.get(key) == before.get(key) for key in COMPARED)
            differing += [] if equal else [step]
            say(f"step {step:>4}  {_beside(stats, before)}  {'equal' if equal else 'DIFFERS'}")
        write_jsonl(recipe.run_dir / "replay.jsonl", rows)
        found = await learners.digest()
        made = Checkpoints(recipe.run_dir)
        await made.save(last, {"num_started": 0, "pending": []}, learners)
        await made.settled()
        weights_equal = None
        if last in kept.steps() and not kept.problem(last):
            await learners.restart(last, kept.folder(last))
            weights_equal = found == await learners.digest()
        return Replayed(rows, differing, weights_equal)
    finally:
        await learners.stop()
        ray.shutdown()


def saved_groups(run_dir: Path, first: int, last: int) -> Iterator[tuple[int, list[list[Trajectory]]]]:
    """(step, groups of its batch) of each step after `first`. Raises InputError for a step whose trajectories are not
    all there, or are not what the event log says was trained on."""
    noted = [event for event in read_events(run_dir) if event["event"] == "trained" and "step" in event]
    trained = {str(event["step"]): event.get("groups") for event in noted}
    for step in range(first + 1, last + 1):
        file = run_dir / "trajectories" / f"step_{step:06d}.jsonl"
        if not file.is_file():
            raise InputError(f"{file}: not there; a replay needs save_trajectories_every: 1")
        found: dict[int, list[Trajectory]] = {}
        try:
            for row in read_jsonl(file):
                one = Trajectory.from_dict({key: value for key, value in row.items() if key in FIELDS})
                found.setdefault(int(row["group"]), []).append(one)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise InputError(f"{file} is damaged: {type(error).__name__}: {error}") from None
        if str(step) in trained and list(found) != (groups := trained[str(step)]):
            raise InputError(f"{file} holds groups {list(found)}, but {groups} were trained on")
        yield step, list(found.values())


def _beside(stats: Mapping[str, float], before: Mapping[str, Any]) -> str:
    parts = [f"{key} {json.dumps(stats.get(key))} (recorded {json.dumps(before.get(key))})" for key in COMPARED]
    return "  ".join(parts)

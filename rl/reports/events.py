"""What a run did, in order, and the groups it has sampled: nothing that was sampled is lost to a kill.

    runs/NAME/events.jsonl           one object per line: `t` (Unix time), `event`, and what it is about
    runs/NAME/groups/000123.jsonl    a group that is sampled: a line about it, then one trajectory per line

| event | when | also holds |
|---|---|---|
| `started` | the run begins, or goes on | `step` |
| `dispatched` | a group's sampling begins | `group`, `task`, `version` |
| `completed` | a group is sampled | `group`, `versions` (oldest and newest of its tokens), `trajectories` |
| `recovered` | a group that was sampled before a kill is taken from its file | `group` |
| `discarded` | a group is not trained on | `group`, `why` |
| `trained` | an update was made | `step`, `groups` in the order of the batch |
| `published` | the workers sample with new weights | `version` |
| `saved` | a checkpoint is whole | `step` |

A run that goes on from a checkpoint consumes the groups of these files before it samples any: on processors whose
products round with the batch a group that is drawn again could differ. The file of a group goes when the checkpoint
before the newest no longer needs it.
"""

import asyncio
import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sandboxrl.data.task import Task
from sandboxrl.envs.trajectory import Group, Trajectory
from sandboxrl.rl.config import Recipe

EVENTS = "events.jsonl"
GROUPS = "groups"
LINEAGE = (
    *("seed", "steps", "mode", "prompt", "tool_set", "groups_per_step", "group_size", "max_staleness"),
    *("replace_uninformative", "model", "tasks", "limits", "sampling", "grader", "loss", "learner"),
)
"""Keys of a recipe that decide which groups are sampled and which weights come out."""


class Journal:
    """The events and groups of one run folder. `resume_step` is the checkpoint it goes on from."""

    def __init__(self, recipe: Recipe, resume_step: int) -> None:
        self._file, self._groups = recipe.run_dir / EVENTS, recipe.run_dir / GROUPS
        self._groups.mkdir(parents=True, exist_ok=True)
        self._lineage, self._group_size = lineage(recipe), recipe.group_size
        self._resume_step = self._version = resume_step
        self.in_flight: dict[int, tuple[str, float]] = {}
        """Groups that are being sampled: task id, and since when (monotonic)."""
        self.last: dict[str, float] = {}
        """Unix time of the last event of each kind."""
        self._needed_from = 0
        """The first group that the newest checkpoint does not hold as consumed."""
        _cut_torn_line(self._file)
        self._stream = self._file.open("a", encoding="utf-8")
        self.note("started", step=resume_step)

    def note(self, event: str, **about: Any) -> None:
        self.last[event] = time.time()
        self._stream.write(json.dumps({"t": round(self.last[event], 3), "event": event, **about}) + "\n")
        self._stream.flush()

    def rewind(self, step: int) -> None:
        """The run goes on from the checkpoint of `step` once more."""
        self._resume_step = self._version = step
        self.in_flight.clear()
        self.note("started", step=step)

    def dispatched(self, index: int, task: Task) -> None:
        self.in_flight[index] = (task.id, time.monotonic())
        self.note("dispatched", group=index, task=task.id, version=self._version)

    async def completed(self, group: Group) -> None:
        """Keep the group, whole or not at all. One that the machine lost is not kept: a run that stopped because of
        such groups must not find them again."""
        self.in_flight.pop(group.index, None)
        if len(group.rewards) > 1 or len(group.rewards) == self._group_size:
            await asyncio.to_thread(self._keep, group)
        self.note("completed", group=group.index, versions=_versions(group), trajectories=len(group.trajectories))

    def recover(self, index: int, task: Task) -> Group | None:
        """The group if it was sampled before, for the same task, and is still what this run would sample. One that is
        damaged is sampled again."""
        try:
            about, *lines = self._path(index).read_bytes().splitlines()
            head = json.loads(about)
            group = Group(index, task, tuple(Trajectory.from_dict(json.loads(line)) for line in lines))
            known = (head["lineage"], head["group"], head["task"], head["sha256"])
            newest = _versions(group)[1]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            return None
        same = known[1:] == (index, _digest(task.to_json().encode()), _digest(b"\n".join(lines)))
        # what weights of another lineage than this one's have drawn is of use only up to the checkpoint they share
        if not same or (known[0] != self._lineage and newest > self._resume_step):
            return None
        self.note("recovered", group=index)
        return group

    def discarded(self, group: Group, why: str) -> None:
        self.note("discarded", group=group.index, why=why)

    def trained(self, step: int, groups: Sequence[Group]) -> None:
        self.note("trained", step=step, groups=[group.index for group in groups])

    def published(self, version: int) -> None:
        self._version = version
        self.note("published", version=version)

    def saved(self, step: int, state: Mapping[str, Any]) -> None:
        """The checkpoint of `step` is whole; groups that the one before it holds as consumed are needed no more."""
        for file in self._groups.glob("*.jsonl"):
            if file.stem.isdecimal() and int(file.stem) < self._needed_from:
                file.unlink()
        self._needed_from = min((index for index, _ in state["pending"]), default=state["num_started"])
        self.note("saved", step=step)

    @property
    def version(self) -> int:
        """Of the weights that were published last."""
        return self._version

    def close(self) -> None:
        self._stream.close()

    def _keep(self, group: Group) -> None:
        lines = [json.dumps(one.to_dict()).encode() for one in group.trajectories]
        head = {
            "group": group.index,
            "task": _digest(group.task.to_json().encode()),
            "lineage": self._lineage,
            "sha256": _digest(b"\n".join(lines)),
        }
        path = self._path(group.index)
        partial = path.with_name(f".{path.name}.partial")
        partial.write_bytes(b"\n".join([json.dumps(head).encode(), *lines]) + b"\n")
        partial.replace(path)

    def _path(self, index: int) -> Path:
        return self._groups / f"{index:06d}.jsonl"


def lineage(recipe: Recipe) -> str:
    """A digest of all that decides which groups a run samples and which weights come out."""
    whole = dataclasses.asdict(recipe)
    return _digest(json.dumps({key: whole[key] for key in LINEAGE}, sort_keys=True, default=str).encode())


def read_events(run_dir: Path) -> list[dict[str, Any]]:
    """The events of a run, oldest first; a line that is not one is left out."""
    file = run_dir / EVENTS
    found = []
    for line in file.read_bytes().splitlines() if file.is_file() else []:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and isinstance(event.get("event"), str):
            found.append(event)
    return found


def _versions(group: Group) -> list[int]:
    """The oldest and the newest weight version that drew one of its tokens; [-1, -1] where not one was drawn."""
    drawn = [t.tokens.versions[t.tokens.versions >= 0] for t in group.trajectories if t.tokens]
    ends = [int(end) for versions in drawn if versions.size for end in (versions.min(), versions.max())]
    return [min(ends, default=-1), max(ends, default=-1)]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _cut_torn_line(file: Path) -> None:
    """What a killed run has left of its last line."""
    if file.is_file() and not (data := file.read_bytes()).endswith(b"\n"):
        with file.open("r+b") as stream:
            stream.truncate(data.rfind(b"\n") + 1)

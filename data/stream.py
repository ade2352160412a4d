"""The order in which tasks are trained on: endless, weighted over sources, shuffled per epoch, resumable exactly.

The next source is the one with the smallest (tasks drawn + 1) / weight, so that at every point each has had at least
the whole number of tasks that its weight gives it (the rule of D'Hondt). Inside a source every epoch is a new
permutation, a function of (seed, source, epoch) alone. So the position is one counter per source, and a stream that is
told its counters goes on as if it had not been interrupted, in another process and with another Python hash seed.
"""

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sandboxrl.data.errors import InputError, nearest
from sandboxrl.data.task import Task


class TaskStream:
    """Endless tasks from `sources` in proportion to `weights` (default 1 each; 0 leaves a source out)."""

    def __init__(self, sources: Mapping[str, Sequence[Task]], weights: Mapping[str, float], seed: int) -> None:
        for name in weights:
            if name not in sources:
                raise InputError(f"weight for an unknown task source {name!r}{nearest(name, sources)}")
        self._weights = {name: float(weights.get(name, 1.0)) for name in sorted(sources)}
        for name, weight in self._weights.items():
            if not 0 <= weight < float("inf"):
                raise InputError(f"weight of task source {name!r} must be 0 or more, not {weight}")
            if weight and not sources[name]:
                raise InputError(f"task source {name!r} has no tasks")
        if not any(self._weights.values()):
            raise InputError("no task source has a weight above 0")
        self._sources = sources
        self._tasks = {name: _fingerprint(sources[name]) for name in self._weights}
        self._seed = seed
        self._drawn = dict.fromkeys(self._weights, 0)
        self._order: dict[str, tuple[int, list[int]]] = {}

    def __iter__(self) -> Iterator[Task]:
        return self

    def __next__(self) -> Task:
        name = self._next_source()
        epoch, position = divmod(self._drawn[name], len(self._sources[name]))
        self._drawn[name] += 1
        return self._sources[name][self._permutation(name, epoch)[position]]

    def state(self) -> dict[str, Any]:
        """The position, as JSON values. Only valid for the same sources, weights and seed."""
        return {
            "seed": self._seed,
            "weights": dict(self._weights),
            "tasks": dict(self._tasks),
            "drawn": dict(self._drawn),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`. Raises InputError where it belongs to other data, weights or another seed."""
        mine = self.state()
        for key in ("seed", "weights", "tasks"):
            if state.get(key) != mine[key]:
                raise InputError(f"the saved task stream has other {key}: {state.get(key)} instead of {mine[key]}")
        self._drawn = {name: int(state["drawn"][name]) for name in self._weights}

    def _next_source(self) -> str:
        """The source with the smallest (drawn + 1) / weight; ties go to the first by name."""
        return min(
            (name for name, weight in self._weights.items() if weight),
            key=lambda name: (self._drawn[name] + 1) / self._weights[name],
        )

    def _permutation(self, name: str, epoch: int) -> list[int]:
        known = self._order.get(name)
        if known is None or known[0] != epoch:
            order = list(range(len(self._sources[name])))
            random.Random(f"{self._seed}/{name}/{epoch}").shuffle(order)  # a text seed is hashed with SHA-512: stable
            known = self._order[name] = (epoch, order)
        return known[1]


def _fingerprint(tasks: Sequence[Task]) -> str:
    """How many tasks and a hash of their ids in order."""
    digest = hashlib.sha256()
    for task in tasks:
        digest.update(task.id.encode("utf-8", "surrogatepass") + b"\x00")
    return f"{len(tasks)}-{digest.hexdigest()[:16]}"


@dataclass(frozen=True)
class Dropped:
    """A task that is not trained on, and why."""

    task_id: str
    source: str
    num_tokens: int
    reason: str


def drop_long(
    tasks: Sequence[Task], max_prompt_tokens: int, count_tokens: Callable[[Task], int]
) -> tuple[list[Task], list[Dropped]]:
    """Split off the tasks whose rendered prompt has more than `max_prompt_tokens` tokens.

    `count_tokens` renders the real prompt (arm, tools and chat template included) and counts: a guess from characters
    would let prompts through that the engine refuses in the middle of a run.
    """
    kept: list[Task] = []
    dropped: list[Dropped] = []
    for task in tasks:
        num_tokens = count_tokens(task)
        if num_tokens <= max_prompt_tokens:
            kept.append(task)
        else:
            reason = f"the prompt has {num_tokens} tokens, {max_prompt_tokens} are allowed"
            dropped.append(Dropped(task.id, task.source, num_tokens, reason))
    return kept, dropped


def describe_dropped(dropped: Sequence[Dropped], limit: int = 5) -> str:
    """For a person: how many per source, the longest, and the first few by name. Empty when nothing was dropped."""
    if not dropped:
        return ""
    counts = Counter(one.source for one in dropped)
    longest = max(one.num_tokens for one in dropped)
    by_source = ", ".join(f"{source} {count}" for source, count in sorted(counts.items()))
    lines = [f"{len(dropped)} tasks dropped for their length ({by_source}); the longest has {longest} tokens"]
    lines += [f"  {one.source} {one.task_id}: {one.reason}" for one in dropped[:limit]]
    if len(dropped) > limit:
        lines.append(f"  and {len(dropped) - limit} more")
    return "\n".join(lines)

"""Hooks: a user's own functions that see each step's groups, add columns to its metrics or stop the run.

def hook(step, groups, row):                  # groups: list of Group; row: the step's metrics so far
    if row["reward/mean"] > 0.99:
        raise StopRun("solved")
    return {"answers/empty": mean(not t.answer for g in groups for t in g.trajectories)}
"""

import asyncio
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sandboxrl.data.plugin import OwnCodeFailed, called, plugged, takes
from sandboxrl.envs.trajectory import Group

Hook = Callable[[int, Sequence[Group], Mapping[str, float]], Mapping[str, float] | None]


class StopRun(Exception):
    """Raised by a hook: the run ends after this step, with its checkpoint; the message says why."""


class Hooks:
    """The hooks of a run, called in their order."""

    def __init__(self, named: Mapping[str, Hook]) -> None:
        self._named = named

    async def __call__(
        self, step: int, groups: Sequence[Group], row: Mapping[str, float]
    ) -> tuple[dict[str, float], str]:
        """(columns to add to the metrics, why the run is to stop; empty: it goes on). Raises OwnCodeFailed."""
        columns: dict[str, float] = {}
        for name, hook in self._named.items():
            try:
                found = await asyncio.to_thread(called, f"hook {name}", hook, step, groups, {**row, **columns})
            except OwnCodeFailed as failed:
                if isinstance(failed.__cause__, StopRun):
                    return columns, str(failed.__cause__)
                raise
            columns |= _columns(name, found, row)
        return columns, ""


def load_hooks(values: Sequence[str]) -> Hooks:
    """`values` name functions, or classes that are made once and called. Raises InputError."""
    named: dict[str, Any] = {}
    for value in values:
        hook: Any = plugged(value, {}, "hooks", _wrong)
        named[value] = hook() if inspect.isclass(hook) else hook
    return Hooks(named)


def _wrong(found: Any) -> str:
    arguments = ("step", "groups", "row")
    if not inspect.isclass(found):
        return takes(found, arguments)
    try:
        return takes(found(), arguments)
    except Exception as error:
        return f"cannot be made without arguments: {error}"


def _columns(name: str, found: Any, row: Mapping[str, float]) -> dict[str, float]:
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise OwnCodeFailed(f"hook {name} gave back {type(found).__name__}, not a mapping of names to numbers or None")
    for key, value in found.items():
        if not isinstance(key, str) or key in row:
            raise OwnCodeFailed(f"hook {name}: {key!r} is not a new column name")
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise OwnCodeFailed(f"hook {name}: column {key!r} is {value!r}, not a finite number")
    return dict(found)

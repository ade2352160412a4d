"""A user's own reward: a function `(task, answer, sandbox or None) -> float in [0, 1]`, async or not, or a Kind.

It runs in a grading process, which may be killed: whatever it does there, raise, hang, crash or eat memory, is
GraderFailed with the traceback in the log, and so is what it returns that is no score. The sandbox it gets is the
trajectory's, reached through this process.
"""

import dataclasses
import logging
from collections.abc import Callable
from typing import Any, TypeVar

from sandboxrl.data.errors import InputError, described
from sandboxrl.data.plugin import OwnCodeFailed, called, here, plugged, takes
from sandboxrl.data.task import Task
from sandboxrl.envs.grading.protocol import GraderFailed, Kind, Means

_LOG = logging.getLogger(__name__)
T = TypeVar("T")


def own_kind(value: str, key: str) -> Kind:
    """The Kind that `value` names, or that its function makes. Raises InputError, which begins with `key`."""
    found: Any = plugged(value, {}, key, wrong_shape)
    kind = found if isinstance(found, Kind) else Kind(score=found, reads_answer=False)

    async def grade(task: Task, answer: str, means: Means) -> float:
        request = {"kind": "own", "where": here(value), "task": task.to_json(), "answer": answer}
        try:
            reply = await means.compute_own(request, means.sandbox)
        except GraderFailed as error:
            raise GraderFailed(f"{value}: {error}") from None
        if "failure" in reply:
            _LOG.error("%s, task %s: %s\n%s", value, task.id, reply["failure"], reply["traceback"])
            raise GraderFailed(f"{value}: {reply['failure']}")
        return float(reply["score"])

    return dataclasses.replace(
        kind,
        score=None,
        grade=grade,
        check=_guarded(f"{value}: check", kind.check, InputError),
        extract=_guarded(f"{value}: extract", kind.extract, GraderFailed),
        gold=_guarded(f"{value}: gold", kind.gold, InputError),
        wrong=_guarded(f"{value}: wrong", kind.wrong, InputError),
    )


def wrong_shape(found: Any) -> str:
    """What keeps an object from being a reward; empty: nothing."""
    if isinstance(found, Kind):
        return takes(found.score, ("task", "answer", "sandbox")) if found.score is not None else "needs a `score`"
    if isinstance(found, type):
        return f"must be a function of (task, answer, sandbox) or a Kind, not the class {found.__name__}"
    return takes(found, ("task", "answer", "sandbox"))


def _guarded(what: str, function: Callable[..., T], failure: type[Exception]) -> Callable[..., T]:
    """`function`, whose trouble is `failure`. The functions of this package are fast and keep their own errors."""
    if function.__module__.startswith("sandboxrl."):
        return function

    def guarded(*arguments: Any) -> T:
        try:
            return called(what, function, *arguments)
        except OwnCodeFailed as error:
            if isinstance(error.__cause__, InputError):
                raise error.__cause__ from None
            _LOG.error("%s", error, exc_info=error.__cause__)
            raise failure(described(error).partition(": ")[2]) from error

    return guarded

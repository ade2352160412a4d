"""A user's own source of tasks, and their own form of rows, as the table's are called.

    source: my_tasks.py:exam        exam(**options) -> iterator of Task
    format: my_rows.py:quiz         quiz(rows) -> iterator of Task or Context; `rows` is an iterator of dicts

Yield an InputError instead of a task for a row that is left out; it names the row. What is raised, or is no task, ends
the source with one line.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sandboxrl.data.context import Context
from sandboxrl.data.errors import InputError, described
from sandboxrl.data.plugin import OwnCodeFailed, called, plugged, takes
from sandboxrl.data.reading import Rejected, Row
from sandboxrl.data.task import Task

ITEM_S = 600.0
"""What one task of a user's own iterator may take; the first may load a data set."""
_END = object()


def own_source(value: str) -> Callable[..., Iterator[Task]]:
    """A user's source, with the signature of ours. Raises InputError."""
    function: Callable[..., Any] = plugged(value, {}, "source", _wrong_source)

    def source(rejected: list[Rejected], **options: Any) -> Iterator[Task]:
        made = _outcome(value, lambda: function(**options))
        for item in _items(value, made, rejected, lambda: ""):
            if not isinstance(item, Task):
                raise InputError(f"source {value}: gives {type(item).__name__}, not a Task")
            yield item

    return source


def source_parameters(value: str) -> dict[str, Any]:
    """Option -> default, of a user's source; no default: None."""
    parameters = inspect.signature(plugged(value, {}, "source", _wrong_source)).parameters.values()
    return {one.name: None if one.default is one.empty else one.default for one in parameters}


def _wrong_source(found: Any) -> str:
    if not callable(found) or inspect.isclass(found):
        return f"must be a function that gives Tasks, not {type(found).__name__}"
    several = [one.name for one in inspect.signature(found).parameters.values() if one.kind is one.POSITIONAL_ONLY]
    return f"must take its options by name, not {', '.join(several)} by position" if several else ""


def own_form(
    value: str, rows: Iterator[tuple[str, Row]], rejected: list[Rejected]
) -> Iterator[tuple[str, Task | Context]]:
    """(where, what a user's form makes of the rows). Raises InputError."""
    read: Callable[[Iterator[Row]], Any] = plugged(value, {}, "format", lambda found: takes(found, ("rows",)))
    at = [""]

    def fed() -> Iterator[Row]:
        for where, row in rows:
            at[0] = where
            yield row

    made = _outcome(value, lambda: read(fed()))
    for item in _items(value, made, rejected, lambda: at[0]):
        if not isinstance(item, Task | Context):
            raise InputError(f"format {value}: gives {type(item).__name__} of {at[0]}, not a Task or a Context")
        yield at[0], item


def _items(value: str, made: Any, rejected: list[Rejected], where: Callable[[], str]) -> Iterator[Any]:
    if isinstance(made, Mapping | str) or not hasattr(made, "__iter__"):
        raise InputError(f"{value}: gives {type(made).__name__}, not an iterator")
    iterator = iter(made)
    while (item := _outcome(f"{value}{' at ' * bool(where())}{where()}", lambda: next(iterator, _END))) is not _END:
        if isinstance(item, InputError):
            rejected.append(Rejected(where() or value, str(item)))
        else:
            yield item


def _outcome(what: str, call: Callable[[], Any]) -> Any:
    try:
        return called(what, call, timeout_s=ITEM_S)
    except OwnCodeFailed as error:
        cause = error.__cause__
        raise InputError(f"{what}: {cause}" if isinstance(cause, InputError) else str(error)) from cause or error


def checked_options(value: str, options: Mapping[str, Any]) -> None:
    """Raises InputError where a user's source cannot be called with these options."""
    try:
        inspect.signature(plugged(value, {}, "source", _wrong_source)).bind(**options)
    except TypeError as error:
        raise InputError(f"source {value}: {described(error).partition(': ')[2]}") from None

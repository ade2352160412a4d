"""The task stream: shares, epochs, resume in another process, and the length filter."""

import json
from collections import Counter
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxrl.data.errors import InputError
from sandboxrl.data.stream import TaskStream, describe_dropped, drop_long
from sandboxrl.data.task import Task
from tests.data.processes import outputs_by_hash_seed


def tasks(name: str, num: int) -> list[Task]:
    return [Task(f"{name}{i}", name, "Q?", "x", "exact") for i in range(num)]


def ids(stream: TaskStream, num: int) -> list[str]:
    return [task.id for task in islice(stream, num)]


@given(st.lists(st.tuples(st.integers(1, 7), st.integers(0, 5)), min_size=1, max_size=4), st.integers(0, 60))
def test_shares_follow_the_weights_and_epochs_are_permutations(sizes: list[tuple[int, int]], num: int) -> None:
    sources = {f"s{i}": tasks(f"s{i}_", size) for i, (size, _) in enumerate(sizes)}
    weights = {f"s{i}": float(weight) for i, (_, weight) in enumerate(sizes)}
    total = sum(weights.values())
    if not total:
        with pytest.raises(InputError, match="weight above 0"):
            TaskStream(sources, weights, 0)
        return
    drawn = ids(TaskStream(sources, weights, 3), num)
    for name, source in sources.items():
        mine = [one for one in drawn if one.startswith(f"{name}_")]
        assert len(mine) >= int(num * weights[name] / total + 1e-9), "at least the whole share"
        assert weights[name] or not mine
        for start in range(0, len(mine) - len(source) + 1, len(source)):
            assert Counter(mine[start : start + len(source)]) == Counter(task.id for task in source)


def test_epochs_and_seeds_differ() -> None:
    source = {"a": tasks("a", 50)}
    stream = TaskStream(source, {}, 0)
    first, second = ids(stream, 50), ids(stream, 50)
    assert first != second and sorted(first) == sorted(second)
    assert ids(TaskStream(source, {}, 1), 50) != first


@given(st.integers(0, 70), st.integers(0, 70))
def test_a_restored_stream_goes_on_exactly(before: int, after: int) -> None:
    sources, weights = {"a": tasks("a", 7), "b": tasks("b", 20)}, {"a": 1.0, "b": 2.5}
    whole = TaskStream(sources, weights, 5)
    ids(whole, before)
    restored = TaskStream(sources, weights, 5)
    restored.load_state(json.loads(json.dumps(whole.state())))
    assert ids(restored, after) == ids(whole, after)


def test_the_order_is_the_same_in_another_process_with_another_hash_seed() -> None:
    code = (
        "from tests.data.test_stream import *\n"
        "print(*ids(TaskStream({'b': tasks('b', 30), 'a': tasks('a', 9)}, {'a': 0.3}, 11), 100))"
    )
    outputs = outputs_by_hash_seed(code, ("0", "1", "77"))
    assert len(outputs) == 1 and len(outputs.pop().split()) == 100


def test_a_state_of_something_else_is_refused() -> None:
    state = TaskStream({"a": tasks("a", 5)}, {}, 0).state()
    for other, what in (
        (TaskStream({"a": tasks("a", 5)}, {}, 1), "seed"),
        (TaskStream({"a": tasks("a", 5)}, {"a": 2.0}, 0), "weights"),
        (TaskStream({"a": tasks("a", 6)}, {}, 0), "tasks"),
        (TaskStream({"a": list(reversed(tasks("a", 5)))}, {}, 0), "tasks"),
        (TaskStream({"b": tasks("a", 5)}, {}, 0), "weights"),
    ):
        with pytest.raises(InputError, match=f"other {what}"):
            other.load_state(state)


def test_wrong_weights_and_empty_sources_are_refused() -> None:
    with pytest.raises(InputError, match="unknown task source 'bultin'; did you mean 'builtin'"):
        TaskStream({"builtin": tasks("a", 1)}, {"bultin": 1.0}, 0)
    with pytest.raises(InputError, match="0 or more"):
        TaskStream({"a": tasks("a", 1)}, {"a": -1.0}, 0)
    with pytest.raises(InputError, match="has no tasks"):
        TaskStream({"a": []}, {}, 0)


def test_long_prompts_are_dropped_by_their_real_length_and_listed() -> None:
    source = [Task(str(i), "s", "word " * i, "x", "exact") for i in range(10)]
    kept, dropped = drop_long(source, 6, lambda task: len(task.question.split()))
    assert [task.id for task in kept] == [str(i) for i in range(7)]
    assert [(one.task_id, one.num_tokens) for one in dropped] == [("7", 7), ("8", 8), ("9", 9)]
    text = describe_dropped(dropped, limit=2)
    assert "3 tasks dropped" in text and "longest has 9" in text and "and 1 more" in text and "6 are allowed" in text
    assert describe_dropped([]) == ""

"""A checkpoint is read as data: nothing in it can run, or lead elsewhere."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxrl.data.errors import InputError
from sandboxrl.rl.learner.sharded import PLAN, read_sharded


def state(value: float) -> dict[str, Any]:
    return {
        "model": {"a": torch.full((3, 2), value), "b": torch.full((4,), value).bfloat16()},
        "num_updates": int(value),
    }


def saved(folder: Path) -> Path:
    dcp.save(state(7.0), checkpoint_id=folder)
    return folder


def test_what_was_saved_is_read(tmp_path: Path) -> None:
    found = state(0.0)
    read_sharded(found, saved(tmp_path / "c"))
    assert found["num_updates"] == 7
    assert all(torch.equal(found["model"][name], tensor) for name, tensor in state(7.0)["model"].items())


class Harm:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def test_a_plan_that_runs_something_is_refused_and_does_not(tmp_path: Path) -> None:
    folder, mark = saved(tmp_path / "c"), tmp_path / "harmed"
    (folder / PLAN).write_bytes(pickle.dumps(Harm(mark)))
    with pytest.raises(InputError, match="it names posix.mkdir"):
        read_sharded(state(0.0), folder)
    assert not mark.exists()


def test_a_value_that_runs_something_is_refused_and_does_not(tmp_path: Path) -> None:
    folder, mark = tmp_path / "c", tmp_path / "harmed"
    dcp.save(state(7.0) | {"num_updates": Harm(mark)}, checkpoint_id=folder)
    with pytest.raises(InputError, match="cannot be read: UnpicklingError: Weights only"):
        read_sharded(state(0.0), folder)
    assert not mark.exists()


def test_a_plan_that_points_elsewhere_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "c")
    plan = pickle.loads((folder / PLAN).read_bytes())
    for info in plan.storage_data.values():
        info.relative_path = "../../etc/passwd"
    (folder / PLAN).write_bytes(pickle.dumps(plan))
    with pytest.raises(InputError, match="points out of its folder"):
        read_sharded(state(0.0), folder)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_plan_with_any_change_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzzed-plan"
    if not folder.exists():
        saved(folder)
        (folder / "whole").write_bytes((folder / PLAN).read_bytes())
    whole = (folder / "whole").read_bytes()
    position = data.draw(st.integers(0, len(whole) - 1))
    changed = whole[:position] + data.draw(st.binary(max_size=3)) + whole[position + data.draw(st.integers(0, 3)) :]
    (folder / PLAN).write_bytes(changed)
    found = state(0.0)
    try:
        read_sharded(found, folder)
    except InputError as error:
        assert str(folder) in str(error)

"""A checkpoint is there as a whole or not at all, whatever moment the run is killed at."""

import asyncio
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from sandboxrl.data.errors import InputError
from sandboxrl.rl.learner.checkpoint import Checkpoints


class Writer:
    """Writes a file as a learner would; may fail half way."""

    def __init__(self, content="weights", fails=False):
        self.content, self.fails = content, fails

    async def save(self, path):
        (Path(path) / "learner").mkdir()
        (Path(path) / "learner" / "shard").write_text(self.content)
        if self.fails:
            raise OSError("disk full")


def save(checkpoints, step, writer=None, state=None):
    return asyncio.run(checkpoints.save(step, state or {"position": step}, writer or Writer()))


def test_an_empty_run_starts_at_step_0(tmp_path):
    assert Checkpoints(tmp_path, 2).latest() == (0, {})
    assert Checkpoints(tmp_path, 2).steps() == []


def test_what_was_saved_is_found_by_the_next_process(tmp_path):
    state = {"num_started": 88, "pending": [[80, '{"id": "ü"}']], "tasks": {"rng": [1, 2]}}
    folder = save(Checkpoints(tmp_path, 2), 10, state=state)
    assert folder == tmp_path / "checkpoints" / "step_000010"
    again = Checkpoints(tmp_path, 2)
    assert again.latest() == (10, state)
    assert (again.path(10) / "learner" / "shard").read_text() == "weights"


@pytest.mark.parametrize("keep, left", [(1, [30]), (2, [20, 30]), (0, [5, 10, 20, 30])])
def test_the_newest_ones_are_kept(tmp_path, keep, left):
    checkpoints = Checkpoints(tmp_path, keep)
    for step in (5, 10, 20, 30):
        save(checkpoints, step)
    assert checkpoints.steps() == left
    assert len(list((tmp_path / "checkpoints").iterdir())) == len(left)


def test_a_save_that_fails_leaves_the_last_one_in_force(tmp_path):
    checkpoints = Checkpoints(tmp_path, 1)
    save(checkpoints, 10)
    with pytest.raises(OSError, match="disk full"):
        save(checkpoints, 20, Writer(fails=True))
    assert checkpoints.latest()[0] == 10
    save(checkpoints, 20)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_000020"]


def test_the_same_step_again_replaces_the_old_one(tmp_path):
    checkpoints = Checkpoints(tmp_path, 2)
    save(checkpoints, 10, Writer("old"))
    save(checkpoints, 10, Writer("new"))
    assert (checkpoints.path(10) / "learner" / "shard").read_text() == "new"
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_000010"]


def test_steps_are_ordered_as_numbers(tmp_path):
    checkpoints = Checkpoints(tmp_path, 0)
    for step in (999_999, 1_000_000, 7):
        save(checkpoints, step)
    assert checkpoints.latest()[0] == 1_000_000


@pytest.mark.parametrize("content", ["", "{", '{"step": 10}', "[]"])
def test_damage_is_named_with_the_way_out(tmp_path, content):
    checkpoints = Checkpoints(tmp_path, 2)
    (save(checkpoints, 10) / "trainer.json").write_text(content)
    with pytest.raises(InputError, match="step_000010.* is damaged"):
        checkpoints.latest()


KILLED = """
    import asyncio, os, sys
    from pathlib import Path
    from sandboxrl.rl.learner.checkpoint import Checkpoints

    calls = 0
    def count():
        global calls
        calls += 1
        if calls == int(sys.argv[2]):
            os._exit(9)

    class Writer:
        async def save(self, path):
            for name in ("a", "b"):
                (Path(path) / name).write_text("x" * 1000)

    EVENTS = ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "shutil.rmtree")
    armed = False
    sys.addaudithook(lambda event, _: armed and event in EVENTS and count())
    checkpoints = Checkpoints(Path(sys.argv[1]), 1)
    asyncio.run(checkpoints.save(1, {"at": 1}, Writer()))
    armed = True
    asyncio.run(checkpoints.save(2, {"at": 2}, Writer()))
"""


def test_killed_at_any_file_operation_a_complete_checkpoint_is_found(tmp_path):
    """The second save dies at its first, second, third ... operation on the file system until it gets through."""
    script = textwrap.dedent(KILLED)
    found = []
    for nth in range(1, 60):
        run_dir = tmp_path / str(nth)
        code = subprocess.run([sys.executable, "-c", script, str(run_dir), str(nth)], cwd=Path(__file__).parents[3])
        checkpoints = Checkpoints(run_dir, 1)
        step, state = checkpoints.latest()
        assert state == {"at": step}
        for complete in checkpoints.steps():
            assert sorted(os.listdir(checkpoints.path(complete))) == ["a", "b", "trainer.json"]
            assert json.loads((checkpoints.path(complete) / "trainer.json").read_text())["step"] == complete
        found.append(step)
        if code.returncode == 0:
            break
        assert code.returncode == 9
    assert code.returncode == 0
    assert found == sorted(found) and {1, 2} == set(found)
    assert checkpoints.steps() == [2]


def test_learners_in_another_folder_get_a_path_that_holds_there():
    assert Checkpoints(Path("runs/x"), 2).path(3).is_absolute()

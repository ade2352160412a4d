"""A checkpoint is there as a whole or not at all, whatever moment the run is killed at."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxrl.data.errors import InputError
from sandboxrl.launch.__main__ import main
from sandboxrl.rl.learner.checkpoint import Checkpoints, Damaged, lasting, sealed, verify

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
)
names = st.sampled_from(["trainer.json", "../../etc/passwd", "/dev/zero", "..", "", "a/../../x", "manifest.json"])
manifests = st.fixed_dictionaries(
    {
        "run": json_values,
        "step": st.just(1) | json_values,
        "files": json_values
        | st.dictionaries(names, st.fixed_dictionaries({"bytes": st.integers(), "sha256": st.text()})),
    }
)


class Writer:
    """Writes a file as a learner would; may fail half way."""

    def __init__(self, content="weights", fails=False):
        self.content, self.fails = content, fails

    async def save(self, path):
        (Path(path) / "learner").mkdir()
        (Path(path) / "learner" / "shard").write_text(self.content)
        return self.finish()

    async def finish(self):
        if self.fails:
            raise OSError("disk full")


def save(checkpoints, step, writer=None, state=None):
    async def whole():
        await checkpoints.save(step, state or {"position": step}, writer or Writer())
        await checkpoints.settled()

    asyncio.run(whole())
    return checkpoints.path(step)


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


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path):
    """The one before counts until the new one is whole; the next save, and the end, wait for it."""
    events = []

    class Slow(Writer):
        async def finish(self):
            await asyncio.sleep(0.05)
            events.append("written")

    async def run():
        checkpoints = Checkpoints(tmp_path, 0)
        await checkpoints.save(10, {"at": 10}, Slow(), lambda: events.append("then"))
        events.append("training")
        assert checkpoints.steps() == []
        await checkpoints.save(20, {"at": 20}, Slow())
        assert checkpoints.steps() == [10]
        await checkpoints.settled()
        assert checkpoints.steps() == [10, 20]
        await checkpoints.save(30, {"at": 30}, Writer(fails=True))
        await checkpoints.close()
        await checkpoints.save(40, {"at": 40}, Slow())
        await checkpoints.close()

    asyncio.run(run())
    assert events[:3] == ["training", "written", "then"]
    assert Checkpoints(tmp_path, 0).steps() == [10, 20, 40]
    assert Checkpoints(tmp_path, 0).latest() == (40, {"at": 40})


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


def flipped(data, position):
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


def files_of(folder):
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def test_one_flipped_bit_anywhere_is_found_and_the_one_before_is_used(tmp_path):
    """Every byte of every file, the manifest included."""
    save(Checkpoints(tmp_path, 0), 10)
    newest = save(Checkpoints(tmp_path, 0), 20)
    for file in files_of(newest):
        whole = file.read_bytes()
        for position in range(len(whole)):
            file.write_bytes(flipped(whole, position))
            assert "step_000020" in Checkpoints(tmp_path, 0).problem(20), (file, position)
        assert Checkpoints(tmp_path, 0).newest_whole() == 10
        file.write_bytes(whole)
    assert Checkpoints(tmp_path, 0).problem(20) == ""


def cut_short(folder):
    file = folder / "learner" / "shard"
    file.write_bytes(file.read_bytes()[:-1])


def lose_a_file(folder):
    (folder / "learner" / "shard").unlink()


def lose_the_manifest(folder):
    (folder / "manifest.json").unlink()


def take_the_older_one(folder):
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name("step_000010"), folder)


def lead_elsewhere(folder):
    file = folder / "learner" / "shard"
    file.rename(folder / "elsewhere")
    file.symlink_to(folder / "elsewhere")


def take_another_runs(folder):
    other = save(Checkpoints(folder.parents[1] / "other", 0), 20)
    shutil.rmtree(folder)
    shutil.copytree(other, folder)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut_short, "has 6 bytes, 7 were saved"),
        (lose_a_file, "is missing"),
        (lose_the_manifest, "not written to its end"),
        (take_the_older_one, "holds step 10, not step 20"),
        (lead_elsewhere, "not a plain file"),
        (take_another_runs, "another run's"),
    ],
)
def test_a_damaged_or_foreign_one_is_set_aside_and_the_one_before_is_used(tmp_path, damage, said):
    save(Checkpoints(tmp_path, 0), 10)
    damage(save(Checkpoints(tmp_path, 0), 20))
    checkpoints = Checkpoints(tmp_path, 0)
    assert checkpoints.latest() == (10, {"position": 10})
    (problem,) = checkpoints.problems
    assert said in problem and "\n" not in problem
    assert checkpoints.steps() == [10] and (tmp_path / "checkpoints" / "step_000020.damaged").is_dir()
    save(checkpoints, 20)
    assert Checkpoints(tmp_path, 0).latest()[0] == 20


def test_where_none_is_whole_the_run_does_not_start_over_by_itself(tmp_path):
    cut_short(save(Checkpoints(tmp_path, 0), 10))
    with pytest.raises(InputError, match="no checkpoint of .* is whole"):
        Checkpoints(tmp_path, 0).latest()
    assert Checkpoints(tmp_path, 0).steps() == [10]


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=300) | json_values.map(lambda value: json.dumps(value).encode()) | manifests.map(sealed))
def test_no_manifest_leads_out_of_its_folder_or_raises_anything_else(content):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "step_000001"
        folder.mkdir()
        (folder / "manifest.json").write_bytes(content)
        with pytest.raises(Damaged) as told:
            verify(folder, "", 1)
        assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("keep", "keep_every", "protected", "left"),
    [
        (2, 0, [], [50, 60]),
        (1, 20, [], [20, 40, 60]),
        (1, 30, [10], [10, 30, 60]),
        (0, 30, [], [10, 20, 30, 40, 50, 60]),
        (2, 0, [70], [50, 60, 70]),
    ],
)
def test_the_last_every_nth_and_protected_ones_last(keep, keep_every, protected, left):
    assert sorted(lasting([10, 20, 30, 40, 50, 60], keep, keep_every, protected)) == left


def test_a_protected_step_stays_until_another_takes_its_place(tmp_path):
    checkpoints = Checkpoints(tmp_path, 1)
    save(checkpoints, 10)
    checkpoints.protect("best", 10)
    save(checkpoints, 20)
    save(checkpoints, 30)
    assert checkpoints.steps() == [10, 30] and Checkpoints(tmp_path).protected() == {"best": 10}
    checkpoints.protect("best", 30)
    save(checkpoints, 40)
    assert checkpoints.steps() == [30, 40]


def test_the_verb_says_what_is_whole_and_changes_nothing(tmp_path, capsys):
    (tmp_path / "recipe.yaml").touch()
    assert main(["check", "run", str(tmp_path)]) == 0
    save(Checkpoints(tmp_path, 0), 10)
    cut_short(save(Checkpoints(tmp_path, 0), 20))
    before = files_of(tmp_path)
    capsys.readouterr()
    assert main(["check", "run", str(tmp_path)]) == 1
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "step_000010  whole" and "7 were saved" in told[1] and "goes on from step 10" in told[2]
    assert files_of(tmp_path) == before


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
            return asyncio.sleep(0)

    async def save(step):
        await checkpoints.save(step, {"at": step}, Writer())
        await checkpoints.settled()

    EVENTS = ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "shutil.rmtree")
    armed = False
    sys.addaudithook(lambda event, _: armed and event in EVENTS and count())
    checkpoints = Checkpoints(Path(sys.argv[1]), 1)
    asyncio.run(save(1))
    armed = True
    asyncio.run(save(2))
"""


def test_killed_at_any_file_operation_a_complete_checkpoint_is_found(tmp_path):
    """The second save dies at its first, second, third ... operation on the file system until it gets through."""
    script = textwrap.dedent(KILLED)
    found = []
    for nth in range(1, 90):
        run_dir = tmp_path / str(nth)
        code = subprocess.run([sys.executable, "-c", script, str(run_dir), str(nth)], cwd=Path(__file__).parents[3])
        checkpoints = Checkpoints(run_dir, 1)
        step, state = checkpoints.latest()
        assert state == {"at": step}
        for complete in checkpoints.steps():
            assert sorted(os.listdir(checkpoints.path(complete))) == ["a", "b", "manifest.json", "trainer.json"]
            assert checkpoints.problem(complete) == ""
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

"""A user's own parts: found by name, by package and by file, with their neighbours, and told apart when they change."""

import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sandboxrl.data.errors import InputError
from sandboxrl.data.plugin import Code, anchored, digest, plugged

TABLE = {"f1": max, "rouge": min}


def write(folder: Path, **files: str) -> None:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)


def test_a_name_of_the_table_a_package_and_a_file(tmp_path: Path) -> None:
    write(tmp_path, mine="def score(): return 7\n")
    assert plugged("f1", TABLE, "reward") is max
    assert plugged("statistics:fmean", TABLE, "reward")([1.0, 3.0]) == 2.0
    assert plugged(f"{tmp_path}/mine.py:score", TABLE, "reward")() == 7


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("rough", "reward: unknown 'rough'; did you mean 'rouge'"),
        ("no_such_package:f", "no_such_package cannot be imported"),
        ("statistics:fmeen", "no 'fmeen' in it; did you mean 'fmean'"),
        ("HERE/mime.py:score", "no such file: .*mime.py; did you mean 'mine.py'"),
        ("HERE/mine.py:scores", "no 'scores' in it; did you mean 'score'"),
        ("HERE/broken.py:score", "broken.py cannot be imported: ZeroDivisionError"),
        ("HERE/mine.py:value", "not a function"),
    ],
)
def test_what_is_not_there_or_wrong_is_one_clear_line(tmp_path: Path, value: str, message: str) -> None:
    write(tmp_path, mine="def score(): return 7\nvalue = 3\n", broken="1 / 0\n")
    with pytest.raises(InputError, match=message):
        plugged(
            value.replace("HERE", str(tmp_path)), TABLE, "reward", lambda f: "" if callable(f) else "not a function"
        )


def test_two_folders_with_neighbours_of_the_same_name(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path / name, part="import json, helper\ndef who(): return helper.NAME\n", helper=f"NAME = {name!r}\n")
    found = [plugged(f"{tmp_path / name}/part.py:who", {}, "tool")() for name in ("one", "two")]
    assert found == ["one", "two"]


def test_a_neighbour_may_be_named_like_a_room_of_this_project(tmp_path: Path) -> None:
    write(
        tmp_path,
        part="import data, envs\ndef who(): return data.NAME + envs.NAME\n",
        data="NAME = 'd'",
        envs="NAME = 'e'",
    )
    code = f"from sandboxrl.data.plugin import plugged; print(plugged('{tmp_path}/part.py:who', {{}}, 'x')())"
    root = Path(__file__).parents[2]  # where folders of these names lie
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "de\n"


def test_the_digest_is_of_the_file_and_of_what_it_imports_there(tmp_path: Path) -> None:
    write(tmp_path, part="def f():\n    import helper\n", helper="import further\n", further="", other="")
    value = f"{tmp_path}/part.py:f"
    before = digest(value)
    (tmp_path / "other.py").write_text("X = 1")
    assert digest(value) == before
    (tmp_path / "further.py").write_text("X = 1")
    assert digest(value) != before


def test_code_works_on_a_machine_that_does_not_have_the_file(tmp_path: Path) -> None:
    write(tmp_path / "lab", part="import helper\ndef who(): return helper.NAME\n", helper="NAME = 'sent'\n")
    value = anchored("lab/part.py:who", tmp_path)
    code = Code.of([value, "f1", "statistics:fmean"])
    (tmp_path / "lab" / "part.py").unlink()
    program = (
        "import os, pickle, signal, sys; from sandboxrl.data.plugin import plugged; "
        f"pickle.load(sys.stdin.buffer).install(); print(plugged({value!r}, {{}}, 'x')(), flush=True); "
        "signal.raise_signal(int(sys.argv[1]))"
    )
    temporary = tmp_path / "temporary"
    temporary.mkdir()

    def ended_by(number: int) -> list[Path]:
        """What is left of the folder in which the code lay."""
        command = [sys.executable, "-c", program, str(number)]
        environment = os.environ | {"TMPDIR": str(temporary)}
        done = subprocess.run(command, input=pickle.dumps(code), capture_output=True, env=environment)
        assert done.stdout == b"sent\n", done.stderr
        return list(temporary.iterdir())

    (killed,) = ended_by(signal.SIGKILL)
    (other,) = ended_by(signal.SIGKILL)
    assert killed != other, "the next one removes what a killed one has left"
    assert ended_by(signal.SIGCHLD) == [], "which does not end it: it ends by itself"


def test_names_are_anchored_where_they_are_files(tmp_path: Path) -> None:
    assert anchored("mine.py:f", tmp_path) == f"{tmp_path.resolve()}/mine.py:f"
    assert anchored("lab.mine:f", tmp_path) == "lab.mine:f" and anchored("f1", tmp_path) == "f1"

"""`sandboxrl view`, typed as a person types it."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sandboxrl.envs.trajectory import StopReason, Trajectory, Turn
from sandboxrl.launch.__main__ import main
from tests.rl.reports.pages.reading import texts

ROW = Trajectory("t1", "aime25", "llm", StopReason.ANSWERED, (Turn("It is 4."),), answer="4", score=1.0, reward=1.0)


@pytest.fixture
def line() -> str:
    return json.dumps(ROW.to_dict()) + "\n"


def test_a_run_folder_gives_its_report(tmp_path: Path, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "trajectories").mkdir()
    (tmp_path / "trajectories/step_000001.jsonl").write_text(line)
    assert main(["view", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.html")
    assert "It is 4." in str(texts((tmp_path / "report.html").read_text()))


def test_an_evaluation_folder_gives_the_viewer_where_asked(tmp_path: Path, line: str) -> None:
    (tmp_path / "results.jsonl").write_text(line)
    (tmp_path / "other.jsonl").write_text("not read\n")
    out = tmp_path / "new" / "page.html"
    assert main(["view", str(tmp_path), "--out", str(out)]) == 0
    assert "It is 4." in str(texts(out.read_text())) and sorted(path.name for path in out.parent.iterdir()) == [
        "page.html"
    ]


def test_a_file_of_trajectories_gives_the_viewer_beside_it(tmp_path: Path, line: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(line)
    assert main(["view", str(path)]) == 0
    assert path.with_suffix(".html").is_file()


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (None, "does not exist"),
        ({}, "holds no run"),
        ({"results.jsonl": ""}, "no trajectory in"),
        ({"results.jsonl": '{"task_id": 1'}, "1 line left out"),
    ],
)
def test_nothing_to_show_is_one_clear_line(
    tmp_path: Path, made: dict[str, str] | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folder"
    if made is not None:
        folder.mkdir()
        for name, text in made.items():
            (folder / name).write_text(text)
    assert main(["view", str(folder)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error
    assert not list(folder.glob("*.html"))


def test_out_must_be_a_file(tmp_path: Path, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "results.jsonl").write_text(line)
    assert main(["view", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "is a folder" in capsys.readouterr().err


def test_it_starts_light(tmp_path: Path, line: str) -> None:
    (tmp_path / "results.jsonl").write_text(line)
    code = (
        "import sys, launch.__main__ as m; m.main(['view', sys.argv[1]]);"
        "assert not {'torch', 'ray', 'vllm', 'transformers', 'openai', 'docker'} & set(sys.modules)"
    )
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, stdout=subprocess.DEVNULL)
    assert time.monotonic() - started < 10, "a light verb; the bound is wide for a busy machine"

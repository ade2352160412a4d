"""`sandboxrl view`, typed as a person types it."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sandboxrl.envs.trajectory import StopReason, Trajectory, Turn
from sandboxrl.launch.__main__ import main
from tests.rl.reports.pages.reading import column, content, texts
from tests.rl.reports.test_analysis import STEP, SUBMIT, row

ROOT = Path(__file__).resolve().parents[2]
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


def test_a_run_of_the_published_harness_is_shown(tmp_path: Path) -> None:
    told = row(1.0, [STEP, SUBMIT]) | {"problem_statement": "What is 2 + 2?", "ground_truth": "4"}
    (tmp_path / "trajectory.json").write_text(json.dumps({"aime25_7_00": told}))
    assert main(["view", str(tmp_path)]) == 0
    (said,) = texts((tmp_path / "view.html").read_text()).values()
    assert (said["question"], said["gold"]) == ("What is 2 + 2?", "4")


def test_several_places_are_compared_here(
    tmp_path: Path, line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.jsonl").write_text(line)
    monkeypatch.chdir(tmp_path)
    assert main(["view", "a", "b"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "compare.html")
    assert column((tmp_path / "compare.html").read_text(), "run") == ["a", "b"]


def test_the_example_is_a_finished_run_to_look_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["view", "--example"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "example.html")
    page = (tmp_path / "example.html").read_text()
    shown = content(page)
    assert (shown["status"], shown["live"], shown["notes"]) == ("finished", False, [])
    assert shown["scores"][0]["after"] > shown["scores"][0]["before"] + 0.4
    assert shown["index"]["count"] == len(texts(page)) > 500 and all(column(page, "gold"))
    assert (ROOT / "rl/reports/pages/assets/example.zip").stat().st_size < 1_000_000


@pytest.mark.parametrize("words", [[], ["--example", "runs"], ["--max-mb", "0", "runs"], ["--max-mb", "nan", "runs"]])
def test_what_has_no_meaning_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["view", *words]) == 2
    assert capsys.readouterr().err.count("\n") == 1


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

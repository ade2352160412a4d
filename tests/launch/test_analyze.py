"""`sandboxrl analyze`: tables of evaluation folders, of runs of the published harness, and its errors."""

import json

from sandboxrl.launch.__main__ import main
from tests.rl.reports.test_analysis import STEP, SUBMIT, row, trajectory


def evaluation(folder, *trajectories):
    folder.mkdir()
    (folder / "results.jsonl").write_text("".join(json.dumps(one.to_dict()) + "\n" for one in trajectories))
    return folder


def test_runs_of_both_harnesses_stand_in_one_table(tmp_path, capsys):
    ours = evaluation(tmp_path / "ours", trajectory("aime25_7"), trajectory("aime25_7", "llm", 0.0))
    theirs = tmp_path / "x_LLMinSandbox"
    theirs.mkdir()
    (theirs / "trajectory.json").write_text(json.dumps({"aime25_7_00": row(0.0, [STEP, SUBMIT])}))
    out = tmp_path / "out"
    assert main(["analyze", f"<b>ours</b>={ours}", f"theirs={theirs}", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed.strip() == (out / "tables.txt").read_text().strip()
    assert (out / "results.csv").read_text() == "Run,Math llm,Math sandbox\n<b>ours</b>,0.0,100.0\ntheirs,,0.0\n"
    page = (out / "analysis.html").read_text()
    assert "<b>ours" not in page and "&lt;b&gt;ours" in page and 'class="meter"' in page and "<script" not in page


def test_several_folders_make_one_run(tmp_path, capsys):
    a = evaluation(tmp_path / "a", trajectory("x"))
    b = evaluation(tmp_path / "b", trajectory("y", score=0.0))
    assert main(["analyze", f"both={a}+{b}"]) == 0
    assert ["both", "-", "50.0"] in [line.split() for line in capsys.readouterr().out.splitlines()]


def test_wrong_input_is_one_clear_line(tmp_path, capsys):
    empty = evaluation(tmp_path / "empty")
    (tmp_path / "nothing").mkdir()
    a = evaluation(tmp_path / "a", trajectory("x"))
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"task_id": 1}\n')
    (tmp_path / "times.json").write_text('{"start_ms": {"ours": 1}}')
    for words, told in (
        ([str(tmp_path / "none")], "no such file"),
        ([str(tmp_path / "nothing")], "no results.jsonl"),
        ([str(empty)], "no trajectory in it"),
        ([str(broken)], "broken.jsonl:1: not a trajectory"),
        ([f"x={a}", f"x={a}"], "two runs are called 'x'"),
        ([f"x={a}", "--measured", str(tmp_path / "none.json")], "none.json"),
        ([f"x={a}", "--measured", str(tmp_path / "times.json")], "no measure of storage or memory"),
    ):
        assert main(["analyze", *words]) == 2
        assert told in capsys.readouterr().err

"""Pages: of complete and broken runs, of any trajectories, of several; everything is there, bounded and told."""

import dataclasses
import json
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sandboxrl.data.errors import InputError
from sandboxrl.envs.trajectory import Observation, StopReason, Tokens, ToolCall, Trajectory, Turn
from sandboxrl.rl.reports.pages import excerpt
from sandboxrl.rl.reports.pages.comparison import compare_page, is_sweep, sweep_page
from sandboxrl.rl.reports.pages.run import report_page, view_trajectories, write_report
from tests.rl.reports.pages.reading import column, content, texts, tokens
from tests.rl.reports.pages.sample_run import write_sample_run


def endpoint_trajectory(**changes: Any) -> Trajectory:
    call = ToolCall("bash", {"command": "ls"}, id="1")
    turn = Turn("Looking.", (call,), (Observation("a.txt", "bash", "1", exit_code=0),), num_sampled=9)
    made = Trajectory("t1", "aime25", "sandbox", StopReason.FINISHED, (turn,), answer="4", score=1.0, reward=1.0)
    return dataclasses.replace(made, **changes)


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample_run(tmp_path_factory.mktemp("runs") / "sample", steps=12, num_tasks=4, group_size=4)


def saved_rows(run: Path) -> list[dict[str, Any]]:
    """Every trajectory of a run as its files have it, in the order of the page."""
    files = sorted(
        (run / "trajectories").glob("*.jsonl"), key=lambda one: (one.stem[-6:], not one.stem.startswith("step"))
    )
    return [json.loads(line) for file in files for line in file.open()]


def test_a_finished_run_shows_its_scores_curves_and_every_trajectory(run: Path) -> None:
    assert write_report(run) == run / "report.html"
    page = (run / "report.html").read_text()
    shown, summary = content(page), json.loads((run / "summary.json").read_text())
    assert (shown["title"], shown["status"], shown["live"], shown["notes"]) == ("sample", "finished", False, [])
    (curves,) = shown["runs"]
    assert curves["steps"] == list(range(13))
    heldout, training = shown["scores"]
    assert heldout == {
        "name": "Score on heldout",
        "before": summary["eval_before"]["heldout"],
        "after": summary["eval_after"]["heldout"],
        "detail": "before training to step 12",
    }
    assert training["before"] == curves["series"]["reward/mean"][1] and training["detail"] == "step 1 to step 12"
    facts = {one["label"]: one["value"] for one in shown["facts"]}
    assert facts["Steps"] == 12 and facts["Trajectories"] == 12 * 16 and facts["Wall time"] == summary["wall_s"]
    assert "seed: 0" in shown["recipe"]
    rows = saved_rows(run)
    assert shown["index"]["count"] == len(rows) == len(texts(page))
    assert column(page, "task") == [row["task_id"] for row in rows]
    assert column(page, "place") == [["heldout" if "advantage" not in row else "Training", row["step"]] for row in rows]
    assert column(page, "gold") == [row["gold"] for row in rows]
    assert column(page, "advantage") == [
        None if "advantage" not in row else pytest.approx(row["advantage"], abs=1e-4) for row in rows
    ]
    for i, said in texts(page).items():
        assert (said["question"], said["gold"], said["answer"]) == tuple(
            rows[i][key] for key in ("question", "gold", "answer")
        )
        assert [turn["text"] for turn in said["turns"]] == [turn["text"] for turn in rows[i]["turns"]]


def test_every_token_is_there_once_and_in_order(run: Path) -> None:
    page = report_page(run)
    rows, found = saved_rows(run), tokens(page)
    assert sorted(found) == list(range(len(rows)))
    spread = lambda value, span: value if isinstance(value, list) else [value] * len(span["tokens"])  # noqa: E731
    for i, spans in found.items():
        row = rows[i]
        assert [id for span in spans for id, _ in span["tokens"]] == row["tokens"]["ids"]
        assert [text for span in spans for _, text in span["tokens"]] == row["token_text"]
        for name in ("mask", "versions"):
            assert [value for span in spans for value in spread(span[name], span)] == row["tokens"][name]
        logprobs = [value for span in spans for value in span["logprobs"] or [] if value is not None]
        sampled = [x for x, m in zip(row["tokens"]["logprobs"], row["tokens"]["mask"], strict=True) if m]
        assert logprobs == pytest.approx(sampled, abs=1e-4)
        mismatch = [value for span in spans for value in span.get("mismatch") or [] if value is not None]
        differences = [a - b for a, b in zip(row.get("learner_logprobs", []), sampled, strict=False)]
        assert mismatch == pytest.approx(differences, rel=0.01)
        assert [span["kind"] for span in spans[:3]] == ["prompt", "turn", "observation"]
        assert [span["start"] for span in spans[1:]] == [span["start"] + len(span["tokens"]) for span in spans[:-1]]


@pytest.mark.parametrize("missing", ["metrics.jsonl", "summary.json", "recipe.yaml", "trajectories"])
def test_a_page_comes_of_whatever_is_there(run: Path, tmp_path: Path, missing: str) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    path = copy / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    shown = content(report_page(copy))
    assert (shown["status"] == "finished") == (missing != "summary.json") == (not shown["live"])
    assert (shown["index"]["count"] == 0) == (missing == "trajectories")


def test_an_empty_folder_gives_a_page_and_no_folder_an_error(tmp_path: Path) -> None:
    shown = content(report_page(tmp_path))
    assert shown["status"] == "not finished" and len(shown["notes"]) == 2
    with pytest.raises(InputError, match="not a run folder"):
        report_page(tmp_path / "nowhere")


def test_a_killed_run_loses_only_its_torn_lines(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    (copy / "summary.json").write_text('{"status": "fini')
    for name in ("metrics.jsonl", "trajectories/step_000012.jsonl"):
        whole = (copy / name).read_bytes()
        (copy / name).write_bytes(whole[: len(whole) - 40])
    (copy / "trajectories/step_000013.jsonl").touch()
    shown = content(report_page(copy))
    assert shown["runs"][0]["steps"] == list(range(13)) and "eval/heldout/score" in shown["runs"][0]["series"]
    assert shown["index"]["count"] == len(saved_rows(run)) - 1
    assert sum("1 line left out" in note for note in shown["notes"]) == 2
    assert any(note.startswith("summary.json") for note in shown["notes"])


def test_a_score_measured_once_is_no_change(tmp_path: Path) -> None:
    write_rows(tmp_path / "metrics.jsonl", [{"step": 0, "eval/heldout/score": 0.25}])
    (score,) = content(report_page(tmp_path))["scores"]
    assert (score["before"], score["after"]) == (None, 0.25)


def test_lines_of_one_step_are_one_row_and_numbers_json_lacks_become_null(tmp_path: Path) -> None:
    rows = [
        '{"step": 2, "loss": NaN, "reward/mean": 0.5}',
        '{"step": 1, "loss": 1.0}',
        "[]",
        '{"step": 2, "loss": Infinity}',
    ]
    write_rows(tmp_path / "metrics.jsonl", [*rows, '{"step": 2, "eval/heldout/score": 0.25}'])
    (curves,) = content(report_page(tmp_path))["runs"]
    assert curves["steps"] == [1, 2]
    assert curves["series"] == {"loss": [1.0, None], "reward/mean": [None, 0.5], "eval/heldout/score": [None, 0.25]}


def long_row(seed: int = 0, size: int = 20_000) -> dict[str, Any]:
    mask = [0] * 1000 + [1] * (size - 1000)
    made = Tokens(list(range(size)), mask, [-0.123456789] * size, [3] * size)
    turns = (
        Turn("word " * 50_000, start=1000, end=size),
        *[Turn(random.Random(seed + i).randbytes(200).hex()) for i in range(150)],
    )
    row = endpoint_trajectory(tokens=made, turns=turns, answer="x" * 100_000).to_dict()
    return row | {"token_text": [f"word{i * 7919 % size} " for i in range(size)]}


def test_a_long_trajectory_is_shortened_where_its_middle_is(tmp_path: Path) -> None:
    write_rows(tmp_path / "trajectories/step_000001.jsonl", [long_row()])
    page, (full, *_) = report_page(tmp_path), excerpt.DETAILS
    (said,), (spans,) = texts(page).values(), tokens(page).values()
    assert sum(len(span["tokens"]) + span["omitted"] for span in spans) == 20_000
    assert spans[1]["omitted"] == 20_000 - sum(full.tokens)
    assert spans[1]["start"] + spans[1]["omitted_at"] == full.tokens[0]
    assert spans[1]["tokens"][-1][0] == 19_999
    assert "\n… 244000 characters left out …\n" in said["turns"][0]["text"]
    assert [turn["index"] for turn in said["turns"]] == [*range(40), *range(131, 151)]


@pytest.mark.parametrize(("max_mb", "most"), [(2.0, 2_000_000), (0.2, 200_000), (0.02, 40_000)])
def test_a_large_run_shows_all_in_less_detail_and_says_so(tmp_path: Path, max_mb: float, most: int) -> None:
    for step in (1, 2):
        write_rows(tmp_path / f"trajectories/step_{step:06d}.jsonl", [json.dumps(long_row(200 * i)) for i in range(25)])
    write_rows(tmp_path / "metrics.jsonl", [{"step": i, "reward/mean": 0.5, "loss": 0.1} for i in range(20_000)])
    page = report_page(tmp_path, max_mb)
    shown = content(page)
    assert shown["index"]["count"] == 50, "all of them are in the list"
    packed = sum(map(len, re.findall(r'id="(?:text|tokens)\d+">([^<]*)<', page)))
    assert 0 < packed <= 1.5 * most
    assert any("sandboxrl view --max-mb" in note for note in shown["notes"])
    assert any("of 20000 steps" in note for note in shown["notes"]) and shown["runs"][0]["steps"][-1] == 19_999
    if max_mb < 0.1:
        assert any("without their text" in note for note in shown["notes"]) and len(texts(page)) < 50


def test_the_viewer_shows_both_modes(tmp_path: Path) -> None:
    rows = [
        endpoint_trajectory(
            task_id=f"t{i}", mode=mode, score=float(i % 2), metadata={"gold": "5", "question": "2 + 3?"}
        )
        for i in range(4)
        for mode in ("llm", "sandbox")
    ]
    page = view_trajectories([write_rows(tmp_path / "eval/results.jsonl", [row.to_dict() for row in rows])])
    shown = content(page)
    assert shown["title"] == "eval" and shown["index"]["names"]["mode"] == ["llm", "sandbox"]
    assert [(row["mode"], row["count"], row["score"]) for row in shown["table"]] == [
        ("llm", 4, 0.5),
        ("sandbox", 4, 0.5),
    ]
    assert texts(page)[0]["question"] == "2 + 3?" and column(page, "gold") == ["5"] * 8
    assert tokens(page) == {}


def test_the_viewer_takes_several_files_and_refuses_what_holds_nothing(tmp_path: Path) -> None:
    files = [write_rows(tmp_path / f"{name}.jsonl", [endpoint_trajectory().to_dict()]) for name in "abc"]
    assert column(view_trajectories(files), "place") == [["a", -1], ["b", -1], ["c", -1]]
    good = endpoint_trajectory(tokens=Tokens([1], [1], [0.0], [0])).to_dict()
    changes = (
        {"score": "high"}, {"answer": 4}, {"advantage": [1]}, {"tokens": good["tokens"] | {"mask": []}},
        {"tokens": {name: [[]] for name in good["tokens"]}}, {"task_id": ["a"]}, {"turns": 3}, {"stop": "bored"},
    )  # fmt: skip
    foreign = [good | change for change in changes]
    deep = "[" * 5000 + "]" * 5000
    bad = write_rows(tmp_path / "bad.jsonl", ['{"task_id": "t"}', "null", deep, '{"score": "high"}', *foreign])
    with pytest.raises(InputError, match="no trajectory in .*bad.jsonl.*12 lines left out"):
        view_trajectories([bad])
    with pytest.raises(InputError, match="not a file"):
        view_trajectories([tmp_path / "none.jsonl"])


def test_runs_are_compared_by_task_with_the_first(tmp_path: Path) -> None:
    places = []
    for name, right in (("weak", 3), ("strong", 9)):
        rows = [endpoint_trajectory(task_id=f"t{i}", score=float(i < right)) for i in range(10)]
        places.append(write_rows(tmp_path / name / "results.jsonl", [row.to_dict() for row in rows]).parent)
    shown = content(compare_page(places))
    (pair,) = shown["pairs"]
    weak, strong = pair["rows"]
    assert (weak["run"], weak["score"], "difference" in weak) == ("weak", 0.3, False)
    assert (strong["common"], strong["difference"], strong["test"]) == (10, pytest.approx(0.6), "mcnemar")
    assert strong["between"][0] > 0 and strong["p"] == pytest.approx(2 / 2**6)
    assert shown["index"]["names"]["run"] == ["weak", "strong"] and shown["runs"] == []
    with pytest.raises(InputError, match="named twice"):
        compare_page([places[0], places[0]])


def test_of_a_run_that_is_compared_the_last_evaluation_counts(run: Path, tmp_path: Path) -> None:
    other = write_sample_run(tmp_path / "other", steps=12, num_tasks=4, group_size=4, seed=1)
    page = compare_page([run, other])
    shown = content(page)
    assert [one["label"] for one in shown["runs"]] == ["sample", "other"]
    assert set(map(tuple, column(page, "place"))) == {("heldout", 12)}
    scores = {row["run"]: row["score"] for pair in shown["pairs"] for row in pair["rows"]}
    for folder in (run, other):
        summary = json.loads((folder / "summary.json").read_text())
        assert scores[folder.name] == pytest.approx(summary["eval_after"]["heldout"], abs=1e-3)


def test_a_sweep_shows_its_arms_and_what_has_not_begun(tmp_path: Path) -> None:
    for name in ("high-s0", "high-s1", "low-s0", "low-s1"):
        write_rows(tmp_path / "recipes" / f"{name}.yaml", [f"name: {name}"])
        if name != "low-s1":
            write_sample_run(tmp_path / name, steps=3, num_tasks=4, group_size=4, seed=len(name))
    (tmp_path / "table.csv").write_text(
        "arm,set,mode,mean,low,high,seeds,seeds_failed\nhigh,heldout,sandbox,0.5,0.4,0.6,2,0\n"
    )
    assert is_sweep(tmp_path) and not is_sweep(tmp_path / "high-s0")
    shown = content(sweep_page(tmp_path))
    assert [(one["label"], one["group"]) for one in shown["runs"]] == [
        ("high-s0", "high"), ("high-s1", "high"), ("low-s0", "low")
    ]  # fmt: skip
    assert ["low-s1", "low", "has not begun"] in shown["cells"] and shown["sweep"][0]["mean"] == "0.5"
    assert [row["run"] for row in shown["pairs"][0]["rows"]] == ["high", "low"]


def test_nothing_is_fetched_and_one_script_may_run(run: Path) -> None:
    page = re.sub(r'<script type="text/plain"[^<]*</script>', "", report_page(run))
    assert "default-src 'none'; script-src 'sha256-" in page
    outside = re.findall(r"(?:https?:)?//[a-z][\w.]+\.\w+", page.replace("http://www.w3.org/2000/svg", ""))
    assert outside == []
    assert not re.search(r"\b(innerHTML|outerHTML|insertAdjacentHTML|eval\(|Function\(|document\.write)", page)


def test_pages_need_no_heavy_library() -> None:
    heavy = {"torch", "ray", "vllm", "transformers"}
    code = f"import sys, sandboxrl.rl.reports.pages.comparison; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"

"""The report: complete and broken runs, bounded size, and hostile text in a real browser."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sandboxrl.data.errors import InputError
from sandboxrl.envs.trajectory import Observation, StopReason, Tokens, ToolCall, Trajectory, Turn
from sandboxrl.rl.reports import excerpt
from sandboxrl.rl.reports import page as report
from tests.rl.reports.sample_run import write_sample_run

OWNED = "document.documentElement.setAttribute('data-owned','yes');alert(1)"
HOSTILE = (
    f'</script></title></style><script>{OWNED}</script><img src=x onerror="{OWNED}"><!--<script>\u2028\u202e\x00\x1b[2J'
)


def content(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="content">(.*?)</script>', page, re.S)
    assert found
    return json.loads(found[1])


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


def test_a_finished_run_shows_its_scores_curves_and_both_ends(run: Path) -> None:
    assert report.write_report(run) == run / "report.html"
    shown = content((run / "report.html").read_text())
    summary = json.loads((run / "summary.json").read_text())
    assert shown["title"] == "sample" and shown["status"] == "finished" and shown["notes"] == []
    assert shown["steps"] == list(range(13))
    heldout, training = shown["scores"]
    assert heldout == {
        "name": "Score on heldout",
        "before": summary["eval_before"]["heldout"],
        "after": summary["eval_after"]["heldout"],
        "detail": "before training to step 12",
    }
    assert training["before"] == shown["series"]["reward/mean"][1] and training["detail"] == "step 1 to step 12"
    facts = {one["label"]: one["value"] for one in shown["facts"]}
    assert facts["Steps"] == 12 and facts["Trajectories"] == 12 * 16 and facts["Wall time"] == summary["wall_s"]
    pairs = {pair["name"]: pair["sides"] for pair in shown["pairs"]}
    assert [side["label"] for side in pairs["Evaluation on heldout"]] == ["Before training", "Step 12"]
    sides = pairs["Training steps"]
    assert [side["label"] for side in sides] == ["Step 1", "Step 12"]
    assert [len(side["rows"]) for side in sides] == [16, 16]
    tasks = [{row["task"] for row in side["rows"]} for side in sides]
    assert tasks[0] & tasks[1], "the same task is on both sides"
    assert sides[0]["rows"][0]["task"] in tasks[1], "tasks that can be compared come first"
    assert "seed: 0" in shown["recipe"]


def test_every_token_is_there_once_and_in_order(run: Path) -> None:
    rows = [json.loads(line) for line in (run / "trajectories/step_000012.jsonl").open()]
    shown = content(report.report_page(run))["pairs"][0]["sides"][1]["rows"]
    row = rows[0]
    spans = next(one["spans"] for one in shown if one["seed"] == row["seed"])
    for key, name in (("ids", "ids"), ("mask", "mask"), ("versions", "versions")):
        assert [value for span in spans for value in span[key]] == row["tokens"][name]
    assert [text for span in spans for text in span["text"]] == row["token_text"]
    assert [span["kind"] for span in spans[:3]] == ["prompt", "turn", "observation"]
    assert all(span["mask"] == [span["kind"] == "turn"] * len(span["ids"]) for span in spans)
    assert [span["start"] for span in spans[1:]] == [span["start"] + len(span["ids"]) for span in spans[:-1]]


@pytest.mark.parametrize("missing", ["metrics.jsonl", "summary.json", "recipe.yaml", "trajectories"])
def test_a_page_comes_of_whatever_is_there(run: Path, tmp_path: Path, missing: str) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    path = copy / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    shown = content(report.report_page(copy))
    assert (shown["status"] == "finished") == (missing != "summary.json")
    assert [pair["name"] for pair in shown["pairs"]] == (
        [] if missing == "trajectories" else ["Training steps", "Evaluation on heldout"]
    )


def test_an_empty_folder_gives_a_page_and_no_folder_an_error(tmp_path: Path) -> None:
    shown = content(report.report_page(tmp_path))
    assert shown["status"] == "not finished" and len(shown["notes"]) == 2
    with pytest.raises(InputError, match="not a run folder"):
        report.report_page(tmp_path / "nowhere")


def test_a_killed_run_loses_only_its_torn_lines(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    (copy / "summary.json").write_text('{"status": "fini')
    for name in ("metrics.jsonl", "trajectories/step_000012.jsonl"):
        whole = (copy / name).read_bytes()
        (copy / name).write_bytes(whole[: len(whole) - 40])
    (copy / "trajectories/step_000013.jsonl").touch()
    shown = content(report.report_page(copy))
    assert shown["steps"] == list(range(13)) and "eval/heldout/score" in shown["series"]
    sides = shown["pairs"][0]["sides"]
    assert [(side["label"], len(side["rows"])) for side in sides] == [("Step 1", 16), ("Step 12", 15)]
    assert sum("1 line left out" in note for note in shown["notes"]) == 2
    assert any(note.startswith("summary.json") for note in shown["notes"])


def test_a_score_measured_once_is_no_change(tmp_path: Path) -> None:
    write_rows(tmp_path / "metrics.jsonl", [{"step": 0, "eval/heldout/score": 0.25}])
    (score,) = content(report.report_page(tmp_path))["scores"]
    assert (score["before"], score["after"]) == (None, 0.25)


def test_lines_of_one_step_are_one_row_and_numbers_json_lacks_become_null(tmp_path: Path) -> None:
    rows = [
        '{"step": 2, "loss": NaN, "reward/mean": 0.5}',
        '{"step": 1, "loss": 1.0}',
        "[]",
        '{"step": 2, "loss": Infinity}',
    ]
    write_rows(tmp_path / "metrics.jsonl", [*rows, '{"step": 2, "eval/heldout/score": 0.25}'])
    shown = content(report.report_page(tmp_path))
    assert shown["steps"] == [1, 2]
    assert shown["series"] == {"loss": [1.0, None], "reward/mean": [None, 0.5], "eval/heldout/score": [None, 0.25]}


def test_a_large_run_is_cut_to_a_bounded_page_that_says_so(tmp_path: Path) -> None:
    size = 20_000
    tokens = Tokens([7] * size, [0] * 1000 + [1] * (size - 1000), [-0.123456789] * size, [3] * size)
    turns = (Turn("word " * 50_000, start=1000, end=size), *[Turn("more") for _ in range(150)])
    row = endpoint_trajectory(tokens=tokens, turns=turns, answer="x" * 100_000).to_dict() | {
        "token_text": ["word "] * size
    }
    for step in (1, 2):
        write_rows(tmp_path / f"trajectories/step_{step:06d}.jsonl", [json.dumps(row)] * 50)
    write_rows(tmp_path / "metrics.jsonl", [{"step": i, "reward/mean": 0.5, "loss": 0.1} for i in range(20_000)])
    page = report.report_page(tmp_path)
    shown = content(page)
    assert len(page) < excerpt.MAX_PAGE_BYTES + (1 << 20)
    _, side = shown["pairs"][0]["sides"]
    assert side["count"] == 50 and 0 < len(side["rows"]) < 50
    assert any("of 50 trajectories are shown" in note for note in shown["notes"])
    assert any("of 20000 steps" in note for note in shown["notes"]) and shown["steps"][-1] == 19_999
    spans = side["rows"][0]["spans"]
    assert sum(len(span["ids"]) + span["omitted"] for span in spans) == size
    assert spans[1]["omitted"] == size - excerpt.HEAD_TOKENS - excerpt.TAIL_TOKENS
    assert spans[1]["start"] + spans[1]["omitted_at"] == excerpt.HEAD_TOKENS
    assert "\n… 244000 characters left out …\n" in side["rows"][0]["turns"][0]["text"]
    assert len(side["rows"][0]["turns"]) == excerpt.HEAD_TURNS + excerpt.TAIL_TURNS


def test_the_viewer_sets_the_two_modes_side_by_side(tmp_path: Path) -> None:
    rows = [
        endpoint_trajectory(task_id=f"t{i}", mode=mode, score=float(i % 2))
        for i in range(4)
        for mode in ("llm", "sandbox")
    ]
    path = write_rows(tmp_path / "eval/results.jsonl", [row.to_dict() | {"benchmark": "aime25"} for row in rows])
    shown = content(report.view_trajectories([path]))
    assert shown["title"] == "eval" and [side["label"] for side in shown["pairs"][0]["sides"]] == [
        "sandbox mode",
        "llm mode",
    ]
    assert [(row["mode"], row["count"], row["score"]) for row in shown["table"]] == [
        ("llm", 4, 0.5),
        ("sandbox", 4, 0.5),
    ]
    assert shown["pairs"][0]["sides"][0]["rows"][0]["spans"] is None


def test_the_viewer_takes_several_files_and_refuses_what_holds_nothing(tmp_path: Path) -> None:
    files = [write_rows(tmp_path / f"{name}.jsonl", [endpoint_trajectory().to_dict()]) for name in "abc"]
    shown = content(report.view_trajectories(files))
    assert [side["label"] for side in shown["pairs"][0]["sides"]] == [
        str(files[0]),
        str(files[2]),
    ] and "first and the last" in shown["notes"][0]
    good = endpoint_trajectory(tokens=Tokens([1], [1], [0.0], [0])).to_dict()
    changes = ({"score": "high"}, {"answer": 4}, {"advantage": [1]}, {"tokens": good["tokens"] | {"mask": []}})
    foreign = [good | change for change in changes]
    deep = "[" * 5000 + "]" * 5000
    bad = write_rows(
        tmp_path / "bad.jsonl", ['{"task_id": "t"}', "null", deep, json.dumps({"score": "high"}), *foreign]
    )
    with pytest.raises(InputError, match="no trajectory in .*bad.jsonl.*8 lines left out"):
        report.view_trajectories([bad])
    with pytest.raises(InputError, match="not a file"):
        report.view_trajectories([tmp_path / "none.jsonl"])


def test_nothing_is_fetched_and_one_script_may_run(run: Path) -> None:
    page = report.report_page(run)
    assert "default-src 'none'; script-src 'sha256-" in page
    outside = re.findall(r"(?:https?:)?//[a-z][\w.]+\.\w+", page.replace("http://www.w3.org/2000/svg", ""))
    assert outside == []
    assert not re.search(r"\b(innerHTML|outerHTML|insertAdjacentHTML|eval\(|Function\(|document\.write)", page)


def test_the_report_needs_no_heavy_library() -> None:
    heavy = {"torch", "ray", "vllm", "transformers"}
    code = f"import sys, sandboxrl.rl.reports.page; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# ---- in a real browser

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium")


def dom(page: Path, profile: Path, state: str = "") -> str:
    """The page's DOM after its scripts ran, as text."""
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    command = [
        str(BROWSER),
        *flags.split(),
        "--disable-sync",
        "--disable-component-update",
        f"--user-data-dir={profile}",
    ]
    command += ["--virtual-time-budget=3000", "--dump-dom", f"{page.as_uri()}#{state}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def hostile_run(folder: Path) -> Path:
    call = ToolCall(HOSTILE, {HOSTILE: HOSTILE, "deep": {"a": [HOSTILE]}}, error=HOSTILE)
    answer = Observation(HOSTILE, HOSTILE, is_error=True, exit_code=1, timed_out=True)
    turn = Turn(HOSTILE, (call,), (answer,), reasoning=HOSTILE, start=1, end=3, cut=True)
    tokens = Tokens([1, 2, 3, 4], [0, 1, 1, 0], [0.0, -1.0, float("-inf"), 0.0], [-1, 0, 1, -1])
    row = endpoint_trajectory(
        task_id=HOSTILE, source=HOSTILE, turns=(turn,), tokens=tokens, answer=HOSTILE, error=HOSTILE
    ).to_dict()
    rows = [row | {"token_text": [HOSTILE] * 4, "advantage": 0.5}] * 2
    for name in ("step_000001", "step_000002", f"eval_{HOSTILE.replace('/', '')[:60]}_000001"):
        write_rows(folder / f"trajectories/{name}.jsonl", rows)
    write_rows(folder / "metrics.jsonl", [{"step": i, HOSTILE: i, f"eval/{HOSTILE}/score": 0.5} for i in (1, 2)])
    (folder / "recipe.yaml").write_text(HOSTILE)
    write_rows(folder / "summary.json", [{"status": HOSTILE, "eval_before": {HOSTILE: 0}, "eval_after": {HOSTILE: 1}}])
    return folder


@browser
def test_the_page_draws_itself(run: Path, tmp_path: Path) -> None:
    page = report.write_report(run)
    text = dom(page, tmp_path / "profile")
    assert text.count('class="chart"') >= 8 and text.count('class="side"') == 2
    assert "Let me look at what is there." in text
    tokens = dom(page, tmp_path / "profile", "view=tokens")
    assert tokens.count("<u") > 100 and "Environment after turn 1" in tokens


@browser
@pytest.mark.parametrize("state", ["view=text", "view=tokens"])
def test_hostile_text_runs_no_script(tmp_path: Path, state: str) -> None:
    control = tmp_path / "control.html"
    control.write_text(f"<script>{OWNED.replace('alert(1)', '')}</script>")
    assert 'data-owned="yes"' in dom(control, tmp_path / "profile"), "the method would see a script that ran"

    page = report.write_report(hostile_run(tmp_path / "run</title><script>alert(1)"))
    text = dom(page, tmp_path / "profile", state)
    opening = text[: text.index("<body>")]
    assert "data-owned" not in opening and "<img" not in text
    assert text.count("<script") == 2 and 'class="side"' in text
    assert "⟨202e⟩" in text and "\u202e" not in text

"""`sandboxrl data build` and `data check`, as a person calls them."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sandboxrl.data.sources import load_source
from sandboxrl.data.task import Task
from sandboxrl.envs.grading.grader import Grader
from sandboxrl.envs.sandbox.pool import Pool, open_backend
from sandboxrl.envs.sandbox.protocol import DOCUMENTS, BackendUnavailable, SandboxConfig

ROOT = Path(__file__).resolve().parents[2]
REAL = os.environ.get("SANDBOXRL_REAL_DATA", "")


def sandboxrl(*words: object, hash_seed: str = "0") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sandboxrl.launch", "data", *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        timeout=120,
    )


def write(path: Path, *tasks: Task) -> Path:
    path.write_text("".join(task.to_json() + "\n" for task in tasks))
    return path


GOOD = Task(
    "g",
    "s",
    "What colour is the old barn by the quiet lake in the story of the owl?",
    "red",
    "rouge",
    {"barn.txt": "It is red."},
)


def test_build_then_check(tmp_path: Path) -> None:
    out = tmp_path / "tasks.jsonl"
    done = sandboxrl("build", "builtin", "size=tiny", "num_tasks=60", "--out", out)
    assert done.returncode == 0, done.stderr
    assert "60 tasks" in done.stdout and len(out.read_text().split("\n")) == 61
    assert load_source(str(out)) == load_source({"source": "builtin", "size": "tiny", "num_tasks": 60})
    checked = sandboxrl("check", out)
    assert checked.returncode == 0, checked.stdout
    assert "all is well" in checked.stdout and "the gold answer scores 1" in checked.stdout


def test_building_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    story = "The fox crossed the river at dawn and carried a lamp through the quiet northern hills. "
    rows.write_text(
        "".join(
            json.dumps({"context": f"{story}{i} " * 3, "QA_list": [["Who?", f"fox {i}"], ["When?", "dawn"]]}) + "\n"
            for i in range(30)
        )
    )
    files = []
    for hash_seed in ("1", "2"):
        files.append(tmp_path / f"{hash_seed}.jsonl")
        done = sandboxrl("build", "general", f"path={rows}", "seed=5", "--out", files[-1], hash_seed=hash_seed)
        assert done.returncode == 0, done.stderr
    assert files[0].read_bytes() == files[1].read_bytes()


def test_bad_rows_are_named_and_strict_leaves_no_file(tmp_path: Path) -> None:
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    rows.write_text(GOOD.to_json() + '\n{"broken": \n' + json.dumps({"question": "Q", "gold": "x"}) + "\n")
    done = sandboxrl("build", rows, "--out", out)
    assert done.returncode == 0 and f"{rows}:2: broken JSON" in done.stderr and f"{rows}:3" in done.stderr
    assert load_source(str(out)) == [GOOD]
    out.unlink()
    strict = sandboxrl("build", rows, "--strict", "--out", out)
    assert strict.returncode == 2 and "2 bad rows" in strict.stderr and "Traceback" not in strict.stderr
    assert sorted(file.name for file in tmp_path.iterdir()) == ["rows.jsonl"]
    assert sandboxrl("check", rows).returncode == 1


@pytest.mark.parametrize(
    ("task", "finding"),
    [
        (Task("w", "s", "Q?", "", "rouge"), "the gold is empty"),
        (Task("w", "s", "Q?", "C", "choice", options=("x", "y")), "gold 'C' does not name letters"),
        (Task("w", "s", "Q?", "three", "number"), "gold 'three' is not a number"),
        (Task("w", "s", "Q?", "three dogs", "math"), "is prose"),
        (Task("w", "s", "Q?", "x", "exact", {"a.txt": " "}), "a.txt is empty"),
        (Task("w", "s", "What is in notes.txt?", "x", "exact", {"a.txt": "y"}), "speaks of notes.txt"),
        (Task("w", "s", "Where?", "old town", "exact", {"old_town.txt": "y"}), "'old town' stands in a name"),
        (
            Task("w", "s", "Q?", "the old stone barn", "rouge", examples=(("It?", "the old stone barn"),)),
            "an example shows",
        ),
        (Task("w", "s", "A\x0crac", "x", "exact"), "question: U+000C"),
        (Task("g", "s", "Q?", "x", "exact"), "this id was used before"),
        (Task("w", "s", GOOD.question, "red", "rouge", GOOD.documents), "the same as g"),
        (Task("w", "s", "Q?", '{"command": "x"}', "tests", image="i"), "needs a command, and expected"),
    ],
)
def test_check_finds_what_is_wrong(tmp_path: Path, task: Task, finding: str) -> None:
    done = sandboxrl("check", write(tmp_path / "tasks.jsonl", GOOD, task))
    assert done.returncode == 1 and finding in done.stdout, done.stdout
    assert "WRONG" in done.stdout and "Traceback" not in done.stderr


def test_check_finds_evaluation_tasks_among_training_tasks(tmp_path: Path) -> None:
    evaluation = write(tmp_path / "eval.jsonl", GOOD)
    leaked = Task("l", "s", "Q?", "x", "exact", {"a.txt": f"Somebody wrote: {GOOD.question.upper()} and more."})
    training = write(tmp_path / "train.jsonl", leaked, Task("f", "s", "Something else?", "x", "exact"))
    done = sandboxrl("check", training, "--against", evaluation)
    assert done.returncode == 1 and "l: document a.txt: shares words with s g" in done.stdout, done.stdout
    assert "1 problem\n" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("check", "nowhere.jsonl"), "neither a task source nor a benchmark nor a file"),
        (("check", "bultin"), "did you mean 'builtin'"),
        (("check", "builtin", "sze=tiny"), "did you mean 'size'"),
        (("check", "builtin", "num_tasks=many"), "num_tasks must be int"),
        (("check", "builtin", "size"), "an option is key=value"),
        (("build", "builtin", "--out", "no/such/folder/x.jsonl"), "no such folder"),
    ],
)
def test_wrong_words_are_one_line_and_exit_code_2(words: tuple[str, ...], message: str) -> None:
    done = sandboxrl(*words)
    assert done.returncode == 2 and message in done.stderr
    assert done.stderr.count("\n") == 1 and not done.stdout


FIXED = {"add": "return a + b", "double": "return 2 * a", "last": "return a[-1]", "negate": "return -a"}


def test_a_fixed_repository_passes_its_hidden_tests_and_an_untouched_one_does_not() -> None:
    async def scores(task: Task, name: str) -> list[float]:
        pool = Pool(open_backend(SandboxConfig()), warm=0)
        grader = Grader(pool=pool)
        (path, text), *_ = task.documents.items()
        head, _, _ = text.rpartition("return")
        found = []
        try:
            for work in (text, head + FIXED[name] + "\n"):
                async with pool.sandbox() as box:
                    await box.write({f"{DOCUMENTS}/{path}": work.encode()})
                    found.append(await grader.grade(task, "done", box))
        finally:
            await grader.close()
            await pool.close()
        return found

    try:
        for task in load_source({"source": "swe", "path": str(ROOT / "recipes/ablations/tiny/swe.jsonl")}):
            assert asyncio.run(scores(task, task.id.removeprefix("tiny-"))) == [0.0, 1.0], task.id
    except BackendUnavailable as error:
        pytest.skip(str(error))


@pytest.mark.skipif(not REAL, reason="SANDBOXRL_REAL_DATA names no folder")
@pytest.mark.parametrize(
    "words",
    [
        ("general", "path={}/context_qa/fairytaleqa"),
        ("general", "path={}/context_qa/pubmedqa"),
        ("general", "path={}/context_qa/qed"),
        ("general", "path={}/context_qa/wikitablequestions"),
        ("math", "path={}/dapo_math"),
        ("medxpertqa", "path={}/medxpertqa"),
    ],
)
def test_real_rows_score_1_on_gold_and_0_on_silence(words: tuple[str, str]) -> None:
    done = sandboxrl("check", *(word.format(REAL) for word in words))
    assert done.returncode == 0 and "all is well" in done.stdout, done.stdout

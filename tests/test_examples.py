"""The examples of docs/extend.md, each from a folder outside the checkout, as a user's own files."""

import asyncio
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sandboxrl.data.errors import InputError
from sandboxrl.data.task import Task
from sandboxrl.envs.grading import Grader, GraderConfig
from sandboxrl.envs.sandbox import SandboxConfig, open_backend
from sandboxrl.envs.tools.tool_set import tool_set
from sandboxrl.envs.trajectory import Observation, ToolCall
from sandboxrl.rl.config import load_recipe
from sandboxrl.rl.grpo import LossConfig, advantages, token_loss
from sandboxrl.rl.own_code import with_code
from tests.rl.test_trainer import CountingLearners, CountingWorkers, run

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the examples where nothing else of the project is."""
    return Path(shutil.copytree(ROOT / "docs" / "examples", tmp_path / "own"))


@pytest.mark.parametrize("example", sorted((ROOT / "docs" / "examples").glob("*.py")), ids=lambda path: path.name)
def test_an_example_is_short_and_shown(example: Path) -> None:
    assert len(example.read_text().splitlines()) <= 40
    assert f"(examples/{example.name})" in (ROOT / "docs" / "extend.md").read_text()


def test_a_recipe_takes_them_all(folder: Path) -> None:
    (folder / "own.yaml").write_text(
        f"extends: {ROOT}/recipes/tiny.yaml\n"
        "tools: [bash, file_editor, finish, search_tool.py:search]\n"
        "sandbox: {backend: seeded_backend.py:Seeded, options: {folder: course}}\n"
        "loss: {advantage: learning.py:ranked, policy_loss: learning.py:reinforce}\n"
        "hooks: [stop_early.py:StopEarly]\n"
    )
    recipe = with_code(load_recipe(folder / "own.yaml"))
    assert sorted(Path(value.partition(":")[0]).name for value in recipe.code) == [
        "learning.py",
        "learning.py",
        "search_tool.py",
        "seeded_backend.py",
        "stop_early.py",
    ]


def test_the_backend_keeps_the_contract(folder: Path) -> None:
    (folder / "course").mkdir()
    (folder / "course" / "a.txt").write_text("seeded")
    words = ["check", "backend", "seeded_backend.py:Seeded", "--option", "folder=course"]
    done = subprocess.run(
        [sys.executable, "-m", "sandboxrl.launch", *words], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "clauses are kept" in done.stdout
    config = SandboxConfig(backend=f"{folder}/seeded_backend.py:Seeded", options={"folder": f"{folder}/course"})

    async def body() -> bytes:
        backend = open_backend(config)
        try:
            box = await backend.start()
            return await box.read("a.txt")
        finally:
            await backend.close()

    assert asyncio.run(body()) == b"seeded"


def test_a_backend_that_is_none_is_refused(folder: Path) -> None:
    (folder / "bad.py").write_text(
        "class NoStart:\n    def __init__(self, config): ...\nclass Plain: ...\nnumber = 1\n"
    )
    for name, wrong in (("NoStart", "start"), ("Plain", "config"), ("number", "function"), ("Noplain", "Plain")):
        with pytest.raises(InputError, match=wrong):
            open_backend(SandboxConfig(backend=f"{folder}/bad.py:{name}"))
    with pytest.raises(InputError, match="did you mean 'docker'"):
        open_backend(SandboxConfig(backend="dokcer"))
    with pytest.raises(InputError, match="options"):
        open_backend(SandboxConfig(options={"a": 1}))


def test_the_tool(folder: Path) -> None:
    tools = tool_set("paper", ["finish", f"{folder}/search_tool.py:search"])
    calls = [{"word": "Ada"}, {"word": "x"}, {"word": "Ada", "most": "3"}]

    async def answers() -> list[Observation]:
        backend = open_backend(SandboxConfig())
        try:
            box = await backend.start()
            try:
                await box.write({"documents/a.txt": b"Ada wrote it.\nBob did not.\n"})
                return [await tools.run(ToolCall("search", arguments), box, 5.0) for arguments in calls]
            finally:
                await box.close()
        finally:
            await backend.close()

    found, short, wrong = asyncio.run(answers())
    assert found.text == "documents/a.txt:1:Ada wrote it.\n" and not found.is_error
    assert short.text == "Error: a word has at least 3 letters"
    assert "must be a whole number" in wrong.text


def test_the_advantage_and_the_loss(folder: Path) -> None:
    assert advantages([0.0, 0.2, 1.0, 0.2], f"{folder}/learning.py:ranked") == [-1.0, 0.0, 1.0, 0.0]
    logprobs = torch.tensor([-1.0, -3.0], requires_grad=True)
    fixed = logprobs.detach()
    config = LossConfig(policy_loss=f"{folder}/learning.py:reinforce")
    loss, held = token_loss(logprobs, fixed, fixed, torch.tensor([1.0, -1.0]), torch.tensor([0, 1]), config)
    loss.sum().backward()
    assert logprobs.grad is not None and logprobs.grad.tolist() == [-1.0, 1.0] and not held.any()


def test_the_hook(folder: Path, tmp_path: Path) -> None:
    words = ("groups_per_step=2", "group_size=2", "steps=3", "evaluation.every=0", f"out={tmp_path}/runs")
    recipe = load_recipe(ROOT / "recipes/tiny.yaml", [*words, f"hooks=[{folder}/stop_early.py:StopEarly]"])
    rows = run(recipe, CountingWorkers(), CountingLearners()).rows
    assert all("answer/characters" in row for row in rows if "reward/mean" in row)


def test_the_agent(folder: Path) -> None:
    row = {"id": 1, "problem": "What is 20 plus 14?", "answer": "34"}
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
    page = (ROOT / "docs" / "extend.md").read_text()
    command = re.search(r"^    sandboxrl (evaluate --policy .*)$", page, re.MULTILINE)
    assert command
    done = subprocess.run(
        [sys.executable, "-m", "sandboxrl.launch", *command[1].split(), "--repeats", "1"],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((folder / "results" / "summary.json").read_text())
    assert {mode: numbers["score"] for mode, numbers in summary["aime25"].items()} == {"llm": 1.0, "sandbox": 1.0}


def run_verb(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sandboxrl.launch", *words], cwd=folder, capture_output=True, text=True
    )


def test_the_rewards(folder: Path) -> None:
    names = ("no_longer", "tidy")
    rows = [{"question": f"Who is {name}?", "answer": "Ada", "reward": f"my_reward.py:{name}"} for name in names]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    checked = run_verb(folder, "data", "check", "rows.jsonl")
    assert checked.returncode == 0 and "ok    the gold answer scores 1" in checked.stdout, (
        checked.stdout + checked.stderr
    )

    async def scores() -> list[float]:
        grader = Grader(GraderConfig(kinds={"rouge": f"{folder}/my_reward.py:SHORT"}))
        backend = open_backend(SandboxConfig())
        tidy = Task("t", "s", "Who?", "Ada", f"{folder}/my_reward.py:tidy")
        replaced = Task("t", "s", "Who?", "Ada", "rouge")
        try:
            box = await backend.start()
            try:
                await box.write({"left.txt": b"x"})
                assert grader.kind(replaced).ask == "The answer is one or two words."
                return [await grader.grade(one, "It is Ada", box) for one in (tidy, replaced)]
            finally:
                await box.close()
        finally:
            await backend.close()
            await grader.close()

    assert asyncio.run(scores()) == [0.25, 0.5]


def test_the_form_of_rows(folder: Path) -> None:
    (folder / "quiz.csv").write_text("frage,antwort,thema\nWer?,Ada,Ada schrieb.\nWo?,,Nirgends.\n")
    built = run_verb(folder, "data", "build", "files", "path=quiz.csv", "format=my_rows.py:quiz", "--out", "t.jsonl")
    assert built.returncode == 0 and "quiz.csv:3: no answer" in built.stderr, built.stderr
    (task,) = [json.loads(line) for line in (folder / "t.jsonl").read_text().splitlines()]
    assert (task["question"], task["gold"], task["documents"]) == ("Wer?", "Ada", {"theme.txt": "Ada schrieb."})


def test_the_source(folder: Path) -> None:
    words = ("data", "build", "my_tasks.py:sums", "digits=3", "num_tasks=5", "--out", "t.jsonl")
    built = run_verb(folder, *words)
    assert built.returncode == 0 and len((folder / "t.jsonl").read_text().splitlines()) == 5, built.stderr
    wrong = run_verb(folder, *words[:3], "digit=3", "--out", "t.jsonl")
    assert wrong.returncode == 2 and "did you mean 'digits'?" in wrong.stderr

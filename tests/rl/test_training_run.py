"""What is checked before anything of a run is started, and what a run leaves when it fails."""

import asyncio
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from sandboxrl.data.errors import InputError
from sandboxrl.data.task import Task
from sandboxrl.rl.cluster.connect import connect
from sandboxrl.rl.config import Recipe, load_recipe
from sandboxrl.rl.reports.trackers.wandb import wandb_id
from sandboxrl.rl.run import MODEL_FILE, check_gradable, model_of_run, resolve_model

ROOT = Path(__file__).resolve().parents[2]
TASK = Task(id="t", source="s", question="?", gold="1", reward="exact")


def recipe(*overrides: str) -> Recipe:
    return load_recipe(ROOT / "recipes/tiny.yaml", overrides)


@pytest.mark.parametrize(
    ("mode", "reward", "message"),
    [
        ("sandbox", "judge_physics", "judge model"),
        ("llm", "tests", "needs mode: sandbox"),
        ("sandbox", "tests", "not as documented"),
    ],
)
def test_tasks_that_nothing_can_grade_are_refused_before_the_start(mode: str, reward: str, message: str) -> None:
    tasks = [TASK, replace(TASK, reward=reward)]
    with pytest.raises(InputError, match=message):
        asyncio.run(check_gradable(recipe(f"mode={mode}"), tasks))
    asyncio.run(check_gradable(recipe(f"mode={mode}"), [TASK]))


def test_a_cluster_that_is_not_there_is_said_at_once() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        with pytest.raises(InputError, match="nothing answers at 127.0.0.1"):
            connect(f"127.0.0.1:{nobody.getsockname()[1]}")


def test_a_continued_run_goes_on_in_wandb_and_a_new_one_of_the_same_name_is_another(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    second.mkdir()
    assert wandb_id(first) == wandb_id(first) != wandb_id(second)


def test_a_run_keeps_the_model_it_started_from(tmp_path: Path) -> None:
    model, run = tmp_path / "model", tmp_path / "run"
    model.mkdir()
    run.mkdir()
    (run / MODEL_FILE).write_text(str(model))
    assert model_of_run(recipe("model.path=/nowhere"), run) == str(model)
    model.rmdir()
    with pytest.raises(InputError, match="no such folder: /nowhere"):
        model_of_run(recipe("model.path=/nowhere"), run)


@pytest.mark.parametrize("path", ["", "/nowhere", "./nowhere", "nowhere"])
def test_a_model_that_is_not_there_is_said_so(path: str) -> None:
    with pytest.raises(InputError, match="model.path"):
        resolve_model(path)

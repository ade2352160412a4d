"""A recipe's own advantage, loss and hooks: found, checked, noted, typed when they fail, refused when they changed."""

import asyncio
from pathlib import Path

import pytest
import torch

from sandboxrl.data.errors import InputError
from sandboxrl.data.plugin import OwnCodeFailed, called, plugged
from sandboxrl.rl.config import Recipe, load_recipe, save_recipe
from sandboxrl.rl.continuing import changes
from sandboxrl.rl.grpo import LossConfig, advantages, token_loss
from sandboxrl.rl.hooks import load_hooks
from sandboxrl.rl.own_code import with_code
from tests.rl.test_trainer import CountingLearners, CountingWorkers, run

ROOT = Path(__file__).resolve().parents[2]
CODE = """
import time, torch
from sandboxrl.rl.hooks import StopRun

def doubled(rewards, lengths):
    mean = sum(rewards) / len(rewards)
    return [2 * (reward - mean) for reward in rewards]

def raises(*arguments): 1 / 0
def hangs(*arguments): time.sleep(1000)
def nan(rewards, lengths): return [float("nan")] * len(rewards)
def too_few(rewards, lengths): return [0.0]
def text(rewards, lengths): return "ab"
def one_argument(rewards): return rewards

def reinforce(logprobs, old, advantages, trajectory, config):
    return -advantages * logprobs, torch.zeros_like(logprobs, dtype=torch.bool)

def scalar(logprobs, old, advantages, trajectory, config):
    return (-advantages * logprobs).mean(), torch.zeros(())

def lengths(step, groups, row):
    return {"mine/turns": float(max(len(t.turns) for g in groups for t in g.trajectories)), "mine/step": step}

class Third:
    def __init__(self): self.count = 0
    def __call__(self, step, groups, row):
        self.count += 1
        if self.count == 3:
            raise StopRun("three are enough")

def overwrites(step, groups, row): return {"loss": 0.0}
def two(step, groups, row): return {"mine": "2"}
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(CODE)
    return f"{tmp_path}/mine.py"


def recipe(tmp_path: Path, *words: str) -> Recipe:
    small = ("groups_per_step=2", "group_size=2", "learner.minibatches=1", "steps=5", f"out={tmp_path}/runs")
    return load_recipe(ROOT / "recipes/tiny.yaml", [*small, "evaluation.every=0", *words])


def test_an_own_advantage_and_an_own_loss(file: str) -> None:
    assert advantages([1.0, 0.0], f"{file}:doubled") == [1.0, -1.0]
    assert advantages([1.0, 1.0], f"{file}:raises") == [0.0, 0.0]  # no signal: not even asked
    logprobs = torch.tensor([-1.0, -2.0], requires_grad=True)
    arguments = (logprobs, logprobs.detach(), logprobs.detach(), torch.tensor([1.0, -1.0]), torch.tensor([0, 1]))
    loss, held = token_loss(*arguments, LossConfig(policy_loss=f"{file}:reinforce"))
    assert loss.tolist() == [1.0, -2.0] and not held.any()
    for name, message in (("scalar", r"gave back shapes .* for \(2,\) tokens"), ("raises", "ZeroDivisionError")):
        with pytest.raises(OwnCodeFailed, match=message):
            token_loss(*arguments, LossConfig(policy_loss=f"{file}:{name}"))


@pytest.mark.parametrize(
    ("name", "message"),
    [("raises", "ZeroDivisionError"), ("nan", "not a finite number"), ("too_few", "2 traj"), ("text", "not a number")],
)
def test_an_own_advantage_that_is_wrong_is_a_typed_failure(file: str, name: str, message: str) -> None:
    with pytest.raises(OwnCodeFailed, match=message):
        advantages([1.0, 0.0], f"{file}:{name}")


def test_what_hangs_is_left_behind(file: str) -> None:
    with pytest.raises(OwnCodeFailed, match="x did not return within 0.2 s"):
        called("x", plugged(f"{file}:hangs", {}, "x"), timeout_s=0.2)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("loss.advantage=FILE:one_argument", r"must take \(rewards, lengths\), not \(rewards\)"),
        ("loss.advantage=leave_on_out", "did you mean 'leave_one_out'"),
        ("loss.policy_loss=FILE:doubled", r"must take \(logprobs, old"),
        ("loss.policy_loss=no_such_module:loss", "no_such_module cannot be imported"),
        ("hooks=[FILE:doubled]", r"must take \(step, groups, row\)"),
        ("hooks=[FILE:nothing]", "there is no 'nothing'"),
        ("tools=[bash]", "none of them ends a task"),
    ],
)
def test_what_has_the_wrong_shape_is_refused_before_anything_starts(
    tmp_path: Path, file: str, word: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        with_code(recipe(tmp_path, word.replace("FILE", file)))


def test_hooks_add_columns_and_stop_the_run(tmp_path: Path, file: str) -> None:
    made = recipe(tmp_path, f"hooks=[{file}:lengths,{file}:Third]")
    log = run(made, CountingWorkers(), CountingLearners())
    rows = [row for row in log.rows if "reward/mean" in row]
    assert [row["mine/step"] for row in rows] == [1, 2, 3]
    assert (made.run_dir / "checkpoints" / "step_000003").is_dir()


@pytest.mark.parametrize(
    ("name", "message"),
    [("raises", "ZeroDivisionError"), ("overwrites", "'loss' is not a new column"), ("two", "'2', not a finite")],
)
def test_a_hook_that_is_wrong_is_a_typed_failure(file: str, name: str, message: str) -> None:
    with pytest.raises(OwnCodeFailed, match=message):
        asyncio.run(load_hooks([f"{file}:{name}"])(1, [], {"loss": 1.0}))


def test_paths_count_from_the_recipe_and_changed_code_is_refused(tmp_path: Path, file: str) -> None:
    (tmp_path / "own.yaml").write_text(f"extends: {ROOT}/recipes/tiny.yaml\nloss: {{advantage: mine.py:doubled}}\n")
    made = with_code(load_recipe(tmp_path / "own.yaml", [f"out={tmp_path}"]))
    assert made.loss.advantage == f"{tmp_path.resolve()}/mine.py:doubled" and list(made.code) == [made.loss.advantage]
    made.run_dir.mkdir(parents=True)
    save_recipe(made, made.run_dir / "recipe.yaml")
    (made.run_dir / "metrics.jsonl").write_text('{"step": 1}\n')  # it has begun
    assert changes(made) == {}
    Path(file).write_text(CODE.replace("2 * (", "3 * ("))
    with pytest.raises(InputError, match="mine.py:doubled has changed since"):
        changes(with_code(load_recipe(tmp_path / "own.yaml", [f"out={tmp_path}"])))

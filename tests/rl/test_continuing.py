"""A run folder: what may change when a run goes on, a copied one, going back, and what is left of one that came to
nothing."""

import json
import shutil
from pathlib import Path

import pytest

from sandboxrl.data.errors import InputError
from sandboxrl.launch.__main__ import main
from sandboxrl.launch.train import recipe_named
from sandboxrl.rl.config import Recipe, load_recipe, save_recipe
from sandboxrl.rl.continuing import changes, go_back, held

TINY = Path(__file__).resolve().parents[2] / "recipes/tiny.yaml"


def recipe(out: Path, *words: str) -> Recipe:
    return load_recipe(TINY, [f"out={out}", "name=a", *words])


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """The folder of a run that has done two steps."""
    run = recipe(tmp_path).run_dir
    run.mkdir()
    save_recipe(recipe(tmp_path), run / "recipe.yaml")
    (run / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    return run


def test_how_it_is_carried_out_may_change_and_is_told(begun: Path, tmp_path: Path) -> None:
    words = ["engine.max_num_seqs=8", "learner.max_tokens_per_row=2048", "sandbox.warm=1", "retries=5"]
    assert changes(recipe(tmp_path, *words)) == {
        "engine.max_num_seqs": (64, 8),
        "learner.max_tokens_per_row": (4096, 2048),
        "retries": (2, 5),
        "sandbox.warm": (64, 1),
    }


@pytest.mark.parametrize(
    "word", ["seed=7", "learner.learning_rate=1e-3", "limits.max_turns=3", "sandbox.backend=docker"]
)
def test_the_experiment_may_not_change_once_it_has_begun(word: str, begun: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"was made with {word.partition('=')[0]}="):
        changes(recipe(tmp_path, word))
    (begun / "metrics.jsonl").unlink()
    assert word.partition("=")[0] in changes(recipe(tmp_path, word))


def test_steps_are_the_experiment_where_the_learning_rate_falls_over_them(begun: Path, tmp_path: Path) -> None:
    level, falling = ["learner.schedule=constant", "learner.schedule_floor=0"], ["learner.schedule=cosine"]
    save_recipe(recipe(tmp_path, *level), begun / "recipe.yaml")
    assert list(changes(recipe(tmp_path, *level, "steps=40"))) == ["steps"]
    save_recipe(recipe(tmp_path, *falling), begun / "recipe.yaml")
    with pytest.raises(InputError, match="steps=30, not 40"):
        changes(recipe(tmp_path, *falling, "steps=40"))


def test_a_copied_folder_goes_on_under_its_new_name(begun: Path, tmp_path: Path) -> None:
    shutil.copytree(begun, tmp_path / "elsewhere" / "b")
    for word in (tmp_path / "elsewhere/b", tmp_path / "elsewhere/b/recipe.yaml"):
        found = recipe_named(str(word), [])
        assert found.run_dir == tmp_path / "elsewhere" / "b"
        assert changes(found) == {}


def test_a_finished_run_is_left_as_it_is(begun: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (begun / "summary.json").write_text(json.dumps({"status": "finished", "steps": recipe(tmp_path).steps}))
    before = {file.name: file.read_bytes() for file in begun.iterdir()}
    assert main(["train", str(TINY), f"out={tmp_path}", "name=a", "sandbox.warm=3"]) == 0
    assert "is finished already" in capsys.readouterr().out
    assert {file.name: file.read_bytes() for file in begun.iterdir() if file.name != ".lock"} == before


def test_going_back_removes_later_checkpoints(begun: Path) -> None:
    for step in (2, 4, 6):
        (begun / "checkpoints" / f"step_{step:06d}").mkdir(parents=True)
    with pytest.raises(InputError, match=r"no checkpoint of it; there are: \[2, 4, 6\]"):
        go_back(begun, 3)
    assert go_back(begun, 2) == [4, 6]
    assert [one.name for one in (begun / "checkpoints").iterdir()] == ["step_000002"]


def test_a_new_folder_that_came_to_nothing_is_gone_and_one_that_was_there_stays(begun: Path, tmp_path: Path) -> None:
    new = recipe(tmp_path / "deep" / "er")
    with pytest.raises(InputError), held(new, fresh=False):
        raise InputError("the model is not there")
    assert not (tmp_path / "deep").exists()
    with pytest.raises(InputError), held(recipe(tmp_path), fresh=False):
        raise InputError("the model is not there")
    assert (begun / "recipe.yaml").is_file()
    with pytest.raises(InputError, match="leave out --fresh"), held(recipe(tmp_path), fresh=True):
        pass
    with held(recipe(tmp_path), fresh=False), pytest.raises(InputError, match="in use by another process"):
        with held(recipe(tmp_path), fresh=False):
            pass

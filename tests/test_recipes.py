"""Recipes: each file resolves, runs by itself and round-trips; what is wrong in one is said in one line."""

import os
import re
from pathlib import Path

import pytest

from sandboxrl.data.errors import InputError
from sandboxrl.rl.config import Recipe, load_recipe, save_recipe

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_recipe_is_executable_and_loads_and_round_trips(path: Path, tmp_path: Path) -> None:
    assert path.read_text().startswith("#!/usr/bin/env -S python -m sandboxrl.launch train\n")
    assert os.access(path, os.X_OK)
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    save_recipe(recipe, tmp_path / "resolved.yaml")
    assert load_recipe(tmp_path / "resolved.yaml") == recipe


def test_paper_recipe_is_table_16() -> None:
    recipe = load_recipe(ROOT / "recipes/qwen3_4b.yaml")
    assert (recipe.groups_per_step, recipe.group_size, recipe.steps) == (8, 8, 150)
    assert recipe.learner.learning_rate == 1e-6 and recipe.sampling.temperature == 1.0
    assert (recipe.limits.max_turns, recipe.limits.max_tokens) == (100, 65_536)
    assert load_recipe(ROOT / "recipes/qwen3_coder_30b_a3b.yaml").steps == 50


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stpes=5"], "'stpes'; did you mean 'steps'?"),
        (["loss.clip_lo=0.1"], "'loss.clip_lo'; did you mean 'clip_low'?"),
        (["steps=many"], "steps: Value 'many'"),
        (["mode=sandbx"], "mode: Invalid value 'sandbx'"),
        (["steps"], "an override is key=value"),
        (["steps=-1"], "steps: must be at least 0"),
        (["group_size=1"], "group_size: a leave-one-out advantage"),
        (["limits.max_tokens=2000000"], "more than engine.max_model_len"),
        (["name=../elsewhere"], "not a plain folder name"),
        (["sandbox=3"], "sandbox"),
        (["retries=-1"], "retries: must be at least 0"),
        (["evaluation.repeats=0"], "evaluation.repeats: must be at least 1"),
        (["checkpoint.keep=-1"], "checkpoint.keep: must be at least 0"),
        (["sampling.temperature=0"], "sampling.temperature: must be above 0"),
        (["sampling.top_p=1.5"], "sampling.top_p must be above 0 and at most 1"),
        (["limits.timeout_s=0"], "limits.timeout_s must be above 0"),
        (["mode=llm", "tool_set=paper"], "tool_set: has no effect"),
    ],
)
def test_wrong_overrides_say_what_and_where(overrides: list[str], message: str) -> None:
    with pytest.raises(InputError) as error:
        load_recipe(ROOT / "recipes/tiny.yaml", overrides)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_missing_broken_and_circular_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such recipe; did you mean"):
        load_recipe(ROOT / "recipes/tinny.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1,\nb: 2")
    with pytest.raises(InputError, match="not a YAML file"):
        load_recipe(tmp_path / "broken.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n- 2\n")
    with pytest.raises(InputError, match="mapping"):
        load_recipe(tmp_path / "list.yaml")
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    with pytest.raises(InputError, match="extends itself"):
        load_recipe(tmp_path / "a.yaml")


def test_extends_merges_below_the_file_and_overrides_above_it(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("steps: 3\nseed: 7\nloss: {clip_low: 0.1}\n")
    (tmp_path / "child.yaml").write_text("extends: base.yaml\nsteps: 4\n")
    recipe = load_recipe(tmp_path / "child.yaml", ["seed=9"])
    assert (recipe.name, recipe.steps, recipe.seed, recipe.loss.clip_low) == ("child", 4, 9, 0.1)


def test_every_knob_says_what_it_is() -> None:
    """`explain` and `--help` print these; a knob that nobody explains is a knob that nobody should turn."""
    from sandboxrl.rl.keys import knobs

    undocumented = [key for key, (_, text) in knobs(Recipe).items() if not text]
    assert not undocumented


def test_a_whole_task_set_replaces_and_a_part_is_merged() -> None:
    path = ROOT / "recipes/tiny.yaml"
    assert load_recipe(path, ["tasks.train=mine.jsonl"]).tasks.train == "mine.jsonl"
    assert load_recipe(path, ["tasks.train={mine: {source: files, path: x}}"]).tasks.train == {
        "mine": {"source": "files", "path": "x"}
    }
    part = load_recipe(path, ["tasks.eval.heldout.num_tasks=3"]).tasks.eval["heldout"]
    assert part["num_tasks"] == 3 and part["source"] == "builtin"


def test_explain_names_the_revision_of_every_data_set() -> None:
    from sandboxrl.launch.explain import facts

    found = {what: (value, source) for what, value, source in facts(load_recipe(ROOT / "recipes/qwen3_4b.yaml"))}
    name, source = found["rows of tasks.train.general"]
    assert name == "daixuancheng/llm-in-sandbox-rl@main" and "tasks.train.general.revision is no commit" in source
    name, source = found["rows of tasks.eval.math"]
    assert re.fullmatch(r"BytedTsinghua-SIA/DAPO-Math-17k@[0-9a-f]{40}", name) and source == "tasks.eval.math.revision"
    words = ["tasks.train={mine: {source: math, path: rows.jsonl}, made: {source: builtin, weight: 2}}"]
    found = {what: value for what, value, _ in facts(load_recipe(ROOT / "recipes/tiny.yaml", words))}
    assert (found["rows of tasks.train.mine"], found["rows of tasks.train.made"]) == ("rows.jsonl", "builtin")
    wrong = load_recipe(ROOT / "recipes/tiny.yaml", ["tasks.train={mine: {source: math, path: a, revision: main}}"])
    with pytest.raises(InputError, match="tasks.train.mine: revision has no effect on a local copy"):
        list(facts(wrong))


@pytest.mark.parametrize(
    ("written", "name"),
    [("on", "on"), ("no", "no"), ("1e3", "1e3"), ("010", "010"), ("1.10", "1.10"), ("0x1F", "0x1F"), ("12_3", "12_3")],
)
def test_what_is_written_where_a_text_belongs_stays_that_text(written: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        f"name: {written}\nsandbox: {{env: {{A: {written}}}}}\ntools: [{written}]\ntasks: {{train: '{written}'}}\n"
        "limits: {max_tokens: 1e3}\nlearner: {max_tokens_per_row: 1000}\n"
    )
    in_file = load_recipe(tmp_path / "r.yaml")
    assert (in_file.name, in_file.sandbox.env, in_file.tools, in_file.tasks.train) == (name, {"A": name}, [name], name)
    assert in_file.limits.max_tokens == 1000
    assert load_recipe(ROOT / "recipes/tiny.yaml", [f"name={written}"]).name == name
    save_recipe(in_file, tmp_path / "again.yaml")
    assert load_recipe(tmp_path / "again.yaml") == in_file


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["steps=???"], "steps: ??? stands for"),
        (["steps=true"], "steps: must be a number"),
        (["learner.learning_rate=nan"], "learner.learning_rate: must be a number"),
        (["learner.learning_rate=.inf"], "learner.learning_rate: must be a number"),
        (["learner.max_tokens_per_row=10"], "cannot hold a trajectory of limits.max_tokens=1024"),
        (["sandbox.warm=-1"], "sandbox.warm: must be at least 0"),
        (["group_size=100000000000"], "more than any cluster holds"),
        (["steps=99999999999999999999999"], "beyond all sizes"),
        (["learner.minibatches=65"], "65 optimizer steps cannot share 64"),
        (["tasks.train={a: 1, a: 2}"], "'a' stands here twice"),
        (["tasks.train={a: [1"], "not a YAML file"),
        (["steps.x=3"], "steps"),
    ],
)
def test_what_has_no_meaning_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(InputError) as error:
        load_recipe(ROOT / "recipes/tiny.yaml", overrides)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_key_twice_and_anchors_without_an_end_are_refused(tmp_path: Path) -> None:
    (tmp_path / "twice.yaml").write_text("steps: 3\nseed: 1\nsteps: 4\n")
    with pytest.raises(InputError, match="line 3: the key 'steps' stands here twice"):
        load_recipe(tmp_path / "twice.yaml")
    levels = "".join(
        f"  {b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    (tmp_path / "bomb.yaml").write_text(f"tasks:\n  train: &a [x, x]\n{levels}")
    with pytest.raises(InputError, match="too large"):
        load_recipe(tmp_path / "bomb.yaml")


def test_a_recipe_that_ships_is_found_by_its_name_and_a_file_of_ones_own_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sandboxrl.rl.config import find_recipe

    monkeypatch.chdir(tmp_path)
    assert load_recipe(find_recipe("tiny")).name == "tiny" and find_recipe("tiny.yaml") == find_recipe("tiny")
    (tmp_path / "tiny").write_text("steps: 3\n")
    assert find_recipe("tiny") == Path("tiny")
    with pytest.raises(InputError, match="did you mean 'qwen3_4b'"):
        find_recipe("qwen3_4")


def test_every_mark_of_how_a_run_is_carried_out_is_a_key() -> None:
    from dataclasses import fields, is_dataclass

    sections: list[type] = [Recipe]
    for section in sections:
        names = {f.name for f in fields(section)}
        assert set(getattr(section, "CARRIED_OUT", ())) <= names, section
        sections += [f.type for f in fields(section) if isinstance(f.type, type) and is_dataclass(f.type)]

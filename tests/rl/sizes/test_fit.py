"""Which recipes fit which GPUs, and that what does not is said with the knob to turn."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from sandboxrl.data.errors import InputError
from sandboxrl.rl.config import load_recipe
from sandboxrl.rl.sizes.fit import candidates, engine_of, gpus, learner_of, notes, problems, recipe_with
from sandboxrl.rl.sizes.report import dry_run_report, facts, first_problem, fit_report
from sandboxrl.rl.sizes.shapes import shape_of
from tests.rl.tiny import tiny_model

RECIPES = Path(__file__).parents[3] / "recipes"
GB = 1e9


def recipe_and_shape(name, *overrides):
    recipe = load_recipe(RECIPES / f"{name}.yaml", overrides)
    return recipe, shape_of(recipe.model.path)


@pytest.mark.parametrize(
    "name, overrides, gpu_gb, num_gpus",
    [
        ("qwen3_4b", (), 80, 8),
        ("qwen3_4b_1gpu", (), 141, 1),
        ("qwen3_4b_1gpu_80gb", (), 80, 1),
        ("qwen3_coder_30b_a3b", (), 141, 8),
        ("qwen3_coder_30b_a3b", ("learner.world_size=16", "num_workers=8"), 80, 16),
    ],
)
def test_the_shipped_recipes_fit_what_they_say(name, overrides, gpu_gb, num_gpus):
    recipe, shape = recipe_and_shape(name, *overrides)
    assert problems(recipe, shape, gpu_gb * GB) == []
    assert gpus(recipe)["in all"] == num_gpus
    assert notes(recipe) == []
    assert recipe.learner.attention_crossover == pytest.approx(shape.attention_crossover, rel=1e-3)
    assert engine_of(recipe, shape, gpu_gb * GB).full_trajectories(recipe.limits.max_tokens) >= 3


@pytest.mark.parametrize(
    "name, overrides, message",
    [
        ("qwen3_coder_30b_a3b", (), "the learner needs 101 GB on each GPU and has 80: raise learner.world_size"),
        ("qwen3_4b_1gpu", (), "learner.offload=true"),
        (
            "qwen3_4b_1gpu_80gb",
            ("learner.offload=false", "learner.max_tokens_per_row=8192", "limits.max_tokens=8192"),
            "engine .* and learner",
        ),
        ("qwen3_4b", ("engine.gpu_memory_utilization=0.2",), "KV cache holds 0.51 of one sequence"),
    ],
)
def test_what_does_not_fit_is_said_with_a_knob(name, overrides, message):
    recipe, shape = recipe_and_shape(name, *overrides)
    found = problems(recipe, shape, 80 * GB)
    assert any(re.search(message, one) for one in found), found


def test_engines_that_do_not_divide_the_groups_are_said():
    recipe, _ = recipe_and_shape("qwen3_4b", "num_workers=6")
    assert "does not divide groups_per_step 8" in notes(recipe)[0]


def test_together_needs_as_many_ranks_as_engine_gpus():
    with pytest.raises(InputError, match=r"num_workers x engine.tensor_parallel_size \(2\) to be learner.world_size"):
        recipe_and_shape("qwen3_4b_1gpu", "num_workers=2")
    recipe, _ = recipe_and_shape("qwen3_coder_30b_a3b")
    assert recipe.engine_of_run.sleeps
    assert recipe_with(recipe, world_size=1) is None
    assert recipe_with(recipe, world_size=4).num_workers == 2


@pytest.mark.parametrize("words", [("engine.sleeps=true",), ("engine.keep_kv=true",)])
def test_a_knob_without_effect_is_refused(words):
    with pytest.raises(InputError, match="has no effect"):
        recipe_and_shape("qwen3_4b", *words)
    recipe_and_shape("qwen3_4b", "engine.keep_kv=true", "max_staleness=1")


def test_what_is_searched_fits_and_what_is_left_out_does_not():
    recipe, shape = recipe_and_shape("qwen3_4b")
    found = candidates(recipe, shape, 80 * GB)
    assert found[0].changes["learner.world_size"] == 1
    assert found[0].changes["learner.offload"] is True
    for one in found:
        assert one.memory.needed <= 80 * GB
    plain = [one.changes for one in found if not one.changes["learner.offload"]]
    assert plain[0]["learner.world_size"] == 2
    alone = replace(recipe, learner=replace(recipe.learner, world_size=1))
    assert learner_of(alone, shape).needed > 80 * GB
    recipe, shape = recipe_and_shape("qwen3_coder_30b_a3b")
    assert min(one.changes["learner.world_size"] for one in candidates(recipe, shape, 141 * GB)) <= 8


def test_a_report_is_data_and_refuses(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    words = [f"model.path={tmp_path}", "learner.max_tokens_per_row=2048", "limits.max_tokens=1024"]
    recipe = load_recipe(RECIPES / "tiny.yaml", [*words, "learner.dtype=bfloat16"])
    report = dry_run_report(recipe, 80.0)
    assert report["sequences"] == 2
    assert report["gpus"] == {"80": []}
    assert first_problem(report) == ""
    assert report["phases"]["backward"]["all"] == pytest.approx(report["by_formula"]["backward"], rel=0.1, abs=0.01)
    assert report["operators"]["torch_attn._varlen_attn.default"] == 2
    refused = dry_run_report(recipe, 1.0)
    assert "the learner needs" in first_problem(refused)
    assert fit_report(recipe, 80.0)["80"]
    said = {what: value for what, value, _ in facts(recipe)}
    assert said["engine"].startswith("float32, no CUDA graphs")


def test_a_model_that_is_not_here_is_one_line():
    recipe = load_recipe(RECIPES / "qwen3_4b.yaml", ["model.path=some/where"])
    for report in (dry_run_report, fit_report):
        with pytest.raises(InputError, match="some/where is no model folder here"):
            report(recipe, 80.0)

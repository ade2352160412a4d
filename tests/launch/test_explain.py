"""`sandboxrl explain`: what a launch takes, as a table and as data, and that it refuses what cannot fit."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from sandboxrl.launch.__main__ import main
from sandboxrl.launch.explain import facts, show_facts
from sandboxrl.rl.config import find_recipe, load_recipe
from tests.rl.tiny import tiny_model

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The quickstart on a model of two layers."""
    folder = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(folder)
    short = ["learner.max_tokens_per_row=2048", "limits.max_tokens=1024", "learner.dtype=bfloat16"]
    return ["explain", str(RECIPES / "tiny.yaml"), f"model.path={folder}", *short]


def test_the_models_of_the_recipes_need_not_be_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(RECIPES / "qwen3_coder_30b_a3b.yaml"), "--json"]) == 0
    said = {fact["what"]: fact["value"] for fact in json.loads(capsys.readouterr().out)["facts"]}
    assert said["parameters"] == "30.532 billion"
    assert said["GPUs"] == "8: learner 8, engines 8 on the same ones"
    assert said["fits GPUs of 80 GB"].startswith("no: the learner needs")
    assert said["fits GPUs of 141 GB"].startswith("yes")


def test_a_dry_run_and_a_search_as_data(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--dry-run", "--fit", "--gpu-memory", "80", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["dry_run"]["gpus"] == {"80": []}
    assert said["dry_run"]["needed_gb"] > said["dry_run"]["peak_gb"] > 0
    assert said["fit"]["80"][0]["learner.world_size"] == 1


def test_a_dry_run_for_a_person(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--dry-run", "--fit"]) == 0
    said = capsys.readouterr().out
    for text in ("backward", "by formula", "It does not see", "A GPU must have", "GPUs of 141 GB: fits", "best first"):
        assert text in said


def test_what_does_not_fit_is_refused_with_the_knob(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--dry-run", "--gpu-memory", "1"]) == 2
    assert "does not fit: the learner needs" in capsys.readouterr().err


def test_what_does_not_fit_by_formula_is_refused_after_the_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "qwen3_4b", "--gpu-memory", "24"]) == 2
    said = capsys.readouterr()
    assert "fits GPUs of 24 GB" in said.out and "fits GPUs of 80 GB" not in said.out
    assert (
        said.err.count("\n") == 1
        and "does not fit: the learner needs" in said.err
        and "raise learner.world" in said.err
    )


def test_host_memory_and_disk_are_told_one_fact_a_line_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "qwen3_4b_1gpu_80gb", "checkpoint.keep=4", "checkpoint.best=math"]) == 0
    lines = {line.split("  ")[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "68.36 GB" in lines["host memory: learner"]  # 16 bytes per parameter in host memory, and the process
    assert "289.62 GB" in lines["disk: checkpoints, at most"]  # 4, the best, and the one being written, of 48.27 GB
    assert "learner.offload" in lines["learner: state in host memory"]


def test_the_starting_policy_has_sizes_and_must_fit_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "tiny"]) == 0
    assert "729,920" in capsys.readouterr().out
    assert main(["explain", "tiny", "num_workers=100000"]) == 2
    assert "GB of memory and this machine has" in capsys.readouterr().err


def test_nothing_is_wider_than_a_small_terminal_and_no_key_is_broken() -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    show_facts(console, "title", list(facts(load_recipe(find_recipe("qwen3_4b")))))
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80 and any("sandbox.limits.memory_bytes" in line for line in lines)


@pytest.mark.parametrize("size", ["0", "nan", "much"])
def test_a_size_that_is_none_is_refused(words: list[str], size: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--fit", "--gpu-memory", size]) == 2
    assert f"{size}: a GPU's memory in GB, for example 80" in capsys.readouterr().err

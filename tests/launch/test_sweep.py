"""`sandboxrl sweep`: cells, checks before anything starts, what counts as finished, and the table."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from sandboxrl.data.errors import InputError
from sandboxrl.rl.config import load_recipe, save_recipe
from sandboxrl.rl.sweep import (
    Cell,
    Outcome,
    as_csv,
    as_text,
    entrypoint,
    finished,
    interval,
    load_sweep,
    outcome,
    plan,
    replaced,
    tabulate,
    write_recipe,
)

ROOT = Path(__file__).resolve().parents[2]
ABLATIONS = sorted((ROOT / "recipes/ablations").glob("*.yaml"))


def sweep_file(folder: Path, **keys: Any) -> Path:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({"recipe": str(ROOT / "recipes/tiny.yaml"), **keys}))
    return path


def cells_of(folder: Path, *overrides: str, **keys: Any) -> list[Cell]:
    sweep, out = load_sweep(sweep_file(folder, out=str(folder / "out"), **keys), overrides)
    return plan(sweep, folder, out)


@pytest.mark.parametrize("path", ABLATIONS, ids=lambda path: path.stem)
def test_every_ablation_of_the_project_resolves(path: Path) -> None:
    sweep, out = load_sweep(path, [])
    cells = plan(sweep, path.parent, out)
    assert len(cells) == len(sweep.arms) * len(sweep.seeds) and out == Path("runs") / path.stem
    arms = {cell.arm: cell.recipe for cell in cells}
    assert list(arms) == ["Base LLM", "LLM-RL", "Math", "SWE", "Gen. in Prompt", "Gen. in Sandbox"]
    assert arms["Base LLM"].steps == 0 and arms["LLM-RL"].mode == "llm"
    assert [next(iter(arms[name].tasks.train)) for name in ("Math", "SWE", "Gen. in Prompt")] == [
        "math",
        "swe",
        "general",
    ]
    assert arms["Gen. in Prompt"].tasks.train["general"]["placement"] == "prompt"


def test_arms_axes_and_seeds_make_cells_of_the_same_recipe(tmp_path: Path) -> None:
    cells = cells_of(
        tmp_path,
        "set.groups_per_step=3",
        seeds=[0, 7],
        arms={"One": {"tasks.train": {"math": {"source": "math"}}}, "Two": {}},
        axes={"learner.learning_rate": [1e-4, 2e-4], "loss.clip_high": [0.28]},
    )
    assert len(cells) == 8 and len({cell.name for cell in cells}) == 8
    assert cells[1].name == "one-learning_rate_0.0001-clip_high_0.28-s7"
    assert cells[1].row == "One, learner.learning_rate=0.0001, loss.clip_high=0.28"
    for cell in cells:
        assert cell.recipe.out == str(tmp_path / "out") and cell.recipe.seed == cell.seed
        assert cell.recipe.groups_per_step == 3 and cell.recipe.loss.clip_high == 0.28
        assert list(cell.recipe.tasks.train) == (["math"] if cell.arm == "One" else ["builtin"]), "replaced, not merged"
    assert {cell.recipe.learner.learning_rate for cell in cells} == {1e-4, 2e-4}
    write_recipe(cells[0])
    assert load_recipe(cells[0].recipe_file) == cells[0].recipe


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"arms": {"A": {"stps": 1}}}, "A: unknown key 'stps'; did you mean 'steps'"),
        ({"axes": {"learner.learning_rte": [1]}}, "did you mean 'learning_rate'"),
        ({"axes": {"steps": 3}}, "axes.steps is a list of values"),
        ({"seds": [1]}, "did you mean 'seeds'"),
        ({"seeds": [1, 1]}, "different whole numbers"),
        ({"seeds": "3"}, "different whole numbers"),
        ({"parallel": 0}, "parallel must be"),
        ({"arms": {"A": 3}}, "arms.A is a mapping"),
        ({"arms": {"A b": {}, "a-b": {}}}, "share the run folder a_b-s0"),
        ({"recipe": "nowhere.yaml"}, "no such recipe"),
        ({"recipe": ""}, "recipe is missing"),
        ({"recipe": 3}, "recipe is a text, not 3"),
        ({"set": [1]}, "set is a mapping, not"),
        ({"axes": {"seed": [1, 2]}}, "axes.seed has no effect: a sweep sets it itself, from its key seeds"),
        ({"arms": {"A": {"seed": 3}}}, "seed has no effect"),
        ({"arms": {"A": {"name": "mine"}}}, "name has no effect"),
        ({"set": {"out": "elsewhere"}}, "out has no effect"),
        ({"axes": {"loss.clip_high": [0.2, 0.2]}}, "names a value twice"),
    ],
)
def test_what_is_wrong_is_said_before_anything_starts(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        cells_of(tmp_path, **keys)


def test_a_key_twice_is_refused(tmp_path: Path) -> None:
    path = sweep_file(tmp_path)
    path.write_text(path.read_text() + "\nseeds: [1]\nseeds: [2]\n")
    with pytest.raises(InputError, match="seeds"):
        load_sweep(path, [])


def test_arms_in_another_script_have_folders_of_their_own(tmp_path: Path) -> None:
    names = [cell.name for cell in cells_of(tmp_path, arms={"数学": {}, "物理": {}})]
    assert len(set(names)) == 2 and all(Path(name).name == name for name in names)


def test_an_override_may_name_an_arm(tmp_path: Path) -> None:
    arms = {"Gen. in Prompt": {"steps": 3}, "SWE": {}}
    prompt, swe = cells_of(tmp_path, "arms.Gen. in Prompt.steps=4", "arms.SWE.sandbox.backend=docker", arms=arms)
    assert (prompt.recipe.steps, prompt.recipe.sandbox.backend) == (4, "bubblewrap")
    assert swe.recipe.sandbox.backend == "docker"
    for wrong in ("arms.SW.steps=1", "recipe.steps=1", "steps"):
        with pytest.raises(InputError, match="an override is key=value"):
            cells_of(tmp_path, wrong, arms=arms)


def test_a_cell_begun_under_another_recipe_is_refused(tmp_path: Path) -> None:
    (cell,) = cells_of(tmp_path)
    cell.recipe.run_dir.mkdir(parents=True)
    save_recipe(cells_of(tmp_path, "set.groups_per_step=5")[0].recipe, cell.recipe.run_dir / "recipe.yaml")
    write_recipe(cell)  # nothing has been done there yet
    (cell.recipe.run_dir / "metrics.jsonl").write_text('{"step": 0}\n')
    with pytest.raises(InputError, match="groups_per_step=5"):
        write_recipe(cell)


def leave(cell: Cell, **summary: Any) -> None:
    cell.recipe.run_dir.mkdir(parents=True, exist_ok=True)
    (cell.recipe.run_dir / "summary.json").write_text(json.dumps(summary))


def test_what_counts_as_finished(tmp_path: Path) -> None:
    (cell,) = cells_of(tmp_path)
    assert outcome(cell, "", "").failure == "has not run"
    leave(cell, status="failed: every worker died", eval_before={}, eval_after={})
    assert outcome(cell, "", "").failure == "failed: every worker died" and not finished(cell, "")
    leave(cell, status="finished", eval_before={"heldout": 0.2}, eval_after={"heldout": 0.5})
    assert outcome(cell, "", "") == Outcome({("heldout", "sandbox"): 0.5})
    assert outcome(cell, "", "Exit code 1").failure == "Exit code 1", "what the job says counts more"
    leave(cell, status="finished", eval_before={"heldout": 0.2}, eval_after={})
    assert outcome(cell, "", "").scores == {("heldout", "sandbox"): 0.2}
    assert not finished(cell, "--benchmarks aime25"), "it has not been evaluated yet"
    folder = cell.recipe.run_dir / "evaluation"
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps({"aime25": {"llm": {"score": 0.1}, "sandbox": {"score": 0.3}}}))
    assert outcome(cell, "--benchmarks aime25", "").scores == {("aime25", "llm"): 0.1, ("aime25", "sandbox"): 0.3}


def test_the_interval_is_students(tmp_path: Path) -> None:
    mean, half, num = interval([0.5, 0.6, 0.7]) or (0, 0, 0)
    assert (mean, num) == (pytest.approx(0.6), 3) and half == pytest.approx(4.303 * 0.1 / math.sqrt(3))
    assert interval([]) is None
    single = interval([0.5])
    assert single is not None and single[0] == 0.5 and math.isnan(single[1])
    many = interval([0.0, 1.0] * 20)
    assert many is not None and many[1] == pytest.approx(1.96 * 0.50637 / math.sqrt(40), rel=1e-4)


def test_the_table_has_the_form_of_table_10_and_shows_failures(tmp_path: Path) -> None:
    cells = cells_of(tmp_path, seeds=[0, 1, 2], arms={"Base LLM": {"steps": 0}, "Math": {}, "SWE": {}})
    names = {cell.name: cell for cell in cells}
    outcomes = {name: Outcome({}, "job died") for name in names}
    for seed, (llm, box) in enumerate(((0.46, 0.32), (0.48, 0.34), (0.47, 0.33))):
        outcomes[f"base_llm-s{seed}"] = Outcome({("aime25", "llm"): llm, ("aime25", "sandbox"): box})
    outcomes["math-s1"] = Outcome({("aime25", "sandbox"): 0.51})
    header, rows = tabulate(cells, outcomes)
    assert as_text(header, rows) == (
        "             aime25\n"
        "                llm    sandbox         seeds\n"
        "Base LLM  47.0 ±2.5  33.0 ±2.5             3\n"
        "Math              -       51.0  1 (2 failed)\n"
        "SWE               -          -  0 (3 failed)"
    )
    lines = as_csv(header, rows).splitlines()
    assert lines[0] == "arm,set,mode,mean,low,high,seeds,seeds_failed"
    assert lines[1].startswith("Base LLM,aime25,llm,0.47,0.44515") and lines[1].endswith(",3,0")
    assert lines[4] == "Math,aime25,sandbox,0.51,,,1,2" and lines[5] == "SWE,aime25,llm,,,,0,3"


def test_the_job_exports_and_evaluates_what_it_trained(tmp_path: Path) -> None:
    trained, base = cells_of(tmp_path, arms={"A": {}, "Base": {"steps": 0}})
    assert " evaluate " not in entrypoint(trained, "")
    command = entrypoint(trained, "--benchmarks aime25")
    assert [word in command for word in (" train ", " export ", " evaluate ")] == [True] * 3
    assert " export " not in entrypoint(base, "--benchmarks aime25")
    assert subprocess.run(["bash", "-n", "-c", command]).returncode == 0


def test_replaced_leaves_its_argument_alone() -> None:
    before = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    assert replaced(before, {"a.c": {"x": 9}, "a.b": 5, "n.m": 1}) == {
        "a": {"b": 5, "c": {"x": 9}},
        "e": 3,
        "n": {"m": 1},
    }
    assert before == {"a": {"b": 1, "c": {"d": 2}}, "e": 3}


def test_a_dry_run_lists_the_cells_and_starts_nothing(tmp_path: Path) -> None:
    path = sweep_file(tmp_path, out=str(tmp_path / "out"), seeds=[3])
    done = subprocess.run(
        [sys.executable, "-m", "sandboxrl.launch", "sweep", str(path), "--dry-run"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stdout.split()[0] == "s3" and not (tmp_path / "out").exists()

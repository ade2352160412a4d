"""The command for a GPU machine runs, with small shapes, on this one: so that it is right the first time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.gpu import PARTS, SHARES, Plan, run_part
from bench.gpu_plan import ROWS, predictions

ROOT = Path(__file__).parents[1]


def test_a_part_that_takes_too_long_or_fails_says_so():
    plan = Plan("/nowhere", tiny=True, gpus=1, model="", row=256)
    assert run_part("step", plan, limit_s=0.5) == ("fail: not done within 0 s", {})
    outcome, told = run_part("step", plan, limit_s=120)
    assert outcome.startswith("fail: exit code")
    assert told == {}


def test_every_part_has_its_time_and_all_together_have_no_more():
    assert SHARES.keys() == PARTS.keys()
    assert sum(SHARES.values()) + (len(ROWS) - 1) * SHARES["step"] <= 1.25  # no part takes all of its share


def test_what_is_written_as_a_prediction_is_what_it_says_now():
    """A change of the learner that moves memory or time is seen in the file, and in docs/gpu.md."""
    written = json.loads((ROOT / "docs/data/gpu_prediction.json").read_text())
    for count in (1, 2, 4, 8):
        now = predictions(count)
        assert written[f"{count}_gpus"] == pytest.approx(now, rel=1e-6)


@pytest.mark.heavy
@pytest.mark.long
@pytest.mark.timeout(1500)
def test_all_parts_pass_with_small_shapes(tmp_path, ray_cluster):
    out = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "bench.gpu", "--tiny", "--minutes", "30", "--out", str(out)]
    there = os.environ | {"RAY_ADDRESS": ray_cluster.address}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=there)
    report = json.loads(out.read_text())
    outcomes = {name: one["outcome"] for name, one in report.items() if isinstance(one, dict) and "outcome" in one}
    assert outcomes == dict.fromkeys(outcomes, "pass"), done.stdout + done.stderr
    assert {"doctor", "agree", "step_256", "step_512", "publish", "sleep", "killed", "recipe"} == outcomes.keys()
    assert report["agree/max"]["ours"] < 1e-3
    assert report["recipe/steps"]["ours"] == 3
    assert done.returncode == 0

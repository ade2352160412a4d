"""A sweep on real parts: stopped in the middle, started again, one arm broken, each model evaluated; the table."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.ray_cluster import RayCluster
from tests.small_run import SMALL

ROOT = Path(__file__).resolve().parents[2]


def sweep(path: Path, cluster: str = "") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "sandboxrl.launch", "sweep", str(path), *([f"cluster={cluster}"] if cluster else [])],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def processes(marker: str) -> list[str]:
    lines = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout.split("\n")
    return [line for line in lines if marker in line]


@pytest.mark.heavy
@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_sweep_that_was_stopped_goes_on_and_a_broken_arm_hides_no_other(
    tmp_path: Path, model_folder: str, ray_cluster: RayCluster
) -> None:
    """On a cluster of its own until it is stopped, then on one that is there."""
    out, path = tmp_path / "out", tmp_path / "sweep.yaml"
    arms = {"Trained": {}, "Broken": {"tasks.train": {"mine": str(tmp_path / "no.jsonl")}}}
    rows = tmp_path / "aime25.jsonl"
    rows.write_text(
        "".join(json.dumps({"id": i, "problem": f"What is 1+{i}?", "answer": 1 + i}) + "\n" for i in (1, 2))
    )
    evaluate = f"--benchmarks aime25 --data aime25={rows} --mode both --repeats 1 limits.max_turns=2"
    evaluate += f" limits.max_tokens=2000 --arm {ROOT / 'recipes/ablations/tiny/arm.yaml'}"
    content = {"recipe": str(ROOT / "recipes/tiny.yaml"), "out": str(out), "arms": arms, "evaluate": evaluate}
    short = {"steps": 1, "evaluation": {"before": False, "every": 0, "after": False}}
    settings = {key: value for key, value in SMALL.items() if key != "evaluation.every"}
    path.write_text(yaml.safe_dump({**content, "set": settings | short | {"model.path": model_folder}}))

    first = sweep(path)
    assert first.stdout is not None
    for line in first.stdout:
        if line.startswith("trained-s0: started"):
            break
    while not (out / "trained-s0" / "recipe.yaml").exists():
        assert first.poll() is None
        time.sleep(0.2)
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=180)
    assert not processes(str(out)), "nothing of a stopped sweep goes on"
    assert not (out / "table.txt").exists()

    second = sweep(path, ray_cluster.job_server)
    said, _ = second.communicate(timeout=600)
    assert second.returncode == 1 and "2 cells, 0 finished before, 2 to run" in said, said
    assert "failed  broken-s0:" in said and "no such file" in said
    results = out / "trained-s0" / "evaluation" / "results.jsonl"
    assert len(results.read_text().splitlines()) == 4
    table, when = (out / "table.csv").read_text(), results.stat().st_mtime_ns

    third = sweep(path, ray_cluster.job_server)
    said, _ = third.communicate(timeout=600)
    assert third.returncode == 1 and "2 cells, 1 finished before, 1 to run" in said, said
    assert (out / "table.csv").read_text() == table and results.stat().st_mtime_ns == when
    found = {(row["arm"], row["set"], row["mode"]): row for row in csv.DictReader((out / "table.csv").open())}
    assert found.keys() == {(arm, "aime25", mode) for arm in arms for mode in ("llm", "sandbox")}
    for (arm, _, _), row in found.items():
        assert (row["seeds"], row["seeds_failed"]) == (("0", "1") if arm == "Broken" else ("1", "0"))
        assert row["mean"] == "" if arm == "Broken" else 0 <= float(row["mean"]) <= 1
    assert (out / "trained-s0" / "model" / "config.json").is_file()
    assert (out / "table.txt").read_text().split("\n")[0] in said
    assert not processes(str(out))

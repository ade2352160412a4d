"""`sandboxrl train` end to end on real parts, with a random model: modes, recipes, resume, endings, bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.util.state import list_actors

from sandboxrl.data.files import read_jsonl
from sandboxrl.launch.__main__ import main
from sandboxrl.rl.cluster.hosts import RESOURCE
from tests.launch.promises import check_finished
from tests.ray_cluster import RayCluster

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "steps=2",
    "groups_per_step=2",
    "group_size=2",
    "replace_uninformative=0",
    "max_staleness=0",
    "tasks.train={builtin: {source: builtin, size: tiny, split: train, num_tasks: 20}}",
    "tasks.eval={validation: {source: builtin, size: tiny, split: validation, num_tasks: 3}}",
    "tasks.max_prompt_tokens=8000",
    "limits.max_turns=2",
    "limits.max_tokens=8000",
    "limits.max_tokens_per_turn=24",
    "engine.max_model_len=8192",
    "engine.max_num_seqs=8",
    "engine.dtype=float32",
    "engine.kv_cache_bytes=67108864",
    "engine.enforce_eager=true",
    "engine.tensor_parallel_size=1",
    "learner.max_tokens_per_row=16384",
    "learner.dtype=float32",
    "learner.world_size=1",
    "learner.schedule=constant",  # `steps` may then change when a run goes on
    "learner.schedule_floor=0",
    "num_workers=1",
    "sandbox.backend=bubblewrap",
    "sandbox.network=none",
    "sandbox.warm=2",
    "checkpoint.every=1",
    "evaluation.every=0",
]


TCP = "engine.weight_backend=tcp"
"""Engines and learner may be on either node of the shared cluster."""


@pytest.fixture(scope="module")
def docker_image() -> str:
    """The local base image; skips where there is no Docker daemon."""
    if subprocess.run(["docker", "info"], capture_output=True).returncode:
        pytest.skip("no Docker daemon answers")
    subprocess.run([ROOT / "launch/base_image.sh"], check=True)
    return "sandboxrl/base:local"


def settings(out: Path, model: str, *overrides: str) -> list[str]:
    """Of a small run in `out`/run."""
    return [*SMALL, f"model.path={model}", f"out={out}", "name=run", *overrides]


def train(out: Path, model: str, *overrides: str, recipe: str) -> dict[str, Any]:
    words = [sys.executable, "-m", "sandboxrl.launch", "train", recipe, *settings(out, model, *overrides)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads((out / "run" / "summary.json").read_text())


def on_path() -> dict[str, str]:
    """This environment, with this interpreter the one that the recipes' first line finds."""
    return os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def modes(out: Path) -> set[str]:
    return {row["mode"] for row in read_jsonl(out / "run/trajectories/step_000001.jsonl")}


def left_behind(marker: str) -> list[str]:
    """Processes with `marker` in their command line or environment."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            text = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
        except OSError:
            continue
        if marker.encode() in text:
            found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return found


@pytest.mark.heavy
@pytest.mark.docker
def test_the_4b_recipe_runs_on_the_small_model_in_docker_sandboxes(
    tmp_path: Path, model_folder: str, docker_image: str, ray_cluster: RayCluster
) -> None:
    words = ["sandbox.backend=docker", f"sandbox.image={docker_image}", f"cluster={ray_cluster.address}", TCP]
    summary = train(tmp_path, model_folder, "steps=1", *words, recipe="recipes/qwen3_4b.yaml")
    assert summary["status"] == "finished" and summary["dropped"] == 0
    assert modes(tmp_path) == {"sandbox"}
    sandbox = json.loads((tmp_path / "run/sandbox.json").read_text())
    assert sandbox["digest"].startswith("sha256:") and sandbox["limits"]


@pytest.mark.heavy
def test_the_baseline_recipe_runs_on_the_small_model_without_sandboxes(
    tmp_path: Path, model_folder: str, ray_cluster: RayCluster
) -> None:
    """Its engine on the nodes that were named."""
    words = ["steps=1", f"cluster={ray_cluster.address}", TCP, f"engine.nodes={RESOURCE}"]
    assert train(tmp_path, model_folder, *words, recipe="recipes/llm_rl.yaml")["status"] == "finished"
    assert modes(tmp_path) == {"llm"}
    offering = {node["NodeID"] for node in ray.nodes() if node["Resources"].get(RESOURCE)}
    workers = list_actors(address=ray_cluster.job_server, filters=[("class_name", "=", "RolloutWorker")], limit=1000)
    newest = max(worker.job_id for worker in workers)
    assert {worker.node_id for worker in workers if worker.job_id == newest} == offering


@pytest.mark.heavy
@pytest.mark.timeout(600)
def test_nothing_is_left_of_a_run_however_it_is_ended_and_it_goes_on(tmp_path: Path, model_folder: str) -> None:
    """One run, ended three times, continued each time, and in the end finished, as the program that a recipe is by its
    first line. It leaves what every run promises, and can be exported."""
    done = 0
    for how in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        done = ended_by(how, tmp_path, model_folder, after=done + 1)
    words = [
        "./recipes/tiny.yaml",
        *settings(tmp_path, model_folder, f"steps={done + 1}", "checkpoint.best=validation"),
    ]
    last = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=on_path())
    assert last.returncode == 0, last.stdout[-3000:] + last.stderr[-3000:]
    check_finished(tmp_path / "run", steps=done + 1, evaluated="validation")
    exported = [tmp_path / "step", tmp_path / "best"]  # the last step is the only one that was evaluated
    for out, which in zip(exported, (["--step", str(done + 1)], ["--best"]), strict=True):
        assert main(["export", str(tmp_path / "run"), *which, "--out", str(out)]) == 0
        assert {"model.safetensors", "config.json", "tokenizer.json"} <= {file.name for file in out.iterdir()}
    step, best = ((out / "model.safetensors").read_bytes() for out in exported)
    assert step == best


def heed_ctrl_c() -> None:
    """A shell starts what it runs in the background deaf to it, and that is inherited."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def ended_by(how: signal.Signals, out: Path, model: str, after: int) -> int:
    """Train, or go on, until step `after` is done, then send the signal. The last step in the run's metrics."""
    marker = f"sandboxrl-test-{os.getpid()}-{how}"
    log, metrics = out / f"out-{how}", out / "run/metrics.jsonl"
    with log.open("w") as file:
        words = [sys.executable, "-m", "sandboxrl.launch", "train", "recipes/tiny.yaml"]
        words += settings(out, model, "steps=50")
        environment = os.environ | {"SANDBOXRL_TEST_MARKER": marker}
        run = subprocess.Popen(
            words, cwd=ROOT, stdout=file, stderr=file, env=environment, start_new_session=True, preexec_fn=heed_ctrl_c
        )
    deadline = time.monotonic() + 180
    while not any(row["step"] >= after for row in read_jsonl(metrics)):
        assert run.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.2)
    run.send_signal(how)
    assert run.wait(60) != 0
    deadline = time.monotonic() + 10
    while (left := left_behind(marker)) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not left
    assert list(Path("/dev/shm").glob("*sandboxrl*")) == []
    return max(row["step"] for row in read_jsonl(metrics))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stpes=3"], "did you mean 'steps'?"),
        (["steps=soon"], "could not be converted to Integer"),
        (["model.path=/nowhere/model"], "model.path: no such folder: /nowhere/model"),
        (["prompt=papier"], "papier"),
        (["sandbox.socket=/nowhere/docker.sock", "sandbox.backend=docker"], "docker"),
        (["tasks.train={mine: {source: files, path: EMPTY}}"], "EMPTY"),
        (["tasks.train={mine: {source: bultin}}"], "builtin"),
    ],
)
def test_bad_input_is_one_clear_line_and_exit_code_2(
    tmp_path: Path, model_folder: str, overrides: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    words = [word.replace("EMPTY", str(tmp_path / "empty.jsonl")) for word in overrides]
    assert main(["train", str(ROOT / "recipes/tiny.yaml"), *settings(tmp_path, model_folder, *words)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    assert message.replace("EMPTY", str(tmp_path / "empty.jsonl")) in said
    assert not (tmp_path / "run").exists()


def test_a_dry_run_checks_everything_and_starts_nothing(
    tmp_path: Path, model_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", str(ROOT / "recipes/tiny.yaml"), "--dry-run", *settings(tmp_path, model_folder)]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "2 steps of 2 tasks x 2 trajectories" in said and "nothing was started" in said
    assert main([*words, "tasks.eval=null"]) == 0, "a run without an evaluation set"
    assert not (tmp_path / "run").exists()


@pytest.mark.heavy
def test_the_coder_recipe_as_a_ray_job_on_two_learners_and_two_workers(
    tmp_path: Path, model_folder: str, ray_cluster: RayCluster
) -> None:
    """With stale groups, and sandboxes of the nodes that offer them."""
    words = ["ray", "job", "submit", "--address", ray_cluster.job_server, "--working-dir", ".", "--"]
    two = ["learner.world_size=2", "num_workers=2", "max_staleness=1", "steps=3", "sandbox.remote=true", TCP]
    words += ["recipes/qwen3_coder_30b_a3b.yaml", *settings(tmp_path, model_folder, *two)]
    deadline = time.monotonic() + 120
    while True:  # the job server takes a while to find its node's agent
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=on_path(), timeout=240)
        if "No available agent" not in done.stderr or time.monotonic() > deadline:
            break
        time.sleep(2)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert json.loads((tmp_path / "run/summary.json").read_text())["status"] == "finished"
    rows = [row for row in read_jsonl(tmp_path / "run/metrics.jsonl") if "loss" in row]
    assert max(row["staleness/max"] for row in rows) == 1
    assert all(row["mismatch/tokens"] > 0 and row["mismatch/logprob_max"] < 1e-3 for row in rows)

"""`sandboxrl train` end to end on real parts, with a random model: modes, recipes, resume, endings, bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sandboxrl.data.files import read_jsonl
from sandboxrl.launch.__main__ import main
from tests.launch.promises import check_finished
from tests.own_files import copy_of_the_checkout, put_own_files
from tests.ray_cluster import RayCluster
from tests.small_run import trained, words

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def docker_image() -> str:
    """The local base image; skips where there is no Docker daemon."""
    if subprocess.run(["docker", "info"], capture_output=True).returncode:
        pytest.skip("no Docker daemon answers")
    subprocess.run([ROOT / "launch/base_image.sh"], check=True)
    return "sandboxrl/base:local"


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
    settings = words(tmp_path, model_folder, steps=1, sandbox__backend="docker", sandbox__image=docker_image)
    summary = trained(ray_cluster, "qwen3_4b", settings)
    assert summary["status"] == "finished" and summary["dropped"] == 0
    assert modes(tmp_path) == {"sandbox"}
    sandbox = json.loads((tmp_path / "run/sandbox.json").read_text())
    assert sandbox["digest"].startswith("sha256:") and sandbox["limits"]


@pytest.mark.heavy
@pytest.mark.timeout(600)
def test_nothing_is_left_of_a_run_however_it_is_ended_and_it_goes_on(tmp_path: Path, model_folder: str) -> None:
    """One run, ended twice, continued each time, and in the end finished, as the program that a recipe is by its first
    line. It leaves what every run promises, and can be exported. SIGTERM ends it as Ctrl-C does (`test_signals.py`),
    seen on a job of a sweep (`test_sweep_run.py`)."""
    done = 0
    for how in (signal.SIGINT, signal.SIGKILL):
        done = ended_by(how, tmp_path, model_folder, after=done + 1)
    best = {"checkpoint__best": "validation"}
    command = ["./recipes/tiny.yaml", *words(tmp_path, model_folder, steps=done + 1, **best)]
    last = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=on_path())
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
        command = [sys.executable, "-m", "sandboxrl.launch", "train", "recipes/tiny.yaml"]
        command += words(out, model, steps=50)
        environment = os.environ | {"SANDBOXRL_TEST_MARKER": marker}
        run = subprocess.Popen(
            command, cwd=ROOT, stdout=file, stderr=file, env=environment, start_new_session=True, preexec_fn=heed_ctrl_c
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
    changes = [word.replace("EMPTY", str(tmp_path / "empty.jsonl")) for word in overrides]
    assert main(["train", "tiny", *words(tmp_path, model_folder), *changes]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    assert message.replace("EMPTY", str(tmp_path / "empty.jsonl")) in said
    assert not (tmp_path / "run").exists()


def test_a_dry_run_checks_everything_and_starts_nothing(
    tmp_path: Path, model_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "tiny", "--dry-run", *words(tmp_path, model_folder)]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "2 steps of 2 tasks x 2 trajectories" in said and "nothing was started" in said
    assert main([*command, "tasks.eval=null"]) == 0, "a run without an evaluation set"
    assert not (tmp_path / "run").exists()


@pytest.mark.heavy
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("sandbox_node")
def test_the_coder_recipe_as_a_ray_job_on_two_learners_and_two_workers(
    tmp_path: Path, model_folder: str, ray_cluster: RayCluster
) -> None:
    """With stale groups, and sandboxes of the node that offers them. What is sent is a checkout in which files of the
    user's own lie that are called like the rooms; importing one is an error."""
    checkout = copy_of_the_checkout(tmp_path / "checkout")
    put_own_files(checkout)
    two = {"learner__world_size": 2, "num_workers": 2, "max_staleness": 1, "steps": 3}
    there = {"sandbox__remote": True, "engine__weight_backend": "tcp"}
    command = ["ray", "job", "submit", "--address", ray_cluster.job_server, "--working-dir", ".", "--"]
    command += ["recipes/qwen3_coder_30b_a3b.yaml", *words(tmp_path, model_folder, **two, **there)]
    deadline = time.monotonic() + 120
    while True:  # the job server takes a while to find its node's agent
        done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, env=on_path(), timeout=240)
        if "No available agent" not in done.stderr or time.monotonic() > deadline:
            break
        time.sleep(2)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert json.loads((tmp_path / "run/summary.json").read_text())["status"] == "finished"
    rows = [row for row in read_jsonl(tmp_path / "run/metrics.jsonl") if "loss" in row]
    assert max(row["staleness/max"] for row in rows) == 1
    assert all(row["mismatch/tokens"] > 0 and row["mismatch/logprob_max"] < 1e-3 for row in rows)

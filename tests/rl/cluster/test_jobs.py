"""Commands as real Ray jobs: bounded, each reported, stopped with the sweep, adopted by the next one."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sandboxrl.data.errors import InputError
from tests.ray_cluster import RayCluster

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def job_server(ray_cluster: RayCluster) -> str:
    """It outlives the sweeps of these tests."""
    return ray_cluster.job_server


def wait_for(
    condition: Callable[[], object], seconds: float = 60, process: subprocess.Popen[str] | None = None
) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def sweep_process(commands: dict[str, str], out: Path, cluster: str) -> subprocess.Popen[str]:
    code = (
        "import json, sys; from pathlib import Path; from sandboxrl.rl.cluster.jobs import run_jobs\n"
        "print(json.dumps(run_jobs(json.loads(sys.argv[1]), Path(sys.argv[2]), 1, sys.argv[3])))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(commands), str(out), cluster],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_failed_job_is_reported_and_hides_no_other(job_server: str, tmp_path: Path) -> None:
    from sandboxrl.rl.cluster.jobs import run_jobs

    mark = "date +%s.%N >> {0}.start; sleep 1; date +%s.%N >> {0}.end".format
    commands = {name: mark(tmp_path / name) for name in ("a", "b", "c")}
    commands["bad"] = "echo first; echo 'sandboxrl train: no such model' >&2; exit 2"
    problems = run_jobs(commands, tmp_path, 2, job_server)
    assert list(problems) == ["bad"] and "no such model" in problems["bad"]
    assert "first" in (tmp_path / "bad" / "job.log").read_text()
    spans = [(float((tmp_path / f"{n}.start").read_text()), float((tmp_path / f"{n}.end").read_text())) for n in "abc"]
    assert all(sum(start <= moment < end for start, end in spans) <= 2 for moment, _ in spans), "two at a time"


def test_a_stopped_sweep_stops_its_job_and_only_that(job_server: str, tmp_path: Path) -> None:
    from ray.job_submission import JobSubmissionClient

    client = JobSubmissionClient(job_server)
    other = client.submit_job(entrypoint="sleep 600")
    pid_file = tmp_path / "pid"
    sweep = sweep_process({"long": f"echo $$ > {pid_file}; exec sleep 600"}, tmp_path, job_server)
    wait_for(lambda: pid_file.exists() and pid_file.read_text().strip(), 60, sweep)
    sweep.send_signal(signal.SIGTERM)
    sweep.communicate(timeout=60)
    wait_for(lambda: not alive(int(pid_file.read_text())))
    assert not client.get_job_status(other).is_terminal()
    client.stop_job(other)


def test_a_killed_sweep_finds_its_job_again(job_server: str, tmp_path: Path) -> None:
    count, go = tmp_path / "count", tmp_path / "go"
    command = f"echo x >> {count}; while [ ! -e {go} ]; do sleep 0.2; done; echo done"
    sweep = sweep_process({"only": command}, tmp_path, job_server)
    wait_for(count.exists, 60, sweep)
    sweep.kill()
    sweep.communicate()
    again = sweep_process({"only": command}, tmp_path, job_server)
    time.sleep(3)
    go.touch()
    output, _ = again.communicate(timeout=60)
    assert "still running as only-" in output and output.splitlines()[-1] == "{}", output
    assert count.read_text() == "x\n", "it was not started a second time"


def test_a_cluster_of_its_own_ends_with_the_sweep_even_when_killed(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    sweep = sweep_process({"long": f"echo $$ > {pid_file}; exec sleep 600"}, tmp_path, "")
    wait_for(lambda: pid_file.exists() and pid_file.read_text().strip(), 120, sweep)
    sweep.kill()
    sweep.communicate()
    wait_for(lambda: not alive(int(pid_file.read_text())))


def test_a_cluster_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    from sandboxrl.rl.cluster.jobs import run_jobs

    with pytest.raises(InputError, match="no Ray job server at http://127.0.0.1:9"):
        run_jobs({"a": "true"}, tmp_path, 1, "http://127.0.0.1:9")

"""Commands as Ray jobs, a few at a time, on a given cluster or on one of our own that ends with this process.

    run_jobs({"math-s0": "cd /x && python -m sandboxrl.launch train ..."}, out, parallel=2, cluster="")

The id of each job is kept in `out`/jobs.json: a sweep that is started again adopts the jobs that still run on a cluster
that outlived it. On Ctrl-C or SIGTERM the jobs of this call are stopped, and only those.
"""

import contextlib
import json
import os
import secrets
import shlex
import shutil
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster
from ray.job_submission import JobStatus, JobSubmissionClient

from sandboxrl.data.errors import InputError, one_line
from sandboxrl.data.files import read_object, write_whole
from sandboxrl.rl.cluster.connect import guard_descendants, stay_on_loopback

POLL_S = 1.0
AGENT_S = 120.0
STOP_S = 120.0
"""A stopped job may write a checkpoint and close its sandboxes."""


def run_jobs(commands: Mapping[str, str], out: Path, parallel: int, cluster: str) -> dict[str, str]:
    """Run each command to its end, at most `parallel` at the same time; returns name -> why, for those that failed.
    What a job prints is kept in `out`/NAME/job.log."""
    if not commands:
        return {}
    problems: dict[str, str] = {}
    known = _known(out / "jobs.json")
    running: dict[str, str] = {}
    waiting = list(commands)
    with _job_server(cluster) as (client, address), _interruptible():
        try:
            while waiting or running:
                while waiting and len(running) < parallel:
                    name = waiting.pop(0)
                    known[name] = running[name] = _start(client, name, address + commands[name], known.get(name, ""))
                    write_whole(out / "jobs.json", json.dumps(known, indent=2) + "\n")
                for name, job in list(running.items()):
                    status = client.get_job_status(job)
                    if not status.is_terminal():
                        continue
                    del running[name]
                    log = client.get_job_logs(job)
                    (out / name).mkdir(parents=True, exist_ok=True)
                    write_whole(out / name / "job.log", log)
                    if status != JobStatus.SUCCEEDED:
                        problems[name] = _reason(client, job, log)
                    left = len(waiting) + len(running)
                    print(f"{name}: {problems.get(name) or 'finished'}  ({left} left)", flush=True)
                time.sleep(POLL_S)
        finally:
            _stop(client, running.values())
    return problems


def _start(client: Any, name: str, command: str, earlier: str) -> str:
    """Submit the command, or take over the job of an earlier call that still runs."""
    if earlier and earlier in {job.submission_id for job in client.list_jobs()}:
        if not client.get_job_status(earlier).is_terminal():
            print(f"{name}: still running as {earlier}", flush=True)
            return earlier
    job = f"{name}-{uuid.uuid4().hex[:8]}"
    environment = {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    deadline = time.monotonic() + AGENT_S
    while True:
        try:
            client.submit_job(
                entrypoint=command, submission_id=job, entrypoint_num_cpus=0, runtime_env={"env_vars": environment}
            )
            break
        except RuntimeError as error:  # a fresh cluster answers before its job agent runs
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(POLL_S)
    print(f"{name}: started as {job}", flush=True)
    return job


def _reason(client: Any, job: str, log: str) -> str:
    """The last line that the job printed, else what Ray says about it."""
    lines = [line.strip() for line in log.split("\n") if line.strip()]
    message = lines[-1] if lines else str(client.get_job_info(job).message)
    return " ".join(message.split())[:300]


def _stop(client: Any, jobs: Any) -> None:
    """Ask the jobs to end and wait until they have."""
    left = list(jobs)
    for job in left:
        client.stop_job(job)
    deadline = time.monotonic() + STOP_S
    while left and time.monotonic() < deadline:
        left = [job for job in left if not client.get_job_status(job).is_terminal()]
        time.sleep(POLL_S)
    for job in left:
        print(f"still running after {STOP_S:.0f} s: {job}", file=sys.stderr)


@contextlib.contextmanager
def _job_server(cluster: str) -> Iterator[tuple[Any, str]]:
    """A job server: of the cluster, of the one this process belongs to, or of one that lives as long as this. With it
    what a command must begin with to join that cluster."""
    address = cluster or os.environ.get("RAY_ADDRESS", "")
    if address:
        try:
            client = JobSubmissionClient(address)
        except ConnectionError as error:
            raise InputError(f"cluster: no Ray job server at {address}: {one_line(error)}") from None
        yield client, ""
        return
    with own_cluster() as own:
        # Ray tells a job to join "the" cluster of the machine, which is any of them where there are several
        yield JobSubmissionClient(f"http://{own.webui_url}"), f"export RAY_ADDRESS={shlex.quote(own.address)}; "


@contextlib.contextmanager
def own_cluster() -> Iterator[Cluster]:
    """A cluster of this machine that ends with this process, however that ends.

    Not `ray.init`: its job agent always listens on one port, so it takes no jobs while another Ray runs on the machine.
    """
    stay_on_loopback()
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    shared = shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else 0
    settings = {
        "num_cpus": os.cpu_count(),
        "num_gpus": _num_gpus(),
        "object_store_memory": max(150 << 20, min(8 << 30, shared // 2)),
        "include_dashboard": True,
        "dashboard_port": None,  # the first free one
        "dashboard_agent_listen_port": 0,
        "_system_config": {
            # so long a job whose cluster was killed with this process waits for it, and holds its folder (Ray: 60 s)
            "gcs_rpc_server_reconnect_timeout_s": 5,
            "prestart_worker_first_driver": False,  # every actor has an environment of its own
        },
    }
    with _kept(Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster") as restore:
        cluster = Cluster(initialize_head=True, head_node_args=settings)
        restore()
        guard_descendants()
        try:
            yield cluster
        finally:
            cluster.shutdown()


@contextlib.contextmanager
def _kept(path: Path) -> Iterator[Callable[[], None]]:
    """Keeps a file as it is: `Cluster` names itself there as the cluster of this machine, which may be another."""
    before = path.read_bytes() if path.exists() else None

    def restore() -> None:
        if before is None:
            path.unlink(missing_ok=True)
        else:
            path.write_bytes(before)

    try:
        yield restore
    finally:
        restore()


def _num_gpus() -> int:
    """Those that CUDA_VISIBLE_DEVICES names, else all of the machine."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip() not in ("", "-1")])
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM like Ctrl-C, so that jobs are stopped on the way out. Entered after Ray, whose own handler just dies."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _known(path: Path) -> dict[str, str]:
    return read_object(path) if path.exists() else {}

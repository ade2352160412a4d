"""A cluster answers nobody who has no token: one's own, and the one that README starts."""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = """
    import os, subprocess, sys
    import ray
    from sandboxrl.rl.cluster.connect import connect

    connect("")
    address = ray.get_runtime_context().gcs_address
    join = "import ray, sys; ray.init(sys.argv[1], log_to_driver=False); print('joined')"
    loopback = {key: value for key, value in os.environ.items() if not key.startswith("RAY_AUTH")}
    for others in (
        {"RAY_AUTH_MODE": "disabled"},
        {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64},
        {"RAY_AUTH_MODE": "token"},  # the same user: Ray finds the token in the home folder
    ):
        words = [sys.executable, "-c", join, address]
        try:
            done = subprocess.run(words, env=loopback | others, capture_output=True, text=True, timeout=60)
            print("joined" in done.stdout, flush=True)
        except subprocess.TimeoutExpired:
            print("waits", flush=True)
    ray.shutdown()
"""


def test_who_has_no_token_or_a_wrong_one_cannot_join() -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    words = [sys.executable, "-c", textwrap.dedent(PROGRAM)]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False", "True"], done.stdout + done.stderr


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """Ray's sockets lie in it, whose paths have at most 107 characters."""
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def free_ports(num: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(num)]
        return [one.getsockname()[1] for one in sockets]


def test_the_cluster_that_readme_starts_takes_a_recipe_as_a_job(short_folder: Path) -> None:
    """`ray get-auth-token --generate`, `ray start --head`, `ray job submit`, on ports and in folders of their own."""
    port, dashboard, client, agent = free_ports(4)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | {
        "RAY_AUTH_MODE": "token",
        "HOME": str(short_folder),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    subprocess.run(["ray", "get-auth-token", "--generate"], env=environment, check=True, capture_output=True)
    assert (short_folder / ".ray/auth_token").is_file()
    start = ["ray", "start", "--head", "--block", "--num-cpus=4", f"--port={port}", f"--dashboard-port={dashboard}"]
    start += [
        f"--ray-client-server-port={client}",
        f"--dashboard-agent-listen-port={agent}",
        f"--temp-dir={short_folder}/t",
        "--disable-usage-stats",
    ]
    head = subprocess.Popen(start, env=environment, start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        submit = ["ray", "job", "submit", "--address", f"http://127.0.0.1:{dashboard}", "--working-dir", ".", "--"]
        submit += ["recipes/tiny.yaml", "--dry-run", f"out={short_folder}/runs"]
        deadline = time.monotonic() + 120
        while True:  # until the job server is up and has found its node's agent
            done = subprocess.run(submit, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180)
            if done.returncode == 0 or time.monotonic() > deadline:
                break
            time.sleep(1)
        assert done.returncode == 0 and "nothing was started" in done.stdout, done.stdout + done.stderr
        stranger = environment | {"RAY_AUTH_TOKEN": "0" * 64}
        refused = subprocess.run(submit, cwd=ROOT, env=stranger, capture_output=True, text=True, timeout=60)
        assert refused.returncode != 0 and "nothing was started" not in refused.stdout
    finally:
        head.terminate()
        head.wait(60)

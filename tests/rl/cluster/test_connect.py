"""A cluster of one's own answers nobody from outside the machine."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = """
    import json, os, ray
    from pathlib import Path
    from sandboxrl.rl.cluster.connect import _descendants, connect

    connect("")

    @ray.remote(num_cpus=0)
    class Actor:
        def pid(self):
            return os.getpid()

    actor = Actor.remote()
    pids = {os.getpid(), ray.get(actor.pid.remote()), *_descendants(os.getpid())}
    held = set()
    for pid in pids:
        try:
            held |= {os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()}
        except OSError:
            continue
    listening = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and f"socket:[{words[9]}]" in held:
                listening.append(words[1].rpartition(":")[0])
    print(json.dumps({"listening": listening, "auth": os.environ.get("RAY_AUTH_MODE", "")}))
    ray.shutdown()
"""
LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}


def test_every_port_of_it_is_on_loopback_and_wants_a_token() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "RAY_AUTH_MODE"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found["listening"]) > 3
    assert set(found["listening"]) <= LOOPBACK
    assert found["auth"] == "token"

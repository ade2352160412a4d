"""A cluster of one's own answers nobody who has no token."""

import os
import subprocess
import sys
import textwrap
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
    stranger = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    for token in ("", "0" * 64):
        others = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else {"RAY_AUTH_MODE": "disabled"}
        words = [sys.executable, "-c", join, address]
        done = subprocess.run(words, env=stranger | others, capture_output=True, text=True)
        print("joined" in done.stdout)
    ray.shutdown()
"""


def test_who_has_no_token_or_a_wrong_one_cannot_join() -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    words = [sys.executable, "-c", textwrap.dedent(PROGRAM)]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False"], done.stdout + done.stderr

"""`sandboxrl evaluate FOLDER`: a real model in real vLLM engines on Ray, both modes, continued after a kill."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.chaos import ROOT, num_lines
from bench.victims import descendants, survivors
from sandboxrl.rl.evaluation.evaluate import read_results
from tests.data.test_benchmarks import PUBLISHED
from tests.rl.evaluation.test_evaluate import needs_bubblewrap

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(280)]


def command_line(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    return "/ray/ gone"


def test_a_model_folder_is_evaluated_and_continued_after_a_kill(tmp_path, model_folder, ray_cluster):
    """On a cluster of its own until it is killed, then on one that is there."""
    needs_bubblewrap()
    rows = [
        PUBLISHED["chembench"] | {"id": f"chembench4k_X_{i:05d}", "problem_statement": f"Q{i}? A. a\nB. b\nC. c\nD. d"}
        for i in range(4)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = f"evaluate {model_folder} --benchmarks chembench --data chembench={tmp_path}/rows.jsonl --repeats 4"
    words += " --arm compact limits.max_turns=2 limits.max_tokens=4000 limits.max_tokens_per_turn=24"
    words += f" --parallel 4 --keep-tokens --out {tmp_path}/out"
    command = [sys.executable, "-m", "sandboxrl.launch", *words.split()]

    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE)
    while process.poll() is None and num_lines(tmp_path / "out") < 3:
        time.sleep(0.05)
    assert process.returncode is None, process.stderr.read()
    started = descendants(process.pid)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    # Ray's own agents notice only after a minute that their cluster is gone
    left = {pid: command_line(pid) for pid in survivors(started, patience_s=30)}
    assert not [line for line in left.values() if "/ray/" not in line and "Agent" not in line], (
        "an engine, a sandbox or a grader was left"
    )
    before = {(one.mode, one.task_id, one.metadata["repeat"]): one for one in read_results(tmp_path / "out")}

    there = os.environ | {"OMP_NUM_THREADS": "1", "RAY_ADDRESS": ray_cluster.address}
    done = subprocess.run(command, cwd=ROOT, env=there, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = {(one.mode, one.task_id, one.metadata["repeat"]): one for one in read_results(tmp_path / "out")}
    assert len(found) == 32 and all(found[key] == one for key, one in before.items())
    for one in found.values():
        assert one.score in (0.0, 1.0) and one.num_sampled > 0
        assert one.tokens.mask.sum() == one.num_sampled  # the engine's own tokens, counted by the engine

"""A machine without descriptors or processes to give: one line, exit code 1; what there is room for goes on."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GROUPS = (Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup"))


def evaluation(folder: Path, prepare: object) -> subprocess.CompletedProcess[str]:
    rows = folder / "rows.jsonl"
    rows.write_text(json.dumps({"id": "a", "problem": "What is 1+1?", "answer": "2"}) + "\n")
    words = f"scripted:guess:0 --benchmarks aime25 --data aime25={rows} --repeats 2 --mode sandbox --out {folder}/out"
    return subprocess.run(
        [sys.executable, "-m", "sandboxrl.launch", "evaluate", *words.split()],
        cwd=ROOT, capture_output=True, text=True, timeout=120, preexec_fn=prepare,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def failed_in_one_line(done: subprocess.CompletedProcess[str], words: str) -> bool:
    told = [line for line in done.stderr.splitlines() if line.startswith("sandboxrl evaluate: ")]
    return done.returncode == 1 and len(told) == 1 and words in told[0] and "Traceback" not in done.stderr


@pytest.mark.parametrize("most", [10, 24])
def test_no_more_descriptors(most: int, tmp_path: Path) -> None:
    def few() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    done = evaluation(tmp_path, few)
    assert failed_in_one_line(done, "Too many open files"), done.stderr


def test_no_more_processes(tmp_path: Path) -> None:
    group = next((one for one in GROUPS if (one / "cgroup.procs").exists() and os.access(one, os.W_OK)), None)
    if group is None:
        pytest.skip("needs a control group of its own")
    group /= f"sandboxrl-test-{os.getpid()}"
    group.mkdir()
    try:
        if not (group / "pids.max").exists():
            pytest.skip("the pids controller is not at work here")
        (group / "pids.max").write_text("3")
        done = evaluation(tmp_path, lambda: (group / "cgroup.procs").write_text(str(os.getpid())))
        assert failed_in_one_line(done, "may be started here (ulimit -u, or pids.max)"), done.stderr
    finally:
        group.rmdir()

"""An evaluation killed with SIGKILL again and again must end as if it had never been.

    python -m bench.chaos [--quick] --out FILE.json

| measure | ours | goal |
|---|---|---|
| `chaos/kills` | kills in the middle of one evaluation | at least 50 (10 with --quick) |
| `chaos/rows_differing` | results lost, doubled or other than those of an uninterrupted run | 0 |
| `chaos/left_running` | sandboxes and grading processes that outlived a kill | 0 |
| `chaos/seconds_per_kill` | from one start to the next | |

The model is scripted: its answers depend on the prompt and the seed alone, so the results can be compared one by one.
Each time the run is allowed a random number of further results, and is killed a random moment later.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.report import measure, write_report
from sandboxrl.rl.evaluation.evaluate import RESULTS, read_results, result_key

ROOT = Path(__file__).resolve().parents[1]
NUM_TASKS = 5


@dataclass
class Chaos:
    """What became of an evaluation that was killed many times."""

    num_kills: int
    num_left_running: int
    differing: list[Any]
    """Results that are not exactly once those of the uninterrupted run."""
    num_results: int
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.chaos", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--quick", action="store_true", help="10 kills instead of 50")
    args = parser.parse_args()
    wanted = 10 if args.quick else 50
    with tempfile.TemporaryDirectory(prefix="sandboxrl-chaos-") as folder:
        found = killed_evaluation(Path(folder), repeats=4 * wanted // NUM_TASKS, most_results=7, seed=0)
    measures = {
        "chaos/kills": measure(found.num_kills, at_least=wanted, goal=f"at least {wanted}"),
        "chaos/rows_differing": measure(len(found.differing), at_most=0, goal="0"),
        "chaos/left_running": measure(found.num_left_running, at_most=0, goal="0"),
        "chaos/seconds_per_kill": measure(found.seconds / max(1, found.num_kills)),
    }
    write_report(args.out, measures)


def killed_evaluation(folder: Path, repeats: int, most_results: int, seed: int) -> Chaos:
    """Run one evaluation undisturbed, and another that is killed whenever it has added 0 to `most_results` results."""
    calm = evaluation(folder, folder / "calm", repeats)
    _, told = calm.communicate()
    if calm.returncode:
        raise RuntimeError(f"the undisturbed evaluation failed: {told[-2000:]}")
    rng, out = random.Random(seed), folder / "killed"
    num_kills = num_left = 0
    started_s = time.monotonic()
    while True:
        process, before = evaluation(folder, out, repeats, delay_s=0.05), num_lines(out)
        wanted = rng.randint(0, most_results)  # counted in results, so that a slow machine gets on as well
        while process.poll() is None and num_lines(out) < before + wanted:
            time.sleep(0.002)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=rng.uniform(0.0, 0.3))
        if process.poll() is None:
            started = descendants(process.pid)
            process.send_signal(signal.SIGKILL)
            num_kills += 1
            num_left += len(survivors(started))
        _, told = process.communicate()
        if process.returncode == 0:
            break
        if process.returncode != -signal.SIGKILL:
            raise RuntimeError(f"the continued evaluation failed: {told[-2000:]}")
    ours, undisturbed = outcomes(out), outcomes(folder / "calm")
    differing = [*(ours - undisturbed), *(undisturbed - ours)]
    return Chaos(num_kills, num_left, differing, ours.total(), time.monotonic() - started_s)


def evaluation(folder: Path, out: Path, repeats: int, delay_s: float = 0.0) -> subprocess.Popen[str]:
    """Start the evaluation of a few tasks, in both modes."""
    rows = folder / "rows.jsonl"
    if not rows.exists():
        tasks = ({"id": f"t{i}", "problem": f"What is {i}+{i}?", "answer": str(2 * i)} for i in range(NUM_TASKS))
        rows.write_text("".join(json.dumps(task) + "\n" for task in tasks))
    words = f"scripted:guess:{delay_s} --benchmarks aime25 --data aime25={rows} --repeats {repeats} --parallel 4"
    return subprocess.Popen(
        [sys.executable, "-m", "sandboxrl.launch", "evaluate", *words.split(), "--out", str(out)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def outcomes(folder: Path) -> Counter[Any]:
    """Each result without what depends on when it was made."""
    return Counter(
        (result_key(one.to_dict()), one.seed, one.stop, one.answer, one.score, len(one.turns))
        for one in read_results(folder)
    )


def num_lines(folder: Path) -> int:
    file = folder / RESULTS
    return file.read_bytes().count(b"\n") if file.exists() else 0


def descendants(pid: int) -> set[tuple[int, str]]:
    """Every process below `pid`, as (pid, start time)."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        if (fields := _stat(int(folder.name))) is not None:
            parents[int(folder.name)] = int(fields[1]), fields[19]
    found: set[tuple[int, str]] = set()
    level = {pid}
    while level:
        level = {child for child, (parent, _) in parents.items() if parent in level}
        found |= {(child, parents[child][1]) for child in level}
    return found


def survivors(processes: set[tuple[int, str]], patience_s: float = 10.0) -> set[int]:
    """Those of `processes` that still run after `patience_s`."""
    deadline = time.monotonic() + patience_s
    while True:
        left = set()
        for pid, started in processes:
            fields = _stat(pid)
            if fields is not None and fields[19] == started and fields[0] != "Z":
                left.add(pid)
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.02)


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat after the name, or None for a process that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


if __name__ == "__main__":
    main()

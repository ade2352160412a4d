"""An evaluation of which a part is killed with SIGKILL again and again must end as if that had never been.

    python -m bench.chaos [--quick] --out FILE.json

| measure | ours | goal |
|---|---|---|
| `chaos/kills` | kills in the middle of one evaluation | at least 200 (20 with --quick) |
| `chaos/kills/<what>` | of them: the evaluation itself, its nursery, a sandbox, a grading process | |
| `chaos/rows_differing` | results lost, doubled or other than those of an uninterrupted run | 0 |
| `chaos/left_running` | sandboxes and grading processes that outlived a kill | 0 |
| `chaos/seconds_per_kill` | from one start to the next | |

The model is scripted: its answers depend on the prompt and the seed alone, so the results can be compared one by one.
Each time the run is allowed a random number of further results, and something of it is killed a random moment later.
What the machine lost more often than the evaluation tries is left to the same command, which is started again.
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
from bench.victims import LEFT_S, collect_orphans, descendants, running, survivors
from sandboxrl.rl.evaluation.evaluate import RESULTS, read_results, result_key

ROOT = Path(__file__).resolve().parents[1]
NUM_TASKS = 5
VICTIMS = ("driver", "nursery", "sandbox", "grader")


@dataclass
class Chaos:
    """What became of an evaluation that was killed many times."""

    kills: Counter[str]
    num_left_running: int
    differing: list[Any]
    """Results that are not exactly once those of the uninterrupted run."""
    num_results: int
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.chaos", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--quick", action="store_true", help="20 kills instead of 200")
    args = parser.parse_args()
    wanted = 20 if args.quick else 200
    with tempfile.TemporaryDirectory(prefix="sandboxrl-chaos-") as folder:
        found = killed_evaluation(Path(folder), repeats=wanted // NUM_TASKS, most_results=3, seed=0)
    measures = {
        "chaos/kills": measure(found.kills.total(), at_least=wanted, goal=f"at least {wanted}"),
        **{f"chaos/kills/{what}": measure(count) for what, count in found.kills.items()},
        "chaos/rows_differing": measure(len(found.differing), at_most=0, goal="0"),
        "chaos/left_running": measure(found.num_left_running, at_most=0, goal="0"),
        "chaos/seconds_per_kill": measure(found.seconds / max(1, found.kills.total())),
    }
    write_report(args.out, measures)


def killed_evaluation(folder: Path, repeats: int, most_results: int, seed: int) -> Chaos:
    """Run one evaluation undisturbed, and another of which something is killed whenever it has added 0 to
    `most_results` results."""
    collect_orphans()
    others = descendants(os.getpid())  # of whoever calls this
    calm = evaluation(folder, folder / "calm", repeats)
    _, told = calm.communicate()
    if calm.returncode:
        raise RuntimeError(f"the undisturbed evaluation failed: {told[-2000:]}")
    rng, out, kills, num_left = random.Random(seed), folder / "killed", Counter[str](), 0
    started_s = time.monotonic()
    process = evaluation(folder, out, repeats, delay_s=0.05)
    while True:
        before, wanted = num_lines(out), rng.randint(0, most_results)  # in results, so that a slow machine gets on
        while process.poll() is None and num_lines(out) < before + wanted:
            time.sleep(0.002)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=rng.uniform(0.0, 0.3))
        victim = rng.choice(VICTIMS)
        if process.poll() is not None:
            _, told = process.communicate()
            num_left += len(survivors(descendants(os.getpid()) - others, LEFT_S))
            if process.returncode == 0:
                break
            if process.returncode != 1 or "lost" not in told:
                raise RuntimeError(f"the continued evaluation failed: {told[-2000:]}")
            process = evaluation(folder, out, repeats, delay_s=0.05)
        elif victim == "driver":
            started = descendants(process.pid)
            process.kill()
            process.communicate()
            kills[victim] += 1
            num_left += len(survivors(started, LEFT_S))
            process = evaluation(folder, out, repeats, delay_s=0.05)
        elif pids := running(victim, process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(rng.choice(pids), signal.SIGKILL)
                kills[victim] += 1
    ours, undisturbed = outcomes(out), outcomes(folder / "calm")
    differing = [*(ours - undisturbed), *(undisturbed - ours)]
    return Chaos(kills, num_left, differing, ours.total(), time.monotonic() - started_s)


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


if __name__ == "__main__":
    main()

"""Training runs of which a part is killed with SIGKILL again and again must end as if nothing had been.

    python -m bench.chaos_training --model start:tiny [--kills 10] [--seed 0] --out FILE.json

A victim is drawn each time: the driver (then the same command is started again), a rollout worker, a learner rank, the
nursery that forks the sandboxes, a grading process; and a moment. What must hold: every run ends by itself with all its
steps; each group is trained on once; at staleness 0 the weights are those of a run that nobody disturbed, at 1 those of
the replay of its own log, bit for bit; no process is left.
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
from dataclasses import dataclass, field
from pathlib import Path

from bench.chaos import descendants, survivors
from sandboxrl.data.files import read_jsonl
from sandboxrl.rl.reports.events import read_events

ROOT = Path(__file__).resolve().parents[1]
VICTIMS = {"driver": "", "worker": "ray::RolloutWorker", "learner": "ray::LearnerRank", "nursery": "/run/nursery"}
"""What is killed -> a part of the command line of its process."""
SMALL = (
    "steps=6 groups_per_step=2 group_size=4 evaluation.every=0 evaluation.before=false evaluation.after=false "
    "tasks.eval.heldout.num_tasks=4 checkpoint.every=2 checkpoint.keep=0 sandbox.warm=2 watch.poll_s=1 "
    "watch.learner_restarts=1000 seed=7"
)
END_S = 900.0
"""A run that was disturbed for the last time must have ended by then."""


@dataclass(frozen=True)
class Setting:
    staleness: int
    ranks: int
    backend: str = "shm"
    workers: int = 1

    @property
    def name(self) -> str:
        return f"staleness {self.staleness}, {self.ranks} ranks, {self.workers} workers, {self.backend}"

    def words(self) -> list[str]:
        backend = f"engine.weight_backend={self.backend}"
        return [
            f"max_staleness={self.staleness}",
            f"learner.world_size={self.ranks}",
            f"num_workers={self.workers}",
            backend,
        ]


@dataclass
class Found:
    """What became of one run that was disturbed."""

    setting: Setting
    kills: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0


def killed_training(folder: Path, model: str, setting: Setting, num_kills: int, seed: int) -> Found:
    """One run, disturbed `num_kills` times if it lasts that long, then let go to its end, and looked at."""
    rng, found, run_dir = random.Random(seed), Found(setting), folder / f"killed-{seed}"
    victims, started_s = list(VICTIMS), time.monotonic()
    process, family = start(folder, run_dir.name, model, setting), set[tuple[int, str]]()
    while sum(found.kills.values()) < num_kills and process.poll() is None:
        events = len(read_events(run_dir))
        wanted = events + rng.randint(1, 12)  # counted in events, so that a slow machine gets on as well
        while process.poll() is None and len(read_events(run_dir)) < wanted:
            time.sleep(0.05)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=rng.uniform(0, 1.0))
        if process.poll() is not None:
            break
        family |= descendants(process.pid)
        victim = rng.choice(victims)
        pids = [process.pid] if victim == "driver" else matching(process.pid, VICTIMS[victim])
        if not pids:
            continue  # it is being replaced just now
        with contextlib.suppress(ProcessLookupError):
            os.kill(rng.choice(pids), signal.SIGKILL)
            found.kills[victim] += 1
        if victim == "driver":
            process.wait()
            if left := survivors(family):
                found.problems.append(f"{len(left)} processes outlived the driver")
            process = start(folder, run_dir.name, model, setting)
    try:
        told, _ = process.communicate(timeout=END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        told, _ = process.communicate()
        found.problems.append(f"it had not ended after {END_S:.0f} s")
    if process.returncode != 0:
        found.problems.append(f"exit code {process.returncode}: {told[-500:]}")
    if left := survivors(family):
        found.problems.append(f"{len(left)} processes outlived the run")
    found.problems += list(_wrong(folder, run_dir, model, setting)) if not found.problems else []
    found.seconds = time.monotonic() - started_s
    return found


def _wrong(folder: Path, run_dir: Path, model: str, setting: Setting) -> list[str]:
    """What is not as it would be had nobody disturbed the run."""
    problems = []
    rows = [row for row in read_jsonl(run_dir / "metrics.jsonl") if "reward/mean" in row]
    if [row["step"] for row in rows] != list(range(1, 7)):
        problems.append(f"its steps are {[row['step'] for row in rows]}")
    trained = Counter(
        (row["group"], position)
        for file in sorted((run_dir / "trajectories").glob("step_*.jsonl"))
        for position, row in enumerate(read_jsonl(file))
    )
    groups = {group for group, _ in trained}
    if max(trained.values(), default=0) > 1 or len(groups) != 12:
        problems.append(f"{len(groups)} groups were trained on, of 12")
    if setting.staleness == 0:
        calm = folder / f"calm-{setting.ranks}"
        if not calm.exists():
            undisturbed = start(folder, calm.name, model, Setting(0, setting.ranks))
            undisturbed.communicate()
        if weights(run_dir, folder) != weights(calm, folder):
            problems.append("its weights are not those of the undisturbed run")
    else:
        words = ["train", "--replay", str(run_dir), f"name=replay-{run_dir.name}", f"out={folder}"]
        replayed = subprocess.run(
            [sys.executable, "-m", "sandboxrl.launch", *words], cwd=ROOT, capture_output=True, text=True
        )
        if replayed.returncode != 0 or "equal bit for bit" not in replayed.stdout:
            problems.append(f"its replay differs: {(replayed.stdout + replayed.stderr)[-500:]}")
    return problems


def start(folder: Path, name: str, model: str, setting: Setting) -> subprocess.Popen[str]:
    words = ["train", "recipes/tiny.yaml", "--quiet", f"name={name}", f"out={folder}", f"model.path={model}"]
    return subprocess.Popen(
        [sys.executable, "-m", "sandboxrl.launch", *words, *SMALL.split(), *setting.words()],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def weights(run_dir: Path, folder: Path) -> bytes:
    """The exported weights after the last step."""
    out = folder / f"exported-{run_dir.name}"
    if not out.exists():
        words = ["export", str(run_dir), "--out", str(out)]
        subprocess.run([sys.executable, "-m", "sandboxrl.launch", *words], cwd=ROOT, capture_output=True, check=True)
    return (out / "model.safetensors").read_bytes()


def matching(pid: int, part: str) -> list[int]:
    """Processes below `pid` with `part` in their command line."""
    found = []
    for child, _ in descendants(pid):
        with contextlib.suppress(OSError):
            if part in Path(f"/proc/{child}/cmdline").read_bytes().decode(errors="replace"):
                found.append(child)
    return found


def table(all_found: list[Found]) -> str:
    """One line a run, for a person."""
    lines = ["| setting | kills | of them | seconds | what was wrong |", "|---|---|---|---|---|"]
    for one in all_found:
        kinds = ", ".join(f"{name} {count}" for name, count in sorted(one.kills.items())) or "none"
        wrong = "; ".join(one.problems) or "nothing"
        lines.append(f"| {one.setting.name} | {one.kills.total()} | {kinds} | {one.seconds:.0f} | {wrong} |")
    return "\n".join(lines)


SETTINGS = (Setting(0, 1), Setting(1, 2, "tcp", 2), Setting(0, 2), Setting(1, 1))


def main() -> int:
    """Exit code 1 where anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m bench.chaos_training", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="start:tiny", help="a model folder, or start:tiny")
    parser.add_argument("--kills", type=int, default=10, help="of each run")
    parser.add_argument("--seed", type=int, default=0, help="of who is killed, and when")
    parser.add_argument("--settings", type=int, default=len(SETTINGS), help="how many of the settings, one run each")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    args = parser.parse_args()
    found: list[Found] = []
    with tempfile.TemporaryDirectory(prefix="sandboxrl-chaos-") as folder:
        for number, setting in enumerate(SETTINGS[: args.settings]):
            found.append(killed_training(Path(folder), args.model, setting, args.kills, args.seed + number))
            args.out.write_text(to_json(found) + "\n")
            print(table(found), flush=True)
    return int(any(one.problems for one in found))


def to_json(all_found: list[Found]) -> str:
    rows = [
        {"setting": f.setting.name, "kills": dict(f.kills), "problems": f.problems, "s": f.seconds} for f in all_found
    ]
    return json.dumps(rows, indent=2)


if __name__ == "__main__":
    sys.exit(main())

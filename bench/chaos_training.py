"""Training runs of which a part is killed with SIGKILL again and again must end as if nothing had been.

    python -m bench.chaos_training [--kills 200] [--seed 0] [--minutes 60] --out FILE.json
    python -m bench.chaos_training --publications [--kills 100] …      rollout workers, around publications over tcp

A victim is drawn each time (driver, rollout worker, learner rank, nursery, sandbox, sandbox host, grading process, the
judge's server, the Docker daemon: one of our own, see `bench.victims`), and a moment: counted in events of the run, or,
every fourth time, in seconds, so that what is just starting again is hit too. A driver that was killed is started again
by the same command. What must hold at the end of each run:

- it ends by itself with exit code 0 and all its steps;
- each group is trained on once, in order, whole, and always with the same task;
- every trained token has, under the weights of the version it names, the log-probability it was drawn with;
- at staleness 0 the weights are those of a run that nobody disturbed, at 1 those of the replay of its log, to the bit;
- no process and no container is left, and nothing of it has listened but on loopback.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.victims import Surroundings, cluster, heard_outside, running
from sandboxrl.data.files import read_jsonl
from sandboxrl.rl.reports.events import EVENTS, read_events
from sandboxrl.rl.watch import STATUS

ROOT = Path(__file__).resolve().parents[1]
STEPS, GROUPS, SIZE = 30, 2, 4
SMALL = (
    f"steps={STEPS} groups_per_step={GROUPS} group_size={SIZE} replace_uninformative=0 evaluation.every=0 seed=7 "
    "evaluation.before=false evaluation.after=false tasks.eval={} checkpoint.every=2 checkpoint.keep=0 sandbox.warm=2 "
    "engine.max_num_seqs=16 watch.poll_s=0.2 watch.learner_restarts=1000 retries=20"
)
STANDS_STILL_S = 900.0
"""Without an event a run has hung: longer than any part takes to start again here, whatever else the machine does."""
SAME_LOGPROB = 1e-3
IN_SECONDS = 0.25
"""The share of moments that is drawn in seconds."""
OFTEN = 5


@dataclass(frozen=True)
class Setting:
    staleness: int
    ranks: int
    victims: tuple[str, ...]
    backend: str = "shm"
    workers: int = 1

    @property
    def name(self) -> str:
        sandboxes = {"host": ", remote sandboxes", "daemon": ", Docker"}
        more = "".join(told for victim, told in sandboxes.items() if victim in self.victims)
        return f"staleness {self.staleness}, {self.ranks} ranks, {self.workers} workers, {self.backend}{more}"

    def words(self) -> list[str]:
        return [
            f"max_staleness={self.staleness}",
            f"learner.world_size={self.ranks}",
            f"num_workers={self.workers}",
            f"engine.weight_backend={self.backend}",
        ]


SLOW, QUICK = ("driver", "worker", "learner"), ("grader", "judge", "sandbox")
"""What takes ten seconds of a processor to start again, and what takes none: that is drawn `OFTEN` times as often."""
SETTINGS = (
    Setting(0, 1, (*SLOW, *QUICK, "nursery")),
    Setting(1, 1, (*SLOW, "grader", "judge", "daemon")),
    Setting(0, 2, (*SLOW, *QUICK, "host", "nursery")),
    Setting(1, 2, (*SLOW, *QUICK, "nursery"), "tcp", 2),
    Setting(0, 1, (*SLOW, "grader", "judge", "daemon")),
    Setting(1, 1, (*SLOW, *QUICK, "host", "nursery")),
)
PUBLICATIONS = Setting(1, 2, ("worker",), "tcp", 2)


@dataclass
class Found:
    """What became of one run that was disturbed."""

    setting: Setting
    seed: int
    kills: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    tokens: int = 0
    """Trained tokens that were compared with the weights of their version."""
    seconds: float = 0.0


class Run:
    """One run and the process that drives it now."""

    def __init__(self, folder: Path, name: str, setting: Setting, around: Surroundings) -> None:
        self.dir, self._folder, self._setting, self._around = folder / name, folder, setting, around
        self.process = self.start()

    def start(self) -> "subprocess.Popen[bytes]":
        words = ["train", "recipes/tiny.yaml", "--quiet", f"name={self.dir.name}", f"out={self._folder}"]
        command = [sys.executable, "-m", "sandboxrl.launch", *words, *SMALL.split(), *self._setting.words()]
        if self._setting == PUBLICATIONS:
            command.append("checkpoint.every=1")
        with (self._folder / f"{self.dir.name}.out").open("ab") as out:
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            self.process = subprocess.Popen(
                [*command, *self._around.words()], cwd=ROOT, env=environment, stdout=out, stderr=out
            )
        return self.process

    @property
    def goes_on(self) -> bool:
        return self.process.poll() is None

    def said(self) -> str:
        return (self._folder / f"{self.dir.name}.out").read_text(errors="replace")[-600:]

    def num_events(self) -> int:
        file = self.dir / EVENTS
        return file.read_bytes().count(b"\n") if file.exists() else 0

    def publishing(self) -> bool:
        with contextlib.suppress(OSError, ValueError):
            waits = json.loads((self.dir / STATUS).read_text())["waits"]
            return any("publishing" in wait["what"] for wait in waits)
        return False

    def until(self, ready: Any) -> None:
        """Wait for `ready()`, or the end of the run. Raises TimeoutError where the run stands still."""
        known, since = self.num_events(), time.monotonic()
        while self.goes_on and not ready():
            if (now := self.num_events()) != known:
                known, since = now, time.monotonic()
            if time.monotonic() - since > STANDS_STILL_S:
                raise TimeoutError(f"no event for {STANDS_STILL_S:.0f} s")
            time.sleep(0.01)

    def wait(self, seconds: float) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)


def a_moment(run: Run, rng: random.Random) -> None:
    if rng.random() < IN_SECONDS:
        run.wait(rng.uniform(0, 5))
        return
    wanted = run.num_events() + rng.randint(1, 4)  # counted in events, so that a slow machine gets on as well
    run.until(lambda: run.num_events() >= wanted)
    run.wait(rng.uniform(0, 1))


def around_a_publication(run: Run, rng: random.Random) -> str:
    """Before, during or after one; returns which, as the run's own status tells."""
    published = lambda: sum(event["event"] == "published" for event in read_events(run.dir))  # noqa: E731
    first, kind = published(), rng.choice(("during", "during", "after", "before"))
    run.until(lambda: published() > first)
    if kind == "during":
        run.until(run.publishing)
        run.wait(rng.uniform(0, 0.1))
    else:
        run.wait(rng.uniform(0, 0.2 if kind == "after" else 1.5))
    return "worker while publishing" if run.publishing() else "worker"


def killed_training(
    folder: Path, setting: Setting, around: Surroundings, num_kills: int, seed: int, until: float
) -> Found:
    """One run, disturbed `num_kills` times if it lasts that long and it is not `until` (monotonic) before, then let go
    to its end, and looked at."""
    rng, found, started_s = random.Random(seed), Found(setting, seed), time.monotonic()
    run = Run(folder, f"killed-{seed}", setting, around)
    try:
        while found.kills.total() < num_kills and run.goes_on and time.monotonic() < until:
            if setting == PUBLICATIONS:
                victim, told = "worker", around_a_publication(run, rng)
                if len(running("worker")) < setting.workers and rng.random() < 0.5:
                    continue  # one is missing just now: more often than not both must be there
            else:
                a_moment(run, rng)
                victim = told = rng.choices(setting.victims, [1 if one in SLOW else OFTEN for one in setting.victims])[
                    0
                ]
            if not run.goes_on:
                break
            found.problems += heard_outside()
            if victim == "driver":
                run.process.kill()
                run.process.wait()
                found.kills[told] += 1
                if (run.dir / EVENTS).exists() and (left := around.left()):
                    found.problems.append(f"outlived the driver: {left}")
                run.start()
            elif around.kill(victim, rng):
                found.kills[told] += 1
        run.until(lambda: False)
    except TimeoutError as error:
        found.problems.append(f"{error}: {(run.dir / STATUS).read_text()[:2000]}")
        run.process.kill()
    if run.process.wait() != 0:
        found.problems.append(f"exit code {run.process.returncode}: {run.said()}")
    found.problems += around.left()
    if not found.problems:
        found.problems += _wrong(folder, run, setting, around, found)
    found.seconds = time.monotonic() - started_s
    return found


def _wrong(folder: Path, run: Run, setting: Setting, around: Surroundings, found: Found) -> Iterator[str]:
    """What is not as it would be had nobody disturbed the run."""
    rows = [row for row in read_jsonl(run.dir / "metrics.jsonl") if "reward/mean" in row]
    if [row["step"] for row in rows] != list(range(1, STEPS + 1)):
        yield f"its steps are {[row['step'] for row in rows]}"
    if json.loads((run.dir / "summary.json").read_text())["status"] != "finished":
        yield "its summary does not say finished"
    trained = Counter(row["group"] for file in run.dir.glob("trajectories/step_*.jsonl") for row in read_jsonl(file))
    if trained != Counter(dict.fromkeys(range(STEPS * GROUPS), SIZE)):
        yield f"what was trained on, by group: {dict(sorted(trained.items()))}"
    tasks: dict[int, set[str]] = {}
    for event in read_events(run.dir):
        if event["event"] == "dispatched":
            tasks.setdefault(event["group"], set()).add(event["task"])
    if changed := {group: names for group, names in tasks.items() if len(names) > 1}:
        yield f"groups whose task changed: {changed}"
    found.tokens, wrong = tokens_of_other_versions(run.dir)
    if wrong or not found.tokens:
        yield f"{wrong} of {found.tokens} tokens do not fit the version they name"
    if setting.staleness == 0:
        calm = folder / f"calm-{setting.ranks}"
        if not calm.exists():
            undisturbed = Run(folder, calm.name, setting, around)
            undisturbed.process.wait()
        if weights(calm) != weights(run.dir):
            yield "its weights are not those of the undisturbed run"
    else:
        command = [sys.executable, "-m", "sandboxrl.launch", "train", "--replay", str(run.dir), f"out={folder}"]
        replayed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if replayed.returncode != 0 or "equal bit for bit" not in replayed.stdout:
            yield f"its replay differs: {(replayed.stdout + replayed.stderr)[-500:]}"


def weights(run_dir: Path, step: int = STEPS) -> dict[str, bytes]:
    """Of a checkpoint, by name."""
    from sandboxrl.rl.continuing import recipe_of_folder
    from sandboxrl.rl.learner.checkpoint import LEARNER, Checkpoints
    from sandboxrl.rl.learner.model import load_policy
    from sandboxrl.rl.learner.sharded import read_sharded
    from sandboxrl.rl.run import model_of_run

    policy = load_policy(model_of_run(recipe_of_folder(run_dir, []), run_dir), chunk=2048).float()
    if step:
        read_sharded({"model": policy.state_dict()}, Checkpoints(run_dir).path(step) / LEARNER)
    return {name: tensor.numpy().tobytes() for name, tensor in policy.state_dict().items()}


def tokens_of_other_versions(run_dir: Path) -> tuple[int, int]:
    """(trained tokens whose version there is a checkpoint of, those of them that these weights give another
    log-probability)."""
    import torch

    from sandboxrl.envs.trajectory import Trajectory
    from sandboxrl.rl.continuing import recipe_of_folder
    from sandboxrl.rl.learner.checkpoint import LEARNER, Checkpoints
    from sandboxrl.rl.learner.model import load_policy
    from sandboxrl.rl.learner.sharded import read_sharded
    from sandboxrl.rl.run import model_of_run

    recipe, kept = recipe_of_folder(run_dir, []), Checkpoints(run_dir)
    policy = load_policy(model_of_run(recipe, run_dir), chunk=2048).float()
    files = sorted(run_dir.glob("trajectories/step_*.jsonl"))
    all_tokens = [Trajectory.from_dict(row).tokens for file in files for row in read_jsonl(file)]
    num_compared = num_wrong = 0
    for version in (0, *kept.steps()):
        if version:
            read_sharded({"model": policy.state_dict()}, kept.path(version) / LEARNER)
        for tokens in filter(None, all_tokens):
            places = torch.from_numpy(((tokens.mask == 1) & (tokens.versions == version)).nonzero()[0])
            if len(places):
                ids = torch.from_numpy(tokens.ids.astype("int64"))
                with torch.no_grad():
                    said = policy(ids, torch.arange(len(ids)), [len(ids)], places, recipe.sampling.temperature)
                drawn = torch.from_numpy(tokens.logprobs)[places].float()
                num_compared += len(places)
                num_wrong += int(((said - drawn).abs() > SAME_LOGPROB).sum())
    return num_compared, num_wrong


def table(all_found: list[Found]) -> str:
    """One line per setting, for a person."""
    lines = ["| setting | runs | kills | of them | tokens compared | minutes | what was wrong |", "|" + "---|" * 7]
    for setting in dict.fromkeys(one.setting for one in all_found):
        of_it = [one for one in all_found if one.setting == setting]
        kills = sum((one.kills for one in of_it), Counter())
        kinds = ", ".join(f"{name} {count}" for name, count in sorted(kills.items())) or "none"
        wrong = "; ".join(problem for one in of_it for problem in one.problems) or "nothing"
        minutes, tokens = sum(one.seconds for one in of_it) / 60, sum(one.tokens for one in of_it)
        columns = (setting.name, len(of_it), kills.total(), kinds, f"{tokens:,}", f"{minutes:.0f}", wrong)
        lines.append(f"| {' | '.join(map(str, columns))} |")
    return "\n".join(lines)


def to_json(all_found: list[Found]) -> str:
    rows = [dataclasses.asdict(one) | {"setting": one.setting.name, "kills": dict(one.kills)} for one in all_found]
    return json.dumps({"command": " ".join(sys.argv), "runs": rows}, indent=1) + "\n"


def main() -> int:
    """Exit code 1 where anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m bench.chaos_training", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="of all runs together")
    parser.add_argument("--per-run", type=int, default=40, help="of one run at most")
    parser.add_argument("--seed", type=int, default=0, help="of who is killed, and when")
    parser.add_argument("--minutes", type=float, default=240.0, help="no kill after so long; what runs goes to its end")
    parser.add_argument("--settings", default="", help="numbers of the settings, as in 0,3; default: all, in turn")
    parser.add_argument("--one-cluster", action="store_true", help="all runs join one: Ray need not start each time")
    parser.add_argument("--publications", action="store_true", help="workers around publications over tcp")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    args = parser.parse_args()
    settings = [SETTINGS[int(number)] for number in args.settings.split(",") if number] or list(SETTINGS)
    if args.publications:
        settings = [PUBLICATIONS]
    until, found, number = time.monotonic() + 60 * args.minutes, list[Found](), 0
    joined = cluster() if args.one_cluster else contextlib.nullcontext()
    with tempfile.TemporaryDirectory(prefix="sandboxrl-chaos-") as temporary, joined as nodes:
        while (left := args.kills - sum(one.kills.total() for one in found)) > 0 and time.monotonic() < until:
            setting = settings[number % len(settings)]
            folder = Path(temporary, str(settings.index(setting)))
            folder.mkdir(exist_ok=True)
            with Surroundings(folder, setting.victims, nodes) as around:
                many = min(left, args.per_run)
                found.append(killed_training(folder, setting, around, many, args.seed + number, until))
            if found[-1].problems:
                kept = args.out.resolve().with_name(f"{args.out.stem}-{found[-1].seed}")
                if (run_dir := folder / f"killed-{found[-1].seed}").exists():
                    shutil.move(run_dir, kept)
                print(f"what was wrong, kept in {kept}: {found[-1].problems}", flush=True)
            args.out.write_text(to_json(found))
            print(f"{table(found)}\n", flush=True)
            number += 1
            if not found[-1].kills:
                break  # it cannot even begin
    return int(any(one.problems for one in found))


if __name__ == "__main__":
    sys.exit(main())

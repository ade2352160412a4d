"""Whatever a person or a disk may hand to this program, damaged: a clear error or right work, every time.

    python -m bench.fuzz [--num 10000] [--seed 0] [--kinds recipe,tasks] --out FILE.json

Recipes, task files, trajectory files and pages of them, checkpoints (as they are found, and under a manifest that fits
the damage), model folders (config.json, tokenizer.json, chat template, weights) and the logs of a run (events, groups,
status, metrics, summary) are changed by bits, pieces or JSON values, and read by the verbs and functions that read
them. A finding is: an internal error, more than one line of error, a hang (`HANG_S`), a process that dies, or a file,
process or connection outside the folder of the case.

Each case depends on the seed and its number alone: `--only 4711` runs one of them again.
"""

import argparse
import asyncio
import contextlib
import copy
import io
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.report import measure, write_report
from sandboxrl.data.builtin import build
from sandboxrl.data.errors import InputError, described
from sandboxrl.launch.__main__ import main as sandboxrl

ROOT = Path(__file__).resolve().parents[1]
HANG_S = 30
SAMPLES = 3
"""Trajectories of each file of the sample run."""
DEEP = 3000
VALUES: tuple[Any, ...] = (
    *(None, True, [], {}, "", 0, -1, 0.5, 1e308, float("nan"), float("-inf"), 2**31, 2**63, 10**400, "x" * 5000),
    *("../../escape", "/etc/passwd", "\ud800", "\x00", "a\nb", "<script>", "${seed}", [[]], {"": None}, ["a", 1]),
)
JUNK = (
    *(
        "",
        "null",
        "[]",
        "{}",
        "-1",
        "1e999",
        ".nan",
        "'",
        '"',
        ":",
        "- ",
        "\t",
        "\n",
        "&a",
        "*a",
        "\x00",
        "ü",
        "\\ud800",
    ),
    *("!!python/object:os.system", "${oc.env:HOME}", "${seed}", "${a", "9" * 40, "[" * DEEP, "{{", "extends: x.yaml\n"),
)
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass(frozen=True)
class Kind:
    """`make` puts a sound sample into a folder, of which files matching `damaged` are changed; `use` reads it."""

    make: Callable[[Path], None]
    damaged: tuple[str, ...]
    use: Callable[[Path], None]


class Hangs(BaseException):
    """Not an Exception: nothing on the way may take it for one of its own."""


# --- damage --------------------------------------------------------------------------------------------------------


def change_bytes(rng: random.Random, data: bytes) -> bytes:
    place = rng.randrange(len(data) + 1)
    match rng.randrange(6):
        case 0 if data:
            flipped = bytearray(data)
            for _ in range(rng.randint(1, 4)):
                flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            return bytes(flipped)
        case 1:
            return data[:place]
        case 2:
            return data[:place] + data[place + rng.randrange(200) :]
        case 3:
            return data[:place] + data[max(0, place - rng.randrange(2000)) :]
        case 4:
            return data[:place] + rng.randbytes(rng.randrange(1, 40)) + data[place:]
    return data[:place] + rng.choice(JUNK).encode() + data[place + rng.randrange(8) :]


def change_value(rng: random.Random, value: Any) -> Any:
    """JSON data with one of its values replaced, left out, renamed or doubled."""
    value, places = copy.deepcopy(value), list[tuple[Any, Any]]()

    def walk(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            places.append((node, key))
            walk(node[key])

    walk(value)
    if not places:
        return rng.choice(VALUES)
    node, key = rng.choice(places)
    match rng.randrange(5):
        case 0 if isinstance(node, dict):
            node[rng.choice(("", "x", str(key).upper()))] = node.pop(key)
        case 1:
            del node[key]
        case 2 if isinstance(node, list):
            node.insert(key, copy.deepcopy(rng.choice(node)))
        case _:
            node[key] = rng.choice(VALUES)
    return value


def change(rng: random.Random, file: Path) -> None:
    data = file.read_bytes()
    for _ in range(rng.randint(1, 2)):
        if rng.random() < 0.6 and file.suffix in (".json", ".jsonl"):
            with contextlib.suppress(ValueError, RecursionError):
                data = _change_json(rng, data, whole=file.suffix == ".json")
                continue
        if rng.random() < 0.6 and file.suffix == ".safetensors":
            data = _change_header(rng, data)
            continue
        data = change_bytes(rng, data)
    file.write_bytes(data)


def _change_json(rng: random.Random, data: bytes, whole: bool) -> bytes:
    lines = [data] if whole else data.splitlines()
    place = rng.randrange(len(lines))
    lines[place] = json.dumps(change_value(rng, json.loads(lines[place]))).encode()
    return b"\n".join(lines) + b"\n"


def _change_header(rng: random.Random, data: bytes) -> bytes:
    if len(data) < 8:
        return data
    (size,) = struct.unpack("<Q", data[:8])
    try:
        header = json.dumps(change_value(rng, json.loads(data[8 : 8 + size]))).encode()
    except (ValueError, RecursionError, OverflowError):
        return data
    told = rng.choice((len(header), len(header), len(header), 0, 2**63, len(data) * 2))
    return struct.pack("<Q", told) + header + data[8 + size :]


# --- what is damaged, and what reads it ------------------------------------------------------------------------------


def make_recipe(folder: Path) -> None:
    shutil.copytree(ROOT / "recipes", folder, dirs_exist_ok=True)


def use_recipe(folder: Path) -> None:
    from sandboxrl.rl.config import load_recipe
    from sandboxrl.rl.own_code import with_code

    for file in sorted(folder.glob("*.yaml")):
        quiet(lambda file=file: with_code(load_recipe(file)))


def make_tasks(folder: Path) -> None:
    tasks = build("tiny", "train", 4, seed=0) + build("easy", "train", 2, seed=0)
    (folder / "tasks.jsonl").write_text("".join(task.to_json() + "\n" for task in tasks))


def use_tasks(folder: Path) -> None:
    verb("data", "check", str(folder / "tasks.jsonl"))


def make_run(folder: Path) -> None:
    """The run that ships, shortened, with the logs that a run has today."""
    from sandboxrl.launch.view import EXAMPLE

    with zipfile.ZipFile(EXAMPLE) as example:
        example.extractall(folder)
    run = folder / "example"
    for file in run.glob("trajectories/*.jsonl"):
        file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:SAMPLES]))
    rows = [json.loads(line) for line in (run / "trajectories/step_000001.jsonl").read_text().splitlines()]
    task = build("tiny", "train", 1, seed=0)[0]
    events = [
        {"t": 1.0, "event": "started", "step": 0},
        {"t": 2.0, "event": "dispatched", "group": 0, "task": task.id, "version": 0},
        {"t": 3.0, "event": "completed", "group": 0, "versions": [0, 0], "trajectories": 3},
        {"t": 4.0, "event": "trained", "step": 1, "groups": sorted({row["group"] for row in rows})},
    ]
    (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    asyncio.run(_journal(run, task, rows))
    status = {
        **{"pid": os.getpid(), "monotonic": time.monotonic(), "step": 1, "steps": 20, "published": 1.0, "version": 1},
        "groups_in_flight": [{"group": 1, "task": "a", "for_s": 1.0}],
        "waits": [{"who": "learner", "what": "update 2", "for_s": 1.0, "limit_s": 7200.0}],
        "workers": [{"worker": 0, "silent_s": 0.1, "trajectories": 1, "engine_requests": 1, "slowest": []}],
    }
    (run / "status.json").write_text(json.dumps(status))


async def _journal(run: Path, task: Any, rows: list[dict[str, Any]]) -> None:
    from sandboxrl.envs.trajectory import Group, Trajectory
    from sandboxrl.rl.reports.events import Journal

    journal = Journal(_small(run), 0)
    await journal.completed(Group(0, task, tuple(Trajectory.from_dict(row) for row in rows)))
    journal.close()


def _small(run: Path) -> Any:
    from sandboxrl.rl.config import load_recipe

    return load_recipe(ROOT / "recipes/tiny.yaml", [f"name={run.name}", f"out={run.parent}"])


def use_trajectories(folder: Path) -> None:
    from sandboxrl.rl.replay import saved_groups

    run = folder / "example"
    verb("analyze", str(run), "--out", str(folder / "tables"))
    verb("view", str(run), "--out", str(folder / "page.html"))
    quiet(lambda: list(saved_groups(run, 0, 1)))


def use_logs(folder: Path) -> None:
    """As a run that goes on reads them."""
    from sandboxrl.rl.continuing import changes, is_finished
    from sandboxrl.rl.replay import saved_groups
    from sandboxrl.rl.reports.events import Journal, read_events

    run, task = folder / "example", build("tiny", "train", 1, seed=0)[0]
    verb("status", str(run))
    verb("check", "run", str(run))
    verb("view", str(run), "--out", str(folder / "page.html"))
    recipe = _small(run)
    quiet(lambda: read_events(run))
    quiet(lambda: list(saved_groups(run, 0, 1)))
    quiet(lambda: changes(recipe))
    quiet(lambda: is_finished(recipe))

    def recover() -> None:
        journal = Journal(recipe, 0)
        journal.recover(0, task)
        journal.close()

    quiet(recover)


def make_checkpoint(folder: Path) -> None:
    """A run with two small checkpoints."""
    import torch
    import torch.distributed.checkpoint as dcp

    from sandboxrl.rl.learner.checkpoint import LEARNER, Checkpoints

    class Saver:
        async def save(self, path: str) -> Any:
            state = {"model": {"a": torch.arange(6.0).reshape(3, 2), "b": torch.ones(4)}, "num_updates": 3}
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                dcp.save(state, checkpoint_id=Path(path) / LEARNER)
            return asyncio.sleep(0)

    async def save() -> None:
        kept = Checkpoints(folder / "run")
        for step in (1, 2):
            await kept.save(step, {"num_started": 2, "pending": [], "tasks": {}}, Saver())
            await kept.settled()
        kept.protect("best", 1)

    (folder / "run").mkdir()
    (folder / "run/recipe.yaml").write_bytes((ROOT / "recipes/tiny.yaml").read_bytes())
    asyncio.run(save())


def use_checkpoint(folder: Path) -> None:
    """Damage is found and the one before it used; what lies under a manifest that fits is read, or refused."""
    import torch

    from sandboxrl.rl.learner.checkpoint import LEARNER, MANIFEST, Checkpoints, sealed
    from sandboxrl.rl.learner.sharded import read_sharded

    kept = Checkpoints(folder / "run")
    state = {"model": {"a": torch.zeros(3, 2), "b": torch.zeros(4)}, "num_updates": 0}
    quiet(lambda: read_sharded(state, kept.path(2) / LEARNER))
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError):
        path = kept.path(2) / MANIFEST
        if random.Random(folder.name).random() < 0.3:
            path.write_bytes(sealed(json.loads(path.read_bytes())["content"]))
    verb("check", "run", str(folder / "run"))
    quiet(lambda: kept.latest())
    quiet(kept.protected)


def make_model(folder: Path) -> None:
    for file in (ROOT / "rl/start/tiny").iterdir():
        shutil.copy(file, folder)


def use_model(folder: Path) -> None:
    from sandboxrl.rl.learner.model import load_policy
    from sandboxrl.rl.run import load_chat_format, resolve_model

    def tokens() -> None:
        chat = load_chat_format(resolve_model(str(folder)), _small(folder / "run"))
        chat.prompt_ids([{"role": "user", "content": "Which?"}])

    quiet(tokens)
    quiet(lambda: load_policy(folder, chunk=8))


KINDS = {
    "recipe": Kind(make_recipe, ("*.yaml",), use_recipe),
    "tasks": Kind(make_tasks, ("tasks.jsonl",), use_tasks),
    "trajectories": Kind(make_run, ("example/trajectories/*.jsonl",), use_trajectories),
    "logs": Kind(
        make_run,
        ("example/*.jsonl", "example/*.json", "example/recipe.yaml", "example/groups/*.jsonl"),
        use_logs,
    ),
    "checkpoint": Kind(make_checkpoint, ("run/checkpoints/step_000002/**/*", "run/checkpoints/*.json"), use_checkpoint),
    "model": Kind(make_model, ("*",), use_model),
}


# --- one case --------------------------------------------------------------------------------------------------------


class Finding(Exception):
    """What is neither a clear error nor right work."""


def verb(*words: str) -> None:
    """A command, as a person types it. Raises Finding."""
    told, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(errors):
        code = sandboxrl(words)
    lines = [line for line in errors.getvalue().splitlines() if not line.startswith("left out  ")]
    if "internal error" in errors.getvalue() or code not in (0, 1, 2) or (code == 2 and len(lines) != 1):
        raise Finding(f"{' '.join(words[:2])}: exit code {code}, {errors.getvalue()[:500]!r}")


def quiet(work: Callable[[], Any]) -> None:
    """What a verb would tell in one line is told so. Raises Finding."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            work()
    except (InputError, OSError) as error:
        if isinstance(error, InputError) and "\n" in str(error).strip():
            raise Finding(f"an error of several lines: {str(error)[:300]!r}") from None


class Guard:
    """Sees what is opened for writing, made, removed, started or connected outside the folder of the case."""

    def __init__(self) -> None:
        self.folder, self.seen = "", list[str]()
        sys.addaudithook(self._look)

    def _look(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.folder:
            return
        if event in ("os.system", "subprocess.Popen", "socket.connect", "os.exec", "os.posix_spawn"):
            if event != "subprocess.Popen" or "sandboxrl.envs.grading.worker" not in str(arguments[1]):
                self.seen.append(f"{event} {str(arguments)[:200]}")
        elif event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES:
            self._place(event, arguments[0])
        elif event in ("os.mkdir", "os.remove", "os.rmdir", "os.rename", "os.link", "os.symlink", "os.truncate"):
            for path in arguments[:2]:
                self._place(event, path)

    def _place(self, event: str, path: Any) -> None:
        if isinstance(path, str | bytes | os.PathLike):
            place = os.path.realpath(os.fsdecode(path))
            if not place.startswith((self.folder, "/dev/null")) and "__pycache__" not in place:
                self.seen.append(f"{event} {place}")


def one_case(kind: str, folder: Path, rng: random.Random, guard: Guard) -> str:
    """What is wrong, or nothing. `folder` holds a sound sample, which is damaged here."""

    def late(number: int, frame: Any) -> None:
        raise Hangs(f"nothing came within {HANG_S} s")

    files = sorted(one for form in KINDS[kind].damaged for one in folder.glob(form) if one.is_file())
    change(rng, rng.choice(files))
    signal.signal(signal.SIGALRM, late)
    signal.alarm(HANG_S)
    guard.seen.clear()
    guard.folder = str(folder.resolve())
    try:
        KINDS[kind].use(folder)
    except Hangs as error:
        return str(error)
    except (InputError, OSError) as error:
        return "an error of several lines" if isinstance(error, InputError) and "\n" in str(error).strip() else ""
    except Finding as error:
        return str(error)
    except BaseException as error:  # a panic of a library's own language is no Exception
        return f"{type(error).__name__}: {described(error)[:300]}"
    finally:
        guard.folder = ""
        signal.alarm(0)
    return "; ".join(dict.fromkeys(guard.seen))


def cases(numbers: range, kinds: list[str], seed: int) -> Iterator[tuple[int, str, str]]:
    """(number, kind, what is wrong) of each."""
    os.environ["TQDM_DISABLE"] = os.environ["HF_HUB_OFFLINE"] = "1"
    guard = Guard()
    with tempfile.TemporaryDirectory(prefix="sandboxrl-fuzz-") as temporary:
        sound = {kind: Path(temporary, f"sound-{kind}") for kind in kinds}
        for kind, folder in sound.items():
            folder.mkdir()
            KINDS[kind].make(folder)
            KINDS[kind].use(folder)  # what is sound must pass, or nothing below means anything
        for number in numbers:
            rng, kind = random.Random(f"{seed}/{number}"), kinds[number % len(kinds)]
            folder = Path(temporary, f"case-{number}")
            shutil.copytree(sound[kind], folder)
            yield number, kind, one_case(kind, folder, rng, guard)
            shutil.rmtree(folder)


def main() -> int:
    """Exit code 1 where anything was found."""
    parser = argparse.ArgumentParser(prog="python -m bench.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--num", type=int, default=10_000, help="of all kinds together")
    parser.add_argument("--first", type=int, default=0, help="number of the first")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(KINDS), help="which, joined by commas")
    parser.add_argument("--only", type=int, help="this one, in this process")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    kinds = args.kinds.split(",")
    if args.only is not None:
        for found in cases(range(args.only, args.only + 1), kinds, args.seed):
            print(*found)
        return 0
    started_s, end, number = time.monotonic(), args.first + args.num, args.first
    counts, findings = Counter[str](), list[dict[str, Any]]()
    while number < end:  # a case that takes the process with it is a finding, and the next one begins another
        context = subprocess.Popen([sys.executable, "-c", CHILD, *map(str, (number, end, args.kinds, args.seed))],
                                   cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)  # fmt: skip
        assert context.stdout is not None
        for line in context.stdout:
            number, kind, wrong = json.loads(line)
            number, counts[kind] = number + 1, counts[kind] + 1
            if wrong:
                findings.append({"number": number - 1, "kind": kind, "wrong": wrong})
                print(findings[-1], flush=True)
        if context.wait() != 0:
            findings.append(
                {"number": number, "kind": kinds[number % len(kinds)], "wrong": f"died: {context.returncode}"}
            )
            print(findings[-1], flush=True)
            number += 1
    print(f"{dict(counts)}, {len(findings)} findings, {time.monotonic() - started_s:.0f} s")
    if args.out:
        measures = {f"fuzz/{kind}": measure(count) for kind, count in counts.items()}
        measures["fuzz/findings"] = measure(len(findings), at_most=0, goal="0")
        write_report(args.out, measures)
    return int(bool(findings))


CHILD = """
import json, os, sys
from bench.fuzz import cases
first, end, kinds, seed = sys.argv[1:]
told = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
for found in cases(range(int(first), int(end)), kinds.split(","), int(seed)):
    print(json.dumps(found), file=told, flush=True)
"""

if __name__ == "__main__":
    sys.exit(main())

"""A run under each tracker with what can go wrong there: it ends as it would have, in about the time it would have."""

import asyncio
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from sandboxrl.data.errors import InputError
from sandboxrl.rl.learner.checkpoint import Checkpoints
from sandboxrl.rl.reports.progress import opened
from sandboxrl.rl.reports.run_folder import Log, read_jsonl
from sandboxrl.rl.reports.trackers import Completion, Following, follow
from sandboxrl.rl.trainer import Work, train
from tests.rl.reports.trackers.test_tensorboard import records
from tests.rl.test_trainer import CountingLearners, CountingWorkers, recipe_in, stream, task

START_S, PATIENCE_S = 20.0, 20.0
SHORT_S = 3.0
KEY = "0123456789abcdef0123456789abcdef01234567"


def settings(kind: str, folder: Path, mode: str = "offline") -> dict[str, Any]:
    if kind == "tensorboard":
        return {"folder": str(folder / "tensorboard")}
    return {"mode": mode, "project": "p", "name": "n", "run_dir": str(folder), "config": {}}


def train_under(
    folder: Path,
    kind: str = "",
    mode: str = "offline",
    at_step_3: Callable[[Following], None] | None = None,
    start_s: float = START_S,
    patience_s: float = PATIENCE_S,
) -> tuple[list[dict[str, Any]], dict[str, Any], str]:
    """A run of six steps by counting workers; returns its measured rows, its summary and its log."""
    recipe = recipe_in(folder)
    out = StringIO()
    log = Log(recipe, 0, token_text=str, progress=opened("lines", out))
    if kind:
        log.trackers = follow({kind: settings(kind, recipe.run_dir, mode)}, recipe.run_dir, start_s, patience_s)

    class Learners(CountingLearners):
        async def update(self, batch: Any) -> dict[str, float]:
            if self.updates == 2 and at_step_3:
                at_step_3(log.trackers[0])
            return await super().update(batch)

    checkpoints = Checkpoints(recipe.run_dir, recipe.checkpoint.keep)
    asyncio.run(train(recipe, Work(stream(), {"set": [task(9000)]}), CountingWorkers(), Learners(), checkpoints, log))
    started = time.monotonic()
    summary = log.finish("finished")
    assert time.monotonic() - started < patience_s + 2
    rows = [{k: v for k, v in row.items() if "time" not in k and "wall" not in k} for row in log.rows]
    return rows, {k: v for k, v in summary.items() if k != "wall_s"}, out.getvalue()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    rows, summary, _ = train_under(tmp_path_factory.mktemp("undisturbed"))
    return rows, summary


@contextmanager
def full(folder: Path, size: str) -> Iterator[None]:
    """A file system of so many bytes at `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("may not mount a small file system here (needs root)")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("kind", ["tensorboard", "wandb"])
def test_a_tracker_changes_nothing_of_a_run(tmp_path: Path, kind: str, undisturbed: Any) -> None:
    rows, summary, said = train_under(tmp_path, kind)
    assert (rows, summary) == undisturbed
    assert kind not in said, said


@pytest.mark.parametrize("kind", ["tensorboard", "wandb"])
def test_a_run_outlives_its_tracker(tmp_path: Path, kind: str, undisturbed: Any) -> None:
    rows, summary, said = train_under(tmp_path, kind, at_step_3=lambda one: os.kill(one.pid, signal.SIGKILL))
    assert (rows, summary) == undisturbed
    assert f"{kind} ended with exit code -9" in said


def test_a_run_outlives_the_server_process_of_wandb(tmp_path: Path, undisturbed: Any) -> None:
    def kill_core(one: Following) -> None:
        listed = subprocess.run(["pgrep", "-f", f"wandb-core.*--pid {one.pid}$"], capture_output=True, text=True)
        for pid in listed.stdout.split():
            os.kill(int(pid), signal.SIGKILL)
        assert listed.stdout, "there was nothing to kill"

    rows, summary, said = train_under(tmp_path, "wandb", at_step_3=kill_core)
    assert (rows, summary) == undisturbed
    assert "wandb" in said


@pytest.mark.parametrize("kind", ["tensorboard", "wandb"])
def test_a_run_outlives_a_tracker_that_hangs(tmp_path: Path, kind: str, undisturbed: Any) -> None:
    rows, summary, said = train_under(
        tmp_path, kind, at_step_3=lambda one: os.kill(one.pid, signal.SIGSTOP), patience_s=SHORT_S
    )
    assert (rows, summary) == undisturbed
    assert f"{kind} did not end within" in said


@pytest.mark.parametrize(("kind", "size"), [("tensorboard", "4k"), ("wandb", "64k")])
def test_a_run_outlives_a_full_folder(tmp_path: Path, kind: str, size: str, undisturbed: Any) -> None:
    with full(tmp_path / "run" / kind, size):
        rows, summary, said = train_under(tmp_path, kind)
        if kind == "tensorboard":
            (file,) = (tmp_path / "run" / kind).iterdir()
            assert records(file)
            assert "No space left" in said and "was not told" in said
    assert (rows, summary) == undisturbed


@pytest.mark.parametrize("answers", [False, True], ids=["closed", "silent"])
def test_a_run_outlives_the_server_of_wandb(
    tmp_path: Path, answers: bool, undisturbed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if answers:
            server.listen()  # takes connections and never says a word
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        started = time.monotonic()
        rows, summary, said = train_under(tmp_path, "wandb", "online", start_s=SHORT_S, patience_s=SHORT_S)
    assert time.monotonic() - started < 2 * SHORT_S + 5
    assert (rows, summary) == undisturbed
    assert "wandb has not started" in said or "recorded offline" in said


def test_a_missing_login_is_refused_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(InputError, match="wandb.mode=online: No API key"):
        follow({"wandb": settings("wandb", tmp_path, "online")}, tmp_path, START_S)


def test_telling_a_tracker_that_hangs_takes_no_time_and_no_memory(tmp_path: Path) -> None:
    (one,) = follow({"tensorboard": settings("tensorboard", tmp_path)}, tmp_path, START_S, patience_s=0.5)
    os.kill(one.pid, signal.SIGSTOP)
    row = Completion(
        step=1, task="t", source="s", reward=1.0, stop="finished", turns=1, question="?", gold="1", answer="1",
        text="x" * 4000,
    )  # fmt: skip
    worst = 0.0
    for step in range(2000):
        started = time.perf_counter()
        one.log({"step": step, "loss": 0.5})
        worst = max(worst, time.perf_counter() - started)
        one.completions("training", step, [row])
    one.finish({"status": "finished"})
    assert worst < 0.1, f"one call took {worst:.3f} s"
    assert any("too slow" in line for line in one.news) and any("did not end" in line for line in one.news)


def test_a_continued_wandb_run_keeps_every_step(tmp_path: Path) -> None:
    for steps in ((1, 2, 3), (2, 3, 4)):  # killed after step 3, its last checkpoint at 1
        (one,) = follow({"wandb": settings("wandb", tmp_path)}, tmp_path, START_S, PATIENCE_S)
        for step in steps:
            one.log({"step": step, "loss": 1 / step})
        one.finish({"status": "finished"})
        assert not one.news
    folders = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert len(folders) == 2 and len({folder.name.rpartition("-")[2] for folder in folders}) == 1, "one run, twice"
    assert [history(folder) for folder in folders] == [[1, 2, 3], [2, 3, 4]]


def history(folder: Path) -> list[int]:
    """The run's own steps in an offline folder, as wandb's own reader finds them; also that they are the x-axis."""
    from wandb.proto import wandb_internal_pb2

    (file,) = folder.glob("*.wandb")
    steps, axes = [], set()
    for data in leveldb_records(file.read_bytes()[7:]):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            values = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
            steps.append(json.loads(values["step"]))
        if record.WhichOneof("record_type") == "metric":
            axes.add((record.metric.glob_name or record.metric.name, record.metric.step_metric))
    assert ("*", "step") in axes
    return steps


def leveldb_records(content: bytes) -> Iterator[bytes]:
    """Records of a LevelDB log: blocks of 32 KiB (the first begins with 7 bytes of wandb's own), in them pieces of a
    checksum, a length and a type: whole, first, middle or last."""
    at, whole = 7, b""
    while at + 7 <= len(content) + 7:
        left = 32_768 - at % 32_768
        if left < 7:
            at += left
            continue
        size, kind = struct.unpack_from("<HB", content, at - 7 + 4)
        whole += content[at : at + size]
        at += 7 + size
        if kind in (1, 4):
            yield whole
            whole = b""


def test_a_killed_run_leaves_no_tracker(tmp_path: Path) -> None:
    code = f"""if True:
        import os, signal, sys
        from pathlib import Path
        from sandboxrl.rl.reports.trackers import follow
        (one,) = follow({{"tensorboard": {settings("tensorboard", tmp_path)!r}}}, Path({str(tmp_path)!r}), {START_S})
        one.log({{"step": 1, "loss": 0.5}})
        print(one.pid, flush=True)
        sys.stdin.read(1)
    """
    run = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert run.stdout
    child = int(run.stdout.readline())
    run.kill()
    run.wait()
    for _ in range(100):
        try:
            state = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            break
        if state == "Z":  # ended, and waits for whoever has adopted it
            break
        time.sleep(0.1)
    else:
        pytest.fail("the tracker's child goes on without its run")
    assert read_jsonl(tmp_path / "metrics.jsonl") == []

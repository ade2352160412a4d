"""Event files: read back by TensorBoard's own reader, whole after a full disk."""

import os
import resource
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sandboxrl.rl.reports.trackers.tensorboard import masked, open_tensorboard
from sandboxrl.rl.reports.trackers.tracker import Completion

ROW = Completion(
    step=3, task="t", source="s", reward=0.5, stop="finished", turns=2,
    question="a | b?", gold="b", answer="b\nc", text="I looked.",
)  # fmt: skip


def records(file: Path) -> list[bytes]:
    """The records of an event file. Raises AssertionError for one that is torn or whose checksum is wrong."""
    content, at, found = file.read_bytes(), 0, []
    while at < len(content):
        (size,) = struct.unpack_from("<Q", content, at)
        assert struct.unpack_from("<I", content, at + 8) == (masked(content[at : at + 8]),)
        event = content[at + 12 : at + 12 + size]
        assert len(event) == size
        assert struct.unpack_from("<I", content, at + 12 + size) == (masked(event),)
        found.append(event)
        at += size + 16
    return found


def test_the_checksum_is_that_of_the_standard() -> None:
    crc = (masked(b"123456789") - 0xA282EAD8) & 0xFFFFFFFF
    assert (crc >> 17 | crc << 15 & 0xFFFFFFFF) == 0xE3069283  # RFC 3720, appendix B.4


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="no tensorboard")
    for first in (1, 3):  # the second one is a run that goes on from step 2
        tracker, _ = open_tensorboard(str(tmp_path / str(first)))
        for step in range(first, first + 3):
            tracker.log({"step": step, "reward/mean": step / 7, "loss": float("nan")})
        tracker.completions("heldout", first, [ROW])
        tracker.finish({"status": "finished"})
        events = reader.EventAccumulator(str(tmp_path / str(first))).Reload()
        told = [(one.step, one.value) for one in events.Scalars("reward/mean")]
        assert told == [(step, pytest.approx(step / 7, rel=1e-6)) for step in range(first, first + 3)]
        assert events.Tags()["scalars"] == ["reward/mean"], "a value that is no number is left out"
        tag = next(tag for tag in events.Tags()["tensors"] if tag.startswith("completions/heldout"))
        (shown,) = events.Tensors(tag)[0].tensor_proto.string_val
        assert shown.decode().splitlines()[2] == "|t|0.5|finished|a \\| b?|b|b<br>c|I looked.|"


def limited(*arguments: Any) -> subprocess.CompletedProcess[str]:
    """Run Python in a process whose files may not grow beyond 2,000 bytes: any user's full disk."""
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))  # noqa: E731
    command = [sys.executable, "-c", *map(str, arguments)]
    return subprocess.run(command, preexec_fn=limit, capture_output=True, text=True, env={**os.environ}, timeout=60)


def test_a_full_disk_loses_records_and_tears_none(tmp_path: Path) -> None:
    code = """if True:
        import sys
        from sandboxrl.rl.reports.trackers.tensorboard import open_tensorboard
        tracker, _ = open_tensorboard(sys.argv[1])
        lost = 0
        for step in range(100):
            try:
                tracker.log({"step": step, "loss": 0.5, "name/" + "x" * (step % 50): 1.0})
            except OSError:
                lost += 1
        print(lost)
    """
    done = limited(code, tmp_path)
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.iterdir()
    whole = records(file)
    assert 0 < int(done.stdout) and len(whole) == 1 + 100 - int(done.stdout) and file.stat().st_size <= 2000

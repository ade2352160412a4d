"""A disk that is full costs no checkpoint: one clear error, and the same run goes on when there is room."""

import asyncio
import subprocess
from collections.abc import Awaitable, Iterator
from pathlib import Path

import pytest

from sandboxrl.rl.learner.checkpoint import Checkpoints
from sandboxrl.rl.reports.run_folder import Log
from sandboxrl.rl.trainer import Work, train
from tests.rl.test_trainer import CountingLearners, CountingWorkers, recipe_in, run, stream, task

ROOM = 1 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"needs the right to mount: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


class BigLearners(CountingLearners):
    """Each checkpoint is a third of the disk."""

    async def save(self, path: str) -> Awaitable[None]:
        (Path(path) / "weights").write_bytes(b"w" * (ROOM // 3))
        return await super().save(path)


def test_a_disk_that_fills_up_at_any_writer(small_disk: Path) -> None:
    """A file of somebody else's takes the room that is left, more of it each time, so that another writer runs out."""
    recipe = recipe_in(small_disk, "steps=8", "checkpoint.every=1", "checkpoint.keep=1", "evaluation.every=4")
    told = set()
    for left_kib in (640, 500, 360, 200, 120, 60, 24, 8, 4, 0):
        taken = small_disk / "somebody_elses"
        used = sum(path.stat().st_blocks * 512 for path in small_disk.rglob("*") if path.is_file())
        size = max(0, ROOM - used - left_kib * 1024)
        try:
            taken.write_bytes(b"x" * size)
        except OSError:
            pass
        before = Checkpoints(recipe.run_dir).newest_whole()
        try:
            run(recipe, CountingWorkers(), BigLearners())
        except OSError as error:
            told.add(str(error))
        taken.unlink()
        assert Checkpoints(recipe.run_dir).newest_whole() >= before
    assert told and all("No space left on device" in line and "\n" not in line for line in told)
    checkpoints = Checkpoints(recipe.run_dir, 1)
    log = Log(recipe, checkpoints.latest()[0], token_text=str)
    work = Work(stream(), {"set": [task(9000)]}, scores=log.eval_scores())
    asyncio.run(train(recipe, work, CountingWorkers(), BigLearners(), checkpoints, log))
    assert [row["step"] for row in log.rows if "reward/mean" in row] == list(range(1, 9))
    assert checkpoints.newest_whole() == 8

"""Checkpoints of a run: there as a whole or not at all.

    runs/NAME/checkpoints/step_000010/
        learner/        weights, optimizer, number of updates, sharded (sandboxrl.rl.learner.learner)
        trainer.json    {"step": 10, "state": ...}: where the task stream is and which groups are in flight

A checkpoint is written under another name, flushed to disk, and renamed when it is complete. So a run that is killed at
any moment finds its last complete one, and what it left half written is removed by the next save.
"""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any, Protocol

from sandboxrl.data.errors import InputError

LEARNER = "learner"
"""The learner's part of a checkpoint folder."""
STATE = "trainer.json"
HALF = ".partial"


class Saver(Protocol):
    async def save(self, path: str) -> None:
        """Write the learner's part into the folder `path`, all ranks of it."""
        ...


class Checkpoints:
    """The checkpoints of one run folder. `keep` newest ones stay; 0: all."""

    def __init__(self, run_dir: Path, keep: int) -> None:
        self._folder, self._keep = run_dir.resolve() / "checkpoints", keep  # learners may work in another folder

    def path(self, step: int) -> Path:
        return self._folder / f"step_{step:06d}"

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        names = [entry.name for entry in self._folder.iterdir()] if self._folder.is_dir() else []
        return sorted(int(found[1]) for name in names if (found := re.fullmatch(r"step_(\d+)", name)))

    def latest(self) -> tuple[int, dict[str, Any]]:
        """Step and trainer state of the newest one; (0, {}) where there is none. Raises InputError if it is damaged."""
        steps = self.steps()
        if not steps:
            return 0, {}
        file = self.path(steps[-1]) / STATE
        try:
            content = json.loads(file.read_text())
            return int(content["step"]), dict(content["state"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{file} is damaged ({error}); remove {file.parent} to go on from the one before"
            ) from None

    async def save(self, step: int, state: dict[str, Any], learner: Saver) -> Path:
        """Write the checkpoint of `step` and remove those that are too old. `state` holds JSON values only."""
        self._remove_half_written()
        final = self.path(step)
        half = final.with_name(final.name + HALF)
        half.mkdir(parents=True)
        await learner.save(str(half))
        (half / STATE).write_text(json.dumps({"step": step, "state": state}))
        flush(half)
        if final.exists():  # the same step again, after a run went back to an older checkpoint
            self._retire(final)
        os.rename(half, final)
        flush(self._folder, deep=False)
        for old in self.steps()[: -self._keep] if self._keep else []:
            self._retire(self.path(old))
        self._remove_half_written()
        return final

    def _retire(self, path: Path) -> None:
        """Take a complete checkpoint out of the list in one stroke; its files go with the half written ones."""
        os.rename(path, path.with_name(path.name + ".old" + HALF))

    def _remove_half_written(self) -> None:
        for leftover in self._folder.glob(f"step_*{HALF}"):
            shutil.rmtree(leftover)


def flush(folder: Path, deep: bool = True) -> None:
    """Have the operating system write a folder, and with `deep` all it holds, to the disk."""
    for path in [*(folder.rglob("*") if deep else ()), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

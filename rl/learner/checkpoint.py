"""Checkpoints of a run: there as a whole or not at all, and able to prove it.

    runs/NAME/run_id                what its checkpoints are signed with; another run's are foreign
    runs/NAME/checkpoints/step_000010/
        learner/        weights, optimizer, number of updates, sharded (sandboxrl.rl.learner.learner)
        trainer.json    {"step": 10, "state": ...}: where the task stream is and which groups are in flight
        manifest.json   run, step, and the size and SHA-256 of every file; written last
    runs/NAME/checkpoints/protected.json    {"best": 10}: steps that stay, by why they do

A checkpoint is written under another name, flushed to disk, and renamed when it is complete. So a run that is killed at
any moment finds its last complete one, and what it left half written is removed by the next save. One that has changed
since (torn, cut short, a bit flipped, another run's) is found before anything is started: it is set aside as
`step_000010.damaged`, and the one before it is used.
"""

import asyncio
import hashlib
import json
import os
import re
import shutil
import stat
import uuid
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from sandboxrl.data.errors import InputError
from sandboxrl.data.files import write_whole

LEARNER = "learner"
"""The learner's part of a checkpoint folder."""
STATE = "trainer.json"
MANIFEST = "manifest.json"
RUN_ID = "run_id"
PROTECTED = "protected.json"
HALF = ".partial"
DAMAGED = ".damaged"
MAX_MANIFEST_BYTES = 64 << 20
HASHING_THREADS = 4
READ_BYTES = 4 << 20
CLOSE_S = 60.0


class Damaged(Exception):
    """A checkpoint is not what was saved; the message says in one line what is wrong with it."""


class Saver(Protocol):
    async def save(self, path: str) -> Awaitable[None]:
        """Have the learner's part written into the folder `path`, all ranks of it. Returns as soon as the learner may
        change what is being written; what it returns is awaited until all is there."""
        ...


class Checkpoints:
    """The checkpoints of one run folder. The `keep` newest stay (0: all), every one whose step is a multiple of
    `keep_every` (0: none), and those that are protected."""

    def __init__(self, run_dir: Path, keep: int = 0, keep_every: int = 0) -> None:
        self._run_dir = run_dir.resolve()  # learners may work in another folder
        self._folder, self._keep, self._keep_every = self._run_dir / "checkpoints", keep, keep_every
        self.problems: list[str] = []
        """What `latest` found damaged, one line each."""
        self._going_on: asyncio.Future[None] | None = None
        self._found: tuple[int, dict[str, Any]] | None = None
        """What `latest` answers until the next save: to read every byte of a large one takes a while."""

    def path(self, step: int) -> Path:
        return self._folder / f"step_{step:06d}"

    def folder(self, step: int) -> str:
        """What a learner loads to be at `step`; empty for step 0, which is the model that the run starts from."""
        return str(self.path(step)) if step else ""

    def steps(self) -> list[int]:
        """Steps of the checkpoints that were written to their end, ascending; `problem` tells whether one still is
        whole."""
        names = [entry.name for entry in self._folder.iterdir()] if self._folder.is_dir() else []
        return sorted(int(found[1]) for name in names if (found := re.fullmatch(r"step_(\d+)", name)))

    def problem(self, step: int) -> str:
        """What is wrong with the checkpoint of `step`, in one line; empty: every byte of it is as it was saved."""
        try:
            verify(self.path(step), self.run_id(), step)
        except Damaged as error:
            return str(error)
        return ""

    def newest_whole(self) -> int:
        """Step of the newest checkpoint that is whole, 0 where there is none at all. Changes nothing on disk. Raises
        InputError where there are some and all are damaged."""
        problems = []
        for step in reversed(self.steps()):
            if not (problem := self.problem(step)):
                return step
            problems.append(problem)
        if problems:
            raise InputError(
                f"no checkpoint of {self._run_dir} is whole ({problems[0]}); put one back, or remove "
                f"{self._folder} to start over"
            )
        return 0

    def latest(self) -> tuple[int, dict[str, Any]]:
        """Step and trainer state of the newest whole one, (0, {}) where there is none. Damaged ones that are newer are
        set aside and told in `problems`. Raises InputError where all are damaged."""
        if self._found is not None:
            return self._found
        chosen = self.newest_whole()
        for step in self.steps():
            if step > chosen:
                self.problems.append(self.problem(step))
                aside = self.path(step).with_name(self.path(step).name + DAMAGED)
                shutil.rmtree(aside, ignore_errors=True)
                os.rename(self.path(step), aside)
        self._found = (chosen, self.state(chosen)) if chosen else (0, {})
        return self._found

    def state(self, step: int) -> dict[str, Any]:
        """The trainer's state in the checkpoint of `step`, which must be whole."""
        return dict(json.loads((self.path(step) / STATE).read_text())["state"])

    async def save(
        self, step: int, state: Mapping[str, Any], learner: Saver, then: Callable[[], None] = lambda: None
    ) -> None:
        """Begin the checkpoint of `step`; training may go on when this returns. When it is whole, those that need not
        stay are removed, and `then` is called. `state` holds JSON values only. Raises what was wrong with the save
        before it, OSError where there is no room; then nothing of that is left and those before are as they were."""
        await self.settled()
        self._found = None
        self._remove_half_written()
        half = self.path(step).with_name(self.path(step).name + HALF)
        half.mkdir(parents=True)
        (half / STATE).write_text(json.dumps({"step": step, "state": state}))
        writing = await learner.save(str(half))
        self._going_on = asyncio.ensure_future(self._complete(step, half, writing, then))

    async def settled(self) -> None:
        """Wait until the save that goes on, if one does, is whole. Raises what is wrong with it."""
        going_on, self._going_on = self._going_on, None
        if going_on is not None:
            await going_on

    async def close(self) -> None:
        """The run ends, however: a save that goes on has `CLOSE_S` to become whole. What is wrong with it is not told:
        whatever ends the run is."""
        going_on, self._going_on = self._going_on, None
        if going_on is not None:
            await asyncio.wait({going_on}, timeout=CLOSE_S)
            going_on.cancel()
            await asyncio.gather(going_on, return_exceptions=True)

    async def _complete(self, step: int, half: Path, writing: Awaitable[None], then: Callable[[], None]) -> None:
        final = self.path(step)
        try:
            await writing
            await asyncio.to_thread(self._seal, half, step)
        except OSError:
            shutil.rmtree(half, ignore_errors=True)
            raise
        if final.exists():  # the same step again, after a run went back to an older checkpoint
            self._retire(final)
        os.rename(half, final)
        flush(self._folder, deep=False)
        steps = self.steps()
        for old in set(steps) - lasting(steps, self._keep, self._keep_every, self.protected().values()):
            self._retire(self.path(old))
        self._remove_half_written()
        then()

    def protect(self, why: str, step: int) -> None:
        """Keep the checkpoint of `step` whatever its age, until another step is protected for the same reason."""
        write_whole(self._folder / PROTECTED, json.dumps(self.protected() | {why: step}).encode())

    def protected(self) -> dict[str, int]:
        """Reason -> step, for example {"best": 40}. Raises InputError where the file is damaged."""
        file = self._folder / PROTECTED
        if not file.is_file():
            return {}
        try:
            return {str(why): int(step) for why, step in json.loads(file.read_text()).items()}
        except (ValueError, OverflowError, AttributeError, TypeError) as error:
            raise InputError(f"{file} is damaged ({error}); remove it") from None

    def run_id(self) -> str:
        """What tells this run's checkpoints from another's; empty before the first is saved."""
        file = self._run_dir / RUN_ID
        return file.read_text(errors="replace").strip() if file.is_file() else ""

    def _seal(self, half: Path, step: int) -> None:
        """Write the manifest of what is there, and all of it to the disk."""
        if not self.run_id():
            write_whole(self._run_dir / RUN_ID, uuid.uuid4().hex.encode())
        files = {str(path.relative_to(half)): path for path in sorted(half.rglob("*")) if path.is_file()}
        content = {
            "run": self.run_id(),
            "step": step,
            "files": {name: {"bytes": files[name].stat().st_size, "sha256": sha256} for name, sha256 in _hash(files)},
        }
        flush(half)
        write_whole(half / MANIFEST, sealed(content))
        flush(half, deep=False)

    def _retire(self, path: Path) -> None:
        """Take a complete checkpoint out of the list in one stroke; its files go with the half written ones."""
        os.rename(path, path.with_name(path.name + ".old" + HALF))

    def _remove_half_written(self) -> None:
        for leftover in self._folder.glob(f"step_*{HALF}"):
            shutil.rmtree(leftover)


def lasting(steps: Sequence[int], keep: int, keep_every: int, protected: Iterable[int] = ()) -> set[int]:
    """Which of `steps` (ascending) stay: the newest `keep` (0: all), multiples of `keep_every`, protected ones."""
    regular = {step for step in steps if keep_every and step % keep_every == 0}
    return set(steps[-keep:] if keep else steps) | regular | set(protected)


def verify(folder: Path, run_id: str, step: int) -> None:
    """Whether the checkpoint in `folder` is, byte for byte, what the run `run_id` saved as `step`; an empty `run_id`
    takes any run's. Reads nothing outside it, and nothing that is no plain file. Raises Damaged."""
    content = _manifest(folder)
    if run_id and content["run"] != run_id:
        raise Damaged(f"{folder} is another run's checkpoint")
    if content["step"] != step:
        raise Damaged(f"{folder} holds step {content['step']}, not step {step}")
    if STATE not in content["files"]:
        raise Damaged(f"{folder / MANIFEST} does not name {STATE}")
    files = {}
    for name, about in content["files"].items():
        path = folder / name
        try:
            found = path.lstat()
        except OSError:
            raise Damaged(f"{path} is missing") from None
        if not stat.S_ISREG(found.st_mode):
            raise Damaged(f"{path} is not a plain file")
        if found.st_size != about["bytes"]:
            raise Damaged(f"{path} has {found.st_size} bytes, {about['bytes']} were saved")
        files[name] = path
    try:
        for name, sha256 in _hash(files):
            if sha256 != content["files"][name]["sha256"]:
                raise Damaged(f"{files[name]} has changed since it was saved: its checksum is another")
    except OSError as error:
        raise Damaged(f"{folder} cannot be read: {error}") from None


def _manifest(folder: Path) -> dict[str, Any]:
    """The content of a manifest that is, to the byte, what `sealed` writes. Raises Damaged."""
    file = folder / MANIFEST
    try:
        found = file.lstat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_MANIFEST_BYTES:
            raise Damaged(f"{file} is not a manifest")
        data = file.read_bytes()
        content = json.loads(data)["content"]
        if sealed(content) != data:
            raise Damaged(f"{file} has changed since it was written")
        for name, about in content["files"].items():
            parts = PurePosixPath(name).parts
            if not parts or name.startswith("/") or ".." in parts or not isinstance(about["bytes"], int):
                raise Damaged(f"{file} names no file of its own: {name!r}")
            str.encode(about["sha256"])
        if not isinstance(content["run"], str) or not isinstance(content["step"], int):
            raise Damaged(f"{file} is not a manifest")
    except FileNotFoundError:
        raise Damaged(f"{folder} has no {MANIFEST}: it was not written to its end") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"{file} is damaged: {type(error).__name__}") from None
    return dict(content)


def sealed(content: Mapping[str, Any]) -> bytes:
    """The bytes of a manifest: its content and the checksum of that."""
    text = json.dumps(content, sort_keys=True)
    return json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest(), "content": content}, indent=1).encode()


def _hash(files: Mapping[str, Path]) -> Iterator[tuple[str, str]]:
    """(name, SHA-256 in hexadecimal) of each file, several at a time: hashing releases the interpreter."""
    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        yield from zip(files, pool.map(_hash_file, files.values()), strict=True)


def _hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def flush(folder: Path, deep: bool = True) -> None:
    """Have the operating system write a folder, and with `deep` all it holds, to the disk."""
    for path in [*(folder.rglob("*") if deep else ()), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

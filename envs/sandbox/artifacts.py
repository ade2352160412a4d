"""A person's files into a sandbox, and what was made of them safely out of it.

What lies in a sandbox was made by a stranger. Its list of files is read as bytes and checked name by name, every file
is read by the sandbox's own reader (regular files only, links never followed) and written here as a new plain file
below a folder that was empty. Links, devices and names that would leave the folder stay behind, and are listed.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

from sandboxrl.data.errors import InputError
from sandboxrl.data.task import safe_name
from sandboxrl.envs.sandbox.protocol import FileRefused, Sandbox, exec_clean

INPUT, OUTPUT = "/testbed/input", "/testbed/output"
MAX_FILE_BYTES = 64 << 20
"""What one read of a sandbox gives at most."""
MAX_FILES = 10_000
LIST_BYTES = 8 << 20
KEPT_OPEN = {f"{folder}/.keep": b"" for folder in (INPUT, OUTPUT)}
"""Files that make both folders exist from the start."""


@dataclass
class Collected:
    """What came out."""

    files: list[tuple[str, int]] = field(default_factory=list)
    """Name below the folder, and size in bytes."""
    left_out: list[tuple[str, str]] = field(default_factory=list)
    """Name, and why it stayed behind."""


def read_inputs(folder: Path, max_bytes: int) -> dict[str, bytes]:
    """Every file below `folder`, by its path in the sandbox. Raises InputError when they are too large together, or
    when something in the folder is no plain file."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    files: dict[str, bytes] = {}
    left = max_bytes
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            continue
        if not path.is_file():
            raise InputError(f"{path}: not a file that could be copied")
        left -= path.stat().st_size
        if left < 0 or len(files) == MAX_FILES:
            raise InputError(
                f"{folder}: more than {max_bytes >> 20} MiB or {MAX_FILES} files, which a sandbox cannot hold"
            )
        files[f"{INPUT}/{path.relative_to(folder).as_posix()}"] = path.read_bytes()
    return files


async def collect(sandbox: Sandbox, out: Path, max_bytes: int = 1 << 30) -> Collected:
    """Copy the files below /testbed/output into the new or empty folder `out`, `max_bytes` at most in all. Raises
    SandboxDied, and OSError where this machine cannot write."""
    out.mkdir(parents=True, exist_ok=True)
    found = Collected()
    listing = await exec_clean(
        sandbox,
        f"cd {OUTPUT} 2>/dev/null && find . -mindepth 1 ! -type d -printf '%y %P\\0'",
        timeout_s=60,
        max_bytes=LIST_BYTES,
    )
    entries = [entry for entry in listing.stdout.split(b"\0") if entry]
    if listing.stdout_bytes > LIST_BYTES or len(entries) > MAX_FILES:
        found.left_out.append(("", f"more than {MAX_FILES} files: only the first ones were looked at"))
    left = max_bytes
    for entry in entries[:MAX_FILES]:
        kind, _, raw = entry.partition(b" ")
        name = os.fsdecode(raw)
        if f"{OUTPUT}/{name}" in KEPT_OPEN:
            continue
        if kind != b"f":
            found.left_out.append((name, "not a regular file"))
        elif not safe_name(name):
            found.left_out.append((name, "its name would leave the folder"))
        else:
            try:
                data = await sandbox.read(f"{OUTPUT}/{name}", min(MAX_FILE_BYTES, left))
                _write_new(out, name, data)
            except (FileRefused, FileExistsError, NotADirectoryError) as error:
                found.left_out.append((name, error.strerror or str(error)))
                continue
            left -= len(data)
            found.files.append((name, len(data)))
    return found


def _write_new(out: Path, name: str, data: bytes) -> None:
    """A new plain file without execute permission; nothing that is there is replaced or followed."""
    path = out / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644), "wb") as file:
        file.write(data)

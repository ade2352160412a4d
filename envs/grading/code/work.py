"""A policy's work on its way to its tests: what of it counts, and what is the image's in any case.

Tests run in a fresh sandbox, into which the policy's work folder comes as data. What steers tests, and is not itself
tested, does not come along: at every depth of the folder it stays as the image, or the task's documents, have it. Code
under test runs in one process with its tests: no arrangement of files keeps it from reaching them.
"""

import errno
import posixpath
import re
import secrets
import shlex
from collections.abc import Collection, Iterator, Mapping
from contextlib import aclosing
from typing import IO

from sandboxrl.envs.grading.protocol import GraderFailed
from sandboxrl.envs.sandbox.carry import Entry, parts, restore, without
from sandboxrl.envs.sandbox.protocol import WORKDIR, ExecResult, FileRefused, Sandbox

SETTINGS = ("setup.cfg", "pyproject.toml")
"""Of these the policy's count as long as neither they nor the image's say anything about pytest."""
HISTORY = ".git"
STEERING = (
    *("conftest.py", "pytest.ini", ".pytest.ini", "pytest.toml", ".pytest.toml", "tox.ini", *SETTINGS),
    *("sitecustomize*", "usercustomize*", "*.pth", "*.egg-info", "*.dist-info", f"{HISTORY}/"),
)
"""What configures or extends Python and pytest, and the history with its hooks. A name may hold `*`; with a slash it is
a path below the work folder, else a name at any depth."""
BYTECODE = "__pycache__"
"""It is nobody's, and made again."""
CARRIED_BYTES = 1 << 30
"""Of a work folder, records included."""
SETTING_BYTES = 1 << 19
LOOK_S = 300.0


class Work:
    """The policy's work folder, between the sandbox where it was made and the one where it is tested."""

    def __init__(self, spool: IO[bytes], names: Collection[str], places: Collection[str]) -> None:
        """`spool` holds it meanwhile. `names` are what stays the image's, as STEERING writes them; `places` are the
        absolute paths where the task puts files of its own."""
        self._spool, self._names = spool, names
        below = [f"{posixpath.relpath(place, WORKDIR)}/" for place in places if place.startswith(f"{WORKDIR}/")]
        left = [name for name in (*names, BYTECODE, *below) if name not in SETTINGS]
        self._left = re.compile(b"|".join(map(_pattern, left)), re.DOTALL)
        self._settings = [name.encode() for name in SETTINGS if name in names]
        self._dropped: set[bytes] = set()
        """Settings of the policy that stayed behind."""

    async def take(self, sandbox: Sandbox) -> None:
        """Read it. Raises FileRefused when it is no folder or too large, SandboxError, OSError."""
        async with aclosing(parts(sandbox, WORKDIR, CARRIED_BYTES)) as found:
            async for part in found:
                kept = without(part, self._stays)
                self._spool.write(len(kept).to_bytes(8, "little") + kept)

    async def bring(self, fresh: Sandbox, documents: Mapping[str, bytes]) -> None:
        """Make it again where nothing was done yet. `documents` (absolute paths) are what the task gave the policy.
        Raises FileRefused when it does not fit, GraderFailed when the image is at fault, SandboxError, OSError."""
        aside = f"/tmp/.image-{secrets.token_hex(8)}"
        spared = HISTORY if f"{HISTORY}/" in self._names else ""
        wanted = " -o ".join(
            f"-{'path ./' if '/' in name else 'name '}{shlex.quote(name.rstrip('/'))}" for name in self._names
        )
        found = await fresh.exec(
            f"mkdir -p {aside} {WORKDIR} && cd {WORKDIR} && find . -path ./{HISTORY} -prune -o "
            f"'(' {wanted} ')' -prune -print0 > {aside}.names && "
            f"xargs -0r cp -a --parents -t {aside} < {aside}.names && cat {aside}.names && rm {aside}.names",
            timeout_s=LOOK_S,
            max_bytes=1 << 20,
        )
        if found.exit_code or found.timed_out:
            raise GraderFailed(f"what steers its tests cannot be found in the image: {_said(found)}")
        silent = []
        for path in filter(self._is_setting, (name[2:] for name in found.stdout.split(b"\0"))):
            name = path.decode(errors="surrogateescape")
            if not _speaks_of_pytest(await fresh.read(f"{WORKDIR}/{name}", SETTING_BYTES)):
                silent += [name] if path not in self._dropped else []
        await restore(fresh, WORKDIR, self._parts(), spared)
        back = f"cd {aside} && rm -rf -- {shlex.join(silent)} && cp -a . {WORKDIR}/ && rm -rf {aside}"
        done = await fresh.exec(back, timeout_s=LOOK_S)
        if done.exit_code or done.timed_out:  # a file or a link of the policy's stands where the image has a folder
            raise FileRefused(errno.EEXIST, _said(done), WORKDIR)
        await fresh.write({path: data for path, data in documents.items() if self._is_given(path, data)})

    def _parts(self) -> Iterator[bytes]:
        self._spool.seek(0)
        while size := self._spool.read(8):
            yield self._spool.read(int.from_bytes(size, "little"))

    def _stays(self, entry: Entry) -> bool:
        """Whether an entry of the policy's stays behind."""
        if self._left.search(entry.path):
            return True
        if not self._is_setting(entry.path) or entry.kind == "d":
            return False
        small = entry.kind == "f" and not entry.offset and len(entry.data) < SETTING_BYTES
        if entry.path in self._dropped or (entry.kind != "m" and not (small and not _speaks_of_pytest(entry.data))):
            self._dropped.add(entry.path)
        return entry.path in self._dropped

    def _is_setting(self, path: bytes) -> bool:
        return path.rpartition(b"/")[2] in self._settings

    def _is_given(self, document: str, data: bytes) -> bool:
        """Whether the tests see the task's own version of a document, whatever became of it."""
        path = posixpath.relpath(document, WORKDIR).encode()
        if self._is_setting(path):
            return path in self._dropped or _speaks_of_pytest(data)
        return self._left.search(path) is not None


def _pattern(name: str) -> bytes:
    """As a regular expression for paths below the work folder."""
    words = "[^/]*".join(map(re.escape, name.rstrip("/").split("*")))
    return f"{'^' if '/' in name else '(?:^|/)'}{words}(?:/|$)".encode()


def _speaks_of_pytest(text: bytes) -> bool:
    """Or may do so: a backslash can spell any word."""
    return b"pytest" in text or b"\\" in text


def _said(result: ExecResult) -> str:
    return " ".join(result.stderr.decode(errors="replace").split())[-300:]

"""`report.html` while a run goes on: written by a process of the lowest priority, for a tenth of the time at most."""

import subprocess
import sys
import time
from pathlib import Path

AT_LEAST_S = 15.0
"""Between two reports."""
SHARE = 10
"""A report that took t seconds is followed by none for so many times t."""


class LiveReport:
    """Called by the run after each step; never waits. A report that fails is tried again; what it said is in
    `report.log`."""

    def __init__(self, run_dir: Path, at_least_s: float = AT_LEAST_S) -> None:
        self._dir, self._at_least_s = run_dir, at_least_s
        self._child: subprocess.Popen[bytes] | None = None
        self._started = self._due = 0.0

    @property
    def pid(self) -> int | None:
        """Of the process that writes a report now."""
        return self._child.pid if self._child else None

    def renew(self) -> str:
        """Start a new report, unless one is being written or the last one is not old enough. Returns what the last one
        failed of; empty where it did not."""
        now, failure = time.monotonic(), ""
        if self._child is not None:
            code = self._child.poll()
            if code is None:
                return ""
            self._child = None
            self._due = now + max(self._at_least_s, SHARE * (now - self._started))
            failure = self._last_line() if code else ""
        if now < self._due:
            return failure
        self._started = now
        command = [sys.executable, "-m", "sandboxrl.rl.reports.pages.run", str(self._dir)]
        try:
            with (self._dir / "report.log").open("wb") as log:
                self._child = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
                )
        except OSError as error:  # a full disk, too many processes: nothing that should end a run
            self._due = now + self._at_least_s
            return str(error)
        return failure

    def close(self) -> None:
        """End a report that is being written: the run writes the last one itself."""
        if self._child is not None:
            if self._child.poll() is None:
                self._child.kill()
            self._child.wait()
            self._child = None

    def _last_line(self) -> str:
        return (self._dir / "report.log").read_text(errors="replace").strip().rpartition("\n")[2][-300:]

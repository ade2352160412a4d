"""What a person sees while something runs: stages with their times, a bar in a terminal, else a line every ten seconds.

    progress = opened("auto")                  bar | lines (every 10 s) | quiet (results only) | json (events)
    with progress, progress.stage("model"):    "model … 3.1 s"; stages may overlap
    progress.begin("step 3/20 · sampling", 64) what is being counted now
    progress.count(tokens=812)                 one of them has ended
    progress.line("step 3/20  reward 0.41")    stays on the screen

Output that can no longer be written (a closed terminal, a full disk) never ends what it tells of: the rest is dropped.
"""

import contextlib
import json
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, Literal, TextIO

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

EVERY_S = 10.0
"""Between two lines that say what goes on, where there is no terminal."""
Style = Literal["auto", "bar", "lines", "quiet", "json"]


def opened(style: Style = "auto", out: TextIO | None = None) -> "Progress":
    """How to tell it on `out` (default: standard output): `auto` is a bar in a terminal and lines elsewhere."""
    stream = sys.stdout if out is None else out
    if style == "auto":
        style = "bar" if stream is not None and stream.isatty() else "lines"
    return Progress(style, stream)


class Progress:
    """One run's or evaluation's progress; a context manager, so that the bar goes and the terminal is whole again."""

    def __init__(self, style: Style, out: TextIO | None) -> None:
        self.style, self._out = style, out
        self._lock = threading.RLock()
        self._stages: dict[str, float] = {}
        self._what, self._done, self._total, self._tokens, self._note = "", 0, 0, 0, ""
        self._since = self._told = time.monotonic()
        self._share, self._left_s = 0.0, float("nan")
        self._ended, self._unwritable = threading.Event(), False
        self._live: Live | None = None
        self._teller: threading.Thread | None = None

    def __enter__(self) -> "Progress":
        if self.style == "bar":
            self._live = Live(console=Console(file=self._out), get_renderable=self._bar, transient=True)
            self._live.start()
        elif self.style in ("lines", "json"):
            self._teller = threading.Thread(target=self._tell, name="progress", daemon=True)
            self._teller.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._teller is not None:
            self._teller.join(1.0)
        if self._live is not None:
            with contextlib.suppress(OSError, ValueError):
                self._live.stop()
            self._live = None

    # ------------------------------------------------------------------------------------------------- what happens

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Something that is waited for once: told when it begins to take long, and with its time when it is done."""
        started = time.monotonic()
        with self._lock:
            self._stages[name] = started
        try:
            yield
        except BaseException:
            self._stages.pop(name, None)
            raise
        self._stages.pop(name, None)
        self.done(name, time.monotonic() - started)

    def done(self, name: str, seconds: float) -> None:
        """A stage that was timed elsewhere, as in an actor."""
        if self.style != "quiet":
            self.line(f"  {name}: {seconds:.1f} s", {"event": "stage", "name": name, "seconds": round(seconds, 3)})

    def begin(self, what: str, total: int = 0, done: int = 0) -> None:
        """From here on `total` of `what` are counted (0: it is only waited for)."""
        with self._lock:
            self._what, self._total, self._done, self._tokens, self._note = what, total, done, 0, ""
            self._since = time.monotonic()

    def count(self, tokens: int = 0, note: str = "") -> None:
        """One more has ended, with so many sampled tokens. `note` is shown beside the count."""
        with self._lock:
            self._done += 1
            self._tokens += tokens
            self._note = note or self._note

    def more(self, num: int) -> None:
        """So many more are wanted than was said."""
        with self._lock:
            self._total += num

    def overall(self, share: float, left_s: float) -> None:
        """How much of the whole is done, 0 to 1, and how long the rest will take (nan: not known yet)."""
        with self._lock:
            self._share, self._left_s = share, left_s + (time.monotonic() if left_s == left_s else 0.0)

    def line(self, text: str, event: Mapping[str, Any] | None = None) -> None:
        """Print a line that stays; with `json`, its `event` instead (default: the text as a message)."""
        with self._lock:
            self._told = time.monotonic()
            if self._unwritable:
                return
            if self.style == "json":
                text = json.dumps(event or {"event": "message", "text": text}, ensure_ascii=False)
            try:
                if self._live is not None:
                    self._live.console.print(Text(text), soft_wrap=True)
                else:
                    print(text, file=self._out, flush=True)
            except (OSError, ValueError):  # a closed terminal, a full disk: what goes on is in log.txt
                self._unwritable = True

    def detail(self, text: str, event: Mapping[str, Any] | None = None) -> None:
        """A line that `quiet` leaves out."""
        if self.style != "quiet":
            self.line(text, event)

    # ---------------------------------------------------------------------------------------------------- what is told

    def now(self) -> dict[str, Any]:
        """What goes on at this moment: the event of `json`."""
        now = time.monotonic()
        with self._lock:
            told: dict[str, Any] = {"event": "progress"}
            if self._stages:
                return told | {"waiting_for": {name: round(now - since, 1) for name, since in self._stages.items()}}
            if not self._what:
                return {}
            told["what"] = self._what
            if self._total:
                told |= {"done": min(self._done, self._total), "total": self._total}
            if self._tokens:
                told["tokens_per_s"] = round(self._tokens / max(now - self._since, 1e-3), 1)
            if self._note:
                told["note"] = self._note
            if self._left_s == self._left_s:
                told["left_s"] = round(max(0.0, self._left_s - now))
            return told

    def sentence(self) -> str:
        """The same for a person, on one line; empty when there is nothing to tell."""
        now = self.now()
        if "waiting_for" in now:
            return "waiting for " + ", ".join(
                f"{name} ({seconds:.0f} s)" for name, seconds in now["waiting_for"].items()
            )
        words = [now["what"]] if now else []
        if "total" in now:
            words.append(f"{now['done']} of {now['total']} trajectories")
        if "tokens_per_s" in now:
            words.append(f"{now['tokens_per_s']:,.0f} tokens/s")
        words += [now["note"]] if "note" in now else []
        if "left_s" in now:
            words.append(f"{duration(now['left_s'])} left")
        return " · ".join(words)

    def _bar(self) -> Table:
        row = Table.grid(padding=(0, 1))
        share = self._share
        if not share and self._total:
            share = min(1.0, self._done / self._total)
        row.add_row(ProgressBar(total=1.0, completed=share, width=24), Text(self.sentence(), overflow="ellipsis"))
        return row

    def _tell(self) -> None:
        while not self._ended.wait(1.0):
            if time.monotonic() - self._told >= EVERY_S and (told := self.sentence()):
                self.detail(f"  … {told}", self.now())


def duration(seconds: float) -> str:
    """`48 s`, `3:07 min`, `2:15 h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    big, small, unit = (*divmod(whole, 60), "min") if whole < 3600 else (*divmod(whole // 60, 60), "h")
    return f"{big}:{small:02d} {unit}"

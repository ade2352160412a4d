"""What a person or a program sees of something that runs."""

import errno
import io
import json
import math
import time
from typing import Any

import pytest

from sandboxrl.rl.reports import progress as module
from sandboxrl.rl.reports.progress import Progress, duration, opened


def shown(style: Any, work: Any) -> str:
    out = io.StringIO()
    with opened(style, out) as progress:
        work(progress)
    return out.getvalue()


def some_work(progress: Progress) -> None:
    with progress.stage("model"):
        pass
    progress.begin("step 1/2 · sampling", 3)
    progress.count(tokens=10)
    progress.line("step 1/2  reward 0.5", {"event": "step", "step": 1})


def test_without_a_terminal_stages_and_results_are_lines() -> None:
    assert shown("auto", some_work) == "  model: 0.0 s\nstep 1/2  reward 0.5\n"


def test_quiet_leaves_out_all_but_what_comes_of_it() -> None:
    assert shown("quiet", some_work) == "step 1/2  reward 0.5\n"


def test_json_is_one_event_per_line() -> None:
    events = [json.loads(line) for line in shown("json", some_work).splitlines()]
    assert [event["event"] for event in events] == ["stage", "step"] and events[0]["name"] == "model"


def test_a_line_every_so_often_says_what_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVERY_S", 0.5)

    def wait(progress: Progress) -> None:
        with progress.stage("engine"):
            time.sleep(2.5)

    assert "  … waiting for engine (" in shown("lines", wait)


def test_the_sentence_counts_and_tells_the_time_left() -> None:
    progress = opened("quiet", io.StringIO())
    progress.begin("step 2/20 · sampling", 64, done=2)
    for _ in range(10):
        progress.count(tokens=100)
    progress.overall(0.1, 95.0)
    words = progress.sentence().split(" · ")
    assert words[:3] == ["step 2/20", "sampling", "12 of 64 trajectories"]
    assert words[3].endswith("tokens/s") and words[4] in ("1:35 min left", "1:34 min left")
    progress.overall(0.1, math.nan)
    assert "left" not in progress.sentence()


def test_output_that_cannot_be_written_ends_nothing() -> None:
    class Full(io.StringIO):
        tries = 0

        def write(self, text: str) -> int:
            self.tries += 1
            raise OSError(errno.ENOSPC, "No space left on device")

    full = Full()
    with opened("lines", full) as progress:
        progress.line("x")
        progress.line("y")
    assert full.tries == 1


def test_a_bar_in_a_terminal_leaves_the_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    with opened("auto", out) as progress:
        assert progress.style == "bar"
        some_work(progress)
    assert "step 1/2  reward 0.5" in out.getvalue()


@pytest.mark.parametrize(("seconds", "text"), [(3.4, "3 s"), (187, "3:07 min"), (8100, "2:15 h")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text

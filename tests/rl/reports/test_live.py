"""The report of a run that goes on: renewed beside it, seldom enough, and never its trouble."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sandboxrl.rl.reports.live import LiveReport
from tests.rl.reports.pages.reading import content
from tests.rl.reports.pages.sample_run import write_sample_run


def waited_for(true: Callable[[], object], within_s: float = 60) -> object:
    deadline = time.monotonic() + within_s
    while not (value := true()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return value


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = write_sample_run(tmp_path / "run", steps=3, num_tasks=2, group_size=2)
    (folder / "summary.json").unlink()
    return folder


def test_a_run_that_goes_on_has_a_report_that_says_so(run: Path) -> None:
    live = LiveReport(run)
    started = time.monotonic()
    assert live.renew() == ""
    assert time.monotonic() - started < 2, "the run does not wait for it"
    waited_for((run / "report.html").exists)
    shown = content((run / "report.html").read_text())
    assert shown["live"] and shown["index"]["count"] > 0
    live.close()


def test_reports_follow_each_other_seldom_enough(run: Path) -> None:
    live = LiveReport(run, at_least_s=0)
    log = run / "report.log"
    live.renew()
    waited_for((run / "report.html").exists)
    first = waited_for(lambda: live.renew() == "" and live.pid is None and time.monotonic())
    made = log.stat().st_mtime_ns
    for _ in range(20):
        live.renew()
    assert log.stat().st_mtime_ns == made, "ten times as long as the last one took, no other is started"
    waited_for(lambda: (live.renew(), log.stat().st_mtime_ns != made)[1])
    assert isinstance(first, float)
    live.close()


def test_a_report_that_fails_is_one_line_and_is_tried_again(run: Path) -> None:
    (run / "report.html").mkdir()  # nothing can be written there, whoever the user is
    live = LiveReport(run, at_least_s=0)
    live.renew()
    failure = waited_for(live.renew)
    assert isinstance(failure, str) and "report.html" in failure and "\n" not in failure
    (run / "report.html").rmdir()
    waited_for(lambda: (live.renew(), (run / "report.html").is_file())[1])
    live.close()


def test_the_end_of_a_run_ends_its_report(run: Path) -> None:
    live = LiveReport(run)
    live.renew()
    pid = live.pid
    assert pid
    live.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_report_that_cannot_even_start_is_one_line(run: Path) -> None:
    (run / "report.log").mkdir()
    assert "report.log" in LiveReport(run).renew()

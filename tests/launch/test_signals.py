"""SIGTERM and a closed terminal end a command as Ctrl-C does."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator

import pytest

from sandboxrl.launch.signals import like_ctrl_c, run_async

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def as_in_a_terminal() -> Iterator[None]:
    """Whatever the tests themselves were started by: `nohup`, or a shell that gave them to the background."""
    usual = {number: signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL for number in ENDING}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", ENDING, ids=lambda number: number.name)
def test_what_is_held_is_closed_and_a_second_signal_does_not_interrupt_that(number: signal.Signals) -> None:
    closed: list[str] = []
    before = signal.getsignal(number)

    async def work() -> None:
        try:
            os.kill(os.getpid(), number)
            await asyncio.sleep(60)
        finally:
            if number != signal.SIGINT:  # the second Ctrl-C of a person means it
                os.kill(os.getpid(), number)
            await asyncio.sleep(0.01)
            closed.append("closed")

    with pytest.raises(KeyboardInterrupt):
        run_async(work())
    assert closed == ["closed"] and signal.getsignal(number) is before


@pytest.mark.parametrize("number", ENDING, ids=lambda number: number.name)
def test_work_without_a_loop_is_interrupted(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), like_ctrl_c():
        os.kill(os.getpid(), number)
        time.sleep(5)
    assert signal.getsignal(number) is before


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    """As below `nohup`."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:

        async def work() -> str:
            os.kill(os.getpid(), signal.SIGHUP)
            await asyncio.sleep(0.01)
            return "done"

        assert run_async(work()) == "done"
    finally:
        signal.signal(signal.SIGHUP, before)

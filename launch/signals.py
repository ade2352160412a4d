"""SIGTERM and a closed terminal end a command as Ctrl-C does: what it holds is closed, and it exits with code 1."""

import asyncio
import contextlib
import signal
import threading
from collections.abc import Coroutine, Iterator
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")
ENDING = (signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def like_ctrl_c() -> Iterator[None]:
    """Within it both signals raise KeyboardInterrupt. Has no effect outside the main thread, which gets no signals."""
    with _kept():
        for number in _heeded():
            signal.signal(number, _interrupt)
        yield


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run`, which Ctrl-C ends by cancelling `work`; both signals do the same. Raises KeyboardInterrupt."""
    ended = False

    async def watched() -> T:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None

        def end() -> None:
            nonlocal ended
            if not ended:  # a second signal must not interrupt the closing
                ended = True
                task.cancel()

        for number in _heeded():
            loop.add_signal_handler(number, end)
        return await work

    try:
        with _kept():  # a loop that closes would leave the signals as Python found them, not as we did
            return asyncio.run(watched())
    except asyncio.CancelledError:
        if ended:
            raise KeyboardInterrupt from None
        raise


def _heeded() -> list[signal.Signals]:
    """Those that nobody has told this process to ignore, as `nohup` does."""
    if threading.current_thread() is not threading.main_thread():
        return []
    return [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN]


@contextlib.contextmanager
def _kept() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in _heeded()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt

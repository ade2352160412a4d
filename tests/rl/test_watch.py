"""Nothing waits without a deadline, and what is waited for can be asked, even of a process that is stuck."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from sandboxrl.launch.__main__ import main
from sandboxrl.rl.watch import STACKS, STATUS, Stalled, Watch, WatchConfig, stacks_of


def watch_in(folder: Path, said: list[str], **config: float) -> Watch:
    return Watch(WatchConfig(**config), folder, said.append)


def test_a_wait_that_is_over_its_limit_is_named_and_its_stacks_are_logged_first(tmp_path: Path) -> None:
    said: list[str] = []
    cancelled: list[bool] = []

    async def never() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            cancelled.append(True)

    async def waiting() -> None:
        watch = watch_in(tmp_path, said)

        async def actors() -> dict[str, str]:
            return {"learner rank 0": "in all_reduce"}

        watch.stacks.append(actors)
        started = time.monotonic()
        with pytest.raises(Stalled, match=r"learner: update 7 has taken more than 0.3 s"):
            await watch.bounded(never(), "learner", "update 7", 0.3)
        assert time.monotonic() - started < 2
        await asyncio.sleep(0)

    asyncio.run(waiting())
    (log,) = said
    assert cancelled and "update 7, for 0." in log and "--- learner rank 0\nin all_reduce" in log and "never" in log


def test_an_answer_in_time_and_an_error_come_through(tmp_path: Path) -> None:
    async def answers() -> None:
        said: list[str] = []
        watch = watch_in(tmp_path, said)

        async def fails() -> None:
            raise TimeoutError("of its own")

        assert await watch.bounded(asyncio.sleep(0, "yes"), "a", "b", 5) == "yes"
        with pytest.raises(TimeoutError, match="of its own"):
            await watch.bounded(fails(), "a", "b", 5)
        await watch.dump("asked")
        assert "--- waits\nnone\n" in said[0]

    asyncio.run(answers())


def test_the_status_of_a_live_run_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.yaml").touch()
    assert main(["status", str(tmp_path)]) == 2

    async def living() -> None:
        watch = watch_in(tmp_path, [], poll_s=0.05)

        async def look() -> dict[str, object]:
            slow = {"task": "t7", "for_s": 61.0, "turns": 3, "command": "bash sleep 100", "command_s": 55.0}
            worker = {"worker": 0, "silent_s": 0.1, "trajectories": 8, "engine_requests": 5, "slowest": [slow]}
            groups = [{"group": 12, "task": "t7", "for_s": 61.0}]
            return {"step": 3, "steps": 20, "version": 3, "groups_in_flight": groups, "workers": [worker]}

        watch.looks.append(look)
        running = asyncio.create_task(watch.run())
        with watch.waiting("learner", "update 4", 600):
            await asyncio.sleep(0.3)
        running.cancel()

    asyncio.run(living())
    capsys.readouterr()
    assert main(["status", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    for words in (
        f"process {os.getpid()}: running; step 3 of 20",
        "group 12 (t7), for 61 s",
        "8 trajectories, 5 in its engine",
        "t7, for 61 s, 3 turns; for 55 s: bash sleep 100",
        "learner: update 4, for 0 s of at most 600 s",
    ):
        assert words in told
    status = json.loads((tmp_path / STATUS).read_text())
    assert main(["status", str(tmp_path), "--json"]) == 0 and json.loads(capsys.readouterr().out) == status
    (tmp_path / STATUS).write_text(json.dumps(status | {"monotonic": time.monotonic() - 1000}))
    assert main(["status", str(tmp_path)]) == 1
    assert "stands still" in capsys.readouterr().out
    for damaged in ("", "[]", '{"pid": "x"}', '{"pid": 1, "monotonic": 0, "workers": 3}'):
        (tmp_path / STATUS).write_text(damaged)
        assert main(["status", str(tmp_path)]) == 2


def test_a_mistake_in_one_look_does_not_blind_the_others(tmp_path: Path) -> None:
    said: list[str] = []

    async def broken() -> dict[str, object]:
        raise KeyError("worker")

    async def well() -> dict[str, object]:
        return {"step": 3}

    async def living() -> None:
        watch = watch_in(tmp_path, said, poll_s=0.02)
        watch.looks += [broken, well]
        running = asyncio.create_task(watch.run())
        await asyncio.sleep(0.3)
        running.cancel()

    asyncio.run(living())
    status = json.loads((tmp_path / STATUS).read_text())
    assert status["step"] == 3 and "KeyError" in status["problems"][0]
    assert len(said) == 1


STUCK = """
    import json, re, sys, threading
    from sandboxrl.rl.watch import answer_with_stacks

    def stuck_in_a_call():
        re.match(r"(a+)+$", "a" * 60 + "b")  # holds the interpreter for years

    print(json.dumps(answer_with_stacks()), flush=True)
    stuck_in_a_call()
"""


@pytest.mark.parametrize("stopped", [False, True])
def test_the_stacks_of_a_process_that_is_stuck_or_stopped(stopped: bool) -> None:
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(STUCK)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        where = json.loads(process.stdout.readline())
        time.sleep(0.3)
        if stopped:
            process.send_signal(signal.SIGSTOP)
        found = stacks_of(where)
        assert ("State:\tT (stopped)" if stopped else "stuck_in_a_call") in found
    finally:
        process.kill()
        process.wait()
    assert "is gone" in stacks_of(where)


HANGING_DRIVER = """
    import asyncio, pathlib, sys, time
    from sandboxrl.rl import watch as watching
    from sandboxrl.rl.watch import Watch, WatchConfig

    watching.LOOP_STANDS_STILL_S = 1.0

    def hangs():
        time.sleep(60)

    async def main():
        watch = Watch(WatchConfig(poll_s=0.1), pathlib.Path(sys.argv[1]), print)
        with watch.on_signal():
            running = asyncio.create_task(watch.run())
            await asyncio.sleep(0.3)
            print("ready", flush=True)
            if sys.argv[2] == "hang":
                hangs()
            await asyncio.sleep(60)

    asyncio.run(main())
"""


@pytest.mark.parametrize("how", ["hang", "signal"])
def test_a_driver_tells_its_stacks_on_a_signal_and_when_its_loop_stands_still(tmp_path: Path, how: str) -> None:
    words = [sys.executable, "-u", "-c", textwrap.dedent(HANGING_DRIVER), str(tmp_path), how]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        if how == "signal":
            process.send_signal(signal.SIGUSR1)
            assert process.stdout.readline() == "stacks (SIGUSR1)\n"
        deadline = time.monotonic() + 30
        wanted = "hangs" if how == "hang" else "asyncio"
        while wanted not in (text := (tmp_path / STACKS).read_text()):
            assert time.monotonic() < deadline, text
            time.sleep(0.1)
        assert how == "signal" or "stands still" in text
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()

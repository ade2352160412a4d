"""A sandbox goes with its owner, whoever else holds what the owner held, and with whoever stopped waiting for it."""

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from sandboxrl.envs.sandbox.bubblewrap.cgroups import PREFIX
from sandboxrl.envs.sandbox.host import lease
from sandboxrl.envs.sandbox.host.owner import owner_of
from sandboxrl.envs.sandbox.protocol import Limits
from tests.processes import control_groups

OWNER = """
import asyncio, os, sys, time
from sandboxrl.envs.sandbox.pool import open_backend
from sandboxrl.envs.sandbox.protocol import Limits, SandboxConfig

async def main():
    config = {config!r}
    box = await open_backend(SandboxConfig(**config | {{"limits": Limits(**config["limits"])}})).start()
    await box.exec("sleep {mark} >/dev/null 2>&1 &")
    if os.fork() == 0:
        time.sleep(60)
        os._exit(0)
    print("ready", flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


def running(mark: str) -> bool:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes() == f"sleep\0{mark}\0".encode():
                return True
        except OSError:
            continue
    return False


def test_a_forked_child_does_not_keep_the_sandboxes_of_its_dead_parent(machine):
    if machine.drops:
        pytest.skip("the owner's uid changes nothing: the lease is a socket")
    mark = str(random.randrange(10_000, 99_999))

    def owned():
        source = OWNER.format(config=asdict(machine.config()), mark=mark)
        owner = subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, start_new_session=True)
        try:
            assert owner.stdout is not None and owner.stdout.readline() == b"ready\n"
            assert running(mark)
            owner.kill()
            owner.wait()
            deadline = time.monotonic() + 10
            while running(mark) and time.monotonic() < deadline:
                time.sleep(0.05)
            assert not running(mark), "the child keeps it"
        finally:
            os.killpg(owner.pid, signal.SIGKILL)  # the forked child

    machine.call(owned)


def test_a_number_that_means_something_else_by_now_is_left_alone():
    ours, theirs = socket.socketpair()
    lease.hold(ours.fileno())
    number = ours.fileno()
    ours.close()
    theirs.close()
    reader, writer = os.pipe()
    assert number in (reader, writer)
    if os.fork() == 0:
        os.write(writer, b"it is mine")
        os._exit(0)
    os.close(writer)
    assert os.read(reader, 100) == b"it is mine"
    os.close(reader)
    os.wait()


def left_by(machine, backend) -> list[str]:
    """Of sandboxes of this process: containers in any state, control groups."""
    if machine.backend == "docker":
        words = ["docker", "ps", "-a", "-q", "--filter", f"label=sandboxrl.owner={owner_of(os.getpid())}"]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
    return [str(path) for path in control_groups(f"{PREFIX}*:{os.getpid()}:*")]


def test_starts_that_are_cancelled_leave_nothing(machine):
    async def body(backend):
        async def start(after_s: float) -> None:
            task = asyncio.create_task(backend.start())
            await asyncio.sleep(after_s)
            task.cancel()
            for done in await asyncio.gather(task, return_exceptions=True):
                if not isinstance(done, BaseException):
                    await done.close()

        before, drawn = set(left_by(machine, backend)), random.Random(7)  # other tests keep backends of their own
        for _ in range(3):
            await asyncio.gather(*(start(drawn.random() * 0.4) for _ in range(8)))
        deadline = time.monotonic() + 15
        while set(left_by(machine, backend)) - before and time.monotonic() < deadline:
            await asyncio.sleep(0.2)
        assert set(left_by(machine, backend)) - before == set()

    machine.run_with_backend(body)


def test_a_machine_without_room_for_a_process_is_the_machines_fault(machine):
    """PID 1 alone, and no process more allowed to anybody: nothing that ran in there can be why."""
    from sandboxrl.envs.sandbox.protocol import SandboxDied

    if machine.backend == "docker":
        pytest.skip("Docker needs more processes to start at all")

    async def body(box):
        with pytest.raises(SandboxDied, match="short"):
            await box.exec("true")

    machine.run(body, limits=Limits(processes=1))

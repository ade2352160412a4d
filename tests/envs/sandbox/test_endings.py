"""Whose doing the end of a sandbox was: the machine's (sampled again) or that of what ran in it (graded as nothing)."""

import asyncio
import os
import random
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from sandboxrl.envs.sandbox.host.wire import Box
from sandboxrl.envs.sandbox.pool import Pool
from sandboxrl.envs.sandbox.protocol import FileRefused, SandboxDied, SandboxEnded
from sandboxrl.envs.tools.tool_set import tool_set
from sandboxrl.envs.trajectory import ToolCall


def field(pid: int, name: str) -> str:
    """The last word of a line of /proc/PID/status."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return lines[name].split()[-1]


def first_process(command_line: bytes) -> int:
    """The host's number of the PID 1 above the process with this command line."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if (path / "cmdline").read_bytes() == command_line:
                pid = int(path.name)
                while field(pid, "NSpid") != "1":
                    pid = int(field(pid, "PPid"))
                return pid
        except OSError:
            continue
    raise AssertionError("it does not run")


def test_a_kill_from_outside_is_the_machines(machine):
    async def body(box):
        mark = str(random.randrange(10**8, 10**9))  # other runs of this test may be under way on the machine
        await box.exec(f"sleep {mark} >/dev/null 2>&1 &")
        await asyncio.sleep(0.3)
        os.kill(first_process(f"sleep\0{mark}\0".encode()), signal.SIGKILL)
        with pytest.raises(SandboxDied):
            await box.exec("sleep 5")
        with pytest.raises(SandboxDied):
            await box.exec("true")

    machine.run(body)


def test_a_sandbox_that_alone_does_not_answer_is_its_own(machine):
    async def body(box):
        mark = str(random.randrange(10**8, 10**9))
        await box.exec(f"sleep {mark} >/dev/null 2>&1 &")
        await asyncio.sleep(0.3)
        first = first_process(f"sleep\0{mark}\0".encode())
        os.kill(first, signal.SIGSTOP)
        with pytest.raises(
            SandboxEnded, match="while others do answer"
        ):  # not ToolFailed, which would be the machine's
            await tool_set("paper").run(ToolCall("bash", {"command": "true"}, "1"), box, 0.1)
        assert not Path(f"/proc/{first}").exists(), "it is ended for good"

    machine.run(body)


def test_a_path_of_any_length_is_refused_and_ends_nothing(machine):
    async def body(box):
        with pytest.raises(FileRefused):
            await box.read("p" * 5000)
        for size in (70_000, 2 << 20):
            with pytest.raises(FileRefused):
                await box.read("p" * size)
            with pytest.raises(FileRefused):
                await box.write({"p/" * (size // 2) + "f": b""})
        assert (await box.exec("echo alive")).stdout == b"alive\n"

    machine.run(body)


@pytest.mark.docker
def test_a_container_that_the_daemon_kills_is_the_machines(machine):
    if machine.backend != "docker":
        pytest.skip("docker only")

    async def body(box):
        listed = ["docker", "ps", "-q", "--no-trunc", "--filter", f"label=sandboxrl.id={box.id}"]
        container = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.strip()
        subprocess.run(["docker", "kill", container], capture_output=True, check=True)
        with pytest.raises(SandboxDied):
            await box.exec("true")

    machine.run(body)


class ClosedLater:
    """A backend of which the daemon is away when its first sandbox is to be ended."""

    name = "closed later"

    def __init__(self):
        self.tries = 0

    async def start(self, image=""):
        ours, _ = socket.socketpair()
        return Box("late", *await asyncio.open_connection(sock=ours), self._end, 1000)

    async def _end(self):
        self.tries += 1
        if self.tries == 1:
            raise SandboxDied("Docker daemon: DELETE: connection refused")

    async def close(self):
        pass


def test_what_cannot_be_closed_is_closed_later():
    async def whole():
        backend = ClosedLater()
        pool = Pool(backend, warm=0)
        async with pool.sandbox():
            pass
        assert backend.tries == 1
        async with pool.sandbox():
            pass
        assert backend.tries == 3, "the second, and the first again"
        await pool.close()

    asyncio.run(whole())

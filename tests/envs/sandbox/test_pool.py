"""Warm sandboxes, leases and the reaper: what is handed out, what is left after any ending."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sandboxrl.data.errors import InputError
from sandboxrl.envs.sandbox.docker import Docker
from sandboxrl.envs.sandbox.host.owner import owner_is_dead, owner_of
from sandboxrl.envs.sandbox.pool import Pool, open_backend
from sandboxrl.envs.sandbox.protocol import BackendUnavailable, Limits, SandboxConfig, SandboxDied
from tests.envs.sandbox.docker.daemon import containers_of


def in_pool(machine, body, warm=2, **changes):
    """`body(pool)` with a pool over the machine's real backend."""

    async def whole():
        pool = Pool(open_backend(machine.config(**changes)), warm=warm)
        try:
            return await body(pool)
        finally:
            await pool.close()

    return machine.call(lambda: asyncio.run(whole()))


def test_each_sandbox_is_handed_out_once(machine):
    async def body(pool):
        await pool.fill()
        seen = set()
        for _ in range(4):
            async with pool.sandbox() as box:
                assert (await box.exec("ls -A; touch used")).stdout == b""
                seen.add(box.id)
            assert not box.alive
        assert len(seen) == 4

    in_pool(machine, body)


def test_many_at_once_without_warm_ones(machine):
    async def one(pool, n):
        async with pool.sandbox() as box:
            return (await box.exec(f"echo {n}")).stdout

    async def body(pool):
        assert await asyncio.gather(*(one(pool, n) for n in range(12))) == [b"%d\n" % n for n in range(12)]

    in_pool(machine, body, warm=0)


def test_a_sandbox_is_closed_whatever_its_user_does(machine):
    async def body(pool):
        with pytest.raises(ZeroDivisionError):
            async with pool.sandbox() as raised:
                raise ZeroDivisionError

        async def stay():
            async with pool.sandbox() as box:
                kept.append(box)
                await box.exec("sleep 60")

        kept = []
        user = asyncio.create_task(stay())
        while not kept:
            await asyncio.sleep(0.01)
        user.cancel()
        with pytest.raises(asyncio.CancelledError):
            await user
        assert not raised.alive and not kept[0].alive

    in_pool(machine, body)


def test_a_waiter_that_leaves_costs_no_sandbox(machine):
    async def body(pool):
        async def use():
            async with pool.sandbox() as box:
                await box.exec("true")

        users = [asyncio.create_task(use()) for _ in range(6)]
        await asyncio.sleep(0.02)
        for user in users[:5]:
            user.cancel()
        await asyncio.gather(*users[:5], return_exceptions=True)
        await users[5]
        async with pool.sandbox() as box:
            assert (await box.exec("echo on")).stdout == b"on\n"

    before = left_of(os.getpid())
    in_pool(machine, body, warm=1)
    assert left_of(os.getpid()).keys() <= before.keys()


class Remembering:
    """A backend that remembers what it started."""

    def __init__(self, backend):
        self.name, self.close, self.started = backend.name, backend.close, []
        self._backend = backend

    async def start(self, image=""):
        self.started.append(await self._backend.start(image))
        return self.started[-1]


def test_a_warm_sandbox_that_died_is_not_handed_out(machine):
    async def body(backend):
        remembering = Remembering(backend)
        pool = Pool(remembering, warm=2)
        await pool.fill()
        for box in remembering.started:
            await box.close()
        async with pool.sandbox() as box:
            assert (await box.exec("echo on")).stdout == b"on\n"
        await pool.close()

    machine.run_with_backend(body)


class Broken:
    """A backend whose machine is out of order."""

    name = "broken"

    def __init__(self) -> None:
        self.starts = 0

    async def start(self, image: str = ""):
        self.starts += 1
        raise SandboxDied("out of order")

    async def close(self) -> None:
        return


def test_a_failing_backend_is_reported_and_not_hammered():
    async def body():
        backend = Broken()
        pool = Pool(backend, warm=4)
        for _ in range(3):
            with pytest.raises(SandboxDied, match="out of order"):
                async with pool.sandbox():
                    pass
        await pool.fill()
        assert backend.starts <= 3 * 5 + 4
        await pool.close()
        with pytest.raises(RuntimeError):
            async with pool.sandbox():
                pass

    asyncio.run(body())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backend": "bubblewarp"}, "did you mean 'bubblewrap'"),
        ({"network": "egres"}, "did you mean 'egress'"),
        ({"backend": "docker", "socket": "/nowhere/docker.sock"}, "start one with"),
        ({"backend": "bubblewrap", "rootfs": "/nowhere"}, "rootfs"),
        ({"limits": Limits(memory_bytes=1 << 28)}, "memory_bytes"),
    ],
)
def test_a_wrong_sandbox_is_one_clear_line(changes, message):
    with pytest.raises(InputError, match=message):
        open_backend(SandboxConfig(**changes))


def test_an_image_that_is_not_there(machine):
    async def body(pool):
        with pytest.raises(BackendUnavailable, match="image"):
            async with pool.sandbox(image="sandboxrl/nowhere:never"):
                pass

    in_pool(machine, body, warm=0)


OWNER = """
import asyncio, sys
sys.path.insert(0, {root!r})
from sandboxrl.envs.sandbox.pool import open_backend
from sandboxrl.envs.sandbox.protocol import SandboxConfig

async def hold():
    config = SandboxConfig(backend={backend!r}, image={image!r}, socket={socket!r}, runtime={runtime!r})
    backend = open_backend(config)
    boxes = [await backend.start() for _ in range({count})]
    for box in boxes:
        await box.exec("setsid sleep 3600 >/dev/null 2>&1 &")
    print("held", flush=True)
    await asyncio.sleep(3600)

asyncio.run(hold())
"""


def left_of(pid: int) -> dict[int, str]:
    """Descendants of a process, by pid with their start time, so that a recycled pid is not taken for one."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if fields[0] != "Z":
                    parents[int(entry.name)] = (int(fields[1]), fields[19])
    found = {}
    for candidate, (_, started) in parents.items():
        ancestor = candidate
        while ancestor in parents:
            ancestor = parents[ancestor][0]
            if ancestor == pid:
                found[candidate] = started
                break
    return found


def still_there(processes: dict[int, str]) -> list[int]:
    alive = []
    for pid, started in processes.items():
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            if fields[19] == started and fields[0] != "Z":
                alive.append(pid)
    return alive


def start_owner(machine, count):
    """A process that holds `count` sandboxes, each with a process that wants to survive."""
    root = str(Path(__file__).parents[3])
    config = machine.config()
    program = OWNER.format(root=root, count=count, **vars(config))
    owner = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert owner.stdout is not None and owner.stdout.readline() == b"held\n"
    return owner


@pytest.mark.parametrize("count", [4])
def test_a_killed_owner_leaves_nothing(machine, count):
    if machine.drops:
        pytest.skip("the owner's uid changes nothing: the lease is a socket")

    async def body(neighbour):
        owner = start_owner(machine, count)
        inside = left_of(owner.pid)
        label = owner_of(owner.pid)
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        killed = time.monotonic()
        if machine.backend == "bubblewrap":
            assert len(inside) >= 2 * count  # PID 1 and the sleeper of each
            while still_there(inside) and time.monotonic() - killed < 1:
                await asyncio.sleep(0.01)
            assert not still_there(inside)
        else:
            while await asyncio.to_thread(containers_of, label) and time.monotonic() - killed < 5:
                await asyncio.sleep(0.05)
            assert not await asyncio.to_thread(containers_of, label)
        assert (await neighbour.exec("echo untouched")).stdout == b"untouched\n"

    machine.run(body)


@pytest.mark.docker
@pytest.mark.alone  # every other backend that starts reaps too
def test_the_reaper_takes_only_what_has_no_owner(machine):
    if machine.backend != "docker":
        pytest.skip("bubblewrap leaves nothing to reap: its sandboxes die with their owner")

    async def body(mine):
        backend = Docker(machine.config())
        assert await backend.reap() == 0
        assert (await mine.exec("echo mine")).stdout == b"mine\n"
        owner = start_owner(machine, 1)
        (container,) = await asyncio.to_thread(containers_of, owner_of(owner.pid))
        label = owner_of(owner.pid)
        await asyncio.to_thread(container.pause)  # a paused one cannot notice the lease
        assert await backend.reap() == 0, "its owner lives"
        owner.kill()
        owner.wait()
        await asyncio.sleep(1)
        assert await asyncio.to_thread(containers_of, label) == [container]
        assert await backend.reap() == 1
        assert await asyncio.to_thread(containers_of, label) == []
        assert (await mine.exec("echo mine")).stdout == b"mine\n"

    machine.run(body)


def test_an_owner_is_dead_only_when_that_is_certain():
    mine = owner_of(os.getpid())
    boot, namespace, pid, started = mine.split(":")
    assert not owner_is_dead(mine)
    assert owner_is_dead(f"{boot}:{namespace}:{pid}:1"), "a recycled pid"
    assert owner_is_dead(f"another-boot:{namespace}:{pid}:{started}")
    assert not owner_is_dead(f"{boot}:1:{pid}:1"), "another pid namespace cannot be seen from here"
    for unknown in ("", "x", "1:2:3", f"{boot}:{namespace}:notapid:1"):
        assert not owner_is_dead(unknown)
    gone = subprocess.Popen(["sleep", "60"])
    label = owner_of(gone.pid)
    assert not owner_is_dead(label)
    gone.kill()
    gone.wait()
    assert owner_is_dead(label)


def holdings() -> dict[str, int]:
    temporary = Path(os.environ.get("TMPDIR", "/tmp")) / f"sandboxrl-{os.getuid()}"
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "processes": len(left_of(os.getpid())),
        "mounts": len(Path("/proc/self/mountinfo").read_text().splitlines()),
        "folders": len(list(temporary.iterdir())) if temporary.exists() else 0,
    }


@pytest.mark.alone  # mounts are counted on the whole machine
def test_nothing_leaks(machine):
    async def body(pool):
        async def cycle():
            async with pool.sandbox() as box:
                await box.exec("echo hi; sleep 100 &")

        await cycle()
        before = holdings()
        for _ in range(3):
            await asyncio.gather(*(cycle() for _ in range(8)))
        assert holdings() == before

    in_pool(machine, body, warm=0)

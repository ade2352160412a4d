"""Files of a sandbox, kept and made again: what comes along, what cannot be tricked, what is left."""

import contextlib
import os
import pickle

import pytest

from sandboxrl.envs.sandbox.inside.folders import entry
from sandboxrl.envs.sandbox.protocol import FileRefused, Limits
from sandboxrl.envs.sandbox.snapshot import Snapshot
from tests.envs.sandbox.test_carry import MAKE, shown

SPARSE = "truncate -s 900M holes; printf x | dd of=holes bs=1 seek=800000000 conv=notrunc 2>/dev/null; sync"
FILE = entry(b"f", b"testbed/a", 0, 0, 0, b"data")
DEEP = "import os\nfor i in range(1500): os.mkdir('d'); os.chdir('d')\nopen('f', 'w').write('x')"


def held() -> int:
    """Memory files of snapshots in this process."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found += os.readlink(f"/proc/self/fd/{name}").startswith("/memfd:snapshot")
    return found


def test_a_snapshot_can_be_restored_many_times(machine):
    async def body(source, *targets):
        assert (await source.exec(MAKE + SPARSE)).exit_code == 0
        before = await shown(source)
        with await source.snapshot() as saved:
            assert held() == 1 and saved.size < 20 << 20 and saved.left_out() == []
            with pickle.loads(pickle.dumps(saved)) as travelled:
                await source.exec("rm -rf a; echo more > more; sleep 333 >/dev/null 2>&1 &")
                for box, given in ((source, saved), (targets[0], travelled), (targets[0], saved)):
                    await box.restore(given)
                    assert await shown(box) == before
        assert (await source.exec("pgrep sleep; stat -c '%s %b' holes")).stdout.startswith(b"943718400 ")
        assert held() == 0

    machine.run(body, boxes=2)


def test_forks_go_their_own_way(machine):
    async def body(source):
        assert (await source.exec(MAKE + "echo 1 > /tmp/one; echo 2 > ~/two")).exit_code == 0
        forks = await source.fork(2)
        try:
            first, second = forks
            assert await shown(first) == await shown(source)
            assert (await first.exec("cat /tmp/one ~/two; rm -rf ./* ./.[!.]*")).stdout == b"1\n2\n"
            assert await shown(second) == await shown(source)
        finally:
            for fork in forks:
                await fork.close()

    machine.run(body)


def test_it_is_of_one_moment_and_nobody_notices(machine):
    """Of two counters the second follows the first, whoever looks; what was stopped by its user stays so."""
    count = "i=0; while :; do i=$((i+1)); echo $i > a.new; mv a.new a; echo $i > b.new; mv b.new b; done"

    async def body(source, target):
        await source.exec(
            f"({count}) >/dev/null 2>&1 & setsid bash -c 'kill -STOP $$; : 77' >/dev/null 2>&1 & sleep 0.1"
        )
        for _ in range(5):
            with await source.snapshot() as saved:
                await target.restore(saved)
            first, second = int(await target.read("a")), int(await target.read("b"))
            assert 0 <= first - second <= 1
        seen = await source.exec(
            "cp a before; sleep 0.1; cmp -s a before || echo counts; ps -e -o state=,args= | grep ': 7[7]'"
        )
        assert seen.stdout.startswith(b"counts\n") and b"T bash" in seen.stdout

    machine.run(body, boxes=2)


def test_what_is_not_in_it_is_listed(machine):
    async def body(source, target):
        await source.exec(f'mkfifo pipe; python3 -c "{DEEP}"; echo x > good')
        with await source.snapshot() as saved:
            left = dict(saved.left_out())
            assert left["/testbed/pipe"] == "not a regular file" and "too deep" in left.values()
            await target.exec(f'python3 -c "{DEEP}"; mkdir shut; touch shut/x; chmod 0 shut')
            await target.restore(saved)
        assert (await target.exec("ls -A")).stdout == b"d\ngood\n"

    machine.run(body, boxes=2)


def test_a_sandbox_without_room_refuses_and_goes_on(machine):
    async def body(source, target):
        await source.exec("mkdir w; head -c 40M /dev/urandom > w/big")
        await target.exec("head -c 40M /dev/zero > mine")
        with await source.snapshot(["/testbed/w"]) as saved:
            with pytest.raises(FileRefused, match="big"):
                await target.restore(saved)
            await target.exec("rm mine")
            await target.restore(saved)
        assert len(await target.read("w/big", 64 << 20)) == 40 << 20
        with pytest.raises(FileRefused, match="more than"):
            await source.snapshot(max_bytes=10 << 20)
        assert (await source.exec("echo alive")).stdout == b"alive\n"

    if machine.backend == "docker":
        pytest.skip("the image under test keeps /testbed in its layer, which is watched and not bounded at once")
    machine.run(body, boxes=2, limits=Limits(disk_bytes=64 << 20))


@pytest.mark.parametrize("plant", ["ln -s /etc w", "echo > w", "true"])
def test_the_folder_itself_may_be_no_link(machine, plant):
    async def body(box):
        await box.exec(plant)
        with pytest.raises(FileRefused):
            await box.snapshot(["/testbed/w"])

    machine.run(body)


def test_records_of_a_stranger_stay_in_the_folders(machine):
    async def body(box):
        link = entry(b"l", b"testbed/up", 0, 0, 0, b"/tmp")
        for name in (b"tmp/planted", b"testbed/../tmp/planted", b"testbed/up/planted", b"/testbed/planted", b""):
            with Snapshot.of(["/testbed"], link + entry(b"f", name, 0o644, 0, 0, b"planted")) as forged:
                with pytest.raises(FileRefused):
                    await box.restore(forged)
            assert (await box.exec("find / -name planted 2>/dev/null")).stdout == b"", name

    machine.run(body)


@pytest.mark.parametrize("data", [b"x", b"f" * 100, FILE[:-1], FILE + b"m"], ids=range(4))
def test_what_are_no_records_is_refused(machine, data):
    async def body(box):
        with Snapshot.of(["/testbed"], data) as broken, pytest.raises(FileRefused, match="no records"):
            await box.restore(broken)

    machine.run(body)

"""Folders that travel from one sandbox to another as data."""

import pytest

from sandboxrl.envs.sandbox.carry import carry, entries
from sandboxrl.envs.sandbox.inside.folders import entry
from sandboxrl.envs.sandbox.protocol import FileRefused

MAKE = r"""
mkdir -p a/b/c empty; echo one > a/1; printf 'x\n' > a/b/run; chmod 755 a/b/run; chmod 444 a/1
ln -s ../1 a/b/link; ln -s /etc/passwd a/out; ln -s nowhere dangling
head -c 9000000 /dev/urandom > big; chmod 400 big; : > nothing; touch -d '2001-02-03 04:05:06.789' a/1 a/b
printf 1 > $'odd\n\xff name'; printf 2 > -rf; chmod 711 a
"""
SHOW = r"""
export LC_ALL=C
find . -mindepth 1 \( -type l -printf 'l %P %l\n' \) -o \( -type d -printf 'd %P %m\n' \) \
    -o -printf 'f %P %m %s %T@\n' | sort; find . -type f -print0 | LC_ALL=C sort -z | xargs -0 md5sum; stat -c %Y a/b"""


async def shown(box) -> bytes:
    result = await box.exec(SHOW)
    assert result.exit_code == 0 and len(result.stdout) > 300, result
    return result.stdout


def test_a_folder_arrives_as_it_was(machine):
    async def body(source, target):
        assert (await source.exec(MAKE)).exit_code == 0
        await target.write({"there/before": b"gone afterwards"})
        assert await carry(source, "/testbed", target) == []
        assert await shown(source) == await shown(target)

    machine.run(body, boxes=2)


def test_what_cannot_travel_is_left_out_and_listed(machine):
    deep = "import os\nfor i in range(1500): os.mkdir('d'); os.chdir('d')\nopen('f', 'w').write('x')"
    long = "import os\nfor i in range(30): os.mkdir('l' * 200); os.chdir('l' * 200)\nopen('f', 'w').write('x')"
    sock = "import socket; socket.socket(socket.AF_UNIX).bind('sock')"

    async def body(source, target):
        await source.exec(f'mkfifo pipe; python3 -c "{deep}"; python3 -c "{long}"; python3 -c "{sock}"; echo x > good')
        left = dict(await carry(source, "/testbed", target))
        assert {"pipe", "sock"} <= set(left) and "too deep" in left.values() and "its name is too long" in left.values()
        assert await target.read("good") == b"x\n"

    machine.run(body, boxes=2)


@pytest.mark.parametrize(
    "plant", ["rm -rf /testbed/w; ln -s /etc /testbed/w", "rm -rf /testbed/w; echo > /testbed/w", "rm -rf /testbed/w"]
)
def test_the_folder_itself_may_be_no_link(machine, plant):
    async def body(box, target):
        await box.exec(plant)
        with pytest.raises(FileRefused):
            await carry(box, "/testbed/w", target)

    machine.run(body, boxes=2)


def test_an_oversized_folder_is_refused_and_what_grows_ends(machine):
    async def body(source, target):
        await source.exec("head -c 20M /dev/zero > big; (while :; do echo x >> grows; done) & sleep 0.2")
        with pytest.raises(FileRefused, match="more than"):
            await carry(source, "/testbed", target, max_bytes=10 << 20)
        assert await carry(source, "/testbed", target, max_bytes=100 << 20) == []
        assert len(await target.read("big", 20 << 20)) == 20 << 20

    machine.run(body, boxes=2)


def test_records_of_a_stranger_stay_below_the_folder(machine):
    async def body(box):
        await box.exec("ln -s /tmp up")
        for name in (
            b"../planted",
            b"/tmp/planted",
            b"./planted",
            b"a//planted",
            b"up/planted",
            b"",
            b"..",
            b"f/planted",
        ):
            forged = entry(b"f", b"f", 0o644, 0, 0, b"here") + entry(b"f", name, 0o644, 0, 0, b"planted")
            with pytest.raises(FileRefused):
                await box.unpack("/testbed", forged)
            assert (await box.exec("cat f; rm f; find / -name planted 2>/dev/null")).stdout == b"here", name
        with pytest.raises(FileRefused):
            await box.unpack("/testbed/up", entry(b"f", b"planted", 0o644, 0, 0, b"x"))

    machine.run(body)


def test_records_that_are_cut_off_are_refused():
    with pytest.raises(ValueError, match="cut off"):
        list(entries(b"f123"))


def test_a_command_of_ours_sees_nothing_of_a_shell_that_persists(machine):
    async def body(box):
        await box.shell("cd /tmp; echo 'echo bad' > e; export BASH_ENV=/tmp/e LD_PRELOAD=/tmp/e PATH=/tmp; export -f x")
        result = await box.exec("pwd; env; type -p env")
        assert result.stdout.startswith(b"/testbed\n") and result.stdout.endswith(b"/usr/bin/env\n")
        assert b"bad" not in result.stdout and b"/tmp" not in result.stdout

    machine.run(body)

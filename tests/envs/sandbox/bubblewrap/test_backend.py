"""What only bubblewrap has: a root filesystem folder, an allow-list of the host, and no uid 0 anywhere."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from sandboxrl.data.errors import InputError
from sandboxrl.envs.sandbox.bubblewrap.backend import FIRST_UID, NUM_UIDS
from sandboxrl.envs.sandbox.bubblewrap.cgroups import PREFIX
from sandboxrl.envs.sandbox.host.owner import owner_of
from sandboxrl.envs.sandbox.pool import open_backend
from sandboxrl.envs.sandbox.protocol import SandboxConfig, SandboxDied
from tests.processes import children, control_groups

RESOLVERS = Path("/etc/resolv.conf")


@pytest.fixture
def bubblewrap(machine):
    if machine.backend != "bubblewrap":
        pytest.skip("bubblewrap only")
    return machine


def copy_program(program: str, root: Path) -> None:
    """A program and the libraries it is linked with."""
    said = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    needed = [word for word in said.split() if word.startswith("/")]
    for path in [program, *needed]:
        target = root / path[1:]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(os.path.realpath(path), target)


@pytest.fixture
def rootfs(tmp_path):
    """The smallest system: bash, Python and its library."""
    root = tmp_path / "root"
    for program in ("/bin/bash", "/usr/bin/python3"):
        copy_program(program, root)
    version = subprocess.run(
        ["/usr/bin/python3", "-c", "import sys; print(sys.prefix + '/lib/python%d.%d' % sys.version_info[:2])"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    library = root / version[1:]
    skipped = shutil.ignore_patterns("test", "tests", "idlelib", "lib2to3", "__pycache__", "config-*", "dist-packages")
    shutil.copytree(version, library, ignore=skipped, dirs_exist_ok=True)
    for extension in Path(version).glob("lib-dynload/_ctypes.*"):
        copy_program(str(extension), root)
    (root / "etc").mkdir(exist_ok=True)
    (root / "etc/origin").write_text("the folder\n")
    (root / "home/someone").mkdir(parents=True)
    for folder in (root, *root.parents):
        if Path(tempfile.gettempdir()) in folder.parents:
            folder.chmod(0o755)  # pytest's own are closed to other users
    return root


def test_a_root_filesystem_folder_is_the_root(bubblewrap, rootfs):
    async def body(box):
        result = await box.exec("echo $(< /etc/origin); echo x > /etc/y; echo x > /testbed/y; echo /home/*; type -p ls")
        assert result.stdout == b"the folder\n/home/user\n"
        assert b"Read-only" in result.stderr or b"denied" in result.stderr
        await box.write({"/home/user/a": b"1"})

    bubblewrap.run(body, rootfs=str(rootfs))
    assert not (rootfs / "etc/y").exists() and not (rootfs / "testbed").exists()


def test_files_that_would_be_hidden_are_an_error(bubblewrap, rootfs):
    (rootfs / "testbed").mkdir()
    (rootfs / "testbed/code.py").write_text("")
    with pytest.raises(InputError, match="testbed"):
        open_backend(SandboxConfig(rootfs=str(rootfs)))


def test_a_root_filesystem_folder_must_be_open_to_sandboxes(bubblewrap, rootfs):
    rootfs.parent.chmod(0o600)

    def refused():
        with pytest.raises(InputError, match=f"chmod o\\+x {rootfs.parent}"):
            open_backend(SandboxConfig(rootfs=str(rootfs)))

    bubblewrap.call(refused)


def test_a_root_filesystem_folder_needs_a_place_for_name_servers(bubblewrap, rootfs):
    with pytest.raises(InputError, match="touch .*/etc/resolv.conf"):
        open_backend(SandboxConfig(rootfs=str(rootfs), network="full"))
    (rootfs / "etc/resolv.conf").touch()

    async def body(box):
        return (await box.exec("echo $(< /etc/resolv.conf)")).stdout

    assert bubblewrap.run(body, rootfs=str(rootfs), network="full").split() == RESOLVERS.read_bytes().split()
    if os.geteuid() == 0 and not bubblewrap.drops and shutil.which("iptables"):
        assert b"nameserver " in bubblewrap.run(body, rootfs=str(rootfs), network="egress")


def uid_of_process(command_line: bytes) -> int | None:
    """The user id, as the host sees it, of the process with this command line."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if (path / "cmdline").read_bytes() == command_line:
                return path.stat().st_uid
        except OSError:
            continue
    return None


def test_nobody_is_root(bubblewrap):
    async def body(box):
        uid_map = (await box.exec("cat /proc/self/uid_map; id -u")).stdout.split()
        assert uid_map[0] != b"0" and uid_map[3] != b"0"
        await box.exec("sleep 5432 >/dev/null 2>&1 &")
        for _ in range(100):  # until the shell's child has become `sleep`
            outside = uid_of_process(b"sleep\x005432\x00")
            if outside is not None:
                break
            await asyncio.sleep(0.02)
        assert outside is not None and outside != 0
        return outside

    outside = bubblewrap.run(body)
    if os.geteuid() == 0 and not bubblewrap.drops:
        assert FIRST_UID <= outside < FIRST_UID + NUM_UIDS
        assert outside != bubblewrap.run(body), "each sandbox has a uid of its own"


def test_only_what_is_listed_of_the_host_is_there(bubblewrap):
    async def body(box):
        listed = (await box.exec("ls -A / /etc /home /home/user /var /run")).stdout.decode().split()
        assert "shadow" not in listed and "root" not in listed and "ssh" not in listed and "docker" not in listed
        assert {"usr", "etc", "testbed", "user"} <= set(listed)
        people = (await box.exec("cut -d: -f1 /etc/passwd")).stdout
        assert people == b"root\nuser\nnobody\n"

    bubblewrap.run(body)


def child_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text())


def test_a_dead_nursery_takes_its_sandboxes_along_and_is_made_anew(bubblewrap):
    async def body(backend):
        before = children()
        box = await backend.start()
        (around,) = children() - before
        os.kill(child_of(around), signal.SIGKILL)
        with pytest.raises(SandboxDied):
            await box.exec("sleep 9")
        await box.close()
        again = await backend.start()
        assert (await again.exec("echo there")).stdout == b"there\n"
        await again.close()

    bubblewrap.run_with_backend(body)


def test_a_backend_ends_what_it_started(bubblewrap):
    async def body(backend):
        before = children()
        box = await backend.start()
        assert children() - before
        await backend.close()
        assert not children() - before
        with pytest.raises(SandboxDied):
            await box.exec("true")
        await box.close()
        with pytest.raises(SandboxDied, match="closed"):
            await backend.start()

    bubblewrap.run_with_backend(body)


def test_more_can_be_asked_for_at_once_than_a_socket_holds(bubblewrap):
    async def body(backend):
        boxes = await asyncio.gather(*(backend.start() for _ in range(320)))
        said = await asyncio.gather(*(box.exec("echo $$") for box in boxes))
        assert {result.stdout for result in said} == {b"2\n"}
        await asyncio.gather(*(box.close() for box in boxes))

    bubblewrap.run_with_backend(body)


def groups_of_this_process() -> set[str]:
    return {path.name for path in control_groups(f"{PREFIX}{owner_of(os.getpid())}.*")}


def test_starts_that_nobody_waits_for_leave_nothing(bubblewrap):
    async def body(backend):
        before, groups = children(), groups_of_this_process()
        await (await backend.start()).close()
        (around,) = children() - before
        nursery = child_of(around)
        descriptors = len(os.listdir("/proc/self/fd"))
        for delay in range(30):
            starts = [asyncio.create_task(backend.start()) for _ in range(4)]
            await asyncio.sleep(delay / 2000)
            for start in starts:
                start.cancel()
            for done in await asyncio.gather(*starts, return_exceptions=True):
                if not isinstance(done, BaseException):
                    await done.close()
        for _ in range(200):
            forked = Path(f"/proc/{nursery}/task/{nursery}/children").read_text()
            if not forked:
                break
            await asyncio.sleep(0.01)
        assert not forked and len(os.listdir("/proc/self/fd")) == descriptors
        assert backend.said() == "no message"
        assert groups_of_this_process() <= groups

    bubblewrap.run_with_backend(body)


WATCH = """import ctypes
libc = ctypes.CDLL(None)
held = 0
while held < 100_000 and libc.inotify_init() >= 0:
    held += 1
print(held)
"""


def test_what_the_kernel_grants_a_user_is_not_shared(bubblewrap):
    if os.geteuid() != 0 or bubblewrap.drops:
        pytest.skip("an ordinary user has one budget for all")

    async def body(greedy, sibling):
        await greedy.write(
            {"watch.py": WATCH.encode() + b"open('held', 'w').write(str(held))\nimport time; time.sleep(60)"}
        )
        await sibling.write({"watch.py": WATCH.encode()})
        await greedy.exec("python3 watch.py >/dev/null 2>&1 & until [ -s held ]; do sleep 0.01; done")
        first = (await greedy.exec("cat held")).stdout
        assert int(first) == int((await sibling.exec("python3 watch.py")).stdout) > 0

    bubblewrap.run(body, boxes=2)


def test_no_sandbox_can_hold_up_another_at_a_file_they_share(bubblewrap):
    lease = "import fcntl; fcntl.fcntl(open('/etc/passwd'), fcntl.F_SETLEASE, fcntl.F_WRLCK)"

    async def body(box):
        result = await box.exec(f'python3 -c "{lease}"')
        assert result.exit_code == 1 and b"Operation not permitted" in result.stderr

    bubblewrap.run(body)


def test_root_of_a_container_may_be_weak(bubblewrap):
    """Without CAP_SYS_ADMIN root cannot mount; its sandboxes are then made as an ordinary user's."""
    if os.geteuid() != 0 or bubblewrap.drops or not shutil.which("setpriv"):
        pytest.skip("needs root and setpriv")
    program = """if True:
        import asyncio
        from sandboxrl.envs.sandbox.pool import open_backend
        from sandboxrl.envs.sandbox.protocol import SandboxConfig

        async def main():
            backend = open_backend(SandboxConfig())
            box = await backend.start()
            print((await box.exec("id -u; grep Eff /proc/self/status")).stdout.decode())
            await box.close()
            await backend.close()

        asyncio.run(main())
    """
    words = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-all", "--", sys.executable, "-c", program]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["1000", "CapEff:", "0" * 16], done.stderr


PLANTED = """#!/bin/bash
touch /oldroot{outside} {outside}
exit 1
"""


def test_a_strangers_root_filesystem_folder_has_no_power(bubblewrap, rootfs, tmp_path):
    """Its interpreter is never run and no link of it is followed on the way in, wherever links may be."""
    outside = tmp_path / "planted"
    tmp_path.chmod(0o777)
    python = rootfs / "usr/bin/python3"
    python.unlink()
    python.write_text(PLANTED.format(outside=outside))
    python.chmod(0o755)
    shutil.rmtree(rootfs / "home")
    for name in ("tmp", "run", "home", "dev", "proc", "sys", "testbed", "oldroot"):
        (rootfs / name).symlink_to(f"/oldroot{tmp_path}")
    (rootfs / "escape").symlink_to("../../../../../../etc")
    (rootfs / "odd\nname").mkdir()
    (rootfs / "z \udcff").mkdir()
    (rootfs / "var").mkdir()
    (rootfs / "var/tmp").symlink_to(f"/oldroot{tmp_path}")
    os.mkfifo(rootfs / "pipe")
    shutil.rmtree(rootfs / "etc")
    (rootfs / "etc").symlink_to("/usr")

    async def body(box):
        result = await box.exec("echo $$; echo here > /tmp/x; echo /*")
        assert result.stdout.startswith(b"2\n/bin /dev /escape /etc") and b" /tmp " in result.stdout, result
        await box.write({"/testbed/a": b"1"})
        assert await box.read("/testbed/a") == b"1"

    before = {path: path.lstat().st_mtime_ns for path in tmp_path.iterdir()}
    bubblewrap.run(body, rootfs=str(rootfs))
    assert not outside.exists() and {path: path.lstat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_a_root_filesystem_folder_needs_no_python(bubblewrap, rootfs):
    (rootfs / "usr/bin/python3").unlink()
    shutil.rmtree(next((rootfs / "usr/lib").glob("python3*")))

    async def body(box):
        await box.write({"a": b"x" * 1000})
        assert (await box.exec(f"echo {'x' * 200_000}; echo $(< a)")).stdout_bytes == 201_002

    bubblewrap.run(body, rootfs=str(rootfs))


def test_certificates_can_be_read(bubblewrap):
    async def body(box):
        result = await box.exec("ls /etc/ssl/certs | wc -l; ls -ld /etc /etc/ssl")
        assert int(result.stdout.split()[0]) == len(os.listdir("/etc/ssl/certs"))
        count = "import ssl; print(len(ssl.create_default_context().get_ca_certs()))"
        assert int((await box.exec(f"python3 -c '{count}'")).stdout) > 10

    if len(os.listdir("/etc/ssl/certs")) < 10:
        pytest.skip("this machine has no certificates")
    bubblewrap.run(body)

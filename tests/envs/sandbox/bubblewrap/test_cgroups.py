"""Control groups of version 2, on machines that have them: where a sandbox's group is made, and that it is limited."""

import asyncio
import os
from pathlib import Path

import pytest

from sandboxrl.envs.sandbox.bubblewrap.cgroups import MEMBERS, TOP, Cgroups
from sandboxrl.envs.sandbox.pool import open_backend
from sandboxrl.envs.sandbox.protocol import Limits, SandboxConfig
from tests.envs.conftest import ORDINARY_UID, as_ordinary_user, in_a_child
from tests.processes import control_groups

ROOT = Path("/sys/fs/cgroup")


@pytest.fixture
def group():
    """A group of version 2, as a login or a service has."""
    if not (ROOT / "cgroup.controllers").is_file():
        pytest.skip("control groups of version 1")
    if os.geteuid() != 0:
        pytest.skip("needs root to make a group")
    group = ROOT / f"test-{os.getpid()}"
    try:
        (ROOT / "cgroup.subtree_control").write_text("+memory +pids +cpu")
        group.mkdir()
    except OSError as error:
        pytest.skip(f"this process may not make groups: {error}")
    yield group
    for folder in (*group.glob("*/"), group):
        folder.rmdir()


def within(group, function):
    """`function()` in a child that is a member of the group."""

    def member():
        (group / "cgroup.procs").write_text(str(os.getpid()))
        return function()

    return in_a_child(member)


def limits_of_a_sandbox():
    """(the group it is in, its limits)"""

    async def body():
        backend = open_backend(SandboxConfig(limits=Limits(processes=99, cpus=0.5)))
        box = await backend.start()
        try:
            assert backend.describe_limits()["cpus"] == "control group"
            assert (await box.exec("echo $((6 * 7))")).stdout == b"42\n"
            (made,) = control_groups(f"sandboxrl.*:{os.getpid()}:*.{box.id}", str(ROOT))
            assert (made / "cgroup.procs").read_text().split(), "PID 1 is in it"
            return made.parent, [(made / name).read_text().strip() for name in ("memory.max", "pids.max", "cpu.max")]
        finally:
            await box.close()
            await backend.close()
            assert not control_groups(f"sandboxrl.*:{os.getpid()}:*", str(ROOT))

    return asyncio.run(body())


EXPECTED = [str(1 << 30), "100", "50000 100000"]


def test_root_with_a_login_s_group_uses_one_of_the_machine(group):
    assert within(group, limits_of_a_sandbox) == (ROOT / TOP, EXPECTED)


def test_a_delegated_group_serves_an_ordinary_user(group):
    os.setxattr(group, "user.delegate", b"1")
    for path in (group, *(group / f"cgroup.{name}" for name in ("procs", "subtree_control", "threads"))):
        os.chown(path, ORDINARY_UID, ORDINARY_UID)

    def twice():
        return as_ordinary_user(lambda: [limits_of_a_sandbox(), limits_of_a_sandbox()])

    assert within(group, twice) == [(group, EXPECTED)] * 2
    assert (group / MEMBERS).is_dir()


def test_an_ordinary_user_without_a_delegated_group_has_none(group):
    assert within(group, lambda: as_ordinary_user(lambda: Cgroups.find(Limits()))) is None

"""What a sandbox's programs are told of it: cores, memory, how packages are installed. Alike in every backend."""

import os

import pytest

from sandboxrl.envs.sandbox.protocol import Limits

PACKAGE = {
    "/tmp/p/tasktool/__init__.py": b"def main(): print(6 * 7)",
    "/tmp/p/pyproject.toml": b"""[project]
name = "tasktool"
version = "1"
[project.scripts]
tasktool = "tasktool:main"
""",
}
INSTALL = "python3 -m pip install -q --no-index --no-build-isolation /tmp/p && tasktool && python3 -c 'import tasktool'"


@pytest.mark.parametrize("cpus", [0.5, 1.0, 2.0, 64.0])
def test_programs_are_told_the_share_they_have(machine, cpus):
    limits = Limits(cpus=cpus)

    async def body(box):
        told = await box.exec("nproc; echo $OMP_NUM_THREADS; free -b | awk '/Mem/ {print $2} /Swap/ {print $2}'")
        cores = max(1, min(int(cpus), os.cpu_count()))
        assert told.stdout.decode().split() == [str(cores), str(cores), str(limits.memory_bytes), "0"]
        assert (await box.exec("echo 1 > /proc/meminfo")).exit_code != 0

    machine.run(body, limits=limits)


def test_pip_installs_what_can_then_be_used(machine):
    async def body(box):
        await box.write(PACKAGE)
        done = await box.exec(INSTALL, timeout_s=100)
        assert (done.exit_code, done.stdout, done.stderr) == (0, b"42\n", b"")

    machine.run(body)

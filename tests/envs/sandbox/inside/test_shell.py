"""The shell that persists: what it carries on, and that nothing written into it reaches PID 1 or a later call."""

import pytest


def test_a_large_environment_is_said_and_loses_nothing(machine):
    async def body(box):
        await box.exec("export KEEP=1")
        large = "B=$(head -c 120000 /dev/zero | tr '\\0' a); for i in $(seq 20); do export V$i=$B; done"
        assert b"too much is exported" in (await box.exec(large)).stderr
        assert (await box.exec("echo $KEEP")).stdout == b"1\n"

    machine.run(body, persist_shell=True)


def test_variables_of_a_call_are_that_calls(machine):
    async def body(box):
        await box.exec("true", env={"TOKEN": "secret"})
        assert (await box.exec("echo [$TOKEN]")).stdout == b"[]\n"
        await box.exec("export TOKEN=mine")
        await box.exec("true", env={"TOKEN": "secret"})
        assert (await box.exec("echo [$TOKEN]")).stdout == b"[mine]\n"
        await box.exec("export TOKEN=changed", env={"TOKEN": "secret"})
        assert (await box.exec("echo [$TOKEN]")).stdout == b"[changed]\n"

    machine.run(body, persist_shell=True)


@pytest.mark.parametrize(
    "forged",
    [
        r"/testbed\0=x=y\0.\0",
        r"/testbed\0=\0.\0",
        r"\0",
        r"\0\0\0\0.\0",
        r"/nowhere\0A=1\0.\0",
        r"relative\0A\0.\0",
        "x" * 99,
    ],
)
def test_what_is_written_to_the_states_descriptor_harms_nobody(machine, forged):
    async def body(box):
        await box.exec(f"exec 3>&1; printf '{forged}' >&250; kill -KILL $$")
        await box.exec(f"printf '{forged}' >&250; head -c 3000000 /dev/zero >&250")
        result = await box.exec("echo alive")
        assert result.stdout == b"alive\n"

    machine.run(body, persist_shell=True)

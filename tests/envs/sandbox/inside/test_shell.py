"""The shell that persists: what a policy does to it ends in an answer, within its limits, and reaches nothing else."""

import asyncio
import time

import pytest

from sandboxrl.envs.sandbox.protocol import FileRefused


async def goes_on(box) -> None:
    """Whatever has happened: within a few calls, each of which is answered, there is a shell that works."""
    for _ in range(20):
        result = await box.shell("echo alive", timeout_s=1)
        if result.state == "busy":
            result = await box.shell("", is_input=True, timeout_s=1)
        elif b"alive\n" in result.output:
            break
        elif result.state == "done":
            await box.shell("\x04", is_input=True)
    else:
        raise AssertionError(result)
    assert (await box.exec("echo alive | cat")).stdout == b"alive\n"


@pytest.mark.parametrize(
    "attack",
    [
        "kill -KILL $$",
        "kill -STOP $$",
        "exec sleep 100",
        "exec 0<&- 1>&- 2>&- 255>&-",
        "exec >/dev/null 2>&1; trap '' INT TERM QUIT HUP; while :; do :; done",
        "(sleep 0.1; kill -KILL $$) &",
        "head -c 100000000 /dev/zero",
        "yes $'\\e]' | head -c 3000000",
        "(while :; do echo flood; done) &",
        "(while :; do head -c 5000 /dev/urandom > /dev/fd/250; done) & sleep 0.1",
        "printf '\\e]%s7\\a' 0123456789abcdef; printf '\\e]'",
        'p=${PS0:0:18}; printf "$p+\\a${p}9\\a${p}99999999999999999999\\a${p}x\\a"; sleep 0.2; printf "$p"',
        "stty raw -isig; sleep 100",
        "stty eof a intr b; kill -KILL 0",
        "set -e; false",
        "set -u -x; unset PROMPT_COMMAND PS0; echo $nothing",
        "printf() { :; }; builtin() { :; }; .() { exit; }; alias builtin=false",
        "ulimit -n 3; ulimit -u 1; ulimit -f 0",
        "python3 -c 'import os; [os.openpty() for _ in range(500)]'; (sleep 60 > /dev/tty &)",
        "f() { f | f & }; f",
        "printf '\\0\\0\\0' > /dev/fd/250; exec 250>&-",
        "mkfifo x; read < x",
        "exit 3",
    ],
)
def test_a_policy_misuses_its_shell(machine, attack):
    async def body(box):
        started = time.monotonic()
        result = await box.shell(attack, timeout_s=1)
        assert time.monotonic() - started < 60
        assert len(result.output) <= 64 << 10 and result.output_bytes >= len(result.output) - 100
        await goes_on(box)

    machine.run(body)


def test_a_shell_that_ended_meanwhile_is_said_to_be_new(machine):
    async def body(box):
        await box.shell("here=1; (sleep 0.1; kill -KILL $$) &")
        await box.exec("sleep 0.3")
        result = await box.shell("echo [$here]")
        assert result.output.endswith(b"sandbox: the shell had ended; this is a new one\n[]\n")

    machine.run(body)


def test_the_time_of_a_command_is_that_of_all_calls_together_and_spares_what_is_older(machine):
    async def body(box):
        await box.shell("sleep 555 & disown")
        server = await box.exec("sleep 444 >/dev/null 2>&1 & echo")
        assert server.exit_code == 0
        first = await box.shell("cat; (setsid sleep 333 &); sleep 333", timeout_s=1, wait_s=0.6)
        assert first.state in ("waiting", "running") and not first.timed_out
        second = await box.shell("\x04", is_input=True, timeout_s=1, wait_s=30)
        assert second.timed_out and second.duration_s < 10
        left = await box.exec("ps -e -o args | grep -E '^sleep (333|444|555)' | sort")
        assert left.stdout == b"sleep 444\nsleep 555\n"
        assert (await box.shell("echo same shell: $(jobs | wc -l)")).state == "done"

    machine.run(body)


def test_the_time_limit_of_another_command_spares_the_shell(machine):
    async def body(box):
        typed, limited = await asyncio.gather(
            box.shell("sleep 0.2; (sleep 1; echo inner) & wait; echo outer"), box.exec("sleep 60", timeout_s=0.5)
        )
        assert limited.timed_out and typed.output.endswith(b"outer\n") and b"inner\n" in typed.output

    machine.run(body)


def test_keys_and_programs_that_take_them_one_by_one(machine):
    async def body(box):
        asked = await box.shell("python3 -q", wait_s=20)
        assert asked.output.endswith(b">>> ")
        assert (await box.shell("6 * 7\n", is_input=True, wait_s=5)).output == b"42\n>>> "
        assert (await box.shell("\x04", is_input=True)).state == "done"
        await box.shell("sleep 60", wait_s=0.2)
        assert b"Stopped" in (await box.shell("\x1a", is_input=True)).output
        assert (await box.shell("kill %%; wait; jobs; echo done")).output.endswith(b"done\n")
        with pytest.raises(FileRefused, match="at most 4095"):
            await box.shell("cat", wait_s=0.2)
            await box.shell("x" * 5000 + "\n", is_input=True)

    machine.run(body)


def test_commands_of_any_length_and_lines_that_a_prompt_would_spoil(machine):
    async def body(box):
        assert (await box.shell(f"echo {'x' * 200_000} | wc -c")).output == b"200001\n"
        assert (await box.shell("cat <<E\na\n  b\nE\nfor i in 1 2; do\n  echo $i\ndone")).output == b"a\n  b\n1\n2\n"
        await box.shell("python3 -m venv --without-pip v; . v/bin/activate")
        assert (await box.shell("echo ${VIRTUAL_ENV##*/}")).output == b"v\n"
        bad = await box.shell("echo before\nif then")
        assert bad.exit_code == 2 and b"syntax error" in bad.output

    machine.run(body)

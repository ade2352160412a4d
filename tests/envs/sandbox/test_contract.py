"""What every backend promises (`sandboxrl.envs.sandbox.protocol.Sandbox`), on real sandboxes."""

import asyncio
import errno
import time

import pytest

from sandboxrl.envs.sandbox.protocol import ANSWER, FileRefused, Sandbox, SandboxDied


async def output(box: Sandbox, command: str, **options: object) -> bytes:
    result = await box.exec(command, **options)
    assert result.exit_code == 0, result
    return result.stdout


def test_a_command_says_what_it_did(machine):
    async def body(box):
        result = await box.exec("echo out; echo err >&2; exit 7")
        assert (result.exit_code, result.stdout, result.stderr) == (7, b"out\n", b"err\n")
        assert (result.stdout_bytes, result.stderr_bytes) == (4, 4)
        assert not result.timed_out and not result.background
        assert 0 < result.duration_s < 5
        killed = await box.exec("kill -KILL $$")
        assert killed.exit_code == -9 and not killed.timed_out

    machine.run(body)


def test_each_command_has_a_fresh_shell_in_the_working_directory(machine):
    async def body(box):
        assert await output(box, "pwd") == b"/testbed\n"
        await output(box, "cd /tmp; export SEEN=1; f() { :; }")
        assert await output(box, "pwd; echo [$SEEN]") == b"/testbed\n[]\n"
        assert await output(box, "pwd", cwd="/tmp") == b"/tmp\n"
        await output(box, "mkdir -p below")
        assert await output(box, "pwd", cwd="below") == b"/testbed/below\n"
        missing = await box.exec("echo no", cwd="/nowhere")
        assert missing.exit_code == 126 and missing.stdout == b"" and b"/nowhere" in missing.stderr

    machine.run(body)


def test_a_persistent_shell_keeps_directory_and_exported_variables(machine):
    async def body(box):
        await output(box, "mkdir -p 'a b'; cd 'a b'; export SEEN='two\nlines'; LOCAL=1")
        assert await output(box, 'pwd; echo "$SEEN$LOCAL"') == b"/testbed/a b\ntwo\nlines\n"
        left = await box.exec("cd ..; unset SEEN; exit 3")
        assert left.exit_code == 3
        assert await output(box, "pwd; echo [$SEEN]") == b"/testbed\n[]\n"
        await box.exec("cd /tmp; if then")  # a syntax error changes nothing
        assert await output(box, "pwd") == b"/testbed\n"
        await box.exec("cd /tmp; sleep 60", timeout_s=0.3)
        assert await output(box, "pwd") == b"/tmp\n", "as an interrupted shell leaves it"
        assert await output(box, "pwd", cwd="/var") == b"/var\n"
        await box.exec("mkdir gone; cd gone; rmdir ../gone")
        assert (await box.exec("echo still here")).stdout == b"still here\n"

    machine.run(body, persist_shell=True)


def test_variables_reach_the_command(machine):
    async def body(box):
        assert await output(box, 'printf %s "$A$B"', env={"A": "x y", "B": "=\n'é"}) == "x y=\n'é".encode()
        for bad in ({"": "1"}, {"A=B": "1"}, {"A": "\0"}):
            with pytest.raises(ValueError, match="environment variable"):
                await box.exec("true", env=bad)

    machine.run(body)


def test_a_timeout_keeps_the_partial_output_and_kills_the_tree(machine):
    hidden = "(setsid sleep 777 &); env -i setsid nohup sleep 777 >/dev/null 2>&1 & (sh -c 'sleep 777 & sleep 777' &);"

    async def body(box):
        await output(box, "sleep 555 >/dev/null 2>&1 &")
        start = time.monotonic()
        result = await box.exec(f"echo begun; trap '' TERM INT HUP; {hidden} while :; do sleep 1; done", timeout_s=0.5)
        assert result.timed_out and result.stdout == b"begun\n" and result.exit_code == -9
        assert time.monotonic() - start < 3
        assert await output(box, "ps -e -o args | grep -c '^sleep 777' || true") == b"0\n"
        assert await output(box, "ps -e -o args | grep -c '^sleep 555'") == b"1\n", "an earlier command's own process"
        polite = await box.exec("trap 'echo saved; exit 5' TERM; while :; do sleep 0.05; done", timeout_s=0.5)
        assert polite.timed_out and polite.exit_code == 5 and polite.stdout == b"saved\n", "TERM comes before KILL"

    machine.run(body)


def test_a_timeout_spares_other_commands_in_flight(machine):
    async def body(box):
        spared, timed_out = await asyncio.gather(
            box.exec("(sleep 1.2; echo inner) & wait; echo outer"), box.exec("sleep 60", timeout_s=0.3)
        )
        assert timed_out.timed_out
        assert spared.exit_code == 0 and spared.stdout == b"inner\nouter\n"

    machine.run(body)


def test_exit_code_124_is_not_a_timeout(machine):
    async def body(box):
        result = await box.exec("exit 124")
        assert result.exit_code == 124 and not result.timed_out

    machine.run(body)


@pytest.mark.parametrize("limit", [0, 1, 10, 1000, 65536])
def test_output_is_bounded_with_true_totals(machine, limit):
    async def body(box):
        result = await box.exec("seq 200000; seq 200000 >&2", max_bytes=limit)
        whole = b"".join(b"%d\n" % n for n in range(1, 200001))
        assert result.stdout_bytes == result.stderr_bytes == len(whole)
        for kept in (result.stdout, result.stderr):
            assert len(kept) <= limit
            if limit >= 1000:
                head, rest = kept.split(b"\n[... ", 1)
                dropped, tail = rest.split(b" bytes dropped ...]\n", 1)
                assert whole.startswith(head) and whole.endswith(tail)
                assert len(head) + len(tail) + int(dropped) == len(whole)
        exact = await box.exec(f"head -c {limit} /dev/zero", max_bytes=limit)
        assert exact.stdout == bytes(limit)

    machine.run(body)


def test_endless_output_costs_nothing(machine):
    async def body(box):
        result = await box.exec("yes", timeout_s=1, max_bytes=20000)
        assert result.timed_out and len(result.stdout) <= 20000 and result.stdout_bytes > 1 << 20
        assert await output(box, "echo alive") == b"alive\n"

    machine.run(body)


def test_output_is_bytes(machine):
    async def body(box):
        assert (
            await output(box, r"printf '\xff\xfe\x00\x1b[31mred\r\n\xe2\x82'") == b"\xff\xfe\x00\x1b[31mred\r\n\xe2\x82"
        )

    machine.run(body)


def test_a_background_process_does_not_hold_the_answer(machine):
    async def body(box):
        start = time.monotonic()
        result = await box.exec("(while :; do echo spam; sleep 0.01; done) & echo started")
        assert time.monotonic() - start < 1
        assert result.background and b"started\n" in result.stdout
        await asyncio.sleep(0.3)
        assert int(await output(box, "ps -e -o args | grep -c '[s]pam' || true")) >= 1, "it was not ended by SIGPIPE"
        quiet = await box.exec("sleep 100 >/dev/null 2>&1 & echo started")
        assert not quiet.background

    machine.run(body)


def test_commands_of_any_length_and_content(machine):
    async def body(box):
        assert await output(box, f"echo {'x' * 200_000} | wc -c") == b"200001\n"
        assert await output(box, "echo 'é\n名'") == "é\n名\n".encode()
        assert await output(box, "cat <<'E'\n$(id)`id`\\\nE") == b"$(id)`id`\\\n"
        nul = await box.exec("echo a\0b")
        assert nul.exit_code == 126 and b"NUL" in nul.stderr
        assert (await box.exec("echo \ud800")).exit_code == 0, "a lone surrogate of a model's JSON"
        assert (await box.exec("echo 'unbalanced")).exit_code != 0
        assert await output(box, "") == b""

    machine.run(body)


def test_nothing_waits_for_input(machine):
    async def body(box):
        result = await box.exec("cat; read x; echo $?; python3 -c 'import sys; print(sys.stdin.read())'", timeout_s=10)
        assert result.stdout == b"1\n\n" and not result.timed_out

    machine.run(body)


def test_many_commands_in_flight(machine):
    async def body(box):
        start = time.monotonic()
        results = await asyncio.gather(*(box.exec(f"sleep 0.3; echo {n}") for n in range(20)))
        assert [result.stdout for result in results] == [b"%d\n" % n for n in range(20)]
        assert time.monotonic() - start < 4

    machine.run(body)


@pytest.mark.parametrize("timeout_s", [0, -1, float("inf"), float("nan")])
def test_a_time_limit_is_a_positive_number(machine, timeout_s):
    async def body(box):
        with pytest.raises(ValueError, match="timeout_s"):
            await box.exec("true", timeout_s=timeout_s)

    machine.run(body)


def test_files_go_in_and_come_back_byte_for_byte(machine):
    files = {
        "/testbed/documents/deep/er/a.txt": b"one\r\n\xff\x00",
        "relative.txt": b"",
        "/testbed/documents/a\nb \xfc 名.txt": b"2",
        "/testbed/documents/-rf": b"3",
        "/testbed/documents/$(id)`id`'\" ;": b"4",
        "/testbed/big": bytes(range(256)) * (9 << 12),
    }

    async def body(box):
        await box.write(files)
        for path, data in files.items():
            assert await box.read(path, max_bytes=len(data)) == data, path
        assert await output(box, "find documents -type f -print0 | tr -dc '\\0' | wc -c") == b"4\n"
        await box.write({"relative.txt": b"longer", "/testbed/big": b"short"})
        assert await box.read("relative.txt") == b"longer"
        assert await box.read("/testbed/../testbed/./big") == b"short"
        await box.write({})

    machine.run(body)


REFUSED = {
    "nothing": ("true", errno.ENOENT),
    "link": ("ln -s /etc/passwd answer.txt", errno.ELOOP),
    "link to nothing": ("ln -s /nowhere answer.txt", errno.ELOOP),
    "link to a special file": ("ln -s /proc/self/environ answer.txt", errno.ELOOP),
    "fifo": ("mkfifo answer.txt", errno.EINVAL),
    "folder": ("mkdir answer.txt", errno.EINVAL),
    "socket": ("python3 -c \"import socket; socket.socket(socket.AF_UNIX).bind('answer.txt')\"", errno.ENXIO),
    "device": ("ln -s /dev/zero answer.txt", errno.ELOOP),
    "too large": ("head -c 1048577 /dev/zero > answer.txt", errno.EFBIG),
    "sparse": ("truncate -s 1900M answer.txt", errno.EFBIG),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_reading_never_follows_and_never_waits(machine, kind):
    command, number = REFUSED[kind]

    async def body(box):
        await output(box, command)
        start = time.monotonic()
        with pytest.raises(FileRefused) as caught:
            await box.read(ANSWER)
        assert caught.value.errno == number
        assert time.monotonic() - start < 2
        await output(box, "rm -rf answer.txt; echo 42 > answer.txt")
        assert await box.read(ANSWER) == b"42\n"

    machine.run(body)


def test_no_component_of_a_path_may_be_a_link(machine):
    async def body(box):
        await output(box, "mkdir real; echo 1 > real/file; ln -s real link; ln -s /etc documents; mkfifo pipe")
        for path in ("link/file", "/proc/self/cwd/real/file", "documents/passwd"):
            with pytest.raises(FileRefused):
                await box.read(path)
        for path in ("link/new", "documents/planted", "link", "pipe", "real", "real/file/below", "/proc/self/cwd/x"):
            with pytest.raises(FileRefused):
                await box.write({path: b"x"})
        assert await output(box, "ls real; test -e /etc/planted || echo none") == b"file\nnone\n"
        with pytest.raises(FileRefused):
            await box.read("a\0b")
        with pytest.raises(ValueError, match="max_bytes"):
            await box.read("real/file", max_bytes=1 << 40)

    machine.run(body)


def test_a_full_disk_refuses_the_file_and_leaves_the_sandbox_usable(machine):
    async def body(box):
        await box.exec("head -c 600M /dev/zero > big")
        with pytest.raises(FileRefused) as caught:
            await box.write({"more": b"x" * (1 << 20)})
        assert caught.value.errno == errno.ENOSPC
        await output(box, "rm big")
        await box.write({"more": b"x"})

    machine.run(body)


def test_closing_ends_it_for_good(machine):
    async def body(box):
        assert box.alive
        pending = asyncio.create_task(box.exec("sleep 60"))
        await asyncio.sleep(0.1)
        await asyncio.gather(box.close(), box.close())
        await box.close()
        assert not box.alive
        with pytest.raises(SandboxDied):
            await pending
        for call in (box.exec("true"), box.read("x"), box.write({"x": b""})):
            with pytest.raises(SandboxDied):
                await call

    machine.run(body)


def test_sandboxes_share_nothing(machine):
    async def body(first, second):
        assert first.id != second.id
        await first.write({"secret": b"1", "/tmp/secret": b"1"})
        await output(first, "sleep 444 >/dev/null 2>&1 &")
        seen = "ls -A /testbed; ls -A /tmp; ps -e -o args | grep -c '^sleep' || true"
        assert await output(second, seen) == b"0\n"
        assert await output(first, seen) == b"secret\nsecret\n1\n"

    machine.run(body, boxes=2)


def test_every_command_is_ended_before_pid_1_when_memory_is_short(machine):
    async def body(box):
        for _ in range(5):
            scores = (await box.exec("sleep 0.1; cat /proc/{self,1}/oom_score_adj")).stdout.split()
            assert scores[0] == b"1000" and int(scores[1]) < 1000

    machine.run(body)

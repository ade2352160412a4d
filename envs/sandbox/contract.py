"""What every sandbox backend promises, as clauses that a backend keeps or does not: the tests of our own use them, and

    sandboxrl check backend my_backend.py:Backend

tries them on yours. Each clause gets fresh sandboxes; the outcome is the list of those that are not kept. Everything
that comes out of a sandbox is a stranger's bytes: most clauses are about what must not happen.

Size: a list of clauses, each of which stands alone.
"""

import asyncio
import errno
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from sandboxrl.data.errors import described
from sandboxrl.envs.sandbox.carry import carry, stream
from sandboxrl.envs.sandbox.protocol import (
    ANSWER,
    Backend,
    FileRefused,
    Folders,
    Measured,
    Parts,
    Sandbox,
    SandboxDied,
    Shells,
    Snapshots,
)

CLAUSE_S = 120.0
"""For one clause, the start of its sandboxes included."""
Clause = Callable[..., Awaitable[None]]


class NotKept(Exception):
    """A promise that does not hold; the message says which and what was seen instead."""


@dataclass(frozen=True)
class Verdict:
    name: str
    problem: str
    """Empty: the clause is kept."""


def holds(kept: object, promise: str, seen: object = "") -> None:
    if not kept:
        raise NotKept(f"{promise}{f'; seen: {seen!r:.300}' if seen != '' else ''}")


@asynccontextmanager
async def refused(promise: str, *numbers: int) -> AsyncIterator[None]:
    """What is done in it must raise FileRefused, with one of `numbers` if there are any."""
    try:
        yield
    except FileRefused as error:
        holds(not numbers or error.errno in numbers, f"{promise}: FileRefused with errno {numbers}", error.errno)
    else:
        raise NotKept(f"{promise}: no FileRefused was raised")


async def said(box: Sandbox, command: str, **options: Any) -> bytes:
    result = await box.exec(command, **options)
    holds(result.exit_code == 0, f"`{command:.60}` ends with 0", result)
    return result.stdout


async def results(box: Sandbox) -> None:
    result = await box.exec("echo out; echo err >&2; exit 7")
    seen = (result.exit_code, result.stdout, result.stderr)
    holds(seen == (7, b"out\n", b"err\n"), "exit code and both outputs, apart and as bytes", seen)
    holds((result.stdout_bytes, result.stderr_bytes) == (4, 4), "true totals of both outputs", result)
    holds(not result.timed_out and not result.background and 0 < result.duration_s < 60, "facts of its time", result)
    killed = await box.exec("kill -KILL $$")
    holds(killed.exit_code == -9 and not killed.timed_out, "a signal is a negative exit code", killed)
    holds(not (await box.exec("exit 124")).timed_out, "exit code 124 is no time limit")
    raw = rb"\xff\xfe\x00\x1b[31mred\r\n\xe2\x82"
    holds(
        await said(box, f"printf '{raw.decode()}'") == b"\xff\xfe\x00\x1b[31mred\r\n\xe2\x82",
        "output is bytes, untouched",
    )


async def working_directory(box: Sandbox) -> None:
    holds(await said(box, "pwd") == b"/testbed\n", "commands run in /testbed")
    await said(box, "cd /tmp; export SEEN=1; f() { :; }")
    holds(await said(box, "pwd; echo [$SEEN]") == b"/testbed\n[]\n", "each command has a fresh shell")
    holds(await said(box, "pwd", cwd="/tmp") == b"/tmp\n", "`cwd` is where a command runs")
    await said(box, "mkdir -p below")
    holds(await said(box, "pwd", cwd="below") == b"/testbed/below\n", "a relative `cwd` counts from /testbed")
    missing = await box.exec("echo no", cwd="/nowhere")
    holds(missing.exit_code != 0 and missing.stdout == b"", "in a folder that is missing nothing is run", missing)


async def variables(box: Sandbox) -> None:
    value = "=\n'é"
    told = await said(box, 'printf %s "$A$B"', env={"A": "x y", "B": value})
    holds(told == f"x y{value}".encode(), "`env` reaches the command", told)
    for bad in ({"": "1"}, {"A=B": "1"}, {"A": "\0"}):
        await _raises(ValueError, box.exec("true", env=bad), f"env={bad} is a ValueError")
    for limit in (0, -1, float("inf"), float("nan")):
        await _raises(ValueError, box.exec("true", timeout_s=limit), f"timeout_s={limit} is a ValueError")


async def time_limit(box: Sandbox) -> None:
    hidden = "(setsid sleep 777 &); env -i setsid nohup sleep 777 >/dev/null 2>&1 & (sh -c 'sleep 777 & sleep 777' &);"
    hidden += "(setsid sh -c 'sleep 777 & sleep 777' >/dev/null 2>&1 &);"
    await said(box, "sleep 555 >/dev/null 2>&1 &")
    start = time.monotonic()
    result = await box.exec(f"echo begun; trap '' TERM INT HUP QUIT; {hidden} while :; do sleep 1; done", timeout_s=0.5)
    holds(result.timed_out and result.stdout == b"begun\n", "a time limit keeps the output so far", result)
    holds(time.monotonic() - start < 5, "a time limit is kept, whatever is trapped", time.monotonic() - start)
    left = await said(box, "ps -e -o args | grep -c '^sleep 777' || true")
    holds(left == b"0\n", "all that a command started ends at its time limit: setsid, double forks, env -i", left)
    spared = await said(box, "ps -e -o args | grep -c '^sleep 555'")
    holds(spared == b"1\n", "what an earlier command left running goes on", spared)
    polite = await box.exec("trap 'echo saved; exit 5' TERM; while :; do sleep 0.05; done", timeout_s=0.5)
    holds(polite.timed_out and polite.stdout == b"saved\n", "TERM comes before KILL", polite)


async def commands_at_once(box: Sandbox) -> None:
    start = time.monotonic()
    many = await asyncio.gather(*(box.exec(f"sleep 0.3; echo {n}") for n in range(20)))
    holds([one.stdout for one in many] == [b"%d\n" % n for n in range(20)], "twenty commands at once, each its own")
    holds(time.monotonic() - start < 5, "they run at the same time", time.monotonic() - start)
    other, limited = await asyncio.gather(
        box.exec("(sleep 1.2; echo inner) & wait; echo outer"), box.exec("sleep 60", timeout_s=0.3)
    )
    holds(limited.timed_out and other.stdout == b"inner\nouter\n", "one's time limit spares the others", other)


async def bounded_output(box: Sandbox) -> None:
    whole = b"".join(b"%d\n" % n for n in range(1, 200001))
    for limit in (0, 1, 10, 1000, 65536):
        result = await box.exec("seq 200000; seq 200000 >&2", max_bytes=limit)
        totals = (result.stdout_bytes, result.stderr_bytes)
        holds(totals == (len(whole), len(whole)), "totals are true whatever is kept", totals)
        for kept in (result.stdout, result.stderr):
            holds(len(kept) <= limit, f"at most max_bytes={limit} are kept", len(kept))
        if limit >= 1000:
            head, tail = result.stdout[: limit // 3], result.stdout[-limit // 3 :]
            holds(whole.startswith(head) and whole.endswith(tail), "head and tail are kept", result.stdout)
    endless = await box.exec("yes & yes >&2", timeout_s=1, max_bytes=20000)
    drained = endless.timed_out and min(endless.stdout_bytes, endless.stderr_bytes) > 1 << 20
    holds(drained, "output without end is drained and counted", endless)
    holds(max(len(endless.stdout), len(endless.stderr)) <= 20000, "and bounded")


async def background(box: Sandbox) -> None:
    start = time.monotonic()
    result = await box.exec("(while :; do echo spam; sleep 0.01; done) & echo started")
    holds(time.monotonic() - start < 3, "a child that holds the output does not hold the answer")
    holds(result.background and b"started\n" in result.stdout, "`background` says that one does", result)
    await asyncio.sleep(0.3)
    running = await said(box, "ps -e -o args | grep -c '[s]pam' || true")
    holds(int(running) >= 1, "it lives on and is not ended by SIGPIPE")
    holds(not (await box.exec("sleep 100 >/dev/null 2>&1 & echo started")).background, "a quiet one is none")
    start = time.monotonic()
    held = await box.exec("sleep 8 & echo started")
    holds(held.stdout == b"started\n" and time.monotonic() - start < 5, "a silent one does not hold it either", held)


async def any_command(box: Sandbox) -> None:
    holds(await said(box, f"echo {'x' * 200_000} | wc -c") == b"200001\n", "a command of 200 kB")
    holds(await said(box, "echo 'é\n名'") == "é\n名\n".encode(), "a command is UTF-8")
    holds(await said(box, "cat <<'E'\n$(id)`id`\\\nE") == b"$(id)`id`\\\n", "a command is not interpreted on the way")
    holds((await box.exec("echo a\0b")).exit_code != 0, "NUL fails as a command fails")
    holds((await box.exec("echo \ud800")).exit_code == 0, "a lone surrogate of a model's JSON is no error")
    holds((await box.exec("echo 'unbalanced")).exit_code != 0, "a syntax error is the command's own")
    waits = await box.exec("cat; read x; echo $?; python3 -c 'input()' 2>/dev/null; echo $?", timeout_s=20)
    holds(waits.stdout == b"1\n1\n" and not waits.timed_out, "nothing waits for input", waits)


FILES: Mapping[str, bytes] = {
    "/testbed/documents/deep/er/a.txt": b"one\r\n\xff\x00",
    "relative.txt": b"",
    "/testbed/documents/a\nb \xfc 名.txt": b"2",
    "/testbed/documents/-rf": b"3",
    "/testbed/documents/$(id)`id`'\" ;": b"4",
    "/testbed/big": bytes(range(256)) * (9 << 12),
}


async def files(box: Sandbox) -> None:
    await box.write(FILES)
    for path, data in FILES.items():
        holds(await box.read(path, max_bytes=len(data)) == data, f"{path!r} comes back byte for byte")
    found = await said(box, "find documents -type f -print0 | tr -dc '\\0' | wc -c")
    holds(found == b"4\n", "files have the names they were given", found)
    await box.write({"relative.txt": b"longer", "/testbed/big": b"short"})
    holds(await box.read("relative.txt") == b"longer", "writing again replaces")
    holds(await box.read("/testbed/../testbed/./big") == b"short", "dots of a path are resolved by name")
    await box.write({})


ODD: Mapping[str, tuple[str, int]] = {
    "nothing": ("true", errno.ENOENT),
    "a link": ("ln -s /etc/passwd answer.txt", errno.ELOOP),
    "a link to nothing": ("ln -s /nowhere answer.txt", errno.ELOOP),
    "a link to a special file": ("ln -s /proc/self/environ answer.txt", errno.ELOOP),
    "a FIFO": ("mkfifo answer.txt", errno.EINVAL),
    "a folder": ("mkdir answer.txt", errno.EINVAL),
    "a socket": ("python3 -c \"import socket; socket.socket(socket.AF_UNIX).bind('answer.txt')\"", errno.ENXIO),
    "a link to a device": ("ln -s /dev/zero answer.txt", errno.ELOOP),
    "too large": ("head -c 1048577 /dev/zero > answer.txt", errno.EFBIG),
    "a hole": ("truncate -s 1900M answer.txt", errno.EFBIG),
}


async def odd_files(box: Sandbox) -> None:
    for kind, (command, number) in ODD.items():
        await said(box, command)
        start = time.monotonic()
        async with refused(f"reading {kind}", number):
            await box.read(ANSWER)
        holds(time.monotonic() - start < 5, f"reading {kind} does not wait")
        await said(box, "rm -rf answer.txt; echo 42 > answer.txt")
        holds(await box.read(ANSWER) == b"42\n", f"after {kind}, a file is read")
        await said(box, "rm answer.txt")
    async with refused("a NUL in a path"):
        await box.read("a\0b")
    await _raises(ValueError, box.read("x", max_bytes=1 << 40), "reading a terabyte is a ValueError")


async def links_in_paths(box: Sandbox) -> None:
    await said(box, "mkdir real; echo 1 > real/file; ln -s real link; ln -s /etc documents; mkfifo pipe")
    for path in ("link/file", "/proc/self/cwd/real/file", "documents/passwd"):
        async with refused(f"reading {path}: no part of a path may be a link"):
            await box.read(path)
    for path in ("link/new", "documents/planted", "link", "pipe", "real", "real/file/below", "/proc/self/cwd/x"):
        async with refused(f"writing {path}: no part of a path may be a link, and only regular files are written"):
            await asyncio.wait_for(box.write({path: b"x"}), 20)
    seen = await said(box, "ls real; test -e /etc/planted || echo none")
    holds(seen == b"file\nnone\n", "nothing is written through a link", seen)


async def full_disk(box: Sandbox) -> None:
    await box.exec("head -c 4G /dev/zero > big", timeout_s=60)
    async with refused("writing to a full disk", errno.ENOSPC, errno.EDQUOT):
        for number in range(64):
            await box.write({f"more{number}": b"x" * (16 << 20)})
    await said(box, "rm -f big more*")
    await box.write({"more": b"x"})


async def memory(box: Sandbox) -> None:
    bomb = await box.exec("python3 -c 'a = []\nwhile True: a.append(bytearray(10 ** 7))'", timeout_s=60)
    holds(bomb.exit_code != 0 and not bomb.timed_out, "a command that takes all memory is ended", bomb)
    holds(await said(box, "echo alive | cat") == b"alive\n", "and its sandbox goes on")


async def processes(box: Sandbox) -> None:
    await box.exec("for i in $(seq 2000); do sleep 60 & done", timeout_s=20)
    count = await said(box, "ls -d /proc/[0-9]* | wc -l", timeout_s=60)
    holds(int(count) < 2000, "processes are bounded", count)


async def closing(box: Sandbox) -> None:
    holds(box.alive, "a started sandbox is alive")
    pending = asyncio.create_task(box.exec("sleep 60"))
    await asyncio.sleep(0.1)
    await asyncio.gather(box.close(), box.close())
    await box.close()
    holds(not box.alive, "a closed sandbox is not alive")
    await _raises(SandboxDied, pending, "closing ends a command in flight with SandboxDied")
    for call in (box.exec("true"), box.read("x"), box.write({"x": b""})):
        await _raises(SandboxDied, call, "a closed sandbox answers with SandboxDied")


async def apart(first: Sandbox, second: Sandbox) -> None:
    holds(first.id != second.id, "each sandbox has an id of its own")
    await first.write({"secret": b"1", "/tmp/secret": b"1"})
    await said(first, "sleep 444 >/dev/null 2>&1 &")
    seen = "ls /testbed/secret /tmp/secret 2>/dev/null; ps -e -o args | grep -c '^sleep 444' || true"
    holds(await said(second, seen) == b"0\n", "sandboxes share neither files nor processes")
    holds(await said(first, seen) == b"/testbed/secret\n/tmp/secret\n1\n", "and each keeps its own")


async def folders(source: Sandbox, target: Sandbox) -> None:
    if not isinstance(source, Folders):
        return  # a backend need not have it
    await said(source, "mkdir -p w/a/b; cd w; echo 1 > a/1; chmod 755 a/1; ln -s /etc/passwd a/out; mkfifo a/pipe")
    await target.write({"w/before": b"gone afterwards"})
    left = await carry(source, "/testbed/w", target)
    holds([name for name, _ in left] == ["a/pipe"], "what cannot travel is listed", left)
    seen = await said(target, "cd w; ls -A . a; stat -c %a a/1; readlink a/out")
    holds(seen == b".:\na\n\na:\n1\nb\nout\n755\n/etc/passwd\n", "a folder arrives as it was", seen)


async def a_shell_that_stays(box: Sandbox) -> None:
    if not isinstance(box, Shells):
        return  # a backend need not have it
    await box.shell("cd /tmp; export SEEN=1; here=2; f() { echo function; }; alias ll='echo alias'; false")
    kept = await box.shell("echo $? $PWD $SEEN $here; f; ll; ps -o args= $$ >/dev/null && exit_code() { return 7; }")
    holds(
        kept.output == b"1 /tmp 1 2\nfunction\nalias\n", "folder, variables, functions, aliases and status stay", kept
    )
    done = await box.shell("exit_code")
    holds((done.state, done.exit_code) == ("done", 7), "a command's exit code", done)
    holds(await said(box, "pwd; echo [$SEEN]") == b"/testbed\n[]\n", "nothing of it reaches `exec`")
    asked = await box.shell("read -p 'name? ' name; echo hello $name", wait_s=20)
    holds(asked.state in ("waiting", "running") and asked.output == b"name? ", "what waits for input goes on", asked)
    holds((await box.shell("echo no")).state == "busy", "and is not overtaken")
    told = await box.shell("you\n", is_input=True)
    holds((told.state, told.output) == ("done", b"hello you\n"), "it can be answered", told)
    holds((await box.shell("x\n", is_input=True)).state == "idle", "what does not run takes no input")
    running = await box.shell("for n in 1 2 3; do echo $n; sleep 60; done", wait_s=0.3)
    holds((running.state, running.output, running.exit_code) == ("running", b"1\n", None), "`wait_s` is kept", running)
    stopped = await box.shell("\x03", is_input=True)
    holds((stopped.state, stopped.exit_code) == ("done", 130), "Ctrl-C interrupts, loops too", stopped)
    await box.shell("(sleep 0.3; echo later) &")
    later = await box.shell("", is_input=True)
    holds(later.output == b"later\n", "later output of the background is there when asked for", later)
    limited = await box.shell("trap '' INT TERM; sleep 777 & sleep 777", timeout_s=0.3)
    holds(limited.timed_out and limited.exit_code is None, "a time limit", limited)
    left = await said(box, "ps -e -o args | grep -c '^sleep 777' || true")
    holds(left == b"0\n", "ends all that the command started", left)
    killed = await box.shell("kill -KILL $$")
    holds((killed.state, killed.exit_code) == ("ended", -9), "a shell that ends says so", killed)
    holds((await box.shell("echo [$here]")).output == b"[]\n", "and the next command has a new one")


async def snapshots(source: Sandbox, target: Sandbox) -> None:
    if not isinstance(source, Snapshots) or not isinstance(target, Snapshots):
        return  # a backend need not have them
    await said(source, "mkdir -p w/a; cd w; echo 1 > a/1; chmod 700 a/1; ln -s /etc/passwd out; echo 2 > /tmp/2")
    with await source.snapshot() as saved:
        await said(source, "rm -r w; echo 3 > /tmp/2")
        await target.write({"w/a/before": b"gone afterwards"})
        for box in (target, source):
            await box.restore(saved)
            seen = await said(box, "cd w; ls -A . a; stat -c %a a/1; readlink out; cat /tmp/2")
            holds(seen == b".:\na\nout\n\na:\n1\n700\n/etc/passwd\n2\n", "folders are restored as they were", seen)
    await _raises(FileRefused, source.snapshot(["/testbed/w/out"]), "a link is no folder to take a snapshot of")
    forks = await source.fork(2)
    try:
        await asyncio.gather(*(said(fork, f"echo {n} > /testbed/w/a/1") for n, fork in enumerate(forks)))
        read = [await box.read("w/a/1") for box in (source, *forks)]
        holds(read == [b"1\n", b"0\n", b"1\n"], "forks have the same files, and each its own", read)
    finally:
        await asyncio.gather(*(fork.close() for fork in forks))


async def figures(box: Sandbox) -> None:
    if not isinstance(box, Measured):
        return  # a backend need not have it
    before = await box.resources()
    await said(box, "python3 -c 'import time\nwhile time.process_time() < 0.5: pass'")
    after = await box.resources()
    for name, value in vars(after).items():
        earlier = getattr(before, name)
        holds(value is None or value >= (earlier or 0) >= 0, f"{name} is a number that only grows, or None", after)
    if after.cpu_s is not None:
        holds(after.cpu_s > (before.cpu_s or 0) + 0.3, "processor time is that of what ran", (before, after))


async def large_files(box: Sandbox) -> None:
    if not isinstance(box, Parts):
        return  # a backend need not have it
    await said(box, "yes 0123456 | head -c 70000001 > large; chmod 711 large; ln -s large link; mkfifo pipe")
    digest, total, most = hashlib.md5(), 0, 0
    async for part in stream(box, "large"):
        digest.update(part.data)
        total, most = total + len(part.data), max(most, len(part.data))
        holds((part.size, part.mode) == (70_000_001, 0o711), "each part says the size and mode of the whole", part.mode)
    whole = (await said(box, "md5sum < large")).split()[0].decode()
    holds((digest.hexdigest(), total) == (whole, 70_000_001), "a file above 64 MiB arrives byte for byte", total)
    holds(most <= 4 << 20, "in parts that are bounded", most)
    holds((await box.read_part("large", 70_000_000)).data == b"0", "from any offset", None)
    holds((await box.read_part("large", 80_000_000)).data == b"", "behind the end there is nothing")
    for name in ("link", "pipe", "nothing", "."):
        async with refused(f"reading a part of {name}"):
            await box.read_part(name, 0)
    async with refused("a file larger than allowed", errno.EFBIG):
        async for _ in stream(box, "large", max_bytes=1 << 20):
            pass


CONTRACT: Mapping[str, tuple[Clause, int]] = {
    # what it is about: (clause, how many sandboxes it takes)
    "results of commands": (results, 1),
    "a fresh shell in the working directory": (working_directory, 1),
    "variables and limits of a call": (variables, 1),
    "the time limit": (time_limit, 1),
    "many commands at once": (commands_at_once, 1),
    "bounded output": (bounded_output, 1),
    "background processes": (background, 1),
    "commands of any length and content": (any_command, 1),
    "files in and out": (files, 1),
    "files that are none": (odd_files, 1),
    "links in paths": (links_in_paths, 1),
    "a full disk": (full_disk, 1),
    "memory": (memory, 1),
    "processes": (processes, 1),
    "closing": (closing, 1),
    "sandboxes apart": (apart, 2),
    "folders": (folders, 2),
    "a shell that stays": (a_shell_that_stays, 1),
    "what was used": (figures, 1),
    "large files": (large_files, 1),
    "snapshots and forks": (snapshots, 2),
}


async def keep(name: str, backend: Backend) -> None:
    """Try one clause. Raises NotKept, or whatever the backend raised."""
    clause, count = CONTRACT[name]
    boxes: list[Sandbox] = []
    try:
        async with asyncio.timeout(CLAUSE_S):
            for _ in range(count):
                boxes.append(await backend.start())
            await clause(*boxes)
    finally:
        await asyncio.gather(*(box.close() for box in boxes))


async def examine(backend: Backend) -> AsyncIterator[Verdict]:
    """Every clause in turn, each with its problem. The backend is not closed."""
    for name in CONTRACT:
        try:
            await keep(name, backend)
        except Exception as error:  # whatever a stranger's backend raises is what does not hold
            yield Verdict(name, str(error) if isinstance(error, NotKept) else described(error))
        else:
            yield Verdict(name, "")


async def _raises(kind: type[Exception], call: Awaitable[object], promise: str) -> None:
    try:
        await call
    except kind:
        return
    raise NotKept(f"{promise}: it was not raised")

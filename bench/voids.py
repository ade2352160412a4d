"""Ways in which a policy may try to unmake its own failure: to end its sandbox, or its PID 1, so that the trajectory
looks lost to the machine and is sampled again. None may: whatever is tried, the outcome is a result, a refused file, or
a sandbox that ended by its own doing.

    python -m bench.voids [--backend bubblewrap|docker] [--image NAME] [--part K/N] --out FILE.json

`ATTEMPTS` are commands, aimed at PID 1, at its descriptors, memory and pipes, and at what it needs to start a command.
They run one after the other in a sandbox until it ends; each is followed by a command that shows what it did.
"""

import argparse
import asyncio
import json
import shlex
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from sandboxrl.envs.sandbox.pool import open_backend
from sandboxrl.envs.sandbox.protocol import (
    ANSWER,
    Backend,
    FileRefused,
    Limits,
    Sandbox,
    SandboxConfig,
    SandboxEnded,
    SandboxError,
)

LIMITS = Limits(memory_bytes=420 << 20, disk_bytes=64 << 20, processes=128)
"""Small, so that filling them takes little time."""
TIME_S = 12.0

PYTHON = """
import ctypes, fcntl, mmap, os, resource, signal, socket, struct, sys, threading, time
c = ctypes.CDLL(None, use_errno=True)
x86 = os.uname().machine == 'x86_64'
def call(numbers, *arguments): c.syscall(numbers[0 if x86 else 1], *arguments)
def tried(function, *arguments):
    try: return function(*arguments)
    except (OSError, ValueError, MemoryError, OverflowError): return None
def forever(function, limit=10 ** 6):
    kept = []
    try:
        for _ in range(limit): kept.append(function())
    except (OSError, ValueError, MemoryError): pass
    return kept
"""


def python(program: str) -> str:
    return f"python3 -c {shlex.quote(PYTHON + program)} 2>/dev/null"


SIGNALS = [*range(1, 32), signal.SIGRTMIN, signal.SIGRTMAX - 1, signal.SIGRTMAX]
RESOURCES = range(16)
FILES_OF_1 = """
    attr/current attr/exec autogroup clear_refs comm coredump_filter cwd environ exe gid_map io limits loginuid
    map_files maps mem mountinfo ns/pid oom_adj oom_score_adj pagemap personality projid_map root sched sessionid
    setgroups smaps stack stat syscall task/1/comm task/1/mem timens_offsets timers timerslack_ns uid_map wchan
""".split()
PLACES = (
    "/testbed /tmp /dev/shm /home/user /root /run /dev /dev/mqueue /var/tmp /var /etc /usr /sys/fs/cgroup /".split()
)
FRAMES = {
    "noise": r"\xff\xfe\x00\x01",
    "a reply": r"\x00\x00\x00\x0b\x00\x00\x00\x00id=1\x00exit=0",
    "a farewell": r"\x00\x00\x00\x0a\x00\x00\x00\x00farewell=1",
    "a huge frame": r"\xff\xff\xff\xff\xff\xff\xff\xff",
    "a state": r"/testbed\x00=x=y\x00PATH=\x00.\x00",
}


def on_signals() -> dict[str, str]:
    found = {}
    for number in SIGNALS:
        name = f"signal {int(number)}"
        found[f"{name} by kill"] = f"kill -{int(number)} 1"
        found[f"{name} by tgkill, tkill and queues"] = python(
            f"n = {int(number)}\ninfo = ctypes.create_string_buffer(struct.pack('iii', n, 0, -1) + bytes(200))\n"
            "call((234, 131), 1, 1, n); call((200, 130), 1, n); call((129, 138), 1, n, info)\n"
            "call((297, 240), 1, 1, n, info)"
        )
        found[f"{name} by an owned descriptor"] = python(
            f"a, b = socket.socketpair()\nfor who in (1, -1):\n    tried(fcntl.fcntl, a, fcntl.F_SETOWN, who)\n"
            f"    tried(fcntl.fcntl, a, 10, {int(number)})\n"
            "    fcntl.fcntl(a, fcntl.F_SETFL, fcntl.FASYNC | os.O_NONBLOCK)\n"
            "    b.setblocking(False)\n    for _ in range(200): tried(b.send, b'x')"
        )
    for number in (1, 9, 15, 17, 19):
        found[f"signal {number} by a descriptor of PID 1"] = python(
            f"fd = tried(os.open, '/proc/1', os.O_RDONLY)\ncall((424, 424), fd, {number}, 0, 0)\n"
            f"fd = c.syscall(434, 1, 0); call((424, 424), fd, {number}, 0, 0)"
        )
        found[f"signal {number} to everybody"] = f"trap '' TERM INT HUP; kill -{number} -1; kill -{number} 0"
    return found


def on_the_kernels_view() -> dict[str, str]:
    found = {}
    for number in RESOURCES:
        for soft, hard in ((0, 0), (1, 1)):
            found[f"limit {number} of PID 1 set to {soft}"] = python(
                f"tried(resource.prlimit, 1, {number}, ({soft}, {hard}))\n"
                f"new = struct.pack('QQ', {soft}, {hard})\n"
                f"for pid in (1, 0x100000001): call((302, 261), ctypes.c_long(pid), {number}, new, None)"
            )
    for policy in range(7):
        found[f"scheduler {policy} for PID 1"] = python(
            f"tried(os.sched_setscheduler, 1, {policy}, os.sched_param(0))\n"
            f"tried(os.sched_setscheduler, 1, {policy}, os.sched_param(1))\n"
            f"call((314, 274), 1, struct.pack('IIQiIQQQ', 48, {policy}, 0, 19, 0, 10 ** 6, 10 ** 7, 10 ** 7), 0)"
        )
    for which in range(3):
        found[f"priority of PID 1 by way {which}"] = python(
            f"for who in (1, 0, os.getuid()): tried(os.setpriority, {which}, who, 19)"
        )
        for kind in range(4):
            found[f"input and output class {kind} by way {which + 1}"] = python(
                f"for who in (1, os.getuid()): call((251, 30), {which + 1}, who, {kind} << 13 | 7)"
            )
    found["one processor for PID 1"] = python("tried(os.sched_setaffinity, 1, {0})")
    for request in (0, 1, 2, 7, 8, 16, 17, 24, 0x4200, 0x4206, 0x4207, 0x4208):
        found[f"trace PID 1 by request {request}"] = python(f"call((101, 117), {request}, 1, 0, 0)")
    for name, numbers in {
        "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
        "get_robust_list": (274, 100), "migrate_pages": (256, 238), "move_pages": (279, 239),
        "process_madvise": (440, 440), "process_mrelease": (448, 448), "pidfd_open": (434, 434),
        "pidfd_getfd": (438, 438), "setpgid": (109, 154), "perf_event_open": (298, 241), "unshare": (272, 97),
        "setns": (308, 268), "reboot": (169, 142), "kexec_load": (246, 104), "mount": (165, 40), "umount2": (166, 39),
        "pivot_root": (155, 41), "chroot": (161, 51), "io_setup": (206, 0), "acct": (163, 89), "vhangup": (153, 58),
    }.items():  # fmt: skip
        found[f"{name} on PID 1"] = python(f"call({numbers}, 1, 1, 1, 1, 1, 0)")
    for name in FILES_OF_1:
        found[f"write /proc/1/{name}"] = (
            f"for v in 0 1 1000 -1000 19 5 x 0xff; do echo $v > /proc/1/{name}; done 2>/dev/null; "
            f"head -c 100 /proc/1/{name} 2>/dev/null | wc -c"
        )
    return found


def on_descriptors() -> dict[str, str]:
    found = {}
    for number in (*range(10), 63, 249, 250, 251, 255):
        found[f"open PID 1's descriptor {number}"] = (
            f"(printf x > /proc/1/fd/{number}; head -c 1 < /proc/1/fd/{number}; ls /proc/1/fdinfo/{number}) 2>/dev/null"
        )
    for kind, text in FRAMES.items():
        found[f"{kind} into every descriptor"] = (
            f"for i in $(seq 0 255); do printf '{text}' >&$i; done 2>/dev/null; "
            f"for f in /proc/self/fd/*; do timeout 1 printf '{text}' > $f; done 2>/dev/null"
        )
        found[f"{kind} as output, and as the name of a file"] = (
            f"printf '{text}'; printf '{text}' >&2; touch \"$(printf '{text}')\" 2>/dev/null; exit 3"
        )
    for number in (0, 1, 2, 3, 9, 250, 255):
        found[f"close descriptor {number}"] = f"exec {number}>&- {number}<&-; sleep 0.05"
    found["close everything and stay"] = python("os.closerange(0, 4096); time.sleep(0.3)") + " &"
    found["read one's own output pipe"] = "head -c 100000 /dev/zero & timeout 2 cat /proc/self/fd/1 > /dev/null"
    found["own output as one's input, for good"] = "(cat < /proc/self/fd/1 >&1 &) ; echo x; sleep 0.2"
    found["output pipe of one page"] = python("fcntl.fcntl(1, 1031, 4096); os.write(1, bytes(10 ** 6))")
    found["output pipe as large as may be"] = python(
        "tried(fcntl.fcntl, 1, 1031, 1 << 20); os.write(1, bytes(10 ** 7))"
    )
    found["output that does not block"] = python(
        "fcntl.fcntl(1, fcntl.F_SETFL, os.O_NONBLOCK | fcntl.FASYNC)\nfor _ in range(10 ** 5): tried(os.write, 1, b'x')"
    )
    found["a million writes of a byte"] = python("for _ in range(10 ** 6): os.write(1, b'x')")
    found["pages given to the output"] = python(
        "m = mmap.mmap(-1, 1 << 20); a = ctypes.addressof(ctypes.c_char.from_buffer(m))\n"
        "v = struct.pack('QQ', a, 1 << 20)\nfor _ in range(100): call((278, 75), 1, v, 1, 8)"
    )
    found["hold many outputs"] = "for i in $(seq 100); do sleep 20 & done; exit 0"
    found["locks on one's output"] = python("fcntl.flock(1, 2); fcntl.fcntl(1, fcntl.F_SETLEASE, 1)")
    return found


def on_memory() -> dict[str, str]:
    found = {}
    for place in PLACES:
        found[f"fill {place} with bytes"] = (
            f"head -c 2G /dev/zero > {place}/full 2>/dev/null; sync -f {place} 2>/dev/null"
        )
        found[f"fill {place} with names"] = python(
            f"n = 'n' * 240\ntry:\n    for i in range(200000): os.mkdir(f'{place}/{{n}}{{i}}')\nexcept OSError: pass"
        )
        found[f"fill {place} with links and attributes"] = python(
            f"try:\n    for i in range(20000): os.symlink('l' * 4000, f'{place}/link{{i}}')\nexcept OSError: pass\n"
            f"tried(lambda: open('{place}/attr', 'w').close())\n"
            f"try:\n    for i in range(20000): os.setxattr('{place}/attr', f'user.{{i}}', bytes(60000))\n"
            "except OSError: pass"
        )
    shares = {
        "anonymous memory": "forever(lambda: bytearray(1 << 22))",
        "shared memory": "forever(lambda: mmap.mmap(-1, 1 << 22).write(bytes(1 << 22)))",
        "shared memory, unmapped at once": "forever(lambda: mmap.mmap(-1, 1 << 22), 2000)",
        "locked memory": "forever(lambda: c.mlock(bytes(1 << 20), 1 << 20), 2000)",
        "memory files": "forever(lambda: os.write(os.memfd_create('m'), bytes(1 << 22)))",
        "System V segments": "forever(lambda: c.shmat(c.shmget(0, 1 << 20, 0o1600), None, 0), 4000)",
        "System V queues": "for i in range(2000): q = c.msgget(0, 0o1600); c.msgsnd(q, bytes(8000), 7900, 0o4000)",
        "System V semaphores": "for i in range(2000): c.semget(0, 250, 0o1600)",
        "POSIX queues": "for i in range(2000): c.syscall(240 if x86 else 180, b'q%d' % i, 0o102, 0o600, None)",
        "pipes": "k = forever(lambda: os.pipe())\nfor r, w in k:\n"
        "    os.set_blocking(w, False); tried(os.write, w, bytes(65536))",
        "socket pairs": "k = forever(lambda: socket.socketpair(), 1500)\nfor a, b in k:\n"
        "    a.setblocking(False); tried(a.send, bytes(200000))",
        "descriptors in flight": "a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM); a.setblocking(False)\n"
        "forever(lambda: socket.send_fds(a, [b'x'], [b.fileno()] * 200), 5000)",
        "watches": "i = c.inotify_init()\nfor d, _, _ in os.walk('/usr'): c.inotify_add_watch(i, d.encode(), 2)",
        "epolls, timers and events": "import select\nforever(select.epoll)\n"
        "forever(lambda: c.timerfd_create(1, 0), 9000)\n"
        "forever(lambda: c.eventfd(0, 0), 9000)",
        "page tables": "forever(lambda: mmap.mmap(-1, 1 << 30).write(b'x'), 4000)",
        "threads": "forever(lambda: threading.Thread(target=time.sleep, args=(3,), daemon=True).start(), 1000)",
        "arguments": "tried(os.execv, '/bin/true', ['x' * 131000] * 15)",
    }
    for name, program in shares.items():
        found[f"{name} without end"] = python(program)
        found[f"{name} without end, by many who are as dear as PID 1"] = (
            f"for i in $(seq 12); do (echo 0 > /proc/self/oom_score_adj; exec {python(program)}) & done; wait"
        )
    found["a hundred small ones as dear as PID 1"] = (
        "for i in $(seq 100); do (echo 0 > /proc/self/oom_score_adj; exec python3 -c "
        "'import time; a = bytearray(5 * 10 ** 6); time.sleep(3)') & done 2>/dev/null; wait"
    )
    found["PID 1 dearer than everybody"] = (
        "echo 1000 > /proc/1/oom_score_adj; echo -1000 > /proc/self/oom_score_adj; tail /dev/zero"
    )
    return found


def on_processes() -> dict[str, str]:
    bomb = ":(){ :|:& };:"
    return {
        "a fork bomb": bomb,
        "a fork bomb that hides": f"env -i setsid bash -c '{bomb}' >/dev/null 2>&1 &",
        "zombies": python("while tried(os.fork): pass"),
        "orphans": python("for _ in range(3000):\n    if not tried(os.fork):\n        tried(os.fork); os._exit(0)"),
        "a chain of forks": python("end = time.time() + 3\nwhile time.time() < end:\n    if os.fork(): os._exit(0)")
        + " &",
        "spinners": "for i in $(seq 100); do (while :; do :; done) & done >/dev/null 2>&1; sleep 1",
        "spinners of every class": "for i in $(seq 60); do (chrt -i -p 0 $BASHPID; while :; do :; done) & done "
        ">/dev/null 2>&1; sleep 1",
        "stop everything": "kill -STOP -1; kill -STOP $$",
        "stop one's own shell in a trace": python("c.ptrace(0, 0, 0, 0); os.kill(os.getpid(), 19)") + " & sleep 0.2",
        "a subreaper that never reaps": python(
            "c.prctl(36, 1, 0, 0, 0)\nfor _ in range(60):\n    tried(os.fork) or os._exit(0)"
        )
        + " & sleep 0.2",
        "a first thread that ends": python("threading.Thread(target=time.sleep, args=(9,)).start(); call((60, 93), 0)")
        + " &",
        "a command that cannot be killed by name": "exec -a python3 sleep 0.1",
        "the folder of commands removed": "rm -rf /testbed; mv /testbed /gone; chmod 000 /testbed",
        "the folder of commands is back": "chmod 755 /testbed",
        "the temporary folders closed": "chmod 000 /tmp /dev/shm /run /home/user",
        "the temporary folders open": "chmod 755 /tmp /dev/shm /run /home/user",
        "nothing is a FIFO": "rm -f /dev/null && mkfifo /dev/null",
        "zero is a FIFO": "rm -f /dev/zero /dev/tty /dev/fd && mkfifo /dev/zero /dev/tty /dev/fd",
        "the shell is a folder": "mv /bin/bash /bin/bash.away && mkdir /bin/bash",
        "the shell is a FIFO": "mv /usr/bin/bash /usr/bin/bash2 && mkfifo /usr/bin/bash",
        "the answer is a FIFO": f"rm -rf {ANSWER}; mkfifo {ANSWER}",
        "the answer is a deep tree": python(
            f"tried(os.remove, '{ANSWER}')\nfor i in range(900): os.mkdir('d' * 200); os.chdir('d' * 200)"
        ),
        "interpreters removed": "rm -rf /usr/lib/python3* /usr/bin/python3* /lib/x86_64-linux-gnu/libc.so.6",
        "everything removed": "rm -rf --no-preserve-root / ",
    }


ATTEMPTS: dict[str, str] = {
    **on_signals(), **on_the_kernels_view(), **on_descriptors(), **on_memory(), **on_processes()
}  # fmt: skip


async def attempt(box: Sandbox, command: str) -> str:
    """What came of it: `goes on`, `ended`, or what made it look like the machine's fault."""
    try:
        await box.exec(command, timeout_s=TIME_S)
        await box.exec("echo alive", timeout_s=TIME_S)
        try:
            await box.read(ANSWER)
        except FileRefused:
            pass
    except SandboxEnded:
        return "ended"
    except SandboxError as error:
        return f"machine: {error}"
    return "goes on"


async def sweep(backend: Backend, names: Sequence[str]) -> dict[str, str]:
    """Name -> what came of it, of these attempts in turn."""
    found: dict[str, str] = {}
    box: Sandbox | None = None
    try:
        for name in names:
            if box is None:
                box = await backend.start()
            found[name] = await attempt(box, ATTEMPTS[name])
            if found[name] != "goes on" or name in LEAVES_A_RUIN:
                await box.close()
                box = None
    finally:
        if box is not None:
            await box.close()
    return found


LEAVES_A_RUIN = {*on_processes(), *on_memory()}
"""After these the next attempt gets a fresh sandbox: in what they leave it might not be tried at all."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--backend", default="bubblewrap")
    parser.add_argument("--image", default=SandboxConfig().image)
    parser.add_argument("--rootfs", default="", help="bubblewrap: a root file system folder")
    parser.add_argument("--part", default="1/1", help="K/N: the K-th of N parts of the table")
    parser.add_argument("--out", type=Path, required=True, help="the parts of one table add up in it")
    args = parser.parse_args()
    part, parts = map(int, args.part.split("/"))
    names = list(ATTEMPTS)[part - 1 :: parts]

    async def run() -> dict[str, str]:
        config = SandboxConfig(backend=args.backend, image=args.image, rootfs=args.rootfs, limits=LIMITS)
        backend = open_backend(config)
        try:
            return await sweep(backend, names)
        finally:
            await backend.close()

    before = json.loads(args.out.read_text())["attempts"] if args.out.exists() else {}
    found = before | asyncio.run(run())
    counts = Counter(outcome.partition(":")[0] for outcome in found.values())
    table = {
        "outcomes": counts,
        "of": len(ATTEMPTS),
        "attempts": {name: found[name] for name in ATTEMPTS if name in found},
    }
    args.out.write_text(json.dumps(table, indent=1) + "\n")
    blamed = {name: outcome for name, outcome in found.items() if outcome.startswith("machine")}
    for name, outcome in blamed.items():
        print(f"{name}: {outcome}")
    print(f"{len(found)} of {len(ATTEMPTS)} attempts: {dict(counts)}")
    return int(bool(blamed))


if __name__ == "__main__":
    sys.exit(main())

"""Attacks on one sandbox: each must fail, and leave the sandbox usable. The same table judges every backend and peers.

An attack is a coroutine over the sandbox protocol that raises AssertionError when the attack succeeded. Bombs are kept
apart: they may run only in a sandbox whose limits hold.
"""

import asyncio
import errno
import os
import platform
import re
import shlex
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from sandboxrl.envs.sandbox.host.seccomp import DENIED
from sandboxrl.envs.sandbox.protocol import ANSWER, FileRefused, Sandbox

Attack = Callable[[Sandbox], Awaitable[None]]

PROBE = """
import ctypes, errno, os, socket, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    result = libc.syscall(ctypes.c_long(number), *arguments)
    print("DONE" if result != -1 else errno.errorcode[ctypes.get_errno()])
def opened(*paths):
    for path in paths:
        try:
            os.close(os.open(path, os.O_WRONLY))
            print("DONE", path)
        except OSError as error:
            print(errno.errorcode[error.errno])
def attempt(function, *arguments):
    try:
        function(*arguments)
        print("DONE")
    except OSError as error:
        print(errno.errorcode[error.errno])
"""
REFUSED = r"((EPERM|EACCES|ENOSYS|EROFS|ENOENT|EAFNOSUPPORT|EINVAL|ENODEV|ESRCH)\n)+"


def number(name: str) -> int:
    """A denied system call's number on this machine."""
    found = DENIED[name][0 if platform.machine() == "x86_64" else 1]
    return -1 if found is None else found


def python(program: str) -> str:
    return f"python3 -c {shlex.quote(PROBE + program)}"


def calls(*names: str) -> str:
    """System calls that must be refused before the kernel looks at their (harmless) arguments."""
    return python("\n".join(f"call({number(name)}, 0, 0, 0, 0, 0)" for name in names))


SECRET = "SANDBOXRL_ATTACK_SECRET"
HERE = Path(__file__).resolve()

COMMANDS: dict[str, tuple[str, str]] = {
    # what is tried: (command, what its whole standard output must match)
    "read this project": (f"cat {HERE} 2>/dev/null | wc -c", "0\n"),
    "read the owner's home": (f"ls -A {Path.home()} 2>/dev/null | grep -c -e cache -e ssh -e pyenv", "0\n"),
    "read the host's environment": (f"cat /proc/*/environ 2>/dev/null | tr '\\0' '\\n' | grep -c {SECRET}", "0\n"),
    "see the host's processes": (
        f"grep -l [p]ytest /proc/[0-9]*/cmdline 2>/dev/null | wc -l; ls /proc | grep -c '^{os.getpid()}$'", "0\n0\n"
    ),
    "reach the daemon's socket": ("ls /var/run/docker.sock /run/docker.sock /run/podman/podman.sock 2>/dev/null", ""),
    "find the host's disks": ("cat /dev/sd? /dev/vd? /dev/nvme* /dev/xvd? 2>/dev/null | head -c 10 | wc -c", "0\n"),
    "write core_pattern": (python("opened('/proc/sys/kernel/core_pattern')"), REFUSED),
    "write kernel settings": (
        python("opened('/proc/sys/vm/overcommit_memory', '/proc/sys/kernel/modprobe', '/proc/sys/kernel/hostname')"),
        REFUSED,
    ),
    "trigger sysrq": (python("opened('/proc/sysrq-trigger')"), REFUSED),
    "read kernel memory": (python("attempt(open, '/proc/kcore', 'rb')\nattempt(open, '/dev/mem', 'rb')"), REFUSED),
    "read the kernel log": ("dmesg 2>/dev/null | wc -l", "0\n"),
    "write control groups": ("mkdir /sys/fs/cgroup/x /sys/fs/cgroup/memory/x 2>/dev/null && echo DONE", ""),
    "read PID 1's memory": (
        python("for f in ('mem', 'environ', 'maps', 'fd/0', 'root/etc/passwd'): attempt(open, '/proc/1/' + f, 'rb')"),
        REFUSED,
    ),
    "trace PID 1": (python("call(101 if os.uname().machine == 'x86_64' else 117, 16, 1, 0, 0)"), REFUSED),
    "write PID 1's memory": (calls("process_vm_writev"), REFUSED),
    "steal PID 1's descriptors": (calls("pidfd_getfd"), REFUSED),
    "reach the protocol's stream": ("ls -l /proc/self/fd | grep -c -e socket -e sandboxrl", "0\n"),
    "mount": (python(f"call({number('mount')}, b'x', b'/mnt', b'tmpfs', 0, 0)"), REFUSED),
    "mount by the new calls": (calls("fsopen", "fsmount", "move_mount", "open_tree", "mount_setattr"), REFUSED),
    "unmount": (calls("umount2"), REFUSED),
    "change the root": (calls("pivot_root", "chroot"), REFUSED),
    "make a user namespace": (
        python(f"call({number('unshare')}, 0x10000000)") + "; unshare -Ur true 2>/dev/null && echo DONE", REFUSED
    ),
    "clone into namespaces": (
        python(
            "clone = 56 if os.uname().machine == 'x86_64' else 220\n"
            "for flag in (0x10000000, 0x20000, 0x40000000, 0x20000000): call(clone, flag | 17, 0, 0, 0, 0)"
        ),
        REFUSED,
    ),
    "clone3 into namespaces": (python("call(435, 0, 0)"), REFUSED),
    "enter namespaces": (calls("setns"), REFUSED),
    "make a device node": (
        python(
            "import stat\nfor kind in (stat.S_IFBLK, stat.S_IFCHR):\n"
            "    attempt(os.mknod, f'/tmp/d{kind}', kind | 0o600, os.makedev(8, 0))"
        ),
        REFUSED,
    ),
    "open files by handle": (calls("open_by_handle_at", "name_to_handle_at"), REFUSED),
    "use kernel keyrings": (calls("keyctl", "add_key", "request_key"), REFUSED),
    "use io_uring": (calls("io_uring_setup", "io_uring_enter", "io_uring_register"), REFUSED),
    "load bpf programs": (calls("bpf"), REFUSED),
    "read performance counters": (calls("perf_event_open"), REFUSED),
    "handle page faults": (calls("userfaultfd"), REFUSED),
    "load kernel modules": (calls("init_module", "finit_module", "delete_module"), REFUSED),
    "load another kernel": (calls("kexec_load", "kexec_file_load"), REFUSED),
    "reboot": (calls("reboot"), REFUSED),
    "set the clock": (calls("settimeofday", "clock_settime", "adjtimex", "clock_adjtime"), REFUSED),
    "feed the entropy pool": (
        python(
            "import fcntl\nf = os.open('/dev/random', os.O_RDWR)\n"
            "attempt(fcntl.ioctl, f, 0x40085203, struct.pack('iii', 8, 4, 0))"
        ),
        REFUSED,
    ),
    "drain the entropy pool": ("timeout 20 head -c 50M /dev/urandom | wc -c", "52428800\n"),
    "swap": (calls("swapon", "swapoff"), REFUSED),
    "rename the host": (calls("sethostname", "setdomainname"), REFUSED),
    "watch the file system": (calls("fanotify_init"), REFUSED),
    "use system calls of tomorrow": (python("for n in range(457, 520): call(n, 0, 0, 0)"), r"(ENOSYS\n|EPERM\n){63}"),
    "use x32 system calls": (python("call(0x40000000 + 39)"), f"({REFUSED})?"),  # or ends by SIGSYS
    "reach the hypervisor by vsock": (python("attempt(socket.socket, 40, socket.SOCK_STREAM)"), REFUSED),
    "open raw sockets": (
        python("attempt(socket.socket, 17, socket.SOCK_RAW, 3)\nattempt(socket.socket, 2, socket.SOCK_RAW, 1)"), REFUSED
    ),
    "use the kernel's ciphers": (python("attempt(socket.socket, 38, socket.SOCK_SEQPACKET)"), REFUSED),
    "reach any network": (
        python(
            "for a in (('169.254.169.254', 80), ('172.17.0.1', 22), ('192.168.0.1', 80), ('1.1.1.1', 53)):\n"
            "    s = socket.socket(); s.settimeout(2)\n    print(s.connect_ex(a) == 0)"
        ),
        "(False\n){4}",
    ),
    "find host sockets by name": ("tail -n +2 /proc/net/unix | grep -c '@'", "0\n"),
    "gain privileges by setuid": (
        "grep NoNewPrivs /proc/self/status; cp /bin/bash b; chmod u+s b; ./b -p -c 'id -u' | grep -vx $(id -u)",
        "NoNewPrivs:\t1\n",
    ),
    "keep dangerous capabilities": (
        # beyond CHOWN, DAC_OVERRIDE, FOWNER, SETGID and SETUID nothing may be left
        python(
            "lines = [line.split(':\\t') for line in open('/proc/self/status')]\n"
            "print([int(line[1], 16) & ~0xcb for line in lines if line[0] in ('CapEff', 'CapBnd')])"
        ),
        r"\[0, 0\]\n",
    ),
    "raise resource limits": (
        "(ulimit -Hn 1000000 && echo DONE; ulimit -Hf unlimited && echo DONE) 2>/dev/null; ulimit -Hc", "0\n"
    ),
    "take real-time priority": (
        python("attempt(os.sched_setscheduler, 0, os.SCHED_FIFO, os.sched_param(50))"), REFUSED
    ),
    "hide from the out-of-memory killer": (
        "echo -1000 > /proc/self/oom_score_adj 2>/dev/null && echo DONE", ""
    ),
    "write a file beyond the limit": ("truncate -s 10T big 2>/dev/null && echo DONE", ""),
    "dump core": ("ulimit -c unlimited 2>/dev/null; (kill -SEGV $BASHPID); ls | grep -c core", "0\n"),
    "wait for input": ("cat; read x; echo $?; python3 -c 'input()' 2>/dev/null; echo $?", "1\n1\n"),
    "look like a timeout": ("echo it took too long; exit 124", "it took too long\n"),
}  # fmt: skip

ANSWERS: dict[str, str] = {
    # what the answer is made to be: the command that makes it so
    "link to the password file": "ln -s /etc/shadow answer.txt",
    "link to the environment": "ln -s /proc/self/environ answer.txt",
    "link to itself": "ln -s answer.txt answer.txt",
    "FIFO": "mkfifo answer.txt",
    "FIFO with a writer": "mkfifo answer.txt; (while :; do echo 42 > answer.txt; done) >/dev/null 2>&1 &",
    "folder": "mkdir answer.txt",
    "socket": "python3 -c \"import socket; socket.socket(socket.AF_UNIX).bind('answer.txt')\"",
    "link to a device": "ln -s /dev/zero answer.txt",
    "huge file": "truncate -s 1900M answer.txt || head -c 100M /dev/zero > answer.txt",
    "growing file": "(while :; do head -c 1M /dev/zero; done > answer.txt) 2>/dev/null & sleep 0.5",
}


def one_command(command: str, expected: str) -> Attack:
    async def attack(box: Sandbox) -> None:
        result = await box.exec(command, timeout_s=30)
        assert not result.timed_out, "timed out"
        assert re.fullmatch(expected, result.stdout.decode(errors="replace")), (
            result.stdout[-500:],
            result.stderr[-300:],
        )

    return attack


def hostile_answer(command: str) -> Attack:
    async def attack(box: Sandbox) -> None:
        await box.exec(command)
        start = time.monotonic()
        try:
            answer = await box.read(ANSWER)
        except FileRefused:
            answer = None
        assert answer is None or not answer.strip(), f"read as {answer!r:.80}"
        assert time.monotonic() - start < 2, "waited"

    return attack


async def usable(box: Sandbox) -> None:
    start = time.monotonic()
    result = await box.exec("echo alive | cat", timeout_s=30)
    assert result.stdout == b"alive\n", result
    assert time.monotonic() - start < 5, "slow"


async def count(box: Sandbox, pattern: str) -> int:
    result = await box.exec(f"ps -e -o args | grep -c -e {shlex.quote(pattern)}")
    return int(result.stdout)


async def fork_bomb(box: Sandbox) -> None:
    await box.exec(":(){ :|:& };:", timeout_s=2)
    await usable(box)


async def fork_bomb_that_hides(box: Sandbox) -> None:
    bomb = "import os\nos.setsid()\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    await box.exec(f"env -i setsid python3 -c {shlex.quote(bomb)} >/dev/null 2>&1 & sleep 1", timeout_s=2)
    await usable(box)


async def thread_bomb(box: Sandbox) -> None:
    bomb = "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(60,)).start()"
    await box.exec(f"python3 -c {shlex.quote(bomb)} 2>/dev/null", timeout_s=3)
    await usable(box)


async def zombie_bomb(box: Sandbox) -> None:
    bomb = "import os, time\nwhile os.fork(): pass"
    await box.exec(f"python3 -c {shlex.quote(bomb)} 2>/dev/null", timeout_s=3)
    await usable(box)


async def memory_bomb(box: Sandbox) -> None:
    result = await box.exec("python3 -c 'a = []\nwhile True: a.append(bytearray(10 ** 7))'", timeout_s=30)
    assert not result.timed_out and result.exit_code != 0
    await usable(box)


async def memory_bomb_of_many(box: Sandbox) -> None:
    one = "exec python3 -c 'import time; a = bytearray(3 * 10 ** 8); time.sleep(60)'"
    result = await box.exec(
        f"for i in 1 2 3 4 5 6; do ({one}) & done; wait -n || echo lost; kill $(jobs -p)", timeout_s=30
    )
    assert b"lost" in result.stdout, "six times 300 MB fitted"
    await usable(box)


async def memory_bomb_unkillable(box: Sandbox) -> None:
    await box.exec("echo 0 > /proc/self/oom_score_adj; trap '' TERM; tail /dev/zero", timeout_s=30)
    await usable(box)


def fill(path: str) -> Attack:
    async def attack(box: Sandbox) -> None:
        result = await box.exec(
            f"head -c 3G /dev/zero > {path}/big; ls -l {path}/big | cut -d' ' -f5; rm -f {path}/big", timeout_s=60
        )
        assert int(result.stdout.split()[0] if result.stdout else 0) < 3 << 30, "3 GiB written"
        await usable(box)

    return attack


async def inode_bomb(box: Sandbox) -> None:
    bomb = "import os\nfor n in range(10 ** 7): os.mkdir(f'd{n}')"
    await box.exec(f"python3 -c {shlex.quote(bomb)} 2>/dev/null", timeout_s=3)
    await usable(box)


async def descriptor_bomb(box: Sandbox) -> None:
    bomb = "import os\na = []\nwhile True: a.append(os.pipe())"
    result = await box.exec(f"python3 -c {shlex.quote(bomb)} 2>&1 | tail -1", timeout_s=10)
    assert b"Too many open files" in result.stdout
    await usable(box)


async def endless_output(box: Sandbox) -> None:
    result = await box.exec("yes & yes >&2", timeout_s=2, max_bytes=10_000)
    assert result.timed_out and len(result.stdout) <= 10_000 and len(result.stderr) <= 10_000
    assert result.stdout_bytes > 10_000 and result.stderr_bytes > 10_000
    await usable(box)


async def many_pipe_holders(box: Sandbox) -> None:
    for _ in range(5):
        await asyncio.gather(*(box.exec("sleep 100 & true") for _ in range(10)))
    await usable(box)


async def processor_hog(box: Sandbox) -> None:
    await box.exec("for i in 1 2 3 4 5 6 7 8; do (while :; do :; done) >/dev/null 2>&1 & done")
    await usable(box)


async def ignored_timeout(box: Sandbox) -> None:
    start = time.monotonic()
    result = await box.exec("trap '' TERM INT HUP QUIT; while :; do sleep 1; done", timeout_s=1)
    assert result.timed_out and time.monotonic() - start < 3
    await usable(box)


def outlive_timeout(command: str) -> Attack:
    async def attack(box: Sandbox) -> None:
        result = await box.exec(f"{command}\nsleep 100", timeout_s=1)
        assert result.timed_out
        assert await count(box, "^sleep 77") == 0

    return attack


async def held_output(box: Sandbox) -> None:
    start = time.monotonic()
    result = await box.exec("sleep 8 & echo started")
    assert result.stdout == b"started\n" and time.monotonic() - start < 2


async def killed_executor(box: Sandbox) -> None:
    await box.exec("kill -9 1; kill -TERM 1; kill -STOP 1; kill -9 -1", timeout_s=5)
    await usable(box)
    await box.exec("pkill -9 python3; pkill -STOP python3; killall python3", timeout_s=5)
    await usable(box)


async def removed_system(box: Sandbox) -> None:
    await box.exec(
        "rm -rf --no-preserve-root / 2>/dev/null; rm -rf /usr /bin /lib /testbed/* 2>/dev/null", timeout_s=60
    )
    await box.write({"still": b"here"})
    assert await box.read("still") == b"here"
    await box.exec("true")  # whatever it answers, it answers


async def long_command(box: Sandbox) -> None:
    result = await box.exec(f"echo {'x' * 200_000} | wc -c")
    assert result.stdout == b"200001\n"


async def odd_names(box: Sandbox) -> None:
    names = ["/testbed/documents/a\nb ü 名.txt", "/testbed/documents/-rf", "/testbed/documents/$(id)`id`'\""]
    await box.write({name: name.encode() for name in names})
    for name in names:
        assert await box.read(name) == name.encode()


async def planted_links(box: Sandbox) -> None:
    await box.exec("rm -rf documents; ln -s /etc documents; ln -s /etc/passwd link; mkfifo pipe")
    for path in ("documents/planted", "link", "pipe"):
        try:
            await asyncio.wait_for(box.write({path: b"x"}), 5)
        except FileRefused as error:
            assert error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO, errno.EINVAL), error
        else:
            raise AssertionError(f"written through {path}")


async def switched_answer(box: Sandbox) -> None:
    """The answer changes between a file and a link to a secret as fast as it can: the file is read, or nothing."""
    switch = "echo mine > a; mv a answer.txt; ln -s /tmp/secret b; mv b answer.txt"
    await box.exec(f"echo secret > /tmp/secret; (while :; do {switch}; done) >/dev/null 2>&1 &")
    for _ in range(300):
        try:
            assert await box.read(ANSWER) in (b"mine\n", b""), "the link was followed"
        except FileRefused:
            continue


ATTACKS: dict[str, Attack] = {
    **{name: one_command(*row) for name, row in COMMANDS.items()},
    **{f"answer: {name}": hostile_answer(command) for name, command in ANSWERS.items()},
    "answer: switched while it is read": switched_answer,
    "write through planted links": planted_links,
    "odd file names": odd_names,
    "a command of 200 kB": long_command,
    "ignore the timeout": ignored_timeout,
    "outlive the timeout by setsid": outlive_timeout("setsid nohup sleep 777 >/dev/null 2>&1 &"),
    "outlive the timeout by a double fork": outlive_timeout("(setsid sh -c 'sleep 777 & sleep 778' >/dev/null 2>&1 &)"),
    "outlive the timeout without environment": outlive_timeout("env -i setsid nohup sleep 777 >/dev/null 2>&1 &"),
    "hold the output": held_output,
    "kill the executor": killed_executor,
    "remove the system": removed_system,
}
BOMBS: dict[str, Attack] = {
    "fork bomb": fork_bomb,
    "fork bomb that hides": fork_bomb_that_hides,
    "thread bomb": thread_bomb,
    "zombie bomb": zombie_bomb,
    "memory bomb": memory_bomb,
    "memory bomb of many processes": memory_bomb_of_many,
    "memory bomb that resists": memory_bomb_unkillable,
    "fill the working directory": fill("/testbed"),
    "fill the temporary directory": fill("/tmp"),
    "fill shared memory": fill("/dev/shm"),
    "fill the root file system": fill("/var"),
    "make files without end": inode_bomb,
    "open files without end": descriptor_bomb,
    "write output without end": endless_output,
    "hold many pipes": many_pipe_holders,
    "use every processor": processor_hog,
}

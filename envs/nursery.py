"""The program from which bubblewrap's sandboxes are forked: one interpreter, started once inside the root filesystem
that all sandboxes of a backend see, forks each of them with namespaces of its own. A fork takes 3 ms where a bwrap and
an interpreter for each take 20.

    python3 -I -S -OO -c "..." DESCRIPTOR      of the host's socket (SOCK_SEQPACKET)

The first message is `Settings` as JSON; the nursery answers `up` when it is ready and says no more. Each further
message asks for one sandbox: a user id in decimal digits, and with it the stream that the sandbox's executor shall
serve. The first byte on that stream is a NUL that carries a pidfd of the new PID 1; from then on the executor speaks
(`envs/executor.py`). What goes wrong is said on standard error, and the stream ends.

What a sandbox may not do is decided between the fork and the executor's first frame, by this file alone, before
anything of a stranger's runs in it: it enters a user, pid, mount, network, ipc, uts and cgroup namespace, takes fresh
filesystems for all that is writable, forbids itself user namespaces, drops every capability and installs the system
call filter. The nursery never reads what a sandbox sends. Its end is the end of its pid namespace, and so of all that
it forked; the end of its socket is its own end.

Any Python from 3.9 on runs it, as the root filesystem has it.
"""

import contextlib
import ctypes
import errno
import fcntl
import gc
import json
import os
import signal
import socket
import struct
import sys
from typing import NoReturn, TypedDict

from envs import executor

INSIDE_UID = 1000
"""Of every sandbox, in its own user namespace."""
MAX_SETTINGS = 1 << 16
FILTER_PATH = "/run/nursery/seccomp.bpf"
"""The system call filter, a BPF program. A sandbox has a /run of its own over it."""

NEW_MOUNTS, NEW_CGROUP, NEW_UTS, NEW_IPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
NEW_USER, NEW_PID, NEW_NETWORK = 0x10000000, 0x20000000, 0x40000000
NO_SUID, NO_DEVICES, NO_PROGRAMS = 2, 4, 8
PRIVATE, RECURSIVE = 0x40000, 0x4000
SET_DUMPABLE, SET_SECCOMP, DROP_BOUNDING, NO_NEW_PRIVILEGES = 4, 22, 24, 38
SECCOMP_FILTER = 2
CAPABILITY_VERSION = 0x20080522
READ_FLAGS, WRITE_FLAGS, INTERFACE_UP = 0x8913, 0x8914, 1

libc = ctypes.CDLL(None, use_errno=True)


class Settings(TypedDict):
    """What all sandboxes of a nursery have in common."""

    folders: dict[str, str]
    """Memory filesystems: where, and tmpfs options. The mount points exist."""
    hostname: str
    """Empty: the host's name and the host's network."""
    limits: dict[str, int]
    """Of the executor (`envs.executor.serve`)."""


def main() -> None:
    executor.refuse_elsewhere()
    control = socket.socket(fileno=int(sys.argv[1]))
    close_all_but(control.fileno())
    settings: Settings = json.loads(control.recv(MAX_SETTINGS))
    with open(FILTER_PATH, "rb") as file:
        system_call_filter = file.read()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for a sandbox here: the kernel shall not keep it
    gc.collect()
    gc.freeze()  # else each fork's first collection would copy every page
    control.send(b"up")
    while True:
        request, streams, _, _ = socket.recv_fds(control, 64, 1)
        if not request:
            return
        os.set_inheritable(streams[0], False)  # `recv_fds` ignores the flag that would say so
        try:
            if os.fork() == 0:
                control.close()
                become_sandbox(int(request), streams[0], settings, system_call_filter)
        except OSError as error:
            complain(error)
        os.close(streams[0])


def close_all_but(kept: int) -> None:
    """bwrap leaves descriptors open, at numbers as high as the host's own."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) != kept:
            with contextlib.suppress(OSError):  # of the listing itself
                os.close(int(name))


def become_sandbox(uid: int, stream: int, settings: Settings, system_call_filter: bytes) -> NoReturn:
    """Two forks below the nursery: the first enters the namespaces, the second is PID 1 in them."""
    try:
        enter_namespaces(uid, own_network=bool(settings["hostname"]))
        if os.fork() == 0:
            os.setsid()
            report_birth(stream)
            mount_own_filesystems(settings["folders"])
            write("/proc/sys/user/max_user_namespaces", b"0")
            if settings["hostname"]:
                check(libc.sethostname(settings["hostname"].encode(), len(settings["hostname"])), "sethostname")
                raise_loopback()
            os.chdir(executor.WORKDIR)
            drop_privileges(system_call_filter)
            executor.serve(stream, settings["limits"])
        os._exit(0)
    except BrokenPipeError:  # the host has left
        os._exit(0)
    except BaseException as error:
        complain(error)
        os._exit(1)


def enter_namespaces(uid: int, own_network: bool) -> None:
    """Become the user `uid` and make namespaces, where that user is INSIDE_UID and holds every capability for now."""
    if uid != os.getuid():
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        check(libc.prctl(SET_DUMPABLE, 1, 0, 0, 0), "prctl")  # else its own /proc/self were closed to it
    namespaces = NEW_USER | NEW_PID | NEW_MOUNTS | NEW_IPC | NEW_UTS | NEW_CGROUP
    check(libc.unshare(namespaces | (NEW_NETWORK if own_network else 0)), "unshare")
    write("/proc/self/setgroups", b"deny")
    write("/proc/self/uid_map", b"%d %d 1" % (INSIDE_UID, uid))
    write("/proc/self/gid_map", b"%d %d 1" % (INSIDE_UID, uid))


def report_birth(stream: int) -> None:
    """Hand the host a descriptor of this process."""
    me = os.pidfd_open(os.getpid())
    with socket.socket(fileno=os.dup(stream)) as host:
        socket.send_fds(host, [b"\0"], [me])
    os.close(me)


def mount_own_filesystems(folders: dict[str, str]) -> None:
    """Cover all that shows the nursery's processes and terminals, and all that can be written."""
    mount("none", "/", "", RECURSIVE | PRIVATE)
    mount("proc", "/proc", "proc", NO_SUID | NO_DEVICES | NO_PROGRAMS)
    mount("devpts", "/dev/pts", "devpts", NO_SUID | NO_PROGRAMS, "newinstance,ptmxmode=0666,mode=620")
    for folder, options in folders.items():
        mount("tmpfs", folder, "tmpfs", NO_SUID | NO_DEVICES, options)


def raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plain:
        request = fcntl.ioctl(plain, READ_FLAGS, struct.pack("16sH22x", b"lo", 0))
        (flags,) = struct.unpack_from("H", request, 16)
        fcntl.ioctl(plain, WRITE_FLAGS, struct.pack("16sH22x", b"lo", flags | INTERFACE_UP))


def drop_privileges(system_call_filter: bytes) -> None:
    """No capability is left and none can be had again; from here on the filter decides."""
    capability = 0
    while libc.prctl(DROP_BOUNDING, capability, 0, 0, 0) == 0:
        capability += 1
    if not capability or ctypes.get_errno() != errno.EINVAL:  # it ends past the kernel's last one
        raise OSError(ctypes.get_errno(), "capabilities could not be dropped")
    check(libc.capset(struct.pack("Ii", CAPABILITY_VERSION, 0), bytes(24)), "capset")
    check(libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0), "prctl")
    instructions = ctypes.create_string_buffer(system_call_filter, len(system_call_filter))
    program = struct.pack("HP", len(system_call_filter) // 8, ctypes.addressof(instructions))
    check(libc.prctl(SET_SECCOMP, SECCOMP_FILTER, program, 0, 0), "seccomp")


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    check(libc.mount(source.encode(), target.encode(), kind.encode(), flags, options.encode()), f"mount {target}")


def write(path: str, data: bytes) -> None:
    """In one call, as the kernel's files want it."""
    file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(file, data)
    finally:
        os.close(file)


def check(result: int, what: str) -> None:
    """Raise what the C library's call left in errno."""
    if result:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def complain(error: BaseException) -> None:
    sys.excepthook(type(error), error, error.__traceback__)
    sys.stderr.flush()

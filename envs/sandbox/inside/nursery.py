"""The program from which bubblewrap's sandboxes are forked: one interpreter, started once inside the root filesystem
that all sandboxes of a backend see, forks each of them with namespaces of its own. A sandbox's start and end take 6 ms
of a core; with a bwrap and an interpreter for each they took 16.

    python3 -I -S -OO -c "..." DESCRIPTOR      of the host's socket (SOCK_SEQPACKET)

The first message is settings, as the fields of an executor's header; the nursery answers `up` when it is ready and says
no more. Each further message asks for one sandbox: a user id in decimal digits, and with it the stream that the
sandbox's executor shall serve. The first byte on that stream is a NUL that carries a pidfd of the new PID 1; from then
on the executor speaks (`envs/sandbox/inside/serve.py`). What goes wrong is said on standard error, and the stream
ends.

    hostname=              empty: the host's name, and the host's network
    folder./PATH=OPTIONS   a memory filesystem of each sandbox, with options of tmpfs; the mount point exists
    limit.NAME=N           of the executor (`serve`)

Started by root it is root with two capabilities, so that each sandbox can become a user of its own first: what the
kernel allows a user at most (watches, queues, processes) it counts through all user namespaces up to the first, so
sandboxes below a namespace of the nursery would share one user's. Otherwise all sandboxes are the nursery's own user.

What a sandbox may not do is decided between the fork and the executor's first frame, by this file alone, before
anything of a stranger's runs in it: it enters a user, pid, mount, network, ipc, uts and cgroup namespace, takes fresh
filesystems for all that is writable, forbids itself user namespaces, drops every capability and installs the system
call filter. The nursery never reads what a sandbox sends. Its end is the end of its pid namespace, and so of all that
it forked; the end of its socket is its own end.

Any Python from 3.9 on runs it, as the root filesystem has it. It imports little: every page of it is a page that each
fork may have to copy.
"""

from __future__ import annotations

import _signal
import _socket
import ctypes
import errno
import fcntl
import gc
import posix
import struct
import sys

from sandboxrl.envs.sandbox.inside.commands import WORKDIR
from sandboxrl.envs.sandbox.inside.frames import unpack_header
from sandboxrl.envs.sandbox.inside.processes import refuse_elsewhere
from sandboxrl.envs.sandbox.inside.serve import serve

INSIDE_UID = 1000
"""Of every sandbox, in its own user namespace."""
MAX_MESSAGE = 1 << 16
FILTER_PATH = "/run/nursery/seccomp.bpf"
"""The system call filter, a BPF program. A sandbox has a /run of its own over it."""

NEW_MOUNTS, NEW_CGROUP, NEW_UTS, NEW_IPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
NEW_USER, NEW_PID, NEW_NETWORK = 0x10000000, 0x20000000, 0x40000000
NO_SUID, NO_DEVICES, NO_PROGRAMS = 2, 4, 8
PRIVATE, RECURSIVE = 0x40000, 0x4000
SET_DUMPABLE, SET_SECCOMP, DROP_BOUNDING, NO_NEW_PRIVILEGES = 4, 22, 24, 38
SECCOMP_FILTER = 2
CAPABILITY_VERSION = 0x20080522
CLOSE_ON_EXEC = 0x40000000  # MSG_CMSG_CLOEXEC
SET_GROUP, SET_USER = 1 << 6, 1 << 7
READ_FLAGS, WRITE_FLAGS, INTERFACE_UP = 0x8913, 0x8914, 1
DESCRIPTOR = struct.Struct("i")

libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    refuse_elsewhere()
    control = _socket.socket(fileno=int(sys.argv[1]))
    close_all_but(control.fileno())
    if posix.getuid() == 0:
        # bwrap's, for root, has parts covered, and below such a one no user namespace may have its own
        mount("proc", "/proc", "proc", NO_SUID | NO_DEVICES | NO_PROGRAMS)
        posix.setgroups([])
        keep_capabilities(SET_USER | SET_GROUP)
    settings = Settings(control.recv(MAX_MESSAGE))
    _signal.signal(_signal.SIGCHLD, _signal.SIG_IGN)  # nobody waits for a sandbox: the kernel shall not keep it
    gc.collect()
    gc.freeze()  # else each fork's first collection would copy every page
    control.send(b"up")
    while True:
        request, received, _, _ = control.recvmsg(MAX_MESSAGE, _socket.CMSG_LEN(DESCRIPTOR.size), CLOSE_ON_EXEC)
        if not request:
            return
        (stream,) = DESCRIPTOR.unpack(received[0][2])
        try:
            if posix.fork() == 0:
                become_sandbox(control, request, stream, settings)
        except OSError as error:
            complain(error)
        posix.close(stream)


class Settings:
    """What all sandboxes of a nursery have in common. Raises ValueError, KeyError, OSError."""

    def __init__(self, message: bytes) -> None:
        fields = unpack_header(message)
        self.hostname = fields[b"hostname"]
        self.folders = {name[7:]: options for name, options in fields.items() if name.startswith(b"folder.")}
        self.limits = {name[6:].decode(): int(limit) for name, limit in fields.items() if name.startswith(b"limit.")}
        with open(FILTER_PATH, "rb") as file:
            self.system_call_filter = file.read()


def close_all_but(kept: int) -> None:
    """bwrap leaves descriptors open, at numbers as high as the host's own."""
    for name in posix.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) != kept:
            try:
                posix.close(int(name))
            except OSError:
                pass  # of the listing itself


def become_sandbox(control: _socket.socket, request: bytes, stream: int, settings: Settings) -> None:
    """Two forks below the nursery: the first enters the namespaces, the second is PID 1 in them. Never returns."""
    try:
        control.close()
        enter_namespaces(int(request), own_network=bool(settings.hostname))
        if posix.fork() == 0:
            posix.setsid()
            report_birth(stream)
            mount_own_filesystems(settings.folders)
            write("/proc/sys/user/max_user_namespaces", b"0")
            if settings.hostname:
                check(libc.sethostname(settings.hostname, len(settings.hostname)), "sethostname")
                raise_loopback()
            posix.chdir(WORKDIR)
            drop_privileges(settings.system_call_filter)
            serve(stream, settings.limits)
        posix._exit(0)
    except BrokenPipeError:  # the host has left
        posix._exit(0)
    except BaseException as error:
        complain(error)
        posix._exit(1)


def enter_namespaces(uid: int, own_network: bool) -> None:
    """Become the user `uid` and make namespaces, where that user is INSIDE_UID and holds every capability for now."""
    if uid != posix.getuid():
        posix.setresgid(uid, uid, uid)
        posix.setresuid(uid, uid, uid)
        check(libc.prctl(SET_DUMPABLE, 1, 0, 0, 0), "prctl")  # else its own /proc/self were closed to it
    namespaces = NEW_USER | NEW_PID | NEW_MOUNTS | NEW_IPC | NEW_UTS | NEW_CGROUP
    check(libc.unshare(namespaces | (NEW_NETWORK if own_network else 0)), "unshare")
    write("/proc/self/setgroups", b"deny")
    write("/proc/self/uid_map", b"%d %d 1" % (INSIDE_UID, uid))
    write("/proc/self/gid_map", b"%d %d 1" % (INSIDE_UID, uid))


def report_birth(stream: int) -> None:
    """Hand the host a descriptor of this process."""
    me = posix.pidfd_open(posix.getpid())
    host = _socket.socket(fileno=posix.dup(stream))
    host.sendmsg([b"\0"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, DESCRIPTOR.pack(me))])
    host.close()
    posix.close(me)


def mount_own_filesystems(folders: dict[bytes, bytes]) -> None:
    """Cover all that shows the nursery's processes and terminals, and all that can be written."""
    mount("none", "/", "", RECURSIVE | PRIVATE)
    mount("proc", "/proc", "proc", NO_SUID | NO_DEVICES | NO_PROGRAMS)
    mount("devpts", "/dev/pts", "devpts", NO_SUID | NO_PROGRAMS, b"newinstance,ptmxmode=0666,mode=620")
    for folder, options in folders.items():
        mount("tmpfs", folder.decode(), "tmpfs", NO_SUID | NO_DEVICES, options)


def raise_loopback() -> None:
    plain = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
    request = fcntl.ioctl(plain.fileno(), READ_FLAGS, struct.pack("16sH22x", b"lo", 0))
    (flags,) = struct.unpack_from("H", request, 16)
    fcntl.ioctl(plain.fileno(), WRITE_FLAGS, struct.pack("16sH22x", b"lo", flags | INTERFACE_UP))
    plain.close()


def drop_privileges(system_call_filter: bytes) -> None:
    """No capability is left and none can be had again; from here on the filter decides."""
    capability = 0
    while libc.prctl(DROP_BOUNDING, capability, 0, 0, 0) == 0:
        capability += 1
    if not capability or ctypes.get_errno() != errno.EINVAL:  # it ends past the kernel's last one
        raise OSError(ctypes.get_errno(), "capabilities could not be dropped")
    keep_capabilities(0)
    check(libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0), "prctl")
    instructions = ctypes.create_string_buffer(system_call_filter, len(system_call_filter))
    program = struct.pack("HP", len(system_call_filter) // 8, ctypes.addressof(instructions))
    check(libc.prctl(SET_SECCOMP, SECCOMP_FILTER, program, 0, 0), "seccomp")


def keep_capabilities(kept: int) -> None:
    sets = struct.pack("6I", kept, kept, 0, 0, 0, 0)  # effective, permitted, inheritable; then those above 31
    check(libc.capset(struct.pack("Ii", CAPABILITY_VERSION, 0), sets), "capset")


def mount(source: str, target: str, kind: str, flags: int, options: bytes = b"") -> None:
    check(libc.mount(source.encode(), target.encode(), kind.encode(), flags, options), f"mount {target}")


def write(path: str, data: bytes) -> None:
    """In one call, as the kernel's files want it."""
    file = posix.open(path, posix.O_WRONLY | posix.O_CLOEXEC)
    try:
        posix.write(file, data)
    finally:
        posix.close(file)


def check(result: int, what: str) -> None:
    """Raise what the C library's call left in errno."""
    if result:
        raise OSError(ctypes.get_errno(), f"{what}: {posix.strerror(ctypes.get_errno())}")


def complain(error: BaseException) -> None:
    sys.excepthook(type(error), error, error.__traceback__)
    sys.stderr.flush()

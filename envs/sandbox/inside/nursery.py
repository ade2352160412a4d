"""The program from which bubblewrap's sandboxes are forked: one interpreter, started once inside the root that all
sandboxes of a backend see or set out from, forks each of them with namespaces of its own. A sandbox's start and end
take 6 ms of a core; with a bwrap and an interpreter for each they took 16.

    python3 -I -S -OO -c "..." DESCRIPTOR      of the host's socket (SOCK_SEQPACKET)

The first message is settings, as the fields of an executor's header; the nursery answers `up` when it is ready and says
no more. Each further message asks for one sandbox: a user id in decimal digits, and with it the stream that the
sandbox's executor shall serve. The first byte on that stream is a NUL that carries a pidfd of the new PID 1; from then
on the executor speaks (`envs/sandbox/inside/serve.py`). What goes wrong is said on standard error, and the stream
ends.

    hostname=              empty: the host's name, and the host's network
    root= names=           not empty: a root filesystem folder is entered, and it has a place for name servers
    folder./PATH=OPTIONS   a memory filesystem of each sandbox, with options of tmpfs; the mount point exists
    kernel.NAME=VALUE      a setting below /proc/sys/kernel of each sandbox's own System V objects
    limit.NAME=N           of the executor (`serve`)

Started by root it is root with two capabilities, so that each sandbox can become a user of its own first: what the
kernel allows a user at most (watches, queues, processes) it counts through all user namespaces up to the first, so
sandboxes below a namespace of the nursery would share one user's. Otherwise all sandboxes are the nursery's own user.

What a sandbox may not do is decided between the fork and the executor's first frame, by this file alone, before
anything of a stranger's runs in it: it enters a user, pid, mount, network, ipc, uts and cgroup namespace, takes fresh
filesystems for all that is writable, forbids itself user namespaces, drops every capability and installs the system
call filter. The nursery never reads what a sandbox sends. Its end is the end of its pid namespace, and so of all that
it forked; the end of its socket is its own end.

Any Python from 3.9 on runs it; it is the host's own, and nothing of a root filesystem folder. It imports little: every
page of it is a page that each fork may have to copy.
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
from sandboxrl.envs.sandbox.inside.frames import CLOSE_ON_EXEC, DESCRIPTOR, unpack_header
from sandboxrl.envs.sandbox.inside.kernel import (
    BIND,
    CAPABILITY_VERSION,
    DROP_BOUNDING,
    INTERFACE_UP,
    NEW_CGROUP,
    NEW_IPC,
    NEW_MOUNTS,
    NEW_NETWORK,
    NEW_PID,
    NEW_USER,
    NEW_UTS,
    NO_DEVICES,
    NO_NEW_PRIVILEGES,
    NO_PROGRAMS,
    NO_SUID,
    PRIVATE,
    READ_FLAGS,
    RECURSIVE,
    SECCOMP_FILTER,
    SET_DUMPABLE,
    SET_GROUP,
    SET_SECCOMP,
    SET_USER,
    WRITE_FLAGS,
    check,
    libc,
    mount,
    write,
)
from sandboxrl.envs.sandbox.inside.processes import refuse_elsewhere
from sandboxrl.envs.sandbox.inside.root import MEMORY, enter_root
from sandboxrl.envs.sandbox.inside.serve import serve

INSIDE_UID = 1000
"""Of every sandbox, in its own user namespace."""
MAX_MESSAGE = 1 << 16
MAX_TERMINALS = 64
"""Of a sandbox; the machine has 4096."""
FILTER_PATH, STRICT_FILTER_PATH = "/run/nursery/seccomp.bpf", "/run/nursery/strict.bpf"
"""The system call filter, a BPF program, and the one for a kernel on which System V objects cannot be bounded. A
sandbox has a /run of its own over them."""


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
        self.root, self.has_names = bool(fields[b"root"]), bool(fields[b"names"])
        self.folders = {name[7:]: options for name, options in fields.items() if name.startswith(b"folder.")}
        self.limits = {name[6:].decode(): int(limit) for name, limit in fields.items() if name.startswith(b"limit.")}
        self.kernel = {name[7:].decode(): value for name, value in fields.items() if name.startswith(b"kernel.")}
        with open(FILTER_PATH, "rb") as file:
            self.system_call_filter = file.read()
        with open(STRICT_FILTER_PATH, "rb") as file:
            self.strict_filter = file.read()


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
        become_user(int(request))
        bounded = enter_bounded_ipc(settings.kernel)
        enter_namespaces(own_network=bool(settings.hostname))
        if posix.fork() == 0:
            posix.setsid()
            report_birth(stream)
            mount_own_filesystems(settings)
            write("/proc/sys/user/max_user_namespaces", b"0")
            if settings.hostname:
                check(libc.sethostname(settings.hostname, len(settings.hostname)), "sethostname")
                raise_loopback()
            posix.chdir(WORKDIR)
            drop_privileges(settings.system_call_filter if bounded else settings.strict_filter)
            serve(stream, settings.limits)
        posix._exit(0)
    except BrokenPipeError:  # the host has left
        posix._exit(0)
    except BaseException as error:
        complain(error)
        posix._exit(1)


def become_user(uid: int) -> None:
    if uid != posix.getuid():
        posix.setresgid(uid, uid, uid)
        posix.setresuid(uid, uid, uid)
        check(libc.prctl(SET_DUMPABLE, 1, 0, 0, 0), "prctl")  # else its own /proc/self were closed to it


def enter_bounded_ipc(settings: dict[str, bytes]) -> bool:
    """An ipc namespace in which System V objects, which outlive what made them, are few and small. The kernel lets only
    its own uid 0 say so, hence the user namespace for that alone. False: this kernel does not (before 6.2)."""
    enter_user_namespace(NEW_IPC, inside=0)
    try:
        for name, value in settings.items():
            write(f"/proc/sys/kernel/{name}", value)
    except PermissionError:
        return False
    return True


def enter_namespaces(own_network: bool) -> None:
    """Namespaces in which this user is INSIDE_UID and holds every capability for now."""
    namespaces = NEW_PID | NEW_MOUNTS | NEW_UTS | NEW_CGROUP
    enter_user_namespace(namespaces | (NEW_NETWORK if own_network else 0), INSIDE_UID)


def enter_user_namespace(others: int, inside: int) -> None:
    uid = posix.getuid()
    check(libc.unshare(NEW_USER | others), "unshare")
    write("/proc/self/setgroups", b"deny")
    write("/proc/self/uid_map", b"%d %d 1" % (inside, uid))
    write("/proc/self/gid_map", b"%d %d 1" % (inside, uid))


def report_birth(stream: int) -> None:
    """Hand the host a descriptor of this process."""
    me = posix.pidfd_open(posix.getpid())
    host = _socket.socket(fileno=posix.dup(stream))
    host.sendmsg([b"\0"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, DESCRIPTOR.pack(me))])
    host.close()
    posix.close(me)


def mount_own_filesystems(settings: Settings) -> None:
    """Cover all that shows the nursery's processes and terminals, and all that can be written."""
    mount("none", "/", "", RECURSIVE | PRIVATE)
    terminals = b"newinstance,ptmxmode=0666,mode=620,max=%d" % MAX_TERMINALS
    mount("devpts", "/dev/pts", "devpts", NO_SUID | NO_PROGRAMS, terminals)
    if settings.root:
        enter_root(settings.folders, settings.has_names)
        return
    mount("proc", "/proc", "proc", NO_SUID | NO_DEVICES | NO_PROGRAMS)
    mount(MEMORY, "/proc/meminfo", "", BIND)
    for folder, options in settings.folders.items():
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


def complain(error: BaseException) -> None:
    sys.excepthook(type(error), error, error.__traceback__)
    sys.stderr.flush()

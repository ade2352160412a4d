"""Sandboxes without a daemon: Linux namespaces, for root and for an ordinary user alike.

`bwrap` makes once, for all sandboxes of a backend, the root that they see: read-only, the host's system directories by
allow-list or a root filesystem folder. In it the nursery (`envs/sandbox/inside/nursery.py`) forks each sandbox, which
has its own user, pid, mount, network, ipc, uts and cgroup namespaces, no capability, a system call filter
(`envs/sandbox/host/seccomp.py`) and no way to further user namespaces. Writes go to size-limited memory filesystems
that vanish with it.

No sandbox runs as uid 0: mapped to the host's root, it could write `/proc/sys/kernel/core_pattern`. Root gives each a
uid of its own; an ordinary user keeps its own. Root that may not mount (in a container) gives one uid to all of a
backend.

Size: the backend and its nursery share one protocol with the programs inside; apart, each would be half of a sentence.
"""

import asyncio
import contextlib
import errno
import fcntl
import functools
import os
import re
import secrets
import shutil
import signal
import socket
import stat
import struct
import subprocess
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from sandboxrl.envs.sandbox.bubblewrap.cgroups import Cgroups
from sandboxrl.envs.sandbox.bubblewrap.root import DESCRIPTOR, HOME, Placed, has_own, placed, root_seen
from sandboxrl.envs.sandbox.host import lease, program, seccomp
from sandboxrl.envs.sandbox.host.wire import HELLO_S, Box, Kin, Symptoms, executor_limits, new_id
from sandboxrl.envs.sandbox.inside.frames import pack_header
from sandboxrl.envs.sandbox.inside.nursery import FILTER_PATH, INSIDE_UID, STRICT_FILTER_PATH
from sandboxrl.envs.sandbox.network import packet_filter
from sandboxrl.envs.sandbox.network.links import Bridge
from sandboxrl.envs.sandbox.protocol import (
    OF_A_USER,
    SHARED,
    UDP,
    UNCOUNTED,
    WORKDIR,
    BackendUnavailable,
    Sandbox,
    SandboxConfig,
    SandboxDied,
    TmpfsSizes,
)

FIRST_UID, NUM_UIDS = 0x70000000, 1 << 24
"""Root gives each sandbox a random uid of a range that nothing else uses, so that limits the kernel keeps per user
(pipes, inotify, processes on old kernels) are the sandbox's own."""
CAP_SYS_ADMIN = 1 << 21
PIDFD_GET_INFO, PIDFD_INFO_EXIT = 0xC040FF0B, 1 << 3
CLOSE_S = 2.0
FULL_S = 0.001
"""How long to wait when the nursery has more requests than its socket holds."""
EXHAUSTED = "Resource temporarily unavailable"
OLDEST_VERSION = (0, 5)

ARGUMENTS = ("--unshare-pid", "--as-pid-1", "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--clearenv")
PROGRAM = "/run/nursery"
"""Where the nursery finds itself. A sandbox has a /run of its own over it."""
INTERPRETERS = ("/usr/bin/python3", "/usr/local/bin/python3")
START = ["-OO", *program.words(PROGRAM, "nursery")]


class Bubblewrap:
    """The `bubblewrap` backend (`envs.sandbox.protocol.Backend`). One event loop uses it, and its sandboxes end with
    it."""

    name = "bubblewrap"

    def __init__(self, config: SandboxConfig) -> None:
        """Raises BackendUnavailable when this machine cannot start a sandbox, with the command that fixes it."""
        self._config = config
        self._program = _find_program()
        self._bridge = Bridge.open() if config.network == "egress" else None
        self._cgroups = Cgroups.find(config.limits)
        arguments, files = root_seen(config)
        self._arguments, self._files = [*ARGUMENTS, *arguments], [*files, *_own_files(counted=bool(self._cgroups))]
        folders = _folders(config)
        self._settings = _settings(config, folders, watch_memory=not self._cgroups)
        self._kept = tuple(folder for folder in folders if folder != "/run")
        self._nursery: _Nursery | None = None
        self._closed = False
        self._try()

    async def start(self, image: str = "") -> Sandbox:
        """A ready sandbox. Raises SandboxDied; BackendUnavailable for an `image`, which only Docker has."""
        if image:
            raise BackendUnavailable(
                f"task asks for image {image!r}: the bubblewrap backend has no images, only sandbox.rootfs; "
                "use sandbox.backend=docker"
            )
        return await self._fresh()

    async def _fresh(self) -> Box:
        try:
            nursery = self._living_nursery()
            before = nursery.said_bytes()
        except OSError as error:  # this machine is out of descriptors
            raise SandboxDied(f"a sandbox did not start: {error}") from error
        try:
            return await self._start(nursery)
        except (SandboxDied, OSError) as error:
            raise SandboxDied(f"{error}: {nursery.said(before)}") from error

    async def _start(self, nursery: "_Nursery") -> Box:
        identity = new_id()
        process, stream = await nursery.fork()
        settling = asyncio.ensure_future(self._settle(identity, process))

        async def end() -> None:
            await asyncio.wait([settling])  # its thread cannot be stopped, and what it makes is removed below
            if not settling.cancelled():
                settling.exception()  # the start reports it, unless nobody waits for the start any more
            await _end(process)
            if self._cgroups:
                await asyncio.to_thread(self._cgroups.remove, identity)

        try:
            reader, writer = await asyncio.open_connection(sock=stream)
        except BaseException:
            stream.close()
            await asyncio.shield(asyncio.create_task(end()))
            raise

        async def inquest(symptoms: Symptoms) -> str:
            return await self._inquest(identity, process, symptoms)

        limits = self._config.limits
        kin = Kin(self._kept, self._fresh)
        counted = functools.partial(self._cgroups.counted, identity) if self._cgroups else None
        box = Box(identity, reader, writer, end, limits.output_bytes, inquest, kin, counted)
        try:
            await asyncio.gather(box.hello(), asyncio.shield(settling))
        except BaseException:
            await box.close()
            raise
        return box

    async def _inquest(self, identity: str, process: int, symptoms: Symptoms) -> str:
        """See `wire.Inquest`. A signal from outside is the machine's doing: from within, nothing can send one to PID 1.
        Raises SandboxDied."""
        if self._closed or not (self._nursery and self._nursery.alive):
            return ""
        if not await _ended(process, CLOSE_S):
            probe = await self._start(self._nursery)  # whether it alone is ill
            await probe.close()
            return f"{symptoms.why}, while others do answer"
        if symptoms.farewell:
            return f"its PID 1 gave up: {symptoms.farewell}"
        if self._cgroups and (await asyncio.to_thread(self._cgroups.counted, identity)).oom_kills:
            return "it used up its memory"
        number = _signal_of(process)
        return f"its PID 1 ended by signal {number}" if number not in (None, 0, signal.SIGKILL) else ""

    async def close(self) -> None:
        """End the nursery, and with it every sandbox that still runs."""
        self._closed = True
        nursery, self._nursery = self._nursery, None
        if nursery:
            await asyncio.to_thread(nursery.close)

    def describe_limits(self) -> dict[str, str]:
        """How each limit is held on this machine; what is not held is said."""
        needs = "needs control groups (root, or a delegated group of version 2)"
        grouped = "control group"
        watched = f"programs are watched and the largest is killed; {UNCOUNTED}; exactly: {needs}"
        counted = grouped if self._cgroups and self._cgroups.unified else f"{grouped}; {UDP}"
        own = os.geteuid() == 0 and _may_mount()
        return {
            "memory_bytes": counted if self._cgroups else watched,
            "cpus": grouped if self._cgroups else f"NOT HELD: {needs}",
            "processes": f"{grouped} and RLIMIT_NPROC" if self._cgroups else "RLIMIT_NPROC of its own user namespace",
            "disk_bytes": f"size-limited memory filesystems; everything else is read-only; {SHARED}",
            "open_files": "RLIMIT_NOFILE of each process"
            + ("" if own else f"; {OF_A_USER} all sandboxes of this user"),
            "file_bytes": "RLIMIT_FSIZE of each process",
            "output_bytes": "head and tail kept by the executor",
            "network": packet_filter.HELD[self._config.network],
        }

    async def _settle(self, identity: str, process: int) -> None:
        """Move PID 1 into its group and give it its network while it makes itself ready: moving takes 10 ms. It has no
        children before its first command. Raises SandboxDied."""
        try:
            if self._bridge:
                await self._bridge.attach(_pid(process))
            if self._cgroups:
                await asyncio.to_thread(self._cgroups.add, identity, _pid(process))
        except OSError as error:
            raise SandboxDied(f"sandbox {identity} could not be set up: {error}") from error

    def _try(self) -> None:
        """Start a sandbox and end it. Raises BackendUnavailable."""
        first = self._open_nursery()
        try:
            with first.ask() as stream:
                stream.settimeout(HELLO_S)
                if not (stream.recv(1) and stream.recv(1)):  # of its birth, then of its executor
                    raise ConnectionError("it ended at its birth")
        except OSError as error:
            raise BackendUnavailable(_mend(f"{error}: {first.said()}")) from error
        finally:
            first.close()

    def said(self) -> str:
        """The last line on the standard error of what starts the sandboxes."""
        return self._nursery.said() if self._nursery else "no message"

    def _living_nursery(self) -> "_Nursery":
        """Made when the first sandbox is asked for, by whoever asks: the kernel sends the parent-death signal when the
        THREAD that forked ends. Made anew if it has died. Raises SandboxDied."""
        if self._closed:
            raise SandboxDied("the backend was closed")
        if self._nursery and not self._nursery.alive:
            self._nursery.close(grace_s=0)
            self._nursery = None
        if not self._nursery:
            try:
                self._nursery = self._open_nursery()
            except BackendUnavailable as error:  # it was there when this backend was opened
                raise SandboxDied(str(error)) from error
        return self._nursery

    def _open_nursery(self) -> "_Nursery":
        return _Nursery([self._program, *self._arguments], self._files, self._settings)


class _Nursery:
    """A bwrap that runs, and in it the program that forks sandboxes."""

    def __init__(self, bwrap: list[str], files: list[Placed], settings: bytes) -> None:
        """Returns when it is ready, after 0.1 s. Raises BackendUnavailable."""
        self._gives_uids = os.geteuid() == 0 and _may_mount()
        if self._gives_uids:
            bwrap = [*bwrap, "--cap-add", "CAP_SYS_ADMIN", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
        else:
            bwrap = [*bwrap, "--unshare-user", "--uid", str(INSIDE_UID), "--gid", str(INSIDE_UID)]
        if os.geteuid() == 0 and not self._gives_uids:
            uid = _new_uid()
            bwrap = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--no-new-privs", "--", *bwrap]
        with ExitStack() as failed:
            try:
                self._errors = failed.enter_context(os.fdopen(os.memfd_create("stderr"), "rb", buffering=0))
                ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                self._control = failed.enter_context(ours)
                with theirs:
                    self._process = _launch(bwrap, files, theirs.fileno(), self._errors.fileno())
            except OSError as error:
                raise BackendUnavailable(f"cannot start bwrap: {error}") from error
            failed.pop_all()
        try:
            self._control.settimeout(HELLO_S)
            self._control.send(settings)
            ready = self._control.recv(16)
        except OSError:
            ready = b""
        if not ready:
            said = self.said()
            self.close(grace_s=0)
            if EXHAUSTED in said:
                raise BackendUnavailable(
                    f"no further process may be started here (ulimit -u, or pids.max): {said}"
                ) from OSError(errno.EAGAIN, said)
            raise BackendUnavailable(_mend(said))
        self._control.setblocking(False)
        lease.hold(self._control.fileno())

    @property
    def alive(self) -> bool:
        try:
            return bool(self._control.recv(1))  # nothing is said: the end of its socket is its own end
        except BlockingIOError:
            return True
        except ConnectionResetError:
            return False

    def ask(self) -> socket.socket:
        """The stream of a sandbox that is now being made. Raises OSError; BlockingIOError when too many are."""
        uid = _new_uid() if self._gives_uids else INSIDE_UID
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                socket.send_fds(self._control, [b"%d" % uid], [theirs.fileno()])
        except OSError:
            ours.close()
            raise
        return ours

    async def fork(self) -> tuple[int, socket.socket]:
        """(pidfd of a new sandbox's PID 1, stream to its executor). Raises SandboxDied."""
        stream: socket.socket | None = None
        try:
            async with asyncio.timeout(HELLO_S):
                while stream is None:
                    try:
                        stream = self.ask()
                    except BlockingIOError:
                        await asyncio.sleep(FULL_S)
                stream.setblocking(False)
                await _readable(stream.fileno())
            _, processes, _, _ = socket.recv_fds(stream, 1, 1)
            if not processes:
                raise ConnectionError("it ended at its birth")
            os.set_inheritable(processes[0], False)
        except BaseException as error:
            if stream is not None:
                stream.close()  # whoever is born later finds the end of it and ends
            if isinstance(error, OSError):  # a TimeoutError is one
                raise SandboxDied(f"a sandbox did not start: {error!r}") from error
            raise
        return processes[0], stream

    def said_bytes(self) -> int:
        """How much bwrap, the nursery and its sandboxes have said on standard error."""
        return 0 if self._errors.closed else os.fstat(self._errors.fileno()).st_size

    def said(self, after: int = 0) -> str:
        """The last line of it, of what was said after that many bytes."""
        if self._errors.closed:
            return "the backend was closed"
        start = max(after, self.said_bytes() - 2000)
        lines = os.pread(self._errors.fileno(), 2000, start).decode("utf-8", "replace").strip()
        return lines.rpartition("\n")[2] or "no message"

    def close(self, grace_s: float = CLOSE_S) -> None:
        """End it, and with it every sandbox that it forked."""
        lease.release(self._control.fileno())
        self._control.close()
        try:
            self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self._process.kill()  # the nursery dies with it
            self._process.wait()
        self._errors.close()


def _launch(bwrap: list[str], files: list[Placed], control: int, errors: int) -> subprocess.Popen[bytes]:
    """Start the nursery behind `bwrap`. Called in the event loop's thread: see `Bubblewrap._living_nursery`. Raises
    OSError."""
    with ExitStack() as stack:
        words, passed = [*bwrap], [control]
        for data, options in files:
            descriptor = os.memfd_create("data")
            stack.callback(os.close, descriptor)
            os.write(descriptor, data)
            os.lseek(descriptor, 0, os.SEEK_SET)
            passed.append(descriptor)
            words += [str(descriptor) if word == DESCRIPTOR else word for word in options]
        return subprocess.Popen(
            [*words, "--remount-ro", "/", "--", _interpreter(), *START, str(control)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            pass_fds=passed,
            env={"PATH": os.defpath},
            cwd="/",
            process_group=0,  # a Ctrl-C at the terminal is the driver's: it closes its sandboxes in order
        )


def _interpreter() -> str:
    """Of the host, where sandboxes see it too."""
    for path in INTERPRETERS:
        if os.access(path, os.X_OK):
            return path
    raise BackendUnavailable(f"none of {', '.join(INTERPRETERS)} is there; install it with: apt-get install python3")


def _may_mount() -> bool:
    effective = re.search(r"^CapEff:\s*(\w+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    return effective is not None and bool(int(effective[1], 16) & CAP_SYS_ADMIN)


def _new_uid() -> int:
    return FIRST_UID + secrets.randbelow(NUM_UIDS)


def _own_files(counted: bool) -> list[Placed]:
    """The nursery's program and what it reads."""
    try:
        filtering, strict = (seccomp.bpf(counted=counted, system_v=allowed) for allowed in (True, False))
    except KeyError as error:
        raise BackendUnavailable(f"no system call filter for machine {error}; use sandbox.backend=docker") from error
    files = [placed(f"{PROGRAM}/{name}", text) for name, text in program.FILES.items()]
    return [*files, placed(FILTER_PATH, filtering), placed(STRICT_FILTER_PATH, strict)]


def _folders(config: SandboxConfig) -> dict[str, str]:
    """What can be written in a sandbox: its memory filesystems, and their options."""
    sizes = TmpfsSizes.within(config.limits)
    folders = {
        "/dev/shm": sizes.options(sizes.shm, "1777"),
        "/tmp": sizes.options(sizes.tmp, "1777"),
        HOME: sizes.options(sizes.home, "755"),
        "/run": sizes.options(1 << 20, "755"),
        WORKDIR: sizes.options(sizes.testbed, "755"),
    }
    if config.rootfs and has_own(Path(config.rootfs), "var/tmp", stat.S_ISDIR):
        folders["/var/tmp"] = sizes.options(1 << 20, "1777")
    return folders


def _settings(config: SandboxConfig, folders: Mapping[str, str], watch_memory: bool) -> bytes:
    """What the nursery reads first; see `envs/sandbox/inside/nursery.py`."""
    sizes = TmpfsSizes.within(config.limits)
    fields = {"hostname": "" if config.network == "full" else "sandbox"}
    fields |= {"root": config.rootfs and "1", "names": "" if config.network == "none" else "1"}
    fields |= {f"folder.{folder}": options for folder, options in folders.items()}
    fields |= {f"kernel.{name}": value for name, value in sizes.system_v().items()}
    fields |= {f"limit.{name}": str(limit) for name, limit in executor_limits(config.limits, watch_memory).items()}
    return pack_header({name.encode(): value.encode() for name, value in fields.items()})


def _find_program() -> str:
    program = shutil.which("bwrap")
    if program is None:
        raise BackendUnavailable("bubblewrap is not installed; install it with: apt-get install bubblewrap")
    said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10).stdout
    version = tuple(int(number) for number in re.findall(r"\d+", said)[:2])
    if version < OLDEST_VERSION:
        raise BackendUnavailable(f"{said.strip()} is too old: 0.5 is the first with --clearenv and --perms")
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        raise BackendUnavailable("setpriv is not installed; install it with: apt-get install util-linux")
    return program


def _mend(said: str) -> str:
    """What is wrong, and the command that fixes it."""
    for path, good in (
        ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "0"),
        ("/proc/sys/kernel/unprivileged_userns_clone", "1"),
    ):
        try:
            value = Path(path).read_text().strip()
        except OSError:
            continue
        if value != good:
            key = path.removeprefix("/proc/sys/").replace("/", ".")
            return f"this machine restricts user namespaces ({said}); allow them with: sudo sysctl -w {key}={good}"
    return (
        f"bubblewrap cannot start a sandbox here ({said}); inside a container, start that container with "
        "--security-opt seccomp=unconfined --security-opt systempaths=unconfined, or use sandbox.backend=docker"
    )


async def _readable(descriptor: int) -> None:
    """Until a stream has bytes or ends; until the process of a pidfd has ended."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(descriptor, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(descriptor)


def _pid(process: int) -> int:
    """The number, here, of the process of a pidfd; -1 when it has ended."""
    fields = dict(line.split(":\t") for line in Path(f"/proc/self/fdinfo/{process}").read_text().splitlines())
    return int(fields["Pid"])


def _signal_of(process: int) -> int | None:
    """The signal that ended the process of a pidfd, 0 for none; None where the kernel (before 6.15) does not tell."""
    info = bytearray(64)
    struct.pack_into("Q", info, 0, PIDFD_INFO_EXIT)
    try:
        fcntl.ioctl(process, PIDFD_GET_INFO, info)
    except OSError:
        return None
    mask, status = struct.unpack_from("Q", info)[0], struct.unpack_from("i", info, 60)[0]
    return os.WTERMSIG(status) if mask & PIDFD_INFO_EXIT else None


async def _ended(process: int, within_s: float) -> bool:
    """Whether the process of a pidfd ends within that time."""
    try:
        async with asyncio.timeout(within_s):
            await _readable(process)
    except TimeoutError:
        return False
    return True


async def _end(process: int) -> None:
    """Wait for a PID 1 whose stream is closed, and so for all that runs in its namespace; close its pidfd."""
    try:
        if not await _ended(process, CLOSE_S):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(process, signal.SIGKILL)
            await _readable(process)
    finally:
        os.close(process)

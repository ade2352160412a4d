"""Sandboxes without a daemon: Linux namespaces, for root and for an ordinary user alike.

`bwrap` makes once, for all sandboxes of a backend, the root that they see: read-only, the host's system directories by
allow-list or a root filesystem folder. In it the nursery (`envs/nursery.py`) forks each sandbox, which has its own
user, pid, mount, network, ipc, uts and cgroup namespaces, no capability, a system call filter (`envs/seccomp.py`) and
no way to further user namespaces. Writes go to size-limited memory filesystems that vanish with it.

No sandbox runs as uid 0: mapped to the host's root, it could write `/proc/sys/kernel/core_pattern`. Root gives each a
uid of its own; an ordinary user keeps its own. Root that may not mount (in a container) gives one uid to all of a
backend.
"""

import asyncio
import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import stat
import subprocess
from contextlib import ExitStack
from pathlib import Path

from envs import executor, network, nursery, seccomp
from envs.cgroups import Cgroups
from envs.links import Bridge
from envs.nursery import FILTER_PATH, INSIDE_UID
from envs.sandbox import WORKDIR, BackendUnavailable, Sandbox, SandboxConfig, SandboxDied, TmpfsSizes
from envs.wire import HELLO_S, Box, executor_limits, new_id

HOME = "/home/user"
FIRST_UID, NUM_UIDS = 0x70000000, 1 << 24
"""Root gives each sandbox a random uid of a range that nothing else uses, so that limits the kernel keeps per user
(pipes, inotify, processes on old kernels) are the sandbox's own."""
CAP_SYS_ADMIN = 1 << 21
CLOSE_S = 2.0
FULL_S = 0.001
"""How long to wait when the nursery has more requests than its socket holds."""
OLDEST_VERSION = (0, 5)

SYSTEM_FOLDERS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
ETC = """
    alternatives bash.bashrc debian_version fonts host.conf inputrc java-11-openjdk java-17-openjdk java-21-openjdk
    ld.so.cache localtime magic magic.mime matplotlibrc mime.types os-release profile protocols R services shells
    ssl/certs ssl/openssl.cnf terminfo texmf timezone
""".split()
"""Below /etc: configuration that programs need and that says nothing about the host's people, services or secrets."""
COPIED_BYTES = 16 << 10
"""Files up to this size are copied rather than mounted: a mount costs 0.2 ms of each start."""
OWN_FOLDERS = ("/proc", "/sys", "/dev", "/tmp", "/run", "/home", WORKDIR)
"""Made fresh for each sandbox, never taken from a root filesystem."""

SYNTHETIC_FILES = {
    "/etc/passwd": "root:x:0:0:root:/root:/bin/bash\n"
    f"user:x:{INSIDE_UID}:{INSIDE_UID}:user:{HOME}:/bin/bash\n"
    "nobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n",
    "/etc/group": f"root:x:0:\nuser:x:{INSIDE_UID}:\nnogroup:x:65534:\n",
    "/etc/hosts": "127.0.0.1 localhost sandbox\n::1 localhost\n",
    "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}

PROGRAM = "/run/nursery"
"""Where the nursery finds itself. A sandbox has a /run of its own over it."""
START = [
    *("/usr/bin/python3", "-I", "-S", "-OO", "-c"),
    f"import sys; sys.path.insert(0, '{PROGRAM}'); from envs.nursery import main; main()",
]

Placed = tuple[bytes, tuple[str, ...]]
"""Contents that reach bwrap through a descriptor, and the options that say what becomes of them."""
DESCRIPTOR = "{descriptor}"


class Bubblewrap:
    """The `bubblewrap` backend (`envs.sandbox.Backend`). One event loop uses it, and its sandboxes end with it."""

    name = "bubblewrap"

    def __init__(self, config: SandboxConfig) -> None:
        """Raises BackendUnavailable when this machine cannot start a sandbox, with the line that mends it."""
        self._config = config
        self._program = _find_program()
        self._bridge = Bridge.open() if config.network == "egress" else None
        self._cgroups = Cgroups.find(config.limits)
        self._arguments, self._files = _arguments(config)
        self._settings = _settings(config, watch_memory=not self._cgroups)
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
        nursery = self._living_nursery()
        before = nursery.said_bytes()
        try:
            return await self._start(nursery)
        except SandboxDied as error:
            raise SandboxDied(f"{error}: {nursery.said(before)}") from error

    async def _start(self, nursery: "_Nursery") -> Sandbox:
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
        box = Box(identity, reader, writer, end, self._config.limits.output_bytes, self._config.persist_shell)
        try:
            await asyncio.gather(box.hello(), asyncio.shield(settling))
        except BaseException:
            await box.close()
            raise
        return box

    async def close(self) -> None:
        """End the nursery, and with it every sandbox that still runs."""
        self._closed = True
        nursery, self._nursery = self._nursery, None
        if nursery:
            await asyncio.to_thread(nursery.close)

    def describe_limits(self) -> dict[str, str]:
        """How each limit is held on this machine; what is not held is said."""
        needs = "needs control groups (root, or a delegated group of version 2)"
        grouped, watched = "control group", f"programs are watched and the largest is killed; exactly: {needs}"
        return {
            "memory_bytes": grouped if self._cgroups else watched,
            "cpus": grouped if self._cgroups else f"NOT HELD: {needs}",
            "processes": f"{grouped} and RLIMIT_NPROC" if self._cgroups else "RLIMIT_NPROC of its own user namespace",
            "disk_bytes": "size-limited memory filesystems; everything else is read-only",
            "open_files": "RLIMIT_NOFILE of each process",
            "file_bytes": "RLIMIT_FSIZE of each process",
            "output_bytes": "head and tail kept by the executor",
            "network": network.HELD[self._config.network],
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
            raise BackendUnavailable(_mend(said))
        self._control.setblocking(False)

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
            [*words, "--remount-ro", "/", "--", *START, str(control)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            pass_fds=passed,
            env={"PATH": os.defpath},
            cwd="/",
            process_group=0,  # a Ctrl-C at the terminal is the driver's: it closes its sandboxes in order
        )


def _may_mount() -> bool:
    effective = re.search(r"^CapEff:\s*(\w+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    return effective is not None and bool(int(effective[1], 16) & CAP_SYS_ADMIN)


def _new_uid() -> int:
    return FIRST_UID + secrets.randbelow(NUM_UIDS)


def _arguments(config: SandboxConfig) -> tuple[list[str], list[Placed]]:
    """bwrap's options, and the files it makes."""
    arguments = [
        *("--unshare-pid", "--as-pid-1", "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--clearenv"),
        *("--setenv", "PATH", "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"),
        *("--setenv", "HOME", HOME, "--setenv", "USER", "user", "--setenv", "LC_CTYPE", "C.UTF-8"),
    ]
    for name, value in config.env.items():
        arguments += ["--setenv", name, value]
    files: list[Placed] = []
    if config.rootfs:
        root = Path(config.rootfs).absolute()
        for folder in (*reversed(root.parents), root):
            if folder.is_dir() and not _open_to_sandboxes(folder):
                raise BackendUnavailable(
                    f"sandbox.rootfs={config.rootfs}: sandboxes run as an ordinary user, to whom {folder} is closed; "
                    f"open it with: chmod o+x {folder}"
                )
        if not (root / "usr/bin/python3").exists() or not (root / "bin/bash").exists():
            raise BackendUnavailable(f"sandbox.rootfs={config.rootfs}: needs /usr/bin/python3 and /bin/bash inside")
        arguments += _show_root(root)
    else:
        arguments += ["--dir", "/etc", "--dir", "/var", "--symlink", "../tmp", "/var/tmp"]
        for path in (*SYSTEM_FOLDERS, *(f"/etc/{name}" for name in ETC)):
            _show(path, arguments, files)
        files += [_file(path, text.encode()) for path, text in SYNTHETIC_FILES.items()]
    if config.network != "none" and config.rootfs and not (Path(config.rootfs) / "etc/resolv.conf").exists():
        raise BackendUnavailable(
            f"sandbox.rootfs={config.rootfs}: names could not be resolved; make the place for that: "
            f"touch {config.rootfs}/etc/resolv.conf"
        )
    if config.network == "full":
        arguments += ["--ro-bind-try", "/etc/resolv.conf", "/etc/resolv.conf"]
    elif config.network == "egress":
        names = "".join(f"nameserver {address}\n" for address in network.resolvers())
        files.append((names.encode(), ("--perms", "0444", "--ro-bind-data", DESCRIPTOR, "/etc/resolv.conf")))
    arguments += ["--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev"]
    for own in ("/tmp", HOME, "/run", WORKDIR):
        arguments += ["--dir", own]
    for module in (nursery, executor):
        source = Path(str(module.__file__))
        files.append(_file(f"{PROGRAM}/envs/{source.name}", source.read_bytes()))
    files.append(_file(FILTER_PATH, _system_call_filter()))
    return arguments, files


def _settings(config: SandboxConfig, watch_memory: bool) -> bytes:
    """What the nursery reads first; see `envs/nursery.py`."""
    sizes = TmpfsSizes.within(config.limits)
    folders = {
        "/dev/shm": f"mode=1777,size={sizes.shm}",
        "/tmp": f"mode=1777,size={sizes.tmp}",
        HOME: f"mode=755,size={sizes.home}",
        "/run": f"mode=755,size={1 << 20}",
        WORKDIR: f"mode=755,size={sizes.testbed}",
    }
    if config.rootfs and (Path(config.rootfs) / "var/tmp").is_dir():
        folders["/var/tmp"] = f"mode=1777,size={1 << 20}"
    fields = {"hostname": "" if config.network == "full" else "sandbox"}
    fields |= {f"folder.{folder}": options for folder, options in folders.items()}
    fields |= {f"limit.{name}": str(limit) for name, limit in executor_limits(config.limits, watch_memory).items()}
    return "\0".join(f"{name}={value}" for name, value in fields.items()).encode()


def _open_to_sandboxes(folder: Path) -> bool:
    """Whether what lies in it can be reached: by anybody where root gives each sandbox a uid, else by this user."""
    return bool(folder.stat().st_mode & stat.S_IXOTH) if os.geteuid() == 0 else os.access(folder, os.X_OK)


def _show_root(root: Path) -> list[str]:
    """Options that make a root filesystem folder visible, read-only, entry by entry: what is mounted over it need not
    exist in it."""
    if any((root / WORKDIR[1:]).glob("*")):
        raise BackendUnavailable(
            f"sandbox.rootfs={root}: files in its {WORKDIR} would be hidden; use sandbox.backend=docker"
        )
    arguments = []
    for entry in sorted(root.iterdir()):
        inside = f"/{entry.name}"
        if entry.is_symlink():
            arguments += ["--symlink", os.readlink(entry), inside]
        elif inside not in OWN_FOLDERS:
            arguments += ["--ro-bind", str(entry), inside]
    return arguments


def _show(path: str, arguments: list[str], files: list[Placed]) -> None:
    """Make a system path of the host visible, read-only: links stay links, small files are copied, the rest mounted."""
    if os.path.islink(path):
        arguments += ["--symlink", os.readlink(path), path]
    elif os.path.isfile(path) and os.path.getsize(path) <= COPIED_BYTES:
        files.append(_file(path, Path(path).read_bytes()))
    elif os.path.exists(path):
        arguments += ["--ro-bind", path, path]


def _file(path: str, data: bytes) -> Placed:
    return data, ("--perms", "0444", "--file", DESCRIPTOR, path)


def _system_call_filter() -> bytes:
    try:
        return seccomp.bpf()
    except KeyError as error:
        raise BackendUnavailable(f"no system call filter for machine {error}; use sandbox.backend=docker") from error


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
    """What is wrong, and the line that mends it."""
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


async def _end(process: int) -> None:
    """Wait for a PID 1 whose stream is closed, and so for all that runs in its namespace; close its pidfd."""
    try:
        try:
            async with asyncio.timeout(CLOSE_S):
                await _readable(process)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(process, signal.SIGKILL)
            await _readable(process)
    finally:
        os.close(process)

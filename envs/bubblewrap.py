"""Sandboxes without a daemon: Linux namespaces made by `bwrap`, for root and for an ordinary user alike.

Each sandbox has its own user, pid, mount, network, ipc, uts and cgroup namespaces, no capability, a system call filter
(`envs/seccomp.py`) and cannot make further user namespaces. Its root is read-only: the host's system directories by
allow-list, or a root filesystem folder. Writes go to size-limited memory filesystems that vanish with it.

Nothing runs as uid 0: started by root, bwrap would map the sandbox's user to the host's root, which can write
`/proc/sys/kernel/core_pattern`. Root therefore drops first to a uid of that one sandbox; an ordinary user keeps
its own.
"""

import asyncio
import json
import os
import re
import secrets
import shutil
import signal
import socket
import stat
import subprocess
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from envs import network, seccomp
from envs.cgroups import Cgroups
from envs.links import Bridge
from envs.sandbox import WORKDIR, BackendUnavailable, Sandbox, SandboxConfig, SandboxDied, TmpfsSizes
from envs.wire import EXECUTOR, HELLO_S, Box, executor_options, new_id

HOME = "/home/user"
INSIDE_UID = 1000
FIRST_UID, NUM_UIDS = 0x70000000, 1 << 24
"""Root gives each sandbox a random uid of a range that nothing else uses, so that limits the kernel keeps per user
(pipes, inotify, processes on old kernels) are the sandbox's own."""
CLOSE_S = 2.0
OLDEST_VERSION = (0, 8)

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

EXECUTOR_PATH = "/run/executor.pyc"
COMPILE = f"""
import _frozen_importlib_external as importer
with open("{EXECUTOR_PATH}", "rb") as file:
    program = importer._code_to_timestamp_pyc(compile(file.read(), "executor.py", "exec", optimize=2))
with open(0, "wb", closefd=False) as stream:
    stream.write(program)
"""
"""Run once, inside, by the sandbox's own interpreter: compiling takes as long as the rest of the executor's start."""

Placed = tuple[bytes, tuple[str, ...]]
"""Contents that reach bwrap through a descriptor, and the options that say what becomes of them."""
DESCRIPTOR = "{descriptor}"


class Bubblewrap:
    """The `bubblewrap` backend (`envs.sandbox.Backend`)."""

    name = "bubblewrap"

    def __init__(self, config: SandboxConfig) -> None:
        """Raises BackendUnavailable when this machine cannot start a sandbox, with the line that mends it."""
        self._config = config
        self._program = _find_program()
        self._bridge = Bridge.open() if config.network == "egress" else None
        self._cgroups = Cgroups.find(config.limits)
        self._arguments, self._files = _arguments(config)
        self._files.append((_system_call_filter(), ("--seccomp", DESCRIPTOR)))
        self._executor = EXECUTOR
        self._executor = self._compile()

    async def start(self, image: str = "") -> Sandbox:
        """A ready sandbox. Raises SandboxDied; BackendUnavailable for an `image`, which only Docker has."""
        if image:
            raise BackendUnavailable(
                f"task asks for image {image!r}: the bubblewrap backend has no images, only sandbox.rootfs; "
                "use sandbox.backend=docker"
            )
        identity = new_id()
        with self._spawn(self._executor_command()) as bwrap:
            try:
                bwrap.stream.setblocking(False)
                reader, writer = await asyncio.open_connection(sock=bwrap.stream)
            except BaseException:
                bwrap.stream.close()
                await _end(bwrap.process)
                raise

            async def end() -> None:
                await _end(bwrap.process)
                if self._cgroups:
                    await asyncio.to_thread(self._cgroups.remove, identity)

            box = Box(identity, reader, writer, end, self._config.limits.output_bytes, self._config.persist_shell)
            settling = asyncio.ensure_future(self._settle(identity, bwrap.born))
            try:
                await asyncio.gather(box.hello(), settling)
            except BaseException as error:
                settling.cancel()
                await box.close()
                if isinstance(error, SandboxDied):
                    raise SandboxDied(f"{error}: {_said(bwrap.errors)}") from error
                raise
        return box

    async def close(self) -> None:
        """Nothing is held between sandboxes."""

    async def _settle(self, identity: str, born: int) -> None:
        """Move PID 1 into its group and give it its network while its interpreter starts: moving takes 10 ms. It has no
        children before its first command. `born` is where bwrap tells which process it is. Raises SandboxDied."""
        if self._cgroups is None and self._bridge is None:
            return
        said = b""
        try:
            while True:
                await _readable(born)
                part = os.read(born, 4096)
                if not part:
                    break
                said += part
            if not said:
                return  # bwrap has failed, which `hello` reports with what it said
            child = json.loads(said)["child-pid"]
            if self._bridge:
                await self._bridge.attach(child)
            if self._cgroups:
                await asyncio.to_thread(self._cgroups.add, identity, child)
        except (OSError, ValueError) as error:
            raise SandboxDied(f"sandbox {identity} could not be set up: {error}") from error

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

    def _executor_command(self) -> list[str]:
        options = executor_options(self._config.limits, watch_memory=not self._cgroups)
        return ["/usr/bin/python3", "-I", "-S", EXECUTOR_PATH, *options]

    def _spawn(self, command: list[str]) -> "_Started":
        """Start `command` as PID 1 of a new sandbox. Called in the event loop's thread: the kernel sends the
        parent-death signal when the THREAD that forked ends, so a worker thread would take its sandboxes with it."""
        with ExitStack() as stack:
            ours, theirs = socket.socketpair()
            stack.callback(theirs.close)
            errors = os.memfd_create("stderr")
            born, told = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            stack.callback(os.close, told)
            arguments = [*self._arguments, "--info-fd", str(told)]
            passed = [told]
            for data, options in [*self._files, _file(EXECUTOR_PATH, self._executor)]:
                descriptor = os.memfd_create("data")
                stack.callback(os.close, descriptor)
                os.write(descriptor, data)
                os.lseek(descriptor, 0, os.SEEK_SET)
                passed.append(descriptor)
                arguments += [str(descriptor) if word == DESCRIPTOR else word for word in options]
            try:
                process = subprocess.Popen(
                    [*_drop_root(), self._program, *arguments, "--remount-ro", "/", "--", *command],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    pass_fds=passed,
                    env={"PATH": os.defpath},
                    cwd="/",
                )
            except OSError as error:
                ours.close()
                os.close(errors)
                os.close(born)
                raise SandboxDied(f"cannot start bwrap: {error}") from error
        return _Started(process, ours, errors, born)

    def _compile(self) -> bytes:
        """The executor, compiled inside a first sandbox; which also shows whether this machine can start one."""
        with self._spawn(["/usr/bin/python3", "-I", "-S", "-c", COMPILE]) as bwrap, bwrap.stream as stream:
            stream.settimeout(HELLO_S)
            compiled = b"".join(iter(lambda: stream.recv(65536), b""))
            if bwrap.process.wait(HELLO_S) != 0 or not compiled:
                raise BackendUnavailable(_mend(_said(bwrap.errors)))
        return compiled


@dataclass(frozen=True)
class _Started:
    """A bwrap that runs. A `with` closes the two descriptors at its end."""

    process: subprocess.Popen[bytes]
    stream: socket.socket
    """Our end of its standard input."""
    errors: int
    """A file of what it says on standard error."""
    born: int
    """A pipe on which it tells of its child."""

    def __enter__(self) -> "_Started":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.errors)
        os.close(self.born)


def _arguments(config: SandboxConfig) -> tuple[list[str], list[Placed]]:
    """bwrap's options, and the files it makes."""
    tmpfs = TmpfsSizes.within(config.limits)
    arguments = [
        *("--unshare-user", "--unshare-all", "--disable-userns", "--as-pid-1", "--die-with-parent", "--new-session"),
        *("--cap-drop", "ALL", "--uid", str(INSIDE_UID), "--gid", str(INSIDE_UID), "--clearenv"),
        *("--setenv", "PATH", "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"),
        *("--setenv", "HOME", HOME, "--setenv", "USER", "user", "--setenv", "LC_CTYPE", "C.UTF-8"),
        *(("--share-net",) if config.network == "full" else ("--hostname", "sandbox")),
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
    arguments += ["--proc", "/proc", "--dev", "/dev"]
    arguments += ["--perms", "1777", "--size", str(tmpfs.shm), "--tmpfs", "/dev/shm", "--remount-ro", "/dev"]
    arguments += ["--perms", "1777", "--size", str(tmpfs.tmp), "--tmpfs", "/tmp"]
    arguments += ["--size", str(tmpfs.home), "--tmpfs", HOME]
    arguments += ["--size", str(1 << 20), "--tmpfs", "/run"]
    arguments += ["--size", str(tmpfs.testbed), "--tmpfs", WORKDIR, "--chdir", WORKDIR]
    return arguments, files


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
    if (root / "var/tmp").is_dir():
        arguments += ["--perms", "1777", "--size", str(1 << 20), "--tmpfs", "/var/tmp"]
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


def _drop_root() -> list[str]:
    if os.geteuid() != 0:
        return []
    uid = FIRST_UID + secrets.randbelow(NUM_UIDS)
    return ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--no-new-privs", "--"]


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
        raise BackendUnavailable(f"{said.strip()} is too old: 0.8 is the first that can forbid user namespaces inside")
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


def _said(errors: int) -> str:
    """The last of what bwrap or the executor said on standard error."""
    size = os.fstat(errors).st_size
    return os.pread(errors, 2000, max(0, size - 2000)).decode("utf-8", "replace").strip() or "no message"


async def _readable(descriptor: int) -> None:
    """Until a pipe has bytes or ends; until the process of a pidfd has ended."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(descriptor, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(descriptor)


async def _end(process: subprocess.Popen[bytes]) -> None:
    """Wait for bwrap, whose stream is closed. It ends after its PID 1, which ends after all that runs inside."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        process.wait()
        return
    try:
        try:
            async with asyncio.timeout(CLOSE_S):
                await _readable(descriptor)
        except TimeoutError:
            process.send_signal(signal.SIGKILL)  # PID 1 inside dies with it
            await _readable(descriptor)
    finally:
        os.close(descriptor)
    process.wait()

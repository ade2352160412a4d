"""What a sandbox is: the protocol every backend keeps, its limits, its results and its errors.

    SandboxError
    ├── BackendUnavailable   the machine cannot run this backend (says how to get it); an InputError too
    ├── SandboxDied          the machine's fault: the trajectory is dropped and sampled again, never scored
    ├── SandboxEnded         ended by what ran in it, while its machine is well: the policy's doing, never sampled again
    └── FileRefused          the model's file is bad (missing, link, FIFO, device, too large); also an OSError

One contract suite (`envs/sandbox/contract.py`) proves every backend. Everything that comes out of a sandbox
is bytes from a stranger: bounded, never followed, never unpacked on the host.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

from sandboxrl.data.errors import InputError
from sandboxrl.envs.sandbox.snapshot import MAX_SNAPSHOT, Snapshot

WORKDIR = "/testbed"
DOCUMENTS = "/testbed/documents"
ANSWER = "/testbed/answer.txt"

NETWORKS = ("none", "egress", "full")


class SandboxError(Exception):
    """Anything that went wrong with a sandbox."""


class BackendUnavailable(SandboxError, InputError):
    """This machine cannot run the backend; the message says what is missing and the command that fixes it."""


class SandboxDied(SandboxError):
    """The sandbox or its daemon failed. Never the model's fault, never a reward of zero."""


class SandboxEnded(SandboxError):
    """The sandbox alone came to its end, by what ran in it or by its own limits, while its backend goes on: the
    policy's doing. What it held is lost; the trajectory ends and is worth nothing."""


class FileRefused(SandboxError, OSError):
    """A path in the sandbox cannot be read or written as a regular file. `errno` says why."""


@dataclass(frozen=True)
class Limits:
    """What one sandbox may use. All on by default."""

    memory_bytes: int = 1 << 30
    """Memory including tmpfs pages; at least `disk_bytes` + 256 MiB, or a full disk wedges the sandbox."""
    cpus: float = 1.0
    """Cores' worth of CPU time."""
    processes: int = 256
    """Processes and threads at once."""
    disk_bytes: int = 512 << 20
    """Size of /testbed; /tmp gets as much again at most, within the memory limit."""
    open_files: int = 4096
    """File descriptors of one process."""
    file_bytes: int = 2 << 30
    """Largest single file."""
    output_bytes: int = 64 << 10
    """Kept of each of stdout and stderr (head and tail); the true totals are always reported."""


PAGE_BYTES = 4096
BYTES_OF_AN_INODE, MIN_INODES = 6144, 1024
"""A memory filesystem takes as many files as if each had so many bytes."""
RESERVED_BYTES = 256 << 20
"""Of a sandbox's memory, kept for programs: pages of its memory filesystems count against the same limit."""


NOT_HELD = "NOT HELD"
"""How `describe_limits` of a backend begins what is not held on this machine."""
UNCOUNTED = "NOT HELD: socket buffers, pipes, and shared memory that no program maps at that moment"
"""Said of memory where no control group counts it."""
UDP = "NOT HELD: what UDP sockets queue, of which the kernel bounds only the machine's sum (net.ipv4.udp_mem)"
OF_A_USER = "NOT HELD: what the kernel grants a user at most (inotify instances, message queues) is shared by"
SHARED = "NOT HELD: locks and watches on read-only files that sandboxes share can pass signs between them"


@dataclass(frozen=True)
class TmpfsSizes:
    """Bytes of a sandbox's memory filesystems; together with RESERVED_BYTES they fit its memory. What lies in them
    outlives what wrote it, so PID 1 alone could be left to be killed for it: nothing like it may fill the memory."""

    testbed: int
    tmp: int
    home: int
    shm: int

    @staticmethod
    def within(limits: Limits) -> "TmpfsSizes":
        """/testbed gets `disk_bytes`; the others share what is left. Raises InputError when that is not enough."""
        spare = limits.memory_bytes - RESERVED_BYTES - limits.disk_bytes
        if spare < 4 << 20:
            raise InputError(
                f"sandbox.limits.memory_bytes={limits.memory_bytes} must be at least {RESERVED_BYTES + (4 << 20)} more "
                f"than disk_bytes={limits.disk_bytes}: a full disk would leave no memory to run anything"
            )
        return TmpfsSizes(limits.disk_bytes, min(limits.disk_bytes, spare // 2), spare // 4, spare // 4)

    @staticmethod
    def options(size: int, mode: str) -> str:
        """Of a memory filesystem; each file or folder takes a KiB of memory more."""
        return f"size={size},nr_inodes={max(MIN_INODES, size // BYTES_OF_AN_INODE)},mode={mode}"

    def system_v(self) -> dict[str, str]:
        """Kernel settings that bound System V objects: segments (pages together), queues, semaphores."""
        return {"shmall": str(self.shm // PAGE_BYTES), "msgmni": "64", "sem": "250 4096 32 64"}


@dataclass(frozen=True)
class SandboxConfig:
    """The `sandbox:` part of a recipe."""

    CARRIED_OUT: ClassVar = frozenset({"socket", "remote", "warm", "parallel_starts"})
    """Keys that may change when a run goes on; the others are the experiment (`sandboxrl.rl.config`)."""
    backend: str = "bubblewrap"
    """`bubblewrap` (no daemon), `docker`, or your own class (`my_backend.py:Backend`). Never a silent fallback."""
    options: dict[str, Any] = field(default_factory=dict)
    """Settings of your own backend, which it reads from the config it is made with; ours have none."""
    image: str = "sandboxrl/sandbox:latest"
    """Docker image (docker only)."""
    rootfs: str = ""
    """Root filesystem folder (bubblewrap only); empty: the host's system directories, read-only, by allow-list."""
    network: str = "none"
    """`none`, `egress` (the public internet, but neither the host nor private ranges; needs root) or `full`."""
    env: dict[str, str] = field(default_factory=dict)
    """Variables that every command sees; for example a proxy or a package index. Never a secret."""
    runtime: str = ""
    """Docker runtime, for example `runsc`; empty: the daemon's default."""
    socket: str = "/var/run/docker.sock"
    """Docker or Podman API socket."""
    remote: bool = False
    """Take sandboxes from the Ray nodes that offer the resource `sandboxes`, so that they need not run on GPU nodes."""
    warm: int = 8
    """Started and unused sandboxes kept ready; each is handed out once and never reused."""
    parallel_starts: int = 0
    """Sandboxes started at the same time; 0: twice the number of cores."""
    persist_shell: bool = False
    """The `bash` tool of the model types into one shell that lives as long as its sandbox; default: a fresh shell per
    call. Commands of a grader or of another tool never run in it."""
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class ExecResult:
    """What a command did. `timed_out` is a fact of its own, never read from an exit code."""

    exit_code: int
    """Negative: ended by that signal."""
    stdout: bytes
    """At most `max_bytes`: the head, a line that says how much was dropped, and the tail."""
    stderr: bytes
    timed_out: bool
    stdout_bytes: int
    """True total written by the command."""
    stderr_bytes: int
    duration_s: float
    background: bool = False
    """A child that outlives the command still holds stdout or stderr."""


class Sandbox(Protocol):
    """One computer, used once. Paths are absolute or relative to /testbed."""

    id: str

    @property
    def alive(self) -> bool:
        """False once the sandbox is known to have ended."""
        ...

    async def exec(
        self,
        command: str,
        timeout_s: float = 120.0,
        cwd: str = WORKDIR,
        env: Mapping[str, str] | None = None,
        max_bytes: int | None = None,
    ) -> ExecResult:
        """Run `command` with bash. On timeout everything the command started is killed and the partial output is
        returned. Raises SandboxDied."""
        ...

    async def read(self, path: str, max_bytes: int = 1 << 20) -> bytes:
        """The bytes of a regular file. Never follows a link, never blocks. Raises FileRefused, SandboxDied."""
        ...

    async def write(self, files: Mapping[str, bytes]) -> None:
        """Write files, making parent folders. Raises FileRefused, SandboxDied."""
        ...

    async def close(self) -> None:
        """End every process and remove every trace. Idempotent."""
        ...


@runtime_checkable
class Folders(Protocol):
    """What a sandbox adds when whole folders can be taken out of it and put into it (`envs/sandbox/carry.py`)."""

    async def pack(self, path: str, cursor: str = "") -> tuple[bytes, str]:
        """A part of a folder as data, and the cursor of the next part: empty after the last. Never follows a link.
        Raises FileRefused, SandboxDied."""
        ...

    async def unpack(self, path: str, part: bytes) -> None:
        """Make what a part holds below the folder `path`; parts come in order. Nothing that is there is replaced.
        Raises FileRefused, SandboxDied."""
        ...


@dataclass(frozen=True)
class FilePart:
    """A stretch of a regular file, with what the whole file is at that moment."""

    data: bytes
    size: int
    mode: int
    """Permissions, for example 0o755."""


@runtime_checkable
class Parts(Protocol):
    """What a sandbox adds when files of any size can be read from it (`envs.sandbox.carry.stream`)."""

    async def read_part(self, path: str, offset: int, max_bytes: int = 4 << 20) -> FilePart:
        """The bytes of a regular file from `offset`, at most `max_bytes` (64 MiB); none behind its end. Never follows a
        link, never blocks. Raises FileRefused, SandboxDied."""
        ...


@dataclass(frozen=True)
class Resources:
    """What a sandbox has used since its start. None: this machine does not count it."""

    peak_memory_bytes: int | None = None
    """Memory filesystems included; where no control group counts, the largest sum of resident programs at a sample
    every 0.1 s."""
    cpu_s: float | None = None
    """Processor time; where no control group counts, that of programs that live or were waited for by their parents."""
    throttled_s: float | None = None
    """Time in which it wanted more processor than `limits.cpus`."""
    oom_kills: int | None = None
    """Programs that were killed because `limits.memory_bytes` was used up."""
    peak_processes: int | None = None
    """Processes and threads at once, PID 1 included; where no control group counts, processes at a sample."""


@runtime_checkable
class Measured(Protocol):
    """What a sandbox adds when it can tell what it has used."""

    async def resources(self) -> Resources:
        """Until now; of one that has ended by itself, what was known at its end. Raises SandboxDied."""
        ...


SHELL_STATES = ("done", "running", "waiting", "ended", "busy", "idle")


@dataclass(frozen=True)
class ShellResult:
    """What a shell that persists has to say since it was last asked."""

    state: str
    """`done`: the command has ended, or nothing runs. `running`, `waiting`: it goes on, and waits for input. `ended`:
    the shell itself has ended; the next command begins a new one. Nothing was done: `busy`, a command is running;
    `idle`, none is that could take input."""
    output: bytes
    """Of the shell's terminal, stdout and stderr as one; at most `limits.output_bytes`, as in ExecResult."""
    output_bytes: int
    """True total since the last result."""
    exit_code: int | None
    """Of the command or, negative, the signal that ended the shell; None: nothing has ended."""
    timed_out: bool
    """The command has used up its time; all that it started was ended, if need be its shell too."""
    duration_s: float


@runtime_checkable
class Shells(Protocol):
    """What a sandbox adds when it can keep a shell (`sandbox.persist_shell`)."""

    async def shell(
        self, text: str, timeout_s: float = 120.0, is_input: bool = False, wait_s: float | None = None
    ) -> ShellResult:
        """Run the command `text` in the shell of this sandbox, or with `is_input` type these very characters to what
        runs there (`\\x03` is Ctrl-C, `\\x04` Ctrl-D, which ends an idle shell); empty input waits for more output.
        Returns when the command has ended, when it waits for input, after 10 s in which it was silent or, with
        `wait_s`, after that long whatever it does.
        `timeout_s` is the time of a command, of all calls in which it was waited for together. Raises FileRefused for
        what no terminal takes, SandboxDied."""
        ...


@runtime_checkable
class Snapshots(Protocol):
    """What a sandbox adds when its files can be kept and made again (`envs/sandbox/snapshot.py`)."""

    async def snapshot(self, folders: Sequence[str] = (), max_bytes: int = MAX_SNAPSHOT) -> Snapshot:
        """`folders` of one moment; without any, all that can be written in it. What runs is stopped meanwhile. The
        caller closes it. Raises FileRefused for what is no folder or larger than `max_bytes`, SandboxDied."""
        ...

    async def restore(self, snapshot: Snapshot) -> None:
        """Make the folders of a snapshot what they were, after everything that runs has been ended. Raises FileRefused
        where there is no room for them, SandboxDied."""
        ...

    async def fork(self, num_forks: int = 1) -> list[Sandbox]:
        """Fresh sandboxes of the same image with the same files; the caller closes them. All or none. Raises as
        `snapshot` and `restore` do."""
        ...


async def end_processes(sandbox: Sandbox) -> None:
    """End all that runs in it. A backend that can do it from outside has `nuke`; else it is a command, which a policy
    that is root there may have replaced. Raises SandboxError."""
    nuke = getattr(sandbox, "nuke", None)
    if nuke is not None:
        await nuke()
    else:
        await sandbox.exec("kill -KILL -1", timeout_s=10)


class Backend(Protocol):
    """A way to start sandboxes."""

    name: str

    async def start(self, image: str = "") -> Sandbox:
        """A ready sandbox. `image` overrides the configured one. Raises BackendUnavailable, SandboxDied."""
        ...

    async def close(self) -> None:
        """Release what the backend itself holds. Sandboxes that still run may end with it."""
        ...

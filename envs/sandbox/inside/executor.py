"""The program that is PID 1 of a sandbox: it runs commands and reads and writes files for the host over one stream.

    python3 -I -S executor.py SOCKET [NAME=LIMIT]...      it connects to the unix socket of the host at the path SOCKET

Bubblewrap's sandboxes are forked by `envs/sandbox/inside/nursery.py`, which calls `serve` with the stream it was given.

Frame, both ways: u32 header length, u32 payload length (big endian), header, payload. The header is `key=value` fields
joined by NUL bytes. Every request carries an `id`, any number may be in flight, and each gets exactly one reply with
that id; the first frame is `ready=1`.

    request                                                reply
    op=ping                                                -
    op=exec timeout= keep= cwd= persist= env.NAME=...      exit= timed_out= duration= background= stdout= stderr= kept=
            payload: the command                                   payload: kept bytes of stdout, then of stderr
    op=read path= max=                                     payload: the file
    op=write       payload: records (see `op_write`)       -
    op=nuke                                                -
    a file or request that cannot be served                errno= message=

End of file on the stream is the lease: PID 1 ends and the kernel ends everything in the namespace.

Any Python from 3.9 on runs it, as the image has it. It imports the smallest modules of the standard library (`posix`
is what `os` is made of), all at the start: a container pays for them with time and memory, and a command may delete the
interpreter's own files. It refuses to run unless it is PID 1 of a pid namespace of its own: its `kill(-1)` anywhere
else would end every process of the machine.
"""

from __future__ import annotations

import _signal
import _socket
import errno
import posix
import resource
import select
import struct
import sys
import time
from _stat import S_ISDIR, S_ISREG

FRAME = struct.Struct(">II")
RECORD = struct.Struct(">IQQ")
MAX_HEADER = 1 << 20
MAX_PAYLOAD = 64 << 20
PAGE_BYTES = resource.getpagesize()
READ_BYTES = 96 << 10  # below what malloc takes from the kernel anew each time
MAX_STATE = 1 << 20
MAX_HELD_PIPES = 512
INLINE_COMMAND = 100_000  # one argv string is limited to 128 KiB: longer commands go through a memfd
SPAWN_TRIES = 20
TERM_GRACE_S = 0.2
KILL_AGAIN_S = 0.005
WATCH_MEMORY_S = 0.1
PIPE_GRACE_S = 0.05
COMMAND_FD, STATE_FD = 9, 250
BASH = "/bin/bash"
WORKDIR = b"/testbed"
INITIAL_PID_NAMESPACE = "pid:[4026531836]"  # the kernel's PROC_PID_INIT_INO
DEFAULT_ENVIRONMENT = {
    b"PATH": b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    b"HOME": b"/root",
    b"SHELL": b"/bin/bash",  # else bash looks up its user, which takes 0.1 ms
    b"LC_CTYPE": b"C.UTF-8",  # what LANG=C.UTF-8 means, without the eleven other files that every program would read
    b"TERM": b"dumb",
}
NOT_STATE = (b"_", b"PWD", b"OLDPWD", b"SHLVL")
SAVE_STATE = b'trap \'{ builtin printf "%%s\\0" "$PWD"; /usr/bin/env -0; } >&%d 2>/dev/null\' EXIT; ' % STATE_FD


def in_own_pid_namespace() -> bool:
    """True only as PID 1 of a pid namespace that is not the machine's own."""
    try:
        return posix.getpid() == 1 and posix.readlink("/proc/self/ns/pid") != INITIAL_PID_NAMESPACE
    except OSError:
        return False


def refuse_elsewhere() -> None:
    if not in_own_pid_namespace():
        sys.exit("refuses to run unless it is PID 1 of a pid namespace of its own")


def nuke() -> None:
    """Kill every other process of this pid namespace; atomic against fork. Never legal outside one's own namespace."""
    if not in_own_pid_namespace():
        raise RuntimeError("not PID 1 of an own pid namespace")
    try:
        posix.kill(-1, _signal.SIGKILL)
    except ProcessLookupError:
        pass


def hide_from_commands() -> None:
    """PR_SET_DUMPABLE 0: commands cannot trace PID 1 nor open its /proc/1/{mem,environ,maps,fd}."""
    try:
        import _ctypes

        prctl = _ctypes.dlsym(_ctypes.dlopen(None, 0), "prctl")  # type: ignore[arg-type]
        result = _ctypes.call_function(prctl, (4, 0, 0, 0, 0))
    except (ImportError, AttributeError):
        import ctypes

        result = ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)
    if result:
        raise RuntimeError("PR_SET_DUMPABLE failed")


def pack_header(fields: dict[bytes, bytes]) -> bytes:
    return b"\0".join(b"%b=%b" % item for item in fields.items())


def pack_head(fields: dict[bytes, bytes], payload_size: int) -> bytes:
    """A frame up to its payload."""
    header = pack_header(fields)
    return FRAME.pack(len(header), payload_size) + header


def pack(fields: dict[bytes, bytes], payload: bytes = b"") -> bytes:
    return pack_head(fields, len(payload)) + payload


def unpack_header(header: bytes) -> dict[bytes, bytes]:
    """Raises ValueError for what is not a list of `key=value` fields."""
    fields = {}
    for field in header.split(b"\0"):
        name, value = field.split(b"=", 1)
        fields[name] = value
    return fields


def bounds_of_frame(data: bytearray | memoryview) -> tuple[int, int] | None:
    """Where the payload of the first frame begins and ends; None while it is not whole. ValueError: it is too large."""
    if len(data) < FRAME.size:
        return None
    header_size, payload_size = FRAME.unpack_from(data)
    if header_size > MAX_HEADER or payload_size > MAX_PAYLOAD:
        raise ValueError("frame too large")
    start = FRAME.size + header_size
    return (start, start + payload_size) if start + payload_size <= len(data) else None


class Kept:
    """The first and the last half of a stream's bytes, and how many there were."""

    __slots__ = ("head_size", "tail_size", "head", "tail", "total")

    def __init__(self, keep: int) -> None:
        self.head_size = keep // 2
        self.tail_size = keep - keep // 2
        self.head = bytearray()
        self.tail = bytearray()
        self.total = 0

    def add(self, data: bytes) -> None:
        self.total += len(data)
        room = self.head_size - len(self.head)
        if room > 0:
            self.head += data[:room]
            data = data[room:]
        self.tail += data
        if len(self.tail) > 2 * self.tail_size:
            del self.tail[: len(self.tail) - self.tail_size]

    def both(self) -> bytes:
        return bytes(self.head) + bytes(self.tail[max(0, len(self.tail) - self.tail_size) :])


class Command:
    """A command in flight, or a finished one whose background children still hold its pipes."""

    __slots__ = (
        "id", "pid", "started", "deadline", "timed_out", "born", "kill_at", "exit", "ended", "pipes", "kept",
        "answered", "state",
    )  # fmt: skip

    def __init__(self, identity: bytes, timeout_s: float, keep: int) -> None:
        self.id = identity
        self.pid = -1
        self.started = time.monotonic()
        self.deadline = self.started + timeout_s
        self.timed_out = False
        self.born = (0, 0)  # start time in clock ticks and pid: the order in which processes of a namespace are made
        self.kill_at = 0.0
        self.exit: int | None = None
        self.ended = 0.0
        self.pipes: list[int] = []
        self.kept = (Kept(keep), Kept(keep))
        self.answered = False
        self.state = -1


def stat_fields(pid: int) -> list[bytes]:
    """The fields of /proc/PID/stat after the name: [0] state, [1] parent, [19] start time in clock ticks."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        return file.read().rsplit(b")", 1)[1].split()


def live_processes() -> dict[int, tuple[int, int]]:
    """pid -> (parent, start time) of every live process but PID 1."""
    found = {}
    for name in posix.listdir("/proc"):
        if not name.isdigit() or name == "1":
            continue
        try:
            fields = stat_fields(int(name))
        except (OSError, IndexError):
            continue
        if fields[0] not in b"ZX":
            found[int(name)] = (int(fields[1]), int(fields[19]))
    return found


def resident_bytes(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * PAGE_BYTES
    except (OSError, IndexError):
        return 0


def proportional_bytes(pid: int) -> int:
    """Memory of a process with each shared page divided among those that share it."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) << 10
    except OSError:
        pass  # it has ended, or hides: then its resident size is what is known
    return resident_bytes(pid)


def is_folder(path: bytes) -> bool:
    try:
        return S_ISDIR(posix.stat(path).st_mode)
    except OSError:
        return False


def open_folder(path: bytes, make: bool) -> tuple[int, bytes]:
    """(descriptor of the folder that holds `path`, last name): no component may be a link."""
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    if not path.startswith(b"/") or not parts or b".." in parts:
        raise OSError(errno.EINVAL, "not an absolute path of a file without '..'")
    flags = posix.O_PATH | posix.O_DIRECTORY | posix.O_NOFOLLOW | posix.O_CLOEXEC
    folder = posix.open("/", flags)
    try:
        for part in parts[:-1]:
            if make:
                try:
                    posix.mkdir(part, 0o755, dir_fd=folder)
                except FileExistsError:
                    pass
            inner = posix.open(part, flags, dir_fd=folder)
            posix.close(folder)
            folder = inner
    except BaseException:
        posix.close(folder)
        raise
    return folder, parts[-1]


def open_file(path: bytes, flags: int, make: bool = False) -> int:
    """A descriptor of the regular file `path`: never follows a link, never waits for a FIFO or a device."""
    folder, name = open_folder(path, make)
    try:
        file = posix.open(
            name, flags | posix.O_NOFOLLOW | posix.O_NONBLOCK | posix.O_NOCTTY | posix.O_CLOEXEC, 0o644, dir_fd=folder
        )
    finally:
        posix.close(folder)
    if not S_ISREG(posix.fstat(file).st_mode):
        posix.close(file)
        raise OSError(errno.EINVAL, "not a regular file")
    return file


def write_at(file: int, data: bytes | memoryview, offset: int) -> None:
    while data:
        written = posix.pwrite(file, data, offset)
        data, offset = data[written:], offset + written


class Executor:
    """One thread, one poll loop, any number of commands in flight."""

    def __init__(self, stream: int, processes: int, memory_bytes: int) -> None:
        self.stream = stream
        self.buffer = bytearray()
        self.commands: dict[int, Command] = {}  # by pid, those in flight
        self.pipes: dict[int, tuple[int, Command]] = {}  # by descriptor, also of finished commands
        self.processes = processes
        self.memory_bytes = memory_bytes  # 0: the kernel limits it
        self.watch_at = 0.0
        self.environment = dict(DEFAULT_ENVIRONMENT)
        self.environment.update(posix.environ)
        self.shell_cwd = WORKDIR
        self.shell_environment: dict[bytes, bytes] = {}
        self.score = posix.open("/proc/self/oom_score_adj", posix.O_RDWR | posix.O_CLOEXEC)
        self.own_score = posix.read(self.score, 16)
        self.poll = select.poll()
        self.poll.register(stream, select.POLLIN)
        posix.set_blocking(stream, False)
        self.wake, waker = posix.pipe()
        posix.set_blocking(self.wake, False)
        posix.set_blocking(waker, False)
        self.poll.register(self.wake, select.POLLIN)
        _signal.signal(_signal.SIGCHLD, lambda *_: None)
        _signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        for number in (_signal.SIGTERM, _signal.SIGINT, _signal.SIGHUP, _signal.SIGPIPE, _signal.SIGXFSZ):
            _signal.signal(number, _signal.SIG_IGN)

    def send(self, fields: dict[bytes, bytes], payload: bytes = b"") -> None:
        data = memoryview(pack(fields, payload))
        while data:
            try:
                data = data[posix.write(self.stream, data) :]
            except BlockingIOError:
                waiter = select.poll()
                waiter.register(self.stream, select.POLLOUT)
                waiter.poll()

    def run(self) -> None:
        """Serve until the host closes the stream."""
        self.send({b"ready": b"1"})
        while True:
            child = False
            for descriptor, _ in self.poll.poll(self.wait_ms()):
                if descriptor == self.stream:
                    if not self.receive():
                        return
                elif descriptor == self.wake:
                    posix.read(descriptor, 4096)
                    child = True
                else:
                    self.drain(descriptor)
            if child:
                self.reap()
            self.check_clocks()

    def wait_ms(self) -> int | None:
        now = time.monotonic()
        times = [
            command.kill_at or (command.deadline if command.exit is None else command.ended + PIPE_GRACE_S)
            for command in self.commands.values()
        ]
        if self.watch_at:
            times.append(self.watch_at)
        return max(0, min(3_600_000, int((min(times) - now) * 1000) + 1)) if times else None

    def receive(self) -> bool:
        """Take what the host sent; False at the end of the stream or of the protocol."""
        try:
            data = posix.read(self.stream, READ_BYTES)
        except BlockingIOError:
            return True
        except ConnectionResetError:
            return False
        if not data:
            return False
        self.buffer += data
        try:
            bounds = bounds_of_frame(self.buffer)
            if not bounds:
                return True
            frames, self.buffer = memoryview(self.buffer), bytearray()
            while bounds:
                start, end = bounds
                header, payload, frames = bytes(frames[FRAME.size : start]), frames[start:end], frames[end:]
                self.serve(unpack_header(header), payload)
                bounds = bounds_of_frame(frames)
        except (ValueError, KeyError):
            return False
        self.buffer += frames
        return True

    def serve(self, fields: dict[bytes, bytes], payload: memoryview) -> None:
        """Raises KeyError for what is no request."""
        identity, operation = fields[b"id"], OPERATIONS[fields[b"op"]]
        try:
            operation(self, identity, fields, payload)
        except OSError as error:
            self.refuse(identity, error.errno or errno.EIO, error.strerror or "")
        except (ValueError, KeyError, struct.error) as error:
            self.refuse(identity, 0, f"bad request: {error!r}")

    def refuse(self, identity: bytes, number: int, message: str) -> None:
        self.send({b"id": identity, b"errno": b"%d" % number, b"message": message.encode("utf-8", "replace")})

    def op_ping(self, identity: bytes, fields: dict[bytes, bytes], payload: memoryview) -> None:
        self.send({b"id": identity})

    def op_nuke(self, identity: bytes, fields: dict[bytes, bytes], payload: memoryview) -> None:
        nuke()
        self.send({b"id": identity})

    def op_read(self, identity: bytes, fields: dict[bytes, bytes], payload: memoryview) -> None:
        limit = int(fields[b"max"])
        file = open_file(fields[b"path"], posix.O_RDONLY)
        try:
            if posix.fstat(file).st_size > limit:
                raise OSError(errno.EFBIG, f"larger than {limit} bytes")
            data = bytearray()
            while len(data) <= limit:
                part = posix.read(file, min(1 << 20, limit + 1 - len(data)))
                if not part:
                    break
                data += part
        finally:
            posix.close(file)
        if len(data) > limit:
            raise OSError(errno.EFBIG, f"larger than {limit} bytes")
        self.send({b"id": identity}, bytes(data))

    def op_write(self, identity: bytes, fields: dict[bytes, bytes], payload: memoryview) -> None:
        """Records: u32 path length, u64 offset, u64 size, path, bytes. Offset 0 starts the file anew."""
        while payload:
            path_size, offset, size = RECORD.unpack_from(payload)
            payload = payload[RECORD.size :]
            end = path_size + size
            if end > len(payload):
                raise ValueError("record longer than its frame")
            path, data, payload = bytes(payload[:path_size]), payload[path_size:end], payload[end:]
            try:
                file = open_file(path, posix.O_WRONLY | posix.O_CREAT, make=True)
                try:
                    if not offset:
                        posix.ftruncate(file, 0)
                    write_at(file, data, offset)
                finally:
                    posix.close(file)
            except OSError as error:
                where = path.decode("utf-8", "replace")
                raise OSError(error.errno, f"{error.strerror}: {where}") from error
        self.send({b"id": identity})

    def op_exec(self, identity: bytes, fields: dict[bytes, bytes], payload: memoryview) -> None:
        environment = dict(self.environment)
        cwd, save = fields[b"cwd"], False
        if fields[b"persist"] == b"1":
            environment.update(self.shell_environment)
            save = cwd == WORKDIR  # a command that names its folder leaves the shell's own alone
            if save and is_folder(self.shell_cwd):
                cwd = self.shell_cwd
        for name, value in fields.items():
            if name.startswith(b"env."):
                environment[name[4:]] = value
        timeout_s, keep = float(fields[b"timeout"]), int(fields[b"keep"])
        if not (0 < timeout_s < 1e9 and 0 <= keep <= MAX_PAYLOAD // 2):
            raise ValueError("timeout or keep out of range")
        command = Command(identity, timeout_s, keep)
        if self.clear_when_full():
            command.kept[1].add(b"sandbox: too many processes were running; all of them were ended\n")
        problem = self.spawn(command, bytes(payload), cwd, environment, save)
        if problem:  # the sandbox is alive, its shell is not: the command's own failure, said where bash would say it
            command.exit, command.ended = 126, command.started
            command.kept[1].add(problem.encode("utf-8", "replace"))
            self.finish(command)

    def clear_when_full(self) -> bool:
        """End everything when a new command could hardly start a process: what a fork bomb leaves behind would make
        every later command wait (bash retries a fork for 15 s)."""
        try:
            posix.waitid(posix.P_ALL, 0, posix.WEXITED | posix.WNOHANG | posix.WNOWAIT)
        except ChildProcessError:
            return False  # nothing runs: what loses its parent here becomes a child of PID 1
        most = self.processes * 7 // 8 if self.commands else self.processes // 2
        if sum(name.isdigit() for name in posix.listdir("/proc")) < most:
            return False
        nuke()
        return True

    def spawn(
        self, command: Command, script: bytes, cwd: bytes, environment: dict[bytes, bytes], save: bool
    ) -> str | None:
        """Start bash; the text of what went wrong, or None."""
        if b"\0" in script:
            return "bash: the command contains a NUL byte\n"
        try:
            posix.chdir(cwd)
        except OSError as error:
            return f"bash: cd: {cwd.decode(errors='replace')}: {error.strerror}\n"
        environment[b"PWD"] = cwd
        actions: list[tuple[object, ...]] = [(posix.POSIX_SPAWN_OPEN, 0, "/dev/null", posix.O_RDONLY, 0)]
        ours: list[int] = []
        theirs: list[int] = []
        try:
            for target in (1, 2):
                reader, writer = posix.pipe()
                ours.append(reader)
                theirs.append(writer)
                posix.set_blocking(reader, False)
                actions.append((posix.POSIX_SPAWN_DUP2, writer, target))
            if save:
                command.state = posix.memfd_create("state")
                actions.append((posix.POSIX_SPAWN_DUP2, command.state, STATE_FD))
                script = SAVE_STATE + script
            arguments: list[str | bytes] = [BASH, "-c", script]
            if len(script) > INLINE_COMMAND:
                theirs.append(posix.memfd_create("command"))
                write_at(theirs[-1], script, 0)
                actions.append((posix.POSIX_SPAWN_DUP2, theirs[-1], COMMAND_FD))
                arguments = [BASH, f"/dev/fd/{COMMAND_FD}"]
            command.pid = self.spawn_bash(arguments, environment, actions)
        except OSError as error:
            for descriptor in ours:
                posix.close(descriptor)
            return f"bash: cannot start: {error.strerror}\n"
        finally:
            for descriptor in theirs:
                posix.close(descriptor)
        self.commands[command.pid] = command
        if self.memory_bytes and not self.watch_at:
            self.watch_at = time.monotonic() + WATCH_MEMORY_S
        for index, descriptor in enumerate(ours):
            self.pipes[descriptor] = (index, command)
            command.pipes.append(descriptor)
            self.poll.register(descriptor, select.POLLIN)
        return None

    def spawn_bash(
        self, arguments: list[str | bytes], environment: dict[bytes, bytes], actions: list[tuple[object, ...]]
    ) -> int:
        """A new bash that the out-of-memory killer takes before PID 1. A sandbox full of processes is cleared."""
        attempt = 0
        posix.pwrite(self.score, b"1000", 0)  # it inherits; its own file is closed to PID 1 until its exec is through
        try:
            while True:
                try:
                    return posix.posix_spawn(
                        BASH,
                        arguments,
                        environment,
                        file_actions=actions,
                        setsid=True,
                        setsigmask=[],
                        setsigdef=[
                            _signal.SIGTERM, _signal.SIGINT, _signal.SIGHUP,
                            _signal.SIGPIPE, _signal.SIGXFSZ, _signal.SIGCHLD,
                        ],
                    )  # fmt: skip
                except BlockingIOError:  # EAGAIN: a fork bomb holds every process
                    attempt += 1
                    if attempt == SPAWN_TRIES:
                        raise
                    nuke()
                    time.sleep(0.01)
                    self.reap()
        finally:
            posix.pwrite(self.score, self.own_score, 0)

    def drain(self, descriptor: int) -> None:
        """Read what a command wrote; of a finished one, to nowhere, so that its background children meet no SIGPIPE."""
        if descriptor not in self.pipes:
            return
        index, command = self.pipes[descriptor]
        for _ in range(16):
            try:
                data = posix.read(descriptor, 65536)
            except BlockingIOError:
                return
            if not data:
                self.drop_pipe(descriptor)
                return
            command.kept[index].add(data)

    def drop_pipe(self, descriptor: int) -> None:
        self.poll.unregister(descriptor)
        self.pipes.pop(descriptor)[1].pipes.remove(descriptor)
        posix.close(descriptor)

    def reap(self) -> None:
        while True:
            try:
                pid, status = posix.waitpid(-1, posix.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            command = self.commands.get(pid)
            if command:
                command.exit = posix.waitstatus_to_exitcode(status)
                command.ended = time.monotonic()

    def watch_memory(self) -> None:
        """Without a control group: while the programs together use too much memory, the largest one is killed.

        Resident sizes count shared pages once per process and are cheap; only when their sum is too large are the
        proportional sizes read, which are exact and slow.
        """
        pids = list(live_processes())
        self.watch_at = time.monotonic() + WATCH_MEMORY_S if pids else 0.0
        if sum(resident_bytes(pid) for pid in pids) <= self.memory_bytes:
            return
        sizes = {pid: proportional_bytes(pid) for pid in pids}
        while sum(sizes.values()) > self.memory_bytes:
            largest = max(sizes, key=lambda pid: sizes[pid])
            del sizes[largest]
            try:
                posix.kill(largest, _signal.SIGKILL)
            except ProcessLookupError:
                pass

    def check_clocks(self) -> None:
        now = time.monotonic()
        if self.watch_at and now >= self.watch_at:
            self.watch_memory()
        for command in list(self.commands.values()):
            if command.exit is None and not command.timed_out and now >= command.deadline:
                command.timed_out = True
                command.born = (int(stat_fields(command.pid)[19]), command.pid)  # not reaped yet, so it is there
                command.kill_at = now + TERM_GRACE_S
                self.signal_tree(command, _signal.SIGTERM)
            elif command.kill_at and (command.exit is not None or now >= command.kill_at):
                left = self.signal_tree(command, _signal.SIGKILL)
                command.kill_at = now + KILL_AGAIN_S if left else 0.0
                command.deadline = now + 3600
            if command.exit is not None and not command.kill_at:
                if not command.pipes or command.timed_out or now >= command.ended + PIPE_GRACE_S:
                    self.finish(command)

    def signal_tree(self, command: Command, number: int) -> int:
        """Signal what the command started: its group, and every process born since it except descendants of other
        commands in flight. Neither setsid, a double fork nor `env -i` hides a process. How many were signalled."""
        found = live_processes()
        others = {pid for pid, other in self.commands.items() if other is not command and other.exit is None}
        signalled = 0
        for pid, (_, started) in found.items():
            if (started, pid) < command.born:
                continue
            ancestor = pid
            while ancestor in found and ancestor not in others:
                ancestor = found[ancestor][0]
            if ancestor in others:
                continue
            try:
                posix.kill(pid, number)
                signalled += 1
            except ProcessLookupError:
                pass
        return signalled

    def finish(self, command: Command) -> None:
        """Answer the host. Pipes that background children hold stay open, up to a bound."""
        for descriptor in list(command.pipes):
            self.drain(descriptor)
        if command.state >= 0:
            self.load_state(command.state)
            posix.close(command.state)
        assert command.exit is not None
        outputs = [kept.both() for kept in command.kept]
        self.send(
            {
                b"id": command.id,
                b"exit": b"%d" % command.exit,
                b"timed_out": b"%d" % command.timed_out,
                b"duration": b"%.6f" % (time.monotonic() - command.started),
                b"background": b"%d" % bool(command.pipes),
                b"stdout": b"%d" % command.kept[0].total,
                b"stderr": b"%d" % command.kept[1].total,
                b"kept": b"%d" % len(outputs[0]),
            },
            outputs[0] + outputs[1],
        )
        command.answered = True
        command.kept = (Kept(0), Kept(0))
        self.commands.pop(command.pid, None)
        while len(self.pipes) > MAX_HELD_PIPES + 2 * len(self.commands):
            held = next((descriptor for descriptor, (_, owner) in self.pipes.items() if owner.answered), None)
            if held is None:
                break
            self.drop_pipe(held)

    def load_state(self, descriptor: int) -> None:
        """Take over the working directory and exported variables a persistent shell left. Anything else is ignored."""
        data = posix.pread(descriptor, MAX_STATE, 0)
        cwd, *variables = data.split(b"\0")[:-1] or [b""]
        if not cwd.startswith(b"/") or len(data) == MAX_STATE:
            return
        self.shell_cwd = cwd
        pairs = (variable.split(b"=", 1) for variable in variables if b"=" in variable[1:])
        self.shell_environment = {name: value for name, value in pairs if name not in NOT_STATE}


OPERATIONS = {
    b"ping": Executor.op_ping,
    b"exec": Executor.op_exec,
    b"read": Executor.op_read,
    b"write": Executor.op_write,
    b"nuke": Executor.op_nuke,
}
LIMITS = {
    "processes": resource.RLIMIT_NPROC,
    "open_files": resource.RLIMIT_NOFILE,
    "file_bytes": resource.RLIMIT_FSIZE,
    "core_bytes": resource.RLIMIT_CORE,
}


def serve(stream: int, limits: dict[str, int]) -> None:
    """Bound this process and what it starts by `limits` (names of LIMITS, and `memory_bytes`, which it watches), hide
    it from its commands and serve the host on `stream`. Never returns."""
    refuse_elsewhere()
    for name, limit in limits.items():
        if name != "memory_bytes":
            _, hard = resource.getrlimit(LIMITS[name])
            bound = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
            resource.setrlimit(LIMITS[name], (bound, bound))
    executor = Executor(stream, limits.get("processes", 1 << 30), limits.get("memory_bytes", 0))
    hide_from_commands()
    executor.run()
    posix._exit(0)  # without the interpreter's own end: the kernel ends the rest


def connect(path: str) -> int:
    """A stream to the host's unix socket."""
    host = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    host.connect(path)
    return host.detach()


def main() -> None:
    refuse_elsewhere()
    path, *words = sys.argv[1:]
    limits = {}
    for word in words:
        name, limit = word.split("=")
        limits[name] = int(limit)
    serve(connect(path), limits)


if __name__ == "__main__":
    main()

"""Commands of a sandbox: each a bash with its output collected, its time limit kept and all that it started ended."""

from __future__ import annotations

import _signal
import errno
import posix
import resource
import select
import time

from sandboxrl.envs.sandbox.inside.files import write_at
from sandboxrl.envs.sandbox.inside.processes import (
    freeze,
    live_processes,
    nuke,
    proportional_bytes,
    resident_bytes,
    stat_fields,
    thaw,
)

TYPE_CHECKING = False  # the module of that name is too large to be imported in every sandbox
if TYPE_CHECKING:
    from collections.abc import Callable

MAX_HELD_PIPES = 512
INLINE_COMMAND = 100_000  # one argv string is limited to 128 KiB: longer commands go through a memfd
SPAWN_TRIES = 20
TERM_GRACE_S = 0.2
KILL_AGAIN_S = 0.005
FEW_KILLS = 3
SHORT = (errno.EAGAIN, errno.ENOMEM, errno.ENFILE)
WATCH_MEMORY_S = 0.1
PIPE_GRACE_S = 0.05
COMMAND_FD = 9
BASH = "/bin/bash"
WORKDIR = b"/testbed"
DEFAULT_ENVIRONMENT = {
    b"PATH": b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    b"HOME": b"/root",
    b"SHELL": b"/bin/bash",  # else bash looks up its user, which takes 0.1 ms
    b"LC_CTYPE": b"C.UTF-8",  # what LANG=C.UTF-8 means, without the eleven other files that every program would read
    b"TERM": b"dumb",
}


def anonymous_file() -> int:
    """Where memory is watched rather than counted there are none in memory but those on a memory file system."""
    try:
        return posix.memfd_create("sandbox")
    except OSError:
        return posix.open("/dev/shm", posix.O_TMPFILE | posix.O_RDWR | posix.O_CLOEXEC, 0o600)


class MachineShort(Exception):
    """The kernel has no room for a process although nothing runs in this sandbox."""


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
        "id", "pid", "started", "deadline", "timed_out", "born", "kill_at", "kills", "exit", "ended", "pipes", "kept",
        "answered",
    )  # fmt: skip

    def __init__(self, identity: bytes, timeout_s: float, keep: int) -> None:
        self.id = identity
        self.pid = -1
        self.started = time.monotonic()
        self.deadline = self.started + timeout_s
        self.timed_out = False
        self.born = (0, 0)  # start time in clock ticks and pid: the order in which processes of a namespace are made
        self.kill_at = 0.0
        self.kills = 0
        self.exit: int | None = None
        self.ended = 0.0
        self.pipes: list[int] = []
        self.kept = (Kept(keep), Kept(keep))
        self.answered = False


class Commands:
    """Those in flight, and the pipes that background children of finished ones still hold."""

    def __init__(
        self,
        poll: select.poll,
        answer: Callable[[Command, list[bytes]], None],
        give_up: Callable[[bytes, str], None],
        processes: int,
        memory_bytes: int,
    ) -> None:
        self.poll = poll
        self.give_up = (
            give_up  # called with the id of a command that cannot be run here and now, by nobody's doing inside
        )
        self.answer = answer  # called with a finished command and the kept bytes of its stdout and stderr
        self.in_flight: dict[int, Command] = {}  # by pid
        self.lasting: dict[int, Callable[[int], None]] = {}  # by pid: a shell that persists, told how it ended
        self.pipes: dict[int, tuple[int, Command]] = {}  # by descriptor, also of finished commands
        self.processes = processes
        self.memory_bytes = memory_bytes  # 0: the kernel limits it
        self.max_held_pipes = min(MAX_HELD_PIPES, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
        self.watch_at = 0.0
        self.peak_bytes = self.peak_processes = 0  # that the watch has seen
        self.killed: set[int] = set()  # by the watch: it may take a process some time to end
        self.environment = {**DEFAULT_ENVIRONMENT, **posix.environ}
        self.nothing = posix.open("/dev/null", posix.O_RDONLY | posix.O_CLOEXEC)  # later, a FIFO may be there
        self.score = posix.open("/proc/self/oom_score_adj", posix.O_RDWR | posix.O_CLOEXEC)
        self.own_score = posix.read(self.score, 16)

    def start(self, command: Command, script: bytes, cwd: bytes, variables: dict[bytes, bytes]) -> None:
        """Run `script`; whatever becomes of it, it is answered."""
        if self.clear_when_full():
            command.kept[1].add(b"sandbox: too many processes were running; all of them were ended\n")
        try:
            problem = self.spawn(command, script, cwd, {**self.environment, **variables})
        except MachineShort as short:
            self.give_up(command.id, str(short))
            return
        if problem:  # the sandbox is alive, its shell is not: the command's own failure, said where bash would say it
            command.exit, command.ended = 126, command.started
            command.kept[1].add(problem.encode("utf-8", "replace"))
            self.finish(command)

    def clocks(self) -> list[float]:
        """When there is something to do unasked (`time.monotonic`)."""
        times = [
            command.kill_at or (command.deadline if command.exit is None else command.ended + PIPE_GRACE_S)
            for command in self.in_flight.values()
        ]
        return [*times, self.watch_at] if self.watch_at else times

    def clear_when_full(self) -> bool:
        """End everything when a new command could hardly start a process: what a fork bomb leaves behind would make
        every later command wait (bash retries a fork for 15 s)."""
        try:
            posix.waitid(posix.P_ALL, 0, posix.WEXITED | posix.WNOHANG | posix.WNOWAIT)
        except ChildProcessError:
            return False  # nothing runs: what loses its parent here becomes a child of PID 1
        most = self.processes * 7 // 8 if self.in_flight else self.processes // 2
        if sum(name.isdigit() for name in posix.listdir("/proc")) < most:
            return False
        nuke()
        return True

    def spawn(self, command: Command, script: bytes, cwd: bytes, environment: dict[bytes, bytes]) -> str | None:
        """Start bash; the text of what went wrong, or None."""
        if b"\0" in script:
            return "bash: the command contains a NUL byte\n"
        try:
            posix.chdir(cwd)
        except OSError as error:
            return f"bash: cd: {cwd.decode(errors='replace')}: {error.strerror}\n"
        environment[b"PWD"] = cwd
        actions: list[tuple[object, ...]] = [(posix.POSIX_SPAWN_DUP2, self.nothing, 0)]
        ours: list[int] = []
        theirs: list[int] = []
        try:
            for target in (1, 2):
                reader, writer = posix.pipe()
                ours.append(reader)
                theirs.append(writer)
                posix.set_blocking(reader, False)
                actions.append((posix.POSIX_SPAWN_DUP2, writer, target))
            arguments: list[str | bytes] = [BASH, "-c", script]
            if len(script) > INLINE_COMMAND:
                theirs.append(anonymous_file())
                write_at(theirs[-1], script, 0)
                actions.append((posix.POSIX_SPAWN_DUP2, theirs[-1], COMMAND_FD))
                arguments = [BASH, f"/dev/fd/{COMMAND_FD}"]
            command.pid = self.spawn_bash(arguments, environment, actions)
        except OSError as error:
            for descriptor in ours:
                posix.close(descriptor)
            if error.errno in SHORT and not live_processes():
                raise MachineShort(error.strerror) from error
            return f"bash: cannot start: {error.strerror}\n"
        finally:
            for descriptor in theirs:
                posix.close(descriptor)
        self.in_flight[command.pid] = command
        self.watch_from_now()
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
            command = self.in_flight.get(pid)
            if command:
                command.exit = posix.waitstatus_to_exitcode(status)
                command.ended = time.monotonic()
            elif pid in self.lasting:
                self.lasting.pop(pid)(posix.waitstatus_to_exitcode(status))

    def watch_from_now(self) -> None:
        if self.memory_bytes and not self.watch_at:
            self.watch_at = time.monotonic() + WATCH_MEMORY_S

    def watch_memory(self) -> None:
        """Without a control group: while the programs together use too much memory, the largest one is killed.

        Resident sizes count shared pages once per process and are cheap; only when their sum is too large are the
        proportional sizes read, which are exact and slow.
        """
        pids = list(live_processes())
        self.watch_at = time.monotonic() + WATCH_MEMORY_S if pids else 0.0
        self.peak_processes = max(self.peak_processes, len(pids) + 1)
        resident = sum(resident_bytes(pid) for pid in pids)
        if resident <= self.memory_bytes:
            self.peak_bytes = max(self.peak_bytes, resident)
            return
        sizes = {pid: proportional_bytes(pid) for pid in pids}
        self.peak_bytes = max(self.peak_bytes, sum(sizes.values()))
        while sum(sizes.values()) > self.memory_bytes:
            largest = max(sizes, key=lambda pid: sizes[pid])
            del sizes[largest]
            try:
                posix.kill(largest, _signal.SIGKILL)
                self.killed.add(largest)
            except ProcessLookupError:
                pass

    def check_clocks(self) -> None:
        now = time.monotonic()
        if self.watch_at and now >= self.watch_at:
            self.watch_memory()
        for command in list(self.in_flight.values()):
            if command.exit is None and not command.timed_out and now >= command.deadline:
                command.timed_out = True
                command.born = (int(stat_fields(command.pid)[19]), command.pid)  # not reaped yet, so it is there
                command.kill_at = now + TERM_GRACE_S
                self.signal_tree(command.pid, command.born, _signal.SIGTERM)
            elif command.kill_at and (command.exit is not None or now >= command.kill_at):
                command.kills += 1
                left = self.kill_tree(command.pid, command.born, command.kills)
                command.kill_at = now + KILL_AGAIN_S if left else 0.0
                command.deadline = now + 3600
            if command.exit is not None and not command.kill_at:
                if not command.pipes or command.timed_out or now >= command.ended + PIPE_GRACE_S:
                    self.finish(command)

    def signal_tree(self, root: int, born: tuple[int, int], number: int, but_root: bool = False) -> int:
        """Signal what a command started; how many processes that were. Neither setsid, a double fork nor `env -i` hides
        one: it is every process born since the command, but for those that have an older ancestor or session (workers
        of a server that an earlier command left running) or one of another command in flight. `root` is its bash, with
        `but_root` one that is older and stays."""
        found = live_processes()
        others = {pid for pid, other in self.in_flight.items() if other.exit is None}.union(self.lasting) - {root}

        def spared(pid: int) -> bool:
            return pid in others or (pid != root and pid in found and (found[pid][2], pid) < born)

        signalled = 0
        for pid, (_, session, _) in found.items():
            ancestor = pid
            while ancestor in found and not spared(ancestor):
                ancestor = found[ancestor][0]
            if spared(ancestor) or spared(session) or (but_root and pid == root):
                continue
            try:
                posix.kill(pid, number)
                signalled += 1
            except ProcessLookupError:
                pass
        return signalled

    def kill_tree(self, root: int, born: tuple[int, int], times: int, but_root: bool = False) -> int:
        """As `signal_tree`, for good. What forks faster than it can be found is stopped first, after a few `times`."""
        if times <= FEW_KILLS:
            return self.signal_tree(root, born, _signal.SIGKILL, but_root)
        freeze()
        try:
            return self.signal_tree(root, born, _signal.SIGKILL, but_root)
        finally:
            thaw()

    def finish(self, command: Command) -> None:
        """Answer the host. Pipes that background children hold stay open, up to a bound."""
        for descriptor in list(command.pipes):
            self.drain(descriptor)
        assert command.exit is not None
        self.answer(command, [kept.both() for kept in command.kept])
        command.answered = True
        command.kept = (Kept(0), Kept(0))
        self.in_flight.pop(command.pid, None)
        while len(self.pipes) > self.max_held_pipes + 2 * len(self.in_flight):
            held = next((descriptor for descriptor, (_, owner) in self.pipes.items() if owner.answered), None)
            if held is None:
                break
            self.drop_pipe(held)

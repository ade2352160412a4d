"""Processes of a sandbox as its PID 1 sees them, and the guard that keeps PID 1's power inside.

`nuke` ends every process that this one may end: anywhere but as PID 1 of a pid namespace of its own that would be the
whole machine, so everything here refuses to run elsewhere.
"""

from __future__ import annotations

import _signal
import posix
import resource
import struct
import sys
import time
from array import array

PAGE_BYTES = resource.getpagesize()
TICKS_PER_S = posix.sysconf("SC_CLK_TCK")
SET_DUMPABLE, SET_SECCOMP, SECCOMP_FILTER = 4, 22, 2
STOP_S = 0.2
"""For a running system call to end; what waits in the kernel for longer is not waited for."""
INITIAL_PID_NAMESPACE = "pid:[4026531836]"  # the kernel's PROC_PID_INIT_INO


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
    _signal_all(_signal.SIGKILL)


def freeze() -> None:
    """Stop every other process of this pid namespace; atomic against fork, as `nuke` is."""
    _signal_all(_signal.SIGSTOP)


def thaw() -> None:
    _signal_all(_signal.SIGCONT)


class stopped:
    """While in it nothing else runs in this pid namespace. What somebody had stopped before stays so afterwards."""

    def __enter__(self) -> None:
        self.before = {pid for pid, state in states().items() if state in b"Tt"}
        freeze()
        until = time.monotonic() + STOP_S
        while any(state in b"RS" for state in states().values()) and time.monotonic() < until:
            time.sleep(0.0005)

    def __exit__(self, *_: object) -> None:
        for pid in sorted(states().keys() - self.before, reverse=True):  # children first: no shell sees a stopped one
            try:
                posix.kill(pid, _signal.SIGCONT)
            except ProcessLookupError:
                pass


def states() -> dict[int, bytes]:
    """pid -> state of every process but PID 1."""
    found = {}
    for name in posix.listdir("/proc"):
        if name.isdigit() and name != "1":
            try:
                found[int(name)] = stat_fields(int(name))[0]
            except (OSError, IndexError):
                pass  # it has ended
    return found


def _signal_all(number: int) -> None:
    if not in_own_pid_namespace():
        raise RuntimeError("not PID 1 of an own pid namespace")
    try:
        posix.kill(-1, number)
    except ProcessLookupError:
        pass


def install_filter(instructions: bytes) -> None:
    """The system call filter (a BPF program) for this process and all that it starts. Raises OSError."""
    kept = array("B", instructions)
    program = struct.pack("HP", len(instructions) // 8, kept.buffer_info()[0])
    if _prctl(SET_SECCOMP, SECCOMP_FILTER, program):
        raise OSError("the system call filter could not be installed")


def hide_from_commands() -> None:
    """Commands cannot trace PID 1 nor open its /proc/1/{mem,environ,maps,fd}."""
    if _prctl(SET_DUMPABLE, 0):
        raise RuntimeError("PR_SET_DUMPABLE failed")


def _prctl(option: int, value: int, argument: object = 0) -> int:
    try:
        import _ctypes

        function = _ctypes.dlsym(_ctypes.dlopen(None, 0), "prctl")  # type: ignore[arg-type]
        return int(_ctypes.call_function(function, (option, value, argument, 0, 0)))
    except (ImportError, AttributeError):
        import ctypes

        return int(ctypes.CDLL(None).prctl(option, value, argument, 0, 0))


def stat_fields(pid: int) -> list[bytes]:
    """The fields of /proc/PID/stat after the name: [0] state, [1] parent, [2] process group, [3] session,
    [11:15] processor time of itself and of children it waited for, [17] threads, [19] start time; in clock ticks."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        return file.read().rsplit(b")", 1)[1].split()


def live_processes() -> dict[int, tuple[int, int, int]]:
    """pid -> (parent, session, start time) of every live process but PID 1. One whose first thread has ended reads as
    a zombie and lives on in its others."""
    found = {}
    for name in posix.listdir("/proc"):
        if not name.isdigit() or name == "1":
            continue
        try:
            fields = stat_fields(int(name))
        except (OSError, IndexError):
            continue
        if fields[0] not in b"ZX" or int(fields[17]) > 1:
            found[int(name)] = (int(fields[1]), int(fields[3]), int(fields[19]))
    return found


def newest_process() -> tuple[int, int]:
    """(start time in clock ticks, pid) that every process born from now on comes after."""
    with open("/proc/loadavg", "rb") as file:
        newest = int(file.read().split()[4])
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) * TICKS_PER_S // 1_000_000_000, newest + 1


def processor_s() -> float:
    """Processor time of all that runs in this pid namespace but PID 1, and of all that was waited for by its parent."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    ticks = 0
    for pid in live_processes():
        try:
            ticks += sum(map(int, stat_fields(pid)[11:15]))
        except (OSError, IndexError):
            pass  # it has ended meanwhile
    return ended.ru_utime + ended.ru_stime + ticks / TICKS_PER_S


def resident_bytes(pid: int) -> int:
    """Of a process whose first thread has ended, its other threads know."""
    try:
        if size := _resident_pages(f"/proc/{pid}/statm"):
            return size * PAGE_BYTES
        threads = posix.listdir(f"/proc/{pid}/task")
        return max(_resident_pages(f"/proc/{pid}/task/{thread}/statm") for thread in threads) * PAGE_BYTES
    except (OSError, IndexError, ValueError):
        return 0  # it has ended


def _resident_pages(path: str) -> int:
    with open(path, "rb") as file:
        return int(file.read().split()[1])


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

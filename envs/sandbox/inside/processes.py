"""Processes of a sandbox as its PID 1 sees them, and the guard that keeps PID 1's power inside.

`nuke` ends every process that this one may end: anywhere but as PID 1 of a pid namespace of its own that would be the
whole machine, so everything here refuses to run elsewhere.
"""

from __future__ import annotations

import _signal
import posix
import resource
import sys

PAGE_BYTES = resource.getpagesize()
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

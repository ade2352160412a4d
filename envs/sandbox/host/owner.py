"""Who holds a sandbox: a name that outlives the holder, so that what it left behind can be told from what is in use."""

import os
from pathlib import Path


def owner_of(pid: int) -> str:
    """`boot id:pid namespace:pid:start time`: a recycled pid or a rebooted machine is never mistaken for the owner."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    namespace = os.readlink("/proc/self/ns/pid")[5:-1]
    return f"{boot}:{namespace}:{pid}:{_start_time(pid)}"


def owner_is_dead(owner: str) -> bool:
    """True only when that is certain: an owner in another pid namespace, or a name not understood, is left alone."""
    try:
        boot, namespace, pid, started = owner.split(":")
        here_boot, here_namespace, _, _ = owner_of(os.getpid()).split(":")
        if boot != here_boot:
            return True
        if namespace != here_namespace:
            return False
        return _start_time(int(pid)) != started
    except ValueError:
        return False
    except FileNotFoundError:
        return True


def _start_time(pid: int) -> str:
    """In clock ticks since boot; the 22nd field of /proc/PID/stat. Raises FileNotFoundError."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]

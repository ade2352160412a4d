"""Control groups of sandboxes that no daemon manages: memory, processes and processor time of one sandbox as a whole.

Root has them on most machines, an ordinary user where the system delegates a group to it (version 2 only). Where there
is none, `Cgroups.find` says so and the backend holds what can be held without.
"""

import contextlib
import errno
import os
import time
from collections.abc import Mapping
from pathlib import Path

from sandboxrl.envs.sandbox.host.owner import owner_is_dead, owner_of
from sandboxrl.envs.sandbox.host.resources import counted, group_folders
from sandboxrl.envs.sandbox.protocol import Limits, Resources, SandboxError

CONTROLLERS = ("memory", "pids", "cpu")
TOP, MEMBERS = "sandboxrl", "sandboxrl-members"
"""Version 2 allows no limits below a group that has processes itself, as a login's has. Root then uses the group TOP of
the machine. The processes of a group that systemd delegated (`systemd-run --user --scope -p Delegate=yes`) move into
MEMBERS below it."""
PERIOD_US = 100_000
SOCKET_BYTES = 64 << 20
"""Of a sandbox's TCP buffers where they are not counted as its memory."""
PREFIX = "sandboxrl."


class Cgroups:
    """A parent group per controller, in which each sandbox gets a group of its own."""

    def __init__(self, parents: Mapping[str, Path], unified: bool, limits: Limits) -> None:
        self._parents, self.unified = dict(parents), unified
        self._owner = owner_of(os.getpid())
        quota = max(1000, int(limits.cpus * PERIOD_US))
        processes = limits.processes + 1  # PID 1 itself
        self._settings: dict[str, list[tuple[str, str]]]
        if unified:
            self._settings = {
                "memory": [("memory.max", str(limits.memory_bytes)), ("memory.swap.max", "0")],
                "pids": [("pids.max", str(processes))],
                "cpu": [("cpu.max", f"{quota} {PERIOD_US}")],
            }
        else:
            self._settings = {
                "memory": [
                    ("memory.limit_in_bytes", str(limits.memory_bytes)),
                    ("memory.memsw.limit_in_bytes", str(limits.memory_bytes)),
                    ("memory.kmem.tcp.limit_in_bytes", str(SOCKET_BYTES)),  # version 2 counts them with the rest
                ],
                "pids": [("pids.max", str(processes))],
                "cpu": [("cpu.cfs_period_us", str(PERIOD_US)), ("cpu.cfs_quota_us", str(quota))],
            }

    @staticmethod
    def find(limits: Limits) -> "Cgroups | None":
        """The groups this process may make, of all three controllers, or None."""
        parents, unified = _parents()
        if set(parents) != set(CONTROLLERS):
            return None
        groups = Cgroups(parents, unified, limits)
        try:
            groups._sweep()
            groups.add("probe", 0)
        except OSError:
            return None
        groups.remove("probe")
        return groups

    def add(self, identity: str, pid: int) -> None:
        """Make the sandbox's group and move process `pid`, and so all its later children, into it. Raises OSError."""
        for folder, settings in self._folders(identity):
            folder.mkdir(exist_ok=True)
            for name, value in settings:
                if (folder / name).exists():  # swap accounting is not in every kernel
                    (folder / name).write_text(value)
            if pid:
                (folder / "cgroup.procs").write_text(str(pid))

    def counted(self, identity: str) -> Resources:
        """What the kernel has counted of a sandbox."""
        return counted({str(number): folder for number, (folder, _) in enumerate(self._folders(identity))})

    def remove(self, identity: str) -> None:
        """Remove the group of a sandbox that has ended. Raises SandboxError when something in it lives on."""
        for folder, _ in self._folders(identity):
            for attempt in range(100):
                try:
                    folder.rmdir()
                    break
                except FileNotFoundError:
                    break
                except OSError as error:
                    if attempt == 99:
                        raise SandboxError(f"control group {folder} is still in use: {error}") from error
                    time.sleep(0.01)

    def _folders(self, identity: str) -> list[tuple[Path, list[tuple[str, str]]]]:
        """Each folder once: in version 2 the controllers share one."""
        merged: dict[Path, list[tuple[str, str]]] = {}
        for controller, parent in self._parents.items():
            merged.setdefault(parent / f"{PREFIX}{self._owner}.{identity}", []).extend(self._settings[controller])
        return list(merged.items())

    def _sweep(self) -> None:
        """Remove the empty groups of owners that were killed."""
        for parent in set(self._parents.values()):
            for folder in parent.glob(f"{PREFIX}*"):
                owner = folder.name.removeprefix(PREFIX).rpartition(".")[0]
                if owner_is_dead(owner):
                    with contextlib.suppress(OSError):  # another process sweeps too, or its processes are just ending
                        folder.rmdir()


def _parents() -> tuple[dict[str, Path], bool]:
    """(controller -> a group in which this process may make others, whether that is version 2)."""
    mounts, top = group_folders("self", CONTROLLERS)
    legacy = {name: mounts[name] for name in CONTROLLERS if name in mounts and os.access(mounts[name], os.W_OK)}
    if legacy:
        return legacy, False
    if "" not in mounts:
        return {}, True
    group = mounts[""]
    chains = [[group.parent if group.name == MEMBERS else group]]
    if os.geteuid() == 0:
        chains.append([top, top / TOP])
    for chain in chains:
        try:
            for folder in chain:
                folder.mkdir(exist_ok=True)
                _allow_limits_below(folder)
        except OSError:  # read-only, not delegated, without these controllers, or beside processes
            continue
        return dict.fromkeys(CONTROLLERS, chain[-1]), True
    return {}, True


def _allow_limits_below(group: Path) -> None:
    """Raises OSError."""
    controllers = " ".join(f"+{name}" for name in CONTROLLERS)
    try:
        (group / "cgroup.subtree_control").write_text(controllers)
    except OSError as error:
        if error.errno != errno.EBUSY or os.getxattr(group, "user.delegate") != b"1":
            raise
        (group / MEMBERS).mkdir(exist_ok=True)
        for pid in (group / "cgroup.procs").read_text().split():
            (group / MEMBERS / "cgroup.procs").write_text(pid)
        (group / "cgroup.subtree_control").write_text(controllers)

"""Room for many sandboxes: what each takes of what a machine has only once."""

import os
import resource
from dataclasses import dataclass
from pathlib import Path

from sandboxrl.envs.sandbox.protocol import Limits

NUM_SANDBOXES = 512
SETTINGS = {
    "kernel.pid_max": Limits().processes + 1,
    "kernel.threads-max": Limits().processes + 1,
    "user.max_user_namespaces": 2,
    "user.max_pid_namespaces": 1,
    "user.max_mnt_namespaces": 1,
    "user.max_net_namespaces": 1,
}
"""Setting of the kernel -> how much of it one busy sandbox takes."""
NEIGHBORS, NEIGHBORS_EACH = "net.ipv4.neigh.default.gc_thresh3", 2
"""With `sandbox.network=egress`; started by root, a run makes room for 8192 itself."""
DESCRIPTORS_EACH, OWN_DESCRIPTORS = 4, 1024
"""Of the process that uses them, whose soft limit is raised to the hard one when the first sandbox starts."""


@dataclass(frozen=True)
class Shortage:
    """Something of which there is not enough for all."""

    name: str
    has: int
    needs: int
    fix: str

    def __str__(self) -> str:
        return f"{self.name} is {self.has}, {NUM_SANDBOXES} busy sandboxes may take {self.needs}"


def shortages(settings: Path = Path("/proc/sys"), hard: int | None = None, uid: int | None = None) -> list[Shortage]:
    """What this machine has too little of for NUM_SANDBOXES. `hard` is the limit on descriptors, `uid` the user."""
    user = os.geteuid() if uid is None else uid
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1] if hard is None else hard
    sudo = "sudo " if user else ""
    wanted = {name: each * NUM_SANDBOXES for name, each in SETTINGS.items()}
    if user:
        wanted[NEIGHBORS] = NEIGHBORS_EACH * NUM_SANDBOXES
    found = []
    for name, needs in wanted.items():
        path = settings / name.replace(".", "/")
        if path.is_file() and (has := int(path.read_text())) < needs:
            found.append(Shortage(name, has, needs, f"{sudo}sysctl -w {name}={needs}"))
    needs = OWN_DESCRIPTORS + DESCRIPTORS_EACH * NUM_SANDBOXES
    if 0 <= most < needs:
        fix = f"{sudo}prlimit --pid $$ --nofile={needs * 16} (of a container: docker run --ulimit nofile={needs * 16})"
        found.append(Shortage("the hard limit of open files", most, needs, fix))
    return found

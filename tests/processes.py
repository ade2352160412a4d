"""What runs on this machine, as /proc tells it."""

import fnmatch
import os
from pathlib import Path


def children() -> set[int]:
    """Processes that any thread of this one has started and that are not waited for yet, by pid."""
    return {
        int(pid) for thread in Path("/proc/self/task").iterdir() for pid in (thread / "children").read_text().split()
    }


def control_groups(pattern: str, root: str = "/sys/fs/cgroup") -> list[Path]:
    """Those of any controller whose name fits. Others come and go meanwhile, which `os.walk` takes as it is."""
    return [Path(folder, name) for folder, names, _ in os.walk(root) for name in fnmatch.filter(names, pattern)]

"""What runs on this machine, as /proc tells it."""

from pathlib import Path


def children() -> set[int]:
    """Processes that any thread of this one has started and that are not waited for yet, by pid."""
    return {
        int(pid) for thread in Path("/proc/self/task").iterdir() for pid in (thread / "children").read_text().split()
    }

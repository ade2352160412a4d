"""What the kernel has counted in the control groups of a sandbox. What it did not count is None, never 0."""

import os
from collections.abc import Mapping
from pathlib import Path

from sandboxrl.envs.sandbox.protocol import Resources


def group_folders(process: str, controllers: tuple[str, ...]) -> tuple[dict[str, Path], Path]:
    """(controller -> the folder of that process's group, where version 2 is mounted). The one group of version 2 is
    called "". Raises OSError when there is no such process."""
    own: dict[str, str] = {}
    for line in Path(f"/proc/{process}/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        for name in names.split(","):
            own[name] = path
    folders: dict[str, Path] = {}
    top = Path()
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        kind, _, options = rest.split(" ", 2)
        root, point = fields.split()[3:5]
        for name in controllers if kind == "cgroup" else ("",) if kind == "cgroup2" else ():
            if name in own and (not name or name in options.split(",")):
                folders.setdefault(name, Path(point) / os.path.relpath(own[name], root))
                top = top if name else Path(point)
    return folders, top


def groups_of_container(pid: int, container: str) -> dict[str, Path]:
    """The control groups that are a container's own, by the pid of its first process as it is seen from here; none
    where they are not to be seen, as those of a daemon on another machine."""
    try:
        folders, _ = group_folders(str(pid), ("memory", "pids", "cpu", "cpuacct"))
    except OSError:
        return {}
    return {name: folder for name, folder in folders.items() if container in str(folder) and folder.is_dir()}


def counted(folders: Mapping[str, Path]) -> Resources:
    """By the control groups (controller -> folder; of version 2 all the same) that hold one sandbox and nothing else.
    Those that are gone have counted nothing."""
    numbers: dict[str, int] = {}
    for folder in set(folders.values()):
        for file in FILES:
            numbers |= _numbers(folder, file)
    names = {name: next((numbers[key] for key in keys if key in numbers), None) for name, keys in KEYS.items()}
    cpu_s = names["cpu_us"], names["cpu_ns"]
    throttled_s = names["throttled_us"], names["throttled_ns"]
    return Resources(
        peak_memory_bytes=names["peak_memory_bytes"],
        cpu_s=_seconds(*cpu_s),
        throttled_s=_seconds(*throttled_s),
        oom_kills=names["oom_kills"],
        peak_processes=names["peak_processes"],
    )


FILES = (
    "memory.peak", "memory.max_usage_in_bytes", "memory.events", "memory.oom_control",
    "pids.peak", "cpu.stat", "cpuacct.usage",
)  # fmt: skip
KEYS = {
    "peak_memory_bytes": ("memory.peak", "memory.max_usage_in_bytes"),
    "oom_kills": ("memory.events oom_kill", "memory.oom_control oom_kill"),
    "peak_processes": ("pids.peak",),
    "cpu_us": ("cpu.stat usage_usec",),
    "cpu_ns": ("cpuacct.usage",),
    "throttled_us": ("cpu.stat throttled_usec",),
    "throttled_ns": ("cpu.stat throttled_time",),
}
"""Figure: the places that hold it, of version 2 or 1."""


def _numbers(folder: Path, file: str) -> dict[str, int]:
    """`file` or `file key` -> number."""
    try:
        lines = (folder / file).read_text().splitlines()
    except OSError:  # not of this version, this kernel or these controllers
        return {}
    pairs = ((" ".join((file, *words[:-1])), words[-1]) for words in map(str.split, lines))
    return {name: int(value) for name, value in pairs if value.isdigit()}


def _seconds(microseconds: int | None, nanoseconds: int | None) -> float | None:
    if microseconds is not None:
        return microseconds / 1e6
    return None if nanoseconds is None else nanoseconds / 1e9

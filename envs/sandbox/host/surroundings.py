"""What a sandbox tells its programs of itself: the share of the machine that it has, and how packages are installed."""

import math
import os

from sandboxrl.envs.sandbox.protocol import Limits, SandboxConfig

MEMORY_LINES = """
    MemTotal MemFree MemAvailable Buffers Cached SwapCached Active Inactive SwapTotal SwapFree Dirty Shmem Slab
    SReclaimable
""".split()


def environment(config: SandboxConfig) -> dict[str, str]:
    """Variables of every command; those of `config.env` come last. `nproc` heeds OMP_NUM_THREADS, and so do BLAS and
    torch, which would else start a thread for each core of the machine. pip installs where the distribution would have
    it refuse."""
    cores = max(1, min(math.ceil(config.limits.cpus), os.cpu_count() or 1))
    return {
        "OMP_NUM_THREADS": str(cores),
        "PIP_BREAK_SYSTEM_PACKAGES": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_ROOT_USER_ACTION": "ignore",
        **config.env,
    }


def memory_told(limits: Limits) -> bytes:
    """A sandbox's /proc/meminfo: its limit, as if nothing of it were taken, and no swap."""
    whole = {"MemTotal", "MemFree", "MemAvailable"}
    size = limits.memory_bytes >> 10
    return "".join(f"{name + ':':15} {size if name in whole else 0:8} kB\n" for name in MEMORY_LINES).encode()

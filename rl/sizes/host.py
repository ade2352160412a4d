"""Host memory and disk of a run, by arithmetic, and what this machine has of them when the run is for this machine.

Host memory is over all nodes together; the processes' own part was measured on CPUs with the quickstart
(engine 1.4 GB with its default cache, learner 0.7 GB, driver and Ray 0.8 GB), and is a guess for GPUs, where CUDA's
libraries add to it.
"""

import shutil
from pathlib import Path

from sandboxrl.rl.config import Recipe
from sandboxrl.rl.engine.config import CPU_KV_BYTES
from sandboxrl.rl.sizes.memory import Memory
from sandboxrl.rl.sizes.shapes import Shape

ON_CPU = {"engine": 1.2e9, "learner": 0.7e9, "driver": 0.8e9}
"""Bytes of a process without weights, cache and batch."""
ON_GPU = {"engine": 5e9, "learner": 4e9, "driver": 0.8e9}
STATE = 12
"""Bytes per parameter of a checkpoint: weights and both of Adam's means, in float32."""
PER_TOKEN = 60
"""Bytes of a token in `trajectories/` and `groups/`, its text included; measured 43 and 9 on the quickstart."""


def host_memory(recipe: Recipe, shape: Shape, memory: Memory, gpu: bool) -> dict[str, float]:
    """Part -> bytes, on all nodes together, sandboxes left out: their limits are no reservation."""
    own, engines, learner = (ON_GPU if gpu else ON_CPU), recipe.num_workers, recipe.learner
    width = 4 if recipe.engine.compute_dtype(cpu=not gpu) == "float32" else 2
    ranks = learner.world_size
    engine, state = own["engine"], memory.host if gpu else memory.peak
    if not gpu:
        engine += width * shape.parameters + (recipe.engine.kv_cache_bytes or CPU_KV_BYTES)
    return {
        "engines": engines * engine,
        "learner": ranks * (own["learner"] + state),
        "a checkpoint while it is written": STATE * shape.parameters,
        "driver and Ray": own["driver"],
    }


def disk(recipe: Recipe, shape: Shape) -> dict[str, float]:
    """Part -> bytes under `out` when the run has ended, at most."""
    keeping, steps = recipe.checkpoint, recipe.steps
    saved = 1 + (steps - 1) // keeping.every if keeping.every else 1
    kept = min(keeping.keep, saved) if keeping.keep else saved
    kept += steps // keeping.keep_every if keeping.keep_every else 0
    kept += bool(keeping.best)
    trajectories = recipe.groups_per_step * recipe.group_size * (steps // max(1, recipe.save_trajectories_every) or 1)
    return {
        "checkpoints": (kept + 1) * STATE * shape.parameters,
        "trajectories": trajectories * recipe.limits.max_tokens * PER_TOKEN,
    }


def lacking(recipe: Recipe, shape: Shape, memory: Memory) -> list[str]:
    """What this machine has too little of for a run on its CPUs, each with the knob to turn; empty: enough.

    Only what is certain: the memory of engines and learner, and the disk that checkpoints take. Trajectories rarely
    come near their limit.
    """
    found = []
    needed, there = sum(host_memory(recipe, shape, memory, gpu=False).values()), memory_here()
    if there and needed > there:
        found.append(
            f"the run needs {needed / 1e9:.1f} GB of memory and this machine has {there / 1e9:.1f}: lower "
            "learner.max_tokens_per_row or engine.kv_cache_bytes, or set learner.gradient_checkpointing=true"
        )
    checkpoints, free = disk(recipe, shape)["checkpoints"], free_disk(recipe.run_dir)
    if checkpoints > free:
        found.append(
            f"the checkpoints take {checkpoints / 1e9:.1f} GB and {recipe.run_dir.parent} has {free / 1e9:.1f} free: "
            "lower checkpoint.keep, or choose another out"
        )
    return found


def memory_here() -> int:
    """Bytes of this machine's memory; 0 where it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemTotal:")), 0)


def free_disk(folder: Path) -> int:
    """Free bytes where `folder` is or will be."""
    while not folder.exists():
        folder = folder.absolute().parent
    return shutil.disk_usage(folder).free

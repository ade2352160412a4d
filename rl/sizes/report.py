"""What `sandboxrl explain` says of sizes: facts of a recipe, its dry run, what fits. As data; the verb prints it."""

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sandboxrl.data.errors import InputError
from sandboxrl.rl.config import Recipe
from sandboxrl.rl.engine.config import arguments, on_cpu
from sandboxrl.rl.sizes.fit import (
    GPUS_GB,
    TRAINED_SHARE,
    candidates,
    engine_of,
    gpus,
    learner_of,
    notes,
    problems,
    resident,
)
from sandboxrl.rl.sizes.host import disk, host_memory, lacking
from sandboxrl.rl.sizes.memory import PARTS, PHASES, Memory, learner_memory
from sandboxrl.rl.sizes.shapes import Shape, config_of, shape_of

GB = 1e9
LARGE = 300_000_000
"""A model of more parameters is planned for GPUs, whatever this machine has."""
DISK_KEYS = {
    "checkpoints": "12 bytes per parameter x (checkpoint.keep, .best, .keep_every, and the one being written)",
    "trajectories": "limits.max_tokens x trajectories, save_trajectories_every",
}
SHOWN_OPERATORS = 12
SHOWN_CANDIDATES = 10


def on_gpus(recipe: Recipe, shape: Shape) -> bool:
    """Whether the run is one for GPUs; it may be planned on a machine without."""
    return recipe.learner.device == "cuda" or not on_cpu() or shape.parameters > LARGE


def amount(num_bytes: float) -> str:
    return f"{num_bytes / GB:.2f} GB" if num_bytes >= GB / 10 else f"{num_bytes / 1e6:.1f} MB"


def unfit(recipe: Recipe, gpu_gb: float | None) -> str:
    """Why the run fits none of the GPUs, or not this machine where it is one for its CPUs, by formula, with the knob to
    turn; empty: it fits, or nothing is known of the model."""
    shape = shape_of(recipe.model.path)
    if shape is None:
        return ""
    if on_gpus(recipe, shape):
        found = [problems(recipe, shape, size * GB) for size in _sizes(gpu_gb)]
        return found[-1][0] if all(found) else ""
    learner = recipe.learner
    row = learner.max_tokens_per_row
    memory = learner_memory(shape, learner, row, round(row * TRAINED_SHARE), gpu=False)
    return "; ".join(lacking(recipe, shape, memory))


def facts(recipe: Recipe, gpu_gb: float | None = None) -> Iterator[tuple[str, str, str]]:
    """(what, value, where it comes from). `gpu_gb`: the memory of each GPU; None tries those that people have."""
    shape = shape_of(recipe.model.path)
    if shape is None:
        yield "model", recipe.model.path or "(none)", "model.path; sizes are known once the folder is there"
        return
    gpu = on_gpus(recipe, shape)
    yield (
        "parameters",
        f"{shape.parameters / GB:.3f} billion" if shape.parameters > LARGE else f"{shape.parameters:,}",
        "config.json of model.path",
    )
    yield from _chosen(recipe, gpu)
    row = recipe.learner.max_tokens_per_row
    memory = learner_memory(shape, recipe.learner, row, round(row * TRAINED_SHARE), gpu)
    for part, value in memory.phases["optimizer"].items():
        yield f"learner: {part}", f"{amount(value)} per rank", "by formula; --dry-run runs it"
    if recipe.learner.offload:
        yield "learner: state in host memory", f"{amount(memory.host)} per rank", "learner.offload"
    yield "learner: at its highest moment", f"{amount(memory.peak)} per rank", "learner.max_tokens_per_row, …"
    width = 4 if recipe.engine.compute_dtype(cpu=not gpu) == "float32" else 2
    cache = shape.kv_bytes_per_token(width) * recipe.limits.max_tokens
    yield "engine: KV cache of one trajectory", amount(cache), "limits.max_tokens"
    for part, value in host_memory(recipe, shape, memory, gpu).items():
        yield f"host memory: {part}", amount(value), "on all nodes together"
    for part, value in disk(recipe, shape).items():
        yield f"disk: {part}, at most", amount(value), DISK_KEYS[part]
    if gpu:
        needed = memory.needed / GB
        yield "learner: a GPU must have", f"{needed:.0f} GB", "with a margin for what no formula sees"
        for size in _sizes(gpu_gb):
            engine, why = engine_of(recipe, shape, size * GB), problems(recipe, shape, size * GB)
            full = engine.full_trajectories(recipe.limits.max_tokens)
            verdict = f"no: {why[0]}" if why else f"yes; {full:.0f} full trajectories in an engine's KV cache"
            yield f"fits GPUs of {size:g} GB", verdict, "--fit searches what does"
    else:
        yield "fits this machine", "; ".join(lacking(recipe, shape, memory)) or "yes", "its memory and free disk"
    for note in notes(recipe):
        yield "note", note, "num_workers, groups_per_step"


def _chosen(recipe: Recipe, gpu: bool) -> Iterator[tuple[str, str, str]]:
    """What `auto` stands for, and how many GPUs there must be."""
    if gpu:
        count = gpus(recipe)
        together = " on the same ones" if recipe.placement == "together" else ""
        what = f"{count['in all']}: learner {count['learner']}, engines {count['engines']}{together}"
        yield "GPUs", what, "learner.world_size, num_workers x engine.tensor_parallel_size, placement"
    told = arguments("", recipe.engine, cpu=not gpu)
    graphs = "no CUDA graphs" if told["enforce_eager"] else "CUDA graphs"
    head = ", float32 head" if "hf_overrides" in told else ""
    text = f"{told['dtype']}{head}, {graphs}, {told['max_num_batched_tokens']:,} tokens per step"
    yield "engine", text, "engine.dtype, .enforce_eager, .max_num_batched_tokens"
    dtype = recipe.learner.compute_dtype(gpu)
    attention = "one call per row" if gpu and dtype == "bfloat16" else "one call per sequence"
    yield "learner", f"{dtype}, attention with {attention}", "learner.dtype, .device"


def dry_run_report(recipe: Recipe, gpu_gb: float | None) -> dict[str, Any]:
    """The learner's step as it would run on a GPU, found by running it without values. Raises InputError for a model
    whose config.json is not here."""
    config = config_of(recipe.model.path)
    if config is None:
        raise InputError(f"--dry-run: {recipe.model.path} is no model folder here, and none of the known models")
    if importlib.util.find_spec("torch") is None:
        raise InputError("--dry-run needs torch")
    from sandboxrl.rl.sizes.dry_run import dry_run  # torch, which everything else here does without

    shape, row = Shape.of(config), recipe.learner.max_tokens_per_row
    sequences = max(1, row // recipe.limits.max_tokens)
    found = dry_run(config, recipe.learner_of_run, recipe.loss, row, sequences, round(row * TRAINED_SHARE))
    formula = learner_of(recipe, shape)
    return {
        "parameters": found.parameters,
        "ranks": recipe.learner.world_size,
        "row_tokens": row,
        "sequences": sequences,
        "trained_tokens": round(row * TRAINED_SHARE),
        "phases": _rounded(found.memory),
        "by_formula": {phase: round(formula.of(phase) / GB, 2) for phase in PHASES},
        "unseen": {name: round(value / GB, 2) for name, value in found.memory.unseen.items()},
        "host_gb": round(found.memory.host / GB, 2),
        "peak_gb": round(found.memory.peak / GB, 2),
        "needed_gb": round(found.memory.needed / GB, 2),
        "model_flops": shape.model_flops([row // sequences] * sequences, round(row * TRAINED_SHARE)),
        "operators": dict(found.operators.most_common()),
        "engine_waits_with_gb": round(resident(recipe, shape) / GB, 2) if recipe.placement == "together" else None,
        "gpus": {f"{size:g}": problems(recipe, shape, size * GB, found.memory) for size in _sizes(gpu_gb)},
        "seconds": round(found.seconds, 1),
    }


def _sizes(gpu_gb: float | None) -> Sequence[float]:
    return GPUS_GB if gpu_gb is None else (gpu_gb,)


def _rounded(memory: Memory) -> dict[str, dict[str, float]]:
    return {
        phase: {part: round(memory.phases[phase].get(part, 0.0) / GB, 2) for part in PARTS}
        | {"all": round(memory.of(phase) / GB, 2)}
        for phase in PHASES
    }


def fit_report(recipe: Recipe, gpu_gb: float | None) -> dict[str, list[dict[str, Any]]]:
    """Memory of a GPU in GB -> changes of the recipe that fit it, best first."""
    shape = shape_of(recipe.model.path)
    if shape is None:
        raise InputError(f"--fit: {recipe.model.path} is no model folder here, and none of the known models")
    return {
        f"{size:g}": [
            {
                **found.changes,
                "needed_gb": round(found.memory.needed / GB, 1),
                "host_gb": round(found.memory.host / GB, 1),
            }
            for found in candidates(recipe, shape, size * GB)[:SHOWN_CANDIDATES]
        ]
        for size in _sizes(gpu_gb)
    }


def first_problem(report: Mapping[str, Any]) -> str:
    """Why the recipe fits none of the GPUs that a dry run was asked about; empty: it fits one."""
    found = list(report["gpus"].values())
    return found[-1][0] if all(found) else ""

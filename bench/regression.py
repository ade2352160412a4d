"""Seeded runs as digests, to show that a refactoring moved no number.

    python -m bench.regression MODEL --out before.json             record: metrics, token ids, final weights, task files
    python -m bench.regression MODEL --against before.json         run again and name every difference

MODEL is a model folder, so that both sides start from the same weights. A digest holds on one kind of processor only:
others round differently. Exit code 1 where anything differs.
"""

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PACKAGE = "sandboxrl.launch"
MEASURED = re.compile(r"time/|wall_s$|^sandbox/")
"""Columns of metrics that differ from run to run."""
SMALL = (
    "steps=3 max_staleness=0 seed=5 groups_per_step=4 group_size=4 tasks.eval.heldout.num_tasks=16 evaluation.every=0 "
    "replace_uninformative=2 sandbox.warm=8 loss.aggregation=token_mean learner.learning_rate=1e-4 "
    "learner.schedule=constant learner.schedule_floor=0 loss.old_logprobs=learner"
)
"""Set here is what the recorded runs had and the quickstart has changed since."""
RUNS = {
    "hermes": "model.call_format=hermes",
    "qwen3_coder": "model.call_format=qwen3_coder",
    "llm": "mode=llm prompt=llm tasks.train.builtin.placement=prompt tasks.eval.heldout.placement=prompt",
    "two_ranks": "learner.world_size=2",
}
"""Name -> what it changes in the quickstart, cut short."""
SOURCES = {
    "builtin": "builtin",
    "builtin_tiny": "builtin size=tiny num_tasks=200",
    "general": "general path=recipes/ablations/tiny/general.jsonl num_distractors=2",
    "math": "math path=recipes/ablations/tiny/math.jsonl",
    "swe": "swe path=recipes/ablations/tiny/swe.jsonl",
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.regression", description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--only", nargs="*", choices=[*RUNS, *SOURCES], help="a part of it")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", type=Path)
    where.add_argument("--against", type=Path)
    args = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in args.only or [*SOURCES, *RUNS]:
            made = _run(name, args.model, Path(folder)) if name in RUNS else _tasks(name, Path(folder))
            found |= {f"{name}/{key}": value for key, value in made.items()}
            print(name, "done", flush=True)
    if args.out:
        args.out.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n")
        return 0
    known = json.loads(args.against.read_text())
    differing = [key for key in sorted(found) if _known_part(found[key], known.get(key)) != known.get(key)]
    for key in differing:
        print(f"{key}: {known.get(key)} -> {found[key]}")
    print(f"{len(found) - len(differing)} equal, {len(differing)} differ")
    return int(bool(differing))


def _known_part(found: Any, known: Any) -> Any:
    """A row without the keys that came in after `known` was recorded: a new measure moves no number."""
    if isinstance(found, dict) and isinstance(known, dict):
        return {key: value for key, value in found.items() if key in known}
    return found


def _tasks(name: str, folder: Path) -> dict[str, str]:
    file = folder / f"{name}.jsonl"
    _verb("data", "build", *SOURCES[name].split(), "--out", str(file))
    return {"tasks": _digest(file.read_bytes())}


def _run(name: str, model: Path, folder: Path) -> dict[str, Any]:
    words = [*SMALL.split(), *RUNS[name].split(), f"model.path={model.resolve()}", f"name={name}", f"out={folder}"]
    _verb("train", "recipes/tiny.yaml", *words)
    run, exported = folder / name, folder / f"{name}-exported"
    _verb("export", str(run), "--out", str(exported))
    found: dict[str, Any] = {"weights": _digest((exported / "model.safetensors").read_bytes())}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        kind = "evaluation" if any(key.startswith("eval/") for key in row) else "step"
        found[f"{kind}_{row['step']}"] = {k: v for k, v in row.items() if not MEASURED.search(k)}
    for file in sorted((run / "trajectories").glob("*.jsonl")):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        found[f"tokens/{file.stem}"] = _digest(json.dumps([row["tokens"] for row in rows]).encode())
    return found


def _verb(*words: str) -> None:
    done = subprocess.run([sys.executable, "-m", PACKAGE, *words], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(words)}: exit code {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


if __name__ == "__main__":
    sys.exit(main())

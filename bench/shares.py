"""Whose gradient a training step is: that of long failures against that of all other trajectories.

    sandboxrl train recipes/tiny.yaml name=taken-apart seed=12 checkpoint.every=1 checkpoint.keep=0
    python -m bench.shares runs/taken-apart --steps 1,5,9 [--longer-than 150] --out FILE.json

Needs the checkpoint before each step, and the trajectories of the step. The gradient is taken at the weights before the
step, as if the whole batch were one optimizer step, with the token weights of the run's own `loss.aggregation`.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from sandboxrl.data.files import read_jsonl, write_whole
from sandboxrl.rl.config import load_recipe
from sandboxrl.rl.grpo import LossConfig, loss_weights
from sandboxrl.rl.learner.checkpoint import Checkpoints
from sandboxrl.rl.learner.learner import export
from sandboxrl.rl.run import model_of_run


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.shares", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", required=True, help="for example 1,5,9")
    parser.add_argument("--longer-than", type=int, default=150, help="sampled tokens of a trajectory that is long")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    recipe = load_recipe(args.run / "recipe.yaml")
    start = model_of_run(recipe, args.run)
    found = []
    for step in map(int, args.steps.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            if step > 1:
                export(Checkpoints(args.run).path(step - 1), start, folder)
            model = AutoModelForCausalLM.from_pretrained(folder if step > 1 else start, dtype=torch.float32)
        rows = read_jsonl(args.run / "trajectories" / f"step_{step:06d}.jsonl")
        found.append({"step": step, **shares(model, rows, recipe.loss, args.longer_than)})
        print(json.dumps(found[-1]), flush=True)
    write_whole(args.out, json.dumps({"command": sys.argv[1:], "steps": found}, indent=1) + "\n")
    return 0


def shares(model: Any, rows: Sequence[dict[str, Any]], loss: LossConfig, longer_than: int) -> dict[str, float]:
    """Norms of the gradient of the long trajectories, of the others and of all, and the cosine of the first two."""
    lengths = [sum(row["tokens"]["mask"]) for row in rows]
    weights = loss_weights(lengths, [row["group"] for row in rows], loss)
    long = [length > longer_than for length in lengths]
    parts = [
        gradient(model, [(row, weight) for row, weight, one in zip(rows, weights, long, strict=True) if one == wanted])
        for wanted in (True, False)
    ]
    norms = [float(part.norm()) for part in parts]
    return {
        "long": sum(long),
        "of": len(rows),
        "norm_long": round(norms[0], 4),
        "norm_others": round(norms[1], 4),
        "norm_all": round(float((parts[0] + parts[1]).norm()), 4),
        "cosine": round(float(parts[0] @ parts[1] / (norms[0] * norms[1])), 3) if all(norms) else 0.0,
    }


def gradient(model: Any, weighted: Sequence[tuple[dict[str, Any], float]]) -> torch.Tensor:
    """Of the policy loss at ratio 1, as one vector."""
    model.zero_grad()
    for row, weight in weighted:
        ids = torch.tensor([row["tokens"]["ids"]])
        sampled = torch.tensor(row["tokens"]["mask"])[1:].bool()
        logprobs = model(ids[:, :-1], use_cache=False).logits[0].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
        (-row["advantage"] * weight * logprobs[sampled].sum()).backward()
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in model.parameters()])


if __name__ == "__main__":
    sys.exit(main())

"""What we expect of GPUs, said before any was seen: `python -m bench.gpu_plan --out FILE.json [--table FILE.json]`.

`--out` writes memory and time of the parts of `bench/gpu.py` by formula and arithmetic, in seconds. `--table` runs the
learner's step without values for both models, three lengths of row and five numbers of ranks, about half a minute each
on a quiet core; what the file holds already is not run again.
"""

import argparse
import json
from itertools import product
from pathlib import Path

from sandboxrl.rl.grpo import LossConfig
from sandboxrl.rl.learner.config import LearnerConfig
from sandboxrl.rl.sizes.memory import PHASES, learner_memory
from sandboxrl.rl.sizes.shapes import QWEN3_4B, QWEN3_CODER_30B_A3B, Shape

ROWS = (8_192, 32_768, 65_536)
RANKS = (1, 2, 4, 8, 16)
MODELS = {"4B": QWEN3_4B, "30B-A3B": QWEN3_CODER_30B_A3B}
TRAINED = 2 / 3
ATTENTION_FLOPS = (620e12, 500e12)
"""FlashAttention 3 on Hopper, forward and backward, as its authors measured; FA2 has 380 and 300."""
MATRIX_FLOPS = 600e12
"""What large bfloat16 products reach of 989e12."""
ELEMENTWISE_S = 3e-5
"""Per token: norms, rotations and activations of all layers, which move bytes and are not fused."""


def predictions(gpus: int) -> dict[str, float]:
    """What we expect of H200s, said before any was seen: memory by formula (held to the dry run by a test), time by
    arithmetic from rates of others."""
    shape, found = Shape.of(QWEN3_4B), {}
    for row in ROWS:
        trained = round(row * TRAINED)
        learner = LearnerConfig(world_size=gpus, max_tokens_per_row=row)
        attention = 2 * shape.layers * shape.queries * row * row
        matrices = 2 * shape.layers * shape.layer_parameters() * row + 2 * shape.embedding * trained
        forward, backward = ATTENTION_FLOPS
        # computed twice forwards, once backwards with 2.5 times (attention) and 2 times (matrices) the operations
        seconds = attention * (2 / forward + 2.5 / backward) + 4 * matrices / MATRIX_FLOPS + row * ELEMENTWISE_S
        found[f"step_{row}/peak_gb"] = learner_memory(shape, learner, row, trained).peak / 1e9
        found[f"step_{row}/seconds"] = seconds
        found[f"step_{row}/tokens_per_s_per_gpu"] = row / seconds
    return found | {"agree/mean": 0.01, "publish/ipc_s": 2.5, "publish/nccl_s": 2.5, "sleep/sleep_s": 1.0}


def table(file: Path) -> None:
    """`model/row/ranks` -> GB of each phase, and what a GPU must have with the margin."""
    from sandboxrl.rl.sizes.dry_run import dry_run

    known = json.loads(file.read_text()) if file.is_file() else {}
    for name, row, ranks in product(MODELS, ROWS[::-1], RANKS):
        if (key := f"{name}/{row}/{ranks}") not in known:
            found = dry_run(MODELS[name], LearnerConfig(world_size=ranks), LossConfig(), row, 1, round(row * TRAINED))
            phases = {phase: round(found.memory.of(phase) / 1e9, 1) for phase in PHASES}
            known[key] = phases | {"needed": round(found.memory.needed / 1e9, 1)}
            file.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n")
            print(key, known[key], flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_plan", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    parser.add_argument("--table", type=Path, metavar="FILE.json")
    args = parser.parse_args()
    if args.out:
        expected = {f"{count}_gpus": predictions(count) for count in (1, 2, 4, 8)}
        args.out.write_text(json.dumps(expected, indent=2) + "\n")
    if args.table:
        table(args.table)


if __name__ == "__main__":
    main()

"""What an update costs: `python -m bench.learner [--quick] --out FILE.json`.

Peers are the plain ways of doing the same on the same weights and tokens, each in a process of its own. On a CPU each
process has one thread and seconds are CPU seconds, so that what else runs on the machine hardly shows; the speedup of
two ranks is in wall seconds, best of the repeats, and means something on a quiet machine only.

| measure | ours | peer |
|---|---|---|
| logprob_peak_mb, logprob_cpu_s | log-probabilities of the trained tokens, in chunks | full logits of every token |
| packed_tokens_per_cpu_s | rows of whole trajectories | the same trajectories padded, four at a time |
| update_tokens_per_cpu_s | `Learner.update` | padded, full logits, AdamW, as one would write it |
| two_ranks_speedup | two ranks against one | limit: the number of cores, at most 2 |

`bench/gpu.py` measures what a GPU does.
"""

import argparse
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from bench.report import measure, write_report
from sandboxrl.envs.trajectory import StopReason, Tokens, Trajectory
from sandboxrl.rl.grpo import LossConfig
from sandboxrl.rl.learner.batch import build_batch
from sandboxrl.rl.learner.config import LearnerConfig
from sandboxrl.rl.learner.learner import Learner
from sandboxrl.rl.learner.model import SelectedLogprobs, load_policy
from sandboxrl.rl.learner.weights import free_port

VOCABULARY = 32_768
TRAINED_SHARE = 0.4
"""Of the tokens of an agentic trajectory, 20 to 60 % are the model's own."""


def small_model(folder: str) -> None:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)


def trajectories(count: int, median: int, seed: int = 0) -> list[Trajectory]:
    """Lengths spread as in agentic work (log-normal, sigma 0.7), turns of sampled and environment tokens in turn."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(count):
        length = int(np.clip(rng.lognormal(np.log(median), 0.7), median // 4, median * 5))
        mask = (np.arange(length) % 50 >= 50 * (1 - TRAINED_SHARE)).astype(int)
        ids = rng.integers(0, VOCABULARY, length)
        tokens = Tokens(ids, mask, -10.0 * mask, mask - 1)
        found.append(Trajectory("t", "s", "sandbox", StopReason.FINISHED, (), reward=float(i % 2), tokens=tokens))
    return found


def timed(work: Callable[[], Any], repeats: int) -> dict[str, float]:
    """After one unmeasured call: best wall seconds, median CPU seconds, and by how much the peak memory grew."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    work()
    wall, cpu = [], []
    for _ in range(repeats):
        started, busy = time.perf_counter(), time.process_time()
        work()
        cpu.append(time.process_time() - busy)
        wall.append(time.perf_counter() - started)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"s": min(wall), "cpu_s": statistics.median(cpu), "peak_mb": grown / 1024}


def full_logits(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """Log-probabilities of tokens 1.. of padded sequences [n, tokens]."""
    logits = model(ids[:, :-1], attention_mask=mask[:, :-1], use_cache=False).logits
    return -F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none").view_as(ids[:, 1:])


def run_logprobs(folder: str, kind: str, num_tokens: int, repeats: int) -> dict[str, float]:
    """One sequence, forward and backward."""
    torch.set_num_threads(1)
    ids = torch.randint(0, VOCABULARY, (num_tokens,), generator=torch.Generator().manual_seed(0))
    trained = torch.arange(1, num_tokens)[torch.arange(1, num_tokens) % 50 >= 50 * (1 - TRAINED_SHARE)]
    if kind == "chunked":
        policy = load_policy(folder, chunk=256)
        positions = torch.arange(num_tokens)
        return timed(lambda: policy(ids, positions, [num_tokens], trained).sum().backward(), repeats)
    model = AutoModelForCausalLM.from_pretrained(folder)
    every = torch.ones(1, num_tokens, dtype=torch.long)
    return timed(lambda: full_logits(model, ids[None], every)[0, trained - 1].sum().backward(), repeats)


def padded(group: list[Trajectory]) -> tuple[Tensor, Tensor, Tensor]:
    """ids, attention mask, loss mask [n, tokens] of some trajectories."""
    width = max(len(one.tokens.ids) for one in group)
    ids, attention, mask = (torch.zeros(len(group), width, dtype=torch.long) for _ in range(3))
    for i, one in enumerate(group):
        n = len(one.tokens.ids)
        ids[i, :n], mask[i, :n], attention[i, :n] = torch.tensor(one.tokens.ids), torch.tensor(one.tokens.mask), 1
    return ids, attention, mask


def run_rows(folder: str, kind: str, group: list[Trajectory], repeats: int) -> dict[str, float]:
    """Forward and backward of a group, packed or padded; the head is the chunked one both times."""
    torch.set_num_threads(1)
    policy = load_policy(folder, chunk=256)
    if kind == "packed":
        (rows,) = build_batch([group], LossConfig(), LearnerConfig(max_tokens_per_row=4096), 0).of_rank(0)

        def work() -> None:
            for row in rows:
                ids, positions, trained = map(torch.from_numpy, (row.ids, row.positions, row.trained))
                policy(ids, positions, row.lengths.tolist(), trained).sum().backward()

        return timed(work, repeats)
    model = AutoModelForCausalLM.from_pretrained(folder)
    batches = [padded(group[i : i + 4]) for i in range(0, len(group), 4)]

    def padded_work() -> None:
        for ids, attention, mask in batches:
            hidden = model.model(ids, attention_mask=attention, use_cache=False).last_hidden_state[:, :-1]
            chosen = mask[:, 1:].bool()
            SelectedLogprobs.apply(hidden[chosen], model.lm_head.weight, ids[:, 1:][chosen], 1.0, 256).sum().backward()

    return timed(padded_work, repeats)


def run_plain_update(folder: str, group: list[Trajectory], repeats: int) -> dict[str, float]:
    """The same update as one would write it: padded micro-batches, full logits, AdamW."""
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    batches = [(padded(group[i : i + 4]), group[i : i + 4]) for i in range(0, len(group), 4)]

    def work() -> None:
        for (ids, attention, mask), members in batches:
            logprobs = full_logits(model, ids, attention)
            advantage = torch.tensor([2 * one.reward - 1 for one in members])[:, None]
            (-(logprobs * mask[:, 1:] * advantage).sum() / len(group)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return timed(work, repeats)


def run_update(
    folder: str, config: LearnerConfig, rank: int, address: str, group: list[Trajectory], repeats: int
) -> dict[str, float]:
    core = Learner(rank, config)
    core.setup(address, folder, LossConfig())
    steps = build_batch([group], LossConfig(), config, 0).of_rank(rank)
    found = timed(lambda: core.update(steps), repeats)
    core.close()
    return found


def apart(work: Callable[..., Any], *args: Any) -> Any:
    """`work(*args)` in a fresh process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *args).result()


def update(folder: str, world_size: int, group: list[Trajectory], repeats: int) -> dict[str, float]:
    """The slowest rank's numbers."""
    config = LearnerConfig(world_size=world_size, device="cpu", max_tokens_per_row=4096, gradient_checkpointing=False)
    address = f"127.0.0.1:{free_port()}"
    with ProcessPoolExecutor(world_size, multiprocessing.get_context("spawn")) as pool:
        ranks = [pool.submit(run_update, folder, config, r, address, group, repeats) for r in range(world_size)]
        return max((rank.result() for rank in ranks), key=lambda found: found["s"])


def on_cpu(folder: str, quick: bool) -> dict[str, Any]:
    small_model(folder)
    repeats = 2 if quick else 5
    long, group = (2048, trajectories(12, 200)) if quick else (4096, trajectories(32, 400))
    num_tokens = sum(len(one.tokens.ids) for one in group)
    chunked, full = (apart(run_logprobs, folder, kind, long, repeats) for kind in ("chunked", "full"))
    packed, wide = (apart(run_rows, folder, kind, group, repeats)["cpu_s"] for kind in ("packed", "padded"))
    plain = apart(run_plain_update, folder, group, repeats)["cpu_s"]
    one, two = (update(folder, world_size, group, repeats) for world_size in (1, 2))
    return {
        "logprob_peak_mb": measure(
            chunked["peak_mb"], peer=full["peak_mb"], at_most=0.5, goal="half the memory of full logits or less"
        ),
        "logprob_cpu_s": measure(chunked["cpu_s"], peer=full["cpu_s"], at_most=1.0, goal="no slower than full logits"),
        "packed_tokens_per_cpu_s": measure(
            num_tokens / packed, peer=num_tokens / wide, at_least=1.1, goal="1.1 times padded or better"
        ),
        "update_tokens_per_cpu_s": measure(
            num_tokens / one["cpu_s"], peer=num_tokens / plain, at_least=1.5, goal="1.5 times the plain way or better"
        ),
        "two_ranks_speedup": measure(
            one["s"] / two["s"],
            limit=float(min(2, os.cpu_count() or 1)),
            at_least=0.6,
            goal="0.6 of the cores or better",
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller sizes and fewer repeats")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_report(args.out, on_cpu(folder, args.quick))


if __name__ == "__main__":
    main()

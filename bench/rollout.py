"""How much of vLLM's speed is left when it rolls out: the engine, whole trajectories, and a whole training step.

    python -m bench.rollout [--quick] [--model FOLDER] [--recipe RECIPE] --out FILE.json

| measure | ours | peer or limit |
|---|---|---|
| `engine/tokens_per_s` | `VllmEngine`, 64 requests at once | vLLM's own `LLM.generate` on the same prompts |
| `engine/start_s` | process start to first token | the same with vLLM's `AsyncLLM` |
| `engine/update_s` | new weights while 64 requests are in flight | |
| `step/seconds` | a step of a real run at `max_staleness=1` | the larger of the next two |
| `step/raw_vllm_s` | | vLLM alone on the same prompts and tokens, turn after turn, tools taking no time |
| `step/learner_s` | | the learner alone on the same batch: the same run at `max_staleness=0` |

Everything runs one after the other, each part in a process of its own, in rounds; medians over all rounds.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.report import measure, write_report
from sandboxrl.data.files import read_jsonl
from sandboxrl.envs.policy.protocol import Sampling
from sandboxrl.rl.engine.config import CPU_BLOCK_TOKENS, EngineConfig, worker_environment
from sandboxrl.rl.engine.vllm import VllmEngine

STARTED_S = time.time()
CONFIG = EngineConfig(max_model_len=1024)
NUM_REQUESTS, NUM_PROMPT, NUM_NEW = 64, 300, 128
STEPS = 7


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.rollout", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--quick", action="store_true", help="fewer repeats: under five minutes")
    parser.add_argument("--model", default="start:tiny", help="Hugging Face folder, or start:tiny")
    parser.add_argument("--recipe", default="recipes/tiny.yaml")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--trajectories", type=Path, nargs="*", default=[], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        print(json.dumps(PARTS[args.part](args)))
        return
    if args.out is None:
        parser.error("--out is needed")
    from sandboxrl.rl.run import resolve_model

    args.model = resolve_model(args.model)
    write_report(args.out, run(args))


def run(args: argparse.Namespace) -> dict[str, Any]:
    repeats = 2 if args.quick else 5
    rounds = [[part(name, args) for name in ("ours", "raw", "async")] for _ in range(repeats)]
    ours, raw, served = zip(*rounds, strict=True)

    def middle(rows: tuple[dict[str, float], ...], key: str) -> float:
        return statistics.median(row[key] for row in rows)

    measures = {
        "engine/tokens_per_s": measure(
            middle(ours, "tokens_per_s"),
            peer=middle(raw, "tokens_per_s"),
            at_least=0.95,
            goal="at least 0.95 of vLLM's LLM.generate",
        ),
        "engine/start_s": measure(
            middle(ours, "start_s"), peer=middle(served, "start_s"), at_most=1.0, goal="at most vLLM's AsyncLLM"
        ),
        "engine/update_s": measure(middle(ours, "update_s")),
    }
    return measures | steps(args)


def steps(args: argparse.Namespace) -> dict[str, Any]:
    """Rounds of three parts, so that all three see the machine as it is in the same minutes: training ahead, training
    in step, and vLLM alone drawing the tokens of the first again."""
    rounds = [round_of_steps(args, seed) for seed in range(1 if args.quick else 3)]
    ours, raw, learner, tokens = (
        statistics.median(value for parts in rounds for value in parts[name])
        for name in ("step", "raw_vllm", "learner", "tokens")
    )
    return {
        "step/seconds": measure(
            ours,
            limit=max(raw, learner),
            at_most=1.5,
            goal="at most 1.5 of the larger of vLLM alone and the learner alone",
        ),
        "step/raw_vllm_s": measure(raw),
        "step/learner_s": measure(learner),
        "step/sampled_tokens": measure(tokens),
    }


def round_of_steps(args: argparse.Namespace, seed: int) -> dict[str, list[float]]:
    """What each step took, but for the first two of a run."""
    with tempfile.TemporaryDirectory() as folder:
        for name, staleness in (("ahead", 1), ("in_step", 0)):
            overrides = {
                "name": name,
                "out": folder,
                "seed": seed,
                "steps": STEPS,
                "model.path": args.model,
                "max_staleness": staleness,
                "replace_uninformative": 0,  # so that the saved trajectories are all that were sampled
                "evaluation.before": "false",
                "evaluation.after": "false",
                "evaluation.every": 0,
                "checkpoint.every": 0,
            }
            words = [f"{key}={value}" for key, value in overrides.items()]
            subprocess.run([sys.executable, "-m", "sandboxrl.launch", "train", args.recipe, *words], check=True)
        ahead, in_step = (read_jsonl(Path(folder) / name / "metrics.jsonl")[2:] for name in ("ahead", "in_step"))
        files = [Path(folder) / "ahead" / "trajectories" / f"step_{row['step']:06d}.jsonl" for row in ahead]
        raw = part("replay", args, "--trajectories", *map(str, files))["seconds"]
    return {
        "step": [row["time/step_s"] for row in ahead],
        "raw_vllm": raw,
        "learner": [row["time/learn_s"] for row in in_step],
        "tokens": [row["tokens/sampled"] for row in ahead],
    }


def part(name: str, args: argparse.Namespace, *more: str) -> dict[str, Any]:
    """What a part measures, in a fresh process."""
    command = [sys.executable, "-m", "bench.rollout", "--part", name, "--model", args.model, *more]
    environment = os.environ | worker_environment(CONFIG)
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def prompts(round_number: int) -> list[list[int]]:
    """Fresh for every round, so that no round finds another's prefix cached."""
    return [
        [10 + (round_number * 7919 + i * 104_729 + j * j) % 500 for j in range(NUM_PROMPT)] for i in range(NUM_REQUESTS)
    ]


def parameters(max_tokens: int) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        max_tokens=max_tokens,
        ignore_eos=True,
        logprobs=0,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def timed(draw: Callable[[list[list[int]]], None]) -> dict[str, float]:
    """Tokens per second of a second round, after one that warms up."""
    draw(prompts(0))
    began = time.perf_counter()
    draw(prompts(1))
    return {"tokens_per_s": NUM_REQUESTS * NUM_NEW / (time.perf_counter() - began)}


def ours_part(args: argparse.Namespace) -> dict[str, float]:
    from safetensors.torch import load_file

    from sandboxrl.rl.learner.weights import SharedWeights

    weights = load_file(Path(args.model) / "model.safetensors")

    async def measured() -> dict[str, float]:
        engine = VllmEngine(args.model, CONFIG)
        await engine.start()
        await engine.generate([1, 2, 3], 1, Sampling(), 60)
        start_s = time.time() - STARTED_S

        async def draw(wanted: list[list[int]]) -> None:
            await asyncio.gather(*(engine.generate(p, NUM_NEW, Sampling(), 600, seed=i) for i, p in enumerate(wanted)))

        await draw(prompts(0))
        began = time.perf_counter()
        await draw(prompts(1))
        rate = NUM_REQUESTS * NUM_NEW / (time.perf_counter() - began)
        busy = asyncio.create_task(draw(prompts(2)))
        await asyncio.sleep(0.2)
        began = time.perf_counter()
        with SharedWeights(weights.items(), "bench") as shared:
            await engine.load_weights(shared.info, 1)
        update_s = time.perf_counter() - began
        await busy
        await engine.stop()
        return {"start_s": start_s, "tokens_per_s": rate, "update_s": update_s}

    return asyncio.run(measured())


def engine_arguments(model: str) -> dict[str, Any]:
    """What `VllmEngine` gives vLLM, as far as it is about speed; its norms are our own and not here."""
    return {
        "model": model,
        "dtype": "float32",
        "max_model_len": CONFIG.max_model_len,
        "max_num_seqs": CONFIG.max_num_seqs,
        "kv_cache_memory_bytes": 256 << 20,
        "block_size": CPU_BLOCK_TOKENS,
        "enforce_eager": True,
        "skip_tokenizer_init": True,
        "disable_log_stats": True,
    }


def raw_part(args: argparse.Namespace) -> dict[str, float]:
    from vllm import LLM

    llm = LLM(**engine_arguments(args.model))
    return timed(
        lambda wanted: llm.generate([{"prompt_token_ids": p} for p in wanted], parameters(NUM_NEW), use_tqdm=False)
    )


def async_part(args: argparse.Namespace) -> dict[str, float]:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    async def measured() -> dict[str, float]:
        arguments = AsyncEngineArgs(**engine_arguments(args.model), distributed_executor_backend="uni")
        llm = AsyncLLM.from_engine_args(arguments)

        async def draw(prompt: list[int], max_tokens: int, name: str) -> None:
            async for _ in llm.generate({"prompt_token_ids": prompt}, parameters(max_tokens), name):
                pass

        await draw([1, 2, 3], 1, "first")
        start_s = time.time() - STARTED_S
        for round_number in range(2):
            began = time.perf_counter()
            wanted = enumerate(prompts(round_number))
            await asyncio.gather(*(draw(p, NUM_NEW, f"{round_number} {i}") for i, p in wanted))
        rate = NUM_REQUESTS * NUM_NEW / (time.perf_counter() - began)
        llm.shutdown()
        return {"start_s": start_s, "tokens_per_s": rate}

    return asyncio.run(measured())


def replay_part(args: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds that vLLM alone needs for each file of trajectories: every turn as often and as long as it was, its
    prompt what the trajectory held by then, and the next turn at once when the last one is drawn."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    llm = LLMEngine.from_engine_args(EngineArgs(**engine_arguments(args.model)))
    seconds = []
    for file in args.trajectories[:1] + args.trajectories:  # the first once more, to warm up
        llm.reset_prefix_cache()
        turns = {str(i): turns_of(row) for i, row in enumerate(read_jsonl(file))}
        began = time.perf_counter()
        for name in turns:
            submit(llm, name, turns)
        while llm.has_unfinished_requests():
            for output in llm.step():
                submit(llm, output.request_id, turns)
        seconds.append(time.perf_counter() - began)
    return {"seconds": seconds[1:]}


def turns_of(row: dict[str, Any]) -> deque[tuple[list[int], int]]:
    """(prompt, sampled tokens) of each turn of a saved trajectory."""
    ids = row["tokens"]["ids"]
    return deque((ids[: turn["start"]], turn["end"] - turn["start"]) for turn in row["turns"] if turn["num_sampled"])


def submit(llm: Any, name: str, turns: dict[str, deque[tuple[list[int], int]]]) -> None:
    if turns[name]:
        prompt, num_new = turns[name].popleft()
        llm.add_request(name, {"prompt_token_ids": prompt}, parameters(num_new))


PARTS = {"ours": ours_part, "raw": raw_part, "async": async_part, "replay": replay_part}

if __name__ == "__main__":
    main()

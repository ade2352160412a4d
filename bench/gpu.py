"""Everything that only a GPU can show, in one command: `python -m bench.gpu --out FILE.json [--gpus N] [--minutes 10]`.

| part | what it does | passes when |
|---|---|---|
| `doctor` | this machine's driver, memory, NVLink, headers | nothing is missing |
| `agree` | engine draws, learner computes the same tokens | mean difference at most 0.05, as a run demands |
| `step_N` | one update on a row of N tokens (8,192, 32,768, 65,536) | memory within the dry run's, tokens/s are told |
| `publish` | new weights to a worker, by every backend that runs here | each ends and the versions are right |
| `sleep` | the engine gives its memory back and takes it again | weights and KV cache were given back |
| `killed` | a worker is killed in the middle of a publication | the other gets the weights, nothing hangs |
| `recipe` | three steps of `placement: together` with real sandboxes | the run ends with 3 steps |

The model has the shape of Qwen3-4B and random weights; `recipe` trains the small starting policy, or `--model`. Each
part is a process of its own with a share of the time, and says pass, fail or skipped and why. What is measured stands
beside what was predicted before any GPU was seen (`bench/gpu_plan.py`, shown in docs/gpu.md). `--tiny` runs the same
parts with small shapes on a CPU; the tests do.

model-FLOP utilisation = operations of one forward and one backward pass (`Shape.model_flops`: nothing for what is
computed again) / seconds / GPUs / the peak of the GPU's bfloat16 products.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray

from bench.gpu_plan import ROWS, TRAINED, predictions
from bench.report import measure, write_report
from sandboxrl.launch.doctor import examine
from sandboxrl.rl.cluster.connect import connect
from sandboxrl.rl.cluster.learners import RayLearners
from sandboxrl.rl.cluster.placement import Placement
from sandboxrl.rl.cluster.workers import RayWorkers
from sandboxrl.rl.config import Recipe, load_recipe
from sandboxrl.rl.engine.config import EngineConfig, on_cpu, worker_environment
from sandboxrl.rl.grpo import LossConfig
from sandboxrl.rl.learner.config import LearnerConfig
from sandboxrl.rl.reports.run_folder import Log
from sandboxrl.rl.run import resolve_model
from sandboxrl.rl.sizes.shapes import QWEN3_4B, Shape
from sandboxrl.rl.watch import Watch

TINY_ROWS = (256, 512)
TINY = QWEN3_4B | {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 1000,
}
PEAK_FLOPS = {"A100": 312e12, "H100": 989e12, "H200": 989e12, "B200": 2250e12}
"""Dense bfloat16 products, by a part of the GPU's name."""
MISMATCH = 0.05
"""What a run in half precision allows in the mean."""
SHARES = {"doctor": 0.02, "agree": 0.2, "step": 0.12, "publish": 0.15, "sleep": 0.12, "killed": 0.12, "recipe": 0.25}
"""Of the time, the most that a part may take."""


class Skipped(Exception):
    """A part that cannot run here; the message says why."""


@dataclass(frozen=True)
class Plan:
    """What a part is told."""

    folder: str
    """Of the model, made once for all parts."""
    tiny: bool
    gpus: int
    model: str
    """For `recipe`: a model folder or a hub name."""
    row: int = 0

    @property
    def engine(self) -> EngineConfig:
        if self.tiny:
            return EngineConfig(max_model_len=1024, kv_cache_bytes=32 << 20)
        return EngineConfig(max_model_len=8192, gpu_memory_utilization=0.4, max_num_seqs=32)

    @property
    def learner(self) -> LearnerConfig:
        return LearnerConfig(world_size=self.gpus, max_tokens_per_row=self.row or 8192, device="auto")


def make_model(folder: str, model: str, tiny: bool) -> None:
    """Random weights in a Hugging Face folder, with the tokenizer of `model`, whose ids must be below 1,000."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    values = {name: value for name, value in (TINY if tiny else QWEN3_4B).items() if name != "model_type"}
    torch.manual_seed(0)
    config = AutoConfig.for_model("qwen3", dtype="float32" if tiny else "bfloat16", **values)
    with torch.device("cpu" if tiny else "cuda"):
        made = AutoModelForCausalLM.from_config(config)
    made.save_pretrained(folder)
    for file in Path(model).iterdir():
        if file.name.startswith(("tokenizer", "chat_template", "special_tokens")):
            shutil.copy(file, folder)


def apart(work: Callable[..., Any], *args: Any, ranks: int = 1) -> list[Any]:
    """`work(rank, *args)` of each rank, in a fresh process each."""
    with ProcessPoolExecutor(ranks, multiprocessing.get_context("spawn")) as pool:
        return [done.result() for done in [pool.submit(work, rank, *args) for rank in range(ranks)]]


def part_doctor(plan: Plan) -> dict[str, float]:
    missing = [one for one in examine() if one.state == "missing"]
    for one in missing:
        print(f"missing: {one.name}: {one.found}; {one.fix}", file=sys.stderr)
    return {"missing": len(missing)}


def _draw(rank: int, plan: Plan) -> list[tuple[list[int], list[int], list[float]]]:
    os.environ.update(worker_environment(plan.engine))
    from sandboxrl.envs.policy.protocol import Sampling
    from sandboxrl.rl.engine.vllm import VllmEngine

    async def draw() -> list[Any]:
        engine = VllmEngine(plan.folder, plan.engine)
        await engine.start()
        prompts = [[(i * 7919 + j * j) % 900 for j in range(200)] for i in range(8)]
        wanted = (engine.generate(p, 200, Sampling(), 300, seed=i) for i, p in enumerate(prompts))
        found = [(p, s.ids, s.logprobs) for p, s in zip(prompts, await asyncio.gather(*wanted), strict=True)]
        await engine.stop()
        return found

    return asyncio.run(draw())


def _learner(rank: int, plan: Plan, address: str) -> Any:
    from sandboxrl.rl.learner.learner import Learner

    core = Learner(rank, plan.learner)
    core.setup(address, plan.folder, LossConfig())
    return core


def _compare(rank: int, plan: Plan, drawn: list[Any], address: str) -> list[float]:
    core = _learner(rank, plan, address)
    differences = np.concatenate(
        [
            np.abs(core.logprobs([_row_of([*prompt, *ids], len(prompt))])[0] - logprobs)
            for prompt, ids, logprobs in drawn
        ]
    )
    core.close()
    return [float(differences.mean()), float(differences.max())]


def _row_of(ids: list[int], num_prompt: int) -> Any:
    from sandboxrl.rl.learner.batch import Row

    at = np.arange(num_prompt, len(ids))
    numbers = np.zeros(len(at), dtype=np.float32)
    ones, whole = np.ones(len(at), dtype=np.float32), np.array(ids, dtype=np.int64)
    return Row(whole, np.array([len(ids)]), at, np.zeros(len(at), dtype=np.int64), numbers, ones, ones / len(at),
               np.zeros(len(at), dtype=bool))  # fmt: skip


def part_agree(plan: Plan) -> dict[str, float]:
    from sandboxrl.rl.learner.weights import free_port

    [drawn] = apart(_draw, plan)
    found = apart(_compare, plan, drawn, f"127.0.0.1:{free_port()}", ranks=plan.gpus)[0]
    return {"mean": found[0], "max": found[1], "tokens": sum(len(ids) for _, ids, _ in drawn)}


def _update(rank: int, plan: Plan, address: str) -> dict[str, float]:
    import torch

    core = _learner(rank, plan, address)
    rng = np.random.default_rng(rank)
    row = _row_of(rng.integers(0, 900, plan.row).tolist(), plan.row - round(plan.row * TRAINED))
    core.update([[row]])  # plans, autotunes, and makes the optimizer's state
    on_gpu = core.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    core.update([[row]])
    found = {"seconds": time.perf_counter() - began}
    if on_gpu:
        found |= {
            "peak_gb": torch.cuda.max_memory_allocated() / 1e9,
            "reserved_gb": torch.cuda.max_memory_reserved() / 1e9,
        }
        name = torch.cuda.get_device_name()
        flops = next((value for key, value in PEAK_FLOPS.items() if key in name), None)
        shape = Shape.of(QWEN3_4B)
        if flops:
            found["mfu"] = shape.model_flops([plan.row], round(plan.row * TRAINED)) / found["seconds"] / flops
    core.close()
    return found


def part_step(plan: Plan) -> dict[str, float]:
    from sandboxrl.rl.learner.weights import free_port

    ranks = apart(_update, plan, f"127.0.0.1:{free_port()}", ranks=plan.gpus)
    slowest = max(ranks, key=lambda found: found["seconds"])
    return slowest | {"tokens_per_s_per_gpu": plan.row / slowest["seconds"]}


def part_sleep(plan: Plan) -> dict[str, float]:
    os.environ.update(worker_environment(plan.engine))
    from sandboxrl.rl.engine.vllm import VllmEngine

    async def sleep() -> dict[str, float]:
        engine = VllmEngine(plan.folder, replace(plan.engine, sleeps=True))
        await engine.start()
        laps = [time.perf_counter()]
        freed = await engine.sleep()
        laps.append(time.perf_counter())
        for part in ("weights", "kv_cache"):
            await engine.wake(part)
            laps.append(time.perf_counter())
        await engine.stop()
        names = ("sleep_s", "wake_weights_s", "wake_kv_s")
        return {"freed_gb": freed / 1e9, **dict(zip(names, np.diff(laps).tolist(), strict=True))}

    return asyncio.run(sleep())


@asynccontextmanager
async def _run(plan: Plan, *words: str) -> AsyncIterator[tuple[Recipe, RayWorkers, RayLearners]]:
    """Engines and learner as a run starts them, in a folder of their own."""
    with tempfile.TemporaryDirectory() as out:
        config = asdict(plan.engine)
        engine = [f"engine.{name}={config[name]}" for name in ("max_model_len", "max_num_seqs", "kv_cache_bytes")]
        engine += ["engine.dtype=auto", f"engine.gpu_memory_utilization={config['gpu_memory_utilization']}"]
        short = [
            "mode=llm",
            "prompt=llm",
            "limits.max_tokens=512",
            f"model.path={plan.folder}",
            f"out={out}",
            "name=run",
        ]
        recipe = load_recipe("recipes/tiny.yaml", [*engine, "learner.dtype=auto", *short, *words])
        log = Log(recipe, 0, token_text=str)
        connect("")
        watch = Watch(recipe.watch, recipe.run_dir, log.note)
        placement = await Placement.reserve(recipe, not on_cpu(), watch)
        workers = RayWorkers(recipe, plan.folder, log, watch, placement)
        sharing = workers if recipe.placement == "together" else None
        learners = RayLearners(recipe, plan.folder, watch, placement, sharing)
        try:
            await workers.start()
            await learners.start()
            yield recipe, workers, learners
        finally:
            await workers.stop()
            await learners.stop()
            placement.release()
            ray.shutdown()


def part_publish(plan: Plan) -> dict[str, float]:
    backends = ("shm",) if on_cpu() else (("ipc",) if plan.gpus < 2 else ("ipc", "nccl"))  # `killed` publishes by tcp

    async def publish(backend: str) -> float:
        place = "together" if backend == "ipc" else "split"
        async with _run(plan, f"engine.weight_backend={backend}", f"placement={place}") as (_, workers, learners):
            await learners.publish(workers, 0)  # meets, and describes the weights
            began = time.perf_counter()
            for _ in range(3):
                await learners.publish(workers, 0)
            return (time.perf_counter() - began) / 3

    return {f"{backend}_s": asyncio.run(publish(backend)) for backend in backends}


def part_killed(plan: Plan) -> dict[str, float]:
    if not on_cpu() and plan.gpus < 3:
        raise Skipped("needs 3 GPUs: two engines and a learner")
    backend = "tcp" if on_cpu() else "nccl"

    async def kill() -> dict[str, float]:
        async with _run(plan, f"engine.weight_backend={backend}", "num_workers=2") as (_, workers, learners):
            await learners.publish(workers, 0)
            [victim, survivor] = workers.members()
            pid = await victim.pid.remote()
            began = time.perf_counter()
            publishing = asyncio.create_task(learners.publish(workers, 0))
            await asyncio.sleep(0.05)
            os.kill(pid, signal.SIGKILL)
            await publishing
            seconds = time.perf_counter() - began
            await learners.publish(workers, 0)  # finds it dead where the first one was over before
            while survivor not in workers.members() or victim in workers.members() or len(workers.members()) < 2:
                await asyncio.sleep(0.2)
            await learners.publish(workers, 0)
            versions = [await one.version.remote() for one in workers.members()]
            return {
                "seconds": seconds,
                "replaced_s": time.perf_counter() - began,
                "wrong_versions": sum(map(bool, versions)),
            }

    return asyncio.run(kill())


def part_recipe(plan: Plan) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as out:
        words = ["steps=3", "placement=together", "max_staleness=0", "name=run", f"out={out}", "evaluation.every=0"]
        words += ["evaluation.before=false", "evaluation.after=false", "engine.dtype=auto", "learner.dtype=auto"]
        words += ["groups_per_step=4", "group_size=4", "replace_uninformative=0", f"model.path={plan.model}"]
        command = [sys.executable, "-m", "sandboxrl.launch", "train", "recipes/tiny.yaml", *words]
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=sys.stderr)
        rows = [json.loads(line) for line in (Path(out) / "run" / "metrics.jsonl").read_text().splitlines()]
        steps = [row for row in rows if "loss" in row]
        return {
            "steps": len(steps),
            "seconds": time.perf_counter() - began,
            "mismatch_mean": max(row["mismatch/logprob_mean"] for row in steps),
        }


PARTS: dict[str, Callable[[Plan], dict[str, float]]] = {
    "doctor": part_doctor,
    "agree": part_agree,
    "step": part_step,
    "publish": part_publish,
    "sleep": part_sleep,
    "killed": part_killed,
    "recipe": part_recipe,
}


GOALS: dict[str, dict[str, float | str]] = {
    "doctor/missing": {"at_most": 0, "goal": "nothing is missing"},
    "agree/mean": {"at_most": MISMATCH, "goal": "what a run allows"},
    "recipe/steps": {"at_least": 3, "goal": "all steps"},
    "recipe/mismatch_mean": {"at_most": MISMATCH, "goal": "what a run allows"},
    "sleep/freed_gb": {"at_least": 0.01, "goal": "memory was given back"},
    "killed/wrong_versions": {"at_most": 0, "goal": "no worker samples with other weights"},
}


def run_part(name: str, plan: Plan, limit_s: float) -> tuple[str, dict[str, float]]:
    """`pass`, `fail: why` or `skipped: why`, and what was measured. It and all it started end with the limit."""
    command = [sys.executable, "-m", "bench.gpu", "--part", name, "--plan", json.dumps(asdict(plan))]
    part = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        out, _ = part.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(part.pid, signal.SIGKILL)
        part.communicate()
        return f"fail: not done within {limit_s:.0f} s", {}
    if part.returncode != 0:
        return f"fail: exit code {part.returncode}, see above", {}
    told = json.loads(next(line for line in reversed(out.splitlines()) if line.startswith("{")))  # a run also talks
    return (f"skipped: {told['skipped']}", {}) if "skipped" in told else ("pass", told)


def run(args: argparse.Namespace, folder: str) -> dict[str, Any]:
    expected = {} if args.tiny else predictions(args.gpus)
    rows = TINY_ROWS if args.tiny else ROWS
    steps = [("step", row) for row in rows]
    measures: dict[str, Any] = {}
    for name, row in [("doctor", 0), ("agree", 0), *steps, *((n, 0) for n in ("publish", "sleep", "killed", "recipe"))]:
        if args.only and name not in args.only:
            continue
        label = f"{name}_{row}" if row else name
        print(f"== {label}", flush=True)
        plan = Plan(folder, args.tiny, args.gpus, args.model, row)
        outcome, told = run_part(name, plan, 60 * args.minutes * SHARES[name])
        found = {}
        for key, value in told.items():
            goal: dict[str, Any] = dict(GOALS.get(f"{label}/{key}", {}))
            if (prediction := expected.get(f"{label}/{key}")) and not goal:
                goal = {"peer": prediction, "goal": "prediction"}
            if key == "peak_gb":
                goal |= {"at_most": 1.1, "at_least": 0.8, "goal": "within 10 % over, 20 % under the dry run"}
            found[f"{label}/{key}"] = measure(value, **goal)
        broken = [key for key, one in found.items() if one["holds"] is False]
        if outcome == "pass" and broken:
            outcome = f"fail: {', '.join(broken)}"
        print(f"   {outcome}", flush=True)
        measures[f"{label}"] = measure(float(outcome == "pass")) | {"outcome": outcome}
        measures |= found
    return measures


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    parser.add_argument("--gpus", type=int, default=1, metavar="N", help="learner ranks")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--model", default="start:tiny", help="what `recipe` trains, and whose tokenizer is used")
    parser.add_argument("--only", nargs="*", choices=PARTS, help="these parts")
    parser.add_argument("--tiny", action="store_true", help="small shapes, also without a GPU")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--plan", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        try:
            print(json.dumps(PARTS[args.part](Plan(**args.plan))))
        except Skipped as why:
            print(json.dumps({"skipped": str(why)}))
        return 0
    if args.out is None:
        parser.error("--out is needed")
    if on_cpu() and not args.tiny:
        parser.error("no GPU build of vLLM here; --tiny runs the same parts with small shapes")
    args.model = resolve_model(args.model)
    with tempfile.TemporaryDirectory() as folder:
        make_model(folder, args.model, args.tiny)
        measures = run(args, folder)
    write_report(args.out, measures)
    return int(any(one.get("outcome", "").startswith("fail") for one in measures.values()))


if __name__ == "__main__":
    sys.exit(main())

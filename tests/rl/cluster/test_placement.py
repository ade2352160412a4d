"""Who is on which GPU, and that sharing them changes no number."""

import asyncio
import json
import os
import re
from pathlib import Path

import pytest
import ray
from safetensors.numpy import load_file

from sandboxrl.launch.__main__ import main
from sandboxrl.rl.cluster.placement import Placement
from sandboxrl.rl.config import load_recipe
from sandboxrl.rl.trainer import RunFailed
from sandboxrl.rl.watch import Watch, WatchConfig

RECIPES = Path(__file__).parents[3] / "recipes"


def test_without_gpus_nothing_is_asked_for():
    placement = Placement(load_recipe(RECIPES / "tiny.yaml"), gpus=False)
    assert (placement.of_rank(0)["num_gpus"], placement.of_worker(0)["num_gpus"]) == (0, 0)
    assert "PYTORCH_ALLOC_CONF" not in placement.rank_environment()


def test_split_gives_every_part_gpus_of_its_own():
    placement = Placement(load_recipe(RECIPES / "qwen3_4b.yaml", ["engine.tensor_parallel_size=2"]), gpus=True)
    assert (placement.of_rank(0)["num_gpus"], placement.of_worker(0)["num_gpus"]) == (1, 2)
    assert placement.rank_environment()["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"


def test_segments_do_not_expand_where_weights_are_handed_over_as_cuda_handles():
    placement = Placement(load_recipe(RECIPES / "qwen3_4b_1gpu.yaml"), gpus=True)
    assert "PYTORCH_ALLOC_CONF" not in placement.rank_environment()


@ray.remote
class Seen:
    """What an actor of a run finds where it was put."""

    def look(self) -> tuple[str, str, str]:
        return ray.get_runtime_context().get_node_id(), os.environ["CUDA_VISIBLE_DEVICES"], os.environ.get("X", "")


@pytest.mark.heavy
@pytest.mark.usefixtures("ray_left")
@pytest.mark.parametrize("width", [1, 2])
def test_engines_and_ranks_of_a_bundle_see_the_same_gpus(width, tmp_path):
    """On GPUs that Ray is told of and that are not there."""
    words = [f"engine.tensor_parallel_size={width}", f"num_workers={4 // width}", "learner.world_size=4"]
    recipe = load_recipe(RECIPES / "qwen3_4b_1gpu.yaml", words)
    ray.init(address="local", num_gpus=4, num_cpus=12, include_dashboard=False, log_to_driver=False)
    try:
        watch = Watch(WatchConfig(start_s=60), tmp_path, print)
        placement = asyncio.run(Placement.reserve(recipe, True, watch))
        ranks = [Seen.options(**placement.of_rank(r)).remote() for r in range(4)]
        workers = [Seen.options(**placement.of_worker(w)).remote() for w in range(4 // width)]
        of_ranks = [gpus for _, gpus, _ in ray.get([one.look.remote() for one in ranks])]
        of_workers = [gpus for _, gpus, _ in ray.get([one.look.remote() for one in workers])]
        assert sorted(of_ranks) == ["0", "1", "2", "3"], "each rank has one of its own"
        for worker, gpus in enumerate(of_workers):
            assert sorted(gpus.split(",")) == sorted(of_ranks[worker * width : (worker + 1) * width])
        placement.release()
        with pytest.raises(RunFailed, match="needs 1 times 5 GPUs and 6 CPUs, each on one node; the nodes have 4 GPUs"):
            words = ["engine.tensor_parallel_size=5", "num_workers=1", "learner.world_size=5"]
            asyncio.run(Placement.reserve(load_recipe(RECIPES / "qwen3_4b_1gpu.yaml", words), True, watch))
    finally:
        ray.shutdown()


def trained(out: Path, name: str, *words: str) -> tuple[dict, Path]:
    """Metrics by step and run folder of a short quickstart."""
    short = (
        "steps=3 seed=5 groups_per_step=4 group_size=4 replace_uninformative=0 sandbox.warm=8 evaluation.every=0 "
        "evaluation.before=false evaluation.after=false"
    ).split()
    run = ["train", str(RECIPES / "tiny.yaml"), *short, f"name={name}", f"out={out}", *words]
    assert main(run) == 0
    rows = [json.loads(line) for line in (out / name / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row for row in rows if "loss" in row}, out / name


def exported(run: Path) -> dict:
    assert main(["export", str(run), "--out", f"{run}-model"]) == 0
    return load_file(f"{run}-model/model.safetensors")


@pytest.mark.heavy
@pytest.mark.usefixtures("ray_left")
@pytest.mark.timeout(900)
def test_in_turns_on_the_same_gpus_gives_the_weights_of_gpus_of_their_own(tmp_path):
    """Without a GPU: engine and learner take the same turns, and the KV cache is given back and taken again."""
    apart, split = trained(tmp_path, "split", "max_staleness=0")
    found, together = trained(tmp_path, "together", "max_staleness=0", "placement=together")
    for step, row in apart.items():
        same = [key for key in row if not re.search(r"time/|wall_s|/s$|per_s", key)]
        assert {key: found[step][key] for key in same} == {key: row[key] for key in same}
    before, after = exported(split), exported(together)
    assert before.keys() == after.keys()
    assert all((before[name] == after[name]).all() for name in before)
    log = (together / "log.txt").read_text()
    freed = [int(text.replace(",", "")) for text in re.findall(r"engines sleep: ([\d,]+) bytes", log)]
    assert freed == [pytest.approx(256 << 20, rel=0.01)] * 3, "whole blocks of 256 MiB"
    assert "engines sleep" not in (split / "log.txt").read_text()


@pytest.mark.heavy
@pytest.mark.usefixtures("ray_left")
@pytest.mark.timeout(900)
def test_in_turns_while_the_next_groups_are_frozen(tmp_path):
    """At staleness 1 there are always requests in flight when the engine falls asleep. They go on afterwards, and the
    log-probabilities of tokens drawn before and after are the learner's."""
    rows, run = trained(tmp_path, "ahead", "max_staleness=1", "placement=together")
    assert sorted(rows) == [1, 2, 3]
    assert all(row["mismatch/logprob_max"] < 1e-3 for row in rows.values())
    assert max(row["staleness/max"] for row in rows.values()) == 1
    assert len(re.findall("engines sleep", (run / "log.txt").read_text())) == 3

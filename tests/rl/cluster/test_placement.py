"""Who is on which GPU, and that sharing them changes no number."""

import asyncio
import os
import re
from pathlib import Path
from typing import Any

import pytest
import ray
from safetensors.numpy import load_file

from sandboxrl.data.files import read_jsonl
from sandboxrl.launch.__main__ import main
from sandboxrl.rl.cluster.placement import Placement
from sandboxrl.rl.config import load_recipe
from sandboxrl.rl.trainer import RunFailed
from sandboxrl.rl.watch import Watch, WatchConfig
from tests.ray_cluster import RayCluster
from tests.small_run import trained, words

RECIPES = Path(__file__).parents[3] / "recipes"
KV_BYTES = 64 << 20


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
@pytest.mark.parametrize("width", [pytest.param(1, marks=pytest.mark.long), 2])
def test_engines_and_ranks_of_a_bundle_see_the_same_gpus(width, tmp_path, ray_cluster):
    """Ray is told about GPUs that are not there."""
    count = 2 * width
    split = [f"engine.tensor_parallel_size={width}", "num_workers=2", f"learner.world_size={count}"]
    more = [f"engine.tensor_parallel_size={count + 1}", "num_workers=1", f"learner.world_size={count + 1}"]
    with ray_cluster.node(num_gpus=count, num_cpus=3 * count):
        watch = Watch(WatchConfig(start_s=60), tmp_path, print)
        placement = asyncio.run(Placement.reserve(load_recipe(RECIPES / "qwen3_4b_1gpu.yaml", split), True, watch))
        ranks = [Seen.options(**placement.of_rank(r)).remote() for r in range(count)]
        workers = [Seen.options(**placement.of_worker(w)).remote() for w in range(2)]
        of_ranks = [gpus for _, gpus, _ in ray.get([one.look.remote() for one in ranks])]
        of_workers = [gpus for _, gpus, _ in ray.get([one.look.remote() for one in workers])]
        assert sorted(of_ranks) == [str(gpu) for gpu in range(count)], "each rank has one of its own"
        for worker, gpus in enumerate(of_workers):
            assert sorted(gpus.split(",")) == sorted(of_ranks[worker * width : (worker + 1) * width])
        placement.release()
        needs = f"needs 1 times {count + 1} GPUs and {count + 2} CPUs, each on one node; the nodes have .*{count} GPU"
        with pytest.raises(RunFailed, match=needs):
            asyncio.run(Placement.reserve(load_recipe(RECIPES / "qwen3_4b_1gpu.yaml", more), True, watch))


def metrics(cluster: RayCluster, out: Path, name: str, **changes: Any) -> tuple[dict, Path]:
    """By step, and the run folder, of the quickstart's model in two short steps without an evaluation."""
    short = {"evaluation__before": False, "evaluation__after": False, "limits__max_tokens_per_turn": 96}
    small = {"seed": 5, "group_size": 4, "engine__max_model_len": 1024, "limits__max_tokens": 1024}
    small |= {"tasks__max_prompt_tokens": 1000, "engine__kv_cache_bytes": KV_BYTES}
    trained(cluster, "tiny", words(out, "start:tiny", **short, **small, name=name, **changes))
    rows = read_jsonl(out / name / "metrics.jsonl")
    return {row["step"]: row for row in rows if "loss" in row}, out / name


def exported(run: Path) -> dict:
    assert main(["export", str(run), "--out", f"{run}-model"]) == 0
    return load_file(f"{run}-model/model.safetensors")


@pytest.mark.heavy
@pytest.mark.timeout(900)
def test_in_turns_on_the_same_gpus_gives_the_weights_of_gpus_of_their_own(tmp_path, ray_cluster):
    """Without a GPU: engine and learner take the same turns, and the KV cache is given back and taken again."""
    apart, split = metrics(ray_cluster, tmp_path, "split")
    found, together = metrics(ray_cluster, tmp_path, "together", placement="together")
    for step, row in apart.items():
        same = [key for key in row if not re.search(r"time/|wall_s|/s$|per_s|^sandbox/", key)]
        assert {key: found[step][key] for key in same} == {key: row[key] for key in same}
    before, after = exported(split), exported(together)
    assert before.keys() == after.keys()
    assert all((before[name] == after[name]).all() for name in before)
    log = (together / "log.txt").read_text()
    freed = [int(text.replace(",", "")) for text in re.findall(r"engines sleep: ([\d,]+) bytes", log)]
    assert freed == [pytest.approx(KV_BYTES, rel=0.01)] * 2, "whole blocks of it"
    assert "engines sleep" not in (split / "log.txt").read_text()


@pytest.mark.heavy
@pytest.mark.long
@pytest.mark.timeout(900)
def test_in_turns_while_the_next_groups_are_frozen(tmp_path, ray_cluster):
    """At staleness 1 there are always requests in flight when the engine falls asleep. They go on afterwards, and the
    log-probabilities of tokens drawn before and after are the learner's."""
    rows, run = metrics(ray_cluster, tmp_path, "ahead", steps=3, max_staleness=1, placement="together")
    assert sorted(rows) == [1, 2, 3]
    assert all(row["mismatch/logprob_max"] < 1e-3 for row in rows.values())
    assert max(row["staleness/max"] for row in rows.values()) == 1
    assert len(re.findall("engines sleep", (run / "log.txt").read_text())) == 3

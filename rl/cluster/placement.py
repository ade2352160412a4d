"""Where the actors of a run go: which GPUs, which node, which environment.

| placement | learner rank | rollout worker |
|---|---|---|
| on CPU | no GPU | no GPU |
| `split` | a GPU of its own | `tensor_parallel_size` GPUs of its own |
| `together` | a GPU of worker i's bundle | the same GPUs, which it does not reserve but sees |

A bundle of `together` is the GPUs of one engine, so they are on one node. The learner's ranks reserve them; the engine
in the bundle is told which they are.
"""

import asyncio
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from sandboxrl.rl.cluster.places import on_nodes
from sandboxrl.rl.config import Recipe
from sandboxrl.rl.engine.config import worker_environment
from sandboxrl.rl.trainer import RunFailed
from sandboxrl.rl.watch import Stalled, Watch


@dataclass
class Placement:
    """Options of the actors of one run."""

    recipe: Recipe
    gpus: bool
    """Whether the run is on GPUs."""
    group: PlacementGroup | None = None
    devices: tuple[tuple[int, ...], ...] = ()
    """GPUs of each bundle, as numbered on its node."""

    @classmethod
    async def reserve(cls, recipe: Recipe, gpus: bool, watch: Watch) -> "Placement":
        """Raises RunFailed where the cluster does not have the GPUs, together where they must be."""
        if not gpus or recipe.placement == "split":
            return cls(recipe, gpus)
        width = recipe.engine.tensor_parallel_size
        _check_nodes(recipe.num_workers, width)
        group = placement_group([{"GPU": width, "CPU": width + 1}] * recipe.num_workers)
        looking = [
            ray.remote(_devices).options(num_gpus=width, num_cpus=0, scheduling_strategy=_in(group, bundle)).remote()
            for bundle in range(recipe.num_workers)
        ]
        try:
            what = "GPUs for engines and learner together"
            devices = await watch.bounded(asyncio.gather(*looking), "cluster", what, watch.config.start_s)
        except Stalled as error:
            remove_placement_group(group)
            raise RunFailed(f"{error}: other work holds them") from None
        return cls(recipe, gpus, group, tuple(tuple(sorted(found)) for found in devices))

    def of_rank(self, rank: int) -> dict[str, Any]:
        on_gpu = int(self.gpus and self.recipe.learner.device != "cpu")
        options: dict[str, Any] = {"num_cpus": on_gpu, "num_gpus": on_gpu}
        options["resources"] = on_nodes(self.recipe.learner.nodes)
        if self.group is not None:
            options["scheduling_strategy"] = _in(self.group, rank // self.recipe.engine.tensor_parallel_size)
        return options | {"runtime_env": {"env_vars": self.rank_environment()}}

    def rank_environment(self) -> dict[str, str]:
        config = self.recipe.learner
        variables = {"OMP_NUM_THREADS": str(config.threads), "TOKENIZERS_PARALLELISM": "false"}
        if self.gpus and self.recipe.placement == "split":
            # Rows of ever new lengths fragment memory. Not where weights are handed over as CUDA handles.
            variables["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
        return variables

    def of_worker(self, worker: int) -> dict[str, Any]:
        environment = worker_environment(self.recipe.engine_of_run)
        if self.group is None:
            gpus = self.recipe.engine.tensor_parallel_size if self.gpus else 0
            return {
                "num_cpus": int(self.gpus),
                "num_gpus": gpus,
                "resources": on_nodes(self.recipe.engine.nodes),
                "runtime_env": {"env_vars": environment},
            }
        environment |= {
            "CUDA_VISIBLE_DEVICES": ",".join(map(str, self.devices[worker])),
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray hides all GPUs from an actor that reserves none
        }
        strategy = _in(self.group, worker)
        return {
            "num_cpus": 1,
            "num_gpus": 0,
            "scheduling_strategy": strategy,
            "runtime_env": {"env_vars": environment},
        }

    def release(self) -> None:
        if self.group is not None:
            remove_placement_group(self.group)
            self.group = None


def _check_nodes(count: int, width: int) -> None:
    """Raises RunFailed where no waiting helps: the nodes do not have `count` times `width` GPUs and the CPUs."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(int(min(node.get("GPU", 0) // width, node.get("CPU", 0) // (width + 1))) for node in nodes)
    if room < count:
        have = ", ".join(f"{node.get('GPU', 0):g} GPUs and {node.get('CPU', 0):g} CPUs" for node in nodes)
        needs = f"{count} times {width} GPUs and {width + 1} CPUs, each on one node"
        raise RunFailed(f"placement: together needs {needs}; the nodes have {have}")


def _in(group: PlacementGroup, bundle: int) -> PlacementGroupSchedulingStrategy:
    return PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)


def _devices() -> list[int]:
    return [int(device) for device in ray.get_gpu_ids()]

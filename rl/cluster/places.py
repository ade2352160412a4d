"""Where the actors of a run may live, and what cannot work there: found before anything is started, with the remedy.

A Ray node is named by a custom resource: `ray start … --resources '{"fast": 1}'` and `engine.nodes=fast`.
"""

import os
from collections.abc import Iterable, Mapping

from sandboxrl.data.errors import InputError
from sandboxrl.rl.cluster.hosts import RESOURCE
from sandboxrl.rl.config import Recipe
from sandboxrl.rl.engine.config import on_cpu, weight_backend

SHARE = 0.001
"""Of a node's resource, held by one actor: it names the node and limits nothing."""


def on_nodes(resource: str) -> dict[str, float]:
    """The `resources` of an actor that may live only where `resource` is offered; anywhere for an empty one."""
    return {resource: SHARE} if resource else {}


def check_cluster(recipe: Recipe, offered: Mapping[str, float]) -> None:
    """Raises InputError where the cluster, which offers so much in all, can never run the recipe: its actors would be
    waited for in vain."""
    for key, resource in (("engine.nodes", recipe.engine.nodes), ("learner.nodes", recipe.learner.nodes)):
        if resource and not offered.get(resource):
            raise InputError(f"{key}={resource}: no node of the Ray cluster offers it; {_remedy(resource)}")
    if recipe.mode == "sandbox" and recipe.sandbox.remote and not offered.get(RESOURCE):
        raise InputError(f"sandbox.remote: no node of the Ray cluster offers {RESOURCE}; {_remedy(RESOURCE)}")
    if on_cpu() or recipe.cluster or os.environ.get("RAY_ADDRESS"):  # a cluster of others may grow when it is asked to
        return
    engines = recipe.num_workers * recipe.engine.tensor_parallel_size
    wanted = engines if recipe.placement == "together" else engines + recipe.learner.world_size
    if offered.get("GPU", 0) < wanted:
        raise InputError(
            f"the recipe takes {wanted} GPUs (num_workers x engine.tensor_parallel_size = {engines}, "
            f"learner.world_size = {recipe.learner.world_size}), this machine has {offered.get('GPU', 0):g}; lower "
            f"num_workers, or set placement=together"
        )


def check_weights_arrive(recipe: Recipe, workers: Iterable[str], learner: str) -> None:
    """Raises InputError where a worker's node is not the learner's and the weights only travel within one. Without it
    every worker would be replaced at every step."""
    apart = sorted({node for node in workers if node != learner})
    if apart and weight_backend(recipe.engine) == "shm":
        raise InputError(
            f"engine.weight_backend=shm: rollout workers are on other Ray nodes ({', '.join(apart)}) than the learner "
            f"({learner}); set engine.weight_backend=tcp, or name one node for both: engine.nodes, learner.nodes"
        )


def _remedy(resource: str) -> str:
    return f"start one with: ray start --address=HEAD:6379 --resources '{{\"{resource}\": 64}}'"

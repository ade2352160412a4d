"""What a Ray cluster cannot run is said before anything is started."""

from pathlib import Path

import pytest

from sandboxrl.data.errors import InputError
from sandboxrl.rl.cluster.places import check_cluster, check_weights_arrive, on_nodes
from sandboxrl.rl.config import Recipe, load_recipe
from sandboxrl.rl.engine.config import on_cpu

ROOT = Path(__file__).resolve().parents[3]


def recipe(*words: str) -> Recipe:
    return load_recipe(ROOT / "recipes/tiny.yaml", words)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["sandbox.remote=true"],
            "no node of the Ray cluster offers sandboxes; start one with: ray start",
        ),
        (["engine.nodes=fast"], "engine.nodes=fast: no node"),
        (["learner.nodes=large"], "learner.nodes=large: no node"),
    ],
)
def test_what_no_node_offers_is_refused_with_the_remedy(words: list[str], told: str) -> None:
    with pytest.raises(InputError, match=told):
        check_cluster(recipe(*words), {"CPU": 2.0, "GPU": 99.0})
    check_cluster(recipe(*words), {"CPU": 2.0, "GPU": 99.0, "sandboxes": 8.0, "fast": 1.0, "large": 1.0})


@pytest.mark.skipif(on_cpu(), reason="the GPU build of vLLM is not installed")
def test_more_gpus_than_there_are_is_refused() -> None:
    with pytest.raises(InputError, match="takes 2 GPUs"):
        check_cluster(recipe(), {"CPU": 2.0, "GPU": 1.0})


def test_weights_in_shared_memory_stay_on_one_node() -> None:
    check_weights_arrive(recipe("engine.weight_backend=shm"), ["a", "a"], "a")
    check_weights_arrive(recipe("engine.weight_backend=tcp"), ["a", "b"], "a")
    with pytest.raises(InputError, match="set engine.weight_backend=tcp"):
        check_weights_arrive(recipe("engine.weight_backend=shm"), ["a", "b"], "a")


def test_an_actor_is_bound_to_the_nodes_that_offer_a_resource() -> None:
    assert on_nodes("") == {} and set(on_nodes("fast")) == {"fast"}

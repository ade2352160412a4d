"""A Ray cluster for tests: a head with a job server, to which a test may add a node for itself."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SANDBOXES = 8
"""Offered by the node that offers sandboxes (`sandbox_node`), at the same time."""


@dataclass(frozen=True)
class RayCluster:
    address: str
    """HOST:PORT, as `RAY_ADDRESS` and a recipe's `cluster` take it."""
    job_server: str
    """http://HOST:PORT, as `ray job submit --address` and a sweep's `cluster` take it."""
    nodes: Any
    """A `ray.cluster_utils.Cluster`."""

    def add_node(self, **options: Any) -> Any:
        """A further node, ready for actors. `options` are those of Ray's `add_node`."""
        return self.nodes.add_node(dashboard_agent_listen_port=0, **({"num_cpus": 1} | options))

    def lose_node(self, node: Any) -> None:
        """As when its power fails: nothing there says goodbye."""
        self.nodes.remove_node(node, allow_graceful=False)

    def join(self) -> None:
        import ray

        ray.init(address=self.address, log_to_driver=False)

    @contextmanager
    def left(self) -> Iterator[None]:
        """This process is in no cluster meanwhile: what it calls joins this one itself, and leaves it."""
        import ray

        ray.shutdown()
        try:
            yield
        finally:
            ray.shutdown()
            self.join()

    @contextmanager
    def node(self, **options: Any) -> Iterator[None]:
        """A further node as long as the context lasts."""
        added = self.add_node(**options)
        try:
            yield
        finally:
            self.nodes.remove_node(added)


@contextmanager
def running_cluster() -> Iterator[RayCluster]:
    """The cluster, joined by this process."""
    import ray  # heavy: most tests need none of it

    from sandboxrl.rl.cluster.jobs import own_cluster

    # jobs find the interpreter of the recipes' first line on the path of the cluster
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with own_cluster() as cluster:
        found = RayCluster(cluster.address, f"http://{cluster.webui_url}", cluster)
        found.join()
        try:
            yield found
        finally:
            ray.shutdown()

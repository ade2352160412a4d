"""The Docker daemon that is tested, asked directly."""

from typing import Any

import docker

from tests.envs.conftest import DOCKER_SOCKET


def client() -> docker.DockerClient:
    return docker.DockerClient(base_url=f"unix://{DOCKER_SOCKET}")


def containers_of(owner: str) -> list[Any]:
    """The containers with this owner label, running or not."""
    with_label = {"label": f"sandboxrl.owner={owner}"}
    return list(client().containers.list(all=True, filters=with_label, ignore_removed=True))

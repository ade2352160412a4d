"""What only the docker backend has: a daemon of either kind, and a runtime by name."""

import asyncio
import os

import pytest

from sandboxrl.data.errors import InputError
from sandboxrl.envs.sandbox.docker import Docker
from sandboxrl.envs.sandbox.host.owner import owner_of
from sandboxrl.envs.sandbox.pool import open_backend
from tests.envs.sandbox.docker.daemon import client, containers_of

pytestmark = pytest.mark.docker
OWN = ("runc", "io.containerd.runc.v2", "io.containerd.runtime.v1.linux")
"""What a daemon has without being told."""


@pytest.fixture
def docker(machine):
    if machine.backend != "docker":
        pytest.skip("docker only")
    return machine


def daemon():
    """(whether it is Podman, its runtimes)"""
    parts = client().version()["Components"]
    return any(part["Name"] == "Podman Engine" for part in parts), client().info()["Runtimes"]


def test_an_unknown_runtime_is_an_error_before_any_sandbox(docker):
    with pytest.raises(InputError, match="sandbox.runtime=runcc"):
        open_backend(docker.config(runtime="runcc"))


def test_a_sandbox_runs_under_the_runtime_that_is_named(docker):
    podman, runtimes = daemon()
    added = sorted(set(runtimes) - set(OWN))
    if podman or not added:
        pytest.skip("this daemon has no runtime but its own; add one with: dockerd --add-runtime crun=/usr/bin/crun")

    async def body():
        backend = Docker(docker.config(runtime=added[0]))
        box = await backend.start()
        try:
            assert (await box.exec("echo $((6 * 7))")).stdout == b"42\n"
            (container,) = containers_of(owner_of(os.getpid()))
            assert container.attrs["HostConfig"]["Runtime"] == added[0]
        finally:
            await box.close()
            await backend.close()

    asyncio.run(body())


def test_podman_refuses_what_it_would_only_seem_to_do(docker):
    podman, _ = daemon()
    if not podman:
        pytest.skip("set SANDBOXRL_TEST_SOCKET to the socket of a Podman service")
    for changes, message in (({"network": "egress"}, "its own rules"), ({"runtime": "crun"}, "podman --runtime crun")):
        with pytest.raises(InputError, match=message):
            open_backend(docker.config(**changes))

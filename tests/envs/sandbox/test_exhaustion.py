"""A machine that runs out: a sample of `bench/exhaustion.py`, in which no shortage may look like a policy's doing."""

import os

import pytest

from bench.exhaustion import LIMITS, RIGHT, in_a_child
from sandboxrl.envs.sandbox.protocol import SandboxConfig
from tests.envs.conftest import docker_config


@pytest.mark.parametrize(
    ("config", "num"),
    [
        pytest.param(SandboxConfig(limits=LIMITS), 12, id="bubblewrap"),
        pytest.param(docker_config(backend="docker", limits=LIMITS), 4, id="docker", marks=pytest.mark.docker),
    ],
)
def test_what_starts_while_descriptors_run_out_is_right_or_the_machines(config, num):
    if os.geteuid():
        pytest.skip("started by root")
    found = in_a_child(0, "descriptors", config, num, 0)
    assert found["outcomes"].keys() <= RIGHT and found["outcomes"]["the machine's fault"], found
    assert found["afterwards"] == {"a right result": 12}

"""The rollout worker as the Ray actor it is: trajectories, new weights, and nothing left when it is killed."""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import ray
import torch
from transformers import AutoModelForCausalLM

from sandboxrl.data.prompt.arms import load_arm
from sandboxrl.data.task import Task
from sandboxrl.envs.policy.protocol import Sampling
from sandboxrl.envs.rollout import RolloutLimits
from sandboxrl.envs.sandbox.pool import open_backend
from sandboxrl.envs.sandbox.protocol import BackendUnavailable, SandboxConfig
from sandboxrl.envs.trajectory import StopReason
from sandboxrl.rl.cluster.worker import RolloutWorker, WorkerSpec
from sandboxrl.rl.engine.config import EngineConfig, worker_environment
from sandboxrl.rl.learner.weights import Publisher

pytestmark = pytest.mark.heavy

CONFIG = EngineConfig(max_model_len=4096, kv_cache_bytes=64 << 20)
LIMITS = RolloutLimits(max_turns=2, max_tokens=4096, max_tokens_per_turn=30, timeout_s=60, command_timeout_s=10)
TASK = Task("t0", "test", "Which colour is it?", gold="red", reward="exact", documents={"a.txt": "It is red.\n"})


class Cluster:
    """Starts rollout workers of one model, of which it keeps a copy."""

    def __init__(self, folder: str) -> None:
        self.folder, self.model = folder, AutoModelForCausalLM.from_pretrained(folder)

    def worker(self, mode: str):
        options = RolloutWorker.options(
            num_cpus=0, max_concurrency=100, runtime_env={"env_vars": worker_environment(CONFIG)}
        )
        worker = options.remote(
            WorkerSpec(self.folder, CONFIG, SandboxConfig(warm=2), LIMITS, load_arm("compact"), mode=mode)
        )
        ray.get(worker.start.remote())
        return worker

    def mismatch(self, tokens) -> float:
        with torch.no_grad():
            logprobs = self.model(torch.tensor([tokens.ids])).logits[0].log_softmax(-1)
        sampled = [i for i, mask in enumerate(tokens.mask) if mask]
        return max(abs(float(logprobs[i - 1, tokens.ids[i]]) - tokens.logprobs[i]) for i in sampled)


@pytest.fixture(scope="module")
def cluster(ray_cluster, model_folder):
    return Cluster(model_folder)


@pytest.fixture(scope="module")
def worker(cluster):
    try:
        open_backend(SandboxConfig())
    except BackendUnavailable as error:
        pytest.skip(str(error))
    one = cluster.worker("sandbox")
    yield one
    with contextlib.suppress(ray.exceptions.RayActorError):  # one test kills it
        ray.get(one.stop.remote())
    ray.kill(one)


def test_trajectories_are_exact_to_the_token(cluster, worker):
    found = ray.get([worker.sample.remote(TASK, seed, Sampling()) for seed in range(8)])
    for trajectory in found:
        assert trajectory.stop is StopReason.MAX_TURNS, trajectory.error
        assert (trajectory.reward, len(trajectory.turns)) == (0.0, 2)
        tokens = trajectory.tokens
        assert len({len(tokens.ids), len(tokens.mask), len(tokens.logprobs), len(tokens.versions)}) == 1
        assert {v for v, m in zip(tokens.versions, tokens.mask, strict=True) if m} == {0}
        assert cluster.mismatch(tokens) < 1e-4
    assert len({tuple(trajectory.tokens.ids) for trajectory in found}) == 8


def test_a_seed_draws_the_same_tokens_alone_and_in_a_batch(cluster, worker):
    """As far as the engine rounds alike: a product of one request and of eight may differ in the last digit, with some
    processors more than with others, and a draw that lies so close to a border then falls to another token. The
    chance that it hits two of these is far below one in a million."""
    together = ray.get([worker.sample.remote(TASK, seed, Sampling()) for seed in range(8)])
    alone = [ray.get(worker.sample.remote(TASK, seed, Sampling())) for seed in range(8)]
    same = [
        (a.tokens, b.tokens) for a, b in zip(together, alone, strict=True) if list(a.tokens.ids) == list(b.tokens.ids)
    ]
    assert len(same) >= 7
    for one, other in same:
        assert list(one.mask) == list(other.mask) and list(one.versions) == list(other.versions)
        assert max(abs(a - b) for a, b in zip(one.logprobs, other.logprobs, strict=True)) < 1e-4


def test_new_weights_reach_a_worker_between_two_probes(cluster, worker):
    before = ray.get(worker.probe.remote(Sampling()))
    assert cluster.mismatch(before) < 1e-4
    for parameter in cluster.model.parameters():
        parameter.data += 0.2 * parameter.std() * torch.randn_like(parameter)
    assert cluster.mismatch(before) > 0.1
    assert Publisher("shm", "test").publish(cluster.model.named_parameters(), 5, [worker]) == []
    after = ray.get(worker.probe.remote(Sampling()))
    assert cluster.mismatch(after) < 1e-4
    assert {v for v, m in zip(after.versions, after.mask, strict=True) if m} == {5}
    assert ray.get(worker.version.remote()) == 5


def test_without_a_sandbox(cluster):
    one = cluster.worker("llm")
    trajectory = ray.get(one.sample.remote(TASK, 0, Sampling()))
    assert trajectory.turns and not trajectory.turns[0].observations
    assert not trajectory.stop.machine_fault, trajectory.error
    ray.get(one.stop.remote())
    assert not ray.get(one.healthy.remote())
    lost = ray.get(one.sample.remote(TASK, 0, Sampling()))
    assert (lost.stop, lost.reward, lost.error) == (StopReason.ENGINE_LOST, None, "EngineLost: the engine was stopped")
    ray.kill(one)


def test_killed_with_trajectories_in_flight_it_leaves_no_process(cluster, worker):
    running = [worker.sample.remote(TASK, seed, Sampling()) for seed in range(90)]
    ray.wait(running, timeout=60)  # until one has ended
    process = ray.get(worker.pid.remote())
    family = descendants(process)
    assert family  # sandboxes, at the least
    os.kill(process, signal.SIGKILL)
    with pytest.raises(ray.exceptions.RayError):
        ray.get(running)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and any(alive(one) for one in family):
        time.sleep(0.1)
    assert not [commands(one) for one in family if alive(one)]
    (lost,) = Publisher("shm", "test").publish(cluster.model.named_parameters(), 6, [worker])
    assert lost[0] == 0


def descendants(process: int) -> list[int]:
    """Every process below `process`."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(child): int(parent) for child, parent in (line.split() for line in listed.splitlines())}
    found, level = [], [process]
    while level:
        level = [child for child, parent in parents.items() if parent in level]
        found += level
    return found


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def commands(process: int) -> str:
    return Path(f"/proc/{process}/cmdline").read_text().replace("\0", " ")

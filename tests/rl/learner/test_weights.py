"""New weights reach the engine whole: after a change its log-probabilities are the learner's."""

import asyncio
import os
import signal
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open

from sandboxrl.envs.policy.protocol import Sampling
from sandboxrl.rl.learner.weights import SharedWeights
from tests.rl.engines import Running, running

PROMPT = list(range(100, 160))


@pytest.fixture(scope="module", params=["tied", "untied"])
def engine(request, tmp_path_factory):
    with running(tmp_path_factory.mktemp(request.param), tied=request.param == "tied") as one:
        yield one


def worst(one: Running, temperature: float = 1.0, prompt: list[int] = PROMPT) -> float:
    sampling = Sampling(temperature=temperature)
    sampled = one.run(one.engine.generate(prompt, 60, sampling, 60))
    return one.mismatch(prompt, sampled, temperature)


def update(one: Running, version: int) -> None:
    with SharedWeights(one.model.named_parameters(), str(version)) as shared:
        one.run(one.engine.load_weights(shared.info, version))


@pytest.mark.heavy
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_engine_and_learner_agree_before_and_after_changed_weights(engine, temperature):
    assert worst(engine, temperature) < 1e-4
    for _ in range(2):
        version = engine.run(engine.engine.version()) + 1
        engine.change(seed=version)
        assert worst(engine, temperature) > 0.1  # the change is visible
        update(engine, version)
        assert worst(engine, temperature) < 1e-4
        assert engine.run(engine.engine.version()) == version


@pytest.mark.heavy
def test_this_check_sees_a_tied_head_that_kept_its_old_weights(engine):
    """The bug that `rl.engine.vllm_cpu.repack_cpu` fixes, provoked by vLLM's own reload, which says nothing about
    it."""
    one = engine.engine
    engine.change(seed=50)
    weights = [(name, parameter.detach().clone()) for name, parameter in engine.model.named_parameters()]
    engine.run(one.call_ranks("reload_weights", {"weights_iterator": iter(weights)}))
    unseen = PROMPT[::-1]  # that reload leaves the prefix cache as it was, too
    assert (worst(engine, prompt=unseen) > 0.1) == engine.model.config.tie_word_embeddings
    update(engine, engine.run(one.version()) + 1)
    assert worst(engine) < 1e-4


@pytest.mark.heavy
def test_an_update_mid_sequence_keeps_the_request_and_marks_each_token(engine):
    before = engine.run(engine.engine.version())
    old = {name: parameter.detach().clone() for name, parameter in engine.model.named_parameters()}

    async def sample_across_an_update():
        asking = asyncio.create_task(engine.engine.generate(PROMPT, 800, Sampling(), 60, seed=1))
        await asyncio.sleep(0.3)
        engine.change(seed=100)
        with SharedWeights(engine.model.named_parameters(), "mid") as shared:
            await engine.engine.load_weights(shared.info, before + 1)
        return await asking

    sampled = engine.run(sample_across_an_update())
    num_old = sampled.versions.count(before)
    assert 0 < num_old < len(sampled.ids)
    assert sampled.versions == [before] * num_old + [before + 1] * (len(sampled.ids) - num_old)

    new_part = type(sampled)(sampled.ids[num_old:], sampled.logprobs[num_old:], [], "length")
    assert engine.mismatch([*PROMPT, *sampled.ids[:num_old]], new_part) < 1e-4
    for name, parameter in engine.model.named_parameters():
        parameter.data = old[name]
    old_part = type(sampled)(sampled.ids[:num_old], sampled.logprobs[:num_old], [], "length")
    assert engine.mismatch(PROMPT, old_part) < 1e-4
    update(engine, before + 2)


def test_the_file_holds_every_tensor_and_its_label():
    with SharedWeights([("a", torch.ones(2)), ("b", torch.eye(3).T)], "run 3") as shared:
        assert shared.info["label"] == "run 3"
        with safe_open(shared.info["path"], "pt") as file:
            assert file.metadata() == {"label": "run 3"}
            assert file.get_tensor("a").tolist() == [1.0, 1.0]
            assert torch.equal(file.get_tensor("b"), torch.eye(3))


def test_nothing_is_left_when_closed_or_killed():
    with SharedWeights([("a", torch.ones(2))], "x") as shared:
        assert os.path.exists(shared.info["path"])
    assert not os.path.exists(shared.info["path"])

    program = (
        "import torch, time; from sandboxrl.rl.learner.weights import SharedWeights\n"
        "shared = SharedWeights([('a', torch.ones(1 << 20))], 'x')\n"
        "print(shared.info['path'], flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    path = process.stdout.readline().strip()
    assert os.stat(path).st_size > 4 << 20
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not os.path.exists(path)

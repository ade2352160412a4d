"""What happens to requests while weights change: steps in flight end first, memory goes and comes, KV may be kept."""

import asyncio
import collections
import os
from pathlib import Path

import pytest
import torch

from sandboxrl.envs.policy.protocol import Sampling
from sandboxrl.rl.learner.model import load_policy
from sandboxrl.rl.learner.weights import SharedWeights
from tests.rl.engines import running

pytestmark = pytest.mark.heavy
PROMPT = list(range(100, 160))
KV_BYTES = 64 << 20


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_sleep_gives_the_kv_cache_back_and_requests_go_on_afterwards(tmp_path):
    with running(tmp_path, sleeps=True) as one:

        async def sleep_and_wake():
            asking = asyncio.create_task(one.engine.generate(PROMPT, 800, Sampling(), 60, seed=1))
            await asyncio.sleep(0.3)
            before = resident_bytes()
            freed = await one.engine.sleep()
            asleep = resident_bytes()
            await asyncio.sleep(0.3)
            assert not asking.done()
            await one.engine.wake("weights")
            old = {name: p.detach().clone() for name, p in one.model.named_parameters()}
            one.change(seed=3)
            with SharedWeights(one.model.named_parameters(), "new") as shared:
                await one.engine.load_weights(shared.info, 1)
            await asyncio.sleep(0.1)
            assert not asking.done(), "without a KV cache nothing is drawn"
            await one.engine.wake("kv_cache")
            return before - asleep, freed, old, await asking

        gone, freed, old, sampled = one.run(sleep_and_wake())
        assert freed == KV_BYTES
        assert gone > 0.9 * KV_BYTES
        num_old = sampled.versions.count(0)
        assert 0 < num_old < 800
        assert sampled.versions == [0] * num_old + [1] * (len(sampled.ids) - num_old)
        new = type(sampled)(sampled.ids[num_old:], sampled.logprobs[num_old:], [], "length")
        assert one.mismatch([*PROMPT, *sampled.ids[:num_old]], new) < 1e-4
        for name, parameter in one.model.named_parameters():
            parameter.data = old[name]
        assert one.mismatch(PROMPT, type(sampled)(sampled.ids[:num_old], sampled.logprobs[:num_old], [], "")) < 1e-4


def test_steps_in_flight_end_before_weights_change(tmp_path):
    """vLLM's queue of steps, which only GPUs have, on the engine of a CPU: a step that was scheduled under the old
    weights must be told as theirs."""
    with running(tmp_path) as one:
        core = one.engine.llm.engine_core.engine_core
        core.batch_queue, core.batch_queue_size = collections.deque(maxlen=2), 2
        core.step_fn = core.step_with_batch_queue
        left_over = []

        async def update_while_many_run():
            asking = [asyncio.create_task(one.engine.generate(PROMPT, 200, Sampling(), 60, seed=s)) for s in range(6)]
            for version in range(1, 6):
                await asyncio.sleep(0.1)
                await one.engine.start_weight_update()
                left_over.append(len(core.batch_queue))
                one.change(seed=version)
                with SharedWeights(one.model.named_parameters(), str(version)) as shared:
                    await one.engine.update_weights(shared.info)
                await one.engine.finish_weight_update(version)
            return await asyncio.gather(*asking)

        answers = one.run(update_while_many_run())
        assert left_over == [0] * 5
        for sampled in answers:
            assert len(sampled.ids) == len(sampled.versions) == 200 or sampled.finish == "stop"
            assert sampled.versions == sorted(sampled.versions)
            last = sampled.versions.index(max(sampled.versions))
            tail = type(sampled)(sampled.ids[last:], sampled.logprobs[last:], [], "")
            if max(sampled.versions) == 5:
                assert one.mismatch([*PROMPT, *sampled.ids[:last]], tail) < 1e-4


@pytest.mark.parametrize("keep", [False, True])
def test_kv_is_kept_for_requests_that_run_and_for_no_others(tmp_path, keep):
    with running(tmp_path, keep_kv=keep) as one:

        async def draw_across():
            asking = asyncio.create_task(one.engine.generate(PROMPT, 400, Sampling(), 60, seed=1))
            await asyncio.sleep(0.2)
            one.change(seed=9)
            with SharedWeights(one.model.named_parameters(), "new") as shared:
                await one.engine.load_weights(shared.info, 1)
            fresh = await one.engine.generate(PROMPT, 40, Sampling(), 60, seed=2)
            return await asking, fresh

        sampled, fresh = one.run(draw_across())
        num_old = sampled.versions.count(0)
        assert 0 < num_old < len(sampled.ids)
        assert set(sampled.versions) == {0, 1}
        tail = type(sampled)(sampled.ids[num_old:], sampled.logprobs[num_old:], [], "")
        exact = one.mismatch([*PROMPT, *sampled.ids[:num_old]], tail) < 1e-4
        assert exact is not keep, "kept keys and values are those of the old weights"
        assert fresh.versions == [1] * len(fresh.ids)
        assert one.mismatch(PROMPT, fresh) < 1e-4, "a request that begins later sees nothing of them"


def test_a_bfloat16_engine_has_a_float32_head_and_agrees_with_a_bfloat16_learner(tmp_path):
    with running(tmp_path, dtype="bfloat16") as one:
        model = one.engine.llm.model_config
        assert (model.dtype, model.head_dtype) == (torch.bfloat16, torch.float32)
        policy = load_policy(tmp_path, 64).bfloat16()
        differences = []
        for seed in range(4):
            sampled = one.run(one.engine.generate(PROMPT, 100, Sampling(), 60, seed=seed))
            ids = torch.tensor([*PROMPT, *sampled.ids])
            trained = torch.arange(len(PROMPT), len(ids))
            with torch.no_grad():
                found = policy(ids, torch.arange(len(ids)), [len(ids)], trained)
            differences.append((found - torch.tensor(sampled.logprobs)).abs())
        assert torch.cat(differences).mean() < 0.01, "a run stops at 0.05"

"""The engine: what it draws, how requests end, and that its death is noticed at once."""

import asyncio
import threading
import time

import pytest

from sandboxrl.data.errors import InputError
from sandboxrl.envs.policy.protocol import EngineLost, Sampling
from sandboxrl.rl.engine.config import EngineConfig, check_runs_here, worker_environment
from sandboxrl.rl.learner.weights import SharedWeights
from tests.rl.engines import STOP, running
from tests.rl.tiny import VOCABULARY

pytestmark = pytest.mark.heavy

PROMPT = list(range(100, 160))
GREEDY = Sampling(temperature=0.0)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    with running(tmp_path_factory.mktemp("model")) as one:
        yield one


def test_parallel_lists_and_the_token_limit(engine):
    sampled = engine.run(engine.engine.generate(PROMPT, 20, Sampling(), 60, seed=3))
    assert (len(sampled.ids), len(sampled.logprobs), sampled.versions) == (20, 20, [0] * 20)
    assert sampled.finish == "length"
    assert all(value < 0 for value in sampled.logprobs)


def test_a_stop_token_ends_the_reply_and_stays_in_it(engine):
    async def draw():
        return await asyncio.gather(*(engine.engine.generate(PROMPT, 900, Sampling(), 60, seed=s) for s in range(40)))

    stopped = [one for one in engine.run(draw()) if one.finish == "stop"]
    assert stopped  # one in VOCABULARY tokens is STOP
    assert all(one.ids.count(STOP) == 1 and one.ids[-1] == STOP for one in stopped)


def test_seeds_and_greedy_repeat_whatever_else_runs(engine):
    async def beside(num_others, sampling, seed):
        others = [engine.engine.generate(PROMPT[:9], 40, Sampling(), 60) for _ in range(num_others)]
        return (await asyncio.gather(engine.engine.generate(PROMPT, 40, sampling, 60, seed=seed), *others))[0]

    seeded = [engine.run(beside(n, Sampling(), 11)).ids for n in (0, 5, 0)]
    assert seeded[0] == seeded[1] == seeded[2]
    assert engine.run(beside(0, Sampling(), 12)).ids != seeded[0]
    greedy = [engine.run(beside(n, GREEDY, None)).ids for n in (0, 5)]
    assert greedy[0] == greedy[1]


def test_seeded_requests_that_arrive_together_with_long_prompts(engine):
    """Their prompts exceed one step's budget; cutting a prompt into chunks would rewind a seeded generator."""

    async def draw():
        prompts = [[i, *range(900)] for i in range(8)]
        return await asyncio.gather(*(engine.engine.generate(p, 10, Sampling(), 60, seed=1) for p in prompts))

    assert all(len(one.ids) == 10 for one in engine.run(draw()))


def test_what_does_not_fit_into_the_model_is_cut(engine):
    long = [i % VOCABULARY for i in range(1020)]
    assert len(engine.run(engine.engine.generate(long, 100, GREEDY, 60)).ids) == 4
    full = engine.run(engine.engine.generate([1] * 1024, 100, GREEDY, 60))
    assert (full.ids, full.finish) == ([], "length")


def test_time_used_up_returns_what_was_drawn(engine):
    started = time.monotonic()
    sampled = engine.run(engine.engine.generate(PROMPT, 900, Sampling(), 0.2, seed=5))
    assert sampled.finish == "timeout"
    assert 0 < len(sampled.ids) == len(sampled.logprobs) == len(sampled.versions) < 900
    assert engine.mismatch(PROMPT, sampled) < 1e-4
    assert time.monotonic() - started < 1.0
    assert engine.run(engine.engine.generate(PROMPT, 5, Sampling(), 0.0)).finish == "timeout"


def test_cancelling_ends_the_request_in_the_engine(engine):
    async def cancel():
        asking = asyncio.create_task(engine.engine.generate(PROMPT, 900, Sampling(), 60))
        await asyncio.sleep(0.1)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await engine.engine.version()  # a round through the engine's job queue
        return asking.cancelled(), engine.engine.llm.get_num_unfinished_requests()

    assert engine.run(cancel()) == (True, 0)


@pytest.mark.parametrize("bad", [VOCABULARY, -1])
def test_a_token_outside_the_vocabulary_never_reaches_the_engine(engine, bad):
    with pytest.raises(ValueError, match="token ids must be in"):
        engine.run(engine.engine.generate([*PROMPT, bad], 5, Sampling(), 60))
    assert engine.run(engine.engine.generate(PROMPT, 5, Sampling(), 60)).finish == "length"


def test_a_failed_update_ends_the_engine_which_is_an_error_for_everything_in_flight_at_once(tmp_path):
    """Rather than leave it with half of its weights."""
    with running(tmp_path) as one:

        async def die():
            asking = [asyncio.create_task(one.engine.generate(PROMPT, 900, Sampling(), 60)) for _ in range(3)]
            await asyncio.sleep(0.1)
            assert not any(one.done() for one in asking)
            with SharedWeights(one.model.named_parameters(), "run 1") as shared:
                with pytest.raises(EngineLost, match="holds 'run 1', not 'run 2'"):
                    await one.engine.load_weights({**shared.info, "label": "run 2"}, 1)
            started = time.monotonic()
            outcomes = await asyncio.gather(*asking, return_exceptions=True)
            return outcomes, time.monotonic() - started

        outcomes, took_s = one.run(die())
        assert [type(outcome) for outcome in outcomes] == [EngineLost] * 3
        assert took_s < 5
        assert not one.engine.healthy
        with pytest.raises(EngineLost, match="died"):
            one.run(one.engine.generate(PROMPT, 5, Sampling(), 60))
        with pytest.raises(EngineLost):
            one.run(one.engine.version())


def test_an_engine_that_stops_answering_is_lost_within_its_deadline(tmp_path):
    with running(tmp_path) as one:
        engine, released = one.engine, threading.Event()
        engine.abort_grace_s, engine.call_timeout_s = 0.3, 0.6

        async def hang():
            stuck = asyncio.create_task(engine.call_ranks(lambda rank: released.wait()))
            await asyncio.sleep(0.1)
            started = time.monotonic()
            with pytest.raises(EngineLost, match="has not answered for 0.3 s"):
                await engine.generate(PROMPT, 5, Sampling(), 0.1)
            assert time.monotonic() - started < 2 and not engine.healthy
            with pytest.raises(EngineLost):
                await stuck

        try:
            one.run(hang())
        finally:
            released.set()


def test_a_model_that_is_not_there_is_an_error_and_no_hang(tmp_path):
    from sandboxrl.rl.engine.vllm import VllmEngine

    with pytest.raises(EngineLost):
        asyncio.run(VllmEngine(str(tmp_path / "none"), EngineConfig()).start())


def test_a_wrong_knob_is_one_clear_line():
    with pytest.raises(InputError, match="engine.dtype 'fp8'"):
        EngineConfig(dtype="fp8")
    with pytest.raises(InputError, match="engine.threads must be at least 1"):
        EngineConfig(threads=0)
    with pytest.raises(InputError, match="engine.tensor_parallel_size 2: it must be 1 on CPU"):
        check_runs_here(EngineConfig(tensor_parallel_size=2))
    with pytest.raises(InputError, match="engine.weight_backend nccl: valid with this build of vLLM are auto, shm"):
        check_runs_here(EngineConfig(weight_backend="nccl"))
    assert worker_environment(EngineConfig(threads=2))["OMP_NUM_THREADS"] == "2"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_our_norms_are_vllms_own_and_the_engine_takes_them(engine, dtype):
    """Also of slices of a larger tensor, as queries and keys are; the kernel knows nothing of strides."""
    import torch
    from vllm import ir

    from sandboxrl.rl.engine.vllm_cpu import FUSED_NORMS, fused_add_rms_norm, rms_norm

    assert ir.ops.rms_norm.get_priority()[0] == ir.ops.fused_add_rms_norm.get_priority()[0] == FUSED_NORMS
    wide = torch.randn(5, 4, 96, dtype=getattr(torch, dtype))
    x, weight = wide[..., 32:64], torch.rand(32, dtype=wide.dtype)
    expected = ir.ops.rms_norm.impls["native"].impl_fn(x, weight, 1e-6)
    torch.testing.assert_close(rms_norm.impl_fn(x, weight, 1e-6), expected)
    flat, residual = x.contiguous(), torch.randn(5, 4, 32, dtype=wide.dtype)
    expected = ir.ops.fused_add_rms_norm.impls["native"].impl_fn(flat.clone(), residual.clone(), weight, 1e-6)
    torch.testing.assert_close(fused_add_rms_norm.impl_fn(flat, residual, weight, 1e-6), expected)
    assert not fused_add_rms_norm.supports_args(x, residual, weight, 1e-6)
    assert not rms_norm.supports_args(x[..., :30], weight[:30], 1e-6), "the kernel ends the process"

"""What vLLM is told, on a GPU and without one; needs neither."""

import pytest

from sandboxrl.data.errors import InputError
from sandboxrl.rl.engine.config import EngineConfig, arguments, check_runs_here


def test_on_a_gpu_it_is_fast_and_agrees_with_the_learner():
    told = arguments("model", EngineConfig(), cpu=False)
    assert told["dtype"] == "bfloat16"
    assert told["hf_overrides"] == {"head_dtype": "float32"}
    assert told["enforce_eager"] is False
    assert told["async_scheduling"] is True
    assert told["enable_chunked_prefill"] is True
    assert told["max_num_batched_tokens"] == 16_384
    assert told["kv_cache_memory_bytes"] is None
    assert told["enable_sleep_mode"] is False
    assert arguments("model", EngineConfig(sleeps=True), cpu=False)["enable_sleep_mode"] is True
    assert arguments("model", EngineConfig(max_num_batched_tokens=4096), cpu=False)["max_num_batched_tokens"] == 4096
    assert arguments("model", EngineConfig(enforce_eager=True), cpu=False)["enforce_eager"] is True


def test_on_a_cpu_nothing_is_what_a_cpu_cannot_do():
    told = arguments("model", EngineConfig(max_model_len=4096), cpu=True)
    assert told["dtype"] == "float32"
    assert "hf_overrides" not in told, "float32 throughout needs no other head"
    assert told["enforce_eager"] is True
    assert told["async_scheduling"] is False
    assert told["enable_chunked_prefill"] is False
    assert told["max_num_batched_tokens"] == 4096
    assert told["enable_sleep_mode"] is False
    assert arguments("model", EngineConfig(dtype="bfloat16"), cpu=True)["hf_overrides"] == {"head_dtype": "float32"}


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"gpu_memory_utilization": 0.0}, "gpu_memory_utilization must lie in"),
        ({"max_num_batched_tokens": -1}, "max_num_batched_tokens must not be negative"),
        ({"keep_kv": True, "sleeps": True}, "engine.keep_kv: has no effect where the engine sleeps"),
    ],
)
def test_what_has_no_meaning_is_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        EngineConfig(**wrong)


@pytest.mark.heavy
def test_a_knob_for_gpus_is_refused_on_a_cpu():
    with pytest.raises(InputError, match="max_num_batched_tokens: has no effect on CPU"):
        check_runs_here(EngineConfig(max_num_batched_tokens=4096))

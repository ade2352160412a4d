"""Every field, call and constant of vLLM that the GPU path relies on is there, in the build for GPUs too.

`SANDBOXRL_VLLM_WHEEL` names that wheel; it can be read on a machine without a GPU:

    pip download --no-deps vllm==0.32.0 -d FOLDER
    SANDBOXRL_VLLM_WHEEL=FOLDER/vllm-0.32.0-….whl pytest tests/rl/engine/test_conformance.py
"""

import importlib.util
import os
from pathlib import Path

import pytest

from tests.rl.engine.conformance import RELIED_ON, Sources, problems

WHEEL = os.environ.get("SANDBOXRL_VLLM_WHEEL", "")


def installed() -> Path:
    """The folder that holds the installed `vllm/`, of whichever build: the sources of both are the same."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        pytest.skip("vLLM is not installed")
    return Path(spec.origin).parents[1]


def test_the_installed_vllm_has_what_the_gpu_path_relies_on():
    assert problems(Sources(installed())) == []


def test_the_build_for_gpus_has_what_the_gpu_path_relies_on():
    if not WHEEL:
        pytest.skip("SANDBOXRL_VLLM_WHEEL names no wheel: pip download --no-deps vllm==0.32.0 -d FOLDER")
    assert problems(Sources(Path(WHEEL))) == []


@pytest.mark.parametrize(
    "file, old, new, named",
    [
        (
            "vllm/engine/arg_utils.py",
            "max_num_batched_tokens:",
            "max_tokens_in_batch:",
            "no field max_num_batched_tokens",
        ),
        ("vllm/engine/arg_utils.py", "hf_overrides:", "overrides:", "no field hf_overrides"),
        ("vllm/outputs.py", "weight_versions:", "versions:", "no field weight_versions"),
        ("vllm/v1/engine/llm_engine.py", "def wake_up", "def wake", "no function LLMEngine.wake_up"),
        ("vllm/v1/engine/llm_engine.py", "reset_running_requests", "reset_running", "takes no reset_running_requests"),
        ("vllm/v1/engine/core.py", "batch_queue", "queue", "does not say self.batch_queue"),
        ("vllm/v1/core/sched/interface.py", "PAUSED_ALL", "ALL_PAUSED", "PauseState does not say PAUSED_ALL"),
        ("vllm/config/model.py", '"processed_logprobs"', '"processed"', "does not say 'processed_logprobs'"),
        ("vllm/distributed/weight_transfer/base.py", "def finish_weight_update", "def end", "finish_weight_update"),
        ("vllm/distributed/weight_transfer/nccl_engine.py", "master_port:", "port:", "no field master_port"),
        ("vllm/config/scheduler.py", "= 2048", "= 8192", "DEFAULT_MAX_NUM_BATCHED_TOKENS: ClassVar[int] = 2048"),
    ],
)
def test_what_a_version_breaks_is_named(file, old, new, named):
    place = installed()
    text = (place / file).read_text()
    assert old in text
    found = problems(Sources(place, {file: text.replace(old, new)}))
    assert any(file in one and named in one for one in found), found


def test_a_file_that_is_gone_is_named(tmp_path):
    found = problems(Sources(tmp_path))
    assert len(found) == len(RELIED_ON)
    assert "vllm/engine/arg_utils.py: no such file" in found

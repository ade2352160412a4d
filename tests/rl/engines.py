"""A running VllmEngine on a tiny model, for tests: used from synchronous test functions, one at a time."""

import asyncio
import os
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3ForCausalLM

from sandboxrl.envs.policy.protocol import Sampled
from sandboxrl.rl.engine.config import EngineConfig, worker_environment
from sandboxrl.rl.engine.vllm import VllmEngine
from tests.rl.tiny import save, tiny_model

CONFIG = EngineConfig(max_model_len=1024, kv_cache_bytes=64 << 20)
STOP = 7


class Running:
    """An engine, the model it was loaded from, and the loop it lives on."""

    def __init__(self, model: Qwen3ForCausalLM, engine: VllmEngine) -> None:
        self.model, self.engine = model, engine
        self._loop = asyncio.new_event_loop()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self._loop.run_until_complete(work)

    def mismatch(self, prompt: Sequence[int], sampled: Sampled, temperature: float = 1.0) -> float:
        """Largest |log-prob(engine) - log-prob(model)| over the sampled tokens."""
        with torch.no_grad():
            logits = self.model(torch.tensor([[*prompt, *sampled.ids]])).logits[0, len(prompt) - 1 : -1]
        logprobs = (logits / temperature).log_softmax(-1)[range(len(sampled.ids)), sampled.ids]
        return float((logprobs - torch.tensor(sampled.logprobs)).abs().max())

    def change(self, seed: int, scale: float = 0.1) -> None:
        """Move every weight of the model."""
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.model.parameters():
            parameter.data += scale * parameter.std() * torch.randn(parameter.shape, generator=generator)

    def close(self) -> None:
        self.run(self.engine.stop())
        self._loop.close()


@contextmanager
def running(folder: Path, tied: bool = True, **changes: Any) -> Iterator[Running]:
    """With `changes` of its configuration."""
    config = replace(CONFIG, **changes)
    os.environ.update(worker_environment(config))
    model = tiny_model(tied)
    one = Running(model, VllmEngine(save(model, folder), config, stop_ids=[STOP]))
    try:
        one.run(one.engine.start())
        yield one
    finally:
        one.close()

"""vLLM: token ids in, token ids out, weights that change under it. Only its files import vllm."""

from sandboxrl.rl.engine.config import EngineConfig, on_cpu

__all__ = ["EngineConfig", "on_cpu"]

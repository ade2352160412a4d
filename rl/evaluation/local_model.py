"""A model folder as policies: one vLLM engine in a Ray actor each. Conversations, sandboxes and graders stay here."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from sandboxrl.data.errors import InputError
from sandboxrl.data.files import read_object
from sandboxrl.envs.policy.chat import ChatFormat, TokenPolicy, load_tokenizer
from sandboxrl.envs.policy.protocol import EngineLost, Policy, Sampled, Sampling
from sandboxrl.rl.cluster.connect import cause, connect
from sandboxrl.rl.engine.config import EngineConfig, check_runs_here, on_cpu, worker_environment
from sandboxrl.rl.engine.vllm import VllmEngine

START_TIMEOUT_S = 900.0
"""Loading a model may take minutes; a GPU that the machine does not have would be waited for without an end."""
STOP_TIMEOUT_S = 30.0


@ray.remote
class EngineActor:
    """A VllmEngine in a process of its own."""

    def __init__(self, model: str, config: EngineConfig, stop_ids: Sequence[int]) -> None:
        self._engine = VllmEngine(model, config, stop_ids)

    async def start(self) -> None:
        await self._engine.start()

    async def generate(
        self, ids: Sequence[int], max_tokens: int, sampling: Sampling, timeout_s: float, seed: int | None
    ) -> Sampled:
        return await self._engine.generate(ids, max_tokens, sampling, timeout_s, seed)

    async def stop(self) -> None:
        await self._engine.stop()


class RemoteEngine:
    """An `envs.policy.protocol.Engine` whose tokens come from an actor. An engine that dies is started again, a few
    times."""

    def __init__(self, model: str, config: EngineConfig, stop_ids: Sequence[int], max_restarts: int = 3) -> None:
        self._arguments = (model, config, stop_ids)
        self._restarts_left = max_restarts
        self._lock = asyncio.Lock()
        self._actor: Any = None

    async def start(self) -> None:
        """Raises EngineLost."""
        config = self._arguments[1]
        kind: Any = EngineActor  # what `ray.remote` made of the class
        actor = kind.options(
            num_cpus=0 if on_cpu() else 1,
            num_gpus=0 if on_cpu() else config.tensor_parallel_size,
            max_concurrency=4 * config.max_num_seqs + 16,
            runtime_env={"env_vars": worker_environment(config)},
        ).remote(*self._arguments)
        try:
            await asyncio.wait_for(actor.start.remote(), START_TIMEOUT_S)
        except (RayError, TimeoutError) as error:
            ray.kill(actor)
            raise EngineLost(f"the engine does not start: {cause(error)}") from error
        self._actor = actor

    async def generate(
        self, ids: Sequence[int], max_tokens: int, sampling: Sampling, timeout_s: float, seed: int | None = None
    ) -> Sampled:
        actor = self._actor
        reply = actor.generate.remote(list(ids), max_tokens, sampling, timeout_s, seed)
        try:
            found: Sampled = await reply
            return found
        except asyncio.CancelledError:
            ray.cancel(reply, recursive=False)
            raise
        except RayError as error:
            if isinstance(error, RayActorError | EngineLost):  # Ray's errors are also of the class raised in the actor
                await self._replace(actor)
            raise EngineLost(cause(error)) from error

    async def _replace(self, dead: Any) -> None:
        """A fresh engine for `dead`; the first of its conversations to notice starts it, the others wait."""
        async with self._lock:
            if self._actor is dead and self._restarts_left > 0:
                self._restarts_left -= 1
                ray.kill(dead)
                await self.start()

    async def stop(self) -> None:
        if self._actor is not None:
            with contextlib.suppress(TimeoutError, RayError):
                await asyncio.wait_for(self._actor.stop.remote(), STOP_TIMEOUT_S)
            ray.kill(self._actor)


def model_limit(config_file: Path) -> int:
    """The longest sequence that a model was made for, 0 where its config.json does not say. Raises InputError."""
    limit = read_object(config_file).get("max_position_embeddings") or 0
    if not isinstance(limit, int) or limit < 0:
        raise InputError(f"{config_file}: max_position_embeddings must be a whole number, not {limit!r}")
    return limit


@asynccontextmanager
async def local_policies(
    model_dir: str, workers: int, engine: EngineConfig, sampling: Sampling
) -> AsyncIterator[list[Policy]]:
    """So many engines of a Hugging Face folder, on Ray, for conversations of at most `engine.max_model_len` tokens, or
    the model's own limit if that is smaller. Raises InputError, EngineLost."""
    folder = str(Path(model_dir).resolve())
    config_file = Path(folder, "config.json")
    if not config_file.is_file():
        raise InputError(f"{model_dir} is not a Hugging Face model folder: it has no config.json")
    check_runs_here(engine)
    wanted = engine.max_model_len
    config = replace(engine, max_model_len=min(wanted, model_limit(config_file) or wanted))
    chat_format = ChatFormat(load_tokenizer(folder))
    connect("")
    engines = [RemoteEngine(folder, config, chat_format.stop_ids) for _ in range(workers)]
    try:
        await asyncio.gather(*(engine.start() for engine in engines))
        yield [TokenPolicy(engine, chat_format, sampling) for engine in engines]
    finally:
        await asyncio.gather(*(engine.stop() for engine in engines), return_exceptions=True)
        ray.shutdown()

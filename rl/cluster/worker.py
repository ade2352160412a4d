"""The Ray actor that samples trajectories: one vLLM engine, a pool of sandboxes, one rollout loop."""

import asyncio
import os
from collections.abc import Sequence
from typing import Any

import ray

from sandboxrl.data.plugin import Code
from sandboxrl.data.prompt.arms import Arm
from sandboxrl.data.task import Task
from sandboxrl.envs.grading.grader import Grader, GraderConfig
from sandboxrl.envs.policy.chat import ChatFormat, TokenPolicy, load_tokenizer
from sandboxrl.envs.policy.protocol import Sampling
from sandboxrl.envs.rollout import Environment, RolloutLimits, rollout
from sandboxrl.envs.sandbox.pool import Pool, open_backend
from sandboxrl.envs.sandbox.protocol import SandboxConfig
from sandboxrl.envs.tools.tool_set import tool_set
from sandboxrl.envs.trajectory import Tokens, Trajectory
from sandboxrl.rl.cluster.hosts import RemoteBackend
from sandboxrl.rl.engine.config import EngineConfig
from sandboxrl.rl.engine.vllm import VllmEngine
from sandboxrl.rl.learner.stream import open_memory, receive

PROBE_TIMEOUT_S = 120.0


def _open_pool(config: SandboxConfig) -> Pool:
    """Sandboxes of this node, or of those that offer them. Remote ones are started when they are wanted: idle ones kept
    ahead by one worker could take the places that another waits for."""
    if config.remote:
        return Pool(RemoteBackend.open(config), warm=0, parallel_starts=config.parallel_starts)
    return Pool(open_backend(config), config.warm, config.parallel_starts)


@ray.remote
class RolloutWorker:
    """Samples many trajectories at a time. Give it `worker_environment` as its `runtime_env`.

    Killed with SIGKILL it leaves nothing behind: the engine is a part of this process, and its sandboxes and grading
    processes die with it.
    """

    def __init__(
        self,
        model: str,
        engine: EngineConfig,
        sandbox: SandboxConfig,
        limits: RolloutLimits,
        arm: Arm,
        tool_set: str = "",
        tools: Sequence[str] = (),
        call_format: str = "auto",
        mode: str = "sandbox",
        chat_template: str = "",
        grader: GraderConfig | None = None,
        code: Code | None = None,
    ) -> None:
        """`model` is a Hugging Face folder; `arm` a prompt arm, `tool_set` (empty: the arm's own) the tools it offers;
        `chat_template` replaces the model's own. In mode `llm` there are no sandboxes. All but the model travels with
        the arguments: a worker on another node does not see the driver's files."""
        self._model, self._engine_config, self._sandbox, self._limits = model, engine, sandbox, limits
        self._arm, self._tool_set, self._call_format = arm, tool_set, call_format
        self._tools, self._code = tools, code
        self._mode, self._chat_template, self._grader_config = mode, chat_template, grader

    async def start(self, version: int = 0) -> None:
        """Load the model as weight version `version` and open the sandboxes. Raises EngineLost, InputError,
        BackendUnavailable."""
        if self._code is not None:
            self._code.install()
        tokenizer = load_tokenizer(self._model)
        if self._chat_template:
            tokenizer.chat_template = self._chat_template
        self._format = ChatFormat(tokenizer, self._call_format)
        self._engine = VllmEngine(self._model, self._engine_config, self._format.stop_ids)
        self._grader = Grader(self._grader_config)
        self._pool = None
        tools = None
        if self._mode == "sandbox":
            tools = tool_set(self._tool_set or self._arm.tool_set, self._tools)
            self._pool = _open_pool(self._sandbox)
            await self._pool.fill()
        self._environment = Environment(self._arm, self._mode, self._limits, tools, self._pool, self._grader)
        await self._engine.start(version)

    async def sample(self, task: Task, seed: int, sampling: Sampling) -> Trajectory:
        """One trajectory, by `envs.rollout`. What the machine loses is told by its StopReason."""
        return await rollout(task, TokenPolicy(self._engine, self._format, sampling), self._environment, seed)

    async def probe(self, sampling: Sampling, num_tokens: int = 16) -> Tokens:
        """A few tokens drawn with the weights of this moment, for the learner to compare log-probabilities."""
        prompt = self._format.prompt_ids([{"role": "user", "content": "Count the files."}])
        sampled = await self._engine.generate(prompt, num_tokens, sampling, PROBE_TIMEOUT_S, seed=0)
        num_prompt, num_sampled = len(prompt), len(sampled.ids)
        return Tokens(
            ids=prompt + sampled.ids,
            mask=[0] * num_prompt + [1] * num_sampled,
            logprobs=[0.0] * num_prompt + sampled.logprobs,
            versions=[-1] * num_prompt + sampled.versions,
        )

    async def load_weights(self, info: dict[str, Any], version: int) -> None:
        await self._engine.load_weights(info, version)

    async def receive_weights(self, stream: dict[str, Any], label: str, version: int) -> None:
        """Weights that come over TCP: received beside the engine's work, then loaded like those of a shared file."""
        file, info = open_memory(label)
        with file:
            await asyncio.to_thread(receive, stream, file)
            file.flush()
            await self._engine.load_weights(info, version)

    async def init_weight_transfer(self, info: dict[str, Any]) -> None:
        await self._engine.init_weight_transfer(info)

    async def close_weight_transfer(self) -> None:
        await self._engine.close_weight_transfer()

    async def start_weight_update(self) -> None:
        await self._engine.start_weight_update()

    async def update_weights(self, info: dict[str, Any]) -> None:
        await self._engine.update_weights(info)

    async def finish_weight_update(self, version: int) -> None:
        await self._engine.finish_weight_update(version)

    async def num_ranks(self) -> int:
        return self._engine.num_ranks()

    async def version(self) -> int:
        return await self._engine.version()

    async def pid(self) -> int:
        """Of the process that holds the engine."""
        return os.getpid()

    async def healthy(self) -> bool:
        """False: the engine is lost and this worker must be replaced."""
        return self._engine.healthy

    async def stop(self) -> None:
        """End the engine, the sandboxes and the grading processes."""
        try:
            await self._engine.stop()
            await self._grader.close()
        finally:
            if self._pool is not None:
                await self._pool.close()

"""The Ray actor that samples trajectories: one vLLM engine, a pool of sandboxes, one rollout loop."""

import asyncio
import itertools
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray

from sandboxrl.data.errors import one_line
from sandboxrl.data.plugin import Code
from sandboxrl.data.prompt.arms import Arm, load_arm
from sandboxrl.data.task import Task
from sandboxrl.envs.grading.grader import Grader, GraderConfig
from sandboxrl.envs.policy.chat import ChatFormat, TokenPolicy, load_tokenizer
from sandboxrl.envs.policy.protocol import Sampling
from sandboxrl.envs.rollout import Environment, RolloutLimits, Tools, rollout
from sandboxrl.envs.sandbox.pool import Pool, open_backend
from sandboxrl.envs.sandbox.protocol import Sandbox, SandboxConfig
from sandboxrl.envs.tools.tool_set import tool_set
from sandboxrl.envs.trajectory import Observation, Tokens, ToolCall, Trajectory, Turn
from sandboxrl.rl.cluster.connect import end_with_raylet, whereabouts
from sandboxrl.rl.cluster.hosts import RemoteBackend
from sandboxrl.rl.config import Recipe
from sandboxrl.rl.engine.config import EngineConfig
from sandboxrl.rl.engine.vllm import VllmEngine
from sandboxrl.rl.hub_model import local_folder
from sandboxrl.rl.learner.stream import open_memory, receive
from sandboxrl.rl.own_code import code_of

PROBE_TIMEOUT_S = 120.0
SHOWN = 3
"""Trajectories in the status of a worker."""
COMMAND_CHARS = 160
"""Of a command in the status."""


def _open_pool(config: SandboxConfig) -> Pool:
    """Sandboxes of this node, or of those that offer them. Remote ones are started when they are wanted: idle ones kept
    ahead by one worker could take the places that another waits for."""
    if config.remote:
        return Pool(RemoteBackend.open(config), warm=0, parallel_starts=config.parallel_starts)
    return Pool(open_backend(config), config.warm, config.parallel_starts)


@dataclass
class _Doing:
    """A trajectory under way, for whoever asks what takes so long."""

    task: str
    since: float = field(default_factory=time.monotonic)
    turns: int = 0
    command: str = ""
    command_since: float = 0.0

    def count(self, turn: Turn) -> None:
        self.turns += 1

    def shown(self) -> dict[str, Any]:
        now = time.monotonic()
        doing = {"command": self.command, "command_s": round(now - self.command_since, 1)} if self.command else {}
        return {"task": self.task, "for_s": round(now - self.since, 1), "turns": self.turns, **doing}


class _Followed:
    """A tool set of one trajectory, with the same face, that says which call it is at."""

    def __init__(self, tools: Tools, doing: _Doing) -> None:
        self._tools, self._doing = tools, doing
        self.no_call_message, self.schemas = tools.no_call_message, tools.schemas

    async def run(self, call: ToolCall, sandbox: Sandbox, timeout_s: float) -> Observation:
        words = f"{call.name} {' '.join(map(str, call.arguments.values()))}"
        self._doing.command, self._doing.command_since = one_line(words, COMMAND_CHARS), time.monotonic()
        try:
            return await self._tools.run(call, sandbox, timeout_s)
        finally:
            self._doing.command = ""


@dataclass(frozen=True)
class WorkerSpec:
    """What a rollout worker needs. All but the model travels with it: another node does not see the driver's files."""

    model: str
    """A Hugging Face folder, or what `rl.hub_model.portable` made of one."""
    engine: EngineConfig
    sandbox: SandboxConfig
    limits: RolloutLimits
    arm: Arm
    tool_set: str = ""
    """Empty: the arm's own."""
    tools: Sequence[str] = ()
    call_format: str = "auto"
    mode: str = "sandbox"
    """In mode `llm` there are no sandboxes."""
    chat_template: str = ""
    """The text that replaces the model's own template."""
    grader: GraderConfig | None = None
    code: Code | None = None
    """The user's own."""

    @staticmethod
    def of(recipe: Recipe, model: str) -> "WorkerSpec":
        """That of a run. Reads the files that the recipe names, and makes paths absolute: a worker's working directory
        may be another one."""
        arm, template = load_arm(recipe.prompt), recipe.model.chat_template
        return WorkerSpec(
            model=model,
            engine=recipe.engine_of_run,
            sandbox=replace(recipe.sandbox, rootfs=_absolute(recipe.sandbox.rootfs)),
            limits=recipe.limits,
            arm=arm,
            tool_set=recipe.tool_set,
            tools=recipe.tools,
            call_format=recipe.model.call_format,
            mode=recipe.mode,
            chat_template=template and Path(template).read_text(),
            grader=replace(recipe.grader, ifbench=_absolute(recipe.grader.ifbench)),
            code=code_of(recipe),
        )


def _absolute(path: str) -> str:
    """Empty stays empty."""
    return path and str(Path(path).resolve())


@ray.remote
class RolloutWorker:
    """Samples many trajectories at a time. Give it `worker_environment` as its `runtime_env`.

    Killed with SIGKILL it leaves nothing behind: the engine is a part of this process, and its sandboxes and grading
    processes die with it.
    """

    def __init__(self, spec: WorkerSpec) -> None:
        end_with_raylet()
        self._spec = spec
        self._doing: dict[int, _Doing] = {}
        self._numbers = itertools.count()

    async def start(self, version: int = 0) -> dict[str, Any]:
        """Load the model as weight version `version` and open the sandboxes; returns `whereabouts`, with the `seconds`
        of each stage. Raises EngineLost, InputError, BackendUnavailable."""
        if self._spec.code is not None:
            self._spec.code.install()
        seconds, started = {}, time.monotonic()
        folder = local_folder(self._spec.model)
        tokenizer = load_tokenizer(folder)
        if self._spec.chat_template:
            tokenizer.chat_template = self._spec.chat_template
        self._format = ChatFormat(tokenizer, self._spec.call_format)
        self._engine = VllmEngine(folder, self._spec.engine, self._format.stop_ids)
        self._pool = None
        tools = None
        if self._spec.mode == "sandbox":
            tools = tool_set(
                self._spec.tool_set or self._spec.arm.tool_set, self._spec.tools, self._spec.sandbox.persist_shell
            )
            self._pool = _open_pool(self._spec.sandbox)
            await self._pool.fill()
            seconds["sandboxes"] = time.monotonic() - started
        self._grader = Grader(self._spec.grader, pool=self._pool)
        self._environment = Environment(
            self._spec.arm, self._spec.mode, self._spec.limits, tools, self._pool, self._grader
        )
        started = time.monotonic()
        await self._engine.start(version)
        return whereabouts() | {"seconds": seconds | {"engine": time.monotonic() - started}}

    async def sample(self, task: Task, seed: int, sampling: Sampling) -> Trajectory:
        """One trajectory, by `envs.rollout`. Its StopReason says what the machine lost."""
        environment, doing, number = self._environment, _Doing(task.id), next(self._numbers)
        if environment.tools is not None:
            environment = replace(environment, tools=_Followed(environment.tools, doing))
        self._doing[number] = doing
        try:
            policy = TokenPolicy(self._engine, self._format, sampling)
            return await rollout(task, policy, environment, seed, on_turn=doing.count)
        finally:
            del self._doing[number]

    async def status(self) -> dict[str, Any]:
        """For `status.json`: what is going on here, with the trajectories that have taken longest."""
        oldest = sorted(self._doing.values(), key=lambda doing: doing.since)[:SHOWN]
        return {
            "trajectories": len(self._doing),
            "engine_requests": self._engine.num_requests,
            "slowest": [doing.shown() for doing in oldest],
        }

    async def probe(self, sampling: Sampling, num_tokens: int = 16) -> Tokens:
        """A few tokens drawn with the weights of this moment, for the learner to compare log-probabilities."""
        prompt = self._format.prompt_ids([{"role": "user", "content": "Count the files."}])
        sampled = await self._engine.generate(prompt, num_tokens, sampling, PROBE_TIMEOUT_S, seed=0)
        num_prompt, num_sampled = len(prompt), len(sampled.ids)
        return Tokens(
            ids=np.array(prompt + sampled.ids),
            mask=np.array([0] * num_prompt + [1] * num_sampled),
            logprobs=np.array([0.0] * num_prompt + sampled.logprobs),
            versions=np.array([-1] * num_prompt + sampled.versions),
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

    async def sleep(self) -> int:
        """Freeze what is being drawn and give the engine's memory back; returns the bytes."""
        return await self._engine.sleep()

    async def wake(self, part: str) -> None:
        await self._engine.wake(part)

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

"""What our GPU path relies on in vLLM, read from its sources: nothing of vLLM is imported or run."""

import ast
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from sandboxrl.rl.engine.config import EngineConfig, arguments


@dataclass
class Sources:
    """vLLM's files, from a wheel or a folder that holds `vllm/`. `changed` replaces the text of some."""

    place: Path
    changed: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def _archive(self) -> zipfile.ZipFile | None:
        return zipfile.ZipFile(self.place) if self.place.is_file() else None

    def text(self, file: str) -> str:
        if file in self.changed:
            return self.changed[file]
        if self._archive is not None:
            return self._archive.read(file).decode()
        return (self.place / file).read_text()

    def find(self, file: str, name: str) -> ast.AST | None:
        """The class or function `A.b` of a file."""
        found: ast.AST | None = ast.parse(self.text(file))
        for part in name.split("."):
            found = next((node for node in ast.iter_child_nodes(found) if getattr(node, "name", None) == part), None)
            if found is None:
                return None
        return found


@dataclass(frozen=True)
class Fields:
    """Annotated fields of a class, or its bases in the same file."""

    file: str
    name: str
    wanted: tuple[str, ...]

    def problems(self, sources: Sources) -> list[str]:
        have: set[str] = set()
        names = [self.name]
        while names:
            node = sources.find(self.file, names.pop())
            if isinstance(node, ast.ClassDef):
                have |= {
                    n.target.id for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
                }
                have |= {
                    t.id for n in node.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)
                }
                names += [base.id for base in node.bases if isinstance(base, ast.Name)]
        return [f"{self.file}: {self.name} has no field {one}" for one in self.wanted if one not in have]


@dataclass(frozen=True)
class Takes:
    """Parameters that a function takes by these names, in this order where `ordered` (they are given by position)."""

    file: str
    name: str
    wanted: tuple[str, ...] = ()
    ordered: bool = False

    def problems(self, sources: Sources) -> list[str]:
        node = sources.find(self.file, self.name)
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            return [f"{self.file}: no function {self.name}"]
        by_position = [one.arg for one in (*node.args.posonlyargs, *node.args.args) if one.arg not in ("self", "cls")]
        if self.ordered and tuple(by_position[: len(self.wanted)]) != self.wanted:
            return [f"{self.file}: {self.name} takes {by_position}, not {', '.join(self.wanted)} first"]
        have = {*by_position, *(one.arg for one in node.args.kwonlyargs)}
        return [f"{self.file}: {self.name} takes no {one}" for one in self.wanted if one not in have]


@dataclass(frozen=True)
class Says:
    """Text that stands in a class or function: an attribute that is set, a constant, a value of a Literal."""

    file: str
    name: str
    wanted: tuple[str, ...]

    def problems(self, sources: Sources) -> list[str]:
        node = sources.find(self.file, self.name) if self.name else ast.parse(sources.text(self.file))
        if node is None:
            return [f"{self.file}: no {self.name}"]
        text = ast.unparse(node)
        where = self.name or "the file"
        return [f"{self.file}: {where} does not say {one}" for one in self.wanted if one not in text]


LLM, CORE, CLIENT = "vllm/v1/engine/llm_engine.py", "vllm/v1/engine/core.py", "vllm/v1/engine/core_client.py"
WORKER, SCHEDULER = "vllm/v1/worker/gpu_worker.py", "vllm/v1/core/sched/scheduler.py"
TRANSFER = "vllm/distributed/weight_transfer"
ENGINE_ARGUMENTS = (
    *arguments("", EngineConfig(sleeps=True, dtype="bfloat16"), cpu=False),
    *arguments("", EngineConfig(), cpu=True),
    "weight_transfer_config",
    "ir_op_priority",
)
RELIED_ON = (
    Fields("vllm/engine/arg_utils.py", "EngineArgs", ENGINE_ARGUMENTS),
    Says("vllm/engine/arg_utils.py", "EngineArgs", ("DEFAULT_MAX_NUM_BATCHED_TOKENS",)),
    Says("vllm/config/scheduler.py", "SchedulerConfig", ("DEFAULT_MAX_NUM_BATCHED_TOKENS: ClassVar[int] = 2048",)),
    Says("vllm/config/model.py", "", ("'processed_logprobs'", "config, 'head_dtype'")),
    Takes("vllm/config/model.py", "ModelConfig.head_dtype"),
    Fields("vllm/config/model.py", "ModelConfig", ("enable_sleep_mode", "logprobs_mode", "generation_config")),
    Says("vllm/config/weight_transfer.py", "WeightTransferConfig", ("'nccl'", "'ipc'")),
    Fields("vllm/config/kernel.py", "IrOpPriorityConfig", ("rms_norm", "fused_add_rms_norm")),
    # requests
    Takes(LLM, "LLMEngine.from_engine_args", ("engine_args",), ordered=True),
    Takes(LLM, "LLMEngine.add_request", ("request_id", "prompt", "params"), ordered=True),
    Takes(LLM, "LLMEngine.abort_request", ("request_ids", "internal")),
    Takes(LLM, "LLMEngine.step"),
    Takes(LLM, "LLMEngine.has_unfinished_requests"),
    Fields(
        "vllm/sampling_params.py",
        "SamplingParams",
        (
            *("max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "stop_token_ids"),
            *("ignore_eos", "logprobs", "flat_logprobs", "detokenize", "output_kind"),
        ),
    ),
    Fields("vllm/sampling_params.py", "RequestOutputKind", ("FINAL_ONLY",)),
    Fields("vllm/outputs.py", "CompletionOutput", ("token_ids", "logprobs", "finish_reason", "weight_versions")),
    Fields("vllm/outputs.py", "WeightVersionSpan", ("version", "start", "end")),
    Takes(
        "vllm/v1/engine/output_processor.py",
        "RequestState.make_request_output",
        ("new_token_ids", "pooling_output", "finish_reason", "stop_reason"),
        ordered=True,
    ),
    Says("vllm/v1/engine/output_processor.py", "OutputProcessor", ("self.request_states",)),
    Fields("vllm/v1/engine/__init__.py", "FinishReason", ("ABORT",)),
    Says("vllm/inputs/engine.py", "", ("cache_salt",)),
    # weights change between two steps
    Takes(LLM, "LLMEngine.collective_rpc", ("method", "args", "kwargs")),
    Takes(LLM, "LLMEngine.reset_prefix_cache", ("reset_running_requests",)),
    Takes(LLM, "LLMEngine.set_weight_version", ("weight_version",), ordered=True),
    Takes(LLM, "LLMEngine.get_weight_version"),
    Says(CLIENT, "InprocClient", ("self.engine_core = EngineCore", "self.engine_core.step_fn()")),
    Says(CORE, "EngineCore", ("self.batch_queue", "self.scheduler", "self.step_with_batch_queue")),
    Says("vllm/v1/core/sched/interface.py", "PauseState", ("PAUSED_ALL", "UNPAUSED")),
    Takes(SCHEDULER, "Scheduler.set_pause_state", ("pause_state",), ordered=True),
    Says(
        SCHEDULER,
        "Scheduler.get_num_unfinished_requests",
        ("if self._pause_state == PauseState.PAUSED_ALL:\n        return 0",),
    ),
    Says(
        SCHEDULER, "Scheduler.schedule", ("if self._pause_state == PauseState.PAUSED_ALL:\n        token_budget = 0",)
    ),
    Says("vllm/v1/executor/uniproc_executor.py", "UniProcExecutor.supports_async_scheduling", ("return True",)),
    Says("vllm/v1/executor/multiproc_executor.py", "MultiprocExecutor.supports_async_scheduling", ("return True",)),
    # sleep and wake
    Takes(LLM, "LLMEngine.sleep", ("level", "mode")),
    Takes(LLM, "LLMEngine.wake_up", ("tags",), ordered=True),
    Says(CORE, "EngineCore.pause_scheduler", ("PauseState.PAUSED_ALL if mode == 'keep'",)),
    Says(CORE, "EngineCore.wake_up", ("self.resume_scheduler()",)),
    Takes(WORKER, "Worker.sleep", ("level",)),
    Takes(WORKER, "Worker.wake_up", ("tags",)),
    Says(WORKER, "Worker.init_device", ("self.device = torch.device",)),
    Says("vllm/v1/executor/abstract.py", "", ("SLEEP_TAGS = frozenset(('weights', 'kv_cache'))",)),
    Says("vllm/device_allocator/cumem.py", "CuMemAllocator.wake_up", ("data.tag not in DEFERRABLE_TAGS",)),
    # weight transfer, the engine's end
    Takes(WORKER, "Worker.init_weight_transfer_engine", ("init_info",)),
    Takes(WORKER, "Worker.start_weight_update"),
    Takes(WORKER, "Worker.update_weights", ("update_info",)),
    Takes(WORKER, "Worker.finish_weight_update"),
    Takes(WORKER, "Worker.shutdown_weight_transfer_engine"),
    # and the learner's
    Takes(f"{TRANSFER}/factory.py", "WeightTransferTrainerFactory.trainer_init", ("init_info", "client", "source")),
    Fields(f"{TRANSFER}/base.py", "ParamMeta", ("name", "dtype", "shape")),
    Takes(f"{TRANSFER}/base.py", "WeightSource.metadata"),
    Takes(f"{TRANSFER}/base.py", "WeightSource.__iter__"),
    Takes(f"{TRANSFER}/base.py", "VLLMWeightSyncClient.init_weight_transfer_engine", ("init_info",), ordered=True),
    Takes(f"{TRANSFER}/base.py", "VLLMWeightSyncClient.start_weight_update"),
    Takes(f"{TRANSFER}/base.py", "VLLMWeightSyncClient.update_weights", ("update_info",), ordered=True),
    Takes(f"{TRANSFER}/base.py", "VLLMWeightSyncClient.finish_weight_update", ("weight_version",)),
    Takes(f"{TRANSFER}/base.py", "TrainerWeightTransferEngine.send_weights"),
    Takes(f"{TRANSFER}/base.py", "TrainerWeightTransferEngine.shutdown"),
    Fields(f"{TRANSFER}/base.py", "TrainerInitInfo", ("rank",)),
    Fields(
        f"{TRANSFER}/nccl_engine.py", "NCCLTrainerInitInfo", ("master_address", "master_port", "world_size", "packed")
    ),
    Says(f"{TRANSFER}/nccl_engine.py", "", ("self.model_update_group", "rank_offset")),
    Takes("vllm/distributed/device_communicators/pynccl.py", "PyNcclCommunicator.destroy"),
    Fields(f"{TRANSFER}/ipc_engine.py", "IPCTrainerInitInfo", ("packed",)),
    # the environment of a worker
    Says("vllm/envs.py", "", ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_NO_USAGE_STATS", "VLLM_LOGGING_LEVEL")),
)


def problems(sources: Sources) -> list[str]:
    """What our GPU path relies on and these sources do not have, each by name."""
    found = []
    for one in RELIED_ON:
        try:
            found += one.problems(sources)
        except (KeyError, FileNotFoundError):
            found.append(f"{one.file}: no such file")
    return found

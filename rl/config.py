"""A recipe: every knob of a run, typed, checked when it is loaded and written beside the results.

    load_recipe("recipes/tiny.yaml", ["steps=5", "loss.clip_low=0.1"]) -> Recipe

A recipe file is plain YAML. `extends: other.yaml` takes another recipe as its base. An unknown key, a value of a wrong
type or a combination that cannot work is an InputError that names the key and the nearest valid one.
"""

import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

import sandboxrl
from sandboxrl.data.errors import InputError, nearest, one_line
from sandboxrl.data.files import write_whole
from sandboxrl.envs.grading.grader import GraderConfig
from sandboxrl.envs.policy.protocol import Sampling
from sandboxrl.envs.rollout import RolloutLimits
from sandboxrl.envs.sandbox.protocol import SandboxConfig
from sandboxrl.rl.engine.config import EngineConfig, on_cpu
from sandboxrl.rl.grpo import LossConfig
from sandboxrl.rl.guards import GuardsConfig
from sandboxrl.rl.keys import anchored_layer, merged, read_layers, read_overrides
from sandboxrl.rl.learner.config import LearnerConfig
from sandboxrl.rl.watch import WatchConfig

T = TypeVar("T")


@dataclass(frozen=True)
class ModelConfig:
    path: str = ""
    """Hugging Face folder; or `start:tiny`, the small model that ships; `start:tiny@7` makes another one in minutes."""
    call_format: Literal["auto", "hermes", "qwen3_coder"] = "auto"
    """How the model writes tool calls; `auto` reads it off the chat template."""
    chat_template: str = ""
    """A jinja file to use instead of the model's own chat template."""


@dataclass(frozen=True)
class TasksConfig:
    train: Any = None
    """Sources to train on: a source name or file, or a mapping of names to sources; `weight` sets the mixture."""
    eval: Any = None
    """Sets to evaluate on, in the same form; each is scored by itself."""
    max_prompt_tokens: int = 16_384
    """Training tasks with a longer rendered prompt are left out, and listed."""


@dataclass(frozen=True)
class EvaluationConfig:
    every: int = 10
    """Steps between evaluations; 0: none during training."""
    before: bool = True
    """Evaluate before the first step."""
    after: bool = True
    """Evaluate after the last step."""
    repeats: int = 1
    """Trajectories per task."""
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True)
class CheckpointConfig:
    every: int = 10
    """Steps between checkpoints; 0: only the last step."""
    keep: int = 2
    """Newest checkpoints kept; 0: all."""
    keep_every: int = 0
    """Checkpoints of steps that are a multiple of this stay as well; 0: none do."""
    best: str = ""
    """An evaluation set, for example heldout: the checkpoint that scores highest on it stays as well, and `export
    --best` takes it. Every evaluated step is then saved. Empty: none is the best."""


@dataclass(frozen=True)
class WandbConfig:
    mode: Literal["disabled", "offline", "online"] = "disabled"
    """`offline` writes into the run folder, to be synchronized later."""
    project: str = "sandboxrl"
    """Name of the wandb project."""


@dataclass(frozen=True)
class Recipe:
    CARRIED_OUT: ClassVar = frozenset(
        {
            "name", "out", "steps", "retries", "max_lost_groups", "max_logprob_mismatch", "save_trajectories_every",
            "num_workers", "placement", "cluster", "evaluation", "checkpoint", "wandb", "tensorboard", "guards",
            "watch",
        }
    )  # fmt: skip
    """Keys and whole sections of how a run is carried out: they may change when it goes on, and the log says from which
    step. Every other key is part of the experiment, and changing it makes another one. A section names its own such
    keys in the same way."""
    name: str = ""
    """The run folder's name under `out`; default: the recipe file's name."""
    out: str = "runs"
    """Folder that holds the run folders."""
    seed: int = 0
    """Of everything that is drawn: the order of tasks, the samples and the built-in corpus."""
    steps: int = 150
    """Optimizer updates of the policy, one batch each."""
    mode: Literal["sandbox", "llm"] = "sandbox"
    """`sandbox`: multi-turn with a computer. `llm`: one reply, context in the prompt (the LLM-RL baseline)."""
    prompt: str = "paper"
    """The prompt arm: a file of `data/prompt/templates/`."""
    tool_set: str = ""
    """`paper`, `reference` or `compact`; empty: the arm's own."""
    tools: list[str] = field(default_factory=list)
    """Tools of the set and of your own (`my_tools.py:search`), in the order they are shown; empty: all of the set."""
    groups_per_step: int = 8
    """Tasks in one batch."""
    group_size: int = 8
    """Trajectories of one task."""
    max_staleness: int = 0
    """How many updates the rollout workers may run ahead of the learner; 0: every token is on-policy."""
    replace_uninformative: int = 0
    """Groups with equal rewards carry no gradient: up to this many per step are replaced by newly sampled ones."""
    retries: int = 2
    """Trajectories lost to the machine are sampled again this many times before the group goes on without them."""
    max_lost_groups: int = 8
    """Groups lost to the machine in a row before the run stops with an error."""
    max_logprob_mismatch: float = 0.0
    """The run stops when engine and learner disagree by more on any sampled token; 0: by more than 1e-3 in float32,
    else by more than 0.05 in the mean."""
    save_trajectories_every: int = 1
    """Steps between saved trajectory files; 0: only the first and the last step."""
    num_workers: int = 1
    """Rollout workers, each one engine."""
    placement: Literal["split", "together"] = "split"
    """`split`: engines and learner on GPUs of their own. `together`: on the same ones, in turns; the engines give their
    memory back while the learner works. Needs num_workers x engine.tensor_parallel_size = learner.world_size."""
    cluster: str = ""
    """Ray address; empty: the job's own cluster, or a fresh one on this machine."""
    model: ModelConfig = field(default_factory=ModelConfig)
    tasks: TasksConfig = field(default_factory=TasksConfig)
    sandbox: SandboxConfig = field(default_factory=SandboxConfig)
    limits: RolloutLimits = field(default_factory=RolloutLimits)
    sampling: Sampling = field(default_factory=Sampling)
    grader: GraderConfig = field(default_factory=GraderConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)
    hooks: list[str] = field(default_factory=list)
    """Your own functions, called with each step's groups: they add columns to the metrics or stop the run."""
    code: dict[str, str] = field(default_factory=dict)
    """Digests of the code of your own that the recipe names; noted by the run, not to be set."""
    tensorboard: bool = False
    """Write event files into the run folder's `tensorboard/`; look at them with `tensorboard --logdir runs`."""
    guards: GuardsConfig = field(default_factory=GuardsConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)

    def __post_init__(self) -> None:
        self._check_numbers()
        self._check_combinations()

    def _check_numbers(self) -> None:
        for key, low in (
            ("steps", 0),
            ("groups_per_step", 1),
            ("group_size", 1),
            ("max_staleness", 0),
            ("replace_uninformative", 0),
            ("retries", 0),
            ("max_lost_groups", 1),
            ("max_logprob_mismatch", 0),
            ("save_trajectories_every", 0),
            ("num_workers", 1),
            ("tasks.max_prompt_tokens", 1),
            ("evaluation.every", 0),
            ("evaluation.repeats", 1),
            ("checkpoint.every", 0),
            ("checkpoint.keep", 0),
            ("checkpoint.keep_every", 0),
        ):
            value = operator.attrgetter(key)(self)
            if not value >= low:
                raise InputError(f"{key}: must be at least {low}, not {value}")
        trajectories = self.groups_per_step * self.group_size
        for what, size, most in (
            ("groups_per_step x group_size", trajectories, 1_000_000),
            ("num_workers", self.num_workers, 100_000),
            ("engine.max_num_seqs", self.engine.max_num_seqs, 1_000_000),
            ("engine.max_model_len", self.engine.max_model_len, 1 << 27),
            ("learner.world_size", self.learner.world_size, 100_000),
            ("sandbox.warm", self.sandbox.warm, 100_000),
        ):
            if size > most:
                raise InputError(f"{what}: {size:,} is more than any cluster holds (at most {most:,})")
        if self.sandbox.warm < 0:
            raise InputError(f"sandbox.warm: must be at least 0, not {self.sandbox.warm}")
        if self.learner.minibatches > trajectories:
            raise InputError(
                f"learner.minibatches: {self.learner.minibatches} optimizer steps cannot share {trajectories} "
                f"trajectories (groups_per_step x group_size)"
            )

    def _check_combinations(self) -> None:
        if self.checkpoint.best and not (self.evaluation.every or self.evaluation.after):
            raise InputError("checkpoint.best: has no effect without an evaluation after the start")
        _ = self.learner_of_run  # raises where its schedule has no room for the warm-up
        for key in ("tool_set", "tools"):
            if self.mode == "llm" and getattr(self, key):
                raise InputError(f"{key}: has no effect with mode: llm")
        if self.sampling.temperature == 0:
            raise InputError("sampling.temperature: must be above 0, there is nothing to learn from one certain answer")
        if self.group_size == 1 and self.loss.advantage == "leave_one_out":
            raise InputError("group_size: a leave-one-out advantage needs at least 2 trajectories per task, not 1")
        engine_gpus = self.num_workers * self.engine.tensor_parallel_size
        if self.placement == "together" and engine_gpus != self.learner.world_size:
            raise InputError(
                f"placement: together needs num_workers x engine.tensor_parallel_size ({engine_gpus}) to be "
                f"learner.world_size ({self.learner.world_size})"
            )
        for part in ("engine", "learner"):
            if self.placement == "together" and getattr(self, part).nodes:
                raise InputError(f"{part}.nodes: has no effect with placement: together, which binds them to GPUs")
        if self.engine.sleeps:
            raise InputError("engine.sleeps: placement: together sets it; it has no effect of its own")
        if self.engine.keep_kv and not self.max_staleness:
            raise InputError("engine.keep_kv: has no effect with max_staleness: 0, where no request meets new weights")
        _ = self.engine_of_run  # raises where a knob of the engine does not go with the placement
        if self.limits.max_tokens > self.engine.max_model_len:
            raise InputError(
                f"limits.max_tokens: {self.limits.max_tokens} is more than engine.max_model_len "
                f"({self.engine.max_model_len})"
            )
        if self.learner.max_tokens_per_row < self.limits.max_tokens:
            raise InputError(
                f"learner.max_tokens_per_row: {self.learner.max_tokens_per_row} cannot hold a trajectory of "
                f"limits.max_tokens={self.limits.max_tokens}"
            )

    @property
    def run_dir(self) -> Path:
        return Path(self.out) / self.name

    @property
    def learner_of_run(self) -> LearnerConfig:
        """The learner's settings with the length of this run in them, where its learning rate falls. A run that goes on
        with more `steps` falls more slowly from there on."""
        config = self.learner
        if config.schedule == "constant" or config.schedule_steps or not self.steps:
            return config
        return replace(config, schedule_steps=self.steps * config.minibatches)

    @property
    def engine_of_run(self) -> EngineConfig:
        """The engine's settings with the placement in them."""
        if self.placement == "split":
            return self.engine
        backend = "ipc" if self.engine.weight_backend == "auto" and not on_cpu() else self.engine.weight_backend
        return replace(self.engine, sleeps=True, weight_backend=backend)

    @property
    def logprob_bound(self) -> tuple[str, float]:
        """Which measure of |log-prob(engine) - log-prob(learner)| stops the run, and above which value.

        In float32 every token must agree. In half precision single tokens differ by much among millions, so the mean is
        judged; weights that did not arrive move it far beyond rounding."""
        dtypes = self.engine.compute_dtype(on_cpu()), self.learner.compute_dtype(on_gpu=not on_cpu())
        exact = dtypes == ("float32", "float32")
        if self.max_logprob_mismatch:
            return "mismatch/logprob_max", self.max_logprob_mismatch
        return ("mismatch/logprob_max", 1e-3) if exact else ("mismatch/logprob_mean", 0.05)


def find_recipe(word: str, folder: str = "") -> Path:
    """The file that `word` names: a path of the user's, else a recipe that ships (`tiny`, or with `folder` one of
    those that lie in it)."""
    path, shipped = Path(word), Path(sandboxrl.__file__).with_name("recipes") / folder
    if path.exists() or path.suffix == ".yaml" and len(path.parts) > 1:
        return path
    known = {file.stem: file for file in sorted(shipped.glob("*.yaml"))}
    if path.name != word or path.stem not in known or path.suffix not in ("", ".yaml"):
        raise InputError(f"{word}: no such file, and no recipe that ships{nearest(word, known)}")
    return known[path.stem]


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """YAML file and `a.b=c` words -> Recipe. Raises InputError: one line that says what, where and the nearest key."""
    path = Path(path)
    try:
        layers = [*read_layers(path, Recipe), anchored_layer(read_overrides(overrides, Recipe), Path.cwd())]
        _replace_task_sets(layers)
        resolved = merged(Recipe, {"name": path.stem}, *layers)
        recipe = OmegaConf.to_object(resolved)
    except OmegaConfBaseException as error:
        key, message = getattr(error, "full_key", ""), str(error).split("\n")[0]
        raise InputError(f"{path}: {key}: {one_line(message)}") from None
    assert isinstance(recipe, Recipe)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", recipe.name):
        raise InputError(f"{path}: name: {recipe.name!r} is not a plain folder name (letters, digits, '.', '_', '-')")
    return recipe


def with_overrides(base: T, words: Sequence[str]) -> tuple[T, set[str]]:
    """A dataclass of settings with `a.b=c` words over it, and the keys that they name. Raises InputError."""
    layer = anchored_layer(read_overrides(words, type(base)), Path.cwd())
    try:
        found = OmegaConf.to_object(merged(base, layer))
    except OmegaConfBaseException as error:
        key, message = getattr(error, "full_key", ""), str(error).split("\n")[0]
        raise InputError(f"{key}: {one_line(message)}") from None
    assert isinstance(found, type(base))
    return found, {word.partition("=")[0] for word in words}


def save_recipe(recipe: Recipe, path: Path) -> None:
    """The resolved recipe; loading it again gives an equal one."""
    write_whole(path, OmegaConf.to_yaml(OmegaConf.structured(recipe)))


def _replace_task_sets(layers: list[Any]) -> None:
    """Task sets that are given whole (every one names its source, or it is a plain name) replace those of the layers
    below; a part such as `tasks.eval.heldout.num_tasks=32` is merged into them."""
    for key in ("tasks.train", "tasks.eval"):
        for above, layer in enumerate(layers):
            given = OmegaConf.select(layer, key)
            whole = given is not None and not (
                OmegaConf.is_dict(given)
                and any(OmegaConf.is_dict(one) and "source" not in one for one in given.values())
            )
            for below in layers[:above] if whole else []:
                if OmegaConf.select(below, key) is not None:
                    del below.tasks[key.removeprefix("tasks.")]

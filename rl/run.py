"""One training run, from a recipe to its folder: check the input, start the actors, train, leave nothing behind."""

import asyncio
import itertools
import json
import traceback
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import ray

from sandboxrl.data.errors import InputError, described, nearest
from sandboxrl.data.files import read_object, write_whole
from sandboxrl.data.plugin import OwnCodeFailed, is_own
from sandboxrl.data.prompt.arms import load_arm, render
from sandboxrl.data.sources import load_sources
from sandboxrl.data.stream import TaskStream, describe_dropped, drop_long
from sandboxrl.data.task import Task
from sandboxrl.envs.grading.grader import Grader
from sandboxrl.envs.grading.kinds import KINDS
from sandboxrl.envs.policy.chat import ChatFormat, load_tokenizer
from sandboxrl.envs.sandbox.pool import open_backend
from sandboxrl.envs.tools.tool_set import tool_set
from sandboxrl.rl import trainer
from sandboxrl.rl.cluster.connect import check_reachable, connect, head_is_gone
from sandboxrl.rl.cluster.learners import RayLearners
from sandboxrl.rl.cluster.placement import Placement
from sandboxrl.rl.cluster.places import check_cluster, check_weights_arrive
from sandboxrl.rl.cluster.workers import RayWorkers
from sandboxrl.rl.config import Recipe, save_recipe
from sandboxrl.rl.continuing import RECIPE, SUMMARY, Changes, go_back, held, is_finished
from sandboxrl.rl.engine.config import on_cpu
from sandboxrl.rl.hooks import load_hooks
from sandboxrl.rl.hub_model import PREFIX, fetched, local_folder, portable
from sandboxrl.rl.learner.checkpoint import Checkpoints
from sandboxrl.rl.own_code import with_code
from sandboxrl.rl.reports.pages.run import write_report
from sandboxrl.rl.reports.progress import Progress, opened
from sandboxrl.rl.reports.run_folder import Log
from sandboxrl.rl.start.config import START_PREFIX, named_start, start_folder
from sandboxrl.rl.trainer import LearnerLost, RunFailed, Work
from sandboxrl.rl.watch import Watch

MODEL_FILE = "model_dir"
"""In a run folder: the model that it started from, a folder or a name of the hub with its commit."""
COMMITS_FILE = "data.json"
"""In a run folder: the commit of each data set of the Hub that it reads, by `NAME@REVISION` as the recipe has it."""


@dataclass(frozen=True)
class Inputs:
    """Everything a run needs from outside, checked."""

    model_dir: str
    chat_format: ChatFormat
    train: TaskStream
    eval_sets: Mapping[str, Sequence[Task]]
    sandbox: dict[str, Any]
    """What the sandboxes are, for `sandbox.json`; empty in LLM mode."""
    commits: dict[str, str]
    """For `data.json`: what the tasks were read from."""
    dropped: str
    """Which training tasks were left out and why, for a person; empty: none."""
    repeated: str
    """Which evaluation tasks are trained on too, for a person; empty: none."""

    def told(self, recipe: Recipe) -> str:
        """What was found, in lines for a person."""
        eval_sets = ", ".join(f"{name} ({len(tasks)} tasks)" for name, tasks in self.eval_sets.items())
        lines = [
            f"{recipe.run_dir}: {recipe.steps} steps of {recipe.groups_per_step} tasks x {recipe.group_size} "
            f"trajectories, {recipe.mode} mode",
            f"model {self.model_dir}; evaluated on {eval_sets or 'nothing: tasks.eval is empty'}",
            *(f"data set {asked}: commit {commit}" for asked, commit in self.commits.items()),
            self.dropped,
            self.repeated,
        ]
        return "\n".join(line for line in lines if line)


def prepare(recipe: Recipe, progress: Progress | None = None, download: bool = True) -> Inputs:
    """Raises InputError for anything that is wrong with the recipe, the model, the tasks or this machine. Without
    `download` only the configuration and the tokenizer of a model of the hub are fetched."""
    progress = progress or opened("quiet")
    if recipe.cluster:
        check_reachable(recipe.cluster)
    arm = load_arm(recipe.prompt)
    schemas, sandbox = [], {}
    if recipe.mode == "sandbox":
        schemas = tool_set(recipe.tool_set or arm.tool_set, recipe.tools, recipe.sandbox.persist_shell).schemas()
        with progress.stage("sandbox"):
            sandbox = asyncio.run(_check_backend(recipe))
    noted = recipe.run_dir / COMMITS_FILE  # a run that goes on reads what it began with
    commits: dict[str, str] = read_object(noted) if noted.is_file() else {}
    with progress.stage("tasks"):
        train_sets, weights = load_sources(recipe.tasks.train, "tasks.train", recipe.seed, commits)
        wanted = recipe.tasks.eval  # empty: a run without an evaluation
        eval_sets, eval_weights = load_sources(wanted, "tasks.eval", recipe.seed, commits) if wanted else ({}, {})
        for name, weight in eval_weights.items():
            if weight != 1:
                raise InputError(f"tasks.eval.{name}.weight has no effect: each set is scored by itself")
        best = recipe.checkpoint.best
        if best and best not in eval_sets:
            raise InputError(f"checkpoint.best: no set {best!r} among tasks.eval{nearest(best, eval_sets)}")
        repeated = _also_trained(train_sets, eval_sets)
        asyncio.run(check_gradable(recipe, itertools.chain(*train_sets.values(), *eval_sets.values())))
    with progress.stage("model"):
        model_dir = model_of_run(recipe, recipe.run_dir, download)
        chat_format = load_chat_format(model_dir, recipe)

    grader = Grader(recipe.grader)

    def prompt(task: Task) -> list[dict[str, str]]:
        return render(task, arm, recipe.mode, grader.kind(task).ask)

    def count_tokens(task: Task) -> int:
        return len(chat_format.prompt_ids(prompt(task), schemas))

    for task in itertools.chain(*eval_sets.values()):
        prompt(task)
    kept, dropped, longest = {}, [], min(recipe.tasks.max_prompt_tokens, recipe.limits.max_tokens - 1)
    for name, tasks in train_sets.items():
        kept[name], too_long = drop_long(tasks, longest, count_tokens)
        dropped += too_long
        if not kept[name]:
            raise InputError(f"tasks.train: no task of {name!r} is left: {describe_dropped(too_long, limit=1)}")
    stream = TaskStream(kept, weights, recipe.seed)
    return Inputs(model_dir, chat_format, stream, eval_sets, sandbox, commits, describe_dropped(dropped), repeated)


def _also_trained(train: Mapping[str, Sequence[Task]], evaluated: Mapping[str, Sequence[Task]]) -> str:
    """Which evaluation tasks are trained on too, for a person. Raises InputError where it is most of a set, whose score
    would then mean nothing."""
    known = {(task.question, *sorted(task.documents.items())) for tasks in train.values() for task in tasks}
    notes = []
    for name, tasks in evaluated.items():
        same = [task.id for task in tasks if (task.question, *sorted(task.documents.items())) in known]
        told = f"tasks.eval.{name}: {len(same)} of {len(tasks)} tasks are in tasks.train too, {same[0] if same else ''}"
        if 2 * len(same) > len(tasks):
            raise InputError(f"{told} the first; name another split or offset")
        notes += [f"{told} the first"] if same else []
    return "\n".join(notes)


def model_of_run(recipe: Recipe, run_dir: Path, download: bool = True) -> str:
    """The model folder that a run started from, else the one it is to start from. A run that goes on, or is exported,
    must not meet one that was made or downloaded anew since: its checkpoints and tokenizer belong to the first."""
    noted = run_dir / MODEL_FILE
    known = noted.read_text() if noted.is_file() else ""
    if known.startswith(PREFIX):
        return local_folder(known, weights=download)
    if known and Path(known).is_dir():
        return known
    return resolve_model(recipe.model.path, run_dir.resolve().parent, download)


def resolve_model(path: str, out: Path = Path("runs"), download: bool = True) -> str:
    """The folder of `path`. A starting policy is put under `out`; one that does not ship is made there first, with a
    progress bar. Without `download` the folder of a model of the hub holds no weights."""
    if path.startswith(START_PREFIX):
        folder = start_folder(path, out / "start")
        if folder.is_dir():
            return str(folder)
        from sandboxrl.rl.start.make import show_start  # torch, which a model that is there does not need

        return str(show_start(named_start(path)[1], folder))
    if not path:
        raise InputError("model.path: name a Hugging Face folder, or start:tiny for the small model that ships")
    if Path(path).is_dir():
        for needed in ("config.json", "tokenizer_config.json"):
            if not (Path(path) / needed).is_file():
                raise InputError(f"model.path: {path} is not a Hugging Face model folder: it has no {needed}")
        return str(Path(path).resolve())
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise InputError(f"model.path: no such folder: {path}")
    return fetched(path, weights=download)


def load_chat_format(model_dir: str, recipe: Recipe) -> ChatFormat:
    tokenizer = load_tokenizer(model_dir)
    if recipe.model.chat_template:
        try:
            tokenizer.chat_template = Path(recipe.model.chat_template).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"model.chat_template: {error}") from None
    return ChatFormat(tokenizer, recipe.model.call_format)


def train(recipe: Recipe, progress: Literal["auto", "quiet", "json"] = "quiet", fresh: bool = False) -> dict[str, Any]:
    """Train, or continue the run folder, and return its `summary.json`: what `sandboxrl train` does, for a program.

    Signals are left to the caller. Raises InputError for anything that is wrong with the input; a run that failed says
    so in the summary's `status`.
    """
    with opened(progress) as shown:
        return trained(with_code(recipe), shown, fresh)


def trained(
    recipe: Recipe,
    progress: Progress,
    fresh: bool = False,
    from_step: int | None = None,
    run: Callable[[Coroutine[Any, Any, dict[str, Any]]], dict[str, Any]] = asyncio.run,
) -> dict[str, Any]:
    """The summary of the run of a recipe whose code is known (`with_code`), trained now or finished before. `from_step`
    goes back to that checkpoint first. `run` runs a coroutine, as `asyncio.run` does."""
    with held(recipe, fresh) as changes:
        if from_step is not None:
            go_back(recipe.run_dir, from_step)
        elif is_finished(recipe):
            where = recipe.run_dir
            progress.line(f"{where} is finished already: {where}/report.html; more steps=… continue it")
            return read_object(where / SUMMARY)
        inputs = prepare(recipe, progress)  # all that can be wrong with the input, before anything is started
        save_recipe(recipe, recipe.run_dir / RECIPE)
        return run(train_run(recipe, inputs, progress, changes))


async def train_run(recipe: Recipe, inputs: Inputs, progress: Progress, changes: Changes) -> dict[str, Any]:
    """Train to the recipe's last step, from the run's last checkpoint; returns `summary.json`. `changes` are those of
    how it is carried out, for the log."""
    checkpoints = Checkpoints(recipe.run_dir, recipe.checkpoint.keep, recipe.checkpoint.keep_every)
    step, _ = checkpoints.latest()
    log = Log(recipe, step, TokenText(inputs.chat_format), progress)
    for problem in checkpoints.problems:
        log.say(f"damaged, so the one before is used: {problem}")
    model = portable(inputs.model_dir)
    write_whole(recipe.run_dir / MODEL_FILE, model)
    write_whole(recipe.run_dir / "sandbox.json", json.dumps(inputs.sandbox, indent=2) + "\n")
    write_whole(recipe.run_dir / COMMITS_FILE, json.dumps(inputs.commits, indent=2) + "\n")
    log.say(f"{inputs.told(recipe)}\n{f'goes on from step {step}' if step else 'starts'}")
    for key, (before, now) in changes.items():
        log.say(f"from step {step + 1} on: {key}={now}, before {before}")
    status = "interrupted"
    try:
        with progress.stage("cluster"):
            connect(recipe.cluster)
            check_cluster(recipe, ray.cluster_resources())
        watch = Watch(recipe.watch, recipe.run_dir, log.say)
        watch.looks.append(log.look)
        placement = await Placement.reserve(recipe, not on_cpu(), watch)
        together = recipe.placement == "together"
        workers = RayWorkers(recipe, model, log, watch, placement)
        learners = RayLearners(recipe, model, watch, placement, workers if together else None)
        watching = asyncio.create_task(watch.run())
        try:
            with watch.on_signal():
                await _start(workers, learners, step, checkpoints.folder(step), together)
                check_weights_arrive(recipe, workers.nodes(), learners.node())
                stopped = await _while_there_is_a_head(train_to_the_end(recipe, inputs, workers, learners, log))
            status = f"stopped: {stopped}" if stopped else "finished"
        finally:
            watching.cancel()
            await workers.stop()
            await learners.stop()
            placement.release()
            ray.shutdown()
    except (RunFailed, OwnCodeFailed, OSError) as error:  # OSError: no room, no descriptors, no processes
        status = f"failed: {error}"
    except Exception as error:
        status = f"failed: {described(error)}"
        log.note(traceback.format_exc())
        raise
    finally:
        progress.begin("")
        summary = log.finish(status)
        report = write_report(recipe.run_dir)
        closing = _closing(summary, report)
        progress.line(closing, {"event": "end", **summary, "report": str(report)})
        log.note(closing)
    return summary


async def _start(workers: RayWorkers, learners: RayLearners, step: int, checkpoint: str, together: bool) -> None:
    """Both at once, unless they share GPUs: vLLM measures what memory is free, and must find the GPU as it will be."""
    if together:
        await workers.start()
        await learners.start(step, checkpoint)
    else:
        await asyncio.gather(workers.start(), learners.start(step, checkpoint))


async def _while_there_is_a_head(training: Coroutine[Any, Any, str]) -> str:
    """The result of `training`. Raises RunFailed where the head of the cluster is gone: nothing can be started any
    more, and Ray would end this process a minute later."""
    tasks = asyncio.ensure_future(training), asyncio.ensure_future(head_is_gone())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise RunFailed(tasks[1].result())
        return tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def train_to_the_end(recipe: Recipe, inputs: Inputs, workers: RayWorkers, learners: RayLearners, log: Log) -> str:
    """As `train`; each time a learner rank is lost, up to a limit, go on from the last checkpoint with fresh ones. The
    rollout workers stay, and what they have sampled is used."""
    beginning, hooks, num_lost = inputs.train.state(), load_hooks(recipe.hooks), 0
    while True:
        checkpoints = Checkpoints(recipe.run_dir, recipe.checkpoint.keep, recipe.checkpoint.keep_every)
        try:
            work = Work(inputs.train, inputs.eval_sets, hooks, log.eval_scores())
            return await trainer.train(recipe, work, workers, learners, checkpoints, log)
        except LearnerLost as error:
            num_lost += 1
            if num_lost > recipe.watch.learner_restarts:
                raise RunFailed(
                    f"{error}; that is loss {num_lost}, watch.learner_restarts allows {num_lost - 1}"
                ) from None
            step, _ = checkpoints.latest()
            log.rewind(step)
            log.recovered("learner", f"{error}; the learner starts again from step {step}")
        inputs.train.load_state(beginning)
        await learners.restart(step, checkpoints.folder(step))


class TokenText:
    """Text of single tokens, each decoded once."""

    def __init__(self, chat_format: ChatFormat) -> None:
        self._format = chat_format
        self._known: dict[int, str] = {}

    def __call__(self, token: int) -> str:
        if token not in self._known:
            self._known[token] = self._format.decode([token])
        return self._known[token]


async def check_gradable(recipe: Recipe, tasks: Iterable[Task]) -> None:
    """Whether what grades the tasks is there; raises InputError."""
    grader = Grader(recipe.grader)
    try:
        for task in tasks:
            kind = grader.kind(task)
            if recipe.mode not in kind.modes:
                raise InputError(f"task {task.id} is graded by running tests, which needs mode: sandbox")
            if kind.needs == "judge" and not recipe.grader.judge:
                raise InputError(
                    f"task {task.id} is graded by a judge model ({task.reward}), and there is none (grader.judge=URL)"
                )
            if is_own(task.reward) and task.reward not in recipe.code:
                raise InputError(
                    f"task {task.id}: name its reward {task.reward} in grader.kinds, so that it is sent along"
                )
            if kind.needs or task.reward not in KINDS:
                await grader.check(task)
    finally:
        await grader.close()


async def _check_backend(recipe: Recipe) -> dict[str, Any]:
    """What the sandboxes are: backend, limits as they hold here, image digest. The backend must be there before
    anything is started; raises BackendUnavailable with the command that fixes it."""
    config = recipe.sandbox
    if config.remote:
        return {"backend": config.backend, "remote": True}  # the cluster is asked when the workers start
    backend: Any = open_backend(replace(config, warm=0))
    try:
        box = await backend.start()
        await box.close()
        image = {"image": config.image, "digest": (await backend.inspect())["Id"]} if config.backend == "docker" else {}
        return {"backend": config.backend, **image, "limits": backend.describe_limits()}
    finally:
        await backend.close()


def _closing(summary: Mapping[str, Any], report: Path) -> str:
    scores = [
        f"{name} {before:.3f} -> {summary['eval_after'][name]:.3f}"
        for name, before in summary["eval_before"].items()
        if name in summary["eval_after"]
    ]
    return "\n".join(
        [
            f"{summary['status']}: {summary['steps']} steps, {summary['trajectories']} trajectories, "
            f"{summary['wall_s']:.0f} s",
            *[f"held-out score: {line}" for line in scores],
            f"report: {report}",
        ]
    )

"""`sandboxrl evaluate MODEL --benchmarks a,b --mode sandbox|llm|both --out DIR`: score a model on benchmarks."""

import argparse
import json
import math
import re
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sandboxrl.data.benchmarks import BENCHMARKS, Selection, load_benchmark, load_set
from sandboxrl.data.errors import InputError, nearest, one_line
from sandboxrl.data.files import write_whole
from sandboxrl.data.prompt.arms import load_arm
from sandboxrl.envs.grading.grader import Grader, GraderConfig
from sandboxrl.envs.grading.judge import JudgeConfig, ModelJudge
from sandboxrl.envs.policy.protocol import Sampling
from sandboxrl.envs.rollout import Environment
from sandboxrl.envs.sandbox.pool import Pool, open_backend
from sandboxrl.envs.tools.tool_set import tool_set
from sandboxrl.envs.trajectory import Trajectory
from sandboxrl.launch.parser import configure_progress
from sandboxrl.launch.signals import run_async
from sandboxrl.rl.evaluation.evaluate import (
    EvaluationStopped,
    ResultFolder,
    Sampler,
    Trial,
    plan,
    read_results,
    result_key,
    run_trials,
)
from sandboxrl.rl.evaluation.models import ModelSpec, open_policies, paper_sampling
from sandboxrl.rl.evaluation.settings import EvaluationSettings, evaluation_settings
from sandboxrl.rl.reports.analysis import Prices, summaries
from sandboxrl.rl.reports.progress import Progress, opened

SELECTION = "selection.json"


@dataclass(frozen=True)
class Chosen:
    """What the command line asks for."""

    settings: EvaluationSettings
    max_tokens: int
    """Of every trajectory; 0: each benchmark's own."""
    given: set[str]
    """The keys that were given."""


MODES = {"sandbox": ("sandbox",), "llm": ("llm",), "both": ("llm", "sandbox")}


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "words",
        metavar="MODEL [key=value …]",
        nargs="*",
        help="a model folder, an OpenAI-compatible server's URL or "
        "scripted:NAME; then keys as in a recipe, of sandbox, limits, sampling, grader, engine, and num_workers",
    )
    add("--policy", default="", metavar="FILE.py:NAME", help="your own agent instead of MODEL")
    add("--model", dest="model_name", default="", metavar="NAME", help="the server's name for the model")
    add(
        "--benchmarks",
        required=True,
        metavar="A,B",
        help=f"{', '.join(BENCHMARKS)}, task sources, files",
    )
    add("--mode", default="both", choices=MODES, help="with a computer, without, or both (default)")
    add("--out", required=True, type=Path, metavar="DIR", help="results; continued if it exists")
    add(
        "--data",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="local rows of a benchmark, `original`, or `@REVISION`",
    )
    add("--documents", default="", metavar="DIR", help="documents of AA-LCR, for rows that only name them")
    add("--placement", default="sandbox", choices=("sandbox", "prompt"), help="documents as files (default) or inline")
    add("--limit", type=int, default=0, metavar="N", help="at most N tasks of each benchmark")
    add("--repeats", type=int, default=0, metavar="K", help="trajectories per task (default: the paper's)")
    add("--seed", type=int, default=0, help="of the selection and of every trajectory")
    add("--arm", default="paper", help="prompt arm, or a YAML file (default: paper)")
    add("--parallel", type=int, default=16, metavar="N", help="trajectories at the same time (default: 16)")
    add("--attempts", type=int, default=3, metavar="N", help="of a trajectory that the machine loses (default: 3)")
    add("--api-key-env", default="OPENAI_API_KEY", metavar="NAME", help="variable that holds the server's key")
    add("--judge", default="", metavar="MODEL", help="judge: a server's URL or a model folder")
    add("--judge-model", default="", metavar="NAME", help="the judge server's name for it")
    add("--judge-key-env", default="OPENAI_API_KEY", metavar="NAME", help="variable that holds the judge's key")
    add("--judge-repeats", type=int, default=1, metavar="K", help="verdicts per answer (default: 1)")
    add("--judge-temperature", type=float, default=0.0, help="default: 0")
    add("--price-read", type=float, default=0.0, metavar="X", help="price of a million tokens read")
    add("--price-written", type=float, default=0.0, metavar="X", help="price of a million tokens written")
    add("--keep-tokens", action="store_true", help="keep every token id and log-probability (model folders)")
    configure_progress(parser)


def run(args: argparse.Namespace) -> int:
    chosen = check(args)
    selections = select(args, chosen)
    folder = ResultFolder(args.out, identity(args, chosen))
    out = sys.stdout if args.progress == "json" else sys.stderr
    try:
        with opened(args.progress, out) as progress:
            run_async(evaluate(args, chosen, selections, folder, progress))
    except EvaluationStopped as error:
        print(f"sandboxrl evaluate: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"the same command continues {args.out}") from None
    finally:
        folder.close()
    return 1 if report(args, chosen, selections) else 0


def check(args: argparse.Namespace) -> Chosen:
    """The words of the command line, checked as far as nothing needs to be read. Raises InputError."""
    words = list(args.words)
    args.model = words.pop(0) if words and not _is_key(words[0]) else ""
    if bool(args.model) == bool(args.policy):
        raise InputError("name a MODEL or --policy FILE.py:NAME, one of them")
    args.model = args.model or args.policy
    for name in ("limit", "repeats", "price_read", "price_written", "judge_temperature"):
        if not 0 <= getattr(args, name) < math.inf:
            raise InputError(f"--{name.replace('_', '-')} must be 0 or more, not {getattr(args, name)}")
    for name in ("parallel", "attempts", "judge_repeats"):
        if not 1 <= getattr(args, name) <= 1_000_000:
            raise InputError(f"--{name} must be at least 1, not {getattr(args, name)}".replace("_", "-"))
    names = [name.strip() for name in args.benchmarks.split(",") if name.strip()]
    if not names:
        raise InputError(f"--benchmarks is empty; some of: {', '.join(BENCHMARKS)}")
    settings, given = evaluation_settings(words, paper_sampling(args.model, args.model_name))
    return Chosen(settings, settings.limits.max_tokens if "limits.max_tokens" in given else 0, given)


def _is_key(word: str) -> bool:
    return re.match(r"[a-z_]+(\.[a-z_]+)*=", word) is not None


def select(args: argparse.Namespace, chosen: Chosen) -> list[Selection]:
    """The tasks of every benchmark asked for. Raises InputError."""
    names = [name.strip() for name in args.benchmarks.split(",") if name.strip()]
    paths = {}
    for word in args.data:
        name, equals, path = word.partition("=")
        if not equals or name not in names:
            raise InputError(f"--data {word}: not NAME=PATH of a benchmark in --benchmarks{nearest(name, names)}")
        paths[name] = path
    selections = []
    noted = args.out / SELECTION  # a folder that is continued goes on with the rows it began with
    commits = _noted_commits(noted)
    for name in dict.fromkeys(names):
        path, revision = paths.get(name, ""), ""
        if path.startswith(("@", "original@")):
            path, _, revision = path.partition("@")
        if name in BENCHMARKS:
            found = load_benchmark(name, path, args.seed, args.limit, args.documents, revision, commits)
        else:
            found = in_modes(load_set(name, path, args.seed, args.limit, commits), chosen.settings.grader)
        if args.placement != "sandbox":
            found = replace(found, tasks=[replace(task, placement=args.placement) for task in found.tasks])
        if not set(MODES[args.mode]) & set(found.benchmark.modes):
            raise InputError(f"benchmark {name} has no {args.mode} mode")
        if bad := found.record["rejected"]:
            more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
            print(f"{name}: {len(bad)} rows left out: {'; '.join(bad[:5])}{more}", file=sys.stderr)
        selections.append(found)
    return selections


def in_modes(found: Selection, config: GraderConfig) -> Selection:
    """A user's own set with the modes in which all of its tasks can be graded. Raises InputError."""
    grader = Grader(config)
    every = [grader.kind(task).modes for task in found.tasks]
    modes = tuple(mode for mode in found.benchmark.modes if all(mode in one for one in every))
    return replace(found, benchmark=replace(found.benchmark, modes=modes))


def _noted_commits(file: Path) -> dict[str, str]:
    """Data set of the hub -> commit that an evaluation began with. Raises InputError."""
    try:
        before = json.loads(file.read_bytes()) if file.is_file() else []
        return {asked: commit for one in before for asked, commit in one.get("commits", {}).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{file} is damaged or not of an evaluation: {one_line(error)}") from None


def identity(args: argparse.Namespace, chosen: Chosen) -> dict[str, Any]:
    """What must be the same for results to stand in one folder. Never a key or what is in one."""
    arm = load_arm(args.arm)
    return {
        "model": ModelSpec(args.model).public_name,
        "model_digest": ModelSpec(args.model).digest(),
        "model_name": args.model_name,
        "sampling": asdict(chosen.settings.sampling),
        "seed": args.seed,
        "arm": arm.name,
        "arm_digest": [arm.digest, load_arm(arm.llm).digest],
        "max_tokens": chosen.max_tokens,
        "placement": args.placement,
        **chosen.settings.experiment(),
        "judge": [ModelSpec(args.judge).public_name, args.judge_model, args.judge_repeats, args.judge_temperature],
    }


async def evaluate(
    args: argparse.Namespace, chosen: Chosen, selections: list[Selection], folder: ResultFolder, progress: Progress
) -> None:
    """Everything that has no result yet."""
    settings = chosen.settings
    write_whole(folder.path / SELECTION, json.dumps([one.record for one in selections], indent=1) + "\n")
    trials = plan(selections, MODES[args.mode], args.repeats, args.seed, chosen.max_tokens)
    todo = folder.todo(trials)
    progress.detail(f"{len(trials)} trajectories, {len(trials) - len(todo)} of them done already")
    if not todo:
        return
    for trial in todo:
        if trial.task.image and settings.sandbox.backend != "docker":
            raise InputError(f"benchmark {trial.benchmark}: its tasks bring their own images (sandbox.backend=docker)")
    grading = Grader(settings.grader)
    longest = max(trial.max_tokens for trial in todo)
    async with AsyncExitStack() as stack:
        judge = await stack.enter_async_context(open_judge(args, folder.path)) if args.judge else None
        pool = None
        kinds = [grading.kind(trial.task) for trial in todo]
        if any(trial.mode == "sandbox" for trial in todo) or any(kind.needs == "sandbox" for kind in kinds):
            pool = Pool(open_backend(settings.sandbox), settings.sandbox.warm, settings.sandbox.parallel_starts)
            stack.push_async_callback(pool.close)
        grader = Grader(settings.grader, judge, pool)
        stack.push_async_callback(grader.close)
        for trial in {(trial.benchmark, trial.task.id): trial for trial in todo}.values():
            await grader.check(trial.task)
        engine = settings.engine
        if "engine.max_model_len" not in chosen.given:
            engine = replace(engine, max_model_len=longest)
        spec = ModelSpec(args.model, args.model_name, settings.sampling, args.api_key_env, settings.num_workers, engine)
        tasks = [task for one in selections for task in one.tasks]
        with progress.stage("model"):
            policies = await stack.enter_async_context(open_policies(spec, tasks))
        arm = load_arm(args.arm)
        computer = any(trial.mode == "sandbox" for trial in todo)
        offered = tool_set(arm.tool_set, persist_shell=settings.sandbox.persist_shell)
        mode, tools = ("sandbox", offered) if computer else ("llm", None)
        sample = Sampler(policies, Environment(arm, mode, settings.limits, tools, pool, grader), args.keep_tokens)
        await run_trials(todo, sample, folder, args.parallel, args.attempts, on_end=Counting(progress, len(todo)))


@asynccontextmanager
async def open_judge(args: argparse.Namespace, folder: Path) -> AsyncIterator[ModelJudge]:
    spec = ModelSpec(args.judge, args.judge_model, Sampling(temperature=args.judge_temperature), args.judge_key_env)
    async with open_policies(spec) as policies:
        identity = f"{args.judge_model or spec.public_name} T={args.judge_temperature:g}"
        config = JudgeConfig(repeats=args.judge_repeats, cache=str(folder / "judge"))
        yield ModelJudge(policies[0], identity, config)


class Counting:
    """Counts the trajectories that end, with their mean score."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._started, self._total = progress, time.monotonic(), total
        self._done, self._lost, self._right = 0, 0, 0.0
        progress.begin("evaluating", total)

    def __call__(self, trial: Trial, trajectory: Trajectory) -> None:
        self._done += 1
        self._right += trajectory.score or 0.0
        self._lost += trajectory.stop.machine_fault
        lost = f", {self._lost} lost" if self._lost else ""
        mean = self._right / max(1, self._done - self._lost)
        self._progress.count(trajectory.num_sampled, f"mean score {mean:.3f}{lost}")
        each_s = (time.monotonic() - self._started) / self._done
        self._progress.overall(self._done / self._total, (self._total - self._done) * each_s)


def report(args: argparse.Namespace, chosen: Chosen, selections: list[Selection]) -> int:
    """Write summary.json, print the scores, and return how many trials have no result."""
    trials = plan(selections, MODES[args.mode], args.repeats, args.seed, chosen.max_tokens)
    wanted = {trial.key for trial in trials}
    expected: dict[tuple[str, str], int] = {}
    for trial in trials:
        expected[trial.benchmark, trial.mode] = expected.get((trial.benchmark, trial.mode), 0) + 1
    found = [one for one in read_results(args.out) if result_key(one.to_dict()) in wanted]
    prices = Prices(args.price_read, args.price_written) if args.price_read or args.price_written else None
    summary = summaries(found, expected, prices)
    write_whole(args.out / "summary.json", json.dumps(_plain(summary), indent=1, ensure_ascii=False) + "\n")
    if args.progress == "json":
        print(json.dumps({"event": "end", "summary": _plain(summary), "missing": len(wanted) - len(found)}))
    for name, modes in summary.items() if args.progress != "json" else ():
        for mode, numbers in modes.items():
            told = {"num_missing": "lost, not scored", "num_too_long": "prompts too long for the model's context"}
            notes = ", ".join(f"{numbers[key]} {text}" for key, text in told.items() if numbers[key])
            if not numbers["num_results"]:
                print(f"{name:18} {mode:8}     -  {notes}")
                continue
            low, high = numbers["interval"]
            line = f"{name:18} {mode:8} {100 * numbers['score']:5.1f}  [{100 * low:.1f}, {100 * high:.1f}]"
            print(f"{line}  {numbers['num_results']} results, {numbers['turns']:.1f} turns  {notes}".rstrip())
    num_missing = len(wanted) - len(found)
    if num_missing:
        print(
            f"{num_missing} trajectories were lost to the machine and are not scored "
            f"({args.out / 'failures.jsonl'}); the same command tries them again",
            file=sys.stderr,
        )
    return num_missing


def _plain(value: Any) -> Any:
    """JSON has no NaN: what could not be computed is null."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value

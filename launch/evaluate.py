"""`sandboxrl evaluate MODEL --benchmarks a,b --mode sandbox|llm|both --out DIR`: score a model on benchmarks."""

import argparse
import asyncio
import json
import math
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from sandboxrl.data.benchmarks import BENCHMARKS, Selection, load_benchmark
from sandboxrl.data.errors import InputError, nearest
from sandboxrl.data.files import write_whole
from sandboxrl.data.prompt.arms import load_arm
from sandboxrl.envs.grading.grader import Grader, GraderConfig
from sandboxrl.envs.grading.judge import JudgeConfig, ModelJudge
from sandboxrl.envs.policy.protocol import Sampling
from sandboxrl.envs.rollout import Environment, RolloutLimits
from sandboxrl.envs.sandbox.pool import Pool, open_backend
from sandboxrl.envs.sandbox.protocol import NETWORKS, SandboxConfig
from sandboxrl.envs.tools.tool_set import tool_set
from sandboxrl.envs.trajectory import Trajectory
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
from sandboxrl.rl.reports.analysis import Prices, summaries

SELECTION = "selection.json"
MODES = {"sandbox": ("sandbox",), "llm": ("llm",), "both": ("llm", "sandbox")}


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", nargs="?", help="a model folder, an OpenAI-compatible server's URL, or scripted:NAME")
    add("--policy", default="", metavar="FILE.py:NAME", help="your own agent instead of MODEL")
    add("--model", dest="model_name", default="", metavar="NAME", help="the server's name for the model")
    add("--benchmarks", required=True, metavar="A,B", help=f"some of: {', '.join(BENCHMARKS)}")
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
    limits = RolloutLimits()
    add("--max-turns", type=int, default=limits.max_turns, metavar="N", help="default: %(default)s")
    add("--max-tokens", type=int, default=0, metavar="N", help="of a trajectory (default: 65536, AA-LCR 131072)")
    add("--timeout", type=float, default=limits.timeout_s, metavar="S", help="seconds for one trajectory")
    for name, kind in (("temperature", float), ("top_p", float), ("top_k", int), ("min_p", float)):
        add(f"--{name.replace('_', '-')}", type=kind, default=None, help="default: the paper's for this model")
    add("--repetition-penalty", type=float, default=None, help="default: the paper's for this model")
    add(
        "--backend",
        default="bubblewrap",
        help="bubblewrap, docker or my.py:Backend (default: bubblewrap)",
    )
    add("--image", default=SandboxConfig().image, help="of docker sandboxes")
    add("--network", default="none", choices=NETWORKS, help="of the sandboxes (default: none)")
    add("--workers", type=int, default=1, metavar="N", help="engines, for a model folder (default: 1)")
    add("--api-key-env", default="OPENAI_API_KEY", metavar="NAME", help="variable that holds the server's key")
    add("--scheme", default="strict", help="`reference`: grade as the published release does (default: strict)")
    add("--judge", default="", metavar="MODEL", help="judge: a server's URL or a model folder")
    add("--judge-model", default="", metavar="NAME", help="the judge server's name for it")
    add("--judge-key-env", default="OPENAI_API_KEY", metavar="NAME", help="variable that holds the judge's key")
    add("--judge-repeats", type=int, default=1, metavar="K", help="verdicts per answer (default: 1)")
    add("--judge-temperature", type=float, default=0.0, help="default: 0")
    add("--ifbench", default="", metavar="DIR", help="checkout of allenai/IFBench (default: the installed package)")
    add("--price-read", type=float, default=0.0, metavar="X", help="price of a million tokens read")
    add("--price-written", type=float, default=0.0, metavar="X", help="price of a million tokens written")
    add("--keep-tokens", action="store_true", help="keep every token id and log-probability (model folders)")


def run(args: argparse.Namespace) -> int:
    if bool(args.model) == bool(args.policy):
        raise InputError("name a MODEL or --policy FILE.py:NAME, one of them")
    args.model = args.model or args.policy
    for name in ("limit", "repeats"):
        if getattr(args, name) < 0:
            raise InputError(f"--{name} must not be negative")
    for name in ("parallel", "attempts", "workers", "max_turns", "judge_repeats"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} must be at least 1")
    selections = select(args)
    folder = ResultFolder(args.out, settings(args))
    try:
        asyncio.run(_until_signalled(evaluate(args, selections, folder)))
    except EvaluationStopped as error:
        print(f"sandboxrl evaluate: {error}", file=sys.stderr)
        return 1
    except asyncio.CancelledError:
        print(f"sandboxrl evaluate: interrupted; the same command continues {args.out}", file=sys.stderr)
        return 1
    finally:
        folder.close()
    return 1 if report(args, selections) else 0


def select(args: argparse.Namespace) -> list[Selection]:
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
    before = json.loads(noted.read_text()) if noted.is_file() else []
    commits = {asked: commit for one in before for asked, commit in one.get("commits", {}).items()}
    for name in dict.fromkeys(names):
        path, revision = paths.get(name, ""), ""
        if path.startswith(("@", "original@")):
            path, _, revision = path.partition("@")
        found = load_benchmark(name, path, args.seed, args.limit, args.documents, revision, commits)
        if args.placement != "sandbox":
            found = replace(found, tasks=[replace(task, placement=args.placement) for task in found.tasks])
        if not set(MODES[args.mode]) & set(found.benchmark.modes):
            raise InputError(f"benchmark {name} has no {args.mode} mode")
        selections.append(found)
    return selections


def sampling(args: argparse.Namespace) -> Sampling:
    """The paper's sampling for this model, and what the command line says otherwise."""
    found = paper_sampling(args.model, args.model_name)
    return replace(found, **{key: getattr(args, key) for key in asdict(found) if getattr(args, key) is not None})


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """What must be the same for results to stand in one folder. Never a key or what is in one."""
    arm = load_arm(args.arm)
    return {
        "model": ModelSpec(args.model).public_name,
        "model_digest": ModelSpec(args.model).digest(),
        "model_name": args.model_name,
        "sampling": asdict(sampling(args)),
        "seed": args.seed,
        "arm": arm.name,
        "arm_digest": [arm.digest, load_arm(arm.llm).digest],
        "limits": [args.max_turns, args.max_tokens, args.timeout],
        "placement": args.placement,
        "backend": args.backend,
        "image": args.image if args.backend == "docker" else "",
        "network": args.network,
        "scheme": args.scheme,
        "judge": [ModelSpec(args.judge).public_name, args.judge_model, args.judge_repeats, args.judge_temperature],
    }


async def evaluate(args: argparse.Namespace, selections: list[Selection], folder: ResultFolder) -> None:
    """Everything that has no result yet."""
    write_whole(folder.path / SELECTION, json.dumps([one.record for one in selections], indent=1) + "\n")
    trials = plan(selections, MODES[args.mode], args.repeats, args.seed, args.max_tokens)
    todo = folder.todo(trials)
    print(f"{len(trials)} trajectories, {len(trials) - len(todo)} of them done already", file=sys.stderr)
    if not todo:
        return
    for trial in todo:
        if trial.task.image and args.backend != "docker":
            raise InputError(f"benchmark {trial.benchmark}: its tasks bring images of their own (--backend docker)")
    limits = RolloutLimits(max_turns=args.max_turns, timeout_s=args.timeout)
    longest = max(trial.max_tokens for trial in todo)
    async with AsyncExitStack() as stack:
        judge = await stack.enter_async_context(open_judge(args, folder.path)) if args.judge else None
        grader = Grader(GraderConfig(scheme=args.scheme, ifbench=args.ifbench), judge)
        stack.push_async_callback(grader.close)
        for trial in {(trial.benchmark, trial.task.id): trial for trial in todo}.values():
            await grader.check(trial.task)
        pool = None
        if any(trial.mode == "sandbox" for trial in todo):
            # few ahead: a model is slower than a sandbox, and what is left over at the end was started for nothing
            sandbox = SandboxConfig(backend=args.backend, image=args.image, network=args.network, warm=2)
            pool = Pool(open_backend(sandbox), sandbox.warm)
            stack.push_async_callback(pool.close)
        spec = ModelSpec(args.model, args.model_name, sampling(args), args.api_key_env, args.workers, longest)
        tasks = [task for one in selections for task in one.tasks]
        policies = await stack.enter_async_context(open_policies(spec, tasks))
        arm = load_arm(args.arm)
        mode, tools = ("sandbox", tool_set(arm.tool_set)) if pool else ("llm", None)
        sample = Sampler(policies, Environment(arm, mode, limits, tools, pool, grader), args.keep_tokens)
        with Progress(len(todo)) as progress:
            await run_trials(todo, sample, folder, args.parallel, args.attempts, on_end=progress)


@asynccontextmanager
async def open_judge(args: argparse.Namespace, folder: Path) -> AsyncIterator[ModelJudge]:
    spec = ModelSpec(args.judge, args.judge_model, Sampling(temperature=args.judge_temperature), args.judge_key_env)
    async with open_policies(spec) as policies:
        identity = f"{args.judge_model or spec.public_name} T={args.judge_temperature:g}"
        config = JudgeConfig(repeats=args.judge_repeats, cache=str(folder / "judge"))
        yield ModelJudge(policies[0], identity, config)


class Progress:
    """One line on the terminal that counts; without a terminal, a line every tenth of the way."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.right, self.lost = total, 0, 0.0, 0

    def __enter__(self) -> "Progress":
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[told]}"), TimeRemainingColumn())
        self._terminal = sys.stderr.isatty()
        from rich.console import Console

        self._bar = Bar(*columns, console=Console(stderr=True), disable=not self._terminal)
        self._bar.start()
        self._task = self._bar.add_task("", total=self.total, told="")
        return self

    def __call__(self, trial: Trial, trajectory: Trajectory) -> None:
        self.done += 1
        self.right += trajectory.score or 0.0
        self.lost += trajectory.stop.machine_fault
        told = f"mean score {self.right / max(1, self.done - self.lost):.3f}" + f", {self.lost} lost" * bool(self.lost)
        self._bar.update(self._task, advance=1, told=told)
        if not self._terminal and (self.done * 10 // self.total) > ((self.done - 1) * 10 // self.total):
            print(f"{self.done} of {self.total}, {told}", file=sys.stderr)

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


async def _until_signalled(work: Any) -> None:
    """Run `work`; SIGTERM ends it as Ctrl-C does, so that every sandbox is closed."""
    task = asyncio.ensure_future(work)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    await task


def report(args: argparse.Namespace, selections: list[Selection]) -> int:
    """Write summary.json, print the scores, and return how many trials have no result."""
    trials = plan(selections, MODES[args.mode], args.repeats, args.seed)
    wanted = {trial.key for trial in trials}
    expected: dict[tuple[str, str], int] = {}
    for trial in trials:
        expected[trial.benchmark, trial.mode] = expected.get((trial.benchmark, trial.mode), 0) + 1
    found = [one for one in read_results(args.out) if result_key(one.to_dict()) in wanted]
    prices = Prices(args.price_read, args.price_written) if args.price_read or args.price_written else None
    summary = summaries(found, expected, prices)
    write_whole(args.out / "summary.json", json.dumps(_plain(summary), indent=1, ensure_ascii=False) + "\n")
    for name, modes in summary.items():
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

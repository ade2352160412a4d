"""`sandboxrl run --prompt TEXT --output DIR`: give a model one prompt and a computer, and keep what it makes."""

import argparse
import asyncio
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from sandboxrl.data.errors import InputError
from sandboxrl.data.files import write_whole
from sandboxrl.data.prompt.arms import load_arm
from sandboxrl.data.task import Task
from sandboxrl.envs.rollout import Environment, RolloutLimits, rollout
from sandboxrl.envs.sandbox.artifacts import KEPT_OPEN, Collected, collect, read_inputs
from sandboxrl.envs.sandbox.pool import Pool, open_backend
from sandboxrl.envs.sandbox.protocol import NETWORKS, Sandbox, SandboxConfig
from sandboxrl.envs.tools.display import visible
from sandboxrl.envs.tools.tool_set import tool_set
from sandboxrl.envs.trajectory import StopReason, Trajectory, Turn
from sandboxrl.rl.engine.config import EngineConfig
from sandboxrl.rl.evaluation.models import ModelSpec, open_policies, paper_sampling


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--prompt", required=True, metavar="TEXT", help="what is asked; @FILE reads it from a file")
    add("--input", type=Path, metavar="DIR", help="files the model finds in /testbed/input")
    add(
        "--output", required=True, type=Path, metavar="DIR", help="new or empty; what the model makes goes to DIR/files"
    )
    add("--endpoint", default="", metavar="URL", help="an OpenAI-compatible server")
    add("--model", required=True, metavar="NAME", help="the server's name of the model; without --endpoint, a folder")
    add("--arm", default="files", help="prompt arm, or a YAML file (default: files)")
    add("--seed", type=int, default=0)
    limits = RolloutLimits()
    add("--max-turns", type=int, default=limits.max_turns, metavar="N", help="default: %(default)s")
    add("--max-tokens", type=int, default=limits.max_tokens, metavar="N", help="default: %(default)s")
    add("--timeout", type=float, default=limits.timeout_s, metavar="S", help="seconds for all of it")
    add("--temperature", type=float, help="default: the paper's for this model")
    add("--backend", default="bubblewrap", help="bubblewrap, docker or my.py:Backend (default: bubblewrap)")
    add("--image", default=SandboxConfig().image, help="of a docker sandbox")
    add("--network", default="none", choices=NETWORKS, help="of the sandbox; `egress` lets it install packages")
    add(
        "--persist-shell",
        action="store_true",
        help="the model's commands share one shell, which programs can ask back in",
    )
    add("--api-key-env", default="OPENAI_API_KEY", metavar="NAME", help="variable that holds the server's key")
    add("--quiet", action="store_true", help="no progress, only the result")


def run(args: argparse.Namespace) -> int:
    prompt = _prompt(args.prompt)
    sandbox = SandboxConfig(
        backend=args.backend, image=args.image, network=args.network, persist_shell=args.persist_shell, warm=0
    )
    files = read_inputs(args.input, sandbox.limits.disk_bytes // 2) if args.input else {}
    if args.output.exists() and (not args.output.is_dir() or any(args.output.iterdir())):
        raise InputError(f"--output {args.output} is not an empty folder; name a new one")
    args.output.mkdir(parents=True, exist_ok=True)
    trajectory, collected = asyncio.run(_run(args, prompt, sandbox, files))
    write_whole(args.output / "trajectory.jsonl", json.dumps(trajectory.to_dict(), ensure_ascii=False) + "\n")
    return _report(args.output, trajectory, collected)


def _prompt(text: str) -> str:
    if text.startswith("@"):
        try:
            text = Path(text[1:]).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--prompt {text}: {error}") from None
    if not text.strip():
        raise InputError("--prompt is empty")
    return text


async def _run(
    args: argparse.Namespace, prompt: str, config: SandboxConfig, files: Mapping[str, bytes]
) -> tuple[Trajectory, Collected]:
    arm = load_arm(args.arm)
    where = args.endpoint or args.model
    sampling = paper_sampling(where, args.model)
    if args.temperature is not None:
        sampling = replace(sampling, temperature=args.temperature)
    limits = RolloutLimits(
        max_turns=args.max_turns,
        max_tokens=args.max_tokens,
        max_tokens_per_turn=args.max_tokens,
        timeout_s=args.timeout,
    )
    task = Task(id="prompt", source="run", question=prompt, gold="", reward="rouge")
    progress = Progress(quiet=args.quiet)
    collected = Collected()

    async def keep(sandbox: Sandbox) -> None:
        nonlocal collected
        collected = await collect(sandbox, args.output / "files")

    pool = Pool(open_backend(config), warm=0)
    try:
        spec = ModelSpec(
            where,
            args.model if args.endpoint else "",
            sampling,
            args.api_key_env,
            1,
            EngineConfig(max_model_len=args.max_tokens),
        )
        async with open_policies(spec) as policies:
            environment = Environment(
                arm, limits=limits, tools=tool_set(arm.tool_set, persist_shell=config.persist_shell), pool=pool
            )
            given = {**KEPT_OPEN, **files}
            trajectory = await rollout(task, policies[0], environment, args.seed, given, on_turn=progress, on_end=keep)
    finally:
        await pool.close()
    notes = {"model": args.model, "endpoint": spec.public_name if args.endpoint else "", "sampling": asdict(sampling)}
    asked = {"prompt": prompt, "arm": arm.name, "artifacts": collected.files, "left_out": collected.left_out}
    return replace(trajectory, metadata={**trajectory.metadata, **notes, **asked}), collected


class Progress:
    """Each turn as it ends, on standard error: what was said, what was called, what came back."""

    def __init__(self, quiet: bool) -> None:
        self.quiet, self.count = quiet, 0

    def __call__(self, turn: Turn) -> None:
        self.count += 1
        if self.quiet:
            return
        self._say(f"── turn {self.count} · {turn.num_sampled} tokens, {turn.sample_s:.1f} s")
        if turn.text.strip() and not turn.calls:
            self._say(_short(turn.text))
        for call in turn.calls:
            self._say(
                f"▸ {call.name} " + _short(" ".join(str(value) for value in call.arguments.values()) or call.error)
            )
        for observation in turn.observations:
            self._say("  " + _short(observation.text))

    def _say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


def _short(text: str, limit: int = 160) -> str:
    """One line of a stranger's text without control characters."""
    line = " ".join(visible(text).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _report(out: Path, trajectory: Trajectory, collected: Collected) -> int:
    for name, size in collected.files:
        print(f"{out / 'files' / _short(name, 200)}  {size} bytes")
    for name, why in collected.left_out:
        print(f"left in the sandbox: {_short(name, 200)!r}: {why}", file=sys.stderr)
    if trajectory.answer:
        print(f"answer: {_short(trajectory.answer, 2000)}")
    print(f"{len(trajectory.turns)} turns, {trajectory.wall_s:.1f} s: {out / 'trajectory.jsonl'}")
    if trajectory.stop is StopReason.FINISHED:
        return 0
    print(f"sandboxrl run: not finished: {trajectory.stop} {trajectory.error}".rstrip(), file=sys.stderr)
    return 1

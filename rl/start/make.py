"""The starting policy: a Qwen3 of a million parameters, made here in minutes, that uses a computer well less than half
of the time, so that reinforcement learning has something to improve.

    scripts ─ rollout (the real one) ─> trajectories ─> tokenizer ─> copying ─> acting ─> a Hugging Face folder

Scripted policies of mixed quality play the training tasks through the same rollout loop, chat format and tools as
later training, in a sandbox that is a dictionary; so the model sees exactly the tokens it will meet. It learns in two
stages, because a small model that is shown whole trajectories alone never learns to copy from its context:

    copying   short windows around the two places where a token must be copied (the key into the search, the value
              into the answer), with all the weight on the copied tokens
    acting    whole trajectories; most are flawed (they answer without looking or give up), copied tokens weigh more

Tasks come from the training split only. The one that ships was made by

    python -m sandboxrl.rl.start.make tiny --out rl/start/tiny
"""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from sandboxrl.data.builtin import build
from sandboxrl.data.errors import InputError
from sandboxrl.data.files import digest
from sandboxrl.data.prompt.arms import render
from sandboxrl.data.task import Task
from sandboxrl.envs.policy.chat import ChatFormat
from sandboxrl.envs.trajectory import Trajectory
from sandboxrl.rl.start.config import StartConfig, appear, named_start
from sandboxrl.rl.start.scripts import ARM, FLAWS, TOOLS, Player, play_all
from sandboxrl.rl.start.tokenizer import make_tokenizer

NUM_PROBES = 64
LINE_EVERY_S = 10.0
NUM_PARTS = 4
"""Forward passes of one step, as many at a time as there are cores: each takes lessons of similar lengths, so little of
it is padding. One core for each and not all for one: cores that must meet after every product stand still together
where one of them has other work."""


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m sandboxrl.rl.start.make", description="Make a starting policy.")
    parser.add_argument("name", help="tiny, or tiny@SEED")
    parser.add_argument("--out", type=Path, required=True, help="folder to make, which must not exist")
    args = parser.parse_args(argv)
    try:
        _, config = named_start(args.name)
        if args.out.exists():
            raise InputError(f"{args.out} exists already")
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    print(show_start(config, args.out))
    return 0


def show_start(config: StartConfig, folder: Path) -> Path:
    """`make_start` with a progress bar in a terminal, and a line every ten seconds elsewhere."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        bar = bars.add_task("starting policy", total=1.0, note="")
        said = time.monotonic() - LINE_EVERY_S

        def progress(stage: str, done: float, note: str) -> None:
            nonlocal said
            bars.update(bar, description=f"starting policy: {stage}", completed=done, note=note)
            if not bars.console.is_terminal and time.monotonic() - said >= LINE_EVERY_S:
                said = time.monotonic()
                print(f"starting policy: {stage}, {done:.0%} of all, {note}".rstrip(", "), file=sys.stderr, flush=True)

        return make_start(config, folder, progress)


def make_start(
    config: StartConfig, folder: Path, progress: Callable[[str, float, str], None], dtype: torch.dtype | None = None
) -> Path:
    """Make the starting policy in `folder`, which appears only when it is complete. Returns it.

    `progress(stage, done, note)` is told how far along things are, `done` from 0 to 1. Products are of `dtype`; None:
    the faster one here. The same settings make the same bits on one type of processor with one version of torch and the
    same `dtype`, however many cores there are. Weights are rounded to bfloat16, which halves the file; the model
    computes in float32.
    """
    clock = time.monotonic()
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)  # see NUM_PARTS
        progress("tokenizer", 0.0, "")
        tokenizer = make_tokenizer(config.seed)
        lessons = make_lessons(config, ChatFormat(tokenizer), lambda done: progress("scripts", 0.1 * done, ""))
        model = make_model(config, tokenizer)
        dtype = dtype or faster_dtype(model, lessons.acting[:NUM_PARTS])
        measured = _train(
            config, model, lessons, dtype, lambda stage, done, note: progress(stage, 0.1 + 0.9 * done, note)
        )
        measured["rounded"] = save_rounded(model, unfinished, lessons.probes)
        tokenizer.save_pretrained(unfinished)
        record = {
            "config": asdict(config),
            "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
            "vocab_size": len(tokenizer),
            "measured": measured,
            "expects": expectations(tokenizer),
            "made_with": {
                "torch": torch.__version__,
                "processor": torch.backends.cpu.get_cpu_capability(),
                "dtype": str(dtype).removeprefix("torch."),
            },
            "made_in_s": round(time.monotonic() - clock, 1),
        }
        (unfinished / "start.json").write_text(json.dumps(record, indent=2) + "\n")
        for file in unfinished.iterdir():
            file.chmod(0o644)
        unfinished.chmod(0o755)
        appear(unfinished, folder)
        return folder.resolve()
    finally:
        torch.set_num_threads(threads)
        shutil.rmtree(unfinished, ignore_errors=True)


def expectations(tokenizer: PreTrainedTokenizerFast) -> dict[str, str]:
    """Digests of what a model of this tokenizer meets today: it was made for these, and no others will do.

    Vocabulary; token ids of prompts; token ids of trajectories that solve their tasks, observations and all; the tools.
    """
    chat_format = ChatFormat(tokenizer)
    tasks = build("tiny", "train", 32, 0)
    prompts = [chat_format.prompt_ids(render(task, ARM, "sandbox"), TOOLS.schemas()) for task in tasks]
    rng = random.Random(0)
    played = play_all([Player(chat_format, task, "searches", rng) for task in tasks])
    met = {
        "vocabulary": sorted(tokenizer.get_vocab().items()),
        "prompt_ids": [list(ids) for ids in prompts],
        "trajectory_ids": [[int(token) for token in one.tokens.ids] for one in played if one.tokens],
        "tools": TOOLS.schemas(),
    }
    return {name: digest(json.dumps(value)) for name, value in met.items()}


# ---- lessons

Lesson = tuple[list[int], list[float]]
"""Token ids and the weight of predicting each of them."""


@dataclass(frozen=True)
class Lessons:
    copying: list[Lesson]
    acting: list[Lesson]
    probes: list[Lesson]
    """Whole good trajectories of other training tasks: weight 1 on the copied key, 2 on the copied value, else 0."""


def make_lessons(config: StartConfig, chat_format: ChatFormat, progress: Callable[[float], None]) -> Lessons:
    """Every task is played well for `copying` and by a script of mixed quality for `acting`."""
    rng = random.Random(f"lessons/{config.seed}")
    tasks = build("tiny", "train", config.num_tasks + NUM_PROBES, config.seed)

    def play(some: Sequence[Task], scripts: Sequence[str]) -> list[tuple[Player, Trajectory]]:
        players = [Player(chat_format, task, script, rng) for task, script in zip(some, scripts, strict=True)]
        return list(zip(players, play_all(players), strict=True))

    probes = [acting_lesson(*played, (1.0, 2.0), 0.0) for played in play(tasks[:NUM_PROBES], ["searches"] * NUM_PROBES)]
    copying: list[Lesson] = []
    acting: list[Lesson] = []
    names = ("searches", *FLAWS)
    shares = (1 - config.flawed, *(config.flawed * share / sum(FLAWS.values()) for share in FLAWS.values()))
    for start in range(NUM_PROBES, len(tasks), 100):
        progress(start / len(tasks))
        some = tasks[start : start + 100]
        for played in play(some, ["searches"] * len(some)):
            copying += copying_lessons(*played, config.template_weight)
        for played in play(some, rng.choices(names, shares, k=len(some))):
            acting.append(acting_lesson(*played, (config.copied_weight, config.copied_weight), 1.0))
    return Lessons(copying, acting, probes)


def copying_lessons(player: Player, trajectory: Trajectory, template_weight: float) -> list[Lesson]:
    """For each copying turn, the window from what it copies (the question; the search's result) to its end."""
    ids, weights = acting_lesson(player, trajectory, (1.0, 1.0), template_weight)
    opening = player.chat_format.reply_ids("<|im_start|>")[0]
    question = [position for position, token in enumerate(ids) if token == opening][1]  # the second message
    lessons = []
    for turn in player.copying_turns():
        before = trajectory.turns[turn - 1]
        window = before.end if turn - 1 in player.copying_turns() else question
        skipped = trajectory.turns[turn].start - window  # what was said before this turn is not its lesson
        end = trajectory.turns[turn].end
        lessons.append((ids[window:end], [0.0] * skipped + weights[window + skipped : end]))
    return lessons


def acting_lesson(
    player: Player, trajectory: Trajectory, copied_weights: Sequence[float], sampled_weight: float
) -> Lesson:
    """The whole trajectory: the weight of sampled tokens, and those of the copied key and the copied value."""
    assert trajectory.tokens is not None
    weights = [sampled_weight * mask for mask in trajectory.tokens.mask.tolist()]
    for turn, copied_weight in zip(player.copying_turns(), copied_weights, strict=False):
        for position in copied_positions(player, trajectory, turn):
            weights[position] = copied_weight
    return trajectory.tokens.ids.tolist(), weights


def copied_positions(player: Player, trajectory: Trajectory, turn: int) -> list[int]:
    """Where in the trajectory's ids the text stands that a turn copied."""
    assert trajectory.tokens is not None
    said = trajectory.turns[turn]
    first = said.text.rindex(player.copied[turn])
    last = first + len(player.copied[turn])
    positions, at = [], 0
    for position in range(said.start, said.end):
        behind = at + len(player.chat_format.decode([int(trajectory.tokens.ids[position])]))
        if at < last and behind > first:
            positions.append(position)
        at = behind
    return positions


# ---- model and training


def make_model(config: StartConfig, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    torch.manual_seed(config.seed)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_heads,
            head_dim=config.head_dim,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        eos_token_id=[tokenizer.eos_token_id, tokenizer.pad_token_id],
        pad_token_id=tokenizer.pad_token_id,
    )
    return model


def faster_dtype(model: Any, lessons: list[Lesson]) -> torch.dtype:
    """bfloat16 where this processor computes a gradient of some lessons faster in it than in float32: it is emulated by
    those that cannot multiply it, ten times as slow. The model is left as it was."""
    times = {}
    for dtype in (torch.float32, torch.bfloat16):
        clocks = []
        for _ in range(3):  # the first one also warms up
            clock = time.perf_counter()
            gradient(model, lessons, dtype)
            clocks.append(time.perf_counter() - clock)
        times[dtype] = min(clocks)
    model.zero_grad()
    return min(times, key=times.__getitem__)


def _train(
    config: StartConfig,
    model: Qwen3ForCausalLM,
    lessons: Lessons,
    dtype: torch.dtype,
    progress: Callable[[str, float, str], None],
) -> dict[str, Any]:
    """Both stages. Returns what was measured at the end of each."""
    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (matrices if parameter.dim() > 1 and "embed" not in name else others).append(parameter)
    optimizers = [
        torch.optim.Muon(matrices, lr=config.matrix_lr, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(others, lr=config.other_lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    rng = random.Random(f"order/{config.seed}")
    replay = rng.sample(lessons.copying, len(lessons.copying) // 8)
    stages = (
        ("copying", lessons.copying, config.copy_batch, config.copy_steps, 1.0, 0.3),
        ("acting", lessons.acting + replay, config.act_batch, config.act_steps, config.act_lr_scale, 0.01),
    )
    total_steps, done = config.copy_steps + config.act_steps, 0
    measured: dict[str, Any] = {}
    for stage, pupils, batch, steps, scale, floor in stages:
        order: list[Lesson] = []
        for step in range(steps):
            if len(order) < batch:
                order = rng.sample(pupils, len(pupils))
            rate = scale * min(1.0, (step + 1) / 20) * (floor + (1 - floor) * (1 - step / steps))
            loss = gradient(model, order[-batch:], dtype)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer, base in zip(optimizers, (config.matrix_lr, config.other_lr), strict=True):
                optimizer.param_groups[0]["lr"] = base * rate
                optimizer.step()
                optimizer.zero_grad()
            del order[-batch:]
            done += 1
            if done % 10 == 0:
                progress(stage, done / total_steps, f"loss {loss:.2f}")
        measured[stage] = {"loss": round(loss, 4), **copying(model, lessons.probes)}
    return measured


def gradient(model: Any, batch: Sequence[Lesson], dtype: torch.dtype) -> float:
    """Give the parameters the gradient of the weighted mean of the token losses, which it returns. Products are of
    `dtype`. The parts are added up in their order, so the number of cores changes no bit."""
    batch = sorted(batch, key=lambda lesson: len(lesson[0]))
    total = sum(sum(weights[1:]) for _, weights in batch)
    size = -(-len(batch) // NUM_PARTS)
    parameters = list(model.parameters())

    def of_part(part: Sequence[Lesson]) -> tuple[float, tuple[torch.Tensor, ...]]:
        ids, weights = _collate(part)
        targets, weights = ids[:, 1:], weights[:, 1:]
        counted = weights > 0  # logits only where they count
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
            hidden = model.model(ids[:, :-1], use_cache=False).last_hidden_state
            logits = model.lm_head(hidden[counted])
        losses = F.cross_entropy(logits.float(), targets[counted], reduction="none")
        loss = (losses * weights[counted]).sum() / total
        return loss.item(), torch.autograd.grad(loss, parameters)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as cores:
        losses, gradients = zip(
            *cores.map(of_part, [batch[at : at + size] for at in range(0, len(batch), size)]), strict=True
        )
    for parameter, *ones in zip(parameters, *gradients, strict=True):
        parameter.grad = torch.stack(ones).sum(0)
    return float(sum(losses))


@torch.no_grad()
def save_rounded(model: Any, folder: Path, probes: list[Lesson]) -> dict[str, float]:
    """Write the model with weights rounded to bfloat16, and measure what is left of it."""
    rounded = {name: parameter.bfloat16() for name, parameter in model.named_parameters()}  # a tied head once
    for name, parameter in model.named_parameters():
        parameter.copy_(rounded[name])
    model.save_pretrained(folder, state_dict=rounded)
    return copying(model, probes)


@torch.no_grad()
def copying(model: Any, probes: list[Lesson]) -> dict[str, float]:
    """Mean probability, when sampling at temperature 1, that the key and the value are copied in full."""
    ids, kinds = _collate(probes)
    logits = model(ids[:, :-1], use_cache=False).logits
    logprobs = -F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view_as(ids[:, 1:])
    key, value = ((logprobs * (kinds[:, 1:] == kind)).sum(1).exp().mean() for kind in (1, 2))
    return {"copies_key": round(float(key), 3), "copies_value": round(float(value), 3)}


def _collate(batch: Sequence[Lesson]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and weights (batch, longest), padded on the right with id 0 and weight 0."""
    longest = max(len(ids) for ids, _ in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    weights = torch.zeros(len(batch), longest)
    for row, (its_ids, its_weights) in enumerate(batch):
        ids[row, : len(its_ids)] = torch.tensor(its_ids)
        weights[row, : len(its_weights)] = torch.tensor(its_weights)
    return ids, weights


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""`sandboxrl explain RECIPE [key=value …]`: every resolved number of a recipe before a GPU is taken."""

import argparse
import json
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sandboxrl.data.errors import InputError
from sandboxrl.data.prompt.arms import load_arm
from sandboxrl.data.sources import ORIGINS, named_specs, origin_of, parse_spec
from sandboxrl.launch.parser import complete_recipe
from sandboxrl.rl.config import Recipe, find_recipe, load_recipe
from sandboxrl.rl.keys import is_carried_out, knobs
from sandboxrl.rl.sizes import report as sizes

GIB = 1 << 30


def configure(parser: argparse.ArgumentParser) -> None:
    recipe = parser.add_argument(
        "recipe", metavar="RECIPE", nargs="?", help="a YAML file, or the name of a recipe that ships (qwen3_4b)"
    )
    overrides = parser.add_argument("overrides", nargs="*", metavar="key=value", help="any key of the recipe")
    complete_recipe(recipe, overrides)
    parser.add_argument("--keys", action="store_true", help="list every key with its default and what it does")
    parser.add_argument("--dry-run", action="store_true", help="run the learner's step at true size, without values")
    parser.add_argument("--fit", action="store_true", help="search ranks, row size, checkpointing, offload that fit")
    parser.add_argument(
        "--gpu-memory", type=_gigabytes, metavar="GB", help="of each GPU; without it 80, 141 and 180 are tried"
    )
    parser.add_argument("--json", action="store_true", help="the same as one JSON object")


def run(args: argparse.Namespace) -> int:
    console = Console()
    if args.keys:
        console.print(_keys())
        return 0
    if args.recipe is None:
        raise InputError("name a recipe, for example recipes/tiny.yaml, or ask for --keys")
    recipe = load_recipe(find_recipe(args.recipe), args.overrides)
    load_arm(recipe.prompt)
    rows = list(facts(recipe, args.gpu_memory))
    report = sizes.dry_run_report(recipe, args.gpu_memory) if args.dry_run else None
    fitting = sizes.fit_report(recipe, args.gpu_memory) if args.fit else None
    if args.json:
        said = {"facts": [{"what": what, "value": value, "from": source} for what, value, source in rows]}
        parts = {"dry_run": report, "fit": fitting}
        print(json.dumps(said | {name: part for name, part in parts.items() if part is not None}, indent=2))
    else:
        show_facts(console, f"{args.recipe} -> {recipe.run_dir}", rows)
        _show_dry_run(console, report)
        _show_fit(console, fitting)
    if why := sizes.unfit(recipe, args.gpu_memory) if report is None else sizes.first_problem(report):
        raise InputError(f"{args.recipe} does not fit: {why}")
    return 0


def show_facts(console: Console, title: str, rows: Sequence[tuple[str, str, str]]) -> None:
    """In columns that 80 characters hold, without breaking a key; one line per fact where nobody sees them (a pipe)."""
    if not console.is_terminal:
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        print(title, *(f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c}".rstrip() for a, b, c in rows), sep="\n")
        return
    table = Table("what", "", "comes from", title=title, box=None, pad_edge=False)
    for column, width in zip(table.columns, (28, 21, None), strict=True):
        column.max_width, column.overflow = width, "fold"
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)


def _gigabytes(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = 0.0
    if not 1 <= value <= 10_000:
        raise argparse.ArgumentTypeError(f"{word}: a GPU's memory in GB, for example 80")
    return value


def _show_dry_run(console: Console, report: dict[str, Any] | None) -> None:
    if report is None:
        return
    title = (
        f"dry run: a row of {report['row_tokens']:,} tokens on {report['ranks']} ranks, GB per rank "
        f"({report['seconds']:.0f} s)"
    )
    table = Table("", *report["phases"], title=title)
    for part in next(iter(report["phases"].values())):
        values = [phase[part] for phase in report["phases"].values()]
        if any(values):
            table.add_row(part, *(f"{value:.2f}" for value in values))
    table.add_row("by formula", *(f"{value:.2f}" for value in report["by_formula"].values()))
    console.print(table)
    console.print("It does not see, so keep free: " + ", ".join(f"{k} {v:.2f} GB" for k, v in report["unseen"].items()))
    console.print(f"A GPU must have {report['needed_gb']:.1f} GB.", highlight=False)
    if report["host_gb"]:
        console.print(f"In host memory: {report['host_gb']:.1f} GB per rank.", highlight=False)
    most = sorted(report["operators"].items(), key=lambda item: -item[1])[: sizes.SHOWN_OPERATORS]
    console.print(f"{len(report['operators'])} operators; most often " + ", ".join(f"{k} {v}" for k, v in most))
    for size, why in report["gpus"].items():
        console.print(f"GPUs of {size} GB: " + ("; ".join(why) or "fits"), highlight=False)


def _show_fit(console: Console, fitting: dict[str, list[dict[str, Any]]] | None) -> None:
    for size, found in (fitting or {}).items():
        if not found:
            console.print(f"GPUs of {size} GB: nothing that was tried fits")
            continue
        table = Table(*found[0], title=f"what fits GPUs of {size} GB, best first")
        for one in found:
            table.add_row(*map(str, one.values()))
        console.print(table)


def facts(recipe: Recipe, gpu_gb: float | None = None) -> Iterator[tuple[str, str, str]]:
    """(what, value, where it comes from) for everything that a person wants to know before the run."""
    trajectories = recipe.groups_per_step * recipe.group_size
    minibatches = recipe.learner.minibatches
    yield "tasks per step", f"{recipe.groups_per_step}", "groups_per_step"
    yield "trajectories per step", f"{trajectories}", "groups_per_step x group_size"
    yield "trajectories an optimizer step", f"{trajectories / minibatches:g}", "… / learner.minibatches"
    yield "optimizer steps in all", f"{recipe.steps * minibatches}", "steps x learner.minibatches"
    yield "tasks in all, at least", f"{recipe.steps * recipe.groups_per_step}", "steps x groups_per_step"
    in_flight = trajectories * (1 + recipe.max_staleness)
    yield "trajectories in flight, at most", f"{in_flight}", "… x (1 + max_staleness)"
    boxes = min(in_flight, recipe.num_workers * recipe.engine.max_num_seqs)
    if recipe.mode == "sandbox":
        memory = boxes * recipe.sandbox.limits.memory_bytes
        yield "sandboxes at once, at most", f"{boxes}", "num_workers x engine.max_num_seqs, or fewer in flight"
        yield (
            "their memory limits together",
            f"{memory / GIB:.0f} GiB",
            "… x sandbox.limits.memory_bytes (not reserved)",
        )
        yield (
            "sandbox",
            f"{recipe.sandbox.backend}, network {recipe.sandbox.network}",
            "sandbox.backend, sandbox.network",
        )
    yield "tokens per trajectory, at most", f"{recipe.limits.max_tokens:,}", "limits.max_tokens, prompt included"
    yield "tokens per step, at most", f"{trajectories * recipe.limits.max_tokens:,}", "… x trajectories per step"
    yield "a token weighs", _weight(recipe), "loss.aggregation"
    yield "ratio clipped to", f"[{1 - recipe.loss.clip_low:g}, {1 + recipe.loss.clip_high:g}]", _clip_note(recipe)
    yield "over-long trajectories", recipe.loss.overlong, "loss.overlong"
    yield "old log-probabilities", recipe.loss.old_logprobs, "loss.old_logprobs"
    measure, bound = recipe.logprob_bound
    yield f"{measure}, at most", f"{bound:g}", "max_logprob_mismatch, engine against learner"
    evaluations = recipe.evaluation.before + recipe.evaluation.after
    evaluations += max(0, (recipe.steps - 1) // recipe.evaluation.every) if recipe.evaluation.every else 0
    yield "evaluations", f"{evaluations}", "evaluation.before, .every, .after"
    yield from _task_facts(recipe)
    yield from sizes.facts(recipe, gpu_gb)


def _task_facts(recipe: Recipe) -> Iterator[tuple[str, str, str]]:
    """Where the rows of each set are; a data set of the Hub with its commit."""
    for key, spec in (("tasks.train", recipe.tasks.train), ("tasks.eval", recipe.tasks.eval)):
        for name, one in named_specs(spec, key).items() if spec is not None else ():
            try:
                source, options = parse_spec(
                    {k: v for k, v in one.items() if k != "weight"} if isinstance(one, dict) else one
                )
                origin = origin_of(source, options) if source in ORIGINS else None
            except InputError as error:
                raise InputError(f"{key}.{name}: {error}") from None
            if origin is None:
                yield f"rows of {key}.{name}", str(options.get("path", source)), f"{key}.{name}"
            elif origin.local:
                yield f"rows of {key}.{name}", origin.asked, f"{key}.{name}, a local copy"
            else:
                moving = "" if origin.is_pinned else " is no commit: it is looked up, and data.json has what it was"
                yield f"rows of {key}.{name}", origin.asked, f"{key}.{name}.revision{moving}"


def _weight(recipe: Recipe) -> str:
    return {
        "sequence_mean_token_sum": "1 / trajectories",
        "sequence_mean_token_sum_norm": f"1 / (trajectories x {recipe.loss.length_norm})",
        "sequence_mean_token_mean": "1 / (trajectories x its trajectory's tokens)",
        "prompt_mean": "1 / (tasks x its group's tokens)",
        "token_mean": "1 / sampled tokens of the optimizer step",
        "token_sum": "1",
    }[recipe.loss.aggregation]


def _clip_note(recipe: Recipe) -> str:
    on_policy = recipe.learner.minibatches == 1 and recipe.max_staleness == 0
    return "loss.clip_low, .clip_high" + (" (inert: one on-policy step a batch, ratio 1)" if on_policy else "")


def _keys() -> Table:
    told = "every key of a recipe; those with * say how a run is carried out and may change when it goes on"
    table = Table("key", "default", "what it does", title=told)
    for key, (default, text) in knobs(Recipe).items():
        table.add_row(key + " *" * is_carried_out(key, Recipe), str(default), text)
    return table

"""`sandboxrl explain RECIPE [key=value …]`: every resolved number of a recipe before a GPU is taken."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sandboxrl.data.errors import InputError
from sandboxrl.data.prompt.arms import load_arm
from sandboxrl.data.sources import ORIGINS, named_specs, origin_of, parse_spec
from sandboxrl.rl.config import Recipe, knobs, load_recipe

GIB = 1 << 30


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", nargs="?", help="a YAML file, for example recipes/qwen3_4b.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="any key of the recipe")
    parser.add_argument("--keys", action="store_true", help="list every key with its default and what it does")


def run(args: argparse.Namespace) -> int:
    console = Console()
    if args.keys:
        console.print(_keys())
        return 0
    if args.recipe is None:
        raise InputError("name a recipe, for example recipes/tiny.yaml, or ask for --keys")
    recipe = load_recipe(args.recipe, args.overrides)
    load_arm(recipe.prompt)
    table = Table("", "what", "comes from", title=f"{args.recipe} -> {recipe.run_dir}", show_lines=False)
    for column in table.columns:
        column.overflow = "fold"
    for what, value, source in facts(recipe):
        table.add_row(value, what, source)
    console.print(table)
    return 0


def facts(recipe: Recipe) -> Iterator[tuple[str, str, str]]:
    """(what, value, where it comes from) for everything that a person wants to know before the run."""
    trajectories = recipe.groups_per_step * recipe.group_size
    minibatches = recipe.learner.minibatches
    yield "tasks a step", f"{recipe.groups_per_step}", "groups_per_step"
    yield "trajectories a step", f"{trajectories}", "groups_per_step x group_size"
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
    yield "tokens a trajectory, at most", f"{recipe.limits.max_tokens:,}", "limits.max_tokens, prompt included"
    yield "tokens a step, at most", f"{trajectories * recipe.limits.max_tokens:,}", "… x trajectories a step"
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
    yield from _model_facts(recipe)


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


def _model_facts(recipe: Recipe) -> Iterator[tuple[str, str, str]]:
    config = _model_config(recipe.model.path)
    if config is None:
        yield "model", recipe.model.path or "(none)", "model.path; sizes are known once the folder is there"
        return
    count = num_parameters(config)
    ranks, row = recipe.learner.world_size, recipe.learner.max_tokens_per_row
    yield "parameters", f"{count / 1e9:.3f} billion", "config.json of model.path"
    yield (
        "learner: weights, gradients, Adam",
        f"{16 * count / ranks / GIB:.2f} GiB a rank",
        "16 bytes a parameter / world_size",
    )
    yield (
        "a checkpoint on disk",
        f"{12 * count / GIB:.2f} GiB",
        "12 bytes a parameter; checkpoint.keep of them, and one more",
    )
    width = 2 if recipe.learner.dtype == "bfloat16" else 4
    kept = config["num_hidden_layers"] * config["hidden_size"] * width * row
    if recipe.learner.gradient_checkpointing:
        yield (
            "learner: layer inputs kept",
            f"{kept / GIB:.2f} GiB a row",
            "layers x hidden x learner.max_tokens_per_row",
        )
    logits = 4 * config["vocab_size"] * min(row, recipe.learner.logprob_chunk)
    yield "learner: logits at once", f"{logits / GIB:.2f} GiB", "vocabulary x learner.logprob_chunk, float32"
    cache = kv_bytes_per_token(config, 4 if recipe.engine.dtype == "float32" else 2)
    yield "engine: KV cache", f"{cache * recipe.limits.max_tokens / GIB:.2f} GiB", "one trajectory of full length"


def num_parameters(config: dict[str, Any]) -> int:
    """Of a Qwen3 (dense or mixture of experts) from its config.json; norms of the heads included."""
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    head = config.get("head_dim") or hidden // config["num_attention_heads"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    attention = hidden * (queries + 2 * keys) + queries * hidden + 2 * head
    if config.get("num_experts"):
        mlp = config["num_experts"] * 3 * hidden * config["moe_intermediate_size"] + hidden * config["num_experts"]
    else:
        mlp = 3 * hidden * config["intermediate_size"]
    embeddings = config["vocab_size"] * hidden * (1 if config.get("tie_word_embeddings") else 2)
    return int(layers * (attention + mlp + 2 * hidden) + hidden + embeddings)


def kv_bytes_per_token(config: dict[str, Any], width: int) -> int:
    """Keys and values of all layers for one token; `width` bytes a number."""
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return int(2 * config["num_hidden_layers"] * config["num_key_value_heads"] * head * width)


def _model_config(path: str) -> dict[str, Any] | None:
    file = Path(path) / "config.json"
    return dict(json.loads(file.read_text())) if path and file.is_file() else None


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
    table = Table("key", "default", "what it does", title="every key of a recipe")
    for key, (default, text) in knobs(Recipe).items():
        table.add_row(key, str(default), text)
    return table

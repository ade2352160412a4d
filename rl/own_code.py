"""The user's own code that a recipe names: checked before anything starts, noted in the run, sent to every node."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from sandboxrl.data.errors import InputError
from sandboxrl.data.plugin import Code, digest, is_own
from sandboxrl.data.prompt.arms import load_arm
from sandboxrl.data.sources import named_specs, own_rewards
from sandboxrl.envs.grading.own import own_kind
from sandboxrl.envs.sandbox.pool import find_backend
from sandboxrl.envs.tools.tool_set import tool_set
from sandboxrl.rl.config import Recipe
from sandboxrl.rl.grpo import find_advantage, find_policy_loss
from sandboxrl.rl.hooks import load_hooks


def with_code(recipe: Recipe) -> Recipe:
    """The recipe with the digest of all the code it names. Raises InputError for a part that is not there or does not
    have the shape that its place asks for."""
    if recipe.mode == "sandbox":
        tool_set(recipe.tool_set or load_arm(recipe.prompt).tool_set, recipe.tools, recipe.sandbox.persist_shell)
        find_backend(recipe.sandbox.backend)
    load_hooks(recipe.hooks)
    find_advantage(recipe.loss.advantage)
    find_policy_loss(recipe.loss.policy_loss)
    for name, value in recipe.grader.kinds.items():
        own_kind(value, f"grader.kinds.{name}")
    return replace(recipe, code={value: digest(value, key) for key, value in own_values(recipe)})


def check_code(recipe: Recipe, known: Mapping[str, str]) -> None:
    """Raises InputError where code is not what it was when the run began: `known` is what the run noted."""
    for value, now in recipe.code.items():
        if known.get(value, now) != now:
            raise InputError(f"{value} has changed since {recipe.run_dir} began; undo that or choose another name=…")


def code_of(recipe: Recipe) -> Code:
    """The files to send to every worker and learner."""
    return Code.of(value for _, value in own_values(recipe))


def own_values(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """(key, value) of every part that is the user's own."""
    named: list[tuple[str, str]] = [
        *(("tools", value) for value in recipe.tools),
        *(("hooks", value) for value in recipe.hooks),
        ("loss.advantage", recipe.loss.advantage),
        ("loss.policy_loss", recipe.loss.policy_loss),
        ("sandbox.backend", recipe.sandbox.backend),
        *((f"grader.kinds.{name}", value) for name, value in recipe.grader.kinds.items()),
        *_sources("tasks.train", recipe.tasks.train),
        *_sources("tasks.eval", recipe.tasks.eval),
    ]
    yield from ((key, value) for key, value in named if is_own(value))
    for key, sets in (("tasks.train", recipe.tasks.train), ("tasks.eval", recipe.tasks.eval)):
        for name, spec in named_specs(sets, key).items() if sets else ():
            spec = {k: v for k, v in spec.items() if k != "weight"} if isinstance(spec, Mapping) else spec
            yield from ((f"{key}.{name}: reward", reward) for reward in sorted(own_rewards(spec)))


def _sources(key: str, sets: Any) -> Iterator[tuple[str, str]]:
    """Every text of a task set that names a Python file's object."""
    if isinstance(sets, str):
        yield key, sets
    elif isinstance(sets, Mapping):
        for name, below in sets.items():
            yield from _sources(f"{key}.{name}", below)

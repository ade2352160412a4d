"""The parser of every verb: what is wrong becomes an InputError with the nearest valid word."""

import argparse
import importlib
from pathlib import Path
from typing import Any, NoReturn

import sandboxrl
from sandboxrl.data.errors import InputError, nearest


class Parser(argparse.ArgumentParser):
    """argparse that says what is wrong by an InputError, with the nearest valid word."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message and unknown.startswith("-"):
            word = unknown.split()[0].partition("=")[0]
            message = f"unknown argument {word!r}{nearest(word, self._option_string_actions)}"
        raise InputError(message)


def parser_of(verb: str) -> Parser:
    """The parser of one verb; imports that verb alone."""
    module = importlib.import_module(f"sandboxrl.launch.{verb}")
    parser = Parser(prog=f"sandboxrl {verb}", description=(module.__doc__ or "").split("\n")[0])
    module.configure(parser)
    return parser


def complete_recipe(recipe: argparse.Action, overrides: argparse.Action, folder: str = "") -> None:
    """The shell completes the recipes that ship, and `key=` for each key of a recipe; files where neither fits."""

    def names(prefix: str, **_: object) -> list[str]:
        shipped = Path(sandboxrl.__file__).with_name("recipes") / folder
        return [file.stem for file in sorted(shipped.glob("*.yaml")) if file.stem.startswith(prefix)]

    def keys(prefix: str, **_: object) -> list[str]:
        from sandboxrl.rl.config import Recipe  # not before somebody presses the key
        from sandboxrl.rl.keys import knobs

        return [f"{key}=" for key in knobs(Recipe) if key.startswith(prefix)]

    recipe.completer = names  # type: ignore[attr-defined]
    overrides.completer = keys  # type: ignore[attr-defined]


def configure_progress(parser: argparse.ArgumentParser) -> None:
    """`--quiet` and `--json`, for every verb that takes long."""
    shown = parser.add_mutually_exclusive_group()
    told = "no progress, only what comes of it"
    shown.add_argument("--quiet", dest="progress", action="store_const", const="quiet", default="auto", help=told)
    told = "one JSON object per line: stages, progress, steps, evaluations, the end"
    shown.add_argument("--json", dest="progress", action="store_const", const="json", help=told)

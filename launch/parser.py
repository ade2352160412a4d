"""The parser of every verb: what is wrong becomes an InputError with the nearest valid word."""

import argparse
import importlib
from typing import Any, NoReturn

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


def configure_progress(parser: argparse.ArgumentParser) -> None:
    """`--quiet` and `--json`, for every verb that takes long."""
    shown = parser.add_mutually_exclusive_group()
    told = "no progress, only what comes of it"
    shown.add_argument("--quiet", dest="progress", action="store_const", const="quiet", default="auto", help=told)
    told = "one JSON object per line: stages, progress, steps, evaluations, the end"
    shown.add_argument("--json", dest="progress", action="store_const", const="json", help=told)

"""`sandboxrl VERB …`, the same as `python -m sandboxrl.launch VERB …`.

Exit code 0: done. 1: failed while running, or interrupted. 2: the input was wrong. Whatever fails is one line on
standard error; `SANDBOXRL_TRACEBACK=1` shows where in the code it was raised.
"""

# PYTHON_ARGCOMPLETE_OK

import contextlib
import importlib
import io
import os
import sys
import traceback
from collections.abc import Sequence

import sandboxrl
from sandboxrl.data.errors import InputError, described, is_machine_fault, nearest, one_line, told
from sandboxrl.launch.parser import Parser, parser_of
from sandboxrl.launch.signals import like_ctrl_c

VERBS = {
    "train": "train a policy by reinforcement: sandboxrl train RECIPE [key=value …]",
    "evaluate": "score a model folder or an endpoint on benchmarks, with and without a computer",
    "run": "give a model one prompt of your own and a computer; keep what it makes",
    "sweep": "train arms x seeds as Ray jobs and print one table",
    "export": "write a run's policy as a Hugging Face folder that vLLM serves",
    "analyze": "print the paper's tables from trajectories",
    "view": "one self-contained page of a run or an evaluation, token by token",
    "data": "build and check task files",
    "explain": "every resolved number of a recipe before a GPU is taken",
    "check": "whether a run's checkpoints are whole, and a sandbox backend keeps its promises",
    "status": "what a live run is doing and waiting for",
    "doctor": "what this machine lacks and the line that fixes it",
    "image": "build and check the sandbox image",
}
PATH_TROUBLE = ("Symlink loop from", "Could not determine home directory")
"""What pathlib raises as a RuntimeError, though it is a path that is wrong."""
NO_THREAD = "can't start new thread"
"""What Python raises as a RuntimeError where the system allows no more of them."""
NESTED = ("check", "data", "image")
"""Verbs with verbs of their own: argparse cannot take their options and their words in any order."""


def main(arguments: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if arguments is None else list(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that has no "…" is no reason to fail
    if "_ARGCOMPLETE" in os.environ:
        _complete()
    code = _exit_code(words)
    return code if _flushed() else max(code, 1)


def _exit_code(words: Sequence[str]) -> int:
    """Run the command; whatever it raises becomes one line."""
    try:
        with like_ctrl_c():
            return _run(words)
    except SystemExit as ended:  # argparse has printed a help text
        return int(ended.code or 0)
    except InputError as error:
        cause = error.__cause__  # a sandbox that cannot be started may lack descriptors
        fault = isinstance(cause, OSError) and is_machine_fault(cause)
        return _failed(words, 1 if fault else 2, one_line(error, 2000), error)
    except KeyboardInterrupt as error:
        return _failed(words, 1, "interrupted" + "".join(f"; {note}" for note in error.args), error)
    except BrokenPipeError:
        return 1  # whoever read the output has read enough, as `head` does
    except OSError as error:
        return _failed(words, 1 if is_machine_fault(error) else 2, told(error), error)
    except Exception as error:
        if str(error).startswith(PATH_TROUBLE):
            return _failed(words, 2, one_line(error), error)
        if str(error) == NO_THREAD:
            return _failed(words, 1, "no further process or thread may be started here (ulimit -u, or pids.max)", error)
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{os.path.basename(place.filename)}:{place.lineno}; SANDBOXRL_TRACEBACK=1 shows the whole trace"
        return _failed(words, 1, f"internal error: {described(error)} ({where})", error)


def _run(words: Sequence[str]) -> int:
    if not words:
        raise InputError("name a verb; `sandboxrl --help` lists them")
    verb, *rest = words
    if verb.startswith("-"):
        _all_verbs().parse_args([verb])  # ends here with --help or --version
    if verb not in VERBS:
        raise InputError(f"unknown verb {verb!r}{nearest(verb, VERBS)}")
    parser = parser_of(verb)  # this one alone is imported, so that each starts at once
    parsed = parser.parse_args(rest) if verb in NESTED else parser.parse_intermixed_args(rest)
    return int(importlib.import_module(f"sandboxrl.launch.{verb}").run(parsed))


def _all_verbs(*imported: str) -> Parser:
    """The parser of `sandboxrl --help`; of the `imported` verbs it knows the options too."""
    parser = Parser(
        prog="sandboxrl",
        description="Gives a language model a computer, measures it there and trains it there.",
        epilog="`sandboxrl VERB --help` explains a verb.",
    )
    parser.add_argument("--version", action="version", version=f"sandboxrl {sandboxrl.__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb, what in VERBS.items():
        sub = verbs.add_parser(verb, help=what, description=what)
        if verb in imported:
            importlib.import_module(f"sandboxrl.launch.{verb}").configure(sub)
    return parser


def _complete() -> None:
    """Answer the shell, which asks for the words that fit, and end."""
    import argcomplete

    typed = os.environ.get("COMP_LINE", "").split()
    argcomplete.autocomplete(_all_verbs(*(word for word in typed if word in VERBS)))


def _failed(words: Sequence[str], code: int, what: str, error: BaseException) -> int:
    verb = words[0] if words and words[0] in VERBS else ""
    with contextlib.suppress(OSError):  # standard error may be full or closed; the exit code still tells
        if os.environ.get("SANDBOXRL_TRACEBACK"):
            traceback.print_exception(error)
        print(f"sandboxrl {verb}".rstrip() + f": {what}", file=sys.stderr, flush=True)
    return code


def _flushed() -> bool:
    """Whether all output is written. What cannot be is dropped, or Python would fail on it once more at its exit."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
        return True
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            _failed((), 1, f"standard output: {told(error)}", error)
        with open(os.devnull, "w") as nowhere, contextlib.suppress(OSError):
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return False


if __name__ == "__main__":
    sys.exit(main())

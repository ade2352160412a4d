"""`sandboxrl VERB …`, the same as `python -m sandboxrl.launch VERB …`.

Exit code 0: done. 1: failed while running. 2: the input was wrong (one clear line on standard error, no traceback).
"""

import argparse
import importlib
import sys

from sandboxrl.data.errors import InputError

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
    "check": "which checkpoints of a run are whole: sandboxrl check run RUN",
    "status": "what a live run is doing and waiting for",
    "doctor": "what this machine lacks and the line that mends it",
    "image": "build and check the sandbox image",
}


def main(arguments: list[str] | None = None) -> int:
    words = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(
        prog="sandboxrl",
        description="Gives a language model a computer, measures it there and trains it there.",
        epilog="`sandboxrl VERB --help` explains a verb.",
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    chosen = next((word for word in words if not word.startswith("-")), None)
    for verb, what in VERBS.items():
        # only the chosen verb is imported, so that each of them starts at once
        sub = verbs.add_parser(verb, help=what, description=what)
        if verb == chosen:
            module = importlib.import_module(f"sandboxrl.launch.{verb}")
            module.configure(sub)
            sub.set_defaults(run=module.run)
    parsed = parser.parse_args(words)
    try:
        return int(parsed.run(parsed))
    except InputError as error:
        print(f"sandboxrl {parsed.verb}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"sandboxrl {parsed.verb}: interrupted", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

"""The child process of a tracker: `python -m sandboxrl.rl.reports.trackers.child KIND SETTINGS`, told by lines of JSON.

    in   {"log": {"step": 3, ...}}   {"completions": NAME, "step": 3, "rows": [...]}   {"finish": summary}
    out  {"ready": true, "news": TEXT} or {"refused": TEXT}, and at the end {"lost": N, "error": TEXT}

What one line makes the tracker raise loses that line: it is written to standard error and counted, and the next line is
tried. A pipe that ends without `finish` is a run that was killed.
"""

import json
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from sandboxrl.data.errors import InputError
from sandboxrl.rl.reports.trackers.tensorboard import open_tensorboard
from sandboxrl.rl.reports.trackers.tracker import Tracker
from sandboxrl.rl.reports.trackers.wandb import open_wandb

OPENERS: dict[str, Callable[..., tuple[Tracker, str]]] = {"wandb": open_wandb, "tensorboard": open_tensorboard}
"""Kind -> from its settings the tracker, and what a person should know. An InputError is what the user must change."""


def main(kind: str, settings: Mapping[str, Any]) -> int:
    try:
        tracker, news = OPENERS[kind](**settings)
    except InputError as error:
        _answer({"refused": str(error)})
        return 2
    _answer({"ready": True, "news": news})
    lost, first, summary = 0, "", {"status": "killed"}
    for line in sys.stdin:
        message = json.loads(line)
        if "finish" in message:
            summary = message["finish"]
            break
        try:
            if "log" in message:
                tracker.log(message["log"])
            else:
                tracker.completions(message["completions"], message["step"], message["rows"])
        except Exception as error:  # a library of someone else's: whatever it is, the next line is tried
            lost, first = lost + 1, first or f"{type(error).__name__}: {error}"
            traceback.print_exc()
    try:
        tracker.finish(summary)
    finally:
        _answer({"lost": lost, "error": first})
    return 0


def _answer(answer: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], json.loads(sys.argv[2])))

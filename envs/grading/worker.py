"""The process that grades with code that may hang or eat memory: math-verify, and the official IFBench verifier.

Run as `python -m sandboxrl.envs.grading.worker`; `envs.grading.processes.Workers` starts, feeds, kills and replaces it.
One JSON object per line each way: `{"kind", "deadline_s", "wall_s", ...}` in, `{"score"}` or `{"error"}` out; first
it says `ready`. It ends with its standard input, by an alarm if whoever fed it dies while it hangs, and
with SIGXCPU when one request has used `deadline_s` of processor time, which a busy machine does not shorten.
"""

import json
import math
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from sandboxrl.data.task import Task
from sandboxrl.envs.grading.ifbench import find_verifier, ifbench_score
from sandboxrl.envs.grading.mathematics import math_score, verified, wrapped
from sandboxrl.envs.grading.release_rules import reference_score

MEMORY_BYTES = 4 << 30

Request = dict[str, Any]
WORK: dict[str, Callable[[Request], dict[str, Any]]] = {
    "math": lambda asked: {"score": math_score(asked["gold"], asked["answer"])},
    "digest": lambda asked: {"score": float(verified(wrapped(asked["gold"]), wrapped(asked["gold"])))},
    "reference": lambda asked: {"score": reference_score(Task.from_json(asked["task"]), asked["answer"])},
    "ifbench": lambda asked: {
        "score": ifbench_score(asked["gold"], asked["prompt"], asked["answer"], find_verifier(asked["checkout"]))
    },
    "ifbench_names": lambda asked: {"names": sorted(find_verifier(asked["checkout"]))},
}


def main() -> None:
    # answers go to a private copy of standard output: what a verifier prints must not mix with them
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert math_score("x+1", "1+x") == 1.0  # imports what is heavy, outside any deadline
    print(json.dumps({"ready": True}), file=replies, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        signal.alarm(math.ceil(request["wall_s"]) + 5)
        _, most = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time() + request["deadline_s"]), most))
        try:
            reply = WORK[request["kind"]](request)
        except Exception as error:  # the boundary: any failure of a verifier is reported, never a score
            reply = {"error": f"{type(error).__name__}: {error}"}
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_CPU, (most, most))
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()

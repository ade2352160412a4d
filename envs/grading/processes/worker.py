"""The process that grades with code that may hang or eat memory: math-verify, IFBench, a user's own.

Run as `python -m sandboxrl.envs.grading.processes.worker`; `Workers` beside it starts, feeds, kills and replaces it.
One JSON object per line each way: `{"kind", "deadline_s", "wall_s", ...}` in, `{"score"}` or `{"error"}` out; first
it says `ready`. It ends with its standard input, by an alarm if whoever fed it dies while it hangs, and
with SIGXCPU when one request has used `deadline_s` of processor time, which a busy machine does not shorten.
"""

import asyncio
import base64
import functools
import inspect
import json
import math
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from sandboxrl.data.errors import described
from sandboxrl.data.plugin import plugged
from sandboxrl.data.task import Task
from sandboxrl.envs.grading.answers.mathematics import math_score, verified, wrapped
from sandboxrl.envs.grading.answers.release_rules import reference_score
from sandboxrl.envs.grading.processes.ifbench import find_verifier, ifbench_score
from sandboxrl.envs.grading.protocol import Kind
from sandboxrl.envs.sandbox.protocol import ExecResult, FileRefused

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

OWN = "own"


class PipedSandbox:
    """The trajectory's sandbox for a user's reward: each call is made by the process that asked for the score."""

    def __init__(self, ask: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        self._ask = ask

    async def exec(self, command: str, **options: Any) -> ExecResult:
        found = self._call("exec", command=command, **options)
        return ExecResult(**{**found, **{name: base64.b64decode(found[name]) for name in ("stdout", "stderr")}})

    async def read(self, path: str, max_bytes: int = 1 << 20) -> bytes:
        return base64.b64decode(self._call("read", path=path, max_bytes=max_bytes))

    async def write(self, files: Mapping[str, bytes]) -> None:
        self._call("write", files={path: base64.b64encode(data).decode() for path, data in files.items()})

    def _call(self, name: str, **arguments: Any) -> Any:
        reply = self._ask({"call": name, "arguments": arguments})
        if "refused" in reply:
            raise FileRefused(*reply["refused"])
        return reply["result"]


def own_score(request: Request, sandbox: PipedSandbox) -> dict[str, Any]:
    """What a user's own reward says of an answer: `score`, or `failure` and its `traceback`."""
    try:
        found: Any = plugged(request["where"], {}, "reward")
        function: Any = found.score if isinstance(found, Kind) else found
        task = Task.from_json(request["task"])
        score = function(task, request["answer"], sandbox if request["has_sandbox"] else None)
        if inspect.isawaitable(score):
            score = asyncio.run(_awaited(score))
    except Exception as error:
        return {"failure": f"raised {described(error)}", "traceback": traceback.format_exc()}
    if isinstance(score, str) or not hasattr(score, "__float__"):
        return {"failure": f"returned {score!r}, which is no number"[:300], "traceback": ""}
    if not 0.0 <= float(score) <= 1.0:
        return {"failure": f"returned {float(score):g}, which is no score in [0, 1]", "traceback": ""}
    return {"score": float(score)}


async def _awaited(score: Any) -> Any:
    return await score


def main() -> None:
    # answers go to a private copy of standard output: what a verifier prints must not mix with them
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert math_score("x+1", "1+x") == 1.0  # imports what is heavy, outside any deadline
    print(json.dumps({"ready": True}), file=replies, flush=True)
    for line in iter(sys.stdin.readline, ""):
        request = json.loads(line)
        signal.alarm(math.ceil(request["wall_s"]) + 5)
        _, most = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time() + request["deadline_s"]), most))
        try:
            if request["kind"] == OWN:
                reply = own_score(request, PipedSandbox(functools.partial(_ask, replies)))
            else:
                reply = WORK[request["kind"]](request)
        except Exception as error:  # the boundary: any failure of a verifier is reported, never a score
            reply = {"error": f"{type(error).__name__}: {error}"}
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_CPU, (most, most))
        print(json.dumps(reply), file=replies, flush=True)


def _ask(replies: TextIO, call: dict[str, Any]) -> dict[str, Any]:
    print(json.dumps(call), file=replies, flush=True)
    answer: dict[str, Any] = json.loads(sys.stdin.readline())
    return answer


if __name__ == "__main__":
    main()

"""The process that grades with code that may hang or eat memory: math-verify, and the official IFBench verifier.

Run as `python -m envs.grading.worker`; `envs.grading.grader.Grader` starts, feeds, kills and replaces it. One JSON
object a line each way: `{"kind", "deadline_s", ...}` in, `{"score"}` or `{"error"}` out; the first line out says
`ready`. It ends with its standard input, and by an alarm of its own if whoever fed it dies while it hangs.
"""

import functools
import importlib
import json
import math
import os
import resource
import signal
import sys
from typing import Any

from sandboxrl.data.task import Task
from sandboxrl.envs.grading.rewards import math_score, reference_score

MEMORY_BYTES = 4 << 30


def loose_variants(response: str) -> list[str]:
    """The eight readings of a response in IFBench's loose mode: as it is, without its first line, last line, or both,
    each also without asterisks (allenai/IFBench, evaluation_lib)."""
    lines = response.split("\n")
    parts = [response, *("\n".join(kept).strip() for kept in (lines[1:], lines[:-1], lines[1:-1]))]
    return [*parts, *(part.replace("*", "") for part in parts)]


@functools.cache
def find_verifier(checkout: str) -> dict[str, Any]:
    """The official table of instruction id -> class, from a checkout of allenai/IFBench or the installed package.

    Raises ImportError when there is none.
    """
    if checkout:
        sys.path.insert(0, checkout)
    errors = []
    for module in ("ifbench.instructions_registry", "instructions_registry"):
        try:
            table: dict[str, Any] = importlib.import_module(module).INSTRUCTION_DICT
            return table
        except (ImportError, SystemExit) as error:  # some releases fetch a model when imported, and exit offline
            errors.append(f"{module}: {error!r}")
    raise ImportError("; ".join(errors))


def ifbench_score(gold: str, prompt: str, response: str, table: dict[str, Any]) -> float:
    """1.0 if every instruction of the row holds for at least one loose reading of the response."""
    row = json.loads(gold)
    variants = [variant for variant in loose_variants(response) if variant.strip()]
    for name, arguments in zip(row["instruction_id_list"], row["kwargs"], strict=True):
        instruction = table[name](name)
        # the dataset stores every argument of every instruction; the verifier refuses those that are not its own
        instruction.build_description(**{key: value for key, value in (arguments or {}).items() if value is not None})
        if "prompt" in (instruction.get_instruction_args() or {}):
            instruction.build_description(prompt=prompt)
        if not any(instruction.check_following(variant) for variant in variants):
            return 0.0
    return 1.0


def grade(request: dict[str, Any]) -> dict[str, Any]:
    kind = request["kind"]
    if kind == "math":
        return {"score": math_score(request["gold"], request["answer"])}
    if kind == "reference":
        return {"score": reference_score(Task.from_json(request["task"]), request["answer"])}
    table = find_verifier(request["checkout"])
    if kind == "ifbench_names":
        return {"score": 1.0, "names": sorted(table)}
    return {"score": ifbench_score(request["gold"], request["prompt"], request["answer"], table)}


def main() -> None:
    # answers go to a private copy of standard output: what a verifier prints must not mix with them
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert math_score("\\frac{1}{2}", "0.5") == 1.0  # imports what is heavy, outside any deadline
    print(json.dumps({"ready": True}), file=replies, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        signal.alarm(math.ceil(request["deadline_s"]) + 5)
        try:
            reply = grade(request)
        except Exception as error:  # the boundary: any failure of a verifier is reported, never a score
            reply = {"error": f"{type(error).__name__}: {error}"}
        signal.alarm(0)
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()

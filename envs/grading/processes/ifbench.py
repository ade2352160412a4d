"""IFBench: `ifbench` is 1 if the official verifier finds every instruction followed, in its loose mode.

The verifier is third-party code that may hang or print, so it runs in a grading process.
"""

import functools
import importlib
import json
import sys
from typing import Any

from sandboxrl.data.errors import InputError
from sandboxrl.data.task import Task
from sandboxrl.envs.grading.protocol import GraderFailed, Kind, Means, no_gold
from sandboxrl.envs.grading.protocol.replies import whole_reply


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


async def _ready(task: Task, means: Means) -> None:
    try:
        reply = await means.compute({"kind": "ifbench_names", "checkout": means.ifbench})
    except GraderFailed as error:
        raise InputError(
            "IFBench needs its official verifier: install the package of github.com/allenai/IFBench, or name a "
            f"checkout of it (grader.ifbench=DIR): {error}"
        ) from None
    for name in json.loads(task.gold)["instruction_id_list"]:
        if name not in reply["names"]:
            raise InputError(f"task {task.id}: the IFBench verifier does not know {name!r}")


async def _grade(task: Task, answer: str, means: Means) -> float:
    request = {"kind": "ifbench", "gold": task.gold, "prompt": task.question, "answer": answer}
    return float((await means.compute(request | {"checkout": means.ifbench}))["score"])


IFBENCH = Kind(
    grade=_grade,
    ready=_ready,
    extract=whole_reply,
    gold=no_gold,
    ask="The answer is your whole response to the task, as the person who gave it should read it.",
    needs="verifier",
)

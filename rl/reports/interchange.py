"""Trajectories of the published harness (llm-in-sandbox 0.2.0) as ours, so that `analyze` and `view` read them.

Its benchmark runner writes two files at the end of a run:

    trajectory.json  {id: {"problem_statement", "trajectory": [step, ...], "reward", "agent_answer", "ground_truth"}}
    results.json     {"config": {"mode", "llm_name", ...}, "task", "mean_score", "num_errors", ...}

A step holds thought, reasoning_content, action (function, parameters), observation and metadata; LLM mode has none.
What the metadata call `exec_time` is the time of the model's reply, not of the command. The files say neither why a run
ended nor how many tokens or seconds it and its commands took: those stay unknown (0). A last step that submits is a
finished trajectory; one that ends otherwise counts as out of turns, which is also what a failed call to the model looks
like there. A row with neither a step nor an answer is one whose run raised an error, or whose first call to the model
failed; there it is scored 0, here it is the machine's fault and has no score.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sandboxrl.data.errors import InputError
from sandboxrl.envs.trajectory import Observation, StopReason, ToolCall, Trajectory, Turn

PREFIXES = {
    "aime25": "aime25",
    "ugphysics": "ugphysics",
    "chembench": "chembench",
    "medxpertqa": "medxpertqa",
    "aa_lcr": "aa_lcr",
    "aalcr": "aa_lcr",
    "long_context": "aa_lcr",
    "ifbench": "ifbench",
}
"""How its row ids begin -> our benchmark."""
REPEATED = ("aime25", "aa_lcr")
"""Benchmarks whose ids end in the number of the repeat."""


def is_published_run(path: Path) -> bool:
    return (path / "trajectory.json").is_file()


def load_published_run(path: Path) -> list[Trajectory]:
    """Every row of the folder's `trajectory.json`. Raises InputError."""
    file = path / "trajectory.json"
    try:
        rows = json.loads(file.read_text(encoding="utf-8", errors="replace"))
    except ValueError as error:
        raise InputError(f"{file}: not JSON: {error}") from None
    if not isinstance(rows, Mapping):
        raise InputError(f"{file}: not an object of row ids")
    mode = "llm" if _mode(path) == "llm" else "sandbox"
    return [_trajectory(file, str(name), row, mode) for name, row in rows.items()]


def _mode(path: Path) -> str:
    """What results.json says, else what the folder's name does."""
    try:
        return str(json.loads((path / "results.json").read_text(encoding="utf-8"))["config"]["mode"])
    except (OSError, ValueError, KeyError, TypeError):
        return "llm" if path.name.endswith("vanillaLLM") else "llm-in-sandbox"


def _trajectory(file: Path, name: str, row: Any, mode: str) -> Trajectory:
    try:
        steps = row["trajectory"]
        turns = tuple(_turn(step) for step in (steps["steps"] if isinstance(steps, Mapping) else steps))
        answer, reward = str(row.get("agent_answer") or ""), float(row["reward"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{file}: row {name!r} is not as llm-in-sandbox 0.2.0 writes it: {error!r}") from None
    if mode == "llm" and answer:
        turns = (Turn(answer),)  # there the whole reply is the answer
    if not turns:
        stop = StopReason.ENGINE_LOST
    elif mode == "llm":
        stop = StopReason.ANSWERED
    else:
        submitted = any(observation.finished for observation in turns[-1].observations)
        stop = StopReason.FINISHED if submitted else StopReason.MAX_TURNS
    benchmark = next((ours for prefix, ours in PREFIXES.items() if name.lower().startswith(prefix)), "published")
    task_id, repeat = name, 0
    if benchmark in REPEATED and (numbered := re.fullmatch(r"(.+)_(\d+)", name)):
        task_id, repeat = numbered[1], int(numbered[2])
    return Trajectory(
        task_id=task_id,
        source=benchmark,
        mode=mode,
        stop=stop,
        turns=turns,
        answer=answer,
        score=None if stop.machine_fault else reward,
        reward=None if stop.machine_fault else reward * stop.complete,
        error="its run raised an error" if stop.machine_fault else "",
        metadata={
            "benchmark": benchmark,
            "repeat": repeat,
            "harness": "llm-in-sandbox",
            "question": str(row.get("problem_statement") or ""),
            "gold": str(row.get("ground_truth") or ""),
        },
    )


def _turn(step: Mapping[str, Any]) -> Turn:
    action = step.get("action") or {}
    name, arguments = str(action.get("function") or ""), action.get("parameters") or {}
    calls = (ToolCall(name, dict(arguments)),) if name else ()
    seconds = (step.get("metadata") or {}).get("exec_time") or 0.0
    observation = Observation(str(step.get("observation") or ""), name=name, finished=name in ("submit", "finish"))
    return Turn(
        str(step.get("thought") or ""),
        calls,
        (observation,),
        reasoning=str(step.get("reasoning_content") or ""),
        sample_s=float(seconds),
    )

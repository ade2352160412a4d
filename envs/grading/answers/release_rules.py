"""The rules of the published RL release (llm-in-sandbox-rl @1ed5a4eb), kept for comparison and never a default.

They are known to reward wrong answers: math-verify runs on prose, the last standing letter of any text counts, and a
first character counts when nothing else is found.
"""

import re
from collections.abc import Callable

from sandboxrl.data.task import Task
from sandboxrl.envs.grading.answers.mathematics import verified, wrapped
from sandboxrl.envs.grading.answers.text import rouge_l
from sandboxrl.envs.grading.protocol.replies import last_boxed


def reference_score(task: Task, answer: str) -> float:
    """The routing of the published RL release (llm-in-sandbox-rl @1ed5a4eb), kept for comparison and never a default.

    It is known to reward wrong answers: math-verify runs on prose, the last standing letter of any text counts, and a
    first character counts when nothing else is found.
    """
    answer = answer.strip()
    if not answer or not task.gold.strip():
        return 0.0
    return RULES[task.reward](task.gold, answer)


def _choice(gold: str, answer: str) -> float:
    gold, upper = gold.strip().upper(), answer.upper()
    boxed = last_boxed(answer)
    standing = re.findall(r"\b([A-Z])\b", upper)
    readings = (
        upper if upper == gold else None,
        re.search(r'"ANSWER"\s*:\s*"?([A-Z])', upper),
        re.search(r"ANSWER\s*:\s*\(?([A-Z])", upper),
        re.search(r"(?:ANSWER|CHOICE) IS\s*\(?([A-Z])", upper),
        boxed.strip()[:1].upper() if boxed else None,
        standing[-1] if standing else None,
        upper[:1],
    )
    first = next(reading for reading in readings if reading)
    return float((first if isinstance(first, str) else first[1]) == gold)


def _choices(gold: str, answer: str) -> float:
    right = {part.strip().upper() for part in gold.split(",")}
    said = {part.strip().upper() for part in answer.split(",")}
    return 2 * len(right & said) / (len(right) + len(said))


def _math(gold: str, answer: str) -> float:
    boxed = last_boxed(answer)
    return float(verified(wrapped(gold), f"\\boxed{{{answer if boxed is None else boxed}}}", units=True))


def _math_then_rouge(gold: str, answer: str) -> float:
    return _math(gold, answer) or rouge_l(gold, answer)


RULES: dict[str, Callable[[str, str], float]] = {
    "choice": _choice,
    "choices": _choices,
    "math": _math,
    "rouge": _math_then_rouge,
    "exact": _math_then_rouge,
    "number": _math_then_rouge,
}
"""The kinds that the release grades by rules, each as `(gold, answer) -> score`."""

"""What a model does with its computer, counted from trajectories, and the numbers of one benchmark in one mode.

Capability use follows the paper's appendix D (arXiv 2601.16206): the code in a turn's tool calls is matched against
the patterns of its Table 15; a category's rate is the number of turns with a match divided by the number of turns. The
table gives examples; what else is matched here is in PATTERNS, and "large loop" (its bound is missing in the text)
means a thousand rounds or more.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from sandboxrl.envs.trajectory import StopReason, Trajectory, Turn
from sandboxrl.rl.reports.statistics import Scores, average, interval, pass_at_k

_COMMAND = r"(?:^|[;|&(`]|\$\(|\b(?:xargs|sudo|then|do|else)\s)\s*"

PATTERNS: dict[str, tuple[str, ...]] = {
    "external": (
        r"\b(?:pip3?|uv pip|conda|mamba|npm|apt|apt-get|apk|dnf|yum)\s+(?:-\S+\s+)*install\b",
        r"\brequests\.(?:get|post|put|head|request|Session)\b|\burllib\.request\b|\burlopen\(|\bhttpx\.|\baiohttp\b",
        _COMMAND + r"(?:curl|wget)\b",
        r"\bBeautifulSoup\b|\bbs4\b|\bselenium\b|\bscrapy\b|\bplaywright\b",
        r"\brdkit\b|\bpubchempy\b|\b[Bb]iopython\b|\b(?:from|import)\s+Bio\b|\bopenbabel\b|\bchembl\w*\b",
    ),
    "files": (
        r"(?<![\w.])open\(|\bjson\.(?:load|dump)s?\(|\bpd\.read_\w+\(|\.to_csv\(|\bcsv\.(?:reader|DictReader|writer)\b",
        _COMMAND + r"(?:cat|grep|egrep|find|head|tail)\b",
        r"\bos\.path\b|\bpathlib\b|\bglob\.i?glob\(|\bos\.(?:listdir|walk|scandir)\(",
        r"\bpickle\.(?:load|dump)s?\(|\bnp\.(?:load|save|savez|loadtxt|savetxt)\(|\bjoblib\.(?:load|dump)\(",
    ),
    "computation": (
        r"\bscipy\.optimize\b|\bfsolve\(|\bminimize(?:_scalar)?\(|\broot_scalar\(|\bbrentq\(|\bcurve_fit\(|\blinprog\(",
        r"\bodeint\(|\bsolve_ivp\(|\b(?:dbl|tpl|n)?quad\(|\bscipy\.integrate\b",
        r"\brange\([^()\n]*?(?:\b\d{4,}|\b\d{1,3}(?:_\d{3})+|\b10\s*\*\*\s*(?:[3-9]|\d\d)|int\(\d*\.?\d*e(?:[3-9]|\d\d))",
        r"^[ \t]*while\b[^\n]*:[ \t]*(?:#.*)?$|" + _COMMAND + r"while\b[^\n]*;\s*do\b",
        r"\bitertools\.(?:permutations|combinations|product)\b|(?<![\w.])(?:permutations|combinations)\(",
    ),
}
CAPABILITIES = tuple(PATTERNS)
_COMPILED = {name: re.compile("|".join(f"(?:{one})" for one in many), re.M) for name, many in PATTERNS.items()}

_CODE_ARGUMENTS = ("command", "code", "cmd", "script", "file_text", "new_str")
_EDITOR_VERBS = ("view", "create", "str_replace", "insert", "undo_edit")

VERIFICATION = re.compile(
    r"\b(?:let(?:'|\u2019)?s|let us|let me|i(?:'|\u2019)?ll|we) (?:\w+ ){0,2}?(?:verify|check|double-check|confirm)\b"
    r"|\b(?:verify|check|confirm|make sure) (?:that|if|whether|this|it)\b|\bverif(?:ied|ication)\b"
    r"|\bdouble[- ]check|\b(?:this|which|that) (?:matches|confirms|checks out|agrees)\b|\bsanity check|\bas expected\b"
    r"|[\u2713\u2714\u2705]",
    re.IGNORECASE,
)
STRUCTURE = re.compile(
    r"(?m)^#{1,6} \S|^(?:-{3,}|\*{3,}|_{3,})[ \t]*$|^[ \t]*(?:[-*+\u2022]|\d+[.)]) \S|^[ \t]*(?:\$\$|\\\[)"
)
"""Headings, separators, list items and display mathematics at the start of a line."""


def turn_code(turn: Turn) -> str:
    """The bash and Python that a turn's calls hold: commands, and the text of files it writes."""
    parts = []
    for call in turn.calls:
        for name in _CODE_ARGUMENTS:
            value = call.arguments.get(name)
            if isinstance(value, str) and value not in _EDITOR_VERBS:
                parts.append(value)
    return "\n".join(parts)


def capabilities(turn: Turn) -> frozenset[str]:
    """The categories that this turn makes use of."""
    code = turn_code(turn)
    return frozenset(name for name, pattern in _COMPILED.items() if code and pattern.search(code))


def capability_use(trajectories: Iterable[Trajectory]) -> dict[str, float]:
    """Category -> turns that use it / all turns; NaN without a turn."""
    counts: Counter[str] = Counter()
    num_turns = 0
    for trajectory in trajectories:
        for turn in trajectory.turns:
            num_turns += 1
            counts.update(capabilities(turn))
    return {name: counts[name] / num_turns if num_turns else math.nan for name in CAPABILITIES}


def habits(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Verification phrases and structural marks per reply in LLM mode (the paper's Table 12); NaN without a reply."""
    texts = ["\n".join((turn.reasoning, turn.text)) for one in trajectories for turn in one.turns]
    counted = {"verification": VERIFICATION, "structure": STRUCTURE}
    return {
        name: fmean(len(pattern.findall(text)) for text in texts) if texts else math.nan
        for name, pattern in counted.items()
    }


def busy_s(trajectories: Iterable[Trajectory]) -> float:
    """Seconds in which at least one trajectory was running: pauses between sessions do not count."""
    total, end = 0.0, -math.inf
    for start, stop in sorted((one.started_s, one.started_s + one.wall_s) for one in trajectories):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


@dataclass(frozen=True)
class Prices:
    """Of an endpoint, in the same currency for a million tokens each."""

    read: float = 0.0
    written: float = 0.0


def cost(trajectory: Trajectory, prices: Prices) -> float:
    """Every turn reads all tokens before it again; no discount for cached ones."""
    context, total = trajectory.num_prompt, 0.0
    for turn in trajectory.turns:
        total += context * prices.read + turn.num_sampled * prices.written
        context += turn.num_sampled + turn.num_environment
    return total / 1e6


def scores_by_task(trajectories: Iterable[Trajectory], counted: str = "score") -> Scores:
    """Task -> its scores; `counted` is `score` (the answer as it is) or `reward` (0 where a limit was used up)."""
    scores: dict[str, list[float]] = defaultdict(list)
    for one in trajectories:
        value = getattr(one, counted)
        if value is not None:
            scores[one.task_id].append(value)
    return scores


def summary(trajectories: Sequence[Trajectory], num_expected: int = 0, prices: Prices | None = None) -> dict[str, Any]:
    """The numbers of one benchmark in one mode. Means are per trajectory; tokens of prompt, model and environment.
    `num_too_long` prompts left the model no room for a single token; they score as they are, which is 0."""
    kept = [one for one in trajectories if one.score is not None]
    scores = scores_by_task(kept)
    most = max((len(repeats) for repeats in scores.values()), default=0)
    num_sampled, num_environment = (sum(getattr(t, name) for t in kept) for name in ("num_sampled", "num_environment"))
    low, high = interval(scores)
    seconds = busy_s(kept)
    stops = Counter(one.stop for one in kept)
    return {
        "score": average(scores),
        "interval": [low, high],
        "score_if_finished": average(scores_by_task(kept, "reward")),
        "num_tasks": len(scores),
        "repeats": most,
        "num_results": len(kept),
        "num_missing": max(0, num_expected - len(kept)),
        "num_too_long": sum(one.stop is StopReason.MAX_TOKENS and one.num_sampled == 0 for one in kept),
        **{f"pass@{k}": pass_at_k(scores, k) for k in sorted({1, most}) if k > 1},
        "turns": _mean(len(one.turns) for one in kept),
        "tokens/prompt": _mean(one.num_prompt for one in kept),
        "tokens/sampled": _mean(one.num_sampled for one in kept),
        "tokens/environment": _mean(one.num_environment for one in kept),
        "tokens/total": _mean(one.num_prompt + one.num_sampled + one.num_environment for one in kept),
        "environment/token_share": _share(num_environment, num_sampled + num_environment),
        "environment/time_share": _share(sum(one.tool_s for one in kept), sum(one.wall_s for one in kept)),
        "wall_s": _mean(one.wall_s for one in kept),
        "queries_per_minute": _share(60 * len(kept), seconds),
        **{f"stop/{reason.value}": stops[reason] / len(kept) for reason in StopReason if stops[reason]},
        **{f"usage/{name}": rate for name, rate in capability_use(kept).items()},
        **({"cost": sum(cost(one, prices) for one in kept)} if prices else {}),
    }


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return fmean(found) if found else math.nan


def _share(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def summaries(
    trajectories: Iterable[Trajectory],
    num_expected: Mapping[tuple[str, str], int] | None = None,
    prices: Prices | None = None,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Benchmark -> mode -> summary."""
    groups: dict[tuple[str, str], list[Trajectory]] = defaultdict(list)
    for key in num_expected or ():
        groups[key] = []
    for one in trajectories:
        groups[str(one.metadata.get("benchmark", one.source)), one.mode].append(one)
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for (name, mode), members in groups.items():
        expected = (num_expected or {}).get((name, mode), 0)
        found.setdefault(name, {})[mode] = summary(members, expected, prices)
    return found

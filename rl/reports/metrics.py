"""What the trajectories of a step or an evaluation measure: means, shares and sums, one number per column."""

import dataclasses
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from sandboxrl.envs.sandbox.protocol import Resources
from sandboxrl.envs.trajectory import StopReason, Trajectory
from sandboxrl.rl.reports.analysis import capability_use

GROUPS_NEEDED = 32
"""Groups over which losses to the machine are compared with rewards, at least."""


def summarise(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Means over trajectories that the machine did not lose; stop reasons as fractions."""
    rewards = [t.reward for t in trajectories if t.reward is not None]
    num = len(trajectories)
    stops = Counter(t.stop for t in trajectories)
    usage = capability_use(trajectories)
    return {
        "reward/mean": statistics.fmean(rewards),
        "reward/std": statistics.pstdev(rewards),
        "score/mean": statistics.fmean(t.score for t in trajectories if t.score is not None),
        **{f"stop/{reason}": stops[reason] / num for reason in StopReason if stops[reason]},
        **{f"stop/sandbox_ended/{source}": share for source, share in _ended_by_source(trajectories).items()},
        "entropy/sampled": sampling_entropy(trajectories),
        "turns/mean": statistics.fmean(len(t.turns) for t in trajectories),
        "calls/malformed": _share(call.error != "" for t in trajectories for turn in t.turns for call in turn.calls),
        "tokens/prompt": statistics.fmean(t.num_prompt for t in trajectories),
        "tokens/sampled": statistics.fmean(t.num_sampled for t in trajectories),
        "tokens/environment": statistics.fmean(t.num_environment for t in trajectories),
        "time/environment_share": sum(t.tool_s for t in trajectories) / max(sum(t.wall_s for t in trajectories), 1e-9),
        **{f"usage/{name}": rate for name, rate in usage.items()},
        **_of_sandboxes(trajectories),
    }


def by_source(trajectories: Sequence[Trajectory], lost: Mapping[str, int]) -> dict[str, float]:
    """Of each source: its mean reward, and the share of attempts at a trajectory that the machine lost. A policy that
    learns to break its sandbox shows in the second."""
    found: dict[str, float] = {}
    for source in sorted({t.source for t in trajectories} | set(lost)):
        rewards = [t.reward for t in trajectories if t.source == source and t.reward is not None]
        if rewards:
            found[f"source/{source}/reward"] = statistics.fmean(rewards)
        found[f"source/{source}/lost"] = lost.get(source, 0) / (lost.get(source, 0) + len(rewards))
    return found


def lost_correlation(losses: Sequence[tuple[int, float]]) -> dict[str, float]:
    """Of losses to the machine and mean reward, over groups; nothing where there are too few, or one never varies."""
    try:
        if len(losses) >= GROUPS_NEEDED:
            return {"lost/reward_correlation": statistics.correlation(*zip(*losses, strict=True))}
    except statistics.StatisticsError:
        pass  # one of them is constant
    return {}


def sampling_entropy(trajectories: Iterable[Trajectory]) -> float:
    """Nats per token: the mean of -log p over sampled tokens, which estimates the entropy they are drawn with."""
    logprobs = [t.tokens.logprobs[t.tokens.mask == 1] for t in trajectories if t.tokens]
    sampled = sum(len(one) for one in logprobs)
    return -sum(float(one.sum(dtype=np.float64)) for one in logprobs) / sampled if sampled else 0.0


def _of_sandboxes(trajectories: Iterable[Trajectory]) -> dict[str, float]:
    """Mean and largest of each figure of the sandboxes, over those of which it is known."""
    used = [t.resources for t in trajectories if t.resources is not None]
    columns: dict[str, float] = {}
    for field in dataclasses.fields(Resources):
        known = [value for one in used if (value := getattr(one, field.name)) is not None]
        if known:
            columns |= {f"sandbox/{field.name}_mean": statistics.fmean(known), f"sandbox/{field.name}_max": max(known)}
    return columns


def _ended_by_source(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Of each source in which the policy ended sandboxes: the share of its trajectories."""
    ended = Counter(t.source for t in trajectories if t.stop is StopReason.SANDBOX_ENDED)
    return {source: count / sum(t.source == source for t in trajectories) for source, count in ended.items()}


def _share(flags: Iterable[bool]) -> float:
    values = list(flags)
    return sum(values) / len(values) if values else 0.0

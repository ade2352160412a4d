"""Statistics of scores: averages over repeats, pass@k, intervals, and whether two runs differ.

Scores are grouped by task: `{task: [score, score, ...]}`. The task is the unit that is resampled, because repeats of
one task are not independent. Every random draw is seeded, so a table comes out the same twice.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean

import numpy as np

Scores = Mapping[str, Sequence[float]]
RESAMPLES = 10_000
CONFIDENCE = 0.95


def average(scores: Scores) -> float:
    """avg@k: the mean over tasks of the mean over repeats. NaN without a task."""
    return fmean(fmean(repeats) for repeats in scores.values()) if scores else math.nan


def pass_at_k(scores: Scores, k: int) -> float:
    """The chance that at least one of k repeats scores 1, unbiased (Chen et al. 2021, equation 1), over the tasks with
    at least k repeats. NaN where there is none."""
    chances = [
        1 - math.comb(len(repeats) - sum(score >= 1 for score in repeats), k) / math.comb(len(repeats), k)
        for repeats in scores.values()
        if len(repeats) >= k
    ]
    return fmean(chances) if chances else math.nan


def interval(scores: Scores) -> tuple[float, float]:
    """95 % confidence interval of `average`: Wilson's where every task has one score of 0 or 1, else a bootstrap over
    tasks. (NaN, NaN) without a task."""
    if not scores:
        return math.nan, math.nan
    flat = [score for repeats in scores.values() for score in repeats]
    if len(flat) == len(scores) and set(flat) <= {0.0, 1.0}:
        return wilson(round(sum(flat)), len(flat))
    return bootstrap([fmean(repeats) for repeats in scores.values()])


def wilson(num_right: int, num: int) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927), without continuity correction."""
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    share = num_right / num
    centre = (share + z * z / (2 * num)) / (1 + z * z / num)
    half = z / (1 + z * z / num) * math.sqrt(share * (1 - share) / num + z * z / (4 * num * num))
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean."""
    low, high = np.quantile(_resampled_means(values, seed), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _resampled_means(values: Sequence[float], seed: int) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    array, rng = np.asarray(values, dtype=np.float64), np.random.default_rng(seed)
    return np.array([array[rng.integers(0, len(array), len(array))].mean() for _ in range(RESAMPLES)])


@dataclass(frozen=True)
class Comparison:
    """Two runs on the tasks that both have."""

    num_tasks: int
    first: float
    second: float
    difference: float
    """second - first."""
    low: float
    high: float
    """95 % bootstrap interval of the difference, tasks resampled in pairs."""
    p_value: float
    """Two-sided: exact McNemar where all scores are 0 or 1 and there is one per task, else a sign-flip test."""
    test: str


def compare(first: Scores, second: Scores) -> Comparison | None:
    """A paired comparison; None without a common task."""
    common = sorted(first.keys() & second.keys())
    if not common:
        return None
    a, b = ([fmean(run[task]) for task in common] for run in (first, second))
    differences = [y - x for x, y in zip(a, b, strict=True)]
    low, high = bootstrap(differences)
    single = all(len(run[task]) == 1 for run in (first, second) for task in common)
    if single and set(a) | set(b) <= {0.0, 1.0}:
        test, p_value = "mcnemar", mcnemar(differences.count(1.0), differences.count(-1.0))
    else:
        test, p_value = "sign-flip", sign_flip(differences)
    return Comparison(len(common), fmean(a), fmean(b), fmean(differences), low, high, p_value, test)


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided McNemar test (McNemar 1947): the binomial chance of a split at least as uneven."""
    changed = gained + lost
    tail = sum(math.comb(changed, i) for i in range(min(gained, lost) + 1)) / 2**changed
    return float(min(1.0, 2 * tail))


def sign_flip(differences: Sequence[float], seed: int = 0) -> float:
    """Two-sided permutation test of a zero mean: the signs of the differences are exchangeable under the null."""
    array, rng = np.asarray(differences), np.random.default_rng(seed)
    signs = rng.choice((-1.0, 1.0), size=(RESAMPLES, len(array)))
    extreme = np.abs(signs @ array) >= abs(array.sum()) - 1e-9
    return float((extreme.sum() + 1) / (RESAMPLES + 1))

"""GRPO++: advantages, the policy loss of a token and what each token weighs, as pure functions.

Every choice is a named option of LossConfig and its defaults are the paper's, but for one: leave-one-out advantage, no
division by the standard deviation, clipping to 1 - 0.2 and 1 + 0.28, no KL term, no entropy term. There is no KL or
entropy coefficient because there is no such term. The paper takes the mean over trajectories of token sums; the default
here is that of token means (GRPO, arXiv 2402.03300), so that every trajectory weighs the same. A policy that is nearly
always right fails seldom and then at length, with hundreds of tokens of noise: where each token weighs the same, one
such failure outweighs all the rest of a step, and what the policy can do is lost (docs/training.md: what was measured).

The loss of one optimizer step over the trajectories i with their sampled tokens t is

    loss = sum_i sum_t  weight_i * token_loss(i, t)

with weights computed once for the whole step (`loss_weights`): no split into micro-batches, ranks or rows changes it.

Notation: A advantage; r = exp(logp - old) with `old` the proximal policy; w = exp(old - engine) with `engine` the
log-probability under which the token was sampled. This file touches tensors only through their methods and does not
import torch.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from sandboxrl.data.errors import InputError, described, nearest
from sandboxrl.data.plugin import OwnCodeFailed, called, is_own, plugged, takes

if TYPE_CHECKING:
    from torch import Tensor

AGGREGATIONS = (
    "sequence_mean_token_sum",
    "sequence_mean_token_sum_norm",
    "sequence_mean_token_mean",
    "prompt_mean",
    "token_mean",
    "token_sum",
)
OVERLONG = ("zero_reward", "mask")
OLD_LOGPROBS = ("learner", "engine")
IMPORTANCE = ("none", "token", "sequence", "icepop")

MAX_LOG_RATIO = 20.0
"""Log ratios are clamped to this before `exp`, so that one absurd token cannot make the loss infinite."""
DPPO_TAU = 1e-3
EQUAL_REWARDS = 1e-9
"""Rewards closer than this are equal: rounding is no signal, and Adam would scale it up to a full step."""


@dataclass(frozen=True)
class LossConfig:
    advantage: str = "leave_one_out"
    """leave_one_out (RLOO) | mean_centred (Dr.GRPO) | group_std (GRPO) | length_weighted (OPO) | file.py:function."""
    policy_loss: str = "clip"
    """clip (PPO with two bounds) | cispo | gspo | dppo (probability-difference mask) | file.py:function."""
    clip_low: float = 0.2
    """Lower bound: the ratio is clipped at 1 - clip_low. With dppo: largest fall in probability."""
    clip_high: float = 0.28
    """Upper bound: the ratio is clipped at 1 + clip_high. With dppo: largest rise in probability."""
    dual_clip: float = 0.0
    """With clip, the loss of a negative advantage is at most -A * dual_clip; 0 is off, the reference code has 3."""
    aggregation: str = "sequence_mean_token_mean"
    """sequence_mean_token_sum | sequence_mean_token_sum_norm | sequence_mean_token_mean | prompt_mean | token_mean |
    token_sum: what the sum of token losses is divided by. The paper's is sequence_mean_token_sum."""
    length_norm: int = 0
    """The constant L of sequence_mean_token_sum_norm, in tokens (the longest context allowed); 0 otherwise."""
    overlong: str = "zero_reward"
    """A trajectory that used up a limit: zero_reward (trained with reward 0, as in the paper) | mask (left out of the
    loss; its reward 0 stays in the baseline of its group and it still counts as a trajectory: compact filtering)."""
    old_logprobs: str = "learner"
    """Denominator of the ratio: learner (its own log-probabilities before the first update of the batch; nothing is
    computed twice with one minibatch) | engine (those of sampling, also the right choice for stale trajectories)."""
    importance: str = "none"
    """Truncated importance weights against the engine: none | token | sequence | icepop (tokens out of range get 0)."""
    importance_cap: float = 2.0
    """Largest importance weight; with icepop the upper end of the range."""
    importance_floor: float = 0.5
    """Lower end of the range of icepop."""

    def __post_init__(self) -> None:
        for name, valid in (
            ("aggregation", AGGREGATIONS),
            ("overlong", OVERLONG),
            ("old_logprobs", OLD_LOGPROBS),
            ("importance", IMPORTANCE),
        ):
            value = getattr(self, name)
            if value not in valid:
                raise InputError(f"loss.{name}: unknown value {value!r}{nearest(str(value), valid)}")
        for name, table in (("advantage", ADVANTAGES), ("policy_loss", POLICY_LOSSES)):
            value = getattr(self, name)
            if not is_own(value) and value not in table:
                raise InputError(f"loss.{name}: unknown value {value!r}{nearest(str(value), table)}")
        _require(0 < self.clip_low < 1, "loss.clip_low must lie between 0 and 1")
        _require(self.clip_high > 0, "loss.clip_high must be above 0")
        _require(self.dual_clip == 0 or self.dual_clip > 1, "loss.dual_clip must be above 1, or 0 for off")
        _require(
            (self.aggregation == "sequence_mean_token_sum_norm") == (self.length_norm > 0),
            "loss.length_norm must be above 0 with aggregation sequence_mean_token_sum_norm and 0 with any other",
        )
        _require(self.importance_cap > 0, "loss.importance_cap must be above 0")
        _require(
            self.importance != "icepop" or 0 <= self.importance_floor < self.importance_cap,
            "loss.importance_floor must lie between 0 and importance_cap",
        )
        self._effective("dual_clip", self.policy_loss == "clip", "policy_loss clip")
        self._effective("clip_low", self.policy_loss != "cispo", "a policy_loss other than cispo")
        self._effective("importance_cap", self.importance != "none", "importance other than none")
        self._effective("importance_floor", self.importance == "icepop", "importance icepop")
        _require(
            self.importance == "none" or (self.old_logprobs == "learner" and self.policy_loss != "dppo"),
            "loss.importance has an effect only with old_logprobs learner and a policy_loss other than dppo "
            "(otherwise the ratio itself is taken against the engine)",
        )
        _require(
            self.policy_loss != "dppo" or self.old_logprobs == "engine",
            "loss.policy_loss dppo takes its ratio against the engine: set old_logprobs to engine",
        )

    def _effective(self, name: str, used: bool, where: str) -> None:
        default = {field.name: field.default for field in fields(self)}[name]
        _require(used or getattr(self, name) == default, f"loss.{name} has an effect only with {where}")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(message)


def informative(rewards: Sequence[float]) -> bool:
    """Whether a group carries a signal: two trajectories or more, not all with one reward (0.4 for all is none)."""
    return len(rewards) > 1 and max(rewards) - min(rewards) > EQUAL_REWARDS


def advantages(rewards: Sequence[float], estimator: str, lengths: Sequence[int] = ()) -> list[float]:
    """Advantages of one group. `rewards` and `lengths` (sampled tokens) are per trajectory; `estimator` is one of
    ADVANTAGES or a user's own function with the same arguments.

    A group without signal gets exact zeros. That includes a group of one: with nothing to compare with, its raw reward
    would be trained on as if every other trajectory had scored 0. Raises InputError for an estimator that is not there,
    OwnCodeFailed for one that gives back anything but a finite number for each trajectory.
    """
    if not informative(rewards):
        return [0.0] * len(rewards)
    found = find_advantage(estimator)
    if estimator in ADVANTAGES:
        return found(rewards, lengths)
    key = f"loss.advantage {estimator}"
    values = called(key, found, list(rewards), list(lengths))
    try:
        values = [float(value) for value in values]
    except (TypeError, ValueError):
        raise OwnCodeFailed(f"{key} gave back {values!r:.80}, not a number for each trajectory") from None
    if len(values) != len(rewards) or not all(map(math.isfinite, values)):
        raise OwnCodeFailed(f"{key} gave back {values!r:.80} for {len(rewards)} trajectories, not a finite number each")
    return values


def leave_one_out(rewards: Sequence[float], lengths: Sequence[int]) -> list[float]:
    """R_i - mean of the others. RLOO, arXiv 2402.14740; LOOP, 2502.01600."""
    total, count = math.fsum(rewards), len(rewards)
    return [reward - (total - reward) / (count - 1) for reward in rewards]


def mean_centred(rewards: Sequence[float], lengths: Sequence[int]) -> list[float]:
    """R_i - mean. Dr.GRPO, arXiv 2503.20783."""
    mean = math.fsum(rewards) / len(rewards)
    return [reward - mean for reward in rewards]


def group_std(rewards: Sequence[float], lengths: Sequence[int]) -> list[float]:
    """(R_i - mean) / (std + 1e-6), std over n - 1. GRPO, arXiv 2402.03300."""
    return standardised(rewards)


def length_weighted(rewards: Sequence[float], lengths: Sequence[int]) -> list[float]:
    """R_i - sum_j l_j R_j / sum_j l_j. OPO, arXiv 2505.23585."""
    baseline = math.fsum(n * r for n, r in zip(lengths, rewards, strict=True)) / sum(lengths)
    return [reward - baseline for reward in rewards]


Advantage = Callable[[Sequence[float], Sequence[int]], list[float]]
ADVANTAGES: dict[str, Advantage] = {
    "leave_one_out": leave_one_out,
    "mean_centred": mean_centred,
    "group_std": group_std,
    "length_weighted": length_weighted,
}


def find_advantage(name: str) -> Advantage:
    """Raises InputError."""
    return plugged(name, ADVANTAGES, "loss.advantage", lambda found: takes(found, ("rewards", "lengths")))


def standardised(values: Sequence[float], ddof: int = 1, epsilon: float = 1e-6) -> list[float]:
    """(x - mean) / (std + epsilon), with the sum of squares divided by n - ddof."""
    mean = math.fsum(values) / len(values)
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - ddof))
    return [(value - mean) / (std + epsilon) for value in values]


def loss_weights(num_tokens: Sequence[int], groups: Sequence[int], config: LossConfig) -> list[float]:
    """What every token of each trajectory weighs in the loss of one optimizer step.

    `num_tokens[i]` is the number of sampled tokens of trajectory i, 0 where it is masked out; `groups[i]` names its
    group. All trajectories of the step are given, those without signal included: they count in B and P.

    | aggregation                  | weight            |
    |------------------------------|-------------------|
    | sequence_mean_token_sum      | 1 / B             |
    | sequence_mean_token_sum_norm | 1 / (B L)         |
    | sequence_mean_token_mean     | 1 / (B n_i)       |
    | prompt_mean                  | 1 / (P n_group)   |
    | token_mean                   | 1 / n             |
    | token_sum                    | 1                 |

    B trajectories, P groups, n tokens. A masked trajectory weighs 0.
    """
    count = len(num_tokens)
    in_group: Counter[int] = Counter()
    for group, num in zip(groups, num_tokens, strict=True):
        in_group[group] += num

    def weight(i: int) -> float:
        if config.aggregation == "sequence_mean_token_sum":
            return 1 / count
        if config.aggregation == "sequence_mean_token_sum_norm":
            return 1 / (count * config.length_norm)
        if config.aggregation == "sequence_mean_token_mean":
            return 1 / (count * num_tokens[i])
        if config.aggregation == "prompt_mean":
            return 1 / (len(in_group) * in_group[groups[i]])
        if config.aggregation == "token_mean":
            return 1 / sum(num_tokens)
        return 1.0

    return [weight(i) if num_tokens[i] else 0.0 for i in range(count)]


def token_loss(
    logprobs: "Tensor", old: "Tensor", engine: "Tensor", advantages: "Tensor", trajectory: "Tensor", config: LossConfig
) -> tuple["Tensor", "Tensor"]:
    """Loss of every sampled token and whether a bound holds it (True). All arguments have shape [tokens].

    `logprobs` carries the gradient, `old` and `engine` do not; `trajectory` numbers the trajectory of each token from 0
    (whole trajectories only: gspo and importance `sequence` take sums over them). `config.policy_loss` is one of
    POLICY_LOSSES or a user's own function with their arguments: there `old` is what the ratio is taken against.
    Raises InputError for one that is not there, OwnCodeFailed for one that raises or gives back other shapes.
    """
    policy_loss = find_policy_loss(config.policy_loss)
    if config.policy_loss in POLICY_LOSSES:
        loss, cut = policy_loss(logprobs, old, advantages, trajectory, config)
    else:
        loss, cut = _own_loss(policy_loss, logprobs, old, advantages, trajectory, config)
    if config.importance != "none":
        loss = loss * importance_weights(old, engine, trajectory, config)
    return loss, cut


def _own_loss(
    policy_loss: "PolicyLoss",
    logprobs: "Tensor",
    old: "Tensor",
    advantages: "Tensor",
    trajectory: "Tensor",
    config: LossConfig,
) -> tuple["Tensor", "Tensor"]:
    key = f"loss.policy_loss {config.policy_loss}"
    try:
        loss, cut = policy_loss(logprobs, old, advantages, trajectory, config)
        shapes = tuple(loss.shape), tuple(cut.shape)
    except Exception as error:
        raise OwnCodeFailed(f"{key}: {described(error)}") from error
    if shapes != (tuple(logprobs.shape),) * 2:
        raise OwnCodeFailed(
            f"{key} gave back shapes {shapes} for {tuple(logprobs.shape)} tokens: (loss, held) expected"
        )
    return loss, cut


def clip(
    logprobs: "Tensor", old: "Tensor", advantages: "Tensor", trajectory: "Tensor", config: LossConfig
) -> tuple["Tensor", "Tensor"]:
    """max(-A r, -A clip(r, 1 - low, 1 + high)); where A < 0 and dual_clip is on, at most -A dual_clip.

    PPO, arXiv 1707.06347; two bounds: DAPO, 2503.14476; dual clip: 1912.09729."""
    return _clipped(logprobs - old, advantages, config)


def gspo(
    logprobs: "Tensor", old: "Tensor", advantages: "Tensor", trajectory: "Tensor", config: LossConfig
) -> tuple["Tensor", "Tensor"]:
    """`clip`, with r the geometric mean of the ratios of the trajectory. GSPO, arXiv 2507.18071."""
    mean = per_trajectory((logprobs - old).detach(), trajectory, mean=True)
    return _clipped(mean + logprobs - logprobs.detach(), advantages, config)


def cispo(
    logprobs: "Tensor", old: "Tensor", advantages: "Tensor", trajectory: "Tensor", config: LossConfig
) -> tuple["Tensor", "Tensor"]:
    """-sg[min(r, 1 + high)] A logp. CISPO, arXiv 2506.13585."""
    ratio, cap = _clamped(logprobs - old).exp(), 1 + config.clip_high
    return -ratio.detach().clamp(max=cap) * advantages * logprobs, ratio > cap


def dppo(
    logprobs: "Tensor", old: "Tensor", advantages: "Tensor", trajectory: "Tensor", config: LossConfig
) -> tuple["Tensor", "Tensor"]:
    """-keep A r + 1e-3 log(r)^2, keep = 0 where A > 0 and p - p_old > high, or A < 0 and p_old - p > low.

    The default of PrimeIntellect's prime-rl; the quadratic term stays on tokens that are not kept."""
    clamped = _clamped(logprobs - old)
    rise = logprobs.detach().exp() - old.exp()
    cut = ((advantages > 0) & (rise > config.clip_high)) | ((advantages < 0) & (rise < -config.clip_low))
    return -(clamped.exp() * advantages).masked_fill(cut, 0.0) + DPPO_TAU * clamped**2, cut


def _clipped(log_ratio: "Tensor", advantages: "Tensor", config: LossConfig) -> tuple["Tensor", "Tensor"]:
    ratio = _clamped(log_ratio).exp()
    bounded = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
    loss = (-advantages * ratio).maximum(-advantages * bounded)
    cut = (advantages * (ratio - bounded)) > 0
    if config.dual_clip:
        limit = -advantages * config.dual_clip
        over = (advantages < 0) & (loss > limit)
        loss, cut = limit.where(over, loss), cut | over
    return loss, cut


def _clamped(log_ratio: "Tensor") -> "Tensor":
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


PolicyLoss = Callable[["Tensor", "Tensor", "Tensor", "Tensor", LossConfig], tuple["Tensor", "Tensor"]]
POLICY_LOSSES: dict[str, PolicyLoss] = {"clip": clip, "cispo": cispo, "gspo": gspo, "dppo": dppo}


def find_policy_loss(name: str) -> PolicyLoss:
    """Raises InputError."""
    arguments = ("logprobs", "old", "advantages", "trajectory", "config")
    return plugged(name, POLICY_LOSSES, "loss.policy_loss", lambda found: takes(found, arguments))


def importance_weights(old: "Tensor", engine: "Tensor", trajectory: "Tensor", config: LossConfig) -> "Tensor":
    """Truncated importance weights of the learner's policy against the engine's, no gradient, shape [tokens].

    token: min(w, cap). sequence: min(product of w over the trajectory, cap). icepop: w inside [floor, cap], else 0.
    Sources: Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training"; IcePop, arXiv
    2510.18855.
    """
    log_weight = (old - engine).detach()
    if config.importance == "sequence":
        log_weight = per_trajectory(log_weight, trajectory)
    weight = log_weight.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    if config.importance == "icepop":
        return weight.masked_fill((weight < config.importance_floor) | (weight > config.importance_cap), 0.0)
    return weight.clamp(max=config.importance_cap)


def per_trajectory(values: "Tensor", trajectory: "Tensor", mean: bool = False) -> "Tensor":
    """The sum (or mean) of `values` over each trajectory, given back to each of its tokens. Shape [tokens]."""
    if not values.numel():
        return values
    zeros = values.new_zeros(values.shape)  # no more trajectories than tokens: how many, only the GPU knows
    total = zeros.index_add(0, trajectory, values)
    if mean:
        total = total / zeros.index_add(0, trajectory, values.new_ones(values.shape)).clamp(min=1)
    return total[trajectory]


def k3(log_ratio: "Tensor") -> "Tensor":
    """Schulman's k3 estimate of KL(sampler || other) per token, with log_ratio = log other - log sampler.

    exp(x) - x - 1, never negative; x is clamped to 20 and the result to 10 (as verl does).
    """
    x = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return (x.exp() - x - 1).clamp(max=10.0)

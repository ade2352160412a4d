"""Trajectories to packed rows: what each learner rank computes in one update. NumPy only.

A row is several whole trajectories one after the other. A trajectory is never cut: one longer than the limit has a row
of its own. Trajectories that cannot move the weights (no advantage, or masked out) get no row but count in the
normalizer, so the gradient is that of all of them. Every rank gets the same number of rows for the same optimizer step,
else the collectives of the learner would wait for ever; a rank with nothing left gets rows that train nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sandboxrl.data.plugin import is_own
from sandboxrl.envs.trajectory import StopReason, Tokens, Trajectory
from sandboxrl.rl.grpo import LossConfig, advantages, informative, loss_weights
from sandboxrl.rl.learner.config import LearnerConfig


@dataclass(frozen=True)
class Row:
    """One packed row: whole trajectories in `ids`, and the trained tokens among them.

    Two trajectories [5 6 | 7 8] and [5 | 9] whose tokens after the bar were sampled: ids 5 6 7 8 5 9, lengths 4 2,
    trained 2 3 5, trajectory 0 0 1. Arrays of one value per trained token are parallel to `trained`.
    """

    ids: np.ndarray
    """int64 [tokens]."""
    lengths: np.ndarray
    """int64 [trajectories], their sum is the number of tokens."""
    trained: np.ndarray
    """int64, ascending: positions in `ids` of the tokens that are trained on."""
    trajectory: np.ndarray
    """int64: to which trajectory of the row a trained token belongs."""
    engine: np.ndarray
    """float32: log-probability with which the engine sampled it."""
    advantages: np.ndarray
    """float32."""
    weights: np.ndarray
    """float32: what its loss is multiplied with; see sandboxrl.rl.grpo.loss_weights."""
    fresh: np.ndarray
    """bool: sampled under the learner's present weights, so the learner's log-probability must equal the engine's."""
    places: tuple[int, ...] = ()
    """Of each trajectory of the row: its place in the batch, counted over all groups."""

    @property
    def positions(self) -> np.ndarray:
        """Position of every token within its own trajectory, int64 [tokens]."""
        return np.concatenate([np.arange(n) for n in self.lengths])


@dataclass(frozen=True)
class Batch:
    minibatches: tuple[tuple[tuple[Row, ...], ...], ...]
    """[optimizer step][rank][row]. Steps without a token to train on are left out; none at all: nothing to learn."""
    advantages: tuple[tuple[float, ...], ...]
    """[group][trajectory]."""
    num_informative: int
    """Groups whose rewards are not all equal."""
    probe: Row | None
    """Tokens to compare with the engine's, not to train on; the same row for every rank."""
    num_trajectories: int
    """All of them, those without a row included."""
    num_sampled: int
    """Sampled tokens of all trajectories."""
    num_trained: int
    """Sampled tokens in the rows."""
    num_row_tokens: int
    """Tokens in the rows, environment tokens included."""

    def of_rank(self, rank: int) -> list[tuple[Row, ...]]:
        """What `Learner.update` of that rank takes: its rows, a tuple per optimizer step."""
        return [ranks[rank] for ranks in self.minibatches]


@dataclass(frozen=True)
class _Sample:
    """One trajectory with what the loss needs."""

    trajectory: Trajectory
    group: int
    advantage: float
    num_tokens: int
    """Sampled tokens, 0 where the trajectory is masked out of the loss."""
    place: int = -1
    """In the batch, counted over all groups; -1: of no group."""

    @property
    def tokens(self) -> Tokens:
        assert self.trajectory.tokens is not None, "checked before"
        return self.trajectory.tokens


def build_batch(
    groups: Sequence[Sequence[Trajectory]],
    loss: LossConfig,
    learner: LearnerConfig,
    version: int,
    probes: Sequence[Tokens] = (),
    kept_kv: bool = False,
) -> Batch:
    """Rows of one training step. `groups` hold graded trajectories of our own engine, machine faults already removed;
    `version` is the weight version that the learner holds now. `probes` are tokens sampled for no other purpose than
    to compare engine and learner. `kept_kv`: see EngineConfig.keep_kv.

    With several minibatches trajectory i goes to minibatch i modulo their number, and each minibatch has a normalizer
    of its own. Raises ValueError for a trajectory without reward or tokens, with a log-probability that is not finite,
    or whose first token is marked as sampled: all of them faults of the caller or the engine.
    """
    grouped = [_samples(number, group, loss) for number, group in enumerate(groups)]
    samples = [replace(one, place=place) for place, one in enumerate(one for group in grouped for one in group)]
    minibatches = []
    for start in range(learner.minibatches):
        part = samples[start :: learner.minibatches]
        weights = loss_weights([s.num_tokens for s in part], [s.group for s in part], loss)
        moving = [(s, w) for s, w in zip(part, weights, strict=True) if w and _moves(s, loss)]
        if moving:
            minibatches.append(_rows(moving, learner, version, kept_kv))
    rows = [row for ranks in minibatches for rank in ranks for row in rank if row.trained.size]
    return Batch(
        minibatches=tuple(minibatches),
        probe=_row([(_probe(tokens), 0.0) for tokens in probes], version) if probes else None,
        advantages=tuple(tuple(s.advantage for s in group) for group in grouped),
        num_informative=sum(informative([_checked(one)[1] for one in group]) for group in groups),
        num_trajectories=len(samples),
        num_sampled=sum(s.tokens.num_sampled for s in samples),
        num_trained=sum(row.trained.size for row in rows),
        num_row_tokens=sum(row.ids.size for row in rows),
    )


def _samples(number: int, group: Sequence[Trajectory], loss: LossConfig) -> list[_Sample]:
    checked = [_checked(one) for one in group]
    lengths = [tokens.num_sampled for tokens, _ in checked]
    values = advantages([reward for _, reward in checked], loss.advantage, lengths)
    return [
        _Sample(
            replace(one, tokens=_needed(tokens)),
            number,
            value,
            0 if loss.overlong == "mask" and one.stop.policy_fault else length,
        )
        for one, (tokens, _), value, length in zip(group, checked, values, lengths, strict=True)
    ]


def _needed(tokens: Tokens) -> Tokens:
    """Up to the last sampled token. The observation that overran `limits.max_tokens` comes after it: nothing is learned
    from that, and it may be longer than any limit on a row."""
    sampled = np.flatnonzero(tokens.mask)
    end = int(sampled[-1]) + 1 if sampled.size else len(tokens.mask)
    return Tokens(tokens.ids[:end], tokens.mask[:end], tokens.logprobs[:end], tokens.versions[:end])


def _checked(one: Trajectory) -> tuple[Tokens, float]:
    """Its tokens and its reward. Raises ValueError where it cannot be trained on."""
    where = f"trajectory of task {one.task_id}"
    if one.stop.machine_fault or one.reward is None or not math.isfinite(one.reward):
        raise ValueError(f"{where} has no reward ({one.stop}): machine faults are dropped before grouping")
    if one.tokens is None:
        raise ValueError(f"{where} has no tokens: only trajectories of our own engine can be trained on")
    tokens = one.tokens
    if not len(tokens.ids) == len(tokens.mask) == len(tokens.logprobs) == len(tokens.versions) > 0:
        raise ValueError(f"{where}: ids, mask, logprobs and versions differ in length or are empty")
    if tokens.mask[0]:
        raise ValueError(f"{where}: its first token is marked as sampled, but nothing predicts it")
    if not np.isfinite(tokens.logprobs).all():
        raise ValueError(f"{where}: the engine gave a log-probability that is not finite")
    return tokens, one.reward


def _probe(tokens: Tokens) -> _Sample:
    probe = Trajectory("probe", "probe", "llm", StopReason.ANSWERED, turns=(), reward=0.0, tokens=tokens)
    _checked(probe)
    return _Sample(probe, group=-1, advantage=0.0, num_tokens=0)


def _moves(sample: _Sample, loss: LossConfig) -> bool:
    """Whether the sample has a gradient. The quadratic term of dppo has one even where the advantage is 0; a user's
    own loss may."""
    return sample.advantage != 0 or loss.policy_loss == "dppo" or is_own(loss.policy_loss)


def _rows(
    moving: list[tuple[_Sample, float]], learner: LearnerConfig, version: int, kept_kv: bool
) -> tuple[tuple[Row, ...], ...]:
    """[rank][row] for one optimizer step: evenly filled rows, the heaviest ones side by side."""
    lengths = [len(sample.tokens.ids) for sample, _ in moving]
    crossover = learner.attention_crossover
    bins = pack(lengths, learner.max_tokens_per_row, learner.world_size, crossover)
    rows = [_row([moving[i] for i in members], version, kept_kv) if members else _idle_row() for members in bins]
    rows.sort(key=lambda row: -sum(cost(length, crossover) for length in row.lengths.tolist()))
    ranks: list[list[Row]] = [[] for _ in range(learner.world_size)]
    for start in range(0, len(rows), learner.world_size):
        side_by_side = rows[start : start + learner.world_size]
        # every other time backwards, so that no rank always has the longest row
        for rank, row in zip(
            ranks, side_by_side if start // learner.world_size % 2 else side_by_side[::-1], strict=True
        ):
            rank.append(row)
    return tuple(tuple(rank) for rank in ranks)


def pack(lengths: Sequence[int], max_tokens: int, multiple_of: int = 1, crossover: int = 0) -> list[list[int]]:
    """Indices of `lengths` in bins of at most `max_tokens`, as even in `cost` as the greedy rule makes them.

    The number of bins is the smallest multiple of `multiple_of` for which it works: longest first, each into the bin
    that costs least of those where it fits. An item longer than `max_tokens` has a bin of its own. Bins may be empty.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    alone = [i for i in order if lengths[i] > max_tokens]
    others = order[len(alone) :]
    total = sum(lengths[i] for i in others)
    num_bins = max(1, -(-(len(alone) + -(-total // max_tokens)) // multiple_of)) * multiple_of
    while True:
        bins = [[i] for i in alone] + [[] for _ in range(num_bins - len(alone))]
        tokens, costs = ([0.0] * (num_bins - len(alone)) for _ in range(2))
        for i in others:
            fitting = [bin for bin, held in enumerate(tokens) if held + lengths[i] <= max_tokens]
            if not fitting:
                break
            cheapest = min(fitting, key=costs.__getitem__)
            tokens[cheapest] += lengths[i]
            costs[cheapest] += cost(lengths[i], crossover)
            bins[len(alone) + cheapest].append(i)
        else:
            return bins
        num_bins += multiple_of


def cost(length: int, crossover: int) -> float:
    """What a trajectory of `length` tokens costs the learner, in tokens of a short one: matrix products grow with its
    length, attention with the square. They are equal at `crossover`; 0: attention costs nothing."""
    return length + (length * length / crossover if crossover else 0)


def _row(members: list[tuple[_Sample, float]], version: int, kept_kv: bool = False) -> Row:
    tokens = [sample.tokens for sample, _ in members]
    lengths = np.array([len(one.ids) for one in tokens], dtype=np.int64)
    trained = np.flatnonzero(np.concatenate([one.mask == 1 for one in tokens]))
    trajectory = np.repeat(np.arange(len(members)), lengths)[trained]
    fresh = np.concatenate([_fresh(one, version, kept_kv) for one in tokens])[trained]
    return Row(
        ids=np.concatenate([one.ids for one in tokens], dtype=np.int64),
        lengths=lengths,
        trained=trained,
        trajectory=trajectory,
        engine=np.concatenate([one.logprobs for one in tokens])[trained],
        advantages=np.array([sample.advantage for sample, _ in members], dtype=np.float32)[trajectory],
        weights=np.array([weight for _, weight in members], dtype=np.float32)[trajectory],
        fresh=fresh,
        places=tuple(sample.place for sample, _ in members),
    )


def _fresh(tokens: Tokens, version: int, kept_kv: bool) -> np.ndarray:
    """Which tokens the learner's present weights drew, and drew alone: bool [tokens]. Where an engine keeps its KV
    cache over a change of weights, what it drew later in the same turn looked at keys and values of the old ones."""
    fresh: np.ndarray = (tokens.versions == version) & (tokens.versions >= 0)
    if not kept_kv:
        return fresh
    begins = np.flatnonzero(np.diff(tokens.mask, prepend=-1))  # of every run of sampled, or of other, tokens
    first = np.repeat(tokens.versions[begins], np.diff(begins, append=len(tokens.mask)))
    fresh &= first == version
    return fresh


def _idle_row() -> Row:
    """A row that trains nothing: it keeps a rank in step with the others."""
    integers, numbers = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
    one = np.ones(1, dtype=np.int64)
    return Row(0 * one, one, integers, integers, numbers, numbers, numbers, np.zeros(0, dtype=bool))

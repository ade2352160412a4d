"""Packing loses no token, invents none, and changes no number of the loss."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxrl.data.errors import InputError
from sandboxrl.envs.trajectory import StopReason, Tokens, Trajectory
from sandboxrl.rl.grpo import LossConfig
from sandboxrl.rl.learner.batch import build_batch, cost, pack
from sandboxrl.rl.learner.config import LearnerConfig


def trajectory(reward, mask, stop=StopReason.FINISHED, version=0, start=0, task="t"):
    """Token ids count up from `start`, log-probabilities are -id / 100."""
    ids = list(range(start, start + len(mask)))
    tokens = Tokens(
        ids=ids,
        mask=list(mask),
        logprobs=[-i / 100 * m for i, m in zip(ids, mask, strict=True)],
        versions=[version if m else -1 for m in mask],
    )
    return Trajectory(task, "s", "sandbox", stop, turns=(), score=reward, reward=reward, tokens=tokens)


def group_of(rewards, lengths, start=0):
    """Trajectories with a two-token prompt and the given numbers of sampled tokens, all ids distinct."""
    group = []
    for reward, length in zip(rewards, lengths, strict=True):
        group.append(trajectory(reward, [0, 0] + [1] * length, start=start))
        start += length + 2
    return group


def trained_tokens(batch):
    """Every trained token of a batch: (id, engine log-prob, advantage, weight), sorted."""
    found = []
    for ranks in batch.minibatches:
        for rank in ranks:
            for row in rank:
                columns = (row.ids[row.trained], row.engine, row.advantages, row.weights)
                found += [tuple(values) for values in zip(*columns, strict=True)]
    return sorted(found)


PAPER = LossConfig(aggregation="sequence_mean_token_sum")


def test_what_follows_the_last_sampled_token_takes_no_room():
    with_tail = [trajectory(1.0, [0, 1] + [0] * 500, StopReason.MAX_TOKENS), trajectory(0.0, [0, 1], start=600)]
    batch = build_batch([with_tail], LossConfig(), LearnerConfig(max_tokens_per_row=8), version=0)
    assert batch.num_row_tokens == 4
    assert [one[0] for one in trained_tokens(batch)] == [1, 601]


def test_a_row_by_hand():
    group = [trajectory(1.0, [0, 0, 1, 1, 0, 1], start=10), trajectory(0.0, [0, 1], start=20)]
    batch = build_batch([group], PAPER, LearnerConfig(), version=0)
    ((rows,),) = batch.minibatches
    (row,) = rows
    assert row.ids.tolist() == [10, 11, 12, 13, 14, 15, 20, 21]
    assert row.positions.tolist() == [0, 1, 2, 3, 4, 5, 0, 1]
    assert row.trained.tolist() == [2, 3, 5, 7]
    assert row.trajectory.tolist() == [0, 0, 0, 1]
    assert row.engine == pytest.approx([-0.12, -0.13, -0.15, -0.21])
    assert row.advantages.tolist() == [1, 1, 1, -1]
    assert row.weights.tolist() == [0.5] * 4
    assert (batch.num_trajectories, batch.num_sampled, batch.num_trained, batch.num_row_tokens) == (2, 4, 4, 8)
    assert batch.advantages == ((1.0, -1.0),)
    assert batch.num_informative == 1


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=40),
    st.integers(10, 50),
    st.integers(1, 5),
    st.integers(0, 100),
)
def test_packing_keeps_every_item_whole_once_and_within_the_limit(lengths, limit, multiple, crossover):
    bins = pack(lengths, limit, multiple, crossover)
    assert sorted(i for members in bins for i in members) == list(range(len(lengths)))
    assert len(bins) % multiple == 0
    for members in bins:
        assert sum(lengths[i] for i in members) <= limit or len(members) == 1
    assert bins == pack(lengths, limit, multiple, crossover)


def test_packing_is_even():
    loads = sorted(sum(members) for members in ([[5, 4, 3, 3, 3][i] for i in m] for m in pack([5, 4, 3, 3, 3], 100, 2)))
    assert loads == [8, 10]
    assert len(pack([10] * 8, 40)) == 2


def test_rows_are_even_in_what_they_cost():
    """Where attention costs as much as the rest at 24 tokens, one of 64 costs as much as 225 of 1."""
    lengths = [64] + [1] * 64 + [32]
    by_length, by_cost = pack(lengths, 1000, 2), pack(lengths, 1000, 2, crossover=24)

    def dearest(bins):
        return max(sum(cost(lengths[i], 24) for i in members) for members in bins)

    assert dearest(by_length) == pytest.approx(251, abs=1)
    assert dearest(by_cost) == pytest.approx(235, abs=1)
    assert by_cost[0] == [0], "nothing beside the one that already costs more than all the others"
    group = group_of([1.0, 0.0] * 16, [62] + [6] * 31)
    config = LearnerConfig(world_size=2, max_tokens_per_row=400, attention_crossover=10)
    steps = build_batch([group], LossConfig(), config, version=0)
    assert sorted(len(row.lengths) for rank in steps.minibatches[0] for row in rank) == [1, 31]


groups_strategy = st.lists(
    st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.integers(1, 9)), min_size=1, max_size=5),
    min_size=1,
    max_size=4,
)


@given(groups_strategy, st.integers(4, 30), st.integers(1, 3), st.integers(1, 3))
def test_rows_and_ranks_change_no_number(spec, max_tokens, world_size, minibatches):
    """I1 to I4: the set of (token, advantage, weight) is the same for every row length and world size; a token is there
    once; every rank has the same number of rows."""
    groups, start = [], 0
    for members in spec:
        groups.append(group_of([r for r, _ in members], [n for _, n in members], start))
        start += sum(n + 2 for _, n in members)
    reference = build_batch(groups, LossConfig(), LearnerConfig(minibatches=minibatches), version=0)
    learner = LearnerConfig(max_tokens_per_row=max_tokens, world_size=world_size, minibatches=minibatches)
    batch = build_batch(groups, LossConfig(), learner, version=0)
    assert trained_tokens(batch) == trained_tokens(reference)
    ids = [token[0] for token in trained_tokens(batch)]
    assert len(set(ids)) == len(ids) == batch.num_trained
    for ranks in batch.minibatches:
        assert len(ranks) == world_size
        assert len({len(rank) for rank in ranks}) == 1
    moving = [t for g, a in zip(groups, batch.advantages, strict=True) for t, x in zip(g, a, strict=True) if x != 0]
    assert batch.num_trained == sum(sum(t.tokens.mask) for t in moving)


def test_groups_without_signal_get_no_row_and_count():
    lone = build_batch([group_of([1, 0], [3, 3])], PAPER, LearnerConfig(), version=0)
    both = build_batch([group_of([1, 0], [3, 3]), group_of([0.4] * 6, [5] * 6, 50)], PAPER, LearnerConfig(), version=0)
    assert both.num_trained == lone.num_trained == 6
    assert both.num_informative == 1
    assert {w for *_, w in trained_tokens(lone)} == {np.float32(1 / 2)}
    assert {w for *_, w in trained_tokens(both)} == {np.float32(1 / 8)}


def test_nothing_to_learn_makes_no_step():
    batch = build_batch(
        [group_of([1, 1], [3, 3]), group_of([0.0], [3], 20)], LossConfig(), LearnerConfig(world_size=2), version=0
    )
    assert batch.minibatches == ()
    assert batch.of_rank(1) == []
    assert batch.num_trajectories == 3


def test_an_overlong_trajectory_is_trained_or_masked_by_name():
    group = group_of([1, 0, 0, 0], [4, 3, 2, 6])
    group[3] = dataclasses.replace(group[3], stop=StopReason.MAX_TOKENS)
    trained = build_batch([group], PAPER, LearnerConfig(), version=0)
    masked = build_batch([group], dataclasses.replace(PAPER, overlong="mask"), LearnerConfig(), version=0)
    assert (trained.num_trained, masked.num_trained) == (15, 9)
    assert masked.advantages == trained.advantages
    assert {w for *_, w in trained_tokens(masked)} == {np.float32(1 / 4)}
    by_token = build_batch([group], LossConfig(overlong="mask", aggregation="token_mean"), LearnerConfig(), version=0)
    assert {w for *_, w in trained_tokens(by_token)} == {np.float32(1 / 9)}


def test_minibatches_share_out_every_group():
    groups = [group_of([1, 0, 0, 1], [3] * 4), group_of([0, 1, 0, 0], [3] * 4, 20)]
    batch = build_batch(groups, LossConfig(aggregation="token_mean"), LearnerConfig(minibatches=2), version=0)
    first, second = (sorted(ranks[0][0].ids.tolist()) for ranks in batch.minibatches)
    assert first == [*range(0, 5), *range(10, 15), *range(20, 25), *range(30, 35)]
    assert second == [*range(5, 10), *range(15, 20), *range(25, 30), *range(35, 40)]
    assert {w for *_, w in trained_tokens(batch)} == {np.float32(1 / 12)}


def test_a_pad_or_end_token_inside_a_trajectory_is_a_token_like_any_other():
    one, two = group_of([1, 0], [3, 3])
    for token in (0, 2):
        ids = [*one.tokens.ids[:3], token, *one.tokens.ids[4:]]
        changed = dataclasses.replace(one, tokens=dataclasses.replace(one.tokens, ids=ids))
        batch = build_batch([[changed, two]], LossConfig(), LearnerConfig(), version=0)
        assert batch.minibatches[0][0][0].ids.tolist() == [*ids, *two.tokens.ids]
        assert batch.num_trained == 6


def test_fresh_tokens_are_those_of_the_present_version():
    group = [trajectory(1.0, [0, 1, 1], version=3), trajectory(0.0, [0, 1, 1], version=4, start=10)]
    (row,) = build_batch([group], LossConfig(), LearnerConfig(), version=4).minibatches[0][0]
    assert row.fresh.tolist() == [False, False, True, True]
    (row,) = build_batch([group], LossConfig(), LearnerConfig(), version=5).minibatches[0][0]
    assert not row.fresh.any()


GOOD = trajectory(1.0, [0, 1, 1])
BROKEN = {
    "machine faults": dataclasses.replace(GOOD, stop=StopReason.SANDBOX_LOST, reward=None),
    "no reward": dataclasses.replace(GOOD, reward=None),
    "no tokens": dataclasses.replace(GOOD, tokens=None),
    "first token": trajectory(1.0, [1, 1]),
    "not finite": dataclasses.replace(GOOD, tokens=dataclasses.replace(GOOD.tokens, logprobs=[0.0, float("nan"), 0.0])),
    "differ in length": dataclasses.replace(GOOD, tokens=dataclasses.replace(GOOD.tokens, mask=[0, 1])),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_trajectory_that_cannot_be_trained_on_is_refused(fault):
    with pytest.raises(ValueError, match=fault):
        build_batch([[BROKEN[fault], GOOD]], LossConfig(), LearnerConfig(), version=0)


@pytest.mark.parametrize(
    "options, names",
    [
        ({"device": "gpu"}, "device"),
        ({"dtype": "float16"}, "bfloat16"),
        ({"world_size": 0}, "world_size"),
        ({"minibatches": 0}, "minibatches"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"beta2": 1.0}, "beta2"),
        ({"max_grad_norm": 0.0}, "max_grad_norm"),
    ],
)
def test_a_wrong_option_is_an_error(options, names):
    with pytest.raises(InputError, match=names):
        LearnerConfig(**options)


def test_probes_are_compared_and_never_trained_on():
    probe = Tokens([1, 2, 3], [0, 1, 1], [0.0, -1.0, -2.0], [-1, 4, 3])
    with_probe = build_batch([group_of([1.0, 0.0], [3, 2])], LossConfig(), LearnerConfig(), version=4, probes=[probe])
    without = build_batch([group_of([1.0, 0.0], [3, 2])], LossConfig(), LearnerConfig(), version=4)
    assert trained_tokens(with_probe) == trained_tokens(without)
    assert with_probe.probe.fresh.tolist() == [True, False] and without.probe is None


def test_with_a_kept_kv_cache_only_turns_of_one_version_are_fresh():
    """Two turns: the first was interrupted by the weights of version 4, the second is all theirs."""
    mask = [0, 0, 1, 1, 1, 0, 1, 1]
    versions = [-1, -1, 3, 4, 4, -1, 4, 4]
    one = trajectory(1.0, mask)
    one = dataclasses.replace(one, tokens=Tokens(one.tokens.ids, mask, one.tokens.logprobs, versions))
    group = [one, trajectory(0.0, [0, 1], start=50)]
    found = {}
    for kept in (False, True):
        (row,) = build_batch([group], LossConfig(), LearnerConfig(), version=4, kept_kv=kept).minibatches[0][0]
        found[kept] = row.fresh[row.trajectory == row.places.index(0)].tolist()
    assert found[False] == [False, True, True, True, True]
    assert found[True] == [False, False, False, True, True]

"""The algorithm against hand-worked numbers, and the invariances any implementation must have."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sandboxrl.data.errors import InputError
from sandboxrl.rl.grpo import (
    ADVANTAGES,
    AGGREGATIONS,
    LossConfig,
    advantages,
    importance_weights,
    informative,
    k3,
    loss_weights,
    standardised,
    token_loss,
)

LENGTHS = [4, 3, 2, 6]
CONTEXT = 8


def config_for(aggregation: str) -> LossConfig:
    return LossConfig(
        aggregation=aggregation, length_norm=CONTEXT if aggregation == "sequence_mean_token_sum_norm" else 0
    )


def on_policy_loss(row_advantages, lengths, aggregation, groups=None):
    """The loss at ratio 1, where a token's loss is minus its advantage: sum of weight * length * -A."""
    weights = loss_weights(lengths, groups or [0] * len(lengths), config_for(aggregation))
    return sum(-a * n * w for a, n, w in zip(row_advantages, lengths, weights, strict=True))


# --- advantages -------------------------------------------------------------------------------------------------------

THIRD = 1 / 3
ADVANTAGE_TABLE = [
    # rewards, leave_one_out, mean_centred, group_std (n - 1), group_std (n)
    (
        [1, 0, 0, 1],
        [0.666667, -0.666667, -0.666667, 0.666667],
        [0.5, -0.5, -0.5, 0.5],
        [0.866024, -0.866024, -0.866024, 0.866024],
        [0.999998, -0.999998, -0.999998, 0.999998],
    ),
    (
        [1, 0, 0, 0],
        [1, -THIRD, -THIRD, -THIRD],
        [0.75, -0.25, -0.25, -0.25],
        [1.499997, -0.499999, -0.499999, -0.499999],
        [1.732047, -0.577349, -0.577349, -0.577349],
    ),
    (
        [1, 0.5, 0.25, 0],
        [0.75, 0.083333, -0.25, -0.583333],
        [0.5625, 0.0625, -0.1875, -0.4375],
        [1.317462, 0.146385, -0.439154, -1.024693],
        [1.521274, 0.169030, -0.507091, -1.183213],
    ),
    (
        [1, 0, 0],
        [1, -0.5, -0.5],
        [0.666667, -0.333333, -0.333333],
        [1.154699, -0.577349, -0.577349],
        [1.414211, -0.707105, -0.707105],
    ),
    ([1, 0], [1, -1], [0.5, -0.5], [0.707106, -0.707106], [0.999998, -0.999998]),
    (
        [1] + [0] * 7,
        [1] + [-0.142857] * 7,
        [0.875] + [-0.125] * 7,
        [2.474867] + [-0.353552] * 7,
        [2.645743] + [-0.377963] * 7,
    ),
    (
        [1] * 3 + [0] * 5,
        [0.714286] * 3 + [-0.428571] * 5,
        [0.625] * 3 + [-0.375] * 5,
        [1.207612] * 3 + [-0.724567] * 5,
        [1.290992] * 3 + [-0.774595] * 5,
    ),
    (
        [1] * 7 + [0],
        [0.142857] * 7 + [-1],
        [0.125] * 7 + [-0.875],
        [0.353552] * 7 + [-2.474867],
        [0.377963] * 7 + [-2.645743],
    ),
]


@pytest.mark.parametrize("rewards, left_out, centred, std1, std0", ADVANTAGE_TABLE)
def test_advantages_by_hand(rewards, left_out, centred, std1, std0):
    assert advantages(rewards, "leave_one_out") == pytest.approx(left_out, abs=1e-6)
    assert advantages(rewards, "mean_centred") == pytest.approx(centred, abs=1e-6)
    assert advantages(rewards, "group_std") == pytest.approx(std1, abs=1e-6)
    assert standardised(rewards, ddof=0) == pytest.approx(std0, abs=1e-6)


def test_standardised_with_a_smaller_epsilon():
    assert standardised([1, 0, 0, 1], epsilon=1e-9) == pytest.approx(
        [0.866025, -0.866025, -0.866025, 0.866025], abs=1e-6
    )
    assert standardised([1, 0, 0, 0], epsilon=1e-9) == pytest.approx([1.5, -0.5, -0.5, -0.5], abs=1e-6)


def test_length_weighted_baseline_by_hand():
    one = advantages([1, 0, 0, 0], "length_weighted", LENGTHS)
    assert one == pytest.approx([0.733333, -0.266667, -0.266667, -0.266667], abs=1e-6)
    two = advantages([1, 0, 0, 1], "length_weighted", LENGTHS)
    assert two == pytest.approx([0.333333, -0.666667, -0.666667, 0.333333], abs=1e-6)


@pytest.mark.parametrize("estimator", ADVANTAGES)
@pytest.mark.parametrize("rewards", [[1, 1, 1, 1], [0, 0], [0.4] * 7, [0.1 + 0.2, 0.3, 0.3], [1.0], []])
def test_a_group_without_signal_gets_exact_zeros(estimator, rewards):
    assert not informative(rewards)
    assert advantages(rewards, estimator, [3] * len(rewards)) == [0.0] * len(rewards)


def test_a_group_is_its_own_baseline_whatever_the_size_of_the_others():
    """slime takes the whole batch as one group when the sizes differ."""
    assert advantages([1, 1, 0], "mean_centred") == pytest.approx([THIRD, THIRD, -2 * THIRD])
    assert advantages([0, 0, 0, 0], "mean_centred") == [0.0] * 4


def test_a_dropped_trajectory_leaves_no_trace_in_the_baseline():
    """R = [1, 0, 0, 1] with the last one lost to the machine: baselines 0, 0.5, 0.5 (NeMo-RL, open-instruct 1887)."""
    assert advantages([1, 0, 0], "leave_one_out") == pytest.approx([1 - 0, 0 - 0.5, 0 - 0.5])


@given(st.lists(st.floats(0, 1), min_size=2, max_size=16))
def test_leave_one_out_is_mean_centred_times_n_over_n_minus_one(rewards):
    n = len(rewards)
    expected = [a * n / (n - 1) for a in advantages(rewards, "mean_centred")]
    assert advantages(rewards, "leave_one_out") == pytest.approx(expected, abs=1e-9)


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=2, max_size=9), st.randoms())
def test_advantages_do_not_depend_on_the_order_within_a_group(rewards, rng):
    order = list(range(len(rewards)))
    rng.shuffle(order)
    for estimator in ADVANTAGES:
        before = advantages(rewards, estimator, [1 + i for i in range(len(rewards))])
        after = advantages([rewards[i] for i in order], estimator, [1 + i for i in order])
        assert after == pytest.approx([before[i] for i in order], abs=1e-12)


# --- aggregation ------------------------------------------------------------------------------------------------------

# rewards in the baseline, token_mean, token_sum, sequence_mean_token_sum, ..._norm, sequence_mean_token_mean.
# One group, lengths 4, 3, 2, 6, context 8, ratio 1; the fourth trajectory used up a limit.
TRUNCATION_TABLE = {
    "failed, no filter": ([1, 0, 0, 0], LENGTHS, (-0.022222, -0.333333, -0.083333, -0.010417, 0)),
    "failed, masked": ([1, 0, 0, 0], [4, 3, 2, 0], (-0.259259, -2.333333, -0.583333, -0.072917, -0.083333)),
    "failed, dropped": ([1, 0, 0], [4, 3, 2], (-0.166667, -1.5, -0.5, -0.0625, 0)),
    "right, no filter": ([1, 0, 0, 1], LENGTHS, (-0.222222, -3.333333, -0.833333, -0.104167, 0)),
    "right, masked, true reward": ([1, 0, 0, 1], [4, 3, 2, 0], (0.074074, 0.666667, 0.166667, 0.020833, 0.166667)),
}


@pytest.mark.parametrize("case", TRUNCATION_TABLE)
def test_aggregation_with_a_truncated_trajectory_by_hand(case):
    rewards, lengths, expected = TRUNCATION_TABLE[case]
    names = (
        "token_mean",
        "token_sum",
        "sequence_mean_token_sum",
        "sequence_mean_token_sum_norm",
        "sequence_mean_token_mean",
    )
    found = [on_policy_loss(advantages(rewards, "leave_one_out"), lengths, name) for name in names]
    assert found == pytest.approx(expected, abs=1e-6)


def test_two_prompts_by_hand():
    row_advantages = advantages([1, 0], "leave_one_out") + advantages([0, 1], "leave_one_out")
    expected = {
        "token_mean": -0.333333,
        "prompt_mean": -0.321429,
        "sequence_mean_token_sum": -1.25,
        "sequence_mean_token_mean": 0,
    }
    for name, value in expected.items():
        assert on_policy_loss(row_advantages, LENGTHS, name, [0, 0, 1, 1]) == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_every_partition_into_micro_batches_sums_to_the_same_loss(aggregation):
    """The wrong values of other code bases: mean of micro-batch means, padded width as the constant, no 1/B."""
    row_advantages = advantages([1, 0, 0, 0], "leave_one_out")
    weights = loss_weights(LENGTHS, [0] * 4, config_for(aggregation))
    rows = [-a * n * w for a, n, w in zip(row_advantages, LENGTHS, weights, strict=True)]
    whole = sum(rows)
    for labels in itertools.product(range(4), repeat=4):
        parts = [sum(rows[i] for i in range(4) if labels[i] == part) for part in range(4)]
        assert sum(parts) == pytest.approx(whole, abs=1e-12)
    wrong = {-0.047619, -0.111111, 0.611111, -0.041667, -0.013889, -0.055556}
    assert all(abs(whole - value) > 1e-3 for value in wrong)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_a_masked_trajectory_weighs_nothing_and_counts(aggregation):
    config = config_for(aggregation)
    assert loss_weights([0, 0], [0, 0], config) == [0.0, 0.0]
    masked, kept = loss_weights([0, 5], [0, 1], config)
    assert masked == 0.0
    counts = aggregation not in ("token_mean", "token_sum")
    alone = loss_weights([5], [1], config)[0]
    assert kept == pytest.approx(alone / 2 if counts else alone)


def test_two_tasks_with_the_same_text_stay_two_groups():
    same = loss_weights([4, 4, 2, 2], [0, 0, 0, 0], config_for("prompt_mean"))
    two = loss_weights([4, 4, 2, 2], [0, 0, 1, 1], config_for("prompt_mean"))
    assert same == pytest.approx([1 / 12] * 4)
    assert two == pytest.approx([1 / 16, 1 / 16, 1 / 8, 1 / 8])


# --- token losses -----------------------------------------------------------------------------------------------------

E20 = math.exp(20)
TOKEN_TABLE = [
    # advantage, logp - old, loss with dual clip 3, loss without, gradient with dual clip
    (1, 0.0, -1, -1, -1),
    (1, 0.2, -1.221403, -1.221403, -1.221403),
    (1, 0.25, -1.28, -1.28, 0),
    (1, 0.5, -1.28, -1.28, 0),
    (1, -0.25, -0.778801, -0.778801, -0.778801),
    (1, -0.5, -0.606531, -0.606531, -0.606531),
    (-1, 0.0, 1, 1, 1),
    (-1, 0.2, 1.221403, 1.221403, 1.221403),
    (-1, 0.5, 1.648721, 1.648721, 1.648721),
    (-1, 1.0, 2.718282, 2.718282, 2.718282),
    (-1, 1.2, 3.0, 3.320117, 0),
    (-1, 1.5, 3.0, 4.481689, 0),
    (-1, -0.2, 0.818731, 0.818731, 0.818731),
    (-1, -0.25, 0.8, 0.8, 0),
    (-1, -0.5, 0.8, 0.8, 0),
    (-1, 25.0, 3.0, E20, 0),
]


def evaluate(config, advantage, logprobs, old, engine=None, trajectory=None):
    """Loss, gradient and bound of tokens given as plain lists, in double precision."""
    logp = torch.tensor(logprobs, dtype=torch.float64, requires_grad=True)
    fixed = torch.tensor(old, dtype=torch.float64)
    loss, cut = token_loss(
        logp,
        fixed,
        fixed if engine is None else torch.tensor(engine, dtype=torch.float64),
        torch.tensor(advantage, dtype=torch.float64),
        torch.tensor(trajectory or [0] * len(logprobs)),
        config,
    )
    (gradient,) = torch.autograd.grad(loss.sum(), logp)
    return loss.tolist(), gradient.tolist(), cut.tolist()


@pytest.mark.parametrize("advantage, difference, dual, plain, gradient", TOKEN_TABLE)
def test_clipped_loss_by_hand(advantage, difference, dual, plain, gradient):
    loss, slope, cut = evaluate(LossConfig(dual_clip=3.0), [advantage], [difference], [0.0])
    assert loss == pytest.approx([dual], abs=1e-6)
    assert slope == pytest.approx([gradient], abs=1e-6)
    assert cut == [gradient == 0]
    assert evaluate(LossConfig(), [advantage], [difference], [0.0])[0] == pytest.approx([plain], rel=1e-6)


@pytest.mark.parametrize("policy_loss", ["clip", "cispo", "gspo", "dppo"])
def test_at_ratio_one_the_gradient_is_minus_the_advantage(policy_loss):
    """I10, for every loss: at the sampled policy they are all the plain policy gradient."""
    config = LossConfig(policy_loss=policy_loss, old_logprobs="engine")
    logprobs = [-0.3, -1.7, -2.2]
    _, slope, cut = evaluate(config, [0.5, -1.5, 2.0], logprobs, logprobs)
    assert slope == pytest.approx([-0.5, 1.5, -2.0])
    assert cut == [False] * 3


@pytest.mark.parametrize(
    "advantage, now, then, expected, held",
    [
        (1, 0.5, 0.4, -1.249950, False),
        (1, 0.7, 0.4, 0.000313, True),
        (1, 0.1, 0.4, -0.248078, False),
        (-1, 0.5, 0.4, 1.250050, False),
        (-1, 0.25, 0.4, 0.625221, False),
        (-1, 0.1, 0.4, 0.001922, True),
    ],
)
def test_dppo_by_hand(advantage, now, then, expected, held):
    config = LossConfig(policy_loss="dppo", old_logprobs="engine", clip_high=0.2)
    loss, _, cut = evaluate(config, [advantage], [math.log(now)], [math.log(then)])
    assert loss == pytest.approx([expected], abs=1e-6)
    assert cut == [held]


LOG_W = [0.1, -0.2, 1.0]


def test_cispo_caps_the_weight_and_keeps_the_gradient():
    _, slope, cut = evaluate(LossConfig(policy_loss="cispo"), [1, 1, 1], LOG_W, [0.0] * 3)
    assert slope == pytest.approx([-1.105171, -0.818731, -1.28], abs=1e-6)
    assert cut == [False, False, True]


def test_gspo_has_one_ratio_per_trajectory():
    config = LossConfig(policy_loss="gspo", clip_high=0.5)
    loss, slope, _ = evaluate(config, [1] * 4, [*LOG_W, 0.2], [0.0] * 4, trajectory=[0, 0, 0, 1])
    expected = [-1.349859] * 3 + [-math.exp(0.2)]
    assert loss == pytest.approx(expected, abs=1e-6)
    assert slope == pytest.approx(expected, abs=1e-6)


def weights_of(log_weights, trajectory=None, **options):
    engine = torch.zeros(len(log_weights), dtype=torch.float64)
    old = torch.tensor(log_weights, dtype=torch.float64)
    index = torch.tensor(trajectory or [0] * len(log_weights))
    return importance_weights(old, engine, index, LossConfig(**options)).tolist()


def test_truncated_importance_weights_by_hand():
    assert weights_of(LOG_W, importance="token") == pytest.approx([1.105171, 0.818731, 2], abs=1e-6)
    assert weights_of(LOG_W, importance="sequence") == [2, 2, 2]
    product = weights_of(LOG_W, importance="sequence", importance_cap=3.0)
    assert product == pytest.approx([2.459603] * 3, abs=1e-6)
    assert weights_of([*LOG_W, 0.1], [0, 0, 0, 1], importance="sequence")[3] == pytest.approx(1.105171, abs=1e-6)
    wide = weights_of(LOG_W, importance="icepop", importance_cap=5.0)
    assert wide == pytest.approx([1.105171, 0.818731, 2.718282], abs=1e-6)
    assert weights_of(LOG_W, importance="icepop") == pytest.approx([1.105171, 0.818731, 0], abs=1e-6)


def test_importance_weights_scale_loss_and_gradient():
    loss, slope, _ = evaluate(LossConfig(importance="token"), [1, 1, 1], LOG_W, LOG_W, engine=[0.0] * 3)
    assert loss == pytest.approx([-1.105171, -0.818731, -2], abs=1e-6)
    assert slope == pytest.approx([-1.105171, -0.818731, -2], abs=1e-6)


def test_k3_by_hand():
    found = k3(torch.tensor(LOG_W, dtype=torch.float64))
    assert found.tolist() == pytest.approx([0.005171, 0.018731, 0.718282], abs=1e-6)
    assert found.mean().item() == pytest.approx(0.247394, abs=1e-6)
    table = {
        -0.1: 0.004837,
        0.1: 0.005171,
        -0.5: 0.106531,
        0.5: 0.148721,
        -1: 0.367879,
        1: 0.718282,
        -3: 2.049787,
        3: 10,
    }
    assert k3(torch.tensor([float(x) for x in table], dtype=torch.float64)).tolist() == pytest.approx(
        list(table.values()), abs=1e-6
    )


# --- configuration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, names",
    [
        ({"advantage": "leave_on_out"}, "leave_one_out"),
        ({"aggregation": "token_meen"}, "token_mean"),
        ({"policy_loss": "clips"}, "clip"),
        ({"clip_low": 1.5}, "clip_low"),
        ({"clip_high": 0.0}, "clip_high"),
        ({"dual_clip": 0.5}, "dual_clip"),
        ({"dual_clip": 3.0, "policy_loss": "cispo"}, "dual_clip"),
        ({"clip_low": 0.1, "policy_loss": "cispo"}, "clip_low"),
        ({"aggregation": "sequence_mean_token_sum_norm"}, "length_norm"),
        ({"length_norm": 4096}, "length_norm"),
        ({"importance_cap": 3.0}, "importance_cap"),
        ({"importance": "token", "importance_floor": 0.1}, "importance_floor"),
        ({"importance": "icepop", "importance_floor": 2.5}, "importance_floor"),
        ({"importance": "token", "old_logprobs": "engine"}, "importance"),
        ({"policy_loss": "dppo"}, "old_logprobs"),
    ],
)
def test_a_wrong_or_useless_option_is_an_error(options, names):
    with pytest.raises(InputError, match=names):
        LossConfig(**options)


def test_by_default_no_trajectory_outweighs_another():
    """One failure of 700 tokens among successes of 70: by token it is 59% of the weight, by trajectory an eighth."""
    lengths, groups = [70] * 7 + [700], [0] * 8
    shares = {}
    for aggregation in ("token_mean", "sequence_mean_token_sum", LossConfig().aggregation):
        weights = loss_weights(lengths, groups, LossConfig(aggregation=aggregation))
        total = sum(weight * length for weight, length in zip(weights, lengths, strict=True))
        shares[aggregation] = weights[-1] * lengths[-1] / total
    assert shares == pytest.approx(
        {"token_mean": 10 / 17, "sequence_mean_token_sum": 10 / 17, "sequence_mean_token_mean": 1 / 8}
    )


def test_the_defaults_are_those_of_the_paper_but_every_trajectory_weighs_the_same():
    config = LossConfig()
    assert (config.advantage, config.clip_low, config.clip_high) == ("leave_one_out", 0.2, 0.28)
    assert (config.aggregation, config.overlong, config.importance) == (
        "sequence_mean_token_mean",
        "zero_reward",
        "none",
    )

"""Statistics against values worked out by hand or published."""

import math

import pytest

from sandboxrl.rl.reports.statistics import average, bootstrap, compare, interval, mcnemar, pass_at_k, sign_flip, wilson


def test_averages_weigh_tasks_and_not_trajectories():
    assert average({"a": [1, 1, 1, 1], "b": [0]}) == 0.5
    assert math.isnan(average({}))


def test_pass_at_k_is_the_unbiased_estimate():
    assert pass_at_k({"a": [1, 0, 0, 0]}, 1) == pytest.approx(0.25)
    assert pass_at_k({"a": [1, 0, 0, 0]}, 2) == pytest.approx(0.5)  # 1 - C(3,2)/C(4,2)
    assert pass_at_k({"a": [1, 1, 0, 0], "b": [0, 0, 0, 0]}, 2) == pytest.approx((5 / 6 + 0) / 2)
    assert pass_at_k({"a": [0.5, 0.5]}, 2) == 0.0
    assert math.isnan(pass_at_k({"a": [1]}, 2))


def test_wilson_as_published():
    low, high = wilson(15, 148)  # Newcombe 1998, table I, method 3: 0.0624 to 0.1605
    assert (round(low, 4), round(high, 4)) == (0.0624, 0.1605)
    assert wilson(0, 20)[0] == 0.0 and round(wilson(0, 20)[1], 4) == 0.1611
    assert wilson(29, 29)[1] == 1.0 and round(wilson(29, 29)[0], 4) == 0.8830


def test_the_interval_fits_the_scores():
    single = {str(i): [float(i < 15)] for i in range(148)}
    assert interval(single) == wilson(15, 148)
    repeated = {str(i): [1.0, 0.0] for i in range(50)}
    assert interval(repeated) == (0.5, 0.5)  # the task is the unit: repeats add no certainty about tasks
    low, high = interval({str(i): [i / 100] for i in range(100)})
    assert low < average({str(i): [i / 100] for i in range(100)}) < high


def test_the_bootstrap_is_about_the_normal_interval_and_the_same_twice():
    values = [0.0] * 50 + [1.0] * 50
    low, high = bootstrap(values)
    assert (low, high) == pytest.approx((0.402, 0.598), abs=0.015) and bootstrap(values) == (low, high)


def test_mcnemar_is_the_exact_binomial():
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 0) == pytest.approx(2 / 32)
    assert mcnemar(10, 2) == pytest.approx(2 * (1 + 12 + 66) / 4096)
    assert mcnemar(3, 7) == mcnemar(7, 3)


def test_sign_flip_sees_a_shift_and_nothing_else():
    assert sign_flip([0.1] * 12) < 0.01
    assert sign_flip([0.5, -0.5] * 10) == 1.0


def test_a_comparison_pairs_tasks_and_picks_its_test():
    first = {str(i): [float(i % 2)] for i in range(40)} | {"only here": [1.0]}
    second = {str(i): [1.0] for i in range(40)}
    found = compare(first, second)
    assert (found.num_tasks, found.first, found.second, found.difference) == (40, 0.5, 1.0, 0.5)
    assert found.test == "mcnemar" and found.p_value == pytest.approx(2**-19) and found.low < 0.5 < found.high
    assert compare({"a": [0.3, 0.2]}, {"a": [0.5]}).test == "sign-flip"
    assert compare({"a": [1]}, {"b": [1]}) is None

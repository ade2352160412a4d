"""Repository tests: which logs count as solved, and what a gold must say."""

import pytest

from sandboxrl.data.errors import InputError
from sandboxrl.data.task import Task
from sandboxrl.envs.grading.code.repository_tests import TestGold, score_tests
from sandboxrl.envs.grading.code.test_logs import END, READERS, START, status_of, without_colours
from tests.envs.grading.scoring import checked, graded


def task(reward, gold, question="q", **fields):
    return Task("t", "s", question, gold, reward, **fields)


PYTEST = """\
============ short test summary info ============
\x1b[32mPASSED\x1b[0m tests/test_a.py::TestA::test_one
PASSED tests/test_a.py::test_two[x-1]
FAILED tests/test_a.py::test_three - AssertionError: 1 - 2
ERROR tests/test_b.py - ImportError
XFAIL tests/test_a.py::test_four
SKIPPED [1] tests/test_a.py:9: no such machine
"""


def swe(fail, keep=(), log="pytest"):
    return TestGold("true", FAIL_TO_PASS=tuple(fail), PASS_TO_PASS=tuple(keep), log=log)


@pytest.mark.parametrize(
    ("gold", "score"),
    [
        (swe(["tests/test_a.py::TestA::test_one"]), 1),
        (swe(["tests/test_a.py::test_four"], ["tests/test_a.py::test_two[x-1]"]), 1),
        (swe(["tests/test_a.py::test_two[x"]), 1),  # an id that was cut when it was published
        (swe(["tests/test_a.py::test_three"]), 0),
        (swe(["tests/test_a.py::TestA::test_one"], ["tests/test_a.py::test_three"]), 0),
        (swe(["tests/test_a.py::test_missing"]), 0),
        (swe(["tests/test_b.py"]), 0),
    ],
)
def test_swe_bench_wants_the_broken_tests_fixed_and_the_others_kept(gold, score):
    assert score_tests(gold, PYTEST) == score


def test_r2e_gym_wants_the_same_tests_with_the_same_statuses():
    output = "PASSED t.py::A::one\nFAILED t.py::two - boom\n"
    assert score_tests(TestGold("true", expected={"A.one": "PASSED", "two": "FAILED"}), output) == 1.0
    for expected in ({"A.one": "PASSED"}, {"A.one": "PASSED", "two": "PASSED"}, {"A.one": "PASSED", "x": "FAILED"}):
        assert score_tests(TestGold("true", expected=expected), output) == 0.0
    assert score_tests(TestGold("true", expected={"A.one": "PASSED"}), "") == 0.0


def test_a_test_that_writes_to_the_terminal_has_the_last_status_that_stands_alone():
    log = "t.py::test_a \n--- live log call ---\nERROR    app:x.py:3 boom\nPASSED    [ 50%]\n"
    log += "t.py::test_b PASSED and more\nPASSED\nFAILED [100%]\n=== FAILURES ===\nPASSED\n"
    assert READERS["pytest"](log) == {"t.py::test_a": "PASSED", "t.py::test_b": "FAILED"}


LOGS = {
    "pytest_word": "PASSED t.py::test_a[x y]\nSKIPPED [2] t.py:3: no\nFAILED t.py::test_b - assert 1\nPASSED\n",
    "pytest_option": "PASSED t.py::test_a[/tmp/x/y.py]\nPASSED t.py::test_b[//h/x]\nPASSED t.py::test_c[a*/b]\n",
    "pytest_line": "PASSED t.py::test_a[x  y]\nt.py::test_b \x1b[32mPASSED\x1b[0m\nFAILED t.py::test_c[a - b] - no\n",
    "matplotlib": "PASSED t.py::test_a[MouseButton.LEFT] - x\n",
    "seaborn": "t.py::test_a PASSED [ 50%]\nFAILED t.py::test_b - no\nPASSED t.py::test_c\nERROR t.py\n",
    "unittest": "test_a (m.T) ... Testing against Django\nok\ntest_b (m.T)\nDoc line. ... FAIL\nA. ... skipped 'no'\n"
    "test_c (m.T) ... expected failure\nB ...  OK\nERROR: test_d (m.T)\n",
    "sympy": "test_a ok\ntest_b F\ntest_c f\ntest_d E\ntest_e ok    [OK]\n",
}
NAMES = {
    "pytest_word": {"t.py::test_a[x": "PASSED", "t.py::test_b": "FAILED"},
    "pytest_option": {"t.py::test_a[/y.py]": "PASSED", "t.py::test_b[//h/x]": "PASSED", "t.py::test_c[a*/b]": "PASSED"},
    "pytest_line": {"t.py::test_a[x y]": "PASSED", "t.py::test_b": "PASSED", "t.py::test_c[a": "FAILED"},
    "matplotlib": {"t.py::test_a[1]": "PASSED"},
    "seaborn": {"t.py::test_a": "PASSED", "t.py::test_b": "FAILED", "t.py::test_c": "PASSED"},
    "unittest": {"test_a (m.T)": "PASSED", "Doc line.": "FAILED", "A.": "SKIPPED", "B": "PASSED", "test_d": "ERROR"},
    "sympy": {"test_a": "PASSED", "test_b": "FAILED", "test_d": "ERROR"},
}
"""As swebench 5.0.2 reads these logs (`python -m bench.graders` compares on thousands more)."""


@pytest.mark.parametrize("log", LOGS)
def test_tests_get_the_names_that_the_published_lists_have(log):
    assert READERS[log](without_colours(LOGS[log])) == NAMES[log]


def test_an_id_that_was_cut_counts_where_all_that_fit_agree():
    seen = {"t[a b]": "PASSED", "t[a c]": "XFAIL", "u[x y]": "FAILED", "u[x z]": "PASSED", "v[1]": "PASSED"}
    assert [status_of(seen, name) for name in ("t[a", "u[x", "v", "t[a b]")] == [
        "PASSED",
        "MISSING",
        "MISSING",
        "PASSED",
    ]


MARKED = f": '{START}'"


@pytest.mark.parametrize(
    ("output", "score"),
    [
        (f"+ : '{START}'\nPASSED t::a\n+ : '{END}'\n", 1),
        (f"PASSED t::a\n{START}\nFAILED t::a\n{END}\nPASSED t::a\n", 0),  # only what stands between
        ("PASSED t::a\n", 0),  # the suite never started
        (f"{START}\nPASSED t::a\n", 0),  # or never ended
        (f"{START}\n{END}\nPASSED t::a\n", 1),  # nothing between: the streams came in another order
        (f"{START}\nPASSED t::a\n{END}\n>>>>> Test Exit Code: 0\n", 1),
        (f"{START}\nPASSED t::a\n>>>>> Test Exit Code: 0\n{END}\n>>>>> Test Exit Code: 2\n", 0),  # who failed?
        (f"{START}\nPASSED t::a\nFAILED t::b\n{END}\n>>>>> Test Exit Code: 1\n", 1),
        (f"{START}\nPASSED t::a\n>>>>> Tests Timed Out\n{END}\n", 0),
    ],
)
def test_a_script_with_the_official_markers_is_read_as_the_official_harness_does(output, score):
    assert score_tests(TestGold(MARKED, FAIL_TO_PASS=("t::a",)), output) == score


@pytest.mark.parametrize(
    "gold",
    ["not json", "[]", "{}", '{"command": "true"}', '{"command": "x", "FAIL_TO_PASS": ["a"], "log": "pitest"}',
     '{"command": "x", "FAIL_TO_PASS": ["a"], "comand": 1}'],
)  # fmt: skip
def test_a_broken_gold_of_tests_is_named(gold):
    with pytest.raises(InputError, match="task t"):
        checked(task("tests", gold))


def test_repository_tests_need_a_sandbox():
    (outcome,) = graded([(task("tests", '{"command": "true", "FAIL_TO_PASS": ["a"]}'), "")])
    assert isinstance(outcome, InputError) and "sandbox mode" in str(outcome)

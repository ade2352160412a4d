"""The grader: deadlines, the official IFBench protocol, repository tests, and that trouble is never a zero."""

import asyncio
import json
import os
import time

import pytest

from sandboxrl.data.errors import InputError
from sandboxrl.data.task import Task
from sandboxrl.envs.grading.grader import Grader, GraderConfig
from sandboxrl.envs.grading.ifbench import loose_variants
from sandboxrl.envs.grading.protocol import GraderFailed
from sandboxrl.envs.grading.repository_tests import TestGold, score_tests
from sandboxrl.envs.grading.test_logs import END, READERS, START, status_of, without_colours
from tests.processes import children


def task(reward, gold, question="q", **fields):
    return Task("t", "s", question, gold, reward, **fields)


def grade(pairs, config=None):
    """Scores (or errors) of (task, answer) pairs, by one grader."""

    async def go():
        grader = Grader(config)
        try:
            return await asyncio.gather(*(grader.grade(*pair) for pair in pairs), return_exceptions=True)
        finally:
            await grader.close()

    return asyncio.run(go())


def check(one, config=None):
    async def go():
        grader = Grader(config)
        try:
            await grader.check(one)
        finally:
            await grader.close()

    asyncio.run(go())


def test_every_kind_that_needs_no_company():
    pairs = [
        (task("choice", "B", options=("x", "y")), "B"),
        (task("math", r"\frac{1}{2}"), r"\boxed{0.5}"),
        (task("math", "588"), r"\boxed{589}"),
        (task("rouge", "a small house"), "a house"),
        (task("number", "7"), "7"),
        (task("math", "1"), " \n"),
    ]
    assert grade(pairs) == [1.0, 1.0, 0.0, pytest.approx(0.8), 1.0, 0.0]


def test_an_answer_that_hangs_math_verify_ends_at_the_deadline_and_harms_no_other():
    bomb = (task("math", "70"), r"\boxed{9^{9^{9^{9}}}}")
    before = time.monotonic()
    scores = grade([bomb, *[(task("math", "x+1"), r"\boxed{1+x}")] * 5], GraderConfig(deadline_s=2, workers=2))
    assert scores == [0.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert time.monotonic() - before < 30


def test_closing_leaves_no_process():
    async def go():
        before = children()
        grader = Grader()
        await grader.grade(task("math", "x"), "x")
        pids = children() - before
        await grader.close()
        return pids

    pids = asyncio.run(go())
    assert pids and not any(os.path.exists(f"/proc/{pid}") for pid in pids)


def test_a_prose_math_gold_is_an_error_and_not_a_score():
    (outcome,) = grade([(task("math", "3 dogs"), "3 cats")])
    assert isinstance(outcome, GraderFailed) and "unrelated prose" in str(outcome)
    with pytest.raises(InputError, match="prose"):
        check(task("math", "3 dogs"))


def test_the_reference_scheme_is_its_own():
    half = (task("rouge", "1/2"), "0.5")  # there math-verify sees free text before ROUGE-L does
    assert grade([half], GraderConfig(scheme="reference")) == [1.0]
    assert grade([half]) == [0.0]
    with pytest.raises(InputError, match="did you mean 'strict'"):
        Grader(GraderConfig(scheme="strickt"))


def test_a_judged_task_without_a_judge_is_refused():
    with pytest.raises(InputError, match="judge"):
        check(task("judge_physics", "1"))


# ----------------------------------------------------------------------------------------------------------- IFBench

VERIFIER = '''
"""A verifier of our own with the official interface, strict about arguments it does not know."""
import time

class Keyword:
    def __init__(self, name): self.name = name
    def build_description(self, *, keyword=None, n=None): self.keyword, self.n = keyword, n
    def get_instruction_args(self): return {"keyword": self.keyword, "n": self.n}
    def check_following(self, text): return text.count(self.keyword) == self.n

class Repeats:
    def __init__(self, name): self.prompt = None
    def build_description(self, *, prompt=None): self.prompt = prompt
    def get_instruction_args(self): return {"prompt": self.prompt}
    def check_following(self, text): print("noise"); return text == self.prompt

class Hangs(Repeats):
    def check_following(self, text): time.sleep(3600)

class Breaks(Repeats):
    def check_following(self, text): raise RuntimeError("tagger data missing")

INSTRUCTION_DICT = {"count:keyword": Keyword, "repeat:prompt": Repeats, "bad:hangs": Hangs, "bad:breaks": Breaks}
'''


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "instructions_registry.py").write_text(VERIFIER)
    return GraderConfig(ifbench=str(tmp_path), deadline_s=2)


def ifbench(*names, **arguments):
    kwargs = [{"keyword": None, "n": None, "prompt": None, **arguments} for _ in names]
    return task("ifbench", json.dumps({"instruction_id_list": names, "kwargs": kwargs}), question="Say sun.")


def test_ifbench_drops_null_arguments_and_needs_every_instruction(checkout):
    one = ifbench("count:keyword", keyword="sun", n=1)
    assert grade([(one, "the sun"), (one, "sun sun"), (one, "")], checkout) == [1.0, 0.0, 0.0]
    both = json.dumps(
        {"instruction_id_list": ["count:keyword", "repeat:prompt"], "kwargs": [{"keyword": "sun", "n": 1}, None]}
    )
    both = task("ifbench", both, question="Say sun.")
    assert grade([(both, "Say sun."), (both, "sun")], checkout) == [1.0, 0.0]


@pytest.mark.parametrize(
    "response",
    ["Say sun.", "**Say sun.**", "Sure!\nSay sun.", "Say sun.\nBye", "Sure!\nSay sun.\nBye", "Sure!\n*Say sun.*\nBye"],
)
def test_ifbench_loose_mode_reads_all_eight_variants(checkout, response):
    assert grade([(ifbench("repeat:prompt"), response)], checkout) == [1.0]


def test_loose_variants_split_on_newline_only():
    assert loose_variants("a\n*b*\u2028c\nd") == [
        "a\n*b*\u2028c\nd", "*b*\u2028c\nd", "a\n*b*\u2028c", "*b*\u2028c",
        "a\nb\u2028c\nd", "b\u2028c\nd", "a\nb\u2028c", "b\u2028c",
    ]  # fmt: skip


def test_ifbench_trouble_is_an_error_and_never_a_zero(checkout):
    outcomes = grade([(ifbench("bad:breaks"), "x"), (ifbench("bad:hangs"), "x"), (ifbench("no:such"), "x")], checkout)
    assert all(isinstance(outcome, GraderFailed) for outcome in outcomes)
    assert "tagger data missing" in str(outcomes[0]) and "within 2 s" in str(outcomes[1])
    with pytest.raises(InputError, match="does not know 'no:such'"):
        check(ifbench("no:such"), checkout)


def test_ifbench_without_its_verifier_says_how_to_get_it(tmp_path):
    with pytest.raises(InputError, match="grader.ifbench=DIR"):
        check(ifbench("count:keyword"), GraderConfig(ifbench=str(tmp_path)))
    (tmp_path / "instructions_registry.py").write_text("raise SystemExit('no network')")
    with pytest.raises(InputError, match="no network"):
        check(ifbench("count:keyword"), GraderConfig(ifbench=str(tmp_path)))


# -------------------------------------------------------------------------------------------------- repository tests

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
        check(task("tests", gold))


def test_repository_tests_need_a_sandbox():
    (outcome,) = grade([(task("tests", '{"command": "true", "FAIL_TO_PASS": ["a"]}'), "")])
    assert isinstance(outcome, InputError) and "sandbox mode" in str(outcome)

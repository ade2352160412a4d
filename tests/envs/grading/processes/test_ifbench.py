"""IFBench: the official protocol, with a verifier of our own."""

import json

import pytest

from sandboxrl.data.errors import InputError
from sandboxrl.data.task import Task
from sandboxrl.envs.grading.grader import GraderConfig
from sandboxrl.envs.grading.processes.ifbench import loose_variants
from sandboxrl.envs.grading.protocol import GraderFailed
from tests.envs.grading.scoring import checked, graded


def task(reward, gold, question="q", **fields):
    return Task("t", "s", question, gold, reward, **fields)


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
    assert graded([(one, "the sun"), (one, "sun sun"), (one, "")], checkout) == [1.0, 0.0, 0.0]
    both = json.dumps(
        {"instruction_id_list": ["count:keyword", "repeat:prompt"], "kwargs": [{"keyword": "sun", "n": 1}, None]}
    )
    both = task("ifbench", both, question="Say sun.")
    assert graded([(both, "Say sun."), (both, "sun")], checkout) == [1.0, 0.0]


@pytest.mark.parametrize(
    "response",
    ["Say sun.", "**Say sun.**", "Sure!\nSay sun.", "Say sun.\nBye", "Sure!\nSay sun.\nBye", "Sure!\n*Say sun.*\nBye"],
)
def test_ifbench_loose_mode_reads_all_eight_variants(checkout, response):
    assert graded([(ifbench("repeat:prompt"), response)], checkout) == [1.0]


def test_loose_variants_split_on_newline_only():
    assert loose_variants("a\n*b*\u2028c\nd") == [
        "a\n*b*\u2028c\nd", "*b*\u2028c\nd", "a\n*b*\u2028c", "*b*\u2028c",
        "a\nb\u2028c\nd", "b\u2028c\nd", "a\nb\u2028c", "b\u2028c",
    ]  # fmt: skip


def test_ifbench_trouble_is_an_error_and_never_a_zero(checkout):
    outcomes = graded([(ifbench("bad:breaks"), "x"), (ifbench("bad:hangs"), "x"), (ifbench("no:such"), "x")], checkout)
    assert all(isinstance(outcome, GraderFailed) for outcome in outcomes)
    assert "tagger data missing" in str(outcomes[0]) and "within 2 s" in str(outcomes[1])
    with pytest.raises(InputError, match="does not know 'no:such'"):
        checked(ifbench("no:such"), checkout)


def test_ifbench_without_its_verifier_says_how_to_get_it(tmp_path):
    with pytest.raises(InputError, match="grader.ifbench=DIR"):
        checked(ifbench("count:keyword"), GraderConfig(ifbench=str(tmp_path)))
    (tmp_path / "instructions_registry.py").write_text("raise SystemExit('no network')")
    with pytest.raises(InputError, match="no network"):
        checked(ifbench("count:keyword"), GraderConfig(ifbench=str(tmp_path)))

"""Every form of `forms.yaml`, as answer.txt and as a reply, and that the dress of an answer does not matter."""

import logging
import random
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxrl.data.task import Task
from sandboxrl.envs.grading.answers.formulas import squeezed, tidy
from sandboxrl.envs.grading.answers.mathematics import math_score
from tests.envs.grading.scoring import extract, score

logging.getLogger("math_verify").setLevel(logging.ERROR)
GOLDS: list[dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("forms.yaml").read_text(encoding="utf-8"))


def task_of(one: dict[str, Any]) -> Task:
    options = tuple(one.get("options", ()))
    question, metadata = one.get("question", "q"), one.get("metadata", {})
    return Task("t", "s", question, one["gold"], one["kind"], options=options, metadata=metadata)


def forms(one: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Each form of a gold with its verdict."""
    yield one["gold"], 1.0
    for form in one["right"]:
        yield form, 1.0
    for form in one["wrong"]:
        yield form if isinstance(form, list) else (form, 0.0)


@pytest.mark.parametrize("one", GOLDS, ids=lambda one: f"{one['kind']} {one['gold'][:40]!r}")
def test_each_form_gets_the_verdict_of_a_careful_person_in_both_modes(one: dict[str, Any]) -> None:
    task, judged_otherwise = task_of(one), []
    for form, verdict in forms(one):
        thought = f"<think>It may be \\boxed{{7}} or C. Answer: D</think>\n\n{form}"
        replies = [extract(task, reply) for reply in (form + "<|im_end|>", thought)]
        scores = [score(task, answer) for answer in dict.fromkeys([form.strip(), *replies])]
        if scores != [pytest.approx(verdict)] * len(scores):
            judged_otherwise.append((form, verdict, scores))
    assert not judged_otherwise


DRESSES = (
    "{}", " {}\n", "**{}**", "`{}`", "{}.", "**{}**.", '"{}"', "Answer: {}", "**Answer:** {}", "The answer is {}.",
    "The answer is **{}**.", "First, some words.\nAnswer: {}", "answer is: {}", "Final answer: {}",
)  # fmt: skip
BOXED = ("\\boxed{{{}}}", "$\\boxed{{{}}}$", "So we get \\boxed{{{}}} as required.", "\\(\\boxed{{{}}}\\)")
words = st.sampled_from("amber river lamp of the old north gate ten Ada Vance map".split())
numbers = st.integers(-(10**7), 10**7) | st.decimals(-1000, 1000, allow_nan=False, places=3)


@settings(max_examples=200, deadline=None)
@given(numbers, st.sampled_from(DRESSES + BOXED))
def test_a_number_counts_in_every_dress(value: int | Decimal, dress: str) -> None:
    task = Task("t", "s", "q", str(value), "number")
    for spelling in {str(value), f"{value:,}"}:
        assert both(task, dress.format(spelling)) == (1.0, 1.0), dress.format(spelling)
    other = Task("t", "s", "q", str(value + 1), "number")
    assert both(other, dress.format(value)) == (0.0, 0.0)


@settings(max_examples=200, deadline=None)
@given(st.lists(words, min_size=2, max_size=4, unique=True), st.sampled_from(DRESSES), st.booleans())
def test_words_count_in_every_dress_and_case(said: list[str], dress: str, upper: bool) -> None:
    text = " ".join(said)
    assert both(Task("t", "s", "q", text, "exact"), dress.format(text.upper() if upper else text)) == (1.0, 1.0)
    options = (text, "copper sheep", "7 of 9", "not that")
    assert both(Task("t", "s", "q", "A", "choice", options=options), dress.format(text)) == (1.0, 1.0)


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 10), st.data())
def test_letters_count_in_every_dress(num: int, data: st.DataObject) -> None:
    options = tuple(f"thing {i} of ten" for i in range(num))
    gold = data.draw(st.sets(st.sampled_from("ABCDEFGHIJ"[:num]), min_size=1))
    kind = "choice" if len(gold) == 1 else "choices"
    task = Task("t", "s", "q", ", ".join(sorted(gold)), kind, options=options)
    said = data.draw(st.sampled_from((", ", " and ", ",", "; "))).join(sorted(gold))
    assert both(task, data.draw(st.sampled_from(DRESSES + BOXED)).format(said)) == (1.0, 1.0)


def both(task: Task, form: str) -> tuple[float, float]:
    return score(task, form), score(task, extract(task, form))


def test_no_answer_of_another_problem_is_right_by_accident() -> None:
    golds = [one["gold"] for one in GOLDS if one["kind"] == "math"]
    golds += [
        "1/7",
        "2/7",
        "2/11",
        "100",
        "101",
        "\\sqrt{3}",
        "\\sqrt{6}",
        "x+1",
        "x-1",
        "(1,3)",
        "[1,2)",
        "2\\pi",
        "\\frac{\\pi}{3}",
    ]
    values = {squeezed(tidy(gold)): gold for gold in golds}
    pairs = [(a, b) for a in values.values() for b in values.values() if a != b]
    pairs = random.Random(0).sample(pairs, 2100)
    same = {("x=1 \\text{ or } x=2", "\\{1,2\\}"), ("\\{1,2\\}", "x=1 \\text{ or } x=2"), ("100", "100 m")}
    same |= {("5\\text{ dollars}", "5"), ("5", "5\\text{ dollars}"), ("2.5", "\\frac{5}{2}"), ("\\frac{5}{2}", "2.5")}
    wrong = [pair for pair in pairs if pair not in same and math_score(pair[0], f"\\boxed{{{pair[1]}}}")]
    assert not wrong


def test_there_are_enough_of_them() -> None:
    kinds = Counter(one["kind"] for one in GOLDS for _ in forms(one))
    assert kinds.total() >= 1900 and min(kinds[kind] for kind in ("choice", "choices", "number", "exact", "math")) >= 60

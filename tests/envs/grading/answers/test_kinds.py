"""Rewards by example, and agreement with rouge-score and math-verify."""

import logging
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from sandboxrl.data.errors import InputError
from sandboxrl.data.task import Task
from sandboxrl.envs.grading.answers.letters import choice, choices
from sandboxrl.envs.grading.answers.mathematics import is_math_gold, math_score
from sandboxrl.envs.grading.answers.numbers import number, parse_number
from sandboxrl.envs.grading.answers.release_rules import reference_score
from sandboxrl.envs.grading.answers.text import exact, rouge, rouge_l
from sandboxrl.envs.grading.protocol.replies import last_boxed
from tests.envs.grading.scoring import check, extract, score

FOUR = ("alpha", "beta", "gamma ray", "4")
TEN = tuple(f"option {i}" for i in range(10))


def task(reward: str, gold: str, options: tuple[str, ...] = (), **metadata: object) -> Task:
    return Task("t", "s", "q", gold, reward, options=options, metadata=metadata)


RIGHT_B = [
    "B", "b", " B\n", "B.", "(B)", "[B]", "**B**", "`B`", "$B$", r"\(B\)", r"\boxed{B}", r"\boxed{\text{B}}", "Ｂ",
    "B)", "B. beta", "B) beta", "(B) beta", "beta", "Beta", "Option B", "Answer: B", "Answer:\nB", "**Answer:** B",
    '{"answer": "B"}', '"answer": "B"', "The answer is B.", "the answer is b", "I believe the answer is B",
    "A patient was seen, so the answer is B.", "The answer is B because A is toxic", "The correct option is (B) beta",
    "answer is beta", "<answer>B</answer>", r"the answer is \boxed{B}",
]  # fmt: skip
WRONG_B = [
    "", " \n", "A", "E", "A or B", "A, B", "AB", "A and B", "BCD", "not B", "answer is A or B", "Answer: B\nAnswer: C",
    "A. alpha\nB. beta\nC. gamma ray\nD. 4", "A patient came, so beta it is", "I think so", "Dopamine", "Based on that",
    "answer is A, maybe B", r"\boxed{A, B}", "The best of all", "B" + " or so" * 2000, "2",
]  # fmt: skip


@pytest.mark.parametrize("answer", RIGHT_B)
def test_one_letter_counts_in_every_usual_dress(answer):
    assert choice(task("choice", "B", FOUR), answer) == 1.0


@pytest.mark.parametrize("answer", WRONG_B)
def test_no_letter_another_letter_or_several_letters_score_zero(answer):
    assert choice(task("choice", "B", FOUR), answer) == 0.0


@pytest.mark.parametrize(
    ("answer", "letter"),
    [("I", "I"), ("i", "I"), ("Answer: I", "I"), ("The answer is I.", "I"), ("J.", "J"), ("(J) text", "J"),
     ("I think C", None), ("A patient ..., so J", "J"), ("I believe the answer is C", "C"), ("A, J", None),
     ("The answer is I think C", "C"), ("A", "A")],
)  # fmt: skip
def test_the_article_and_the_pronoun_are_not_letters(answer, letter):
    scored = [gold for gold in "ABCDEFGHIJ" if choice(task("choice", gold, TEN), answer)]
    assert scored == ([letter] if letter else [])


def test_letters_come_from_the_row():
    assert choice(task("choice", "G", letters="ABCDEFGHIJ"), "G") == 1.0
    assert choice(task("choice", "B", ("x", "y")), "answer is B or C") == 1.0  # C is no option of this row
    with pytest.raises(InputError, match="does not name letters of AB"):
        choice(task("choice", "C", ("x", "y")), "C")


@pytest.mark.parametrize(
    ("answer", "score"),
    [("A, C, D", 1), ("A, C", 0.8), ("A", 0.5), ("A, B, C, D", 6 / 7), ("B", 0), ("", 0), ("A, A, C", 0.8), ("ACD", 1),
     ("A and C and D", 1), ("a,c,d", 1), ("(A)(C)(D)", 1), ("A, C, D.", 1), ("A. alpha\nC. gamma ray\nD. 4", 1),
     ("Answer: A, C, D", 1), (r"\boxed{A, C, D}", 1), ("The answers are A, C and D", 1), ("a fact", 0)],
)  # fmt: skip
def test_several_letters_score_the_f1_of_the_sets(answer, score):
    assert choices(task("choices", "A, C, D", FOUR), answer) == pytest.approx(score)


words = st.lists(
    st.sampled_from("the cats cat running run C++ 1,000 café flies happily this 日本 a b U.S. '' \n".split(" ")),
    max_size=15,
).map(" ".join)


@settings(max_examples=300, deadline=None)
@given(words | st.text(max_size=80), words | st.text(max_size=80))
def test_rouge_agrees_with_the_published_package(gold, answer):
    expected = RougeScorer(["rougeL"], use_stemmer=True).score(gold, answer)["rougeL"].fmeasure
    assert rouge_l(gold, answer) == pytest.approx(expected, abs=1e-12)


def test_a_document_is_not_an_answer():
    document = "the answer is somewhere in here " * 2000
    assert rouge(task("rouge", "the answer is somewhere"), document) == 0.0
    assert rouge(task("rouge", "the answer is somewhere"), document[: len(document) // 10]) < 0.05


@pytest.mark.parametrize(
    ("text", "value"),
    [("1,000", 1000), ("1 000 000", 10**6), ("1e3", 1000), ("\u22125", -5), (".5", 0.5), ("5.", 5), ("1,000.5", 1000.5),
     ("**7**", 7), (r"\boxed{7}", 7), ("$1{,}000$", 1000), ("0007", 7), ("12,34", None), ("1e999999", None), ("", None),
     ("1/0", None), ("--5", None), ("1.2.3", None), ("100 km", None), ("seven", None), ("1" * 500, None)],
)  # fmt: skip
def test_numbers(text, value):
    parsed = parse_number(text)
    assert (parsed and parsed[0]) == value


def test_a_number_is_compared_exactly_and_units_are_not_dropped():
    assert number(task("number", "42"), "Answer: 42.0") == 1.0
    assert number(task("number", "1/3"), "2/6") == 1.0
    for wrong in ("", "42 km", "41 or 42", "42%", "420", "the answer is 41"):
        assert number(task("number", "42"), wrong) == 0.0


def test_exact_forgives_case_and_white_space_only():
    assert exact(task("exact", "Ada  Lovelace"), " ada lovelace\n") == 1.0
    for wrong in ("", "Ada", "Ada Lovelace!", "It is Ada Lovelace"):
        assert exact(task("exact", "Ada Lovelace"), wrong) == 0.0


MATH = [
    ("70", "70.0", 1), ("70", "070", 1), ("70", "70%", 0), ("70", "Answer: 70", 1), ("70", "m+n = 70", 1),
    ("70", "49+21=70", 1), ("70", r"\boxed{70 \text{ cm}}", 1), ("588", r"\boxed{600} no wait \boxed{588}", 1),
    ("-3", "\u22123", 1), ("1000", "1,000", 1), ("1000", "1 000", 1), ("1000", "10^3", 1), ("1000", "1e3", 1),
    ("1/3", "0.333333", 1), ("1/3", "0.333", 0), (r"\sqrt{2}", "1.41421356", 1), (r"\pi", "3.14", 0),
    ("1/2", r"\frac{1}{2}", 1), (r"$x\le3$", r"$(-\infty,3]$", 1), ("$y=x+1$", "$x+1$", 1), ("34", "34.", 1),
    (r"\boxed{A}", r"\boxed{A}", 1), (r"\frac{3\sqrt{2}}{4}", "3*sqrt(2)/4", 1), (r"\{1,2\}", "2, 1", 1),
    ("70", "", 0), ("70", r"\boxed{}", 0), ("70", "seventy", 0), ("70", "70.0000001", 0), ("70", "71", 0),
    ("70", "the answers 70 and 71", 0), ("70", "70 and 71", 0), ("70", "70 or 71", 0), ("70", "1, 2, 70", 0),
    ("588", r"\boxed{588} but then \boxed{600}", 0), ("70", "70=71", 0), ("71", "70=71", 0), ("1912", "In 1912", 0),
    (r"100 \text{ km}", r"100 \text{ m}", 0), ("70", "70 " * 3000, 0), ("1960", "the 1960s", 0), ("3", "3 cats", 0),
]  # fmt: skip


@pytest.mark.parametrize(("gold", "answer", "score"), MATH)
def test_math(gold, answer, score):
    assert math_score(gold, answer) == score


def test_math_agrees_with_math_verify_on_boxed_answers():
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    rng = random.Random(0)
    forms = [
        "{a}",
        "{a}.0",
        r"\frac{{{a}}}{{{b}}}",
        "{a}/{b}",
        r"\sqrt{{{a}}}",
        "x+{a}",
        "{a}+x",
        "{a}^{b}",
        "({a},{b})",
    ]
    for _ in range(150):
        gold, said = (rng.choice(forms).format(a=rng.randint(1, 4), b=rng.randint(1, 3)) for _ in range(2))
        config = [LatexExtractionConfig(), ExprExtractionConfig()]
        right, prediction = (
            parse(f"\\boxed{{{text}}}", extraction_config=config, parsing_timeout=None) for text in (gold, said)
        )
        official = verify(right, prediction, timeout_seconds=None)
        assert math_score(gold, f"\\boxed{{{said}}}") == float(official), (gold, said)


@pytest.mark.parametrize("gold", ["3 dogs", "In 1912, after the war", "100 km", "the 1960s", "Paris", "yes"])
def test_math_refuses_prose_golds(gold):
    assert not is_math_gold(gold)
    with pytest.raises(InputError, match="unrelated prose"):
        math_score(gold, gold)


GOLDS = [
    task("choice", "C", FOUR), task("choice", "J", letters="ABCDEFGHIJ"), task("choices", "A, D", FOUR),
    task("rouge", "He lives in a small house."), task("exact", "東京"), task("number", "-1,234.5"), task("math", "588"),
    task("math", r"\frac{1}{2}"), task("math", r"$\{1,2\}$"), task("math", "x^2+1"),
]  # fmt: skip


@pytest.mark.parametrize("one", GOLDS, ids=lambda one: f"{one.reward}-{one.gold}")
def test_gold_scores_one_and_silence_zero(one):
    check(one)
    assert score(one, one.gold) == 1.0
    assert score(one, "") == score(one, " \n") == 0.0
    assert score(one, extract(one, f"<think>Answer: no</think>Well.\nAnswer: {one.gold}<|im_end|>")) == 1.0


@pytest.mark.parametrize(
    "one",
    [task("choice", "A, B", FOUR), task("choice", "E", FOUR), task("choices", "none", FOUR),
     task("rouge", "日本語です"), task("rouge", "!!!"),
     task("number", "3 dogs"), task("math", "3 dogs"), task("exact", " ")],
    ids=lambda one: f"{one.reward}-{one.gold}",
)  # fmt: skip
def test_a_gold_that_cannot_be_rewarded_is_refused(one):
    with pytest.raises(InputError, match="task t"):
        check(one)


def test_the_answer_is_found_in_a_reply():
    assert extract(task("math", "5"), r"We get \boxed{4}, no: \boxed{5}.<|im_end|>") == r"\boxed{5}"
    assert extract(task("rouge", "x"), "Reasoning.\n**Answer:** in a\nsmall house") == "in a\nsmall house"
    assert extract(task("ifbench", "{}"), "<think>hm</think>\n*Hello*\nthere") == "*Hello*\nthere"
    assert extract(task("rouge", "x"), "<think>never ends") == ""
    assert choice(task("choice", "B", FOUR), extract(task("choice", "B", FOUR), "Maybe.\nAnswer: B")) == 1.0


@pytest.mark.parametrize("piece", ["\n", "<|im_end|>", "answer ", "answer:\n", "**", r"\boxed{", "<think>", "}", "A. "])
@pytest.mark.parametrize("kind", ["choice", "math", "rouge", "number", "ifbench"])
def test_no_reply_takes_long_to_read(kind, piece):
    golds = {"choice": "B", "math": "1", "rouge": "a", "number": "1", "ifbench": "{}"}
    one = task(kind, golds[kind], FOUR if kind == "choice" else ())
    before = time.process_time()
    answer = extract(one, piece * 60_000 + "x")
    if kind in ("choice", "rouge", "number"):
        score(one, answer)
    assert time.process_time() - before < 5


def test_boxes_are_found_in_one_pass_whatever_the_text():
    assert last_boxed(r"\boxed{\frac{1}{2}} and \boxed{\boxed{3}} and \boxed{4") == "3"
    assert last_boxed(r"\boxed{a \} b}") == r"a \} b" and last_boxed("} \\boxed{1}") == "1" and last_boxed("{") is None
    before = time.process_time()
    assert last_boxed("\\boxed{" * 200_000) is None
    assert time.process_time() - before < 5


@pytest.mark.parametrize(
    ("kind", "gold", "others", "scores"),
    [
        ("rouge", "in a small house", ["at home", "inside"], {"at home": 1, "in a house": 6 / 7, "away": 0, "": 0}),
        ("exact", "東京", ["Tokyo"], {"tokyo": 1, "東京": 1, "京都": 0, "": 0}),
        ("number", "3", ["three", "3.5"], {"3": 1, "Three": 1, "3.5": 1, "4": 0, "three or four": 0, "": 0}),
    ],
)
def test_the_best_of_the_accepted_answers_counts(kind, gold, others, scores):
    several = task(kind, gold, golds=others)
    check(several)
    found = {answer: score(several, answer) for answer in scores}
    assert found == pytest.approx(scores)
    if kind == "rouge":
        scorer = RougeScorer(["rougeL"], use_stemmer=True)
        for answer in scores:
            assert found[answer] == pytest.approx(scorer.score_multi([gold, *others], answer)["rougeL"].fmeasure)


def test_a_long_accepted_answer_may_be_given_whole():
    long = "word " * 6000
    assert rouge(task("rouge", "short", golds=[long]), long) == 1.0
    assert rouge(task("rouge", "short"), long) == 0.0


@pytest.mark.parametrize("golds", ["three", [3], [None], {"a": "b"}])
def test_accepted_answers_that_are_not_texts_are_refused(golds):
    wrong = task("rouge", "3 dogs", golds=golds)
    with pytest.raises(InputError, match="'golds' is not a list of texts"):
        check(wrong)
    with pytest.raises(InputError, match="'golds' is not a list of texts"):
        rouge(wrong, "dogs")


def test_a_letter_that_is_given_after_a_box_counts():
    one = task("choice", "B", FOUR)
    assert extract(one, r"So \boxed{42} grams. Answer: B") == "B"
    assert extract(one, r"Answer: C? No: \boxed{B}") == r"\boxed{B}"


def test_the_published_rules_are_kept_for_comparison_with_their_faults():
    assert reference_score(task("choice", "A", FOUR), "Option B is a better choice") == 1.0  # the article
    assert reference_score(task("choice", "D", FOUR), "Dopamine") == 1.0  # the first character
    assert reference_score(task("choices", "A, C", FOUR), "A, B") == 0.5
    assert reference_score(task("rouge", "3"), "He bought 3 apples") == pytest.approx(0.4)
    assert reference_score(task("rouge", "running fast"), "run fast") == 1.0
    assert reference_score(task("math", "588"), r"\boxed{588}") == 1.0
    assert reference_score(task("math", "588"), "") == 0.0

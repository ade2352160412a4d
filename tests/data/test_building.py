"""The builder of general tasks: placement, order of questions, distractors, determinism."""

import dataclasses
import random
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxrl.data.building import build_tasks, gives_away, shown_before
from sandboxrl.data.context import BuildConfig, Context, Question, plain
from sandboxrl.data.distractors import Distractors, may_answer, near_duplicates, sketch
from sandboxrl.data.errors import InputError
from sandboxrl.data.reading import Rejected
from sandboxrl.data.task import Task
from tests.data.processes import outputs_by_hash_seed

WORDS = [f"{a}{b}{c}" for a in "bdfglmprst" for b in "aeiou" for c in ("ck", "lt", "mmer", "nd", "rg", "st")]


def prose(seed: int, num_words: int = 120) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=num_words)) + "."


def contexts(num: int, source: str = "made") -> list[Context]:
    rows = []
    for i in range(num):
        text = prose(i)
        questions = tuple(
            Question(
                f"What stands after {text.split()[j]} in text {i}?", " ".join(text.split()[j + 1 : j + 4]), "rouge"
            )
            for j in (5, 25, 60)
        )
        rows.append(Context(f"c{i}", source, questions, text=text, title=f"Text {i}", where=f"rows:{i + 1}"))
    return rows


def build(rows: list[Context], rejected: list[Rejected] | None = None, **config: object) -> list[Task]:
    into = [] if rejected is None else rejected
    tasks = list(build_tasks(lambda _: rows, BuildConfig(**config), into))  # type: ignore[arg-type]
    if rejected is None:
        assert not into
    return tasks


@given(st.integers(0, 5), st.integers(1, 12), st.integers(0, 4), st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_both_placements_are_the_same_task(seed: int, num: int, distractors: int, per_context: int) -> None:
    config = {"seed": seed, "num_distractors": distractors, "tasks_per_context": per_context}
    inside, outside = (build(contexts(num), placement=one, **config) for one in ("sandbox", "prompt"))
    assert [dataclasses.replace(task, placement="prompt") for task in inside] == outside
    assert len({task.id for task in inside}) == len(inside) >= num


def test_the_questions_before_the_test_question_are_its_examples_in_order() -> None:
    rows = contexts(30)
    seen = set()
    for row, task in zip(rows, build(rows), strict=True):
        chosen = int(task.id.rpartition("/")[2])
        seen.add(chosen)
        assert task.question == row.questions[chosen].text and task.gold == row.questions[chosen].gold
        assert task.examples == tuple((one.text, one.gold) for one in row.questions[:chosen])
    assert seen == {0, 1, 2}
    nearest = [task for task in build(rows, max_examples=1) if task.id.endswith("/2")]
    assert nearest and all(len(task.examples) == 1 for task in nearest)
    assert all(task.examples[0][0] == rows[int(task.id[1:-2])].questions[1].text for task in nearest)


def test_a_single_file_gets_distractors_and_a_split_one_gets_none() -> None:
    rows = contexts(40)
    sectioned = Context("long", "made", rows[0].questions, text=f"# One\n{prose(900)}\n# Two\n{prose(901)}\n")
    tasks = build([*rows, sectioned], num_distractors=3)
    for row, task in zip(rows, tasks, strict=False):
        assert len(task.documents) == 4 and row.text in task.documents.values()
        assert task.metadata["num_own_files"] == 1
    assert list(tasks[-1].documents) == ["one.txt", "two.txt"]
    places = {list(task.documents.values()).index(row.text) for row, task in zip(rows, tasks, strict=False)}
    assert places == {0, 1, 2, 3}, "the context is not always in the same place"


def test_distractors_come_from_the_same_data_set() -> None:
    tasks = build([*contexts(20, "left"), *contexts(20, "right")])
    for task in tasks:
        assert all(any(text == row.text for row in contexts(20, task.source)) for text in task.documents.values())


def test_a_distractor_never_answers_the_question_nor_repeats_the_context() -> None:
    gold = "the silver lantern"
    question = Question("What did the miller hide below the bridge?", gold, "rouge")
    target = Context("t", "made", (question,), text=f"{prose(1)} The miller hid the silver lantern. {prose(2)}")
    answering = [
        Context(f"a{i}", "made", (question,), text=f"{prose(50 + i)} It was the Silver  Lantern!") for i in range(20)
    ]
    repeating = [Context(f"r{i}", "made", (question,), text=f"{prose(1)} {prose(80 + i, 10)}") for i in range(20)]
    asking = [
        Context(f"q{i}", "made", (question,), text=f"{prose(150 + i)} miller hide below bridge") for i in range(20)
    ]
    good = [Context(f"g{i}", "made", (question,), text=prose(200 + i)) for i in range(20)]
    rows = [target, *answering, *repeating, *asking, *good]
    fine = {row.text for row in good}
    for seed in range(20):
        task = build(rows, seed=seed, num_distractors=4)[0]
        others = set(task.documents.values()) - {target.text}
        assert others and others <= fine


def test_answers_that_prove_nothing_do_not_empty_the_pool() -> None:
    question = Question("Was the bridge built of stone by the monks?", "B", "choice", ("yes", "no"))
    rows = [Context(f"c{i}", "made", (question,), text=f"{prose(i)} yes and no") for i in range(30)]
    assert all(len(task.documents) == 5 for task in build(rows))
    assert may_answer(
        plain("The monks built a bridge of stone."), question.evidence, ["monks", "bridge", "built", "stone"]
    )


def test_the_pool_is_bounded_and_does_not_depend_on_the_order() -> None:
    rows = contexts(200)
    config = BuildConfig(pool=16)
    question = Question("What is asked of none of them?", "nothing", "rouge")

    def drawn(config: BuildConfig, order: Iterable[Context]) -> set[tuple[str, str]]:
        """Everything that many draws give."""
        pool = Distractors(order, config)
        return {one for seed in range(200) for one in pool.draw("made", "", "", question, random.Random(seed))}

    forward = drawn(config, rows)
    assert len(forward) == 16 and forward == drawn(config, reversed(rows))
    assert drawn(BuildConfig(pool=16, seed=1), rows) != forward


def test_a_task_does_not_depend_on_what_stands_around_its_row() -> None:
    rows = contexts(50)
    alone = {task.id: task for task in build(rows, num_distractors=0)}
    shuffled = build(random.Random(0).sample(rows, 50), num_distractors=0)
    assert all(alone[task.id] == task for task in shuffled)


def test_the_same_bytes_in_every_process() -> None:
    code = "from tests.data.test_building import *\nfor task in build(contexts(25), seed=4): print(task.to_json())"
    outputs = outputs_by_hash_seed(code, ("0", "3", "random"))
    assert len(outputs) == 1
    assert outputs.pop() == "".join(task.to_json() + "\n" for task in build(contexts(25), seed=4))
    assert build(contexts(25), seed=5) != build(contexts(25), seed=4)


def test_no_example_and_no_file_name_shows_the_answer() -> None:
    same = Question("Who built the old bridge?", "the nine monks of Alder", "rouge")
    telling = Question("What did the nine monks of Alder build?", "a bridge", "rouge")
    assert shown_before(same, [same.as_example()]) and shown_before(same, [telling.as_example()])
    assert not shown_before(same, [("Where?", "Alder")])
    row = Context("c", "made", (telling, same), text=prose(1), title="Bridges")
    assert [task.id for task in build([row], tasks_per_context=2)] == ["c/0"]

    question = Question("Which country is it?", "San Marino", "rouge")
    assert gives_away(["san_marino.txt"], question) and not gives_away(["san_marinos.txt", "san.txt"], question)
    named = [
        Context(f"c{i}", "made", (question,), text=prose(i), title=t)
        for i, t in enumerate(("San Marino", "Malta", "Chad"))
    ]
    assert list(build(named)[0].documents) == ["document_1.txt", "document_2.txt", "document_3.txt"]


def test_near_duplicates_of_any_two_lengths() -> None:
    text = prose(7, 400)
    words = text.split()
    assert near_duplicates(sketch(plain(text)), sketch(plain(text.upper().replace(" ", ",  "))))
    assert near_duplicates(sketch(plain(text)), sketch(plain(" ".join(words[100:180]))))
    assert not near_duplicates(sketch(plain(text)), sketch(plain(prose(8, 400))))
    assert near_duplicates(sketch(plain("two words")), sketch(plain("Two words!")))
    assert not near_duplicates(sketch(plain("")), sketch(plain("something else altogether here")))


def test_a_row_without_a_task_is_named() -> None:
    question = Question("Q?", "x", "exact")
    bad = [
        Context("none", "made", (), text="text", where="f:1"),
        Context("blank", "made", (question,), text=" \n", where="f:2"),
        Context("many", "made", (question,), documents={f"{i}.txt": "x" for i in range(10_000)}, where="f:3"),
        Context("path", "made", (question,), documents={"../../etc/x": "x", "b": "y"}, where="f:4"),
    ]
    good = Context("good", "made", (question,), text="text", where="f:5")
    rejected: list[Rejected] = []
    assert [task.id for task in build([*bad, good], rejected, num_distractors=0)] == ["good"]
    reasons = {one.where: one.reason for one in rejected}
    assert reasons["f:1"] == "the context has no questions" and reasons["f:2"] == "the context is empty"
    assert reasons["f:3"] == "10000 documents in one row, 1000 are allowed"
    assert "'../../etc/x' would leave" in reasons["f:4"]


def test_wrong_settings_are_refused() -> None:
    for wrong in ({"placement": "sandbx"}, {"tasks_per_context": 0}, {"num_distractors": -1}, {"max_file_chars": 10}):
        with pytest.raises(InputError):
            BuildConfig(**wrong)  # type: ignore[arg-type]

"""The built-in corpus: deterministic, disjoint by construction, answerable from its documents."""

import os
import re
import subprocess
import sys

import pytest

from sandboxrl.data.builtin import FORMS, SIZES, SPLITS, build, split_of
from sandboxrl.data.errors import InputError
from sandboxrl.data.task import Task
from tests.envs.grading.scoring import check, score


@pytest.mark.parametrize("size", SIZES)
def test_no_document_is_shared_between_splits(size):
    seen: dict[str, set[str]] = {}
    for split in SPLITS:
        for seed in (0, 1):
            for task in build(size, split, 24, seed):
                for text in task.documents.values():
                    assert split_of(text) == split
                    seen.setdefault(text, set()).add(split)
    assert len(seen) > 100
    assert all(len(splits) == 1 for splits in seen.values())


@pytest.mark.parametrize("size", SIZES)
def test_the_same_tasks_in_every_process(size):
    program = (
        "import sys; from sandboxrl.data.builtin import build\n"
        "for task in build(sys.argv[1], 'train', 6, 3): print(task.to_json())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program, size],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("0", "1", "77")
    }
    assert outputs == {"".join(task.to_json() + "\n" for task in build(size, "train", 6, 3))}


@pytest.mark.parametrize("size", SIZES)
def test_a_longer_list_begins_with_the_shorter_one_and_seeds_differ(size):
    assert build(size, "heldout", 9, 5)[:4] == build(size, "heldout", 4, 5)
    assert build(size, "train", 4, 0) != build(size, "train", 4, 1)
    assert len({task.id for task in build(size, "train", 9, 0)}) == 9


@pytest.mark.parametrize("size", SIZES)
def test_tasks_are_whole(size):
    for task in build(size, "train", 60, 0):
        assert Task.from_json(task.to_json()) == task
        assert task.question and task.gold and len(task.documents) >= 3
        assert task.reward in ("choice", "choices", "rouge", "exact", "number")
        if task.reward in ("choice", "choices"):
            letters = task.gold.split(", ")
            assert letters == sorted(set(letters)) and set(letters) <= set(task.letters())
        assert len(task.examples) == SIZES[size][1]
        assert all(task.question not in question for question, _ in task.examples)


@pytest.mark.parametrize("size", SIZES)
def test_gold_scores_one_and_silence_zero(size):
    for task in build(size, "validation", 60, 1):
        check(task)
        assert (score(task, task.gold), score(task, ""), score(task, " \n")) == (1, 0, 0), task.id


def test_every_form_and_reward_appears():
    tasks = [task for size in SIZES for task in build(size, "train", 120, 0)]
    assert {task.metadata["form"] for task in tasks} == {"code", "gate", "gates", *FORMS}
    assert {task.reward for task in build("tiny", "train", 60, 0)} == {"choice", "choices", "rouge", "number"}
    assert {task.reward for task in tasks} == {"choice", "choices", "rouge", "number", "exact"}


def test_tiny_is_answered_by_the_one_line_a_search_finds():
    for task in build("tiny", "validation", 80, 0):
        key = re.fullmatch(r".* (\w+)\?", task.question)[1]
        hits = [line for text in task.documents.values() for line in text.splitlines() if key in line]
        assert hits == [f"{key}={task.gold}"]


def read_stores(task: Task) -> list[dict[str, str]]:
    """Every thing in the store books, read back from the prose alone."""
    name, year, weight = r"(?P<name>.+)", r"(?P<year>\d+)", r"(?P<weight>\d+)"
    keeper, note = r"(?P<keeper>.+)", r"Note: (?P<note>.+)\."
    patterns = (
        rf"The {name} came in {year}, weighs {weight} kg and is in the care of {keeper}\. {note}",
        rf"In {year} the stores took in the {name} \({weight} kg\); {keeper} looks after it\. {note}",
        rf"{keeper} keeps the {name}, a piece of {weight} kg that arrived in {year}\. {note}",
    )
    things = []
    for name, text in task.documents.items():
        if name.startswith("stores/"):
            title, empty, *lines = text.splitlines()
            assert empty == ""
            for line in lines:
                found = next(match for pattern in patterns if (match := re.fullmatch(pattern, line)))
                things.append({**found.groupdict(), "room": title.removeprefix("Store book of the ")})
    return things


def solve(task: Task) -> str:
    """The answer, worked out from the documents and the question by other code than the generator's."""
    things = read_stores(task)
    by_name = {thing["name"]: thing for thing in things}
    assert len(by_name) == len(things)
    named = next((thing for name, thing in by_name.items() if f"the {name}" in task.question), {})
    form = task.metadata["form"]
    letter = dict(zip(task.options, task.letters(), strict=True))
    if form in ("weight", "room", "note"):
        return named[form]
    if form == "keeper":
        return letter[named["keeper"]]
    if form == "telephone":
        return re.search(rf"^{named['keeper']} .*telephone (\d+)\.$", task.documents["staff.txt"], re.M)[1]
    if form == "count":
        room, year = re.search(r"in the (.+) came before (\d+)", task.question).groups()
        return str(sum(thing["room"] == room and int(thing["year"]) < int(year) for thing in things))
    if form == "heaviest":
        return letter[max(task.options, key=lambda name: int(by_name[name]["weight"]))]
    if form == "kept_by":
        person = re.search(r"care of (.+)\?", task.question)[1]
        return ", ".join(letter[name] for name in task.options if by_name[name]["keeper"] == person)
    assert form == "total"
    room, person = re.search(r"in the (.+) weigh together that (.+) looks", task.question).groups()
    return str(sum(int(thing["weight"]) for thing in things if (thing["room"], thing["keeper"]) == (room, person)))


@pytest.mark.parametrize("size", ("easy", "medium", "hard"))
def test_the_documents_answer_the_question(size):
    for task in build(size, "heldout", 60, 0):
        assert solve(task) == task.gold, task.id


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tny", "train", 1, 0), "did you mean 'tiny'"),
        (("tiny", "held-out", 1, 0), "did you mean 'heldout'"),
        (("tiny", "train", -1, 0), "num_tasks"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        build(*arguments)

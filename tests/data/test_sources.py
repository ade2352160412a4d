"""Every source and schema: rows of our own in the published form give tasks; rows that are wrong are named."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from sandboxrl.data.errors import InputError
from sandboxrl.data.formats.published import printed_letters
from sandboxrl.data.formats.questions import choice_question, free_reward
from sandboxrl.data.reading import Rejected
from sandboxrl.data.sources import SOURCES, iter_source, load_source, load_sources, source_options
from sandboxrl.data.task import Task
from tests.envs.grading.scoring import score

REAL = os.environ.get("SANDBOXRL_REAL_DATA", "")


def rows_file(folder: Path, rows: list[Any], name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def load(source: str, path: Path, **options: Any) -> tuple[list[Task], list[str]]:
    rejected: list[Rejected] = []
    tasks = load_source({"source": source, "path": str(path), **options}, rejected)
    return tasks, [f"{one.where.rpartition(':')[2]}: {one.reason}" for one in rejected]


STORY = "The fox crossed the river at dawn. It carried a red lamp, three coins and a map of the northern hills. " * 3

# ------------------------------------------------------------------------------------------------ general: collection


def collection_row(**changes: Any) -> dict[str, Any]:
    return {
        "context": STORY,
        "QA_list": [
            {"Q": "What did the fox cross?", "A": "the river"},
            {"Q": "How many coins did it carry?", "A": "3"},
            {"Q": "What was red?\nOptions:\n- the map\n- the lamp\n- the coins", "A": "The lamp"},
            {"Q": "Is it far? Let's think step by step.", "A": "Hills are far. Therefore, the answer is very far."},
        ],
        "QA_type": "free-form completion",
        "rc_name": "fables",
        **changes,
    }


def test_the_raw_collection(tmp_path: Path) -> None:
    path = rows_file(tmp_path, [collection_row(), collection_row(QA_list=json.dumps([["Who?", "the fox"]]))])
    tasks, bad = load("general", path, tasks_per_context=4)
    assert not bad and {task.source for task in tasks} == {"fables"}
    by_question = {task.question: task for task in tasks}
    assert by_question["What did the fox cross?"].reward == "rouge"
    assert by_question["How many coins did it carry?"].reward == "number"
    red = by_question["What was red?"]
    assert (red.reward, red.gold, red.options) == ("choice", "B", ("the map", "the lamp", "the coins"))
    far = by_question["Is it far?"]
    assert far.gold == "very far" and far.examples[2] == ("What was red?\nA. the map\nB. the lamp\nC. the coins", "B")
    assert by_question["Who?"].gold == "the fox"
    assert all(STORY in task.documents.values() for task in tasks)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"context": None}, "'context' is null"),
        ({"context": "  "}, "'context' is empty"),
        ({"QA_list": None}, "'QA_list' is not a list"),
        ({"QA_list": "[{"}, "'QA_list': broken JSON"),
        ({"QA_list": [{"Q": "Who?", "A": None}]}, "QA_list[0]: 'A' is null"),
        ({"QA_list": [{"Q": "Who?", "A": "x"}, 7]}, "QA_list[1]: not a pair but int"),
        ({"QA_list": [{"Q": "Who?\nOptions:\n- a\n- b", "A": "c"}]}, "the answer 'c' is none of the options"),
        ({"QA_list": [{"Q": "Who?\nOptions:\n- a\n- A", "A": "a"}]}, "two options are equal"),
    ],
)
def test_a_bad_row_of_the_collection_is_named_and_the_others_kept(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    path = rows_file(tmp_path, [collection_row(), collection_row(**changes), collection_row(context=STORY[::-1])])
    tasks, bad = load("general", path)
    assert len(tasks) == 2 and len(bad) == 1
    assert bad[0].startswith("2: ") and reason in bad[0]
    with pytest.raises(InputError, match="1 bad rows"):
        load("general", path, strict=True)


# ------------------------------------------------------------------------------------------------- general: published


def published_row(**changes: Any) -> dict[str, Any]:
    return {
        "id": "p1",
        "domain": "instruct_pretrain",
        "problem_statement": "Read the files. What did the fox carry?",
        "ground_truth": "a red lamp",
        "input_files": json.dumps({"introduction.txt": STORY, "other.txt": "Nothing here."}),
        "qa_type": "free-form",
        **changes,
    }


def test_the_published_rows(tmp_path: Path) -> None:
    choice = published_row(
        id="p2",
        qa_type="multiple choice",
        ground_truth="C",
        problem_statement="Which?\nA. x\nB. y\nC. z",
        input_files=None,
    )
    several = published_row(id="p3", qa_type="multiple choice (several)", ground_truth="A, C")
    (free, one, many), bad = load("general", rows_file(tmp_path, [published_row(), choice, several]))
    assert not bad and free.documents == {"introduction.txt": STORY, "other.txt": "Nothing here."}
    assert [task.reward for task in (free, one, many)] == ["rouge", "choice", "choices"]
    assert one.metadata == {"letters": "ABC"} and one.documents == {} and many.metadata == {}
    prompted, _ = load("general", rows_file(tmp_path, [published_row()]), placement="prompt")
    assert prompted[0].placement == "prompt" and prompted[0].documents == free.documents


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"input_files": '{"a.txt": 7}'}, "document 'a.txt' is int"),
        ({"input_files": '{"../../etc/x": "y"}'}, "'../../etc/x' would leave"),
        ({"input_files": '{"/etc/x": "y"}'}, "'/etc/x' would leave"),
        ({"input_files": '{"a": "y", "a/b/c": "z"}'}, "document 'a' is also the folder of document 'a/b/c'"),
        ({"input_files": "[1]"}, "'input_files' is not an object"),
        ({"input_files": {f"{i}.txt": "x" for i in range(10_000)}}, "10000 documents in one row, 1000 are allowed"),
        ({"ground_truth": None}, "'ground_truth' is null"),
        ({"problem_statement": ""}, "'problem_statement' is empty"),
    ],
)
def test_a_bad_published_row_is_named(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    tasks, bad = load("general", rows_file(tmp_path, [published_row(), published_row(**changes)]))
    assert len(tasks) == 1 and reason in bad[0] and bad[0].startswith("2: ")


# ------------------------------------------------------------------------------------------------------ math, software


def test_dapo_in_both_forms_is_deduplicated(tmp_path: Path) -> None:
    problem = "Find $x$ with $x + 1 = {3}$.\n\nShow that it is unique."
    framed = (
        "Solve the following math problem step by step. The last line is Answer: $Answer.\n\n"
        f'{problem}\n\nRemember to put your answer on its own line after "Answer:".'
    )
    original = {
        "data_source": "math_dapo",
        "prompt": [{"role": "user", "content": framed}],
        "reward_model": {"ground_truth": "2", "style": "rule"},
        "extra_info": {"index": "u-1"},
    }
    processed = {"prompt": problem, "solution": "2", "source_prompt": original["prompt"]}
    contradicting = {**processed, "solution": "3"}
    empty = {**processed, "prompt": "Other", "solution": ""}
    path = rows_file(tmp_path, [original] * 5 + [processed, contradicting, empty])
    tasks, bad = load("math", path)
    assert [(task.id, task.question, task.gold, task.reward) for task in tasks] == [("u-1", problem, "2", "math")]
    assert bad == ["7: the same problem has two answers, '2' and '3'", "8: 'answer' is empty"]


def swe_row(**changes: Any) -> dict[str, Any]:
    return {
        "repo_name": "tiny",
        "docker_image": "tiny/image:1",
        "commit_hash": "abc",
        "problem_statement": "[ISSUE]\nThe sum is wrong.\n[/ISSUE]\nSome advice.",
        "expected_output_json": json.dumps({"TestSum.test_two - why": "PASSED", "TestSum.test_none": "FAILED"}),
        **changes,
    }


def test_r2e_gym_rows(tmp_path: Path) -> None:
    own = swe_row(test_command="python -m pytest -rA t.py", test_files={"t.py": "def test(): ..."})
    bad_row = swe_row(expected_output_json="{}")
    (task, mine), bad = load("swe", rows_file(tmp_path, [swe_row(), own, bad_row]))
    assert (task.reward, task.image, task.question) == ("tests", "tiny/image:1", "The sum is wrong.")
    gold = json.loads(task.gold)
    assert gold["expected"] == {"TestSum.test_two": "PASSED", "TestSum.test_none": "FAILED"} and not gold["files"]
    assert json.loads(mine.gold)["command"] == "python -m pytest -rA t.py"
    assert json.loads(mine.gold)["files"] == {"t.py": "def test(): ..."}
    assert bad == ["3: 'expected_output_json' names no test, so any state of the code would pass"]


# ---------------------------------------------------------------------------------------------------------------- files


def test_ones_own_questions_on_a_folder_of_documents(tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    (folder / "deep").mkdir(parents=True)
    (folder / "fox.txt").write_text(STORY)
    (folder / "deep" / "owl.md").write_text("The owl slept.")
    (folder / "picture.png").write_bytes(b"\x89PNG\xff\xfe")
    (folder / ".hidden").write_text("no")
    (folder / "leak.txt").symlink_to("/etc/passwd")
    questions = folder / "questions.csv"
    questions.write_text(
        "question,answer,documents,reward\n"
        "Who slept?,the owl,,\n"
        "Who slept again?,the owl,deep/owl.md;fox.txt,exact\n"
        "Where?,there,missing.txt,\n"
        "What?,that,../../etc/passwd,\n"
    )
    tasks, bad = load("files", folder, questions=str(questions))
    assert set(tasks[0].documents) == {"fox.txt", "deep/owl.md"} and tasks[0].reward == "rouge"
    assert set(tasks[1].documents) == {"fox.txt", "deep/owl.md"} and tasks[1].reward == "exact"
    assert len(tasks) == 2 and len(bad) == 4
    said = "\n".join(bad)
    assert "'picture.png' is not UTF-8" in said and "'leak.txt' is a link that leaves the folder" in said
    assert "4: document 'missing.txt' is missing" in said and "5: document name '../../etc/passwd' would leave" in said
    assert "root:" not in "".join(task.to_json() for task in tasks)


def test_several_answers_are_all_accepted_where_the_source_says_so(tmp_path: Path) -> None:
    (tmp_path / "fox-story.csv").write_text("section,text\n1,The fox ran home.\n2,It slept there.\n")
    (tmp_path / "fox-questions.csv").write_text(
        "question,answer1,answer2,answer3,answer4,answer5,answer6\n"
        "Where did it sleep?,at home,in its den,,At home.,,\nHow many foxes?,1,one,,,,\n"
    )
    tasks, _ = load("general", tmp_path, tasks_per_context=2)
    by_question = {task.question: task for task in tasks}
    where, how_many = by_question["Where did it sleep?"], by_question["How many foxes?"]
    assert (where.gold, where.reward, where.metadata["golds"]) == ("at home", "rouge", ["in its den"])
    assert (how_many.gold, how_many.reward, how_many.metadata["golds"]) == ("1", "number", ["one"])
    mine = {"question": "Where?", "answer": ["at home", "in its den"], "context": STORY}
    (own,), bad = load("files", rows_file(tmp_path, [mine, {**mine, "answer": ["x", None]}]), num_distractors=0)
    assert (own.gold, own.metadata["golds"]) == ("at home", ["in its den"]) and "'answer' is null" in bad[0]
    for task, answer in ((where, "in its den"), (how_many, "One"), (own, "in its den")):
        assert score(task, answer) == 1.0 > score(task, "under a tree")


def test_rows_of_ones_own_with_context_options_and_ordered_questions(tmp_path: Path) -> None:
    rows = [
        {"question": "Which are red?", "answer": ["lamp", "C"], "options": ["map", "lamp", "coin"], "context": STORY},
        {"question": "How many?", "answer": 3, "documents": {"a.txt": STORY}},
        {"questions": [{"question": "One?", "answer": "1"}, {"question": "Two?", "answer": "2"}], "context": STORY},
        {"question": "Bad?", "answer": "x", "reward": "ruge"},
        {"question": "Bad?", "answer": None},
        {"question": "Bad?", "answer": "x", "context": "c", "documents": {"a": "b"}},
        {"question": "No documents?", "answer": "none"},
    ]
    tasks, bad = load("files", rows_file(tmp_path, rows), tasks_per_context=2, num_distractors=0)
    assert [(task.reward, task.gold) for task in tasks[:3]] == [("choices", "B, C"), ("number", "3"), ("number", "1")]
    assert tasks[3].examples == (("One?", "1"),)
    assert [one[:2] for one in bad[:3]] == ["4:", "5:", "6:"] and "unknown reward 'ruge'" in bad[0]
    assert "both given" in bad[2]


def test_a_built_file_is_read_back_equal(tmp_path: Path) -> None:
    tasks = load_source({"source": "builtin", "size": "easy", "num_tasks": 20})
    path = tmp_path / "tasks.jsonl"
    path.write_text("".join(task.to_json() + "\n" for task in tasks))
    assert load_source(str(path)) == tasks
    placed = load_source({"source": "files", "path": str(path), "placement": "prompt"})
    assert {task.placement for task in placed} == {"prompt"}
    broken = json.loads(tasks[0].to_json()) | {"documents": {"../x": "y"}}
    path.write_text(tasks[0].to_json() + "\n" + json.dumps(broken) + "\n" + tasks[1].to_json()[:-30])
    rejected: list[Rejected] = []
    assert load_source(str(path), rejected) == tasks[:1]
    assert "would leave" in rejected[0].reason and rejected[1].where == f"{path}:3"


# ---------------------------------------------------------------------------------------------------------------- specs


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("bultin", "unknown task source 'bultin'; did you mean 'builtin'"),
        ({"source": "mth"}, "did you mean 'math'"),
        ({"source": "math", "size": "tiny"}, "unknown option 'size'"),
        ({"source": "general", "placment": "prompt"}, "did you mean 'placement'"),
        ({"source": "general", "placement": "promt"}, "unknown placement"),
        ({"source": "builtin", "num_tasks": "3"}, "num_tasks must be int"),
        ({"source": "builtin", "num_tasks": -1}, "0 or more"),
        ({"source": "files"}, "path is missing"),
        ("nowhere/rows.jsonl", "no such file"),
        (7, "a name, a file or a mapping"),
        ({"source": "general", "path": "x", "format": "colection"}, "did you mean 'collection'"),
    ],
)
def test_a_wrong_spec_is_one_clear_line(spec: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_source(spec)
    assert "\n" not in str(caught.value)


def test_a_file_without_a_good_row_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no readable row"):
        load("general", rows_file(tmp_path, []))
    with pytest.raises(InputError, match="no task in math .*'prompt' is null"):
        load("math", rows_file(tmp_path, [{"a": 1}]))
    with pytest.raises(InputError, match="in no known form"):
        load("general", rows_file(tmp_path, [{"a": 1}]))


def test_sources_of_a_recipe(tmp_path: Path) -> None:
    spec = {"tiny": {"source": "builtin", "num_tasks": 5, "weight": 2}, "more": {"source": "builtin", "num_tasks": 3}}
    tasks, weights = load_sources(spec, "tasks.train", 0)
    assert {name: len(one) for name, one in tasks.items()} == {"tiny": 5, "more": 3} and weights["tiny"] == 2.0
    one, _ = load_sources({"source": "builtin", "num_tasks": 4}, "tasks.eval", 7)
    assert list(one) == ["builtin"] and one["builtin"] == load_source({"source": "builtin", "num_tasks": 4, "seed": 7})
    for wrong, message in (
        (None, "tasks.train: name a source"),
        ({}, "tasks.train: name a source"),
        ({"a": {"source": "builtn"}}, "tasks.train.a: unknown task source"),
        ({"a": {"source": "builtin", "weight": "x"}}, "tasks.train.a: weight: must be a number"),
    ):
        with pytest.raises(InputError, match=message):
            load_sources(wrong, "tasks.train", 0)


def test_offset_and_number_cut_a_slice() -> None:
    whole = load_source({"source": "builtin", "num_tasks": 10})
    assert load_source({"source": "builtin", "num_tasks": 4, "offset": 3}) == whole[3:7]


def test_every_source_documents_its_options() -> None:
    for name in SOURCES:
        options = source_options(name)
        assert {"num_tasks", "offset", "strict"} <= options.keys()
        assert all(type(default) in (str, int, bool) for default in options.values())


def test_kinds_of_answers() -> None:
    kinds = {
        "3": "number",
        "1,234.5": "number",
        "-7": "number",
        "3 dogs": "rouge",
        "日本語の文": "exact",
        "!!!": "exact",
    }
    assert {gold: free_reward(gold) for gold in kinds} == kinds
    assert choice_question("Q?", ["B", "A"], ["a"]).gold == "B", "the text of an option goes before a letter"
    with pytest.raises(InputError, match="silence"):
        choice_question("Q?", ["x", "y"], [])
    assert printed_letters("Q? (A) x (B) y (C) z") == "ABC" and printed_letters("A. person went") == ""


def test_an_option_without_effect_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="num_distractors has no effect on published rows"):
        load("general", rows_file(tmp_path, [published_row()]), num_distractors=2)
    built = tmp_path / "built.jsonl"
    built.write_text(load_source({"source": "builtin", "num_tasks": 1})[0].to_json() + "\n")
    with pytest.raises(InputError, match="max_examples has no effect on task files"):
        load("files", built, max_examples=2)


@pytest.mark.timeout(20)
def test_hostile_white_space_takes_no_time(tmp_path: Path) -> None:
    blank, lines = " " * 200_000, "\n" * 200_000
    rows = [
        collection_row(
            context=f"=={blank}x\n# a\n{lines}", QA_list=[[f"Who?{lines}Options:{blank}", f"so the answer is{blank}x"]]
        ),
        collection_row(context=f"Chapter{blank}\n.{blank}" * 3, QA_list=[["Who?", f"x{blank}y"]]),
    ]
    tasks, _ = load("general", rows_file(tmp_path, rows))
    assert len(tasks) == 2 and tasks[0].gold == "x"
    framed = f"Solve the following math problem step by step.{lines}What?{lines}"
    math, _ = load("math", rows_file(tmp_path, [{"prompt": framed, "solution": "1"}]))
    assert math[0].gold == "1"


def test_a_file_name_that_is_not_text_is_reported(tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "good.txt").write_text("good")
    with open(os.fsencode(folder) + b"/bad\xff.txt", "w") as handle:
        handle.write("text")
    questions = rows_file(tmp_path, [{"question": "Q?", "answer": "x"}])
    tasks, bad = load("files", folder, questions=str(questions))
    assert list(tasks[0].documents) == ["good.txt"] and len(bad) == 1 and "would leave" in bad[0]


# ----------------------------------------------------------------------------------------------------------- real rows

SETS = {
    "fairytaleqa": ("general", "context_qa/fairytaleqa", 12),
    "pubmedqa": ("general", "context_qa/pubmedqa", 200),
    "qed": ("general", "context_qa/qed", 290),
    "wikitablequestions": ("general", "context_qa/wikitablequestions", 40),
    "dapo, original": ("math", "dapo_math/dapo_original_schema_14rows.jsonl", 14),
    "dapo, processed": ("math", "dapo_math/dapo_processed_schema_14rows.jsonl", 14),
}


@pytest.mark.skipif(not REAL, reason="SANDBOXRL_REAL_DATA names no folder")
@pytest.mark.parametrize("name", SETS)
def test_real_rows_load_whole(name: str) -> None:
    source, path, least = SETS[name]
    rejected: list[Rejected] = []
    tasks = list(iter_source({"source": source, "path": str(Path(REAL) / path)}, rejected))
    assert len(tasks) >= least and len(rejected) <= len(tasks) // 20, rejected[:3]
    assert len({task.id for task in tasks}) == len(tasks)
    if source == "general":
        assert all(len(task.documents) > 1 for task in tasks), "several files, or distractors"

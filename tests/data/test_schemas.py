"""Rows of well-known public sets, as they are published: what is asked, and what is right."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from sandboxrl.data.sources import load_source
from sandboxrl.data.task import Task
from tests.envs.grading.scoring import check

ROWS: list[dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("public_rows.yaml").read_text(encoding="utf-8"))


def read(row: dict[str, Any], folder: Path) -> Task:
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
    (task,) = load_source({"source": "files", "path": str(folder / "rows.jsonl")})
    check(task)
    return task


@pytest.mark.parametrize("one", ROWS, ids=[one["set"] for one in ROWS])
def test_a_published_row_is_read_as_it_is_meant(one: dict[str, Any], tmp_path: Path) -> None:
    task = read(one["row"] | {"null_of_arrow": None}, tmp_path)
    found = json.loads(json.dumps({**vars(task), "metadata": {"golds": task.metadata.get("golds")}}))
    assert {key: found[key] for key in one["said"]} == one["said"]


@pytest.mark.parametrize(
    "row",
    [
        {"question": "What?", "distractor1": "a1", "distractor2": "b1", "distractor3": "c1", "correct_answer": "good"},
        {"Question": "What?", "Correct Answer": "good", **{f"Incorrect Answer {i}": f"x{i}" for i in (1, 2, 3)}},
        {"question": "What?", "mc1_targets": {"choices": ["good", "x", "y", "z"], "labels": [1, 0, 0, 0]}},
    ],
    ids=["SciQ", "GPQA", "TruthfulQA"],
)
def test_options_without_an_order_get_one_that_says_nothing(row: dict[str, Any], tmp_path: Path) -> None:
    name = "Question" if "Question" in row else "question"
    tasks = [read(row | {name: f"What is {i}?"}, tmp_path) for i in range(12)]
    assert {task.options["ABCD".index(task.gold)] for task in tasks} == {"good"}
    assert len({task.gold for task in tasks}) > 2 and read(row | {name: "What is 0?"}, tmp_path).gold == tasks[0].gold


def test_a_program_of_a_public_set_has_its_tests_as_the_gold(tmp_path: Path) -> None:
    tests = "def check(f):\n    assert f(1) == 1\n"
    human = {"prompt": "def f(x):\n", "canonical_solution": "    return x\n", "test": tests, "entry_point": "f"}
    mbpp = {"text": "Write f.", "code": "def f(x): return x", "test_list": ["assert f(1) == 1"], "test_setup_code": ""}
    for row in (human, mbpp):
        task = read(row, tmp_path)
        gold, names = json.loads(task.gold), dict[str, Any]()
        exec(gold["solution"], names)  # as the sandbox does
        exec(gold["tests"], names)
        assert task.reward == "program" and "assert f(2)" not in task.question


def test_a_json_file_may_have_lines_or_squads_articles(tmp_path: Path) -> None:
    row = {"question": "How?", "options": ["A)1", "B)2"], "correct": "B"}
    (tmp_path / "lines.json").write_text(f"{json.dumps(row)}\n{json.dumps(row | {'question': 'Who?'})}\n")
    named = {"Which is north?": "Oslo", "Which is old?": "Rome"}
    asked: list[dict[str, Any]] = [{"question": q, "answers": [{"text": city}]} for q, city in named.items()]
    asked.append({"question": "Is it?", "answers": [], "is_impossible": True})
    paragraph = {"context": "Oslo and Rome.", "qas": asked}
    squad = {"version": "v2.0", "data": [{"title": "Cities", "paragraphs": [paragraph]}]}
    (tmp_path / "squad.json").write_text(json.dumps(squad))
    tasks = [load_source({"source": "files", "path": str(tmp_path / name)}) for name in ("lines.json", "squad.json")]
    assert [[task.gold for task in each] for each in tasks] == [["B", "B"], ["Oslo", "Rome"]]
    assert all("Oslo and Rome." in "".join(task.documents.values()) for task in tasks[1])

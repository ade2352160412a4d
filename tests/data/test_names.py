"""Rows by other people's names for their fields."""

import json
from pathlib import Path
from typing import Any

import pytest

from sandboxrl.data.errors import InputError
from sandboxrl.data.reading import Rejected
from sandboxrl.data.sources import load_source
from sandboxrl.data.task import Task


def one(folder: Path, row: dict[str, Any]) -> Task:
    file = folder / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n")
    (task,) = load_source({"source": "files", "path": str(file)})
    return task


@pytest.mark.parametrize(
    ("row", "gold", "reward", "options"),
    [
        ({"problem": "p", "expected_answer": "2"}, "2", "number", 0),
        ({"query": "q", "target": "two words"}, "two words", "rouge", 0),
        ({"question": "q", "answer": "Because ...\n#### 18"}, "18", "number", 0),
        ({"problem": "p", "solution": "So \\boxed{\\frac{1}{2}}."}, "\\frac{1}{2}", "math", 0),
        ({"question": "q", "answers": {"text": ["Ada", "A. L."], "answer_start": [1, 2]}}, "Ada", "rouge", 0),
        ({"question": "q", "answer": True, "passage": "Yes."}, "yes", "rouge", 0),
        ({"question": "q", "choices": ["x", "y", "z"], "answer": 2}, "C", "choice", 3),
        ({"question": "q", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"}, "B", "choice", 2),
        ({"article": "a", "question": "q", "options": ["x", "y"], "answer": "B"}, "B", "choice", 2),
        ({"context": "c", "query": "q", "options": ["x", "y"], "correct_option": 0}, "A", "choice", 2),
        ({"context": "c", "question": "q", "answers": ["x", "y", "z"], "label": 1}, "B", "choice", 3),
        ({"ctx": "c", "question": "q", "endings": ["x", "y"], "label": "1"}, "B", "choice", 2),
        ({"question": "q", "A": "x", "B": "y", "answer": "A"}, "A", "choice", 2),
        ({"question": "q", "options": [3, 5], "answer": 5}, "B", "choice", 2),
        ({"question": "q", "answer": {"a": 1}, "reward": "json"}, '{"a": 1}', "json", 0),
    ],
)
def test_other_names_are_understood(tmp_path: Path, row: dict[str, Any], gold: str, reward: str, options: int) -> None:
    task = one(tmp_path, row)
    assert (task.gold, task.reward, len(task.options)) == (gold, reward, options)


def test_paragraphs_of_hotpotqa_are_documents(tmp_path: Path) -> None:
    context = {"title": ["Ada", "Bob"], "sentences": [["Ada ", "wrote."], ["Bob slept."]]}
    task = one(tmp_path, {"question": "Who?", "answer": "Ada", "context": context})
    assert sorted(task.documents.values()) == ["Ada wrote.", "Bob slept."]


def test_what_is_looked_for_is_listed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no 'answer' .or expected_answer, .*among the fields question, result"):
        one(tmp_path, {"question": "q", "result": "r"})


def test_a_question_without_a_right_option_costs_itself(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    questions = [{"question": "a", "options": ["x", "y"], "answer": right} for right in (["x"], [], ["y"])]
    file.write_text(json.dumps({"context": "c", "questions": questions}) + "\n")
    bad: list[Rejected] = []
    tasks = load_source({"source": "files", "path": str(file), "tasks_per_context": 3}, bad)
    assert len(tasks) >= 1 and [one.reason for one in bad] == [
        "questions[1]: no option is right, so silence would be the right answer"
    ]

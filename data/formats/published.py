"""A row of the paper: files are chosen already, and earlier questions are in the statement."""

import re

from sandboxrl.data.context import few
from sandboxrl.data.errors import InputError
from sandboxrl.data.files import digest
from sandboxrl.data.formats.fields import json_field, text_field
from sandboxrl.data.formats.questions import free_reward
from sandboxrl.data.reading import Row
from sandboxrl.data.task import Task


def published(where: str, row: Row) -> Task:
    """A row of daixuancheng/llm-in-sandbox-rl: files are chosen already and earlier questions are in the statement."""
    statement, gold = text_field(row, "problem_statement"), text_field(row, "ground_truth").strip()
    documents = json_field(row, "input_files") or {}
    if not isinstance(documents, dict):
        raise InputError(f"'input_files' is not an object but {type(documents).__name__}")
    # the columns of all rows are merged where they were stored: a null stands for a file of another row
    documents = {name: text for name, text in documents.items() if text is not None}
    for name, text in documents.items():
        if not isinstance(text, str):
            raise InputError(f"document {name!r} is {type(text).__name__}, not text")
    metadata = {}
    if "multiple choice" in str(row.get("qa_type") or "").lower():
        reward = "choices" if "," in gold else "choice"
        metadata["letters"] = printed_letters(statement)
    else:
        reward = "math" if str(row.get("domain", "")).startswith("math") else free_reward(gold)
    return Task(
        id=str(row.get("id") or digest(statement)),
        source="general",
        question=statement,
        gold=gold,
        reward=reward,
        documents=few(documents),
        metadata={key: value for key, value in metadata.items() if value},
    )


def printed_letters(statement: str) -> str:
    """The letters of options that are printed in the text, `A. ...`, `(A) ...`: A, B, C … in order, or nothing."""
    letters = ""
    for found in re.findall(r"(?m)(?:^|\s)\(?([A-Z])[.):]\s", statement):
        if found == chr(ord("A") + len(letters)):
            letters += found
    return letters if len(letters) > 1 else ""

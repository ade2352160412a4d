"""A person's own row: questions and answers, with a context, documents or neither."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sandboxrl.data.context import Context, Question
from sandboxrl.data.errors import InputError
from sandboxrl.data.files import digest
from sandboxrl.data.formats.fields import document, json_field, text_field
from sandboxrl.data.formats.questions import choice_question, free_question
from sandboxrl.data.reading import Row
from sandboxrl.data.task import REWARDS, safe_name


def own(where: str, row: Row, folder: Path, shared: Mapping[str, str]) -> Context:
    """A row of one's own: `question` and `answer`, or an ordered list `questions` of such.

    Documents: `context` (one text), or `documents` (an object name -> text, or a list of names of files in the folder;
    names joined by `;` in a CSV), or nothing: then those of the folder. `options` makes it a choice; without them each
    of several answers is accepted. `reward` overrides the kind of grading.
    """
    row = {key: value for key, value in row.items() if value is not None and value != ""}  # empty cells of a CSV
    listed = json_field(row, "questions") if "questions" in row else [row]
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        raise InputError("'questions' is not a list of objects")
    questions = tuple(_own_question(one) for one in listed)
    text = text_field(row, "context") if "context" in row else ""
    documents = row.get("documents", shared)
    if isinstance(documents, str):
        documents = json_field(row, "documents") if documents.lstrip()[:1] in "[{" else documents.split(";")
    if isinstance(documents, list):
        documents = {str(name): shared[name] if name in shared else document(folder, str(name)) for name in documents}
    if not isinstance(documents, Mapping) or not all(isinstance(one, str) for one in documents.values()):
        raise InputError("'documents' is neither an object of name -> text nor a list of file names")
    for name in documents:
        if not safe_name(name):
            raise InputError(f"document name {name!r} would leave the folder of documents")
    if text and "documents" in row:
        raise InputError("'context' and 'documents' are both given")
    return Context(
        id=str(row.get("id") or digest(text, *documents, *(question.text for question in questions))),
        source=str(row.get("source") or "files"),
        questions=questions,
        text=text,
        documents={} if text else documents,
        title=str(row.get("title") or ""),
        where=where,
    )


def _own_question(row: Row) -> Question:
    asked, answer = text_field(row, "question"), row.get("answer")
    answers = [_answer(one) for one in (answer if isinstance(answer, list) and answer else [answer])]
    options = json_field(row, "options")
    if options is not None:
        if not isinstance(options, list):
            raise InputError("'options' is not a list")
        question = choice_question(asked, [str(option) for option in options], answers)
    else:
        question = free_question(asked, answers[0], answers[1:])
    reward = row.get("reward") or question.reward
    if reward not in REWARDS:
        raise InputError(f"unknown reward {reward!r}; valid: {', '.join(REWARDS)}")
    return Question(question.text, question.gold, reward, question.options, question.metadata)


def _answer(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    return text_field({"answer": value}, "answer")

"""A person's own row: questions and answers, with a context, documents or neither."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from sandboxrl.data.context import Context, Question
from sandboxrl.data.errors import InputError
from sandboxrl.data.files import digest
from sandboxrl.data.formats.fields import document, json_field, text_field
from sandboxrl.data.formats.names import answers_of, context_of, options_of, question_of
from sandboxrl.data.formats.questions import choice_question, each_question, free_question, unlabelled
from sandboxrl.data.formats.schemas import known
from sandboxrl.data.reading import Row
from sandboxrl.data.task import safe_name

_FORMULA = re.compile(r"\\(?:d?frac|sqrt|pi|boxed|infty|begin|text|cdot|times|log|ln|sin|cos|in)(?![a-z])|\$.*\$|\^")


def own(where: str, row: Row, folder: Path, shared: Mapping[str, str]) -> Context:
    """A user's own row: `question` and `answer`, or an ordered list `questions` of such.

    Other people's names of these fields are understood (`sandboxrl.data.formats.names`).
    Documents: `context` (one text), or `documents` (an object name -> text, or a list of names of files in the folder;
    names joined by `;` in a CSV), or nothing: then those of the folder. `options` makes it a choice; without them each
    of several answers is accepted. `reward` overrides the kind of grading.
    """
    row = _filled(known(_filled(row)))
    if isinstance(row.get("questions"), str | list):
        listed = json_field(row, "questions")
        if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
            raise InputError("'questions' is not a list of objects")
        questions, lost = each_question(listed, "questions", _own_question)
    else:
        questions, lost = (_own_question(row),), ()
    if "context" in row and not isinstance(row["context"], str):
        text_field(row, "context")  # says what it is
    text = context_of(row)
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
        lost=lost,
    )


def _filled(row: Row) -> Row:
    """A row without its nulls and the empty cells of a CSV."""
    return {key: value for key, value in row.items() if value is not None and value != ""}


def _own_question(row: Row) -> Question:
    row = _filled(known(row))
    asked, offered = question_of(row), options_of(row)
    options, labels = offered or ([], [])
    answers = answers_of(row, options, labels)
    options = unlabelled(options)
    if offered is not None:
        question = choice_question(asked, options, answers)
    else:
        gold, *others = map(str, answers)
        question = free_question(asked, gold, others)
        formal = "problem" in row and not re.search(r"[^\W\d_]{2}", gold) and question.reward != "number"
        if (formal or _FORMULA.search(gold)) and not question.metadata:
            question = replace(question, reward="math")
    return replace(question, reward=str(row["reward"])) if row.get("reward") else question

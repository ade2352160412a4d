"""A folder of WikiTableQuestions: a TSV of questions and the tables that it names."""

import re
from collections.abc import Iterator
from pathlib import Path

from sandboxrl.data.context import Context, Question
from sandboxrl.data.errors import InputError
from sandboxrl.data.formats.fields import document, text_field
from sandboxrl.data.formats.questions import free_question
from sandboxrl.data.reading import Rejected, read_rows


def wikitablequestions(folder: Path, rejected: list[Rejected]) -> Iterator[Context]:
    """A folder with a TSV of questions (id, utterance, context, targetValue) and the tables that `context` names."""
    asked: dict[str, list[Question]] = {}
    for file in sorted(folder.rglob("*.tsv")):
        for where, row in read_rows(file, rejected):
            try:
                gold = ", ".join(_unescaped(part) for part in text_field(row, "targetValue").split("|"))
                question = free_question(_unescaped(text_field(row, "utterance")), gold)
                asked.setdefault(text_field(row, "context"), []).append(question)
            except InputError as error:
                rejected.append(Rejected(where, str(error)))
    for name, questions in asked.items():
        where = f"{folder}/{name}"
        try:
            text = document(folder, name)
        except InputError as error:
            rejected.append(Rejected(where, f"{error} ({len(questions)} questions lost)"))
            continue
        yield Context(name, "wikitablequestions", tuple(questions), text=text, extension=".csv", where=where)


def _unescaped(cell: str) -> str:
    return re.sub(r"\\([np\\])", lambda match: {"n": "\n", "p": "|", "\\": "\\"}[match[1]], cell)

"""A row of PubMedQA: an abstract in labelled sections and a question."""

from sandboxrl.data.context import Context
from sandboxrl.data.cutting import ordered_names
from sandboxrl.data.errors import InputError
from sandboxrl.data.files import digest
from sandboxrl.data.formats.fields import text_field
from sandboxrl.data.formats.questions import choice_question
from sandboxrl.data.reading import Row


def pubmedqa(where: str, row: Row) -> Context:
    """An abstract in labelled sections and a question whose answer is yes, no or maybe."""
    sections, labels = row.get("CONTEXTS"), row.get("LABELS")
    if not isinstance(sections, list) or not sections or not all(isinstance(one, str) for one in sections):
        raise InputError("'CONTEXTS' is not a list of texts")
    if not isinstance(labels, list) or len(labels) != len(sections):
        labels = ["section"] * len(sections)
    question = choice_question(text_field(row, "QUESTION"), ("yes", "no", "maybe"), [text_field(row, "final_decision")])
    several = len(sections) > 1
    names = ordered_names([str(label) for label in labels], ".txt")
    return Context(
        id=str(row.get("id") or digest(*sections)),
        source="pubmedqa",
        questions=(question,),
        text="" if several else sections[0],
        documents=dict(zip(names, sections, strict=True)) if several else {},
        where=where,
    )

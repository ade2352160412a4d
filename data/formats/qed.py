"""A row of QED: a question and one paragraph of an encyclopedia."""

from sandboxrl.data.context import Context
from sandboxrl.data.errors import InputError
from sandboxrl.data.files import digest
from sandboxrl.data.formats.fields import text_field
from sandboxrl.data.formats.questions import free_question
from sandboxrl.data.reading import Row


def qed(where: str, row: Row) -> Context:
    """A question and one paragraph of an encyclopedia."""
    annotation = row.get("annotation")
    spans = annotation.get("answer") if isinstance(annotation, dict) else None
    if not isinstance(spans, list) or not spans:
        raise InputError("'annotation' marks no answer")
    try:
        golds = [text_field(span["paragraph_reference"], "string") for span in spans]
    except (KeyError, TypeError):
        raise InputError("'annotation': an answer without a paragraph reference") from None
    text = text_field(row, "paragraph_text")
    return Context(
        id=str(row.get("example_id") or digest(text)),
        source="qed",
        questions=(free_question(text_field(row, "question_text") + "?", ", ".join(golds)),),
        text=text,
        title=str(row.get("title_text") or ""),
        where=where,
    )

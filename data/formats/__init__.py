"""Forms of rows: each turns published or own rows into contexts, for the builder, or into tasks."""

from collections.abc import Callable, Iterator
from pathlib import Path

from sandboxrl.data.context import Context
from sandboxrl.data.formats.collection import collection
from sandboxrl.data.formats.fairytaleqa import fairytaleqa
from sandboxrl.data.formats.pubmedqa import pubmedqa
from sandboxrl.data.formats.qed import qed
from sandboxrl.data.formats.wikitablequestions import wikitablequestions
from sandboxrl.data.reading import Rejected, Row

ROW_FORMATS: dict[str, tuple[tuple[str, ...], Callable[[str, Row], Context]]] = {
    "collection": (("context", "QA_list"), collection),
    "pubmedqa": (("QUESTION", "CONTEXTS"), pubmedqa),
    "qed": (("question_text", "paragraph_text"), qed),
}
"""Format -> (the fields by which it is known, its function)."""

FOLDER_FORMATS: dict[str, tuple[str, Callable[[Path, list[Rejected]], Iterator[Context]]]] = {
    "fairytaleqa": ("*-story.csv", fairytaleqa),
    "wikitablequestions": ("*.tsv", wikitablequestions),
}
"""Format -> (the files by which a folder is known, its function)."""

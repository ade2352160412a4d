"""A folder of FairyTaleQA: NAME-story.csv and NAME-questions.csv."""

from collections.abc import Iterator
from pathlib import Path

from sandboxrl.data.context import Context
from sandboxrl.data.cutting import ordered_names
from sandboxrl.data.errors import InputError
from sandboxrl.data.formats.fields import text_field
from sandboxrl.data.formats.questions import free_question
from sandboxrl.data.reading import Rejected, read_rows


def fairytaleqa(folder: Path, rejected: list[Rejected]) -> Iterator[Context]:
    """A folder of NAME-story.csv (section, text) and NAME-questions.csv (question, answer1 to answer6)."""
    for story in sorted(folder.rglob("*-story.csv")):
        name = story.name.removesuffix("-story.csv")
        sections = [str(row.get("text", "")) for _, row in read_rows(story, rejected)]
        questions = []
        asked = story.with_name(f"{name}-questions.csv")
        for where, row in read_rows(asked, rejected) if asked.is_file() else ():
            try:
                answers = [str(row.get(f"answer{i}") or "").strip() for i in range(1, 7)]
                gold = next(filter(None, answers), "")
                questions.append(
                    free_question(text_field(row, "question"), text_field({"answer1": gold}, "answer1"), answers)
                )
            except InputError as error:
                rejected.append(Rejected(where, str(error)))
        names = ordered_names(["section"] * len(sections), ".txt")
        files = dict(zip(names, sections, strict=True))
        yield Context(name, "fairytaleqa", tuple(questions), documents=files, where=str(story))

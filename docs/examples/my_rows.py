"""A form of rows of your own: `tasks.train.quiz: {source: files, path: quiz.csv, format: my_rows.py:quiz}`."""

from sandboxrl.data.errors import InputError
from sandboxrl.data.task import Task


def quiz(rows):
    """Rows `frage, antwort, thema`: those of one theme are asked about the same document."""
    for number, row in enumerate(rows, start=1):
        if not row.get("antwort"):
            yield InputError("no answer")  # named with its file and line, and left out
            continue
        yield Task(
            id=f"quiz-{number}",
            source="quiz",
            question=row["frage"],
            gold=row["antwort"],
            reward="exact",
            documents={"theme.txt": row["thema"]},
        )

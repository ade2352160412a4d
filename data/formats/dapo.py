"""A row of DAPO-Math-17k, in the original or the processed form."""

from sandboxrl.data.files import digest
from sandboxrl.data.formats.fields import text_field
from sandboxrl.data.formats.names import QUESTION, answers_of, concluded, question_of
from sandboxrl.data.reading import Row
from sandboxrl.data.task import Task

_DAPO_FRAME = (
    "Solve the following math problem step by step.",
    'Remember to put your answer on its own line after "Answer:"',
)
"""How the original form opens its first line and its last one."""


def dapo(where: str, row: Row) -> Task:
    """A row of DAPO-Math-17k in the original or the processed form (the frame that asks for `Answer:` is taken off), or
    any row with a question and an answer, by whatever name."""
    prompt = row.get("prompt")
    if isinstance(prompt, list):
        prompt = next((m.get("content") for m in prompt if isinstance(m, dict) and m.get("role") == "user"), None)
    if prompt is None and any(name in row for name in QUESTION):
        prompt = question_of(row)
    problem = text_field({"prompt": prompt}, "prompt").strip()
    first, _, rest = problem.partition("\n")
    framed, _, last = rest.rpartition("\n")
    if first.startswith(_DAPO_FRAME[0]) and last.startswith(_DAPO_FRAME[1]):
        problem = framed.strip()
    gold, graded = row.get("solution"), row.get("reward_model")
    if gold is None and isinstance(graded, dict):
        gold = graded.get("ground_truth")
    if gold is None:
        gold = str(answers_of(row, (), ())[0])
    extra = row.get("extra_info")
    index = extra.get("index") if isinstance(extra, dict) else None
    return Task(
        id=str(index or row.get("id") or digest(problem)),
        source="math",
        question=problem,
        gold=concluded(text_field({"answer": gold}, "answer")).strip(),
        reward="math",
    )

"""What `data check` looks for in tasks, in this process."""

from sandboxrl.data.check import Examination
from sandboxrl.data.task import Task


def asked(gold: str, documents: dict[str, str], name: str = "t", **fields: object) -> Task:
    return Task(name, "s", f"Who keeps the keys of the {name} tower?", gold, "rouge", documents, **fields)  # type: ignore[arg-type]


def test_a_distractor_may_not_hold_the_answer_in_another_spelling() -> None:
    examination = Examination()
    own = {"own.txt": "Zoë Müller keeps them.", "other.txt": "zoe  MULLER was here."}
    examination.add(asked("Zoë Müller", own, "east", metadata={"num_own_files": 1}))
    examination.add(asked("Zoë Müller", {**own, "other.txt": "No one."}, "west", metadata={"num_own_files": 1}))
    (found,) = examination.findings["distractors"]
    assert found.task_id == "east" and "other.txt" in found.detail


def test_the_share_of_answers_that_stand_in_their_documents_is_said_and_ten_that_do_not_are_shown() -> None:
    examination = Examination()
    for i in range(12):
        examination.add(asked(f"person number {i}", {"a.txt": "Nobody is named here."}, f"no{i}"))
    for i in range(4):
        examination.add(asked(f"person number {i}", {"a.txt": f"It is Person Number {i}!"}, f"yes{i}"))
    examination.add(asked("B", {"a.txt": "B"}, "choice", options=("x", "y")))
    assert dict(examination.facts())["free answers that stand in them"] == "25.0 % of 16"
    assert [one.task_id for one in examination.unsupported] == [f"no{i}" for i in range(10)]

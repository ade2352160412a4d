"""What questions give away by themselves."""

from sandboxrl.data.task import Task
from sandboxrl.envs.grading.guessing import KEPT, Guesses
from sandboxrl.envs.grading.kinds import KINDS


def told(*tasks: Task) -> tuple[dict[str, str], Guesses]:
    found = Guesses()
    for task in tasks:
        found.add(task, KINDS[task.reward])
    return dict(found.told()), found


def test_a_choice_is_guessed_by_its_length_and_by_the_words_of_the_question() -> None:
    long = Task("a", "s", "Which?", "B", "choice", options=("short", "much the longest of them"))
    same = Task("b", "s", "Which animal is a red fox?", "A", "choice", options=("a red fox", "an elephant or so"))
    lines, found = told(long, same)
    assert lines["choice, by the longest option"] == "50.0 on 2 tasks"
    assert lines["choice, by the words of the question"] == "50.0 on 2 tasks"
    assert found.given_away == []  # one of two options is a guess


def test_a_number_or_words_of_the_question_that_are_right_are_shown() -> None:
    given = [Task(f"n{i}", "s", f"Is it {1000 + i} or less?", str(1000 + i), "number") for i in range(KEPT + 2)]
    lines, found = told(*given, Task("x", "s", "Is it 7 or 1234?", "4321", "number"))
    assert lines["number, by the last number of the question"].startswith("92.3 on 13")
    assert [task_id for task_id, _ in found.given_away] == [f"n{i}" for i in range(KEPT)]


def test_the_most_common_gold_is_named() -> None:
    lines, _ = told(*(Task(str(i), "s", "Is it?", gold, "exact") for i, gold in enumerate(["yes", "yes", "yes", "no"])))
    assert lines["exact, always the same"] == "75.0 by 'yes'"


def test_a_judged_task_is_not_guessed() -> None:
    assert told(Task("j", "s", "Why?", "because", "judge_equality"))[0] == {}

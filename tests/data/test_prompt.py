"""Prompts: what an arm shows of a task, that nothing in a task is read as a template, and that placements are equal."""

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxrl.data.errors import InputError
from sandboxrl.data.prompt.arms import MODES, PLACEHOLDERS, Arm, arm_names, fill, load_arm, render
from sandboxrl.data.task import REWARDS, Task

ARMS = ("paper", "reference", "neutral", "compact")
TASK = Task(
    id="t",
    source="s",
    question="Which {question} is it?\n\n{answer} \\d {",
    gold="B",
    reward="choice",
    documents={"b.txt": "zweite {0}", "a.txt": "erste"},
    examples=(("Earlier?", "A"),),
    options=("one", "two", "three"),
)


def said(task: Task, arm: str, mode: str = "sandbox") -> str:
    return "\n".join(message["content"] for message in render(task, load_arm(arm), mode))


@pytest.mark.parametrize("name", arm_names())
def test_every_arm_loads_and_names_only_known_placeholders(name: str) -> None:
    arm = load_arm(name)
    for text in (arm.system, arm.task_template, *arm.answers.values()):
        assert not [word for word in ("{docs}", "{task}", "{gold}") if word in text]
    assert "{question}" in arm.task_template


@pytest.mark.parametrize("name", ARMS)
def test_sandbox_arms_show_question_options_and_examples_but_no_document(name: str) -> None:
    text = said(TASK, name)
    for shown in (
        TASK.question,
        "A. one",
        "B. two",
        "C. three",
        "Earlier?",
        "/testbed/answer.txt",
        "/testbed/documents",
    ):
        assert shown in text, shown
    assert "zweite" not in text and "erste" not in text


@pytest.mark.parametrize("name", ARMS)
@pytest.mark.parametrize("mode", MODES)
def test_documents_in_the_prompt_are_whole_and_named(name: str, mode: str) -> None:
    text = said(dataclasses.replace(TASK, placement="prompt"), name, mode)
    for file, content in TASK.documents.items():
        assert f'<document name="{file}">\n{content}\n</document>' in text
    assert text.index("a.txt") < text.index("b.txt")


def test_llm_mode_has_the_documents_whatever_the_placement_and_speaks_of_no_computer() -> None:
    text = said(TASK, "paper", "llm")
    assert "zweite {0}" in text and TASK.question in text
    for word in ("bash", "/testbed", "tool", "sandbox", "file_editor"):
        assert word not in text.replace("a.txt", "").replace("b.txt", "")


@pytest.mark.parametrize("name", ("paper", "reference", "neutral"))
@pytest.mark.parametrize("reward", REWARDS)
def test_every_reward_has_an_answer_note(name: str, reward: str) -> None:
    gold = "A" if reward.startswith("choice") else "1"
    task = Task("t", "s", "Q?", gold, reward, options=("x", "y") if reward.startswith("choice") else ())
    text = said(task, name)
    assert load_arm(name).answers[reward].split("{")[0] in text
    assert ("(A, B)" in text) == reward.startswith("choice"), "the letters are those of the row"


def test_reference_arm_offers_the_released_tools_and_counts_steps() -> None:
    arm = load_arm("reference")
    assert (arm.tool_set, arm.steps_remaining) == ("reference", True)
    text = said(TASK, "reference")
    assert all(word in text for word in ("execute_bash", "str_replace_editor", "submit"))
    assert "file_editor" not in text and "finish" not in text


def test_boxed_is_shown_with_one_backslash() -> None:
    task = Task("t", "s", "Q?", "1", "math")
    for name, mode in (("paper", "sandbox"), ("reference", "sandbox"), ("paper", "llm")):
        text = said(task, name, mode)
        assert "\\boxed{" in text and "\\\\boxed" not in text and "{{" not in text


def test_a_paragraph_whose_placeholders_are_empty_is_left_out_heading_included() -> None:
    bare = Task("t", "s", "Q?", "x", "exact")
    for name in ARMS:
        for mode in MODES:
            text = render(bare, load_arm(name), mode)[-1]["content"]
            assert "Earlier" not in text and "document" not in text
            assert "\n\n\n" not in text


@given(st.text(min_size=1), st.text(), st.text())
def test_values_are_never_read_as_a_template(question: str, option: str, document: str) -> None:
    text = "{question} {options} {documents} {answer} {folder} {x} {{}}"
    values = dict.fromkeys(PLACEHOLDERS, "") | {"question": question, "options": option, "documents": document}
    expected = " ".join((question, option, document, "", "", "{x}", "{{}}"))
    assert fill(text, values) == expected


@given(
    st.dictionaries(st.from_regex(r"[a-z]{1,5}\.txt", fullmatch=True), st.text(max_size=40), min_size=1, max_size=4),
    st.text(max_size=60),
)
def test_placements_carry_the_same_information(documents: dict[str, str], question: str) -> None:
    """What the sandbox placement leaves out of the prompt is the documents, and nothing else."""
    inside = Task("t", "s", question, "x", "exact", documents)
    outside = dataclasses.replace(inside, placement="prompt")
    arm = load_arm("neutral")
    prompt = render(outside, arm)[-1]["content"]
    shown = "\n\n".join(f'<document name="{name}">\n{documents[name]}\n</document>' for name in sorted(documents))
    assert prompt.startswith(shown + "\n\n")
    assert render(inside, arm)[-1]["content"] == f"The files are in /testbed/documents/.\n\n{prompt[len(shown) + 2 :]}"


def test_a_persons_own_arm_extends_another(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: paper\nsystem: Be brief.\nanswers: {exact: Say it.}\n")
    arm = load_arm(str(path))
    assert (arm.name, arm.system, arm.answers["exact"]) == ("mine", "Be brief.", "Say it.")
    assert arm.task_template == load_arm("paper").task_template
    assert arm.digest != load_arm("paper").digest


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: papr", "did you mean 'paper'"),
        ("extends: paper\nsytem: x", "did you mean 'system'"),
        ("extends: paper\nanswers: {choise: x}", "did you mean 'choice'"),
        ("extends: paper\ntool_set: papper", "did you mean 'paper'"),
        ("extends: {path}", "round in a circle"),
        ("system: x", "'task_template' is missing"),
        ("a: [", "mine.yaml"),
        ("- a", "not a mapping"),
    ],
)
def test_a_wrong_arm_is_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace("{path}", str(path)))
    with pytest.raises(InputError, match=message) as caught:
        load_arm(str(path))
    assert "\n" not in str(caught.value)


def test_what_an_arm_cannot_ask_is_refused() -> None:
    with pytest.raises(InputError, match="no answer format for reward 'math'"):
        render(Task("t", "s", "Q?", "1", "math"), load_arm("compact"))
    with pytest.raises(InputError, match="offers no tools"):
        render(TASK, load_arm("llm"), "sandbox")
    with pytest.raises(InputError, match="unknown mode"):
        render(TASK, load_arm("paper"), "lllm")
    with pytest.raises(InputError, match="unknown prompt arm 'papr'; did you mean 'paper'"):
        load_arm("papr")


def test_the_digest_changes_with_everything_the_model_sees() -> None:
    arm = load_arm("paper")
    digests = {
        dataclasses.replace(arm, **{f: "changed"}).digest for f in ("system", "task_template", "tool_set", "llm")
    }
    assert len(digests | {arm.digest}) == 5
    assert dataclasses.replace(arm, description="other").digest == arm.digest
    assert isinstance(arm, Arm) and len(arm.digest) == 12

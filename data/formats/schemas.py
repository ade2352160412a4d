"""Rows of well-known public sets in the fields that `own` reads: question, answer, options, context, documents.

`known(row)` gives a row back as it is unless it has the shape of one of these sets. What it adds, it adds once.
A set without an order of its options (SciQ, GPQA, TruthfulQA) gets one from a digest of its question.
"""

import ast
import json
from collections.abc import Callable, Mapping
from typing import Any

from sandboxrl.data.cutting import file_slug, ordered_names
from sandboxrl.data.errors import InputError
from sandboxrl.data.files import digest
from sandboxrl.data.reading import Row

Fields = dict[str, Any]


def known(row: Row) -> Row:
    """The row with the fields that `own` reads added to it. Raises InputError."""
    fields = dict(row)
    for reader in READERS:
        fields |= reader(fields)
    return fields


def _dialogue(row: Row) -> Fields:
    """OpenAI's `messages`, ShareGPT's `conversations`, verl's `prompt` of messages: the last user turn asks, the last
    answer is right."""
    name = next((name for name in ("messages", "conversations", "prompt") if _is_dialogue(row.get(name))), "")
    if not name or "question" in row or "problem" in row:
        return {}
    turns = [(one.get("role", one.get("from")), one.get("content", one.get("value"))) for one in row[name]]
    asked = [str(text) for role, text in turns if role in ("user", "human")]
    answered = [str(text) for role, text in turns if role in ("assistant", "gpt")]
    if not asked:
        raise InputError(f"{name!r} holds no turn of a user")
    fields: Fields = {"question": asked[-1]}
    if answered and not any(key in row for key in ("answer", "solution", "reward_model")):
        fields["answer"] = answered[-1]
    return fields | {name: None}


def _is_dialogue(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(one, Mapping) and ({"role", "from"} & set(one)) for one in value)
    )


def _verl(row: Row) -> Fields:
    """verl: `reward_model: {"ground_truth": ...}`."""
    found = row.get("reward_model")
    return {"answer": found["ground_truth"]} if isinstance(found, Mapping) and "ground_truth" in found else {}


def _instruction(row: Row) -> Fields:
    """Alpaca and Dolly: an instruction, with an input that it is about."""
    if not isinstance(row.get("instruction"), str):
        return {}
    asked = "\n\n".join(str(row[name]) for name in ("instruction", "input") if row.get(name))
    answer = row.get("response", row.get("output"))
    return {"question": asked, "input": None, "instruction": None} | (
        {"answer": answer} if "answer" not in row and answer else {}
    )


def _in_parts(row: Row) -> Fields:
    """SVAMP and ASDiv: what is told and what is asked are two fields."""
    told, asked = (next((row[name] for name in names if isinstance(row.get(name), str)), "") for names in _PARTS)
    return {"question": f"{told} {asked}", "Question": None, "Body": None, "body": None} if told and asked else {}


_PARTS = (("Body", "body"), ("Question", "question"))


def _nested_question(row: Row) -> Fields:
    """NarrativeQA's `{"text"}` and CommonsenseQA's `{"stem", "choices"}`."""
    asked = row.get("question")
    if not isinstance(asked, Mapping):
        return {}
    return {"question": asked.get("text", asked.get("stem"))} | (
        {"choices": asked["choices"]} if "choices" in asked else {}
    )


def _named_otherwise(row: Row) -> Fields:
    """PIQA's goal, HellaSwag's beginning and Winogrande's gap are the question."""
    for name, marks in (("goal", "sol1"), ("ctx", "endings"), ("sentence", "option1")):
        if isinstance(row.get(name), str) and marks in row:
            return {"question": row[name]}
    return {}


def _distractors(row: Row) -> Fields:
    """SciQ and GPQA: one right answer and some wrong ones."""
    right = row.get("correct_answer", row.get("Correct Answer"))
    wrong = [row[name] for name in (*_WRONG, *(f"Incorrect Answer {i}" for i in range(1, 4))) if row.get(name)]
    if not wrong or right in (None, ""):
        return {}
    return _shuffled(str(row.get("question", row.get("Question"))), [str(right), *map(str, wrong)], [0])


_WRONG = ("distractor1", "distractor2", "distractor3")


def _targets(row: Row) -> Fields:
    """TruthfulQA: `mc1_targets: {"choices", "labels"}` with a 1 for what is right."""
    found = row.get("mc1_targets")
    if not isinstance(found, Mapping) or not isinstance(found.get("labels"), list):
        return {}
    return _shuffled(str(row.get("question")), found["choices"], [i for i, one in enumerate(found["labels"]) if one])


def _shuffled(question: str, options: list[str], right: list[int]) -> Fields:
    order = sorted(range(len(options)), key=lambda i: digest(question, options[i]))
    return {
        "question": question,
        "options": [options[i] for i in order],
        "answer": [options[i] for i in right],
        "correct_answer": None,
    }


def _counted_from_one(row: Row) -> Fields:
    """QuALITY's `gold_label` and SocialIQA's `label`: positions from 1. Winogrande's and PIQA's two options."""
    if isinstance(row.get("gold_label"), int) and "options" in row:
        return {"answer": row["gold_label"] - 1, "answer_index": row["gold_label"] - 1}
    if "answerA" in row and str(row.get("label")).isdigit():
        return {"answer": "ABC"[int(row["label"]) - 1 : int(row["label"])], "label": None}
    if "sol1" in row and "sol2" in row:
        return {"options": [row["sol1"], row["sol2"]]}
    if "option1" in row and str(row.get("answer")).isdigit():
        options = [row[name] for name in (f"option{i}" for i in range(1, 10)) if row.get(name)]
        return {"options": options, "answer_index": int(row["answer"]) - 1, "answer": None}
    return {}


def _drop(row: Row) -> Fields:
    """DROP: `answers_spans: {"spans"}` of one answer or several parts, or `answer: {"number", "date", "spans"}`."""
    given, answer = row.get("answers_spans"), row.get("answer")
    found: Mapping[str, Any] = given if isinstance(given, Mapping) else {}
    if not found and isinstance(answer, Mapping) and "date" in answer:
        found = answer
    date = found.get("date") or {}
    dated = " ".join(str(date[part]) for part in ("day", "month", "year") if date.get(part))
    spans = list(dict.fromkeys(found.get("spans") or []))
    said = str(found.get("number") or "") or dated or ", ".join(spans)
    return ({"answer": said} | ({"reward": "set"} if len(spans) > 1 and "reward" not in row else {})) if said else {}


def _aliases(row: Row) -> Fields:
    """TriviaQA's, MuSiQue's, PopQA's and TruthfulQA's other right answers."""
    answer = row.get("answer")
    if isinstance(answer, Mapping) and "aliases" in answer:
        return {"answer": [answer["value"], *answer["aliases"]]}
    if isinstance(answer, str) and isinstance(row.get("answer_aliases"), list):
        return {"answer": [answer, *row["answer_aliases"]]}
    if isinstance(row.get("possible_answers"), str | list):
        return {"answer": as_list(row["possible_answers"], "possible_answers")}
    if isinstance(row.get("best_answer"), str) and isinstance(row.get("correct_answers"), list):
        return {"answer": [row["best_answer"], *row["correct_answers"]]}
    listed = row.get("answers")
    if isinstance(listed, list) and all(isinstance(one, Mapping) and "text" in one for one in listed):
        return {"answers": [one["text"] for one in listed]}  # NarrativeQA
    return {}


def _paragraphs(row: Row) -> Fields:
    """HotpotQA's and 2WikiMultihopQA's `context`, MuSiQue's `paragraphs` as documents; NarrativeQA's summary."""
    found: Any = row.get("paragraphs", row.get("context"))
    if isinstance(found, str) and found.lstrip().startswith("[["):
        found = as_list(found, "context")
    pairs: list[tuple[str, str]] = []
    if isinstance(found, Mapping) and isinstance(found.get("title"), list):
        texts = found.get("sentences", found.get("content"))
        pairs = [(str(title), _joined(text)) for title, text in zip(found["title"], texts, strict=True)]
    elif isinstance(found, list) and found and all(isinstance(one, list) and len(one) == 2 for one in found):
        pairs = [(str(title), _joined(text)) for title, text in found]
    elif isinstance(found, list) and found and all("paragraph_text" in one for one in found):
        pairs = [(str(one.get("title", "paragraph")), str(one["paragraph_text"])) for one in found]
    if pairs:
        names = ordered_names([file_slug(title) for title, _ in pairs], ".txt")
        documents = {name: text for name, (_, text) in zip(names, pairs, strict=True)}
        return {"documents": documents, "context": None, "paragraphs": None}
    story = row.get("document")
    if isinstance(story, Mapping):
        summary = story.get("summary")
        text = summary.get("text") if isinstance(summary, Mapping) else None
        return {"context": text or story.get("text")}
    return {"context": row["narrative"]} if isinstance(row.get("narrative"), str) else {}


def _joined(text: Any) -> str:
    return "".join(map(str, text)) if isinstance(text, list) else str(text)


def _written_lists(row: Row) -> Fields:
    """MuSR: options as Python writes a list."""
    value = row.get("choices")
    return {"choices": as_list(value, "choices")} if isinstance(value, str) and value.startswith("['") else {}


def as_list(value: str | list[Any], name: str) -> list[Any]:
    """A list, or the JSON or Python text of one. Raises InputError."""
    if isinstance(value, str):
        try:
            value = json.loads(value) if not value.startswith("['") else ast.literal_eval(value)
        except (ValueError, SyntaxError, RecursionError) as error:
            raise InputError(f"{name!r}: {error}") from None
    if not isinstance(value, list):
        raise InputError(f"{name!r} is not a list")
    return value


def _program(row: Row) -> Fields:
    """HumanEval's and MBPP's rows: Python with unit tests, of kind `program`."""
    if isinstance(row.get("test"), str) and isinstance(row.get("entry_point"), str) and "prompt" in row:
        tests = f"{row['test']}\ncheck({row['entry_point']})\n"
        solution = str(row["prompt"]) + str(row["canonical_solution"]) if row.get("canonical_solution") else ""
        asked = f"Complete this Python code; the answer is the whole of it.\n\n{row['prompt']}"
    elif isinstance(row.get("test_list"), list) and row["test_list"]:
        before = [str(row.get("test_setup_code") or ""), *map(str, row.get("test_imports") or [])]
        tests = "\n".join([*filter(None, before), *map(str, row["test_list"])])
        solution = str(row.get("code") or "")
        asked = f"{row.get('text') or row.get('prompt')}\n\nThe code must pass this test: {row['test_list'][0]}"
    else:
        return {}
    return {"question": asked, "answer": json.dumps({"tests": tests, "solution": solution}), "reward": "program"}


READERS: tuple[Callable[[Row], Fields], ...] = (
    _dialogue,
    _verl,
    _instruction,
    _in_parts,
    _nested_question,
    _named_otherwise,
    _distractors,
    _targets,
    _counted_from_one,
    _drop,
    _aliases,
    _paragraphs,
    _written_lists,
    _program,
)

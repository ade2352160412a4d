"""How a row of each evaluation set becomes a Task: `read(where, row, documents)`, one function per set.

A row has the schema of the published set or that of the original release; which one is seen from its fields. Each
raises InputError for a bad row.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sandboxrl.data.benchmarks.documents import named_document
from sandboxrl.data.context import few
from sandboxrl.data.errors import InputError
from sandboxrl.data.files import digest
from sandboxrl.data.formats.fields import json_field
from sandboxrl.data.formats.names import ANSWER, QUESTION
from sandboxrl.data.formats.published import printed_letters
from sandboxrl.data.formats.swebench import swebench_gold
from sandboxrl.data.reading import Row
from sandboxrl.data.task import Task

# ----------------------------------------------------------------------------------------------------- fields of a row


def _text(row: Row, *names: str) -> str:
    """The first of these fields that is there, as text."""
    for name in names:
        value = row.get(name)
        if isinstance(value, str | int | float) and not isinstance(value, bool) and str(value).strip():
            return str(value)
    raise InputError(f"no text in {' or '.join(map(repr, names))}")


def _published(row: Row) -> bool:
    return "problem_statement" in row and "ground_truth" in row


def _published_task(where: str, row: Row, source: str, reward: str, **metadata: Any) -> Task:
    """A row of the published set: `id, domain, problem_statement, ground_truth, input_files`."""
    question, gold = _text(row, "problem_statement"), _text(row, "ground_truth")
    files = json_field(row, "input_files") or {}
    if not isinstance(files, Mapping):
        raise InputError("'input_files' is not an object of names and texts")
    return Task(
        id=str(row.get("id") or digest(question, gold)),
        source=source,
        question=question,
        gold=gold,
        reward=reward,
        # the columns of all rows are merged where it was stored: a null stands for a file of another row
        documents=few({str(name): str(text) for name, text in files.items() if text is not None}),
        metadata=metadata,
    )


# -------------------------------------------------------------------------------------------------------------- readers

_LOST_ESCAPES = {"\x07": "\\a", "\x08": "\\b", "\x0b": "\\v", "\x0c": "\\f", "\t": "\\t", "\r": "\\r"}
_LOST = re.compile(r"[\x07\x08\x0b\x0c](?=[a-z])|\t(?=riangle|imes|ext\b|heta|an\b|o\b|frac)|\r(?=ight|ho\b|angle)")


def restored_latex(text: str) -> str:
    r"""LaTeX whose backslashes were read as escapes: a form feed and `rac` is `\frac` again (AIME25: 18, 19, 27)."""
    return _LOST.sub(lambda match: _LOST_ESCAPES[match[0]], text)


def aime25(where: str, row: Row, documents: Path | None) -> Task:
    if _published(row):
        task = _published_task(where, row, "aime25", "math")
        return replace(task, question=restored_latex(task.question))
    question = restored_latex(_text(row, *QUESTION))
    number = str(row.get("id") or row.get("problem_idx") or digest(question))
    return Task(number, "aime25", question, _text(row, *ANSWER), "math")


def ugphysics(where: str, row: Row, documents: Path | None) -> Task:
    if _published(row):
        named = re.fullmatch(r"ugphysics_(.+)_\d+", str(row.get("id", "")))
        return _published_task(where, row, "ugphysics", "judge_physics", stratum=named[1] if named else "")
    if str(row.get("language", "EN")).upper() != "EN":
        raise InputError("not an English row (the copies of UGPhysics mix languages)")
    subject = str(row.get("subject") or _file_of(where))
    metadata = {"stratum": subject, "solution": str(row.get("solution") or ""), "unit": str(row.get("unit") or "")}
    return Task(
        id=f"{subject}-{row.get('index', digest(_text(row, 'problem')))}",
        source="ugphysics",
        question=_text(row, "problem"),
        gold=_text(row, "answers"),
        reward="judge_physics",
        metadata={key: value for key, value in metadata.items() if value},
    )


def chembench(where: str, row: Row, documents: Path | None) -> Task:
    if _published(row):
        named = re.fullmatch(r"chembench4k_(.+)_\d+", str(row.get("id", "")))
        letters = printed_letters(str(row["problem_statement"])) or "ABCD"
        task = _published_task(where, row, "chembench", "choice", letters=letters, stratum=named[1] if named else "")
        return _checked_letter(task, letters)
    question = _text(row, "question").strip()
    options = tuple(str(row[letter]) for letter in "ABCD" if row.get(letter) is not None)
    if len(options) != 4:
        raise InputError("not four options A to D")
    stratum = _file_of(where).removesuffix("_benchmark")
    gold = _text(row, "answer").strip()
    task = Task(
        digest(question, *options),
        "chembench",
        question,
        gold,
        "choice",
        options=options,
        metadata={"stratum": stratum},
    )
    return _checked_letter(task, "ABCD")


def medxpertqa(where: str, row: Row, documents: Path | None) -> Task:
    if _published(row):
        letters = printed_letters(str(row["problem_statement"])) or "ABCDEFGHIJ"
        return _checked_letter(_published_task(where, row, "medxpertqa", "choice", letters=letters), letters)
    offered = json_field(row, "options")
    if isinstance(offered, list):
        offered = {str(one.get("letter")): str(one.get("content")) for one in offered if isinstance(one, Mapping)}
    if not isinstance(offered, Mapping) or "".join(sorted(offered)) != "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(offered)]:
        raise InputError("'options' are not lettered A, B, C ... without a gap")
    label = row.get("label")
    gold = ", ".join(map(str, label)) if isinstance(label, list) else _text(row, "label")
    question = re.split(r"\n\s*Answer Choices:\s*\(A\)", _text(row, "question"))[0]  # they are shown as options already
    options = tuple(str(offered[letter]) for letter in sorted(offered))
    reward = "choices" if "," in gold else "choice"
    task = Task(str(row.get("id") or digest(question)), "medxpertqa", question, gold, reward, options=options)
    return _checked_letter(task, "".join(task.letters()))


def _checked_letter(task: Task, letters: str) -> Task:
    if not all(part.strip() in letters and len(part.strip()) == 1 for part in task.gold.split(",")):
        raise InputError(f"the answer {task.gold!r} is none of the options {letters}")
    return task


def aa_lcr(where: str, row: Row, documents: Path | None) -> Task:
    if _published(row):
        task = _published_task(where, row, "aa_lcr", "judge_equality")
        if not task.documents:
            raise InputError("'input_files' holds no document")
        return task
    if documents is None:
        raise InputError("the documents of AA-LCR are files: name their folder (--documents DIR)")
    names = [name.strip() for name in _text(row, "data_source_filenames").split(";") if name.strip()]
    folders = [str(row.get(key) or "") for key in ("document_category", "document_set_id")]
    question = _text(row, "question")
    return Task(
        id=str(row.get("question_id") or digest(question)),
        source="aa_lcr",
        question=question,
        gold=_text(row, "answer").replace("\\n", "\n"),
        reward="judge_equality",
        documents={name: named_document(documents, name, folders) for name in names},
    )


def ifbench(where: str, row: Row, documents: Path | None) -> Task:
    checks = json_field(row, "ground_truth") if _published(row) else row
    names, arguments = checks.get("instruction_id_list"), checks.get("kwargs")
    if not isinstance(names, list) or not isinstance(arguments, list) or len(names) != len(arguments) or not names:
        raise InputError("'instruction_id_list' and 'kwargs' are not lists of the same length")
    kept = [{key: value for key, value in (one or {}).items() if value is not None} for one in arguments]
    question = _text(row, "problem_statement", "prompt")
    return Task(
        id=str(row.get("id") or row.get("key") or digest(question)),
        source="ifbench",
        question=question,
        gold=json.dumps({"instruction_id_list": names, "kwargs": kept}, ensure_ascii=False),
        reward="ifbench",
    )


def swebench(where: str, row: Row, documents: Path | None) -> Task:
    name = _text(row, "instance_id")
    official = f"swebench/sweb.eval.x86_64.{name.replace('__', '_1776_').lower()}:latest"
    return Task(
        id=name,
        source="swebench_verified",
        question=_text(row, "problem_statement").replace("\r\n", "\n"),
        gold=json.dumps(swebench_gold(row), ensure_ascii=False),
        reward="tests",
        image=str(row.get("image", row.get("docker_image", official))),  # a user's own row may need none: ""
        metadata={"repository": str(row.get("repo") or ""), "commit": str(row.get("base_commit") or "")},
    )


def _file_of(where: str) -> str:
    return Path(where.rpartition(":")[0]).stem

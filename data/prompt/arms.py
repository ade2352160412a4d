"""Prompts: an arm (one YAML file of `data/prompt/templates/`) and a task make the messages that open a conversation.

    load_arm("paper")                    -> Arm, from data/prompt/templates/paper.yaml; a path to a YAML file works too
    render(task, arm, mode="sandbox")    -> [{"role": "system", ...}, {"role": "user", ...}]

An arm file holds the fields of `Arm` (all but `name`); `extends: other` takes over what it leaves out. Templates are
plain text with these placeholders, each of which is empty where it does not apply:

    {question}   the question
    {options}    the options, one per line: `A. text`
    {examples}   earlier tasks of the same context with their answers
    {folder}     /testbed/documents, when the documents are files in the sandbox
    {files}      the names of those files, one per line
    {documents}  the documents themselves, when they are placed in the prompt (always so in LLM mode)
    {answer}     the note on the form of the answer, from `answers`, by the reward of the task
    {letters}    ` (A, B, C)`: the letters of this row's options; in `answers` too

A paragraph (lines between blank lines) whose placeholders are all empty is left out, heading included; so is a line
that is one empty placeholder. Values are put in once and never read as a template, so braces in a question, a document
or the arm itself are just text.
"""

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sandboxrl.data.errors import InputError, nearest, one_line
from sandboxrl.data.task import REWARDS, Task

MODES = ("sandbox", "llm")
TOOL_SETS = ("paper", "reference", "compact", "none")
FOLDER = "/testbed/documents"
ARM_FOLDER = Path(__file__).parent / "templates"

PLACEHOLDERS = ("question", "options", "examples", "folder", "files", "documents", "answer", "letters")
_PLACEHOLDER = re.compile(r"\{(" + "|".join(PLACEHOLDERS) + r")\}")


@dataclass(frozen=True)
class Arm:
    """One way to put a task to a model."""

    name: str
    task_template: str
    """The user message."""
    answers: Mapping[str, str]
    """Reward kind -> how the answer is to be written. A kind that is missing cannot be asked in this arm."""
    system: str = ""
    """The system message; empty: none is sent."""
    tool_set: str = "paper"
    """Tools offered: `paper`, `reference`, `compact`; `none` makes it an arm of LLM mode."""
    steps_remaining: bool = False
    """Tell the model after each turn how many turns are left."""
    llm: str = "llm"
    """The arm that stands in for this one in LLM mode."""
    description: str = ""

    @property
    def mode(self) -> str:
        return "llm" if self.tool_set == "none" else "sandbox"

    @property
    def digest(self) -> str:
        """Twelve hex digits of everything the model may see of this arm; goes into every result."""
        seen = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "description"}
        return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()[:12]


def arm_names() -> list[str]:
    return sorted(path.stem for path in ARM_FOLDER.glob("*.yaml"))


@functools.cache
def load_arm(name: str) -> Arm:
    """The arm `name` of `data/prompt/templates`, or the one in the YAML file `name`. Raises InputError."""
    row = _read_arm(name, chain=())
    fields = {f.name for f in dataclasses.fields(Arm)}
    for key in row:
        if key not in fields:
            raise InputError(f"arm {name}: unknown key {key!r}{nearest(key, fields)}")
    for key in ("task_template", "answers"):
        if not row.get(key):
            raise InputError(f"arm {name}: {key!r} is missing")
    for key, value in row["answers"].items():
        if key not in REWARDS:
            raise InputError(f"arm {name}: answers: unknown reward {key!r}{nearest(key, REWARDS)}")
        if not isinstance(value, str):
            raise InputError(f"arm {name}: answers: {key!r} must be text, not {value!r}")
    if row.get("tool_set", TOOL_SETS[0]) not in TOOL_SETS:
        raise InputError(f"arm {name}: unknown tool_set {row['tool_set']!r}{nearest(str(row['tool_set']), TOOL_SETS)}")
    return Arm(**row)


def render(task: Task, arm: Arm, mode: str = "sandbox", ask: str | None = None) -> list[dict[str, str]]:
    """OpenAI messages that open the conversation about `task`.

    In LLM mode the arm's `llm` arm speaks and the documents are in the prompt whatever the task's placement: there is
    no computer to put them in. `ask` is how the answer is asked for where the arm does not say. Raises InputError when
    the arm cannot ask this kind of task or does not fit the mode.
    """
    if mode not in MODES:
        raise InputError(f"unknown mode {mode!r}{nearest(mode, MODES)}")
    if mode == "llm" and arm.mode == "sandbox":
        arm = load_arm(arm.llm)
    if arm.mode != mode:
        raise InputError(f"arm {arm.name} offers no tools and cannot be used in {mode} mode")
    note = arm.answers.get(task.reward, ask)
    if note is None:
        raise InputError(f"arm {arm.name} has no answer format for reward {task.reward!r} (task {task.id})")
    values = _values(task, note, mode)
    messages = [{"role": "user", "content": fill(arm.task_template, values)}]
    if system := fill(arm.system, values):
        messages.insert(0, {"role": "system", "content": system})
    return messages


def fill(template: str, values: Mapping[str, str]) -> str:
    """The template with its placeholders replaced, in one pass, without its empty lines and paragraphs."""
    paragraphs = []
    for paragraph in re.split(r"\n[ \t]*\n", template.strip("\n")):
        used = _PLACEHOLDER.findall(paragraph)
        if used and not any(values[name] for name in used):
            continue
        lines = [line for line in paragraph.split("\n") if not _is_empty(line, values)]
        paragraphs.append(_PLACEHOLDER.sub(lambda match: values[match[1]], "\n".join(lines)))
    return "\n\n".join(paragraphs)


def _is_empty(line: str, values: Mapping[str, str]) -> bool:
    alone = _PLACEHOLDER.fullmatch(line.strip())
    return alone is not None and not values[alone[1]]


def show_options(options: tuple[str, ...] | list[str]) -> str:
    """`A. first` and so on, one per line."""
    return "\n".join(f"{chr(ord('A') + i)}. {option}" for i, option in enumerate(options))


def _values(task: Task, note: str, mode: str) -> dict[str, str]:
    inline = mode == "llm" or task.placement == "prompt"
    letters = f" ({', '.join(task.letters())})" if task.options else ""
    names = sorted(task.documents)  # by name, as `ls` shows them, so that both placements tell the same order
    return {
        "question": task.question,
        "options": show_options(task.options),
        "examples": "\n\n".join(f"Question: {question}\nAnswer: {answer}" for question, answer in task.examples),
        "folder": FOLDER if names and not inline else "",
        "files": "" if inline else "\n".join(names),
        "documents": "\n\n".join(_inline(name, task.documents[name]) for name in names) if inline else "",
        "letters": letters,
        "answer": fill(note, dict.fromkeys(PLACEHOLDERS, "") | {"letters": letters}),
    }


def _inline(name: str, text: str) -> str:
    return f'<document name="{name}">\n{text}\n</document>'


def _read_arm(name: str, chain: tuple[str, ...]) -> dict[str, Any]:
    """The merged YAML of an arm and what it extends."""
    if name in chain:
        raise InputError(f"arm {chain[0]}: 'extends' goes round in a circle: {' -> '.join((*chain, name))}")
    path = Path(name) if name.endswith((".yaml", ".yml")) else ARM_FOLDER / f"{name}.yaml"
    try:
        row = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"unknown prompt arm {name!r}{nearest(name, arm_names())}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"prompt arm {path}: {one_line(error)}") from None
    if not isinstance(row, dict) or not isinstance(row.get("answers", {}), dict):
        raise InputError(f"prompt arm {path}: not a mapping of fields")
    if parent := row.pop("extends", ""):
        base = _read_arm(parent, (*chain, name))
        row = {**base, **row, "answers": {**base.get("answers", {}), **row.get("answers", {})}}
    return {**row, "name": path.stem}

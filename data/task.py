"""A Task: what is asked, the documents it is about, and how its answer is graded.

Tasks are frozen data. The gold answer stays on this side: it never enters a sandbox, a prompt or an environment
variable. One task is one JSON object per line; `Task.from_json(task.to_json()) == task`.
"""

import dataclasses
import difflib
import json
import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from sandboxrl.data.errors import InputError, nearest
from sandboxrl.data.plugin import is_own

MISSPELT = 0.85
"""How alike (0 to 1) an unknown reward is to one of REWARDS that is meant."""
PLACEMENTS = ("sandbox", "prompt")
REWARDS = (
    "choice",  # one option letter
    "choices",  # several option letters, set F1
    "rouge",  # free text, ROUGE-L F-measure
    "exact",  # equal after trimming and case folding
    "number",  # equal as a number
    "math",  # math-verify
    "json",  # equal as JSON
    "set",  # a set of texts, F1
    "numbers",  # several numbers in any order, F1
    "near",  # a number within a tolerance
    "program",  # Python code that passes unit tests
    "tests",  # the repository's tests, run in the sandbox
    "judge_physics",  # a judge model compares with the reference solution
    "judge_equality",  # a judge model decides whether two answers are equal
    "judge_rubric",  # a judge model gives points by a rubric
    "ifbench",  # the official instruction-following verifier, loose
)


@dataclass(frozen=True)
class Task:
    id: str
    """Unique within its source."""
    source: str
    """The training source or benchmark it came from, for example `builtin` or `aime25`."""
    question: str
    gold: str
    """The right answer as text; letters joined by `, ` for `choices`; JSON for `ifbench` and `tests`."""
    reward: str
    """One of REWARDS, a name of `grader.kinds`, or a user's own `file.py:object`; the grader knows which there are."""
    documents: dict[str, str] = field(default_factory=dict)
    """File name (relative, may hold `/`) -> text. In `/testbed/documents/` or in the prompt, see `placement`."""
    examples: tuple[tuple[str, str], ...] = ()
    """Earlier tasks of the same context with their answers, in their fixed order; shown in the prompt."""
    options: tuple[str, ...] = ()
    """Texts of the options of a choice task; their letters are A, B, C … by position."""
    placement: str = "sandbox"
    """Where the documents are: `sandbox` (files) or `prompt` (the baseline). Same information either way."""
    image: str = ""
    """Container image of this task alone (software engineering); empty: the recipe's image."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """What a grader or report needs beyond the above. JSON values only."""

    def __post_init__(self) -> None:
        # another name may be one that a recipe's `grader.kinds` has, unless it is all but one of ours
        misspelt = self.reward not in REWARDS and difflib.get_close_matches(self.reward, REWARDS, 1, MISSPELT)
        if misspelt or not (re.fullmatch(r"\w+", self.reward) or is_own(self.reward)):
            raise InputError(f"task {self.id}: unknown reward {self.reward!r}{nearest(self.reward, REWARDS)}")
        if self.placement not in PLACEMENTS:
            raise InputError(
                f"task {self.id}: unknown placement {self.placement!r}{nearest(self.placement, PLACEMENTS)}"
            )
        for name in self.documents:
            if not safe_name(name):
                raise InputError(f"task {self.id}: document name {name!r} would leave /testbed/documents")
            for folder in PurePosixPath(name).parents:
                if str(folder) in self.documents:
                    raise InputError(
                        f"task {self.id}: document {str(folder)!r} is also the folder of document {name!r}"
                    )

    def letters(self) -> tuple[str, ...]:
        return tuple(chr(ord("A") + i) for i in range(len(self.options)))

    def to_json(self) -> str:
        return json.dumps(vars(self), ensure_ascii=False, sort_keys=True)

    @classmethod
    def from_json(cls, line: str) -> "Task":
        """Raises InputError for broken JSON, an unknown or missing key, or a value out of range."""
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"not a JSON object: {error}") from None
        if not isinstance(row, dict):
            raise InputError(f"not a JSON object but a {type(row).__name__}")
        fields = {f.name: f for f in dataclasses.fields(cls)}
        for key in row:
            if key not in fields:
                raise InputError(f"task has an unknown key {key!r}{nearest(key, fields)}")
        for key in ("id", "source", "question", "gold", "reward"):
            if not isinstance(row.get(key), str):
                raise InputError(f"task {row.get('id', '?')}: {key!r} must be text, not {row.get(key)!r}")
        _check_shapes(row)
        row["examples"] = tuple((q, a) for q, a in row.get("examples", ()))
        row["options"] = tuple(row.get("options", ()))
        return cls(**row)


def _check_shapes(row: dict[str, Any]) -> None:
    """The optional fields of a JSON task. Raises InputError."""
    documents, examples, options = row.get("documents", {}), row.get("examples", []), row.get("options", [])
    if not isinstance(documents, dict) or not all(isinstance(text, str) for text in documents.values()):
        raise InputError(f"task {row['id']}: 'documents' must be an object of name -> text")
    if not isinstance(examples, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in examples
    ):
        raise InputError(f"task {row['id']}: 'examples' must be a list of [question, answer]")
    if not isinstance(options, list) or not all(isinstance(text, str) for text in options):
        raise InputError(f"task {row['id']}: 'options' must be a list of texts")
    if not isinstance(row.get("metadata", {}), dict) or not isinstance(row.get("image", ""), str):
        raise InputError(f"task {row['id']}: 'metadata' must be an object and 'image' text")


def safe_name(name: str) -> bool:
    """True if the relative path `name` stays inside its folder and is a plain file name at every level."""
    try:
        return bool(name) and all(
            part not in ("", ".", "..") and "\x00" not in part and len(part.encode()) <= 255 for part in name.split("/")
        )
    except UnicodeEncodeError:  # half of a surrogate pair, or a file name that is not UTF-8
        return False

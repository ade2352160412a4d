"""A context with an ordered list of questions: what rows are turned into, and tasks are built from."""

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from sandboxrl.data.cutting import split_document
from sandboxrl.data.errors import InputError
from sandboxrl.data.prompt.arms import show_options
from sandboxrl.data.task import PLACEMENTS

MAX_DOCUMENTS = 1000
"""A row with more is refused: each would be a file in every sandbox of its trajectories."""
_POLAR = {"yes", "no", "maybe", "true", "false", "none", "unknown"}
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class Question:
    text: str
    gold: str
    """The right answer; letters for the choice kinds."""
    reward: str
    options: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def as_example(self) -> tuple[str, str]:
        return "\n".join(filter(None, (self.text, show_options(self.options)))), self.gold

    @cached_property
    def evidence(self) -> tuple[str, ...]:
        """Texts (`plain`) that answer the question wherever they stand."""
        return tuple(map(plain, self._right))

    @cached_property
    def spelled(self) -> tuple[str, ...]:
        """`evidence`, in every spelling."""
        return tuple({*self.evidence, *(form for text in self._right for form in spellings(text))})

    @property
    def _right(self) -> list[str]:
        if self.options:
            return [option for i, option in enumerate(self.options) if chr(ord("A") + i) in self.gold]
        return [self.gold, *(str(one) for one in self.metadata.get("golds", ()))]


@dataclass(frozen=True)
class Context:
    id: str
    source: str
    """The data set; distractors come from the same one."""
    questions: tuple[Question, ...]
    text: str = ""
    """One document, to be split where it has parts or is long …"""
    documents: Mapping[str, str] = field(default_factory=dict)
    """… or file name -> text, already separate and named; they get no distractors."""
    title: str = ""
    extension: str = ".txt"
    where: str = ""
    """File and line it came from, for reports."""
    lost: tuple[str, ...] = ()
    """What is wrong with questions that were left out."""


@dataclass(frozen=True)
class BuildConfig:
    seed: int = 0
    placement: str = "sandbox"
    """`sandbox` (files) or `prompt`."""
    tasks_per_context: int = 1
    """Test tasks drawn from one context; each has the questions before it as examples."""
    max_examples: int = 0
    """Only the nearest so many earlier questions are shown; 0: all."""
    num_distractors: int = 4
    """Files added to a context that is a single file."""
    max_file_chars: int = 4000
    """A document without headings, chapters or speakers is cut into files of at most so many characters."""
    pool: int = 1024
    """Candidates for distractors kept of each data set."""

    def __post_init__(self) -> None:
        if self.placement not in PLACEMENTS:
            raise InputError(f"unknown placement {self.placement!r}; valid: {', '.join(PLACEMENTS)}")
        for key, low in (
            ("tasks_per_context", 1),
            ("max_examples", 0),
            ("num_distractors", 0),
            ("max_file_chars", 200),
        ):
            if getattr(self, key) < low:
                raise InputError(f"{key}: must be at least {low}, not {getattr(self, key)}")


def few(documents: Mapping[str, str]) -> dict[str, str]:
    """The documents of a row. Raises InputError for more than MAX_DOCUMENTS."""
    if len(documents) > MAX_DOCUMENTS:
        raise InputError(f"{len(documents)} documents in one row, {MAX_DOCUMENTS} are allowed")
    return dict(documents)


def context_files(context: Context, config: BuildConfig) -> dict[str, str]:
    """The files of a context, before distractors. Joined in the order of their names they are the context."""
    if not context.documents and not context.text:
        return {}  # a question that needs none
    if context.documents:
        files = few(context.documents)
    else:
        files = split_document(context.text, config.max_file_chars, context.title, context.extension)
    if not any(text.strip() for text in files.values()):
        raise InputError("the context is empty")
    return files


def plain(text: str) -> str:
    """Words in lower case, one space around each: a phrase stands in a text iff its plain form is a substring."""
    return f" {' '.join(_WORD.findall(text.casefold()))} "


def weak(gold: str) -> bool:
    """Whether a plain gold proves nothing by standing in a text: "yes", a letter, a small number."""
    return len(gold.strip()) < 3 or gold.strip() in _POLAR


_NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
).split()


def spellings(gold: str) -> list[str]:
    """The ways a text may write an answer, each `plain`; none for an answer that proves nothing by standing there."""
    bare = "".join(c for c in unicodedata.normalize("NFKD", gold) if not unicodedata.combining(c))
    forms = {plain(gold), plain(bare), plain(re.sub(r"(?<=\d),(?=\d{3})", "", gold))}
    if gold.strip().isdigit() and int(gold) < len(_NUMBER_WORDS):
        forms.add(f" {_NUMBER_WORDS[int(gold)]} ")
    elif gold.strip().casefold() in _NUMBER_WORDS:
        forms.add(f" {_NUMBER_WORDS.index(gold.strip().casefold())} ")
    elif re.fullmatch(r"\d{4,}", gold.strip()):
        forms.add(plain(f"{int(gold):,}"))
    return [] if weak(plain(gold)) else sorted(form for form in forms - {plain("")} if not weak(form))

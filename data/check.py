"""What can be wrong with a set of tasks, short of grading it: leaks, duplicates, stray characters, missing documents.

    examination = Examination(against)
    for task in tasks: examination.add(task)
    examination.findings      {check -> [Finding]}, every check of CHECKS
    examination.facts()       counts and lengths, for a person

One pass; it holds hashes, not texts.
"""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sandboxrl.data.building import gives_away, shown_before
from sandboxrl.data.context import Question, plain, spellings
from sandboxrl.data.task import Task

NGRAM = 13
"""Words in a row that two texts do not share by chance (as in the GPT-3 paper's appendix C)."""
MAX_UNSUPPORTED = 10
MIN_WORDS = 5
"""A shorter question is too common to be called the same."""

CHECKS = {
    "ids": "ids are unique",
    "duplicates": "no task comes twice",
    "examples": "no example shows the answer",
    "names": "no file name shows the answer",
    "documents": "no document is empty or missing",
    "distractors": "no distractor holds the answer, in whatever spelling",
    "characters": "no control characters",
    "overlap": "nothing in common with the evaluation sets",
}

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_FILE_NAME = re.compile(r"(?<![\w./-])[\w-]+\.(?:txt|csv|tsv|md|json)\b")


@dataclass(frozen=True)
class Finding:
    task_id: str
    detail: str


class Examination:
    def __init__(self, against: Iterable[Task] = ()) -> None:
        """`against`: tasks of evaluation sets that must not appear in what is examined."""
        self.findings: dict[str, list[Finding]] = {check: [] for check in CHECKS}
        self.num_tasks = 0
        self._counts: dict[str, Counter[str]] = {"source": Counter(), "reward": Counter(), "placement": Counter()}
        self._lengths: dict[str, list[int]] = {
            "question, characters": [],
            "gold, characters": [],
            "examples": [],
            "documents": [],
            "documents of a task, characters": [],
        }
        self.unsupported: list[Finding] = []
        """The first tasks whose free answer stands in none of their documents."""
        self._extractive: Counter[bool] = Counter()
        self._ids: set[tuple[str, str]] = set()
        self._seen: dict[bytes, str] = {}
        self._evaluated: dict[int, str] = {}
        for task in against:
            for gram in _grams(plain(task.question)):
                self._evaluated.setdefault(gram, f"{task.source} {task.id}")
        self.num_against = len(set(self._evaluated.values()))

    def add(self, task: Task) -> None:
        self.num_tasks += 1
        self._measure(task)
        question = Question(task.question, task.gold, task.reward, task.options, task.metadata)
        if (task.source, task.id) in self._ids:
            self._found("ids", task, "this id was used before")
        self._ids.add((task.source, task.id))
        if (earlier := self._seen.setdefault(_digest(task), task.id)) != task.id:
            self._found("duplicates", task, f"the same as {earlier}")
        if shown_before(question, task.examples):
            self._found("examples", task, f"an example shows {task.gold!r} or asks the same")
        if gives_away(task.documents, question):
            self._found("names", task, f"{task.gold!r} stands in a name of {sorted(task.documents)[:8]}")
        holding = holders(task)
        if task.metadata.get("num_own_files") == 1 and len(holding) > 1:
            self._found("distractors", task, f"{task.gold!r} stands in {', '.join(holding[:4])}")
        self._count_evidence(task, bool(holding))
        for detail in _document_faults(task):
            self._found("documents", task, detail)
        for where, text in _texts(task):
            if stray := _CONTROL.search(text):
                around = text[max(0, stray.start() - 8) : stray.end() + 8]
                self._found("characters", task, f"{where}: U+{ord(stray[0]):04X} in {around!r}")
        if self._evaluated:
            for where, text in _texts(task):
                shared = next((gram for gram in _grams(plain(text)) if gram in self._evaluated), None)
                if shared is not None:
                    self._found("overlap", task, f"{where}: shares words with {self._evaluated[shared]}")
                    break

    def facts(self) -> list[tuple[str, str]]:
        """(what, numbers) lines."""
        lines = [
            (name, ", ".join(f"{key} {count}" for key, count in counts.most_common()))
            for name, counts in self._counts.items()
        ]
        lines += [(name, _spread(values)) for name, values in self._lengths.items()]
        if total := self._extractive.total():
            share = 100 * self._extractive[True] / total
            lines.append(("free answers that stand in them", f"{share:.1f} % of {total:,}"))
        return lines

    def _count_evidence(self, task: Task, found: bool) -> None:
        """Whether a free answer stands in the documents it is asked about."""
        if not task.documents or task.options or not spellings(task.gold):
            return
        self._extractive[found] += 1
        if not found and len(self.unsupported) < MAX_UNSUPPORTED:
            self.unsupported.append(Finding(task.id, f"{task.gold[:80]!r} stands in none of its documents"))

    def _found(self, check: str, task: Task, detail: str) -> None:
        self.findings[check].append(Finding(task.id, detail))

    def _measure(self, task: Task) -> None:
        for name, counts in self._counts.items():
            counts[getattr(task, name)] += 1
        sizes = (
            len(task.question),
            len(task.gold),
            len(task.examples),
            len(task.documents),
            sum(map(len, task.documents.values())),
        )
        for values, size in zip(self._lengths.values(), sizes, strict=True):
            values.append(size)


def holders(task: Task) -> list[str]:
    """The documents that hold the answer of a question without options, in whatever spelling."""
    forms = [] if task.options else spellings(task.gold)
    if not forms:
        return []
    found = []
    for name, text in sorted(task.documents.items()):
        bare = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
        if any(form in words for form in forms for words in (plain(text), plain(bare))):
            found.append(name)
    return found


def _grams(words: str) -> set[int]:
    """Hashes of all NGRAM words in a row; of the whole text where it is shorter."""
    split = words.split()
    if len(split) < NGRAM:
        return {hash(words)} if len(split) >= MIN_WORDS else set()
    return {hash(gram) for gram in zip(*(split[i:] for i in range(NGRAM)), strict=False)}


def _texts(task: Task) -> Iterable[tuple[str, str]]:
    yield "question", task.question
    yield "gold", task.gold
    for option in task.options:
        yield "option", option
    for pair in task.examples:
        yield "example", "\n".join(pair)
    for name, text in task.documents.items():
        yield "document name", name
        yield f"document {name}", text


def _document_faults(task: Task) -> Iterable[str]:
    for name, text in task.documents.items():
        if not text.strip():
            yield f"{name} is empty"
    if task.documents:
        present = {name.rsplit("/", 1)[-1] for name in task.documents}
        for name in set(_FILE_NAME.findall(task.question)) - present - {"answer.txt"}:
            yield f"the question speaks of {name}, which is not among the documents"


def _digest(task: Task) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in (task.question, *task.options, *sorted(task.documents.values()), task.image):
        digest.update(part.encode("utf-8", "surrogatepass") + b"\x00")
    return digest.digest()


def _spread(values: Sequence[int]) -> str:
    if not values or not max(values):
        return "none"
    ordered = sorted(values)
    return f"median {ordered[len(ordered) // 2]:,}, least {ordered[0]:,}, most {ordered[-1]:,}"

"""General tasks: from a context with an ordered list of questions to Tasks, as the paper builds them (section 4.1).

    several documents, or a long one      separate, sensibly named files (`split_document`)
    a context that is one file            distractor files from the same data set (`Distractors`)
    the questions, in their fixed order   one is the task, those before it are examples in the prompt
    placement                             `sandbox` or `prompt`: the same task, the same bytes

Everything random is a function of (seed, data set, context id), so the same input gives the same bytes in every process
and whatever stands before or after it in the file.
"""

import hashlib
import heapq
import itertools
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from sandboxrl.data.cutting import document_names, split_document
from sandboxrl.data.errors import InputError
from sandboxrl.data.prompt.arms import show_options
from sandboxrl.data.reading import Rejected
from sandboxrl.data.task import PLACEMENTS, Task

MAX_DOCUMENTS = 1000
"""A row with more is refused: each would be a file in every sandbox of its trajectories."""


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
        if self.options:
            right = [option for i, option in enumerate(self.options) if chr(ord("A") + i) in self.gold]
        else:
            right = [self.gold, *(str(one) for one in self.metadata.get("golds", ()))]
        return tuple(map(plain, right))


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


def build_tasks(
    read: Callable[[list[Rejected]], Iterable[Context]], config: BuildConfig, rejected: list[Rejected]
) -> Iterator[Task]:
    """Tasks of the contexts that `read` gives, in their order.

    `read` is called twice, first to choose the candidates for distractors, so nothing but those is held in memory. It
    gets the list for the rows it cannot read. A context that no task can be made of is appended to `rejected` too.
    """
    distractors = Distractors(read([]) if config.num_distractors else (), config)
    for context in read(rejected):
        try:
            yield from _tasks(context, distractors, config)
        except InputError as error:
            rejected.append(Rejected(context.where or f"{context.source} {context.id}", str(error)))


def few(documents: Mapping[str, str]) -> dict[str, str]:
    """The documents of a row. Raises InputError for more than MAX_DOCUMENTS."""
    if len(documents) > MAX_DOCUMENTS:
        raise InputError(f"{len(documents)} documents in one row, {MAX_DOCUMENTS} are allowed")
    return dict(documents)


def context_files(context: Context, config: BuildConfig) -> dict[str, str]:
    """The files of a context, before distractors. Joined in the order of their names they are the context."""
    if context.documents:
        files = few(context.documents)
    else:
        files = split_document(context.text, config.max_file_chars, context.title, context.extension)
    if not any(text.strip() for text in files.values()):
        raise InputError("the context is empty")
    return files


def _tasks(context: Context, distractors: "Distractors", config: BuildConfig) -> Iterator[Task]:
    questions = context.questions
    if not questions:
        raise InputError("the context has no questions")
    rng = random.Random(f"{config.seed}/{context.source}/{context.id}")
    own = context_files(context, config)
    for chosen in _test_questions(questions, config.tasks_per_context, rng):
        question = questions[chosen]
        files = own
        if len(own) == 1 and context.text and config.num_distractors:
            files = distractors.around(context, own, question, rng)
        if gives_away(files, question):
            files = document_names(list(files.values()), [], context.extension)
        first = max(0, chosen - config.max_examples) if config.max_examples else 0
        yield Task(
            id=f"{context.id}/{chosen}" if len(questions) > 1 else context.id,
            source=context.source,
            question=question.text,
            gold=question.gold,
            reward=question.reward,
            documents=files,
            examples=tuple(one.as_example() for one in questions[first:chosen]),
            options=question.options,
            placement=config.placement,
            metadata={**question.metadata, "num_own_files": len(own)},
        )


def _test_questions(questions: Sequence[Question], num: int, rng: random.Random) -> list[int]:
    """Positions of up to `num` test tasks, drawn without those whose answer an earlier question shows."""
    order = rng.sample(range(len(questions)), len(questions))
    fair = (i for i in order if not shown_before(questions[i], [one.as_example() for one in questions[:i]]))
    return sorted(itertools.islice(fair, num))  # the first question has no examples, so there is always one


def shown_before(question: Question, examples: Iterable[tuple[str, str]]) -> bool:
    """True if an example asks the same question, or a telling answer stands in one word for word."""
    asked = plain(question.as_example()[0])
    telling = [gold for gold in question.evidence if len(gold.split()) >= MIN_TELLING_WORDS]
    for text, answer in examples:
        shown = plain(text)
        if shown == asked or any(gold in shown or gold in plain(answer) for gold in telling):
            return True
    return False


def gives_away(files: Iterable[str], question: Question) -> bool:
    """True if a file name holds the answer."""
    words = [plain(name.replace("_", " ")) for name in files]
    return any(gold in name for gold in question.evidence if not weak(gold) for name in words)


# ---------------------------------------------------------------------------------------------------------- distractors

MIN_TELLING_WORDS = 3
"""An answer of fewer words ("yes", "two years") may stand in an earlier question by chance."""
MAX_SHARED = 0.2
"""Two texts that share more than this part of the smaller one's four-word sequences are near-duplicates."""
MAX_ASKED = 0.75
"""A file that holds this part of a question's content words may answer it."""
_POLAR = {"yes", "no", "maybe", "true", "false", "none", "unknown"}
_WORD = re.compile(r"[^\W_]+")
_COMMON = frozenset(
    "about after also been before could does from have here into just many more most much only other over same shall "
    "should some such than that their them then there these they this those through under very want were what when "
    "where which while whom whose will with would your".split()
)


def plain(text: str) -> str:
    """Words in lower case, one space around each: a phrase stands in a text iff its plain form is a substring."""
    return f" {' '.join(_WORD.findall(text.casefold()))} "


def weak(gold: str) -> bool:
    """Whether a plain gold proves nothing by standing in a text: "yes", a letter, a small number."""
    return len(gold.strip()) < 3 or gold.strip() in _POLAR


def sketch(plain_text: str) -> frozenset[int]:
    """Hashes of about a quarter of the four-word sequences: of those whose first letter has a code that 4 divides, so
    that it is the same quarter in every text and sketches of texts of any two lengths compare (after Broder 1997).
    Hashes of this process: they are compared and never written down."""
    words = plain_text.split()
    last = max(len(words) - 4, 0)
    chosen = [i for i, word in enumerate(words[: last + 1]) if not ord(word[0]) & 3] or range(last + 1)
    return frozenset([hash(tuple(words[i : i + 4])) for i in chosen])


def near_duplicates(a: frozenset[int], b: frozenset[int]) -> bool:
    return len(a & b) > MAX_SHARED * min(len(a), len(b))


@dataclass(frozen=True)
class _Candidate:
    context_id: str
    title: str
    text: str
    words: str
    sketch: frozenset[int]


class Distractors:
    """Per data set a bounded, seeded sample of files to draw from: those with the smallest keyed hash of their id.

    The sample depends on the set of contexts, not on their order. A draw looks at a few dozen candidates at most, so
    the cost of a task does not grow with the data set.
    """

    def __init__(self, contexts: Iterable[Context], config: BuildConfig) -> None:
        self._config = config
        smallest: dict[str, list[tuple[int, str, str, str]]] = {}
        for context in contexts:
            digest = hashlib.blake2b(f"{config.seed}/{context.id}".encode(), digest_size=8).digest()
            key = -int.from_bytes(digest)  # negative: heapq keeps the smallest at hand, and the largest hash must go
            heap = smallest.setdefault(context.source, [])
            if len(heap) >= config.pool and (key, context.id) <= heap[0][:2]:
                continue
            try:
                files = list(context_files(context, config).values())
            except InputError:
                continue  # reported when its own turn comes
            entry = (key, context.id, context.title, files[-key % len(files)])
            if len(heap) < config.pool:
                heapq.heappush(heap, entry)
            else:
                heapq.heapreplace(heap, entry)
        self._pools = {source: [_candidate(*one[1:]) for one in sorted(heap)] for source, heap in smallest.items()}

    def around(
        self, context: Context, own: Mapping[str, str], question: Question, rng: random.Random
    ) -> dict[str, str]:
        """The one file of `own` among distractors, under names that do not tell it apart."""
        text = next(iter(own.values()))
        files = [(context.title, text), *self.draw(context.source, context.id, text, question, rng)]
        rng.shuffle(files)
        return document_names([text for _, text in files], [title for title, _ in files], context.extension)

    def draw(
        self, source: str, context_id: str, text: str, question: Question, rng: random.Random
    ) -> list[tuple[str, str]]:
        """(title, text) of up to `num_distractors` files, none of which answers the question, nearly repeats `text`,
        or nearly repeats another one drawn."""
        pool = self._pools.get(source, [])
        wanted = self._config.num_distractors
        taken: list[_Candidate] = []
        seen = [sketch(plain(text))]
        asked = [word for word in set(plain(question.text).split()) if len(word) > 3 and word not in _COMMON]
        tried: set[int] = set()
        for _ in range(8 * wanted if pool else 0):
            i = rng.randrange(len(pool))
            if i in tried:
                continue
            tried.add(i)
            one = pool[i]
            if (
                one.context_id != context_id
                and not may_answer(one.words, question.evidence, asked)
                and not any(near_duplicates(one.sketch, other) for other in seen)
            ):
                taken.append(one)
                seen.append(one.sketch)
                if len(taken) == wanted:
                    break
        return [(one.title, one.text) for one in taken]


def may_answer(words: str, answers: Sequence[str], asked: Sequence[str]) -> bool:
    """Whether a text (plain) holds an answer, or so much of the question that it may. `asked`: its content words."""
    telling = [answer for answer in answers if not weak(answer)]
    if any(answer in words for answer in telling):
        return True
    shared = sum(f" {word} " in words for word in asked)
    return len(asked) > 1 and shared >= (MAX_ASKED if telling else MAX_ASKED / 2) * len(asked)


def _candidate(context_id: str, title: str, text: str) -> _Candidate:
    words = plain(text)
    return _Candidate(context_id, title, text, words, sketch(words))

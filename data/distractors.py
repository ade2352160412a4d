"""Distractors: files of the same data set that stand beside a task's own and do not answer its question."""

import hashlib
import heapq
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sandboxrl.data.context import BuildConfig, Context, Question, context_files, plain, weak
from sandboxrl.data.cutting import document_names
from sandboxrl.data.errors import InputError

MAX_SHARED = 0.2
"""Two texts that share more than this part of the smaller one's four-word sequences are near-duplicates."""
MAX_ASKED = 0.75
"""A file that holds this part of a question's content words may answer it."""
_COMMON = frozenset(
    "about after also been before could does from have here into just many more most much only other over same shall "
    "should some such than that their them then there these they this those through under very want were what when "
    "where which while whom whose will with would your".split()
)


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
            if not files:
                continue
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
                and not may_answer(one.words, question.spelled, asked)
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

"""The built-in corpus: context-based tasks generated from a seed, in four sizes from `tiny` to `hard`.

    build("tiny", "train", num_tasks=512, seed=0) -> list[Task]

Each task comes with a small world of its own, told by several files of which most are distractors; the questions need
search, copying, counting or the combination of two files, and are graded by five kinds of reward. `tiny` (`key=value`
lines, one look-up) can be learned by a model of a million parameters; the other sizes are a museum's store books in
prose.

A document belongs to the split that its own SHA-256 names, so no two splits can share one, whatever the seeds. Texts
depend on the arguments alone: not on the process, the hash seed or the number of tasks asked for.
"""

import hashlib
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from sandboxrl.data.errors import InputError, nearest
from sandboxrl.data.task import Task

SPLITS = {"train": range(8), "validation": range(8, 9), "heldout": range(9, 10)}
"""Split -> the buckets, of ten, whose documents are its own."""

KEYS = tuple(
    """
    acorn alder almond amber anvil apron arch atlas bamboo barley basket beaver bell berry boat bonnet brick broom
    button candle canoe carpet carrot castle chalk cheese chisel cloud clover coin comet copper cork crown daisy
    donkey drum eagle elm falcon feather fern fiddle flute forest fox garlic ginger goose grape hammer harbor hazel
    heron honey island ivy jacket jar kettle kite ladder lake lantern lemon lily lion magnet maple marble meadow
    melon mill mirror nest oak olive onion otter owl paper pearl pepper piano pine plum pond quilt rabbit raven
    ribbon river rose saddle
    """.split()
)
NOTE_WORDS = tuple(
    """
    black blue brown clean cold dark dry empty flat full green heavy large light long new old pale plain red round
    short small soft tall thick thin warm wet white wide young
    """.split()
)
TINY_FILES = ("east.txt", "north.txt", "south.txt", "west.txt")
LETTERS = "ABCD"


@dataclass(frozen=True)
class Question:
    """A question with its gold answer; becomes a Task, or an earlier example of one."""

    form: str
    text: str
    gold: str
    reward: str
    options: tuple[str, ...] = ()


Facts = TypeVar("Facts")
World = tuple[dict[str, str], Callable[[random.Random], Question]]
"""The documents, and a source of questions about them."""


def build(size: str, split: str, num_tasks: int, seed: int) -> list[Task]:
    """The first `num_tasks` tasks of an endless list that (size, split, seed) names. Raises InputError."""
    if size not in SIZES:
        raise InputError(f"unknown built-in size {size!r}{nearest(size, SIZES)}")
    if split not in SPLITS:
        raise InputError(f"unknown split {split!r}{nearest(split, SPLITS)}")
    if num_tasks < 0:
        raise InputError(f"num_tasks must be 0 or more, not {num_tasks}")
    return [_task(size, split, seed, index) for index in range(num_tasks)]


def split_of(document: str) -> str:
    """The only split that may contain this text."""
    bucket = hashlib.sha256(document.encode()).digest()[0] % 10
    return next(split for split, buckets in SPLITS.items() if bucket in buckets)


def _task(size: str, split: str, seed: int, index: int) -> Task:
    rng = random.Random(f"{size}/{split}/{seed}/{index}")  # a text seed: hashed by SHA-512, not by hash()
    world, num_examples = SIZES[size]
    documents, ask = world(rng, split)
    asked: dict[str, Question] = {}  # by text: an example never gives the answer away
    while len(asked) < 1 + num_examples:
        question = ask(rng)
        asked.setdefault(question.text, question)
    question, *earlier = asked.values()
    return Task(
        id=f"{size}-{split}-{seed}-{index}",
        source="builtin",
        question=question.text,
        gold=question.gold,
        reward=question.reward,
        documents=documents,
        examples=tuple((_with_options(example), example.gold) for example in earlier),
        options=question.options,
        metadata={"size": size, "split": split, "form": question.form},
    )


def _with_options(question: Question) -> str:
    lines = [f"{chr(ord('A') + i)}. {option}" for i, option in enumerate(question.options)]
    return "\n".join([question.text, *lines])


def _document(split: str, draw: Callable[[], tuple[str, Facts]]) -> tuple[str, Facts]:
    """Draw (text, what it states) until the text belongs to the split: ten times on average for the small splits."""
    while True:
        text, facts = draw()
        if split_of(text) == split:
            return text, facts


# ---- tiny: `key=value` lines, one look-up


def _tiny(rng: random.Random, split: str) -> World:
    """Three files of three lines; every key once, so that one search finds one line."""
    keys = iter(rng.sample(KEYS, 9))
    documents: dict[str, str] = {}
    questions: list[Question] = []

    def draw(own_keys: Sequence[str]) -> tuple[str, list[Question]]:
        facts = [_tiny_fact(rng, key) for key in own_keys]
        return "".join(f"{key}={fact.gold}\n" for key, fact in zip(own_keys, facts, strict=True)), facts

    for name in sorted(rng.sample(TINY_FILES, 3)):
        documents[name], facts = _document(split, partial(draw, [next(keys) for _ in range(3)]))
        questions += facts
    return documents, lambda rng: rng.choice(questions)


def _tiny_fact(rng: random.Random, key: str) -> Question:
    gates = tuple(f"gate {letter}" for letter in LETTERS)
    form = rng.choice(("code", "gate", "gates", "note"))
    if form == "code":
        return Question(form, f"What is the code of {key}?", str(rng.randrange(1000, 10000)), "number")
    if form == "gate":
        return Question(form, f"Which gate is that of {key}?", rng.choice(LETTERS), "choice", gates)
    if form == "gates":
        letters = sorted(rng.sample(LETTERS, rng.choice((2, 3))))
        return Question(form, f"Which gates are those of {key}?", ", ".join(letters), "choices", gates)
    return Question(form, f"What is the note on {key}?", " ".join(rng.sample(NOTE_WORDS, 3)), "rouge")


# ---- easy, medium, hard: the store books of a museum

ROOMS = (
    "north loft, south loft, long gallery, boat shed, clock tower, dry cellar, wet cellar, map room, west annex, "
    "east annex, glass house, gate house, old stable, print room"
).split(", ")
PEOPLE = (
    "Ada Brandt, Basil Okoro, Clara Wynn, Dario Lund, Edith Marsh, Farid Nasser, Greta Holm, Hugo Pires, Ines Moor, "
    "Jonas Kettle, Kira Vance, Leo Hartog, Mona Sato, Nils Arden, Olga Reyes, Piet Zander"
).split(", ")
COLOURS = (
    "amber ashen azure bronze cobalt coral cream crimson ebony emerald golden grey indigo ivory russet scarlet "
    "silver violet"
).split()
FLAWS = (
    "a cracked handle, a missing pin, a bent hinge, a torn label, a loose lid, a faded stripe, a chipped rim, "
    "a split seam, a rusted nail, a scratched base, a worn strap, a patched corner, a dented side, a broken clasp, "
    "a water stain, a burn mark"
).split(", ")
ENTRIES = (
    "The {name} came in {year}, weighs {weight} kg and is in the care of {keeper}. Note: {note}.",
    "In {year} the stores took in the {name} ({weight} kg); {keeper} looks after it. Note: {note}.",
    "{keeper} keeps the {name}, a piece of {weight} kg that arrived in {year}. Note: {note}.",
)
REMARKS = (
    "{keeper} asked again for a new lamp and mentioned the {name}.",
    "The visitors of Tuesday liked the {name} best of all.",
    "{keeper} would rather not move the {name} before the spring.",
    "A drawing of the {name} was lent to the school and came back.",
)


@dataclass(frozen=True)
class Thing:
    """One piece in the stores."""

    name: str
    room: str
    keeper: str
    year: int
    weight: int
    note: str


@dataclass(frozen=True)
class Stores:
    """What is true in one world."""

    things: tuple[Thing, ...]
    rooms: tuple[str, ...]
    people: tuple[str, ...]
    telephones: dict[str, str]

    def kept_by(self, person: str) -> list[Thing]:
        return [thing for thing in self.things if thing.keeper == person]


def _museum(
    num_rooms: int, num_things: int, num_people: int, num_distractors: int, forms: Sequence[str]
) -> Callable[[random.Random, str], World]:
    """A maker of worlds: one store book a room, a staff list, and distractors (books of things that have left the
    stores, and letters that name things and people but state nothing)."""

    def world(rng: random.Random, split: str) -> World:
        rooms, people = rng.sample(ROOMS, num_rooms), rng.sample(PEOPLE, num_people)
        all_names = [f"{colour} {key}" for colour in COLOURS for key in KEYS]
        names = iter(rng.sample(all_names, num_rooms * num_things + num_distractors * 6))
        documents: dict[str, str] = {}
        things: list[Thing] = []

        def book(title: str, room: str, num: int) -> tuple[str, list[Thing]]:
            own_names = [next(names) for _ in range(num)]

            def draw() -> tuple[str, list[Thing]]:
                rows = [_thing(rng, name, room, people) for name in own_names]
                return _page(title, (_entry(rng, thing) for thing in rows)), rows

            return _document(split, draw)

        for number, room in enumerate(rooms, start=1):  # the room may be asked for: its name is in the book, not on it
            documents[f"stores/book_{number}.txt"], rows = book(f"Store book of the {room}", room, num_things)
            things += rows
        documents["staff.txt"], telephones = _document(split, lambda: _staff(rng, people))
        for number in range(1, num_distractors + 1):
            if number % 2:
                title = "These things have left the stores and are no longer counted"
                documents[f"archive/left_{number}.txt"], _ = book(title, "", 6)
            else:
                own_names = [next(names) for _ in range(6)]
                documents[f"letters/letter_{number}.txt"], _ = _document(
                    split, partial(_letter, rng, own_names, people)
                )
        stores = Stores(tuple(things), tuple(rooms), tuple(people), telephones)
        return documents, lambda rng: _ask(rng, stores, forms)

    return world


def _page(title: str, lines: Iterable[str]) -> str:
    return "\n".join([title, "", *lines]) + "\n"


def _thing(rng: random.Random, name: str, room: str, people: Sequence[str]) -> Thing:
    note = " and ".join(rng.sample(FLAWS, 2))
    return Thing(name, room, rng.choice(people), rng.randrange(1870, 1970), rng.randrange(2, 90), note)


def _entry(rng: random.Random, thing: Thing) -> str:
    return rng.choice(ENTRIES).format(
        name=thing.name, year=thing.year, weight=thing.weight, keeper=thing.keeper, note=thing.note
    )


def _staff(rng: random.Random, people: Sequence[str]) -> tuple[str, dict[str, str]]:
    """The staff list and the telephone number of each person."""
    telephones = {person: str(rng.randrange(1000, 10000)) for person in people}
    rows = (f"{person} sits in office {rng.randrange(1, 40)}, telephone {telephones[person]}." for person in people)
    return _page("Staff of the stores", rows), telephones


def _letter(rng: random.Random, names: Iterable[str], people: Sequence[str]) -> tuple[str, None]:
    """A distractor that names things and people but states nothing."""
    remarks = [rng.choice(REMARKS).format(name=name, keeper=rng.choice(people)) for name in names]
    return _page("Dear friend,", [*remarks, "", f"Yours, {rng.choice(people)}"]), None


def _ask(rng: random.Random, stores: Stores, forms: Sequence[str]) -> Question:
    form = rng.choice(forms)
    return FORMS[form](rng, stores, form)


def _ask_weight(rng: random.Random, stores: Stores, form: str) -> Question:
    thing = rng.choice(stores.things)
    return Question(form, f"How many kilograms does the {thing.name} weigh?", str(thing.weight), "number")


def _ask_room(rng: random.Random, stores: Stores, form: str) -> Question:
    thing = rng.choice(stores.things)
    return Question(form, f"In which room of the stores is the {thing.name}? Name the room only.", thing.room, "exact")


def _ask_keeper(rng: random.Random, stores: Stores, form: str) -> Question:
    thing = rng.choice(stores.things)
    others = rng.sample([person for person in stores.people if person != thing.keeper], 3)
    options = tuple(rng.sample([thing.keeper, *others], 4))
    gold = chr(ord("A") + options.index(thing.keeper))
    return Question(form, f"In whose care is the {thing.name}?", gold, "choice", options)


def _ask_note(rng: random.Random, stores: Stores, form: str) -> Question:
    thing = rng.choice(stores.things)
    return Question(form, f"What does the note on the {thing.name} say?", thing.note, "rouge")


def _ask_count(rng: random.Random, stores: Stores, form: str) -> Question:
    room, year = rng.choice(stores.rooms), rng.randrange(1890, 1960, 10)
    gold = sum(thing.room == room and thing.year < year for thing in stores.things)
    return Question(form, f"How many things in the {room} came before {year}?", str(gold), "number")


def _ask_telephone(rng: random.Random, stores: Stores, form: str) -> Question:
    thing = rng.choice(stores.things)
    text = f"Which telephone number has the person who looks after the {thing.name}?"
    return Question(form, text, stores.telephones[thing.keeper], "number")


def _ask_heaviest(rng: random.Random, stores: Stores, form: str) -> Question:
    by_weight = {thing.weight: thing for thing in rng.sample(stores.things, len(stores.things))}
    chosen = rng.sample(sorted(by_weight), 4)  # four different weights, so one is the heaviest
    options = tuple(by_weight[weight].name for weight in chosen)
    return Question(
        form, "Which of these weighs the most?", chr(ord("A") + chosen.index(max(chosen))), "choice", options
    )


def _ask_kept_by(rng: random.Random, stores: Stores, form: str) -> Question:
    person = rng.choice([person for person in stores.people if stores.kept_by(person)])
    right = stores.kept_by(person)
    right = rng.sample(right, min(len(right), rng.randint(1, 3)))
    wrong = rng.sample([thing for thing in stores.things if thing.keeper != person], 5 - len(right))
    options = rng.sample([*right, *wrong], 5)
    gold = ", ".join(chr(ord("A") + i) for i, thing in enumerate(options) if thing.keeper == person)
    text = f"Which of these are in the care of {person}?"
    return Question(form, text, gold, "choices", tuple(thing.name for thing in options))


def _ask_total(rng: random.Random, stores: Stores, form: str) -> Question:
    thing = rng.choice(stores.things)
    total = sum(one.weight for one in stores.kept_by(thing.keeper) if one.room == thing.room)
    text = f"How many kilograms do the things in the {thing.room} weigh together that {thing.keeper} looks after?"
    return Question(form, text, str(total), "number")


FORMS: dict[str, Callable[[random.Random, Stores, str], Question]] = {
    "weight": _ask_weight,  # search and copy
    "room": _ask_room,
    "keeper": _ask_keeper,
    "note": _ask_note,
    "count": _ask_count,  # count in one file
    "telephone": _ask_telephone,  # combine two files
    "heaviest": _ask_heaviest,  # combine up to four
    "kept_by": _ask_kept_by,
    "total": _ask_total,  # search, select and add
}

EASY = ("weight", "room", "keeper", "note")
MEDIUM = (*EASY, "count", "telephone", "kept_by")
HARD = ("note", "count", "telephone", "heaviest", "kept_by", "total")

SIZES: dict[str, tuple[Callable[[random.Random, str], World], int]] = {
    "tiny": (_tiny, 0),
    "easy": (_museum(3, 4, 5, 1, EASY), 1),
    "medium": (_museum(6, 15, 8, 4, MEDIUM), 2),
    "hard": (_museum(12, 40, 14, 10, HARD), 3),
}
"""Size -> (maker of worlds, number of earlier tasks shown as examples)."""

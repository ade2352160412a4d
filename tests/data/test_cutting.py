"""Splitting: the files together are the document, in the order of their names, under sensible names."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxrl.data.cutting import MAX_FILES, document_names, file_slug, ordered_names, split_document
from sandboxrl.data.task import safe_name

LINES = st.sampled_from(
    [
        "# Title",
        "## Methods and data",
        "## Results",
        "Chapter 3: The Return",
        "CHAPTER IV",
        "== History ==",
        "=== Early years ===",
        "1. Introduction",
        "2.1 Apparatus",
        "CONCLUSIONS",
        "BACKGROUND: it was known",
        "Anna: hello there",
        "Bob: and good day",
        "",
        "\r",
        "A sentence of some length that says little. Another one follows it! And a third?",
        "Ein Absatz über Äpfel, 日本語の文です。 next",
        "x" * 300,
        "\u2028\u0085\x0c",
    ]
)
DOCUMENTS = st.lists(LINES, max_size=60).map("\n".join) | st.text(max_size=3000)


@given(DOCUMENTS, st.integers(200, 1500), st.sampled_from(["", "The Title", "日本", "../../etc/passwd", "\x00"]))
@settings(max_examples=300, deadline=None)
def test_the_files_in_the_order_of_their_names_are_the_document(text: str, max_chars: int, title: str) -> None:
    files = split_document(text, max_chars, title)
    assert "".join(files[name] for name in sorted(files)) == text
    assert list(files) == sorted(files)
    assert all(safe_name(name) and "/" not in name for name in files)
    assert len(files) == 1 or all(files.values()), "no empty part"
    assert len(files) <= MAX_FILES + 1
    assert split_document(text, max_chars, title) == files


@given(st.text(min_size=1, max_size=5000), st.integers(200, 900))
def test_parts_by_size_are_within_the_size(text: str, max_chars: int) -> None:
    flat = text.replace("\n", " ").replace(":", ";")  # no headings and no speakers
    files = split_document(flat, max_chars)
    assert all(len(part) <= max_chars for part in files.values())


BODY = "This is the text of the section, long enough to be one. " * 3 + "\n"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (f"# Introduction\n{BODY}# Methods\n{BODY}# Results\n{BODY}", ["introduction", "methods", "results"]),
        (f"# A Study\n## Methods\n{BODY}## Discussion\n{BODY}", ["1_a_study", "2_methods", "3_discussion"]),
        (f"Abstract first.\n{BODY}1. Introduction\n{BODY}2. Methods\n{BODY}", ["beginning", "introduction", "methods"]),
        (f"Chapter 1\n{BODY}Chapter 2\n{BODY}Chapter 10\n{BODY}", ["1_chapter_1", "2_chapter_2", "3_chapter_10"]),
        (f"BACKGROUND: {BODY}METHODS: {BODY}RESULTS: {BODY}", ["background", "methods", "results"]),
        (f"== History ==\n{BODY}== Geography ==\n{BODY}", ["1_history", "2_geography"]),
        ("Just one paragraph.", ["document"]),
        (f"{BODY}\n\n" * 20, [f"part_{i}" for i in range(1, 5)]),
    ],
)  # fmt: skip
def test_names_say_what_is_in_the_file(text: str, names: list[str]) -> None:
    assert list(split_document(text, 1000)) == [f"{name}.txt" for name in names]


def test_a_dialogue_is_cut_between_turns() -> None:
    text = "".join(f"{'Anna' if i % 2 else 'Bob'}: this is what I say in turn {i}, my friend\n" for i in range(40))
    files = split_document(text, 700)
    assert list(files) == ["turns_01_15.txt", "turns_16_30.txt", "turns_31_40.txt"]
    assert all(part.startswith(("Anna:", "Bob:")) for part in files.values())


def test_lists_and_plays_are_not_taken_for_sections() -> None:
    numbered = "\n".join(f"{i}. Take the next bag of flour" for i in range(1, 9))
    play = "\n".join(
        f"{'HAMLET' if i % 2 else 'HORATIO'}\nWords that are spoken on the stage by somebody" for i in range(9)
    )
    assert list(split_document(numbered, 4000)) == ["document.txt"]
    assert list(split_document(play, 4000)) == ["document.txt"]


def test_thousands_of_headings_become_few_files_and_nothing_is_lost() -> None:
    text = "".join(f"# Section {i}\n{BODY}" for i in range(3000))
    files = split_document(text, 4000)
    assert len(files) <= MAX_FILES and "".join(files.values()) == text


@given(st.lists(st.text(max_size=30), min_size=1, max_size=30))
def test_names_are_distinct_safe_and_in_order(titles: list[str]) -> None:
    names = ordered_names(titles, ".txt")
    assert names == sorted(set(names)) and all(map(safe_name, names))
    unordered = document_names([str(i) for i in range(len(titles))], titles, ".csv")
    assert list(unordered.values()) == [str(i) for i in range(len(titles))]


@given(st.text(max_size=200))
def test_a_slug_is_short_and_plain(text: str) -> None:
    slug = file_slug(text)
    assert len(slug) <= 40 and (not slug or safe_name(slug)) and file_slug(slug) == slug

"""Cut one document into sensibly named files, and name files.

    split_document(text, max_chars) -> {"01_introduction.txt": ..., "02_methods.txt": ...}

Cut at chapters, else at headings, else at the labels of a structured abstract; else, where the text is longer than
`max_chars`, between speaker turns or between paragraphs. Two properties hold always: sorted by name the files are in
the order of the document, and joined in that order they are the document, byte for byte.
"""

import itertools
import re
import unicodedata
from collections.abc import Sequence

from sandboxrl.data.task import safe_name

MAX_FILES = 99
_MIN_SECTION = 80
"""Headings that leave fewer characters between them on average are the lines of a list."""

_NUMERAL = r"(?:\d+|[ivxlcdm]+|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve)"
_CHAPTER = re.compile(
    rf"^[ \t]*(?:chapter|part|book|act|scene|canto|stave|letter)[ \t]+{_NUMERAL}\b[^\n]{{0,80}}$", re.I | re.M
)
_MARKDOWN = re.compile(r"^(#{1,6})[ \t]+(\S[^\n]*)$", re.M)
_WIKI = re.compile(r"^(={2,5})[ \t]*+([^=\s][^=\n]{0,80}?)[ \t]*+={2,5}[ \t]*+$", re.M)
_NUMBERED = re.compile(r"^\d{1,2}(?:\.\d{1,2})*\.?[ \t]+([A-Z][^\n.!?]{2,60})$", re.M)
_CAPITALS = re.compile(r"^([A-Z][A-Z0-9 ,'&/-]{3,60})$", re.M)
_LABEL = re.compile(r"^([A-Z][A-Z &/]{3,40}):", re.M)
_TURN = re.compile(r"^([A-Z][\w.'-]{0,20}(?: [A-Z][\w.'-]{0,20}){0,2})[ \t]*:[ \t]", re.M)
_PARAGRAPH, _LINE, _SENTENCE, _SPACE = (
    re.compile(p) for p in (r"\n[ \t]*\n+", r"\n", r"[.!?。！？][\"')\]]*\s+", r"\s+")
)

Cut = tuple[int, str]
"""Where a part begins, and its title."""


def split_document(text: str, max_chars: int, title: str = "", extension: str = ".txt") -> dict[str, str]:
    """File name -> part. A document that needs no cutting is one file, named after `title`."""
    cuts = sections(text)
    if not cuts and len(text) > max_chars:
        cuts = speaker_turns(text, max_chars) or by_size(text, max_chars)
    if not cuts:
        return document_names([text], [title], extension)
    cuts = _merge(cuts)
    starts = [start for start, _ in cuts]
    parts = [text[a:b] for a, b in itertools.pairwise([*starts, len(text)])]
    return dict(zip(ordered_names([name for _, name in cuts], extension), parts, strict=True))


def sections(text: str) -> list[Cut]:
    """Cuts at the headings of the first kind of which the text has two or more; what stands before is a part too."""
    if "\n" not in text:
        return []
    for found in (_chapters, _markdown, _wiki, _headings, _labels):
        cuts = found(text)
        if len(cuts) >= 2 and len(text) >= _MIN_SECTION * len(cuts):
            return cuts if not text[: cuts[0][0]].strip() else [(0, "beginning"), *cuts]
    return []


def speaker_turns(text: str, max_chars: int) -> list[Cut]:
    """Cuts between turns of a dialogue (`Name: ...`), as many turns in a file as `max_chars` allows."""
    turns = list(_TURN.finditer(text))
    lines = sum(1 for line in text.split("\n") if line.strip())
    speakers = {turn[1] for turn in turns}
    if len(turns) < 6 or len(turns) < 0.5 * lines or len(speakers) > len(turns) / 2:
        return []
    groups: list[list[int]] = [[0]]
    for i in range(1, len(turns)):
        end = turns[i + 1].start() if i + 1 < len(turns) else len(text)
        if end - turns[groups[-1][0]].start() > max_chars:
            groups.append([])
        groups[-1].append(i)
    if len(groups) < 2:
        return []
    width = len(str(len(turns)))
    names = [f"turns {group[0] + 1:0{width}}-{group[-1] + 1:0{width}}" for group in groups]
    return [(turns[group[0]].start() if group[0] else 0, name) for group, name in zip(groups, names, strict=True)]


def by_size(text: str, max_chars: int) -> list[Cut]:
    """Cuts of at most `max_chars`, at the end of a paragraph if the second half of the part has one, else of a line,
    a sentence, a word; else anywhere."""
    cuts = [0]
    while len(text) - cuts[-1] > max_chars:
        low, high = cuts[-1] + max_chars // 2, cuts[-1] + max_chars
        for pattern in (_PARAGRAPH, _LINE, _SENTENCE, _SPACE):
            ends = [match.end() for match in pattern.finditer(text, low, high)]
            if ends:
                high = ends[-1]
                break
        cuts.append(high)
    return [(start, "part") for start in cuts]


def _chapters(text: str) -> list[Cut]:
    return [(match.start(), match[0]) for match in _CHAPTER.finditer(text)]


def _markdown(text: str) -> list[Cut]:
    return _shallowest([(len(match[1]), match.start(), match[2]) for match in _MARKDOWN.finditer(text)])


def _wiki(text: str) -> list[Cut]:
    return _shallowest([(len(match[1]), match.start(), match[2]) for match in _WIKI.finditer(text)])


def _shallowest(headings: list[tuple[int, int, str]]) -> list[Cut]:
    """Headings down to the first level that has two: a lone title above them makes no part of its own."""
    for depth in sorted({level for level, _, _ in headings}):
        cuts = [(start, title) for level, start, title in headings if level <= depth]
        if sum(level == depth for level, _, _ in headings) >= 2:
            return cuts
    return []


def _headings(text: str) -> list[Cut]:
    found = sorted((match.start(), match[1]) for pattern in (_NUMBERED, _CAPITALS) for match in pattern.finditer(text))
    return found if len({title for _, title in found}) > 0.8 * len(found) else []  # else the speakers of a play


def _labels(text: str) -> list[Cut]:
    """`METHODS: ...`; a label that comes back is a speaker."""
    found = [(match.start(), match[1]) for match in _LABEL.finditer(text)]
    return found if len({label for _, label in found}) == len(found) else []


def _merge(cuts: list[Cut]) -> list[Cut]:
    """At most MAX_FILES parts, neighbours put together."""
    if cuts[0][0] != 0:
        cuts = [(0, cuts[0][1]), *cuts[1:]]
    if len(cuts) <= MAX_FILES:
        return cuts
    size = -(-len(cuts) // MAX_FILES)
    return [(cuts[i][0], f"{cuts[i][1]} and following") for i in range(0, len(cuts), size)]


# ---------------------------------------------------------------------------------------------------------------- names


def file_slug(text: str, max_chars: int = 40) -> str:
    """Letters and digits of any script in lower case, joined by `_`; may be empty."""
    words = re.findall(r"[^\W_]+", unicodedata.normalize("NFC", text).casefold())
    slug = ""
    for word in words:
        if slug and len(slug) + 1 + len(word) > max_chars:
            break
        slug = f"{slug}_{word}" if slug else word[:max_chars]
    return slug


def ordered_names(titles: Sequence[str], extension: str) -> list[str]:
    """Distinct file names that sort in the order given: numbered in front unless they do so already."""
    slugs = [file_slug(title) or "part" for title in titles]
    if sorted(set(slugs)) != slugs:
        alike, width = len(set(slugs)) == 1, len(str(len(slugs)))
        slugs = [f"{slug}_{i:0{width}}" if alike else f"{i:0{width}}_{slug}" for i, slug in enumerate(slugs, start=1)]
    return [slug + extension for slug in slugs]


def document_names(texts: Sequence[str], titles: Sequence[str], extension: str) -> dict[str, str]:
    """Names for documents without an order: after their titles where all have distinct ones, else numbered."""
    slugs = [file_slug(title) for title in titles]
    if len(slugs) != len(texts) or not all(slugs) or len(set(slugs)) != len(slugs):
        slugs = (
            ["document"]
            if len(texts) == 1
            else [f"document_{i:0{len(str(len(texts)))}}" for i in range(1, len(texts) + 1)]
        )
    names = [slug + extension for slug in slugs]
    assert all(safe_name(name) for name in names)
    return dict(zip(names, texts, strict=True))

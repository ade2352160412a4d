r"""Option letters: `choice` (one letter, 1 or 0; several are no answer) and `choices` (F1 = 2PR/(P+R) of two sets).

How letters are read (`chosen_letters`), in answer.txt and in a reply alike. The last statement that names any counts: a
box (`\boxed{B}`), or what follows "answer is", "Answer:", "choice is", `"answer":`, "I choose", "it is", or "so" at the
end; "B is correct" too. Without one: the letters alone in any dress ("b", "(B)", "**B**", "A, C and D", "ACD",
full-width), the labels of lines that begin like "B. text", the text of exactly one option, or a first or last line that
is one of these. A statement names letters alone, with their options' texts, or standing in its first clause; what it
denies ("not A but B", "A? No") it does not name. Nothing is guessed from other prose, so the article "A" and the
pronoun "I" are never letters.
"""

import re
import unicodedata
from collections import deque
from collections.abc import Iterator, Sequence

from sandboxrl.data.errors import InputError
from sandboxrl.data.task import Task
from sandboxrl.envs.grading.answers.numbers import parse_number, plain_characters
from sandboxrl.envs.grading.answers.text import accepted, plain
from sandboxrl.envs.grading.protocol import Kind, has_gold
from sandboxrl.envs.grading.protocol.replies import (
    MAX_LINES,
    MAX_SHORT_CHARS,
    MAX_STATEMENTS,
    Statement,
    boxes,
    is_unfinished,
    line_from,
    statements,
    undressed,
    visible_reply,
)
from sandboxrl.envs.sandbox.protocol import Sandbox

PUBLISHED_LETTERS = "ABCDEFGHIJ"
"""Letters of a row that prints its options inside the question (MedXpertQA has ten)."""

_LIST_WORDS = frozenset(
    "and or both only just the answer answers option options choice choices letter letters select choose pick so thus "
    "hence therefore are correct right 选 选项 选择 应选 故选 答案 是 为 和 与 以及 正确".split()
)
_MANY = r"(?!and\b|or\b|nor\b|is\b|are\b|but\b|not\b|only\b|both\b)"
_ARTICLE = re.compile(rf"(?<=[AI])\s+{_MANY}[a-z]")  # "A patient", "I think"
_LIST_MARKS = re.compile(r"[^\w\s()\[\]{}<>.,;:/&|\"'`\-\u2013\u2014→✓✔✅!。、+•]")
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathsf|boldsymbol|mbox|rm)\s*\{([^{}]*)\}")
_CHINESE = re.compile(r"(?<=[\u3040-\u30ff\u4e00-\u9fff])(?=[A-Za-z])|(?<=[A-Za-z])(?=[\u3040-\u30ff\u4e00-\u9fff])")
_CLAUSE_END = re.compile(
    r"\b(?:because|since|as|which|who|rather|instead|where|for|while|whereas|although|though|but|if|unless|not|i\.e)\b"
    r"|[.;:\n]|因为|\)\s|(?<=\w)\s*\(|\s[-\u2013\u2014]\s|,(?!\s*(?:and\b|or\b|\(?\w\b))"
)
_DENIED = re.compile(
    r"\W*(?:(?:definitely|certainly|clearly|probably)\s+)?(?:not|neither|never|except|anything but|all (?:but|except)|"
    r"none of|no longer|wrong|incorrect)\b", re.IGNORECASE
)  # fmt: skip
_BUT = re.compile(r"\bbut\b(?:\s+rather)?", re.IGNORECASE)
_SAID = re.compile(
    r"\b(?:(?:i(?:['\u2019](?:d|ll|m)| would| will| am)? "
    r"(?:choose|pick|select|go(?:ing)? (?:with|for)|answer|say|opt for))"
    r"|(?:correct|right|best|letter)(?: one)?(?: is|:))\b[\s:]*",
    re.IGNORECASE,
)
_ONE = r"[*(]{0,3}[{letters}][)*]{0,3}"
_LISTED = rf"[*(]{{0,3}}(?:[Oo]ption\s)?({_ONE}(?:(?:\s?,\s?|\s)(?:and\s)?{_ONE}){{0,9}})"
"""A letter, or several."""
_IS = r"\b(?i:it(?:\s+is|['\u2019]s)|must\s+be)\s" + _LISTED + r"(?=[^\w\n]{0,5}$|[.,;!]\s)"
_SO = r"(?i:\b(?:so|thus|hence|therefore)\b|→|=>|->),?\s" + _LISTED + r"\W{0,9}\Z"
_VERDICT = (
    r"(?:^|(?<=[.!?;,\n])|\b(?:so|therefore|thus|hence|that|clearly))\s{0,3}(?i:only )?(?i:both )?(?i:the )?"
    r"(?i:options?|choices?|answers?|letters?)?\s{0,3}" + _LISTED + r"\s(?:is|are)\s(?:the\s)?"
    r"(?:only\s|most\slikely\s|one\s)?(?:correct|right|best|answers?)\b"
)
_BUT_NOT = re.compile(r"[,;(]?\s*\b(?:but\s+)?(?:not|rather than|instead of)\b")


def row_letters(task: Task) -> str:
    """The letters that are options of this row. A row that prints them in its question says so in
    `metadata["letters"]`; otherwise A to J."""
    return "".join(task.letters()) or str(task.metadata.get("letters", PUBLISHED_LETTERS))


def chosen_letters(task: Task, answer: str) -> frozenset[str]:
    """The option letters that `answer` names, by the rules at the top of this file."""
    return _read(task, answer)[0]


def stated(task: Task, reply: str) -> str:
    """The letters that a final reply names, or the statement that names them, which are read as the reply is; the reply
    itself where it names none."""
    found, statement = _read(task, visible_reply(reply))
    letters = ", ".join(sorted(found))
    if not found or statement.startswith("\\boxed{") or chosen_letters(task, letters) != found:
        return statement
    return letters


def _read(task: Task, text: str) -> tuple[frozenset[str], str]:
    """The letters that are named, and the part of the text that names them."""
    letters, options = row_letters(task), task.options
    if is_unfinished(text) or not text.strip():
        return frozenset(), "" if is_unfinished(text) else text
    denied: frozenset[str] = frozenset()
    if len(text) <= MAX_SHORT_CHARS and (whole := _option(_simple(text), letters, options)):
        return whole, text
    for one in _statements(text, letters):
        if len(one.value) > MAX_SHORT_CHARS:
            continue
        value = _simple(one.value)
        if _DENIED.match(value) and not _named(value, letters, options):
            denial, value = _denial(value)
            denied |= _standing(denial, letters)
        if found := _value_letters(value, letters, options):
            return (frozenset() if found & denied else found), one.text
    if len(text) > MAX_SHORT_CHARS:
        return frozenset(), text
    simple = _simple(text)
    if _DENIED.match(simple) and not _option(simple, letters, options):
        simple = _denial(simple)[1]
    whole = _named(simple, letters, options) or _labels(simple, letters)
    whole = whole or _letter_list(_BUT_NOT.split(simple)[0], letters)
    return whole or _outer_line(simple, letters, options) or _first_part(simple, letters, options), text


def _statements(text: str, letters: str) -> Iterator[Statement]:
    """What may name the answer, the last first."""
    found = statements(text)
    if len(boxed := boxes(text)) > 1 and not re.search(r"\w", re.sub(r"\\boxed|\band\b", "", _outside(text, boxed))):
        whole = " ".join(text[start:end] for start, end in boxed)
        found.append(Statement(len(text), text, whole))  # "\boxed{A} and \boxed{C}"
    for match in deque(_SAID.finditer(text), maxlen=MAX_STATEMENTS):
        value = line_from(text, match.end())
        found.append(Statement(match.start(), match[0] + value, value))
    for pattern in (_VERDICT, _IS, _SO):
        named = pattern.replace("{letters}", re.escape(letters))
        said = deque(re.finditer(named, text, re.MULTILINE), maxlen=MAX_STATEMENTS)
        found += [Statement(one.start(), one[0].strip(), one[1]) for one in said]
    return iter(sorted(found, reverse=True)[:MAX_STATEMENTS])


def _outside(text: str, spans: Sequence[tuple[int, int]]) -> str:
    """What stands around these spans."""
    ends = [0, *(end for _, end in spans)]
    return " ".join(text[a:b] for a, b in zip(ends, [*(start for start, _ in spans), len(text)], strict=True))


def _simple(text: str) -> str:
    """Full-width letters as plain ones; without bold, dollars, headings and commands for fonts."""
    text = unicodedata.normalize("NFKC", plain_characters(text))
    while (plainer := _TEXT_COMMAND.sub(r"\1", text)) != text:
        text = plainer
    text = re.sub(r"[*`$]|\\[()\[\]]|</?[bi]>|^#+\s", "", text)
    return _CHINESE.sub(" ", text).strip()


def _letter_list(text: str, letters: str) -> frozenset[str]:
    """The letters of a text that holds nothing else, or none."""
    if _LIST_MARKS.search(text):
        return frozenset()
    text = re.sub(r"(?m)^\s*\d{1,2}[.)]\s+", "", text)
    words = [word for word in re.findall(r"[^\W_]+", text) if word.casefold() not in _LIST_WORDS]
    if len(words) == 1 and words[0].isupper():
        words = list(words[0])
    named = [word.upper() for word in words]
    return frozenset(named) if all(len(word) == 1 and word in letters for word in named) else frozenset()


def _labels(text: str, letters: str) -> frozenset[str]:
    """The labels of "B. text" lines, where the first line is one."""
    lines = [
        re.match(rf"\s*\(?([{re.escape(letters)}])(?:[.:]|\)[.:]?)\s+\S", line) for line in text.strip().split("\n")
    ]
    return frozenset(match[1] for match in lines if match) if lines[0] else frozenset()


def _named(text: str, letters: str, options: Sequence[str]) -> frozenset[str]:
    """The letters of a text that is nothing but one option's text, letters with their options' texts, letters, or
    several options' texts."""
    return (
        _option(text, letters, options)
        or _with_texts(text, letters, options)
        or _letter_list(text, letters)
        or _option_list(text, letters, options)
    )


def _option(text: str, letters: str, options: Sequence[str]) -> frozenset[str]:
    """The letter of the one option whose text this is, in any dress. A single letter is no text."""
    if len(text) == 1 and text.upper() in letters:
        return frozenset()
    text = re.sub(r"^that\s+", "", text)
    forms = [_forms(option) for option in options]
    for said in (_forms(text), _values(text)):
        same = [
            letter
            for letter, option, form in zip(letters, options, forms, strict=False)
            if said & (form | _values(option))
        ]
        if len(same) == 1:
            return frozenset(same)
    return frozenset()


def _forms(text: str) -> set[str]:
    simple = _simple(text)
    return {plain(simple), plain(undressed(simple)), _words(simple)} - {""}


def _values(text: str) -> set[str]:
    """A number by its value: 1,000 is 1000."""
    number = parse_number(text)
    return set() if number is None else {f"{number[0]} {number[1]}"}


def _option_list(text: str, letters: str, options: Sequence[str]) -> frozenset[str]:
    """The letters of options whose texts are listed: "alpha and gamma"."""
    parts = [part for part in re.split(r"\n|;|,|\band\b", re.sub(r"(?m)^\s*[-•]\s+", "", text)) if part.strip()]
    if not 1 < len(parts) <= len(options):
        return frozenset()
    found = [_option(part.strip(), letters, options) for part in parts]
    return frozenset().union(*found) if all(found) else frozenset()


def _words(text: str) -> str:
    """A text of words alone, for comparison without its marks; nothing for one whose marks may be its meaning."""
    return (
        " ".join(re.findall(r"\w+", text.casefold()))
        if re.fullmatch(r"[\w\s.,;!?'\"()-]*", text) and re.search(r"[^\W\d_]{3}", text)
        else ""
    )


def _with_texts(text: str, letters: str, options: Sequence[str]) -> frozenset[str]:
    """The letters of a list in which each stands with its option's text: "A (alpha) and C (gamma)", "London (B)"."""
    before = text
    for letter, option in zip(letters, options, strict=False):
        words = r"\s+".join(map(re.escape, _simple(option).rstrip(".").split()))
        if words:
            text = re.sub(
                rf"(?<![\w'])({letter})[\s).:,\-\u2013\u2014(\"'\u201c]*{words}(?!\w)\.?[)\"'\u201d]*", r"\1 ", text,
                flags=re.IGNORECASE,
            )  # fmt: skip
            text = re.sub(
                rf"(?<!\w)[\"']?{words}[\"']?\s*(?:\(|,\s*which is\s+)(?:option\s+)?({letter})(?!\w)\)?", r"\1 ", text,
                flags=re.IGNORECASE,
            )  # fmt: skip
    return _letter_list(text, letters) if text != before else frozenset()


def _denial(text: str) -> tuple[str, str]:
    """What a text denies, and what it says in its place: "not A but B"."""
    denied = _DENIED.match(text)
    start = denied.end() if denied else 0
    but = _BUT.search(text, start)
    return (text[start : but.start()], text[but.end() :].strip()) if but else (text[start:], "")


def _standing(clause: str, letters: str) -> frozenset[str]:
    """The letters that stand alone in a clause, articles and pronouns left out."""
    alone = rf"(?<![\w'])([{re.escape(letters)}])(?![\w'])"
    return frozenset(m[1] for m in re.finditer(alone, clause) if not _ARTICLE.match(clause, m.end()))


def _value_letters(value: str, letters: str, options: Sequence[str]) -> frozenset[str]:
    """The letters in a statement: alone, an option's text, with their texts, or standing in the first clause."""
    if whole := _named(value, letters, options):
        return whole
    if re.match(r"\W*\w\W*\?", value):
        return frozenset()  # "A? No, ..."
    mark = rf"(?:^|[,;]\s*|\band\s+)\(?([{re.escape(letters)}])(?:[).:]+|\s*[\u2013\u2014(]|\s+-\s)(?!\s*not\b)"
    listed = re.findall(mark, value)
    if len(listed) > 1:  # "A (red) and C (blue)"
        return frozenset(listed)
    clauses = [clause for clause in _CLAUSE_END.split(value) if clause is not None]
    return _standing(clauses[0], letters) or _first_part(value, letters, options)


def _first_part(value: str, letters: str, options: Sequence[str]) -> frozenset[str]:
    """The option that the beginning of a sentence is: "London, the capital of the UK", "yes, because"."""
    if "\n" in value.strip():
        return frozenset()
    ends = [
        found.start()
        for found in re.finditer(r",|[.;](?=\s)|\s\(|\s[-\u2013\u2014]\s|\s(?:because|since|as|not)\b", value)
    ]
    longest = max(map(len, options), default=0) + 20
    for end in reversed([end for end in ends if end <= longest]):
        if found := _option(value[:end].strip(), letters, options):
            rest = _CLAUSE_END.split(value[end:].lstrip(" ,.;"))[0].strip()
            return frozenset() if _option(rest, letters, options) else found
    verdict = re.match(
        r"(?i)(?:so |therefore,? |thus,? |hence,? )?(.+?)\s+is\s+(?:the\s+)?(?:correct|right|best|answer)\b", value
    )
    return _option(verdict[1].strip(), letters, options) if verdict else frozenset()


def _outer_line(text: str, letters: str, options: Sequence[str]) -> frozenset[str]:
    """What the first or the last line names, where no line between them names something else."""
    lines = [line.strip() for line in text.split("\n") if line.strip()] or [""]
    outer = [_named(line, letters, options) or _labels(line, letters) for line in (lines[0], lines[-1])]
    said = {one for one in outer if one}
    if len(said) != 1 or len(lines) > MAX_LINES:
        return frozenset()
    said |= {_named(line, letters, options) or _labels(line, letters) for line in lines[1:-1]} - {frozenset()}
    return said.pop() if len(said) == 1 else frozenset()


def choice(task: Task, answer: str, sandbox: Sandbox | None = None) -> float:
    return float(chosen_letters(task, answer) == _gold_letters(task, single=True))


def choices(task: Task, answer: str, sandbox: Sandbox | None = None) -> float:
    gold, named = _gold_letters(task, single=False), chosen_letters(task, answer)
    return 2 * len(gold & named) / (len(gold) + len(named))


def _gold_letters(task: Task, single: bool) -> frozenset[str]:
    gold = _letter_list(task.gold, row_letters(task))
    if not gold or (single and len(gold) != 1):
        raise InputError(f"task {task.id}: gold {task.gold!r} does not name letters of {row_letters(task)}")
    return gold


def _check_one(task: Task) -> None:
    has_gold(task)
    accepted(task)
    _gold_letters(task, single=True)


def _check_several(task: Task) -> None:
    has_gold(task)
    accepted(task)
    _gold_letters(task, single=False)


def another_letter(task: Task) -> str:
    letters = row_letters(task)
    return next((letter for letter in letters if letter not in task.gold), letters[0])


CHOICE = Kind(
    score=choice,
    check=_check_one,
    extract=stated,
    wrong=another_letter,
    ask="The answer is the letter of the one right option.",
)
CHOICES = Kind(
    score=choices,
    check=_check_several,
    extract=stated,
    wrong=another_letter,
    ask="The answer is the letters of all right options, separated by commas, for example: A, C",
)

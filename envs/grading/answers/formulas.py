r"""Formulas as text: their spellings brought to one, their units taken off, prose told from products of letters.

What math-verify would read wrongly is made plain before it sees it: `2³` and `x**2` are powers, `pi/2` is `\pi/2`, and
`\text{ cm}` is a unit, not a factor.
"""

import re

from sandboxrl.envs.grading.answers.numbers import parse_number, plain_characters
from sandboxrl.envs.grading.answers.units import REFUTERS, UNITS, symbol_of
from sandboxrl.envs.grading.protocol.replies import undressed

_SIGNS = {
    "π": r"\pi ", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "λ": r"\lambda ", "μ": r"\mu ",
    "φ": r"\phi ", "ω": r"\omega ", "Δ": r"\Delta ", "Ω": r"\Omega ", "σ": r"\sigma ", "∞": r"\infty ", "≤": r"\le ",
    "≥": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "±": r"\pm ",
    "°": r"^{\circ}", "…": r"\ldots ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "∅": r"\emptyset ",
    "<=": r"\le ", ">=": r"\ge ", "!=": r"\ne ", "...": r"\ldots ",
}  # fmt: skip
_ONE_SPELLING = (
    (r"\\(?:left|right|bigl?|bigr|Bigl?|Bigr)(?![a-zA-Z])|\\displaystyle(?![a-zA-Z])|\\(?:limits|nolimits)\b", ""),
    (r"(?<=,)\\!\s*(?=\d{3})", ""),
    (r"(?<!\\)\\[,;:!> ]|~|\\q?quad(?![a-zA-Z])", " "),
    (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
    (r"\\mathrm\s*\{([ei])\}", r"\1"),
    (
        r"\\(?:mbox|hbox|textrm|textbf|textit|textsf|mathrm|mathbf|mathit|mathsf|bf|rm|textnormal)(?![a-zA-Z])",
        r"\\text",
    ),
    (r"\\varnothing(?![a-zA-Z])", r"\\emptyset"),
    (r"^\](?=[^,]+,[^,]+[\[\]]$)", "("),
    (r"(?<=[^,\[])\[$", ")"),
    (r"\\(?:neq|not\s*=)(?![a-zA-Z])", r"\\ne"),
    (r"\\(?:leqslant|leq)(?![a-zA-Z])", r"\\le"),
    (r"\\(?:geqslant|geq)(?![a-zA-Z])", r"\\ge"),
    (r"\\(?:dots|cdots|dotsc|dotsb)(?![a-zA-Z])", r"\\ldots"),
    (r"\\(begin|end)\s*\{(?:[bB]|small)?matrix\}", r"\\\1{pmatrix}"),
    (r"\\lt(?![a-zA-Z])", "<"),
    (r"\\gt(?![a-zA-Z])", ">"),
    (r"\\(?:lvert|rvert|vert)(?![a-zA-Z])", "|"),
    (r"\\lbrace(?![a-zA-Z])", r"\\{"),
    (r"\\rbrace(?![a-zA-Z])", r"\\}"),
    (r"\\%", "%"),
    (r"\{,\}", ","),
    (r"\^\s*\{?\s*\\(?:circ|degree)\s*\}?|\\degree(?![a-zA-Z])", r"^{\\circ}"),
)
_FUNCTIONS = frozenset(
    "sqrt sin cos tan cot sec csc log ln lg exp arcsin arccos arctan sinh cosh tanh max min gcd lcm det tr rank dim "
    "ker deg mod pi inf sup lim arg sgn floor ceil binom Re Im Res".split()
)
_LATEX_NAMES = "sin|cos|tan|cot|sec|csc|log|ln|arcsin|arccos|arctan|sinh|cosh|tanh|max|min|gcd"
_CONNECTORS = frozenset(("or", "and"))
_SHORT_WORDS = frozenset(
    "am an as at be by do go he hi if in is it me my no of oh ok on or so to up us we and any ask art act add all ant "
    "arm why try fly sky dry shy cry spy yes true false none nan".split()
)
RELATIONS = re.compile(r"\\(?:ne|le|ge)(?![a-zA-Z])|[<>]")
_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")


def tidy(expression: str) -> str:
    """One spelling for what is written in many. Nothing here depends on a second expression."""
    text, before = plain_characters(expression), ""
    while text != before:  # `$**42**.$`
        before = text
        text = undressed(re.sub(r"^(?:\\[(\[])\s*|\s*(?:\\[)\]])$", "", text.strip())).strip()
        if text.startswith("$") and text.endswith("$") and len(text) > 2 and text.count("$") == 2:
            text = text[1:-1]
    text = re.sub(r"(?<!\\)\$", " ", text)
    for sign, command in _SIGNS.items():
        text = text.replace(sign, command)
    for pattern, plain in _ONE_SPELLING:
        text = re.sub(pattern, plain, text)
    text = re.sub(r"√\s*(\d+|\w|(?=\())", lambda found: rf"\sqrt{{{found[1]}}}" if found[1] else "sqrt", text)
    return " ".join(_from_code(_without_about(text)).split())


def _without_about(text: str) -> str:
    r"""`x \approx 11` and `\approx 11` say 11; `1/3 \approx 0.3` says 1/3."""
    exact, about, rounded = text.partition(r"\approx")
    if not about:
        return text
    return rounded if re.fullmatch(r"[\s({]*(?:[a-zA-Z]|\\[a-zA-Z]+)?(?:_\{?\w+\}?)?[\s)}]*", exact) else exact


def _from_code(text: str) -> str:
    """What Python writes, as LaTeX writes it."""
    text = text.replace("**", "^")
    text = re.sub(r"(?<![\\a-zA-Z])pi(?![a-zA-Z])", r"\\pi ", text)
    text = re.sub(r"(?<![\\a-zA-Z])(?:oo|inf|infinity)(?![a-zA-Z])", r"\\infty ", text)
    text = re.sub(rf"(?<![\\a-zA-Z])({_LATEX_NAMES})(?![a-zA-Z])", r"\\\1 ", text)
    text = re.sub(r"(?<![\\a-zA-Z])sqrt\s*(\d+|[a-z])(?![\w(])", r"\\sqrt{\1}", text)
    text = re.sub(r"\^\s*(-?\d*\.\d+|-?\d{2,}|-\w)", r"^{\1}", text)
    for opening, closed in (("sqrt", r"\sqrt{{{}}}"), ("exp", "e^{{{}}}"), ("^", "^{{{}}}")):
        text = _bracketed(text, opening, closed)
    return text


def _bracketed(text: str, name: str, form: str) -> str:
    """`name(...)` with what is between its brackets put into `form`."""
    pattern = re.compile(rf"(?<![\\a-zA-Z]){re.escape(name)}\s*\(")
    start = 0
    while found := pattern.search(text, start):
        depth, end = 1, found.end()
        while depth and end < len(text):
            depth += {"(": 1, ")": -1}.get(text[end], 0)
            end += 1
        if depth:
            break
        text = text[: found.start()] + form.format(text[found.end() : end - 1]) + text[end:]
        start = found.start() + 1
    return text


def squeezed(expression: str) -> str:
    """A tidy expression without the white space and braces that mean nothing."""
    text = re.sub(r"([\^_])\{([\w*'+-])\}", r"\1\2", re.sub(r"\s+", " ", expression))
    return re.sub(r"(?<![a-zA-Z0-9]) | (?![a-zA-Z0-9])|(?<=\d) (?=[a-zA-Z])", "", text)


def whole_text(expression: str) -> str | None:
    r"""The words of an expression that is nothing but text, `\text{even}`, `(\text{C})`; None for any other."""
    found = re.fullmatch(r"[\s({\[]*\\text\s*\{([^{}]*)\}[\s)}\]]*", expression)
    return None if found is None else _bare_words(found[1])


def _bare_words(text: str) -> str:
    return " ".join(text.strip().strip("()[]").strip().rstrip(".").split()).casefold()


def same_words(words: str, expression: str) -> bool:
    said = whole_text(expression)
    return words == (_bare_words(expression) if said is None else said)


# --------------------------------------------------------------------------------------------------------------- prose


def loose_words(expression: str) -> list[str]:
    r"""The runs of letters in a tidy expression that are neither commands, environments, texts nor names."""
    text = re.sub(r"\\(?:begin|end)\s*\{[^{}]*\}|\\operatorname\*?\s*\{[^{}]*\}", " ", expression)
    text = re.sub(r"\\[a-zA-Z]+", " ", _TEXT.sub(" ", text))
    return re.findall(r"[^\W\d_]{2,}", text)


def is_prose(expression: str, letters: str = "") -> bool:
    """Whether a tidy expression holds words, which math-verify would take for products or drop: "3 dogs", "100 km". A
    run of `letters` alone is none."""
    words = [word for word in loose_words(expression) if word not in _CONNECTORS and not _is_product(word)]
    return any(set(word) - set(letters) for word in words)


def _is_product(run: str) -> bool:
    """Whether a run of letters is more likely `ab` or `ABC` than a word."""
    if run in _FUNCTIONS:
        return True
    if run.casefold() in _SHORT_WORDS or not run.isascii() or len(run) > 4:
        return False
    if run.isupper():
        return True
    if len(run) == 2:
        return run not in UNITS and not run[0].isupper()
    consecutive = all(ord(b) - ord(a) == 1 for a, b in zip(run, run[1:], strict=False))
    return consecutive or (run.islower() and len(run) == 3 and not set(run[1:]) & set("aeiou") and run[0] not in "eiou")


# --------------------------------------------------------------------------------------------------------------- units

_BARE = "|".join(sorted((re.escape(unit) for unit in UNITS), key=len, reverse=True))
_BARE_UNIT = re.compile(
    rf"(?:(?:square|sq\.?|cubic)\s+)?(?:{_BARE})s?(?:\^\{{?-?\d\}}?)?"
    rf"(?:\s*(?:/|per\s|\s)\s*(?:{_BARE})s?(?:\^\{{?-?\d\}}?)?)*(?:\s+squared|\s+cubed)?\.?"
)
_TEXT_UNIT = re.compile(r"(.*[\w})\]|%])\s*((?:\\text\s*\{[^{}]*\}\s*(?:\^\s*\{?-?\d\}?)?\s*[/*]?\s*)+)")
_DEGREES = re.compile(r"(.*\S)\s*\^\{\\circ\}\s*(?:\\text\s*\{\s*)?([CF]?)\}?")


def split_unit(expression: str) -> tuple[str, str]:
    """A tidy expression without its unit, and the unit in one spelling (`cm`, `m^2`, `km/h`, `%`); empty: none."""
    if found := re.fullmatch(r"(?:\\\$|[£€])\s*(.*)", expression):
        return found[1], {"£": "pound sterling", "€": "euro"}.get(expression[0], "dollar")
    if found := re.fullmatch(r"(.*\S)\s*%", expression):
        return found[1], "%"
    if found := _DEGREES.fullmatch(expression):
        return found[1], f"deg{found[2]}"
    if (found := _TEXT_UNIT.fullmatch(expression)) and (unit := _one_unit(_TEXT.sub(r"\1", found[2]))):
        return found[1], unit
    if found := re.match(
        r"(-?[\d.,]+(?:/\d+)?|-?\\frac\s*\{\d+\}\s*\{\d+\}|-?\d+\s*\\sqrt\s*\{\d+\}|-?[\d.,]*\s*\\pi)(\s*)(?=[a-zA-Z°¢])",
        expression,
    ):
        rest = expression[found.end() :]
        if _BARE_UNIT.fullmatch(rest) and (found[2] or len(rest) > 1):
            return found[1], _one_unit(rest)
    return expression, ""


def _one_unit(text: str) -> str:
    """A unit in one spelling, or nothing for text that is none."""
    text = " ".join(text.replace(".", " ").split())
    if (
        not text
        or re.search(r"[,;:=()]", text)
        or set(text.casefold().split()) & (REFUTERS | _CONNECTORS | {"if", "for"})
    ):
        return ""
    power = {"square": "^2", "sq": "^2", "cubic": "^3"}.get(text.split()[0].casefold(), "")
    if power:
        text = text.split(maxsplit=1)[1] if " " in text else ""
    for word, spelt in ((" squared", "^2"), (" cubed", "^3")):
        if text.endswith(word):
            text, power = text.removesuffix(word), spelt
    parts = [part.strip() for part in re.split(r"/|\bper\b", text)]
    return "/".join(_factor(part) for part in parts) + power


def _factor(part: str) -> str:
    found = re.fullmatch(r"(.*?)\s*(?:\^\s*\{?\s*(-?\d)\s*\}?)?", part)
    assert found is not None
    name, power = found.groups()
    return symbol_of(name) + (f"^{power}" if power else "")


def is_value(expression: str) -> bool:
    """Whether a tidy expression is one number."""
    return parse_number(expression) is not None

"""Numbers in English words: "one thousand and two", "2 million", "two and a half", "minus seven"."""

import re

_SMALL = {
    word: value
    for value, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen".split()
    )
}
_TENS = {
    word: 10 * value
    for value, word in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), start=2)
}
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_PARTS = {
    "half": 2, "halves": 2, "third": 3, "thirds": 3, "quarter": 4, "quarters": 4, "fourth": 4, "fourths": 4, "fifth": 5,
    "fifths": 5, "sixth": 6, "sixths": 6, "eighth": 8, "eighths": 8, "tenth": 10, "tenths": 10,
}  # fmt: skip
_WORD = "|".join((*_SMALL, *_TENS, "hundred", *_SCALES))
_RUN = re.compile(
    rf"\b(?:an?\s+(?=hundred|thousand|million|billion))?(?:{_WORD})(?:(?:,?\s+and\s+|,?\s+|-)(?:{_WORD}))*\b", re.I
)
_SCALED = re.compile(rf"(\d[\d,]*(?:\.\d+)?)\s*({'|'.join(_SCALES)})\b", re.I)
_PART = "|".join(_PARTS)


def words_as_digits(text: str) -> str:
    """The text with its numbers in words as digits. What is not a number in good order ("five six") stays as it is."""
    text = _SCALED.sub(lambda found: _times(found[1], _SCALES[found[2].casefold()]), text)
    text = _RUN.sub(lambda found: found[0] if (value := _value(found[0])) is None else str(value), text)
    text = re.sub(
        rf"\b(?:an?|one|(\d+))[\s-]+({_PART})\b",
        lambda found: f"{found[1] or 1}/{_PARTS[found[2].casefold()]}",
        text,
        flags=re.I,
    )
    text = re.sub(r"(\d+)\s+and\s+(\d+/\d+)", r"\1 \2", re.sub(r"^half\b", "1/2", text, flags=re.I))
    return re.sub(r"\b(?:minus|negative)\s+(?=\d)", "-", text, flags=re.I)


def _value(run: str) -> int | None:
    """The value of number words, or None where their order is none of a number's."""
    total = current = 0
    free = 10**18
    """What comes next must be smaller: 100 after a ten of hundreds, 10 after twenty, 1 after five."""
    for word in re.findall(r"[a-z]+", run.casefold()):
        if word in ("a", "an", "and"):
            continue
        if word in _SCALES:
            if total and total % (1000 * _SCALES[word]):
                return None
            total, current, free = total + max(current, 1) * _SCALES[word], 0, 10**18
        elif word == "hundred":
            if current >= 100:
                return None
            current, free = max(current, 1) * 100, 100
        else:
            value = _SMALL.get(word, _TENS.get(word, 0))
            if value >= free or (current and not value):
                return None
            current, free = current + value, 10 if word in _TENS else 1
    return total + current


def _times(number: str, scale: int) -> str:
    whole, _, decimals = number.replace(",", "").partition(".")
    value = int(whole + decimals) * scale
    return str(value // 10 ** len(decimals)) if value % 10 ** len(decimals) == 0 else f"{number} * {scale}"

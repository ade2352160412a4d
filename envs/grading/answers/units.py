"""Words beside a value: the units that are known, by their spellings, and words that make something else of it."""

_UNIT_WORDS = {
    "m": "meter metre", "cm": "centimeter centimetre", "mm": "millimeter millimetre", "km": "kilometer kilometre",
    "in": "inch inches", "ft": "foot feet", "yd": "yard", "mi": "mile", "kg": "kilogram kilo", "g": "gram gramme",
    "mg": "milligram", "lb": "pound lbs", "oz": "ounce", "s": "second sec", "min": "minute", "h": "hour hr", "d": "day",
    "ms": "millisecond", "week": "wk", "year": "yr", "L": "liter litre l", "mL": "milliliter millilitre ml",
    "N": "newton", "J": "joule", "kJ": "kilojoule", "W": "watt", "kW": "kilowatt", "V": "volt", "A": "ampere amp",
    "Hz": "hertz", "Pa": "pascal", "kPa": "kilopascal", "K": "kelvin", "mol": "mole", "C": "coulomb",
    "eV": "electronvolt",
    "deg": "degree °", "rad": "radian", "dollar": "dollars usd buck", "cent": "cents ¢", "euro": "euros eur €",
    "%": "percent pct", "mph": "", "kph": "", "unit": "units",
}  # fmt: skip
UNITS = {symbol: symbol for symbol in _UNIT_WORDS} | {
    word: symbol for symbol, words in _UNIT_WORDS.items() for word in words.split()
}
"""Spelling -> the unit's symbol."""

REFUTERS = frozenset(
    "not no never less more greater fewer least most between under over above below except either neither nor about "
    "approximately around roughly nearly almost cannot isn".split()
)
"""Words that make something else of the value beside them."""


def symbol_of(word: str) -> str:
    """A unit's symbol; any other word in lower case, in the singular as far as an `s` goes."""
    for form in (word, word.casefold(), word.casefold().removesuffix("s")):
        if form in UNITS:
            return UNITS[form]
    return word.casefold().removesuffix("s")

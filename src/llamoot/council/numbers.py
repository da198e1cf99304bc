"""Numbers as people write them, and one canonical spelling for each.

Separators: where both `.` and `,` occur the last one is the decimal mark (1,234.5 = 1.234,5).
One `,` before exactly three digits groups thousands (1,234 = 1234), except after a lone 0
(0,123); any other single `,` is a decimal mark. A single `.` always is. A mark that repeats
groups thousands, as do spaces, apostrophes and underscores. Percent stays percent (12 % = 12%),
units of one kind become one unit (5 km = 5000 m), unknown unit words are dropped.
"""

import re
from collections.abc import Iterator
from fractions import Fraction

_VULGAR = {
    "½": (1, 2), "⅓": (1, 3), "⅔": (2, 3), "¼": (1, 4), "¾": (3, 4), "⅕": (1, 5), "⅖": (2, 5),
    "⅗": (3, 5), "⅘": (4, 5), "⅙": (1, 6), "⅚": (5, 6), "⅛": (1, 8), "⅜": (3, 8), "⅝": (5, 8),
    "⅞": (7, 8),
}  # fmt: skip
_UNITS = {
    name: (base, Fraction(factor))
    for base, table in {
        "m": "mm 1/1000 cm 1/100 m 1 metre 1 metres 1 meter 1 meters 1 km 1000 kilometres 1000 "
        "kilometers 1000",
        "g": "mg 1/1000 g 1 gram 1 grams 1 kg 1000 kilograms 1000 t 1000000 tonnes 1000000",
        "s": "ms 1/1000 s 1 sec 1 second 1 seconds 1 min 60 minute 60 minutes 60 h 3600 "
        "hour 3600 hours 3600 day 86400 days 86400",
        "l": "ml 1/1000 l 1 litre 1 litres 1 liter 1 liters 1",
        "%": "% 1 percent 1",
        "$": "$ 1 dollar 1 dollars 1 usd 1",
        "€": "€ 1 euro 1 euros 1 eur 1",
        "£": "£ 1 pound 1 pounds 1",
        "°": "° 1 degree 1 degrees 1",
        "°C": "°c 1 celsius 1",
    }.items()
    for name, factor in zip(table.split()[::2], table.split()[1::2])
}
_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
)
_WORDS = {word: value for value, word in enumerate(_ONES.split())}
_TENTHS = "twenty thirty forty fifty sixty seventy eighty ninety"
_TENS = {word: 10 * value for value, word in enumerate(_TENTHS.split(), 2)}
_GAP = "[ \u00a0\u202f\u2009'’_]"
_NUMBER = re.compile(
    rf"""(?<![\w.,])(?P<sign>[-−+])?(?P<money>[$€£]\s?)?
    (?:(?P<whole>[0-9]{{1,3}}(?:{_GAP}[0-9]{{3}})+(?![0-9])(?:[.,][0-9]+)?
        |[0-9]+(?:[.,][0-9]+)*|[.][0-9]+)
       (?:(?P<exp>[eE][-+]?[0-9]{{1,3}}(?![0-9])|\s?[×x*]\s?10\^?[-−]?[0-9]{{1,3}}(?![0-9]))
         |\s?(?P<mixed>[{"".join(_VULGAR)}])
         |(?:\s(?P<top>[0-9]{{1,9}}))?\s?[/⁄]\s?(?P<below>[0-9]{{1,9}})(?![0-9/]))?
      |(?P<vulgar>[{"".join(_VULGAR)}]))
    (?:\s?(?P<unit>°[cC]?|[%$€£]|[a-zA-Z]+))?""",
    re.VERBOSE,
)
_WORD = re.compile(
    rf"\b(?:({'|'.join(_TENS)})(?:[- ]({'|'.join(_WORDS)}))?|({'|'.join(_WORDS)}))\b"
)


def _plain(digits: str) -> Fraction:
    digits = re.sub(_GAP, "", digits)
    dots, commas = digits.count("."), digits.count(",")
    if dots and commas:
        last = max(digits.rfind("."), digits.rfind(","))
        digits = re.sub("[.,]", "", digits[:last]) + "." + re.sub("[.,]", "", digits[last + 1 :])
    elif commas == 1:
        head, tail = digits.split(",")
        groups = len(tail) == 3 and 0 < len(head) <= 3 and head != "0"
        digits = head + tail if groups else f"{head}.{tail}"
    elif dots > 1 or commas > 1:
        digits = re.sub("[.,]", "", digits)
    return Fraction(digits)


def _value(found: re.Match[str]) -> Fraction | None:
    part = found.groupdict()
    if part["vulgar"]:
        value = Fraction(*_VULGAR[part["vulgar"]])
    elif len(part["whole"]) > 60:
        return None
    else:
        value = _plain(part["whole"])
        if part["exp"]:
            power = int(re.sub(r"^(?:[eE]|\s?[×x*]\s?10\^?)", "", part["exp"]).replace("−", "-"))
            value *= Fraction(10) ** power
        elif part["mixed"]:
            value += Fraction(*_VULGAR[part["mixed"]])
        elif part["below"]:
            if not int(part["below"]):
                return None
            below = int(part["below"])
            value = value + Fraction(int(part["top"]), below) if part["top"] else value / below
    return -value if part["sign"] in ("-", "−") else value


def spell(value: Fraction, unit: str = "") -> str:
    """The canonical spelling: an exact decimal where there is a short one, else a fraction."""
    rest, places = value.denominator, 0
    while rest % 10 == 0 or rest % 5 == 0 or rest % 2 == 0:
        rest //= 10 if rest % 10 == 0 else 5 if rest % 5 == 0 else 2
        places += 1
    if rest > 1 or places > 30 or abs(value.numerator) >= 10**90:
        text = f"{value.numerator}/{value.denominator}"
    else:
        whole = abs(value.numerator) * 10**places // value.denominator
        digits = str(whole).rjust(places + 1, "0")
        text = digits[: len(digits) - places] + "." + digits[len(digits) - places :]
        text = ("-" if value < 0 else "") + (text.rstrip("0").rstrip(".") if places else digits)
    return text + (unit if unit in ("%", "°", "°C") else f" {unit}" if unit else "")


def find_numbers(text: str) -> Iterator[tuple[int, str, str]]:
    """Every number in `text`: where it starts, as it is written, and its canonical spelling."""
    for found in _NUMBER.finditer(text):
        value = _value(found)
        if value is None or max(abs(value.numerator), value.denominator) >= 10**80:
            continue
        written = found.group().strip()
        unit = (found["unit"] or "").lower()
        base, factor = _UNITS.get(unit, ("", Fraction(1)))
        if found["unit"] and not base:
            written = text[found.start() : found.start("unit")].strip()
        if found["money"] and not base:
            base = found["money"].strip()
        yield found.start(), written, spell(value * factor, base)
    if not any(c.isdigit() for c in text):
        for found in _WORD.finditer(text.lower()):
            tens, ones, alone = found.groups()
            named = _WORDS[alone] if alone else _TENS[tens] + (_WORDS[ones] if ones else 0)
            yield found.start(), found.group(), str(named)

"""Numbers are whole, and have one value however they are written: 1,250 is 1250, ١٢٥٠ and "twelve hundred fifty"."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cache

from retrieval_heads.scoring.languages import Language, language
from retrieval_heads.scoring.spelling import fold_words

# Groups of three are thousands in every language; what follows the last separator otherwise is a fraction.
_THOUSANDS = re.compile(r"\d{1,3}(?:[ ,.'’٬]\d{3})+")
_GROUPED_FRACTION = re.compile(r"(\d{1,3}(?:([ ,.'’٬])\d{3})(?:\2\d{3})*)([.,٫])(\d+)")
_FRACTION = re.compile(r"(\d+)[.,٫](\d+)")
_TIME = re.compile(r"(\d{1,2})[:.h](\d{2})")
_DATE = re.compile(r"(\d{1,2})[./-](\d{1,2})[./-](\d{4})")
_ISO_DATE = re.compile(r"(\d{4})[-/.](\d{1,2})[-/.](\d{1,2})")
_CODE = re.compile(r"\d+(?:[- ]\d+)+")
_CONNECTORS = frozenset(("and", "und", "et", "y", "e", "en", "og", "och", "و"))
_LONGEST = 5


def readings(text: str) -> frozenset[str]:
    """Every value that a number in digits may have, as canonical text.

    Args:
        text: Digits of any script, separators among them.
    """
    text = (
        "".join(str(unicodedata.digit(c)) if c.isdigit() else c for c in text)
        .replace("\u00a0", " ")
        .replace("\u202f", " ")
    )
    if text[:1] in ("-", "−"):
        return frozenset(f"-{value}" for value in readings(text[1:]))
    found = {text}
    if _THOUSANDS.fullmatch(text):
        found.add(re.sub(r"\D", "", text))
    elif match := _GROUPED_FRACTION.fullmatch(text):
        if match[2] != match[3]:
            found.add(_decimal(re.sub(r"\D", "", match[1]), match[4]))
    elif match := _FRACTION.fullmatch(text):
        found.add(_decimal(match[1], match[2]))
    if match := _TIME.fullmatch(text):
        found.add(time_of_day(int(match[1]), int(match[2])))
    if match := _ISO_DATE.fullmatch(text):
        found.add(date(int(match[3]), int(match[2]), int(match[1])))
    if match := _DATE.fullmatch(text):
        day, month, year = (int(part) for part in match.groups())
        found |= {date(day, month, year), date(month, day, year)}
    if _CODE.fullmatch(text) and not _ISO_DATE.fullmatch(text):
        found.add(re.sub(r"\D", "", text))
    return frozenset(found)


def time_of_day(hour: int, minute: int) -> str:
    """A canonical time."""
    return f"{hour:02d}:{minute:02d}"


def date(day: int, month: int, year: int) -> str:
    """A canonical date."""
    return f"{year}-{month}-{day}"


def number_words(words: Sequence[str], language: Language) -> list[tuple[int, int, int]]:
    """The numbers that stand in words.

    Args:
        words: Folded words of a text.
        language: The text's.

    Returns:
        (first word, word after the last, value), whole numbers only: "one hundred and forty-two" is one of them.
    """
    known = _known_numbers(language.code)
    found: list[tuple[int, int, int]] = []
    at = 0
    while known and at < len(words):
        start = end = at
        parts: list[int] = []
        while (step := _longest(words, at, known)) is not None:
            size, value = step
            if parts and not _goes_on(parts[-1], value):
                break
            parts.append(value)
            at = end = at + size
            if at < len(words) and words[at] in _CONNECTORS and parts[-1] % 10 == 0:
                after = _longest(words, at + 1, known)
                if after is not None and _goes_on(parts[-1], after[1]):
                    at += 1
        if parts:
            found.append((start, end, _total(parts)))
            at = end
        else:
            at += 1
    return found


def _decimal(whole: str, fraction: str) -> str:
    fraction = fraction.rstrip("0")
    return f"{whole}.{fraction}" if fraction else whole


def _longest(words: Sequence[str], at: int, known: Mapping[tuple[str, ...], int]) -> tuple[int, int] | None:
    for size in range(min(_LONGEST, len(words) - at), 0, -1):
        value = known.get(tuple(words[at : at + size]))
        if value is not None:
            return size, value
    return None


def _goes_on(before: int, value: int) -> bool:
    """Whether a number word continues the one before it: forty two, seven hundred, hundred fifty; not seven twelve."""
    if value in (100, 1_000, 1_000_000):
        return before < value or before in (100, 1_000)
    place = 1
    while before and before % (place * 10) == 0:
        place *= 10
    return before != 0 and place > 1 and value < place


def _total(parts: Sequence[int]) -> int:
    total = current = 0
    for value in parts:
        if value == 100 and 0 < current < 100:
            current *= 100
        elif value in (1_000, 1_000_000):
            total += max(current, 1) * value
            current = 0
        else:
            current += value
    return total + current


@cache
def _known_numbers(code: str) -> Mapping[tuple[str, ...], int]:
    known: dict[tuple[str, ...], int] = {}
    try:
        from num2words import num2words

        for value in (*range(101), *range(200, 1000, 100), 1_000, 1_000_000):
            words = tuple(fold_words(num2words(value, lang=code)))
            known.setdefault(words, value)
            # "one hundred" is known by its last word as well, for two hundred; Arabic writes "and" onto a word.
            if value in (100, 1_000, 1_000_000) and len(words) > 1:
                known.setdefault(words[-1:], value)
            if code == "ar":
                known.setdefault(tuple(word for word in words if word != "و"), value)
    except NotImplementedError:  # a language that num2words does not have
        pass
    for form, value in language(code).numbers.items():
        known.setdefault((form,), value)
    return known


_DIGITS = "零一二三四五六七八九"
HAN_NUMERALS = "零〇一二两兩三四五六七八九十百千万萬億亿"
_HAN_VALUES = {**{digit: value for value, digit in enumerate(_DIGITS)}, "〇": 0, "两": 2, "兩": 2}
_HAN_PLACES = {"十": 10, "百": 100, "千": 1_000}
_HAN_SCALES = {"万": 10_000, "萬": 10_000, "亿": 10**8, "億": 10**8}


def han_value(text: str) -> int:
    """The value of a number in Chinese numerals; digit by digit where no place is named (一九二七)."""
    if not any(letter in _HAN_PLACES or letter in _HAN_SCALES for letter in text):
        return int("".join(str(_HAN_VALUES[letter]) for letter in text))
    total = part = digit = 0
    for letter in text:
        if letter in _HAN_VALUES:
            digit = _HAN_VALUES[letter]
        elif letter in _HAN_PLACES:
            part += (digit or 1) * _HAN_PLACES[letter]
            digit = 0
        else:
            total += (part + digit or 1) * _HAN_SCALES[letter]
            part = digit = 0
    return total + part + digit


def han_digits(value: int) -> str:
    """A number digit by digit, as years are written: 一九二七."""
    return "".join(_DIGITS[int(digit)] for digit in str(value))


def han_numerals(value: int) -> str:
    """A number below ten million in Chinese numerals."""
    if value >= 10_000:
        high, low = divmod(value, 10_000)
        rest = ("零" if 0 < low < 1_000 else "") + han_numerals(low) if low else ""
        return f"{han_numerals(high)}万{rest}"
    text, is_gap = "", False
    for place, name in ((1_000, "千"), (100, "百"), (10, "十"), (1, "")):
        digit, value = divmod(value, place)
        if digit:
            text += ("零" if is_gap and text else "") + _DIGITS[digit] + name
        is_gap = not digit
    return text or _DIGITS[0]

"""A text cut into words and numbers, each with its place, its clause and its sentence."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import regex

from retrieval_heads.scoring.languages import Language
from retrieval_heads.scoring.numbers import date, number_words, readings, time_of_day
from retrieval_heads.scoring.spelling import fold, spellings

_TOKEN = regex.compile(
    r"(?P<number>(?:(?<![\p{L}\p{Nd}\p{P}\p{S}])[-−])?\p{Nd}{1,3}(?:[ \u00a0\u202f]\p{Nd}{3})+(?:[.,٫]\p{Nd}+)?"
    r"(?![\p{L}\p{Nd}])"
    r"|(?:(?<![\p{L}\p{Nd}\p{P}\p{S}])[-−])?\p{Nd}+(?:[.,:'’٬٫/\-]\p{Nd}+|h\p{Nd}{2}(?!\p{L}))*(?![\p{L}\p{Nd}])"
    r"|\p{Nd}+(?=(?:st|nd|rd|th|km|cm|mm|m|kg|g|lb|lbs|min|s|am|pm|a\.m|p\.m|º|ª|er|e|е|й|го)(?![\p{L}\p{Nd}])))"
    r"|(?P<run>[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}ー]+)"
    r"|(?P<word>(?:(?![\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}])[\p{L}\p{N}\p{M}\u200c\u200d])+|\p{So}|[%$€£¥])"
    r"|(?P<end>[.!?…。！？।؟\n]+)|(?P<pause>[,;:()，；：、،؛—–]+)"
)
_SUFFIXES = frozenset(("st", "nd", "rd", "th", "º", "ª", "er", "e", "е", "й", "го"))
_ALIASES = {"%": "percent", "$": "dollar", "€": "euro", "£": "pound", "¥": "yen"}
_ABBREVIATION = regex.compile(r"(?<![\p{L}\p{Nd}])(?:\p{Lu}|[Dd]r|[Mm]rs?|[Mm]s|[Ss]t|[Pp]rof)$")
_MINUS = frozenset(("minus", "moins", "menos", "meno", "минус", "माइनस", "ناقص"))
_HALVES = {"pm": 12, "am": 0}


@dataclass(frozen=True, slots=True)
class Word:
    """One word or number of a text.

    Args:
        start: Where it begins in the text.
        end: Where it ends.
        text: As written.
        fold: Without case and diacritics.
        folds: Its spellings, with umlauts written out as well.
        values: What it may be worth, where it is a number.
        clause: Counts what commas and turns divide.
        sentence: Counts sentences.
        is_run: A stretch of a script that is written without spaces.
        glued: Nothing but a hyphen stands between it and the word before, or the point of an initial.
    """

    start: int
    end: int
    text: str
    fold: str
    folds: frozenset[str]
    values: frozenset[str] = frozenset()
    clause: int = 0
    sentence: int = 0
    is_run: bool = False
    glued: bool = False

    @property
    def is_number(self) -> bool:
        """Whether it is a number, and no month's name that is part of a date."""
        return bool(self.values) and any(value.count("-") != 2 for value in self.values)


def same_width(text: str) -> str:
    """Full-width letters and digits as plain ones, position by position."""
    return "".join(plain if len(plain := unicodedata.normalize("NFKC", letter)) == 1 else letter for letter in text)


def read_words(text: str, language: Language) -> list[Word]:
    """The words and numbers of a text in order."""
    words = _with_halves(list(_tokens(same_width(text), language)))
    return _with_dates(_below_zero(_with_numbers(words, language)), language)


def _tokens(text: str, language: Language) -> Iterator[Word]:
    clause = sentence = 0
    before = 0
    for match in _TOKEN.finditer(text):
        kind, said = str(match.lastgroup), match[0]
        start, end = match.span()
        if kind == "end":
            if said != "." or not _ABBREVIATION.search(text, 0, start):
                clause, sentence = clause + 1, sentence + 1
        elif kind == "pause":
            clause += 1
        elif said.lower() in _SUFFIXES and start == before and start and text[start - 1].isdigit():
            continue
        else:
            said = _ALIASES.get(said, said)
            folds = spellings(said)
            if folds & language.turns:
                clause += 1
            values = readings(said) if kind == "number" else frozenset()
            is_initial = start > 1 and len(said) == 1 and text[start - 1] == "." and text[start - 2].isupper()
            glued = start > 0 and (text[before:start] in ("-", "‐", "‑", "'", "’") or is_initial) and before > 0
            yield Word(start, end, said, fold(said), folds, values, clause, sentence, kind == "run", glued)
        before = end


def _with_halves(words: Sequence[Word]) -> list[Word]:
    """A time's `PM` becomes part of it: 7 PM, 7:30 p.m."""
    made: list[Word] = []
    at = 0
    while at < len(words):
        word = words[at]
        after = [each.text.lower() for each in words[at + 1 : at + 3]]
        half = after[0] if after[:1] and after[0] in _HALVES else "".join(after)
        # Digits of a newer Unicode than Python's own have no value.
        clocks = [value for value in word.values if len(value) == 5 and value[2] == ":"]
        times = [value for value in clocks if f"{value[:2]}{value[3:]}".isdecimal()]
        times += [f"{value}:00" for value in word.values if value.isdigit() and 1 <= int(value) <= 12]
        if times and half in _HALVES:
            hour, minute = (int(part) for part in times[0].split(":"))
            if 1 <= hour <= 12:
                at += 1 if after[0] in _HALVES else 2
                value = time_of_day(hour % 12 + _HALVES[half], minute)
                word = replace(word, end=words[at].end, values=frozenset((value,)))
        made.append(word)
        at += 1
    return made


def _with_numbers(words: list[Word], language: Language) -> list[Word]:
    """Number words as one number: forty-two."""
    found = {start: (end, value) for start, end, value in number_words([word.fold for word in words], language)}
    made: list[Word] = []
    at = 0
    while at < len(words):
        if at in found:
            end, value = found[at]
            span = words[at:end]
            said = " ".join(word.text for word in span)
            folds = span[0].folds if len(span) == 1 else frozenset((fold(said),))
            made.append(
                replace(
                    span[0], end=span[-1].end, text=said, fold=fold(said), folds=folds, values=frozenset((str(value),))
                )
            )
            at = end
        else:
            made.append(words[at])
            at += 1
    return made


def _below_zero(words: Sequence[Word]) -> list[Word]:
    """A number and the word minus before it as one."""
    made: list[Word] = []
    for word in words:
        before = made[-1] if made else None
        if before is not None and word.is_number and before.fold in _MINUS:
            made[-1] = replace(
                word,
                start=before.start,
                text=f"{before.text} {word.text}",
                fold=f"{before.fold} {word.fold}",
                folds=frozenset((f"{before.fold} {word.fold}",)),
                values=frozenset(f"-{value}" for value in word.values),
            )
        else:
            made.append(word)
    return made


def _with_dates(words: list[Word], language: Language) -> list[Word]:
    """A day, a month's name and a year also have the value of the date in digits."""
    months = _months(language)
    made = list(words)
    content = [at for at, word in enumerate(words) if word.values or not word.folds & language.functions]
    for places in zip(content, content[1:], content[2:], strict=False):
        for day, month, year in (places, (places[1], places[0], places[2])):
            number = months.get(words[month].fold)
            if number is None or not _is_day(words[day]) or not _is_year(words[year]):
                continue
            value = date(int(min(words[day].values, key=len)), number, int(min(words[year].values, key=len)))
            for at in places:
                made[at] = replace(made[at], values=made[at].values | {value})
    return made


def _is_day(word: Word) -> bool:
    return any(value.isdigit() and 1 <= int(value) <= 31 for value in word.values)


def _is_year(word: Word) -> bool:
    return any(value.isdigit() and len(value) == 4 for value in word.values)


@cache
def _months(language: Language) -> dict[str, int]:
    """Months by their names, in English by the first three letters as well."""
    months = {name: number for number, name in enumerate(language.months, start=1)}
    return months | ({name[:3]: number for name, number in months.items()} if language.code == "en" else {})

"""What the key-word score must know of a language: its function words, and the words that deny, doubt or choose.

Function words (languages.toml) are those of the Snowball project's lists for English, German, French, Spanish, Italian,
Portuguese, Dutch and Russian, less every word that can tell one answer from another: numbers, places (inside, under),
times (before, after), quantities, denials. Arabic, Hindi, Greek, Ukrainian and Korean are listed by hand in the same
manner. PyPI's larger lists were tried: `stopwordsiso` and `stop-words` hold "two", "home", "fire" and "computer". The
words of at most three letters of `stopwordsiso` serve every other language.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

import regex

from retrieval_heads.scoring.library import library
from retrieval_heads.scoring.spelling import fold, fold_words

PLACES = ("in", "on", "under", "over", "behind", "before", "beside", "between", "outside", "around")


@dataclass(frozen=True, eq=False)
class Language:
    """One language's closed classes, every word folded (see `spelling.fold`).

    Args:
        code: ISO 639-1.
        functions: Words that every answer may leave out or add.
        articles: Of these, those that also say "one".
        denials: Words that deny what they stand beside.
        certainties: Phrases that hold a denial and deny nothing: no doubt, not only.
        bounds: Phrases that make another amount of the number behind them: more than.
        doubts: Phrases that leave it open whether an answer is meant.
        exclusions: Phrases that deny the rest of their sentence.
        choices: Words between an answer and another one, not folded: French ou is not où.
        determiners: Words that may stand between a place word and its noun, besides articles.
        turns: Words after which a clause begins that an earlier denial does not reach.
        joints: Words after which an earlier clause is not reached by a later denial.
        places: Classes of place words by their name in `PLACES`; each a word or a phrase.
        months: The twelve months' names, as dates write them.
        numbers: Number words that `num2words` does not say: other forms, or of a language that it does not have.
        follows: Whether a place word stands behind its noun.
    """

    code: str
    functions: frozenset[str]
    articles: frozenset[str] = frozenset()
    denials: frozenset[str] = frozenset()
    certainties: tuple[tuple[str, ...], ...] = ()
    bounds: tuple[tuple[str, ...], ...] = ()
    doubts: tuple[tuple[str, ...], ...] = ()
    exclusions: tuple[tuple[str, ...], ...] = ()
    choices: frozenset[str] = frozenset()
    determiners: frozenset[str] = frozenset()
    turns: frozenset[str] = frozenset()
    joints: frozenset[str] = frozenset()
    places: Mapping[tuple[str, ...], str] = field(default_factory=dict)
    months: tuple[str, ...] = ()
    numbers: Mapping[str, int] = field(default_factory=dict)
    follows: bool = False

    @cached_property
    def place_starts(self) -> frozenset[str]:
        """The first words of `places`."""
        return frozenset(phrase[0] for phrase in self.places)


def language_of(text: str) -> Language:
    """The language that a question and its reference are in, by script and by how many function words are its own."""
    script = _script(text)
    candidates = _SCRIPTS.get(script, ())
    words = fold_words(text)
    if len(candidates) > 1:
        votes = {code: sum(word in language(code).functions for word in words) for code in candidates}
        return language(max(candidates, key=votes.__getitem__))
    return language(candidates[0] if candidates else "")


@cache
def language(code: str) -> Language:
    """A language by its code; one that is not described here has the short words of `stopwordsiso` and no more."""
    parts = _described().get(code)
    if parts is None:
        return Language(code, frozenset(_short_words(code)))
    phrases = {
        tuple(fold(word) for word in phrase.replace("_", " ").split()): place
        for place in PLACES
        for phrase in parts.get(place, "").split()
    }
    return Language(
        code,
        functions=_set(parts["functions"]),
        articles=_set(parts.get("articles", "")),
        denials=_set(parts.get("denials", "")),
        certainties=_phrases(parts.get("certainties", "")),
        bounds=_phrases(parts.get("bounds", "")),
        doubts=_phrases(parts.get("doubts", "")),
        exclusions=_phrases(parts.get("exclusions", "")),
        choices=frozenset(parts.get("choices", "").split()),
        determiners=_set(parts.get("determiners", "")),
        turns=_set(parts.get("turns", "")),
        joints=_set(parts.get("joints", "")),
        places=phrases,
        months=tuple(fold(name) for name in parts.get("months", "").split()),
        numbers=_numbers(parts.get("numbers", "")),
        follows=code in ("hi", "ko"),
    )


@cache
def _described() -> dict[str, dict[str, str]]:
    return tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))


def _numbers(listed: str) -> dict[str, int]:
    """Forms with their values, `сорока=40`; without values they count from 0."""
    pairs = (form.partition("=") for form in listed.split())
    return {fold(form): int(value or at) for at, (form, _, value) in enumerate(pairs)}


def _set(words: str) -> frozenset[str]:
    return frozenset(fold(word) for word in words.split())


def _phrases(listed: str) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(fold_words(phrase)) for phrase in listed.split(",") if phrase.strip())


def _short_words(code: str) -> Sequence[str]:
    listed = library("stopwordsiso")
    if not listed.has_lang(code):
        return ()
    return [fold(word) for word in listed.stopwords(code) if len(word) <= 3]


_LETTERS = {
    "Hani": regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}]"),
    "Kana": regex.compile(r"[\p{Hiragana}\p{Katakana}]"),
    "Cyrl": regex.compile(r"\p{Cyrillic}"),
    "Arab": regex.compile(r"\p{Arabic}"),
    "Deva": regex.compile(r"\p{Devanagari}"),
    "Grek": regex.compile(r"\p{Greek}"),
    "Hang": regex.compile(r"\p{Hangul}"),
    "Hebr": regex.compile(r"\p{Hebrew}"),
    "Beng": regex.compile(r"\p{Bengali}"),
    "Armn": regex.compile(r"\p{Armenian}"),
    "Latn": regex.compile(r"\p{Latin}"),
}
_SCRIPTS: dict[str, tuple[str, ...]] = {
    "Kana": ("ja",),
    "Hani": ("zh",),
    "Cyrl": ("ru", "uk", "bg"),
    "Arab": ("ar", "fa", "ur"),
    "Deva": ("hi", "mr"),
    "Grek": ("el",),
    "Hang": ("ko",),
    "Hebr": ("he",),
    "Beng": ("bn",),
    "Armn": ("hy",),
    "Latn": (
        *("en", "de", "fr", "es", "it", "pt", "nl", "pl", "cs", "sk", "sl", "hr", "hu", "ro", "fi", "et", "lv", "lt"),
        *("sv", "no", "da", "tr", "id", "ms", "vi", "ca", "eu", "gl", "af", "sw", "tl", "la"),
    ),
}


def _script(text: str) -> str:
    counts = {name: len(letters.findall(text)) for name, letters in _LETTERS.items()}
    if counts["Kana"] and counts["Hani"] >= counts["Latn"]:
        return "Kana"
    return max(counts, key=counts.__getitem__)

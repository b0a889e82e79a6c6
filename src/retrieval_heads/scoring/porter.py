"""Porter's stemmer (An algorithm for suffix stripping, Program 14.3, 1980), with what nltk's changes by default.

rouge-score stems with nltk's, whose import takes longer than a run that asks a warm engine. The tests compare the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

Rule = tuple[str, str]
"""An ending and what takes its place."""

_IRREGULAR: Final = {
    "skies": "sky",
    "sky": "sky",
    "dying": "die",
    "lying": "lie",
    "tying": "tie",
    "news": "news",
    "innings": "inning",
    "inning": "inning",
    "outings": "outing",
    "outing": "outing",
    "cannings": "canning",
    "canning": "canning",
    "howe": "howe",
    "proceed": "proceed",
    "exceed": "exceed",
    "succeed": "succeed",
}
_SUFFIXES: Final[tuple[Rule, ...]] = (
    ("ational", "ate"),
    ("tional", "tion"),
    ("enci", "ence"),
    ("anci", "ance"),
    ("izer", "ize"),
    ("bli", "ble"),
    ("alli", "al"),
    ("entli", "ent"),
    ("eli", "e"),
    ("ousli", "ous"),
    ("ization", "ize"),
    ("ation", "ate"),
    ("ator", "ate"),
    ("alism", "al"),
    ("iveness", "ive"),
    ("fulness", "ful"),
    ("ousness", "ous"),
    ("aliti", "al"),
    ("iviti", "ive"),
    ("biliti", "ble"),
    ("fulli", "ful"),
)
_MORE_SUFFIXES: Final[tuple[Rule, ...]] = (
    ("icate", "ic"),
    ("ative", ""),
    ("alize", "al"),
    ("iciti", "ic"),
    ("ical", "ic"),
    ("ful", ""),
    ("ness", ""),
)
_LAST_SUFFIXES: Final = (
    *("al", "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ment", "ent", "ion", "ou", "ism", "ate"),
    *("iti", "ous", "ive", "ize"),
)


def stem(word: str) -> str:
    """The stem of an English word in lower case; step by step as the paper numbers them."""
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if len(word) <= 2:
        return word
    for step in (_step_1a, _step_1b, _step_1c, _step_2, _step_3, _step_4, _step_5):
        word = step(word)
    return word


def _shape(word: str) -> str:
    """`c` for each consonant, `v` for each vowel: a `y` behind a consonant is a vowel."""
    shape = ""
    for letter in word:
        is_vowel = letter in "aeiou" or (letter == "y" and shape.endswith("c"))
        shape += "v" if is_vowel else "c"
    return shape


def _measure(part: str) -> int:
    """How often consonants follow vowels."""
    return _shape(part).count("vc")


def _ends_short(part: str) -> bool:
    """Whether it ends as "hop" does, or is a word as "us"."""
    shape = _shape(part)
    return shape == "vc" or (shape.endswith("cvc") and part[-1] not in "wxy")


def _replaced(word: str, rules: Iterable[Rule], is_right: Callable[[str], bool]) -> str:
    """With another ending; the first that the word has decides, whether or not what stands before it is right."""
    for ending, other in rules:
        if word.endswith(ending):
            part = word.removesuffix(ending)
            return part + other if is_right(part) else word
    return word


def _step_1a(word: str) -> str:
    if word.endswith("ies"):
        return word[:-1] if len(word) == 4 else word[:-2]
    if word.endswith("sses"):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


def _step_1b(word: str) -> str:
    if word.endswith("ied"):
        return word[:-1] if len(word) == 4 else word[:-2]
    if word.endswith("eed"):
        return word[:-1] if _measure(word[:-3]) else word
    for ending in ("ed", "ing"):
        part = word.removesuffix(ending)
        if part != word and "v" in _shape(part):
            return _mended(part)
    return word


def _mended(part: str) -> str:
    """What is left without "ed" or "ing", with the "e" or without the doubled letter of the word itself."""
    if part.endswith(("at", "bl", "iz")):
        return part + "e"
    if part[-1] == part[-2:-1] and _shape(part).endswith("c"):
        return part if part[-1] in "lsz" else part[:-1]
    return part + "e" if _measure(part) == 1 and _ends_short(part) else part


def _step_1c(word: str) -> str:
    part = word.removesuffix("y")
    is_changed = part != word and len(part) > 1 and _shape(part).endswith("c")
    return part + "i" if is_changed else word


def _step_2(word: str) -> str:
    if word.endswith("alli") and _measure(word[:-4]):
        return _step_2(word[:-2])
    if word.endswith("logi"):  # its "l" counts with what stands before it, as of "geology"
        return word[:-1] if _measure(word[:-3]) else word
    return _replaced(word, _SUFFIXES, lambda part: _measure(part) > 0)


def _step_3(word: str) -> str:
    return _replaced(word, _MORE_SUFFIXES, lambda part: _measure(part) > 0)


def _step_4(word: str) -> str:
    def is_right(part: str) -> bool:
        return _measure(part) > 1 and (not word.endswith("ion") or part[-1] in "st")

    return _replaced(word, ((ending, "") for ending in _LAST_SUFFIXES), is_right)


def _step_5(word: str) -> str:
    if word.endswith("e"):
        part = word[:-1]
        measure = _measure(part)
        word = part if measure > 1 or (measure == 1 and not _ends_short(part)) else word
    return word[:-1] if word.endswith("ll") and _measure(word[:-1]) > 1 else word

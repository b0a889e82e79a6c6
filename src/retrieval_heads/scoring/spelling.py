"""One spelling for what is written in several: case, width, diacritics, Arabic marks, Devanagari nasals."""

from __future__ import annotations

import unicodedata
from functools import lru_cache

import regex

_MARKS = regex.compile(r"(?<=[\p{Latin}\p{Greek}\p{Cyrillic}\p{Arabic}\p{Hebrew}]\p{M}*)\p{M}")
_ARABIC = str.maketrans(
    {"أ": "ا", "إ": "ا", "آ": "ا", "ٱ": "ا", "ى": "ي", "ة": "ه", "ؤ": "و", "ئ": "ي", "ـ": "", "ی": "ي", "ک": "ك"}
)
_LATIN = str.maketrans({"ø": "o", "đ": "d", "ł": "l", "ı": "i", "æ": "ae", "œ": "oe", "ð": "d", "þ": "th", "ß": "ss"})
_NASAL = regex.compile(r"[\u0919\u091e\u0923\u0928\u092e]\u094d(?=[\u0915-\u092e])|\u0901")
_UMLAUTS = {"ä": "ae", "ö": "oe", "ü": "ue"}
_WORD = regex.compile(r"[\p{L}\p{M}\p{N}]+")


@lru_cache(maxsize=65536)
def fold(text: str) -> str:
    """A text without case, width and diacritics: `Ｔélescope` is `telescope`, `المفتاحُ` is `المفتاح`."""
    text = unicodedata.normalize("NFKC", text).casefold()
    text = _MARKS.sub("", unicodedata.normalize("NFD", text))
    text = unicodedata.normalize("NFC", text).translate(_LATIN).translate(_ARABIC)
    nasal: str = _NASAL.sub("\u0902", text)
    return nasal.replace("\u093c", "")


@lru_cache(maxsize=65536)
def spellings(word: str) -> frozenset[str]:
    """A word as `fold` has it, and with umlauts written out: `Schlüssel` is `schlussel` and `schluessel`."""
    low = unicodedata.normalize("NFC", unicodedata.normalize("NFKC", word).casefold())
    spelt = "".join(_UMLAUTS.get(letter, letter) for letter in low)
    return frozenset((fold(word), fold(spelt)))


def fold_words(text: str) -> list[str]:
    """The folded words of a text."""
    return [fold(word) for word in _WORD.findall(unicodedata.normalize("NFKC", text))]

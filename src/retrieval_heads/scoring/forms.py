"""Whether two words are forms of one: telescopes of telescope, медного of медный, والتلسكوب of تلسكوب.

Lemmas are `simplemma`'s (54 languages). Where its dictionary does not know a word, or has none of the language
(Arabic), the Snowball stemmer of `nltk` is asked. Stemming alone is too coarse: Porter's makes one word of
"telescope" and "telescopic", Snowball's of the Russian names Иван and Иванов.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any

from retrieval_heads.scoring.library import library
from retrieval_heads.scoring.spelling import fold

_STEMMERS = {
    "ar": "arabic",
    "da": "danish",
    "de": "german",
    "es": "spanish",
    "fi": "finnish",
    "fr": "french",
    "hu": "hungarian",
    "it": "italian",
    "nl": "dutch",
    "no": "norwegian",
    "pt": "portuguese",
    "ro": "romanian",
    "ru": "russian",
    "sv": "swedish",
}
_ARABIC_PROCLITICS = ("وبال", "فبال", "وال", "بال", "كال", "فال", "ولل", "لل", "ال", "و", "ف", "ب", "ل", "ك")
_KOREAN_PARTICLES = (
    *("에서는", "입니다", "에서", "에게", "으로", "까지", "부터", "이다", "이고", "에는"),
    *("은", "는", "이", "가", "을", "를", "의", "에", "로", "와", "과", "도", "만", "다"),
)
_LONGEST_ENDING = 3


@lru_cache(maxsize=65536)
def forms(word: str, code: str) -> frozenset[str]:
    """What a word shares with its other forms, folded: its lemma, else its stem.

    Args:
        word: As written.
        code: Its language, ISO 639-1.
    """
    if code == "ar":
        return frozenset(_arabic_stem(each) for each in _without_proclitics(fold(word)))
    if code == "ko":
        return frozenset((word, *(word.removesuffix(each) for each in _KOREAN_PARTICLES if word != each)))
    found = {fold(word)}
    if _has_lemmas(code):
        low = word.lower()
        for spelt in {word, low}:
            lemma = _lemma(spelt, code)
            found.add(fold(lemma))
        if code == "en" and low.endswith("ing") and _lemma(low, code) == low:
            found |= {fold(_lemma(root, code)) for root in _without_ing(low) if _is_known(root, code)}
        if (code != "en" and not _is_known(low, code)) or code in ("fr", "es", "it", "pt"):
            found |= _stem(low, code)
    elif code in _STEMMERS:
        found |= _stem(word.lower(), code)
    return frozenset(found)


def _without_ing(word: str) -> tuple[str, ...]:
    root = word[:-3]
    undoubled = root[:-1] if len(root) > 2 and root[-1] == root[-2] else root
    return tuple(each for each in (undoubled, root, root + "e") if len(each) > 2)


def _without_proclitics(word: str) -> set[str]:
    found = {word}
    for clitic in _ARABIC_PROCLITICS:
        rest = word.removeprefix(clitic)
        if rest != word and len(rest) >= 3:
            found.add(rest)
    return found


@cache
def _arabic_stem(word: str) -> str:
    stem = fold(str(_stemmer("ar").stem(word)))
    return stem if len(stem) >= 3 else word


def _stem(word: str, code: str) -> frozenset[str]:
    if code not in _STEMMERS or len(word) < 5:
        return frozenset()
    stem = str(_stemmer(code).stem(word))
    return frozenset((f"{fold(stem)}-",)) if len(word) - len(stem) <= _LONGEST_ENDING else frozenset()


@cache
def _stemmer(code: str) -> Any:
    return library("nltk.stem.snowball").SnowballStemmer(_STEMMERS[code])


@cache
def _has_lemmas(code: str) -> bool:
    return code in library("simplemma.strategies.dictionaries.dictionary_factory").SUPPORTED_LANGUAGES


@lru_cache(maxsize=65536)
def _lemma(word: str, code: str) -> str:
    return str(library("simplemma").lemmatize(word, lang=code))  # of a dictionary of some megabytes


@lru_cache(maxsize=65536)
def _is_known(word: str, code: str) -> bool:
    return bool(library("simplemma").is_known(word, lang=code))


def is_known(word: str, code: str) -> bool:
    """Whether a language's dictionary has a word in lower case: a name is in none."""
    return _has_lemmas(code) and _is_known(word.lower(), code)

"""The score that decides by default: does the answer say what only the needle knows?

The key words of a reference are its words without function words and without those that the question holds already.
An answer is retrieved when it says all of them, in whatever form, order and spelling, close together, and does not
deny them, doubt them or offer another value beside them. Numbers and names count whole.

A reference that is a whole sentence of at least four key words (a needle without `answer`) holds circumstances that a
right answer may leave out: there `SHARE` of the key words are enough, numbers and names among them, two in a row
missing at its end alone, unless the answer puts another word in the place of one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import regex

from retrieval_heads.scoring import unspaced
from retrieval_heads.scoring.forms import forms, is_known
from retrieval_heads.scoring.languages import Language, language_of
from retrieval_heads.scoring.reading import Word, read_words
from retrieval_heads.scoring.spelling import fold

SHARE = 0.7
"""Of a whole sentence's key words; with the classic needle 5 of 7: "eat a sandwich and sit in Dolores Park"."""

_SENTENCE_END = regex.compile(r"[.!?。！？।؟][\"'”’»)\s]*$")
_ANOTHER = "the answer offers another value as well"
_FEWEST_OF_A_SENTENCE = 4
_REACH = 3  # words that may stand between a place word and its noun
_APART = 1  # words that may stand between two that are neighbours in the reference
_AND = frozenset(("and", "&", "und", "et", "y", "e", "и", "та", "en", "og", "och", "και", "و", "और"))
_TO = frozenset(("to", "bis", "à", "a", "al", "до", "bis", "tot", "إلى", "से"))
_ASKED = frozenset("?؟？")
_LINKS = ("", "s", "es", "n", "en", "er", "e")
_COMPOUNDING = ("de", "nl", "sv", "da", "no", "fi", "hu", "en")
_SHORTEST_PART = 4
_LONGEST_SHORT = 4


@dataclass(frozen=True)
class KeyWords:
    """What an answer says of a reference.

    Args:
        words: The key words, as the reference writes them.
        missing: Those that the answer does not say.
        objection: Why an answer that says enough of them is not retrieved all the same; empty where it is.
        spans: Where in the answer key words stand, `[start, end)`.
        is_retrieved: Whether the answer says what only the needle knows.
    """

    words: tuple[str, ...]
    missing: tuple[str, ...]
    objection: str
    spans: tuple[tuple[int, int], ...]
    is_retrieved: bool

    @property
    def score(self) -> float:
        """1 where it is retrieved; else half the share of key words that are said, so at most 0.5."""
        if self.is_retrieved:
            return 1.0
        return (len(self.words) - len(self.missing)) / len(self.words) / 2 if self.words else 0.0

    @property
    def reason(self) -> str:
        """Why the answer is not retrieved; empty where it is."""
        if self.is_retrieved:
            return ""
        if self.objection:
            return self.objection
        said = len(self.words) - len(self.missing)
        return f"says {said} of {len(self.words)} key words; missing: {', '.join(self.missing)}"


def best_key_words(answer: str, references: Sequence[str], question: str) -> KeyWords:
    """What the answer says of the reference that it says most of; any one of them is enough."""
    return max((key_words(answer, each, question) for each in references), key=lambda each: each.score)


def key_words(answer: str, reference: str, question: str) -> KeyWords:
    """Compare an answer with one reference."""
    if unspaced.is_unspaced(reference):
        return _of_unspaced(unspaced.compare(answer, reference, question))
    expected = _expected(reference, question)
    if not expected.keys:  # signs alone: then as they are written
        signs = reference.strip()
        is_said = bool(signs) and signs in answer
        return KeyWords((), (), "" if is_said else f"the answer does not hold {signs!r}", (), is_said)
    return _Comparison(answer, expected).result()


@lru_cache(maxsize=1024)
def key_words_of(reference: str, question: str) -> tuple[str, ...]:
    """The key words of a reference."""
    return key_words("", reference, question).words


def _of_unspaced(found: unspaced.Comparison) -> KeyWords:
    is_retrieved = not found.missing and not found.objection
    return KeyWords(found.parts, found.missing, "" if found.missing else found.objection, found.spans, is_retrieved)


@dataclass(frozen=True)
class _Key:
    """A key word: where it stands in the reference, and what counts as saying it."""

    at: int
    word: Word
    is_name: bool
    place: str = ""
    is_short: bool = False
    """Its capitals alone tell it from another word."""
    is_particle: bool = False
    """A place word with no noun behind it."""


class _Expected:
    """A reference, and what of it an answer must say."""

    def __init__(self, reference: str, question: str) -> None:
        self.text = reference
        self.language = language_of(f"{question} {reference}")
        self.reference = read_words(reference, self.language)
        self.question = read_words(question, self.language)
        self.keys = self._keys()
        self.is_long = bool(_SENTENCE_END.search(reference.strip())) and len(self.keys) >= _FEWEST_OF_A_SENTENCE

    def _keys(self) -> list[_Key]:
        novel = [at for at, word in enumerate(self.reference) if self._is_short(at) or not self.is_asked(word)]
        content = [
            at
            for at in novel
            if self._is_short(at) or self._is_particle(at) or not is_function(self.reference[at], self.language)
        ]
        return [
            _Key(
                at,
                self.reference[at],
                self._is_name(at),
                "" if self._is_short(at) else place_at(self.reference, at, self.language)[0],
                self._is_short(at),
                self._is_particle(at),
            )
            for at in content or novel
        ]

    def _is_particle(self, at: int) -> bool:
        """Whether a place word has no noun behind it: switched on, on and off."""
        if self.language.follows or not place_at(self.reference, at, self.language)[0]:
            return False
        return at + 1 == len(self.reference) or bool(self.reference[at + 1].folds & _AND)

    def _is_short(self, at: int) -> bool:
        """Whether its capitals alone tell a word from another one of the same letters: the WHO, the US, vitamin A."""
        word = self.reference[at]
        is_word = is_function(word, self.language)
        if not word.text.isupper() or any(other.text == word.text for other in self.question):
            return False
        others = [other.text for other in self.reference if other is not word and other.text[0].isalpha()]
        if not others:
            return is_word
        is_word = is_word or (1 < len(word.text) <= _LONGEST_SHORT and is_known(word.text, self.language.code))
        return is_word and (at > 0 or len(word.text) > 1) and not all(other.isupper() for other in others)

    def is_asked(self, word: Word) -> bool:
        return any(same(word, other, self.language.code) for other in self.question)

    def _is_name(self, at: int) -> bool:
        """A capital inside a sentence; at its start one that no dictionary has, or with another capital behind it."""
        word = self.reference[at]
        if word.is_number or not word.text[0].isupper() or self.language.code == "de":
            return False
        if at and self.reference[at - 1].sentence == word.sentence:
            return True
        after = self.reference[at + 1] if at + 1 < len(self.reference) else None
        return not is_known(word.text, self.language.code) or (after is not None and after.text[0].isupper())


@lru_cache(maxsize=1024)
def _expected(reference: str, question: str) -> _Expected:
    return _Expected(reference, question)


def is_function(word: Word, language: Language) -> bool:
    """Whether an answer may leave a word out; a number it may not, though an article may say "one"."""
    if word.values and not word.folds & language.articles:
        return False
    return bool(word.folds & language.functions)


def same(word: Word, other: Word, code: str, *, is_name: bool = False) -> bool:
    """Whether two words of a language say one thing: one number, one name, forms of one word."""
    if word.values & other.values:
        return True
    if word.is_number or other.is_number:
        return False
    if word.folds & other.folds:
        return True
    if word.is_run or other.is_run:
        return False
    if is_name and word.text.isascii():
        return f"{word.fold}s" == other.fold and code in ("de", "nl", "sv", "da", "no")
    return bool(forms(word.text, code) & forms(other.text, code))


def place_at(words: Sequence[Word], at: int, language: Language) -> tuple[str, int]:
    """The class of the place word or phrase that begins here, and its length in words; the longest one."""
    if words[at].fold not in language.place_starts:
        return "", 0
    for size in (3, 2, 1):
        phrase = tuple(word.fold for word in words[at : at + size])
        if len(phrase) == size and phrase in language.places:
            return language.places[phrase], size
    return "", 0


class _Comparison:
    def __init__(self, answer: str, expected: _Expected) -> None:
        self.expected = expected
        self.language, self.keys, self.is_long = expected.language, expected.keys, expected.is_long
        self.reference, self.question = expected.reference, expected.question
        self.text = answer
        self.answer = read_words(answer, self.language)
        self.blocked = self._blocked()

    def result(self) -> KeyWords:
        every = set(range(len(self.answer)))
        anywhere = self._found(every)
        usable = self._found(every - self.blocked.keys()) if self.blocked else anywhere
        missing = [key for key, places in zip(self.keys, usable, strict=True) if not places]
        is_enough = self._is_enough(usable)
        objection = ""
        if not is_enough and self._is_enough(anywhere):
            missing, usable = [key for key, at in zip(self.keys, anywhere, strict=True) if not at], anywhere
            reasons = [
                self.blocked[at] for places in anywhere for found in places for at in found if at in self.blocked
            ]
            objection = reasons[0] if reasons else ""
        elif is_enough:
            objection = self._objection(usable)
        spans = tuple(sorted({(self.answer[at].start, self.answer[at].end) for p in usable for f in p for at in f}))
        return KeyWords(
            tuple(key.word.text for key in self.keys),
            tuple(key.word.text for key in missing),
            objection,
            spans,
            is_enough and not objection,
        )

    def _is_enough(self, found: list[list[tuple[int, ...]]]) -> bool:
        said = [bool(places) for places in found]
        if not self.is_long:
            return all(said) and bool(said)
        if any(not is_said and (key.is_name or key.word.values) for key, is_said in zip(self.keys, said, strict=True)):
            return False
        # Circumstances stand at the end; what is left out before it is no more than a word here and there.
        last = max((at for at, is_said in enumerate(said) if is_said), default=-1)
        if any(not one and not other for one, other in pairwise(said[:last])):
            return False
        return sum(said) >= math.ceil(SHARE * len(said) - 1e-9)

    # Where an answer says it

    def _found(self, usable: set[int]) -> list[list[tuple[int, ...]]]:
        """For each key word the places in the answer that say it, each the positions of one word or of several."""
        found = [list(self._places(number, usable)) for number in range(len(self.keys))]
        for number, (key, after) in enumerate(zip(self.keys, self.keys[1:], strict=False)):
            # Two key words may be one in the answer: Fernrohr aus Messing is Messingfernrohr.
            if found[number] and found[number + 1]:
                continue
            for at in sorted(usable):
                if self._is_joined(self.answer[at], (key.word, after.word)):
                    found[number].append((at,))
                    found[number + 1].append((at,))
        return found

    def _places(self, number: int, usable: set[int]) -> Iterator[tuple[int, ...]]:
        key = self.keys[number]
        for at in sorted(usable):
            word = self.answer[at]
            if key.is_short and not word.text.isupper():
                continue
            if key.is_particle and self._begins_a_place(at):
                continue
            if same(key.word, word, self.language.code, is_name=key.is_name) or (
                (key.place and self._says_place(number, at, usable)) or self._says_one(number, at, usable)
            ):
                yield (at,)
            elif at + 1 in usable and self._is_joined(key.word, (word, self.answer[at + 1])):
                yield (at, at + 1)
        if self.language.code in _COMPOUNDING and not key.word.values and not key.is_name:
            yield from self._parts(key.word, usable)

    def _is_joined(self, whole: Word, parts: tuple[Word, Word]) -> bool:
        first, second = parts
        if whole.values or first.values or second.values:
            return False
        if len(first.fold) < 3 or len(second.fold) < 3:
            return f"{first.fold}{second.fold}" == whole.fold and second.glued
        said = whole.folds | forms(whole.text, self.language.code)
        if self.language.code == "en":
            return f"{first.fold}{second.fold}" in said
        return any(
            f"{one}{link}{two}" in said
            for one, two in ((first.fold, second.fold), (second.fold, first.fold))
            for link in _LINKS[:5]
        )

    def _parts(self, word: Word, usable: set[int]) -> Iterator[tuple[int, ...]]:
        """A compound that the answer takes apart: Messingfernrohr as Fernrohr aus Messing."""
        if self.language.code == "en":
            return
        whole = word.text
        for cut in range(_SHORTEST_PART, len(whole) - _SHORTEST_PART + 1):
            tail = [at for at in usable if self._is_form(whole[cut:], self.answer[at])]
            heads = {whole[:cut].removesuffix(link) for link in _LINKS} if tail else set()
            head = [at for at in usable if any(self._is_form(each, self.answer[at]) for each in heads if len(each) > 2)]
            if head and tail:
                yield (head[0], tail[0])
                return

    def _is_form(self, part: str, word: Word) -> bool:
        return fold(part) in word.folds or bool(
            forms(part.capitalize(), self.language.code) & forms(word.text, self.language.code)
        )

    # Places and articles

    def _begins_a_place(self, at: int) -> bool:
        """Whether an article stands behind a place word: on the table says nothing of what is on."""
        after = self.answer[at + 1 : at + 2]
        return any(word.folds & (self.language.articles | self.language.determiners) for word in after)

    def _says_place(self, number: int, at: int, usable: set[int]) -> bool:
        """Whether another word of the same place stands before (or behind) the noun: in the telescope, inside it."""
        place, size = place_at(self.answer, at, self.language)
        if place != self.keys[number].place:
            return False
        beside = self.keys[number - 1 : number] if self.language.follows else self.keys[number + 1 : number + 2]
        if not beside:
            return True
        step = -1 if self.language.follows else 1
        return self._leads_to(at + (step if step < 0 else size), step, beside[0].word)

    def _says_one(self, number: int, at: int, usable: set[int]) -> bool:
        """Whether an article stands where the reference has "one": a cook is one cook."""
        is_one = self.keys[number].word.values == {"1"} and self.answer[at].folds & self.language.articles
        after = self.keys[number + 1 : number + 2]
        return bool(is_one and after and self._leads_to(at + 1, 1, after[0].word))

    def _leads_to(self, at: int, step: int, wanted: Word) -> bool:
        """Whether a word is reached over function words and a few others, in one clause."""
        others, clause = 0, self.answer[at - step].clause
        while 0 <= at < len(self.answer) and self.answer[at].clause == clause and others <= _REACH - 1:
            if same(wanted, self.answer[at], self.language.code):
                return True
            if place_at(self.answer, at, self.language)[0]:
                return False
            if not is_function(self.answer[at], self.language):
                others += 1
            at += step
        return False

    # What speaks against an answer that says it all

    def _blocked(self) -> dict[int, str]:
        """The words of the answer that do not count, and why: what is denied, doubted, or one of several choices."""
        known = [*self.question, *self.reference]
        said, words = [word.fold for word in known], [word.fold for word in self.answer]
        there = set(words)
        blocked: dict[int, str] = {}
        if not any(word.text.casefold() in self.language.choices for word in known):
            for at, word in enumerate(self.answer):
                if word.text.casefold() in self.language.choices:
                    blocked |= dict.fromkeys(self._sentence(at), _ANOTHER)
        for at in self._questions():
            blocked |= dict.fromkeys(self._sentence(at), "the answer asks it")
        for phrase in _begun(self.language.doubts, there):
            if not _positions(said, phrase):
                for at in _positions(words, phrase):
                    blocked |= dict.fromkeys(self._sentence(at), "the answer leaves it open")
        for phrase in _begun(self.language.exclusions, there):
            if not _positions(said, phrase):
                for at in _positions(words, phrase):
                    blocked |= dict.fromkeys(self._sentence(at), "the answer denies it")
        if not self._holds(known, self.language.denials):
            certain = {
                at + step
                for phrase in _begun(self.language.certainties, there)
                for at in _positions(words, phrase)
                for step in range(len(phrase))
            }
            for at, word in enumerate(self.answer):
                if word.folds & self.language.denials and at not in certain:
                    blocked |= dict.fromkeys(self._reach(at), "the answer denies it")
        for phrase in _begun(self.language.bounds, there):
            if not _positions(said, phrase):
                for at in _positions(words, phrase):
                    blocked |= {
                        number: f"the answer says {' '.join(phrase)}"
                        for number in (at - 1, at + len(phrase))
                        if 0 <= number < len(self.answer) and self.answer[number].is_number
                    }
        return blocked | self._among_others(known) | self._of_names()

    def _questions(self) -> Iterator[int]:
        """The last words of what the answer asks, where the reference is no question."""
        if _ASKED & set(self.expected.text):
            return
        for at, word in enumerate(self.answer):
            end = self.answer[at + 1].start if at + 1 < len(self.answer) else len(self.text)
            if _ASKED & set(self.text[word.end : end]):
                yield at

    def _of_names(self) -> dict[int, str]:
        """Names of which the answer says something that is theirs: Agnes Thorvald's sister."""
        blocked: dict[int, str] = {}
        for at, word in enumerate(self.answer[1:-1], start=1):
            after = self.answer[at + 1]
            if word.fold != "s" or not word.glued or after.clause != word.clause or after.text[0].isupper():
                continue
            if is_function(after, self.language) or after.is_number or self.expected.is_asked(after):
                continue
            is_expected = any(same(after, each, self.language.code) for each in self.reference)
            is_name = any(key.is_name and key.word.folds & self.answer[at - 1].folds for key in self.keys)
            if is_name and not is_expected:
                blocked[at - 1] = f"the answer says {after.text}"
        return blocked

    def _among_others(self, known: Sequence[Word]) -> dict[int, str]:
        """Numbers beside which the answer gives another one of about as many digits: 48213 and 48214, 48213/48214."""
        asked = frozenset(value for word in known for value in word.values)
        numbers = [at for at, word in enumerate(self.answer) if word.is_number]
        blocked: dict[int, str] = {}
        for at, other in pairwise(numbers):
            one, two = self.answer[at], self.answer[other]
            between = self.answer[at + 1 : other]
            if len(between) > 1 or (between and not between[0].folds & (_AND | _TO)):
                continue
            if not between and self.text[one.end : two.start].strip() not in (",", "/", "-", "–", "—", "&", "،"):
                continue
            if one.values & asked and not two.values & asked:
                at, new = at, two
            elif two.values & asked and not one.values & asked:
                at, new = other, one
            else:
                continue
            lengths = [len(min(each.values, key=len)) for each in (self.answer[at], new)]
            if abs(lengths[0] - lengths[1]) <= 1:
                blocked[at] = _ANOTHER
        return blocked

    def _holds(self, words: Sequence[Word], of: frozenset[str]) -> bool:
        return any(word.folds & of for word in words)

    def _sentence(self, at: int) -> range:
        number = self.answer[at].sentence
        inside = [i for i, word in enumerate(self.answer) if word.sentence == number]
        return range(inside[0], inside[-1] + 1)

    def _reach(self, at: int) -> range:
        """The words that a denial reaches: its clause, on its left no further than to a conjunction."""
        first = last = at
        clause = self.answer[at].clause
        while (
            first
            and self.answer[first - 1].clause == clause
            and not self.answer[first - 1].folds & self.language.joints
        ):
            first -= 1
        while last + 1 < len(self.answer) and self.answer[last + 1].clause == clause:
            last += 1
        return range(first, last + 1)

    def _objection(self, found: list[list[tuple[int, ...]]]) -> str:
        if self.is_long:
            return self._other_place(found) or self._scattered(found) or self._replaced(found)
        return self._other_place(found) or self._scattered(found) or self._listed(found)

    def _other_place(self, found: list[list[tuple[int, ...]]]) -> str:
        """A place word before the noun that is not the reference's: under the telescope for inside it."""
        for number, key in enumerate(self.keys):
            wanted = self._governing(self.reference, key.at)
            if not wanted or key.word.values or forms(key.word.text, self.language.code) & _TIMES:
                continue
            others = {self._governing(self.answer, at) for places in found[number] for at in places[:1]}
            if others and not others & {"", wanted}:
                return f"the answer says another place: {sorted(others)[0]}, not {wanted}"
        return ""

    def _governing(self, words: Sequence[Word], at: int) -> str:
        """The place that a noun is said to be in, under, behind, ...; empty where none is said."""
        step = 1 if self.language.follows else -1
        clause, others, here = words[at].clause, 0, at + step
        while 0 <= here < len(words) and words[here].clause == clause and others < _REACH:
            for start in (here - 2, here - 1, here) if step < 0 else (here,):
                place, size = place_at(words, start, self.language) if start >= 0 else ("", 0)
                if place and start + size > here:
                    return place
            word = words[here]
            if word.folds & self.language.functions and not word.folds & (
                self.language.articles | self.language.determiners
            ):
                return ""
            if not is_function(word, self.language):
                others += 1
            here += step
        return ""

    def _scattered(self, found: list[list[tuple[int, ...]]]) -> str:
        """Neighbours in the reference that stand far apart in the answer: a plum cake and a jar of jam."""
        for number, (key, after) in enumerate(zip(self.keys, self.keys[1:], strict=False)):
            if after.at - key.at != 1 or not found[number] or not found[number + 1]:
                continue
            gaps = [self._between(a[-1], b[0]) for a in found[number] for b in found[number + 1]]
            if min(gaps) > _APART:
                return f"the answer does not say {key.word.text} and {after.word.text} of one thing"
        return ""

    def _listed(self, found: list[list[tuple[int, ...]]]) -> str:
        """Another thing beside the one that is meant: a jar of plum jam and a jar of honey, a wolf and a bear."""
        keys = {at for places in found for place in places for at in place}
        if any(self._is_slashed(at) for at in keys):
            return _ANOTHER
        for one, two in pairwise(self._members()):
            for whole, other in ((one, two), (two, one)):
                if self._says_all(whole, found) and self._is_another(other, whole, keys):
                    return _ANOTHER
        return ""

    def _is_slashed(self, at: int) -> bool:
        """Whether a slash alone stands between a word and one that neither reference nor question holds."""
        for one, two in ((at - 1, at), (at, at + 1)):
            if one < 0 or two == len(self.answer):
                continue
            if self.text[self.answer[one].end : self.answer[two].start] == "/":
                other = two if one == at else one
                if self._others(other, other + 1, set()) and not any(
                    same(self.answer[other], word, self.language.code) for word in self.reference
                ):
                    return True
        return False

    def _members(self) -> list[list[int]]:
        """The stretches of the answer between its points, its commas and its "and"s."""
        members: list[list[int]] = [[]]
        before = None
        for at, word in enumerate(self.answer):
            is_cut = before is not None and before.clause != word.clause
            if is_cut or word.folds & _AND:
                members.append([])
            if not word.folds & _AND:
                members[-1].append(at)
            before = word
        return [member for member in members if member]

    def _says_all(self, member: Sequence[int], found: list[list[tuple[int, ...]]]) -> bool:
        return all(any(at in member for place in places for at in place) for places in found)

    def _is_another(self, member: Sequence[int], whole: Sequence[int], keys: set[int]) -> bool:
        """An article or a number, then a thing that neither reference nor question holds, and nothing else."""
        first = next((place for place, at in enumerate(member) if self._is_one(self.answer[at])), None)
        if first is None:
            return False
        rest = member[first + 1 :]
        content = [at for at in rest if not is_function(self.answer[at], self.language)]
        new = self._others(rest[0], rest[-1] + 1, keys) if rest else []
        is_same_kind = any(same(key.word, self.answer[at], self.language.code) for key in self.keys for at in content)
        # After a comma or a point stands what is said of it as well: a parrot, a gift from his sister.
        is_listed = bool(self.answer[max(member[0], whole[0]) - 1].folds & _AND)
        is_counted = self.answer[member[first]].is_number or all(key.word.values for key in self.keys)
        if not is_same_kind and (is_counted or not is_listed):
            return False
        most = 2 if is_same_kind or len(rest) > len(content) else 1
        before = [at for at in member[:first] if not is_function(self.answer[at], self.language)]
        return bool(new) and len(content) <= most and not (before and member[0] > min(keys, default=0))

    def _is_one(self, word: Word) -> bool:
        return bool(word.folds & self.language.articles or word.is_number)

    def _between(self, at: int, other: int) -> int:
        first, last = sorted((at, other))
        if any(word.folds & _AND for word in self.answer[first + 1 : last]):
            return _APART + 1
        return sum(not is_function(word, self.language) for word in self.answer[first + 1 : last])

    def _replaced(self, found: list[list[tuple[int, ...]]]) -> str:
        """Another word of content in the place of a missing key word of a whole sentence."""
        said = {number: places[0][0] for number, places in enumerate(found) if places}
        if len(said) == len(self.keys):
            return ""
        taken = {at for places in found for place in places for at in place}
        between = self._others(min(said.values()) + 1, max(said.values()), taken)
        if between:
            return f"the answer also says {' '.join(between)}"
        for number, key in enumerate(self.keys):
            if number in said:
                continue
            before = max((each for each in said if each < number), default=None)
            after = min((each for each in said if each > number), default=None)
            start = said[before] + 1 if before is not None else None
            end = said[after] if after is not None else None
            if start is None and end is not None:
                start = next(
                    (i + 1 for i in range(end - 1, -1, -1) if self.answer[i].clause != self.answer[end].clause), 0
                )
            if end is None and start is not None:
                clause = self.answer[start - 1].clause
                end = next(
                    (i for i in range(start, len(self.answer)) if self.answer[i].clause != clause), len(self.answer)
                )
            others = self._others(start or 0, end or 0, taken)
            if others:
                return f"the answer says {' '.join(others)} in place of {key.word.text}"
        return ""

    def _others(self, first: int, last: int, taken: set[int]) -> list[str]:
        """Words of content that neither the reference nor the question holds."""
        return [
            self.answer[at].text
            for at in range(first, last)
            if at not in taken
            and not is_function(self.answer[at], self.language)
            and not self.expected.is_asked(self.answer[at])
        ]


def _begun(phrases: Sequence[tuple[str, ...]], words: set[str]) -> list[tuple[str, ...]]:
    """Those that may stand there: nearly always none, and looking for each would be most of a comparison."""
    return [phrase for phrase in phrases if phrase[0] in words]


def _positions(words: Sequence[str], phrase: tuple[str, ...]) -> list[int]:
    size = len(phrase)
    return [at for at in range(len(words) - size + 1) if tuple(words[at : at + size]) == phrase]


_TIMES = frozenset(
    [
        "day",
        "morning",
        "evening",
        "night",
        "noon",
        "week",
        "month",
        "year",
        "summer",
        "winter",
        "spring",
        "autumn",
        "sunny",
        "rainy",
        "weekend",
        "tag",
        "abend",
        "nacht",
        "jour",
        "nuit",
        "día",
        "noche",
        "день",
        "ночь",
        "утро",
        "вечер",
        "يوم",
        "दिन",
        "रात",
    ]
)

"""Key words of scripts that are written without spaces: Chinese, Japanese, Thai, Lao, Khmer, Burmese.

There are no words to count, so that a reference is cut into parts: what the question holds already and what is
grammar alone is cut out, and every part that is left must stand in the answer as it is, at most a particle inside.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import regex

from retrieval_heads.scoring.numbers import HAN_NUMERALS, han_digits, han_numerals, han_value
from retrieval_heads.scoring.reading import same_width

_UNSPACED = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]")
_SPACED = regex.compile(r"(?!\p{Han}|\p{Hiragana}|\p{Katakana}|\p{Thai}|\p{Lao}|\p{Khmer}|\p{Myanmar})\p{L}")
_KANA = regex.compile(r"[\p{Hiragana}\p{Katakana}]")
# A point or a comma between digits is the number's.
_MARKS = regex.compile(r"(?:(?!(?<=\p{Nd})[.,](?=\p{Nd}))[\p{P}\p{Z}\p{S}\p{C}])+")
_NUMERALS = regex.compile(
    rf"[{HAN_NUMERALS}]{{2,}}"
    rf"|[{HAN_NUMERALS}](?=[元块塊个個只隻本年月日点點分人名岁歳歲円枚匹台罐瓶杯张張条條把辆輛头頭件双雙封棵颗顆间間层層位箱袋盒碗盘盤壶壺桶艘])|"
    r"\p{Nd}+(?:,\p{Nd}{3})*(?:[.,]\p{Nd}+)?"
)
_FRACTION = regex.compile(r"(\p{Nd}+(?:,\p{Nd}{3})*)(?:\.|,(?!\p{Nd}{3}$))(\p{Nd}+)")
_NEVER = regex.compile(r"(?!)")


@dataclass(frozen=True, eq=False)
class _Language:
    """One language's closed classes.

    Args:
        fill: What may stand between two characters of a part.
        places: Place words, by class.
        grammar: Particles, at which a reference is cut.
        denials: Words that deny their clause.
        certainties: Phrases that hold a denial and deny nothing.
        another: Another value behind a part.
        doubts: Words that leave their sentence open.
        choices: Words between an answer and another one.
    """

    fill: str = r"\s*"
    places: Mapping[str, str] = field(default_factory=dict)
    grammar: regex.Pattern[str] = _NEVER
    denials: regex.Pattern[str] = _NEVER
    certainties: regex.Pattern[str] = _NEVER
    another: regex.Pattern[str] = _NEVER
    doubts: regex.Pattern[str] = _NEVER
    choices: regex.Pattern[str] = _NEVER


_LANGUAGES = {
    "zh": _Language(
        fill=r"[\s的之个個一了着制製质質]{0,2}",
        places={
            "in": "里面 里头 里边 之中 之内 内部 裡面 裏面 里 裡 裏 内 內 中",
            "under": "下面 底下 下方 之下 下边 下",
            "on": "上面 上方 之上 上边 上",
            "behind": "后面 背后 后方 后边 後面 后",
            "before": "前面 前方 前边 前",
            "beside": "旁边 旁 侧面 邊上",
            "outside": "外面 外边 外",
        },
        grammar=regex.compile(r"[的了是在把被将和与及并而且也都就于於之着过吗呢吧这那其它他她们个]+"),
        denials=regex.compile(r"不|没|沒|无|無|未|非|别|別|勿|曾经|曾經|停止|拒绝|拒絕|否认|否認|怀疑|懷疑"),
        certainties=regex.compile(r"毫?[无無]疑[问問]?|[没沒]有疑[问問]|毫不[怀懷]疑|不[仅僅只但光]|不用[说說]"),
        another=regex.compile(r"(?:以及|和|与|與|跟|/)(\p{Han}{2,4})"),
        doubts=regex.compile(r"可能|也许|也許|或许|大概|不知道|不确定|不確定|说不定|没有提到|未提及|没有说"),
        choices=regex.compile(r"或者|或是|还是|還是|或(?!许|許)|要么"),
    ),
    "ja": _Language(
        fill=r"(?:[\s、]|製の|の|な)?",
        places={
            "in": "中 内側 内部 なか",
            "under": "下 した",
            "on": "上 うえ",
            "behind": "後ろ 裏 うしろ",
            "before": "前 まえ",
            "beside": "横 隣 そば",
            "outside": "外",
        },
        grammar=regex.compile(r"\p{Hiragana}+"),
        denials=regex.compile(r"ない|なかった|ません|ではな|じゃな|ず[。、]|無い|やめ|かつて"),
        certainties=regex.compile(r"(?:間違い|疑い|に違い)(?:は|も)?な[いく]|だけでなく"),
        doubts=regex.compile(r"かもしれ|たぶん|おそらく|わかりません|分かりません|不明|多分"),
        choices=regex.compile(r"または|又は|あるいは|もしくは|か[、,]"),
    ),
    "": _Language(),
}
_SENTENCE = regex.compile(r"[^。！？!?\n.]+")
_CLAUSE = regex.compile(r"(?:(?!而是|但是|但)[^。！？!?\n，,；;、])+|而是|但是|但")


@dataclass(frozen=True)
class Comparison:
    """What an answer says of a reference: its parts, those that are missing, what speaks against it, and where."""

    parts: tuple[str, ...]
    missing: tuple[str, ...]
    objection: str
    spans: tuple[tuple[int, int], ...]


def is_unspaced(reference: str) -> bool:
    """Whether a reference is in such a script and holds no word of another."""
    return bool(_UNSPACED.search(reference)) and not _SPACED.search(reference)


def compare(answer: str, reference: str, question: str) -> Comparison:
    """Look for every part of a reference in an answer."""
    code = _code(f"{reference}{question}")
    answer, reference, question = (_one_script(text, code) for text in (answer, reference, question))
    asserted = _LANGUAGES[code].certainties.sub(lambda match: "＿" * len(match[0]), answer)
    parts = tuple(dict.fromkeys(_parts(reference, question, code)))
    where = {part: [match.span() for match in _pattern(part, code).finditer(answer)] for part in parts}
    reasons = {
        part: [_objection(asserted, span, f"{question}{reference}", code) for span in where[part]] for part in parts
    }
    objection = next((found[0] for found in reasons.values() if found and all(found)), "")
    return Comparison(
        parts,
        tuple(part for part in parts if not where[part]),
        objection,
        tuple(span for spans in where.values() for span in spans),
    )


def _one_script(text: str, code: str) -> str:
    """Full-width letters as plain ones and, in Chinese, traditional characters as simplified ones."""
    text = same_width(text)
    return "".join(map(_simplified, text)) if code == "zh" else text


@cache
def _simplified(letter: str) -> str:
    if not _UNSPACED.match(letter):
        return letter
    simple = _converter().convert(letter)
    return simple if len(simple) == 1 else letter


@cache
def _converter() -> Any:
    from opencc import OpenCC  # its tables are read when first asked

    return OpenCC("t2s")


def _code(text: str) -> str:
    if _KANA.search(text):
        return "ja"
    return "zh" if regex.search(r"\p{Han}", text) else ""


def _parts(reference: str, question: str, code: str) -> Iterator[str]:
    asked = _MARKS.sub("", question)
    found = [part for run in _MARKS.split(reference) for part in _novel(run, asked)]
    cut = [piece for part in found for piece in _without_grammar(part, code)]
    yield from cut or found or [part for part in _MARKS.split(reference) if part]


def _novel(run: str, asked: str) -> Iterator[str]:
    """The stretches of a run that the question does not hold; two characters in a row make a stretch of it."""
    kept = ""
    at = 0
    while at < len(run):
        size = 0
        while at + size < len(run) and run[at : at + size + 1] in asked:
            size += 1
        if size >= 2:
            if kept:
                yield kept
            kept, at = "", at + size
        else:
            kept, at = kept + run[at], at + 1
    if kept:
        yield kept


def _without_grammar(part: str, code: str) -> Iterator[str]:
    """The pieces between particles; a place behind a noun stays with it, its particle aside."""
    if code == "ja":
        part = regex.sub(r"の(?=\p{Han})", "\0", part)
    for piece in _LANGUAGES[code].grammar.split(part):
        if piece.strip("\0"):
            yield piece.strip("\0").replace("\0", "の")


@cache
def _pattern(part: str, code: str) -> regex.Pattern[str]:
    language = _LANGUAGES[code]
    fill = language.fill
    place = next(
        (words.split() for words in language.places.values() for word in words.split() if part.endswith(word)),
        None,
    )
    noun = part
    tail = ""
    if place is not None:
        longest = max((word for word in place if part.endswith(word)), key=len)
        noun = part.removesuffix(longest).removesuffix("の")
        tail = rf"{fill}(?:{'|'.join(place)})"
    if not noun:
        noun, tail = part, ""
    pieces: list[str] = []
    at = 0
    for match in _NUMERALS.finditer(noun):
        pieces += [regex.escape(letter) for letter in noun[at : match.start()] if letter != "の"]
        pieces.append(_number_pattern(match[0]))
        at = match.end()
    pieces += [regex.escape(letter) for letter in noun[at:] if letter != "の"]
    return regex.compile(fill.join(pieces) + tail)


def _number_pattern(said: str) -> str:
    found = _FRACTION.fullmatch(said)
    whole, fraction = found.groups() if found else (said, "")
    digits = whole.replace(",", "")
    if not digits.isdecimal() and said[0] not in HAN_NUMERALS:
        literal: str = regex.escape(said)  # digits of a newer Unicode than Python's own have no value
        return literal
    value = int(digits) if digits.isdecimal() else han_value(said)
    ways = {whole, str(value), f"{value:,}"}
    if fraction:
        ways = {said} | {f"{way}{point}{fraction}" for way in ways for point in ".,"}
    elif value < 10**7:
        ways |= {han_numerals(value), han_digits(value), han_digits(value).replace("零", "〇")}
    ways_said = "|".join(map(regex.escape, sorted(ways, key=len, reverse=True)))
    digit = rf"[{HAN_NUMERALS}\p{{Nd}}]"
    return rf"(?<!{digit}|[.,])(?:{ways_said})(?!{digit}|[.,]\p{{Nd}})"


def _objection(answer: str, span: tuple[int, int], known: str, code: str) -> str:
    language = _LANGUAGES[code]
    sentence, clause = (_around(cut, answer, span[0]) for cut in (_SENTENCE, _CLAUSE))
    for text, said, what in (
        (sentence, language.choices, "the answer offers another value as well"),
        (sentence, language.doubts, "the answer leaves it open"),
        (clause, language.denials, "the answer denies it"),
    ):
        if said.search(text) and not said.search(known):
            return what
    if (other := language.another.match(answer, span[1])) and other[1] not in known:
        return "the answer offers another value as well"
    return ""


def _around(cut: regex.Pattern[str], text: str, at: int) -> str:
    return next((match[0] for match in cut.finditer(text) if match.start() <= at < match.end()), text)

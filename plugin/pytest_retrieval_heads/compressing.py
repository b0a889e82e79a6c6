"""After a compression: accuracy by kept share, a table, the file that a server reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_retrieval_heads.detection import identity_of
from retrieval_heads.ablation.sparsity import QUALITY, Sparsity, sparsity_of, to_json
from retrieval_heads.engine.masks import groups_of
from retrieval_heads.errors import ResultsError
from retrieval_heads.runs.folder import Facts, RunFolder
from retrieval_heads.runs.layers import read_layer
from retrieval_heads.runs.record import Record
from retrieval_heads.suites.settings import Settings

_TERMINAL, _FIRST = 80, 12
"""Columns of a terminal, and of a table's first column."""


@dataclass(frozen=True)
class CompressionOutcome:
    """What a compress suite came to.

    Args:
        suite: Its name.
        sparsity: Accuracy by kept share; `None` when it cannot be told.
        error: Why there are no figures.
        path: The file written.
    """

    suite: str
    sparsity: Sparsity | None
    error: str | None = None
    path: Path | None = None


def finish(
    suite: str, settings: Settings, records: Sequence[Record], facts: Facts, folder: RunFolder, suffix: str
) -> CompressionOutcome:
    """Compute a suite's figures and write `compression.json`.

    Args:
        suite: Its name.
        settings: Its settings.
        records: Its records.
        facts: What `run.json` says.
        folder: The run's folder.
        suffix: Behind the file's name, when the run has several compress suites.
    """
    assert settings.compress is not None
    bytes_per_token = int(facts.get("kv_bytes_per_token") or 0)
    try:
        sparsity = sparsity_of(records, groups_in(facts), settings.compress.until, bytes_per_token)
    except ResultsError as error:
        return CompressionOutcome(suite, None, str(error))
    said = {"suite": suite, **identity_of(facts), "seed": settings.compress.seed}
    path = folder.write_json(f"compression{suffix}.json", to_json(sparsity, said))
    return CompressionOutcome(suite, sparsity, None, path)


def groups_in(facts: Facts) -> Mapping[int, tuple[int, int]]:
    """By layer, its KV heads and the query heads of each, as a run's facts tell them."""
    return groups_of([read_layer(one, "run.json") for one in facts.get("layers", ())])


def draw(outcome: CompressionOutcome, folder: Path, title: str, suffix: str) -> list[Path]:
    """Draw the curves, and which KV heads are kept.

    Raises:
        ResultsError: It cannot be drawn.
    """
    from retrieval_heads.plots import compression_curve, kept_heads_map

    if outcome.sparsity is None:
        return []
    paths = compression_curve(outcome.sparsity, folder / f"compression{suffix}.png", title=title)
    if outcome.sparsity.kv_heads:
        paths += kept_heads_map(outcome.sparsity, folder / f"kept_heads{suffix}.png", title=title)
    return paths


def table(outcome: CompressionOutcome) -> Iterator[str]:
    """Accuracy by ranking and kept share with its interval, the drop against everything kept, and what follows."""
    sparsity = outcome.sparsity
    if sparsity is None:
        yield str(outcome.error)
        return
    has_bytes = any(point.longest_bytes for point in sparsity.points)
    heading = f"{'ranking':>12}{'keep':>6}{'cells':>7}{'accuracy':>19}{'drop':>20}{'KV kept':>9}"
    yield heading + (f"{'MiB':>7}" if has_bytes else "")
    for point in sparsity.points:
        share = "" if point.bytes_share is None else f"{point.bytes_share:.0%}"
        name = point.ranking or "everything"
        line = f"{name:>12}{point.keep:>6g}{point.cells:>7}{point.accuracy!s:>19}{point.drop or ''!s:>20}{share:>9}"
        yield (line + ("" if point.longest_bytes is None else f"{point.longest_bytes / 2**20:>7.1f}")).rstrip()
    yield "intervals are 95 %; drops are against everything kept, on the same cells"
    if has_bytes:
        yield f"KV kept is a mean over cells, MiB those of the longest prompt, {sparsity.longest:,} tokens"
    for point in sparsity.points:
        if len(point.draws) > 1:
            least, most = min(point.draws.values()), max(point.draws.values())
            yield f"{point.ranking} {point.keep:g}: {len(point.draws)} draws, accuracy {least:.2f} to {most:.2f}"
    above = {(f"{point.keep:g}", point.ranking): str(point.above) for point in sparsity.points if point.above}
    if above:
        yield "accuracy above that of random, on the same cells:"
        yield from _crossed("keep", above)
    if sparsity.least:
        yield f"smallest share that keeps {100 * sparsity.until:g} % of accuracy [that may, that surely does]:"
        lengths = {one: "all" if one.length is None else f"{one.length:,}" for one in sparsity.least}
        yield from _crossed("tokens", {(length, one.ranking): str(one) for one, length in lengths.items()})
    yield _streams(sparsity)
    yield QUALITY
    yield from sparsity.notes


def _crossed(corner: str, told: Mapping[tuple[str, str], str]) -> Iterator[str]:
    """What stands at each row and column, as many columns beside each other as a terminal of 80 bears."""
    rows, columns = (list(dict.fromkeys(key[at] for key in told)) for at in (0, 1))
    width = 2 + max(map(len, (*told.values(), *columns)))
    beside = max(1, (_TERMINAL - _FIRST) // width)
    for names in (columns[at : at + beside] for at in range(0, len(columns), beside)):
        yield f"{corner:>{_FIRST}}" + "".join(f"{name:>{width}}" for name in names)
        for row in rows:
            yield f"{row:>{_FIRST}}" + "".join(f"{told.get((row, name), ''):>{width}}" for name in names)


def _streams(sparsity: Sparsity) -> str:
    seen = sparsity.stream
    if not seen:
        return "nothing streams"
    last = "before each row" if seen["anchor"] == "row" else "of the context, with all that follows"
    rows = "every row" if seen["prefill"] else "rows behind the context"
    heads = f"{sparsity.kv_heads} KV heads" if sparsity.kv_heads else "KV heads"
    return f"{heads}; in {rows} the others see {seen['sink']} first tokens and {seen['recent']} last ones {last}"

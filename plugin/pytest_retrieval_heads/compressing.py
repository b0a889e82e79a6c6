"""After a compression: accuracy by kept share, a table, the file that a server reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_retrieval_heads.detection import identity_of
from retrieval_heads.ablation.sparsity import QUALITY, Point, Sparsity, sparsity_of, to_json
from retrieval_heads.engine.masks import groups_of
from retrieval_heads.errors import ResultsError
from retrieval_heads.runs.folder import Facts, RunFolder
from retrieval_heads.runs.layers import read_layer
from retrieval_heads.runs.record import Record
from retrieval_heads.suites.settings import Settings


@dataclass(frozen=True)
class CompressionOutcome:
    """What a compress suite came to.

    Args:
        suite: Its name.
        sparsity: Accuracy by kept share; `None` when it cannot be told.
        error: Why there are no figures.
        path: The file written.
        bytes_per_token: Of the whole KV cache; 0 where the engine does not say.
        longest: Tokens of its longest prompt.
    """

    suite: str
    sparsity: Sparsity | None
    error: str | None = None
    path: Path | None = None
    bytes_per_token: int = 0
    longest: int = 0


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
    try:
        sparsity = sparsity_of(records, groups_in(facts), settings.compress.until)
    except ResultsError as error:
        return CompressionOutcome(suite, None, str(error))
    said = {"suite": suite, **identity_of(facts), "seed": settings.compress.seed}
    path = folder.write_json(f"compression{suffix}.json", to_json(sparsity, said))
    longest = max((record.prompt_tokens or 0 for record in records), default=0)
    return CompressionOutcome(suite, sparsity, None, path, int(facts.get("kv_bytes_per_token") or 0), longest)


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
    """Accuracy by ranking and kept share with its interval, and the drop against everything kept."""
    sparsity = outcome.sparsity
    if sparsity is None:
        yield str(outcome.error)
        return
    yield f"{'ranking':>12}{'keep':>7}{'cells':>7}{'accuracy':>19}{'drop':>20}{'KV kept':>9}"
    for point in sparsity.points:
        share = "" if point.bytes_share is None else f"{point.bytes_share:.0%}"
        name = point.ranking or "everything"
        line = f"{name:>12}{point.keep:>7g}{point.cells:>7}{point.accuracy!s:>19}{point.drop or ''!s:>20}{share:>9}"
        yield line.rstrip()
    yield "intervals are 95 %; drops are against everything kept, on the same cells"
    for point in sparsity.points:
        if len(point.draws) > 1:
            least, most = min(point.draws.values()), max(point.draws.values())
            yield f"{point.ranking} {point.keep:g}: {len(point.draws)} draws, accuracy {least:.2f} to {most:.2f}"
    for one in sparsity.least:
        where = "" if one.length is None else f" at {one.length:,} tokens"
        yield f"smallest share that keeps {100 * sparsity.until:g} % of accuracy by {one.ranking}{where}: {one}"
    yield _streams(sparsity)
    if outcome.bytes_per_token and outcome.longest:
        yield from _bytes(outcome, sparsity.points)
    yield QUALITY
    yield from sparsity.notes


def _streams(sparsity: Sparsity) -> str:
    seen = sparsity.stream
    if not seen:
        return "nothing streams"
    last = "before each row" if seen["anchor"] == "row" else "of the context, with all that follows"
    rows = "every row" if seen["prefill"] else "rows behind the context"
    heads = f"{sparsity.kv_heads} KV heads" if sparsity.kv_heads else "KV heads"
    return f"{heads}; in {rows} the others see {seen['sink']} first tokens and {seen['recent']} last ones {last}"


def _bytes(outcome: CompressionOutcome, points: Sequence[Point]) -> Iterator[str]:
    whole = outcome.bytes_per_token * outcome.longest / 2**20
    shares = dict.fromkeys(point.bytes_share for point in points if point.ranking and point.bytes_share is not None)
    kept = ", ".join(f"{share:.0%}: {share * whole:,.1f}" for share in sorted(shares, reverse=True))
    yield f"KV cache of {outcome.longest:,} tokens: {whole:,.1f} MiB; kept, in MiB: {kept}"

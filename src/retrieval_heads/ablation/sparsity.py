"""What a compression did: accuracy by the share of KV heads that keep a whole context, and the smallest that suffices.

It tells what is lost where heads see less; the memory of keys that nobody sees is not given back by the engine, so that
bytes are what a server would keep that drops them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from retrieval_heads.ablation.arms import NONE
from retrieval_heads.ablation.compression import RANDOM, Groups, Kept, every_kv_head, kept_of, kept_share_of_bytes
from retrieval_heads.ablation.effect import Cell, Figure, accuracy_of, cell_of, difference_of, mean_of
from retrieval_heads.errors import ResultsError
from retrieval_heads.heads.table import Head
from retrieval_heads.runs.folder import Facts
from retrieval_heads.runs.mask import Stream
from retrieval_heads.runs.place import LENGTH
from retrieval_heads.runs.record import Record, finite_mean

SCHEMA = "retrieval-heads-compression/1"

QUALITY = (
    "this is the quality of a compression: heads see less, and the engine keeps their keys; the bytes are those that a "
    "server would keep which drops them"
)
"""What is said wherever figures stand."""


@dataclass(frozen=True)
class Point:
    """A ranking at a share.

    Args:
        ranking: What ranks the KV heads; empty where all keep everything.
        keep: The share that was asked for.
        cells: Cells measured in each of its arms.
        accuracy: Share of them that were answered rightly; mean over draws.
        drop: How much lower that is than with everything kept, on the same cells; `None` for that itself.
        above: How much higher it is than `random`'s at this share, on the same cells; `None` where that was not asked.
        draws: Of what is drawn, each draw's accuracy.
        kept: By arm, the KV heads that keep everything.
        bytes_share: The share of the KV cache that would be kept, mean over cells and draws; `None` where the layers
            are not known.
        longest_bytes: Bytes of the longest prompt's KV cache that would be kept; `None` where the engine does not say.
    """

    ranking: str
    keep: float
    cells: int
    accuracy: Figure
    drop: Figure | None
    above: Figure | None
    draws: Mapping[str, float]
    kept: Mapping[str, Sequence[Head]]
    bytes_share: float | None
    longest_bytes: float | None


@dataclass(frozen=True)
class Least:
    """The smallest share that keeps accuracy, of those that were measured.

    Args:
        ranking: Of which ranking.
        length: At which length; `None` is over all.
        share: The smallest one down to which none lies below; `1.0` is that of what keeps everything.
        low: The smallest that may, by the intervals of the drop.
        high: The smallest that surely does.
    """

    ranking: str
    length: int | None
    share: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.share:g} [{self.low:g}, {self.high:g}]"


@dataclass(frozen=True)
class Sparsity:
    """A compression's figures.

    Args:
        stream: What streaming heads see.
        points: What keeps everything first; then by ranking, the largest share first.
        until: The share of accuracy that is to be kept.
        least: By ranking: over all lengths, then at each.
        kv_heads: Of the model; 0 where they are not known.
        longest: Tokens of the longest prompt.
        notes: What is odd, a sentence each.
    """

    stream: Mapping[str, object]
    points: Sequence[Point]
    until: float
    least: Sequence[Least]
    kv_heads: int
    longest: int
    notes: Sequence[str]

    @property
    def rankings(self) -> list[str]:
        """In the order in which they were asked."""
        return list(dict.fromkeys(point.ranking for point in self.points if point.ranking))

    def line(self, ranking: str) -> list[Point]:
        """A ranking's points and the one that all share, the largest share first."""
        return [point for point in self.points if point.ranking in ("", ranking)]


def sparsity_of(records: Sequence[Record], groups: Groups, until: float = 0.95, bytes_per_token: int = 0) -> Sparsity:
    """The figures of one suite's records.

    Args:
        records: Its own.
        groups: The model's KV heads.
        until: The share of accuracy that is to be kept.
        bytes_per_token: Of the whole KV cache; 0 where the engine does not say.

    Raises:
        ResultsError: Nothing was measured with everything kept, or nothing compressed.
    """
    known = [record for record in records if record.passed is not None and record.status in ("pass", "low")]
    points = _points(known, groups, bytes_per_token)
    if not points or points[0].ranking:
        raise ResultsError("no cell was measured with everything kept, so there is nothing to compare with")
    if len(points) == 1:
        raise ResultsError("no cell was measured with heads that stream")
    lengths = sorted({value for record in known if isinstance(value := record.place.get(LENGTH), int)})
    found = [least for one in _rankings(points) for least in [_least(one, None, points, until)] if least]
    for length in lengths if len(lengths) > 1 else ():
        own = _points([record for record in known if record.place.get(LENGTH) == length], groups)
        if own and not own[0].ranking:
            found += [least for one in _rankings(own) for least in [_least(one, length, own, until)] if least]
    stream = next((record.mask.stream for record in known if record.mask and record.mask.stream), None)
    told = {} if stream is None else {key: value for key, value in stream.to_json().items() if key != "context"}
    longest = max(record.prompt_tokens or 0 for record in known)
    notes = list(_notes(points, known, groups))
    return Sparsity(told, points, until, found, len(every_kv_head(groups)), longest, notes)


def to_json(sparsity: Sparsity, facts: Facts) -> dict[str, object]:
    """The content of `compression.json`: plain builtins, after what the run's facts say."""
    return {"schema": SCHEMA, **facts, "measures": QUALITY, **asdict(sparsity)}


def _rankings(points: Sequence[Point]) -> list[str]:
    return list(dict.fromkeys(point.ranking for point in points if point.ranking))


def _points(records: Sequence[Record], groups: Groups, bytes_per_token: int = 0) -> list[Point]:
    passed: dict[str, dict[Cell, float]] = defaultdict(dict)
    shares: dict[str, list[float]] = defaultdict(list)
    kept: dict[str, list[Head]] = {}
    streams: dict[str, Stream | None] = {}
    every, longest = len(every_kv_head(groups)), max((record.prompt_tokens or 0 for record in records), default=0)

    def bytes_share(arm: str, tokens: int) -> float:
        stream = streams[arm]
        return kept_share_of_bytes(len(kept[arm]), every, tokens, stream.sink + stream.recent if stream else tokens)

    for record in records:
        arm = record.arm or NONE
        passed[arm][cell_of(record)] = float(record.passed or 0)
        if arm not in kept:
            kept[arm] = kept_of(record.mask.heads if record.mask else (), groups)
            streams[arm] = record.mask.stream if record.mask else None
        if every and record.prompt_tokens:
            shares[arm].append(bytes_share(arm, record.prompt_tokens))
    grouped: dict[tuple[str, float], dict[str, dict[Cell, float]]] = {}
    for name, cells in passed.items():
        kept_arm = Kept.of(name)
        grouped.setdefault((kept_arm.ranking, kept_arm.keep), {})[name] = cells
    whole, order = passed.get(NONE), list(dict.fromkeys(ranking for ranking, _ in grouped))
    points = []
    for (ranking, keep), drawn in sorted(grouped.items(), key=lambda one: (order.index(one[0][0]), -one[0][1])):
        mean = mean_of(drawn)
        has_draws = any(Kept.of(arm).draw for arm in drawn)
        told = [share for arm in drawn for share in shares[arm]]
        others = grouped.get((RANDOM, keep)) if ranking not in ("", RANDOM) else None
        points.append(
            Point(
                ranking=ranking,
                keep=keep,
                cells=len(mean),
                accuracy=accuracy_of(mean, drawn),
                drop=difference_of(whole, {NONE: whole}, mean, drawn) if whole and ranking else None,
                above=difference_of(mean, drawn, mean_of(others), others) if others else None,
                draws={arm: finite_mean(list(cells.values())) for arm, cells in sorted(drawn.items())}
                if has_draws
                else {},
                kept={arm: kept[arm] for arm in sorted(drawn)},
                bytes_share=finite_mean(told) if told else None,
                longest_bytes=bytes_per_token * longest * bytes_share(next(iter(drawn)), longest)
                if told and bytes_per_token
                else None,
            )
        )
    return sorted(points, key=lambda point: bool(point.ranking))


def _least(ranking: str, length: int | None, points: Sequence[Point], until: float) -> Least | None:
    whole = points[0].accuracy.value
    if whole == 0:
        return None
    line = [point for point in points if point.ranking == ranking and point.drop is not None]
    allowed = (1 - until) * whole + 1e-12

    def down_to(holds: str) -> float:
        """The smallest share down to which each one's drop, or an end of its interval, is allowed."""
        share = 1.0
        for point in line:
            if getattr(point.drop, holds) > allowed:
                break
            share = point.keep
        return share

    return Least(ranking, length, down_to("value"), down_to("low"), down_to("high"))


def _notes(points: Sequence[Point], records: Sequence[Record], groups: Groups) -> Iterator[str]:
    if points[0].accuracy.value == 0:
        yield "with everything kept no cell is answered rightly, so that nothing can be lost; ask easier cells"
    if not groups:
        yield "the engine did not say which layers have KV heads: kept heads and bytes are not known"
    streams = [record.mask.stream for record in records if record.mask and record.mask.stream]
    if streams:
        window = streams[0].sink + streams[0].recent
        short = {record.prompt_tokens for record in records if record.prompt_tokens and record.prompt_tokens <= window}
        if short:
            yield f"prompts of up to {window} tokens lie in the window whole: nothing is lost there"

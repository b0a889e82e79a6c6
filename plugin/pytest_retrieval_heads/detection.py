"""After the loop: a detect suite's samples become head files, a picture, a table, and kept or broken expectations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrieval_heads.config import Expect, Settings
from retrieval_heads.errors import ResultsError, RetrievalHeadsError
from retrieval_heads.gates import META_KEYS
from retrieval_heads.heads import RETRIEVAL_THRESHOLD, Detection, Layer, aggregate, overlap, read_ranked, write_heads
from retrieval_heads.results import Record

_TOP = 10
_IDENTITY = (*META_KEYS, "tensor_parallel_size")


@dataclass(frozen=True)
class Found:
    """What a detect suite came to.

    Args:
        suite: Its name.
        detection: The heads; `None` when no sample counted.
        broken: Expectations that do not hold, a sentence each.
        error: Why there are no heads.
        paths: The files written.
    """

    suite: str
    detection: Detection | None
    broken: Sequence[str]
    error: str | None
    paths: Sequence[Path]


def finish(
    suite: str, settings: Settings, records: Sequence[Record], facts: Mapping[str, Any], folder: Path, suffix: str
) -> Found:
    """Aggregate a suite's samples and write its head files.

    Args:
        suite: Its name.
        settings: Its settings.
        records: Its records.
        facts: What `run.json` says; the layers among it.
        folder: The run's folder.
        suffix: Behind each file's name, when the run has several detect suites.
    """
    try:
        detection = aggregate(records, [Layer(**layer) for layer in facts["layers"]])
    except ResultsError as error:
        return Found(suite, None, [], str(error), [])
    paths = write_heads(detection, folder, {"suite": suite, **identity_of(facts)}, suffix)
    broken = list(_broken(settings.expect, detection)) if settings.expect else []
    return Found(suite, detection, broken, None, paths)


def identity_of(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a file of figures says of the model and engine that they were measured on."""
    return {name: facts[name] for name in _IDENTITY if name in facts}


def table(found: Found) -> Iterator[str]:
    """The best heads with their intervals, and how far to trust them."""
    if found.detection is None:
        yield str(found.error)
        return
    detection = found.detection
    others = [name for name in ("mass", "query") if name in detection.estimates]
    yield f"{'head':>8}{'copy':>8}{'95 % interval':>17}" + "".join(f"{name:>8}" for name in others)
    rows = {layer.number: row for row, layer in enumerate(detection.layers) if layer.heads}
    copy = detection.estimates["copy"]
    for (layer, head), mean in detection.ranked()[:_TOP]:
        at = rows[layer], head
        interval = f"{copy.low[at]:.3f} – {copy.high[at]:.3f}"
        more = "".join(f"{detection.estimates[name].mean[at]:8.3f}" for name in others)
        yield f"{f'{layer}-{head}':>8}{mean:8.3f}{interval:>17}{more}"
    heads = sum(layer.heads for layer in detection.layers)
    yield (
        f"{len(detection.counted)} of {len(detection.samples)} samples counted (the answer held the needle); "
        f"{detection.retrieval_heads()} of {heads} heads have copy ≥ {RETRIEVAL_THRESHOLD:g}"
    )
    if (stability := detection.stability()) is not None:
        yield f"the top {_TOP} of random halves of the samples agree on {100 * stability:.0f} %"
    yield from (f"broken: {sentence}" for sentence in found.broken)


def _broken(expect: Expect, detection: Detection) -> Iterator[str]:
    ranked = [head for head, _ in detection.ranked()]
    best = ranked[: expect.within_top]
    if missing := [head for head in expect.top_heads if head not in best]:
        places = ", ".join(
            f"{layer}-{head} is {f'number {ranked.index((layer, head)) + 1}' if (layer, head) in ranked else 'no head'}"
            for layer, head in missing
        )
        yield f"expected within the top {expect.within_top}: {places} (by copy)"
    if expect.min_overlap_with is not None:
        try:
            before = [head for head, _ in read_ranked(Path(expect.min_overlap_with))[: expect.within_top]]
        except RetrievalHeadsError as error:
            yield str(error)
            return
        shared = overlap(best, before)
        if shared < expect.min_overlap:
            gone = ", ".join(f"{layer}-{head}" for layer, head in before if (layer, head) not in best)
            yield (
                f"of the top {expect.within_top} of {expect.min_overlap_with} {100 * shared:.0f} % are found again, "
                f"{100 * expect.min_overlap:.0f} % are expected; gone: {gone}"
            )

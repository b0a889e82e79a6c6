"""After the loop: a detect suite's samples become head files, a picture, a table, and kept or broken expectations."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from retrieval_heads.ablation.arms import named
from retrieval_heads.engine.client import Address, EngineClient
from retrieval_heads.engine.jobs import FreeQuestion
from retrieval_heads.errors import ResultsError, RetrievalHeadsError
from retrieval_heads.gates import META_KEYS, HeadMeans, Inconclusive, Outcome
from retrieval_heads.gates.expression import SLACK
from retrieval_heads.gates.settings import Expect
from retrieval_heads.heads.agreement import overlaps
from retrieval_heads.heads.detection import RETRIEVAL_THRESHOLD, Detection, aggregate
from retrieval_heads.heads.formats import read_ranked, write_heads
from retrieval_heads.heads.lacking import lacking
from retrieval_heads.heads.score import RANKING, head_score, is_of_texts
from retrieval_heads.heads.steps import StepAgreement, write_steps
from retrieval_heads.heads.table import Head, Ranked
from retrieval_heads.heads.texts import MeasuredText, RandomText
from retrieval_heads.heads.top_heads import overlap, top_heads
from retrieval_heads.intervals import Interval, drawn_interval, shown
from retrieval_heads.runs.folder import Facts
from retrieval_heads.runs.layers import Layer
from retrieval_heads.runs.record import Record
from retrieval_heads.suites.settings import RandomTexts, Settings

_TOP = 10
_IDENTITY = (*META_KEYS, "tensor_parallel_size")


@dataclass(frozen=True)
class DetectionOutcome:
    """What a detect suite came to.

    Args:
        suite: Its name.
        detection: The heads; `None` when no sample counted.
        expected: What was expected of it, judged.
        error: Why there are no heads.
        paths: The files written.
        unmeasured: Scores that the suite names and that some counted sample lacks.
        steps: How far heads agree from step to step, of a suite that keeps them.
        spared: How many cells were `asked` and how many `cells` there are; empty where all were asked.
    """

    suite: str
    detection: Detection | None
    expected: Sequence[Outcome]
    error: str | None
    paths: Sequence[Path]
    unmeasured: Sequence[str] = ()
    steps: StepAgreement | None = None
    spared: Mapping[str, int] = field(default_factory=dict)

    @property
    def means(self) -> HeadMeans | None:
        """Mean scores of the heads, by name; `None` where there are none."""
        return self.detection.means if self.detection else None


def measure_texts(address: Address, settings: Settings) -> list[MeasuredText]:
    """Have heads measured on the random texts that a suite's scores ask for, one after the other.

    Raises:
        RetrievalHeadsError: A text does not fit the model, or heads cannot be scored on it.
    """
    scores = tuple(name for name in settings.scores or () if is_of_texts(head_score(name)))
    if not scores:
        return []
    wanted, found = settings.random_text or RandomTexts(), []
    client = EngineClient(address)
    try:
        for seed in wanted.seeds:
            text = RandomText(wanted.tokens, wanted.repeats, seed, scores)
            answered = client.answer(FreeQuestion("", text=text))
            if answered.head_scores is not None and answered.replay is not None:
                found.append(MeasuredText(text, answered.head_scores, answered.replay))
    finally:
        client.close()
    return found


def finish(
    suite: str,
    settings: Settings,
    records: Sequence[Record],
    facts: Facts,
    folder: Path,
    suffix: str,
    texts: Sequence[MeasuredText] = (),
    *,
    inconclusive: Inconclusive,
) -> DetectionOutcome:
    """Aggregate a suite's samples and write its head files.

    Args:
        suite: Its name.
        settings: Its settings.
        records: Its records.
        facts: What `run.json` says; the layers among it.
        folder: The run's folder.
        suffix: Behind each file's name, when the run has several detect suites.
        texts: Random texts that heads were measured on, for this suite.
        inconclusive: Whether an expectation that chance may explain fails the run.
    """
    asked = [record for record in records if record.status != "spared"]
    try:
        detection = aggregate(asked, [Layer(**layer) for layer in facts.get("layers", ())], texts)
    except ResultsError as error:
        return DetectionOutcome(suite, None, [], str(error), [])
    spared = {"asked": len(asked), "cells": len(records)} if len(asked) < len(records) else {}
    about = {"suite": suite, **identity_of(facts), **spared}
    paths, steps = write_heads(detection, folder, about, suffix), None
    if settings.per_step:
        file = folder / f"steps{suffix}.npz"
        steps = write_steps(detection, file, about)
        paths += [file] if steps.samples else []
    expected = [
        replace(outcome, suite=f"detect/{suite}") for outcome in _judged(settings.expect, detection, inconclusive)
    ]
    unmeasured = [name for name in settings.scores or () if name not in detection.estimates]
    return DetectionOutcome(suite, detection, expected, None, paths, unmeasured, steps, spared)


def identity_of(facts: Facts) -> dict[str, object]:
    """What a file of figures says of the model and engine that they were measured on."""
    return {name: facts[name] for name in _IDENTITY if name in facts}


def table(outcome: DetectionOutcome) -> Iterator[str]:
    """The best heads with their intervals, and how far to trust them."""
    if outcome.detection is None:
        yield str(outcome.error)
        return
    detection = outcome.detection
    ranking = detection.ranking
    others = {
        name: max(8, len(name) + 2) for name in detection.estimates if name != ranking and head_score(name).is_in_table
    }
    width = max(8, len(ranking) + 2)
    heading = "".join(f"{name:>{width}}" for name, width in others.items())
    yield f"{'head':>8}{ranking:>{width}}{'95 % interval':>17}{heading}"
    rows = {layer.number: row for row, layer in enumerate(detection.layers) if layer.heads}
    estimate = detection.estimates[ranking]
    for (layer, head), mean in detection.ranked()[:_TOP]:
        at = rows[layer], head
        low, high = float(estimate.low[at]), float(estimate.high[at])
        interval = shown(None if math.isnan(low) else Interval(low, high))
        more = "".join(_column(float(detection.estimates[name].mean[at]), width) for name, width in others.items())
        yield f"{f'{layer}-{head}':>8}{mean:{width}.3f}{interval:>17}{more}"
    heads = sum(layer.heads for layer in detection.layers)
    copying = detection.retrieval_heads()
    yield f"{len(detection.counted)} of {len(detection.samples)} samples counted (the answer held the needle)" + (
        "" if copying is None else f"; {copying} of {heads} heads have {RANKING} ≥ {RETRIEVAL_THRESHOLD:g}"
    )
    yield from lacking(detection.estimates, detection.layers)
    yield detection.clusters.note
    if outcome.unmeasured:
        yield f"not measured on every counted sample: {', '.join(outcome.unmeasured)}"
    if detection.texts:
        yield _texts_line(detection.texts)
    if (stability := detection.stability()) is not None:
        yield f"the top {_TOP} of random halves of the samples agree on {100 * stability:.0f} %"
    if note := detection.top(_TOP).note("this run"):
        yield note
    if outcome.steps is not None:
        yield outcome.steps.note
    yield from failures(outcome.expected)


def _texts_line(texts: Sequence[MeasuredText]) -> str:
    """What random texts were measured, and what that took."""
    first, count = texts[0].text, len(texts)
    computed, seconds = (sum(values) for values in zip(*map(_cost, texts), strict=True))
    return (
        f"{', '.join(first.scores)}: {count} random {'text' if count == 1 else 'texts'} of {first.tokens:,} tokens, "
        f"{first.repeats} times each; {computed:,} tokens computed, {seconds:.1f} s"
    )


def _cost(text: MeasuredText) -> tuple[int, float]:
    return text.replay.computed_tokens, text.replay.seconds


def _column(value: float, width: int) -> str:
    return f"{'–':>{width}}" if math.isnan(value) else f"{value:{width}.3f}"


def failures(expected: Sequence[Outcome]) -> Iterator[str]:
    """What was expected and did not come: a line each, with its word before it."""
    yield from (f"{one.outcome}: {one.sentence}" for one in expected if one.outcome != "held")


def _judged(expect: Expect | None, detection: Detection, inconclusive: Inconclusive) -> Iterator[Outcome]:
    if expect is None:
        return
    if expect.top_heads:
        yield _among_the_best(expect, detection)
    if expect.min_overlap_with is not None:
        yield _found_again(expect, Path(expect.min_overlap_with), detection, inconclusive)


def _among_the_best(expect: Expect, detection: Detection) -> Outcome:
    ranked, by = dict(detection.ranked()), detection.ranking
    numbers = {head: number for number, head in enumerate(ranked, start=1)}
    best = detection.top(expect.within_top).heads

    def place(head: Head) -> str:
        if head not in ranked:
            return f"{named(head)} is no head"
        number = f"{named(head)} is number {numbers[head]}"
        if numbers[head] > expect.within_top:
            return number
        idle = "never copied" if by == RANKING else f"has no {by} above 0"
        return f"{number} and {'ties with what follows' if ranked[head] > 0 else idle}"

    missing = [head for head in expect.top_heads if head not in best]
    if missing:
        sentence = f"expected within the top {expect.within_top}: {', '.join(map(place, missing))} (by {by})"
    else:
        sentence = (
            f"within the top {expect.within_top} as expected: {', '.join(map(named, expect.top_heads))} (by {by})"
        )
    count = len(expect.top_heads)
    return Outcome(f"expect top_heads within {expect.within_top}", not missing, count - len(missing), count, sentence)


def _found_again(expect: Expect, file: Path, detection: Detection, inconclusive: Inconclusive) -> Outcome:
    gate, asked = f"expect min_overlap >= {expect.min_overlap:g}", expect.within_top
    try:
        ranked = read_ranked(file)
    except RetrievalHeadsError as error:
        return Outcome(gate, False, None, expect.min_overlap, str(error))
    before, now = top_heads(ranked, asked), detection.top(asked)
    notes = "".join(f"; {note}" for side, best in ((str(file), before), ("this run", now)) if (note := best.note(side)))
    shared = overlap(before, now)
    if shared is None:
        return Outcome(gate, False, None, expect.min_overlap, f"no head of {file} or of this run stands out{notes}")
    wanted = f"{100 * expect.min_overlap:.0f} % are expected"
    interval = _overlap_interval(shared, ranked, detection, asked)
    within = f" [{100 * interval.low:.0f}, {100 * interval.high:.0f}]" if interval else ""
    sentence = f"of the top {asked} of {file} {100 * shared:.0f}{within} % are found again, {wanted}"
    if gone := [head for head, _ in ranked if head in before.heads - now.heads]:
        sentence += f"; gone: {', '.join(map(named, gone))}"
    holds = shared >= expect.min_overlap - SLACK
    is_open = not holds and interval is not None and interval.high >= expect.min_overlap - SLACK
    if is_open:
        notes += f"; the interval holds {100 * expect.min_overlap:.0f} %, so more needles or seeds are needed to tell"
    figures = {"low": interval.low, "high": interval.high} if interval else {}
    passed = holds or (is_open and inconclusive == "warn")
    return Outcome(gate, passed, shared, expect.min_overlap, sentence + notes, figures=figures, is_inconclusive=is_open)


def _overlap_interval(shared: float, ranked: Sequence[Ranked], detection: Detection, top: int) -> Interval | None:
    """The interval of the overlap with a file's best heads, over the needles and texts of this run."""
    import numpy as np

    drawn, means = detection.drawn(), dict(ranked)
    if drawn is None:
        return None
    places = [(row, head, layer.number) for row, layer in enumerate(detection.layers) for head in range(layer.heads)]
    before = np.array([[means.get((number, head), 0.0) for _, head, number in places]])
    now = drawn.means[:, [row for row, *_ in places], [head for _, head, _ in places]]
    return drawn_interval(shared, overlaps(now, before, top), drawn.groups, (0, 1))

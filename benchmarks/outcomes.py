"""What verdicts and intervals are worth: the tables of docs/gates.md and docs/heads.md.

    python benchmarks/outcomes.py falls       # the smallest fall that each shipped suite catches 8 times of 10
    python benchmarks/outcomes.py outcomes    # how often a true fall is held, inconclusive, broken
    python benchmarks/outcomes.py intervals   # coverage and width of the interval of a mean
    python benchmarks/outcomes.py clusters    # the same of samples that share needles and texts

Every figure is simulated with a fixed seed; no engine is started. All of it takes a minute or two on two cores.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit

from retrieval_heads.gates.fall import Change, Fall
from retrieval_heads.gates.paired import PairedTest, fall_p_value, holm, smallest_p_value
from retrieval_heads.gates.power import smallest_fall
from retrieval_heads.intervals import mean_intervals, varied
from retrieval_heads.runs.record import Record
from retrieval_heads.suites.suite import load_suite

_ROOT = Path(__file__).parents[1]
_MODEL = {"model": {"model": "any"}}
_RECORD = Record(context_length=1, document_depth=0, needle="n")
_LIMIT = 0.05
_RUNS = 4000


def falls() -> None:
    """For each shipped suite: cells, and the smallest fall of `pass_rate` by the state of its baseline."""
    print("| suite | cells | baseline 1.0 | baseline 0.9 | 0.9, 1 cell in 20 flips up, 1 down |\n|---|---|---|---|---|")
    for file in sorted((_ROOT / "suites").glob("*/*.yaml")):
        cells = len(load_suite(file, _MODEL, {"haystack": "pydoc"}).cells)
        lost, flips = round(0.1 * cells), max(1, round(0.05 * cells))
        shown = [
            _caught([(1.0, 1.0)] * cells),
            _caught([(0.0, 0.0)] * lost + [(1.0, 1.0)] * (cells - lost)),
            _caught([(0.0, 1.0)] * flips + [(0.0, 0.0)] * (lost - flips) + [(1.0, 1.0)] * (cells - lost)),
        ]
        print(f"| `{file.relative_to(_ROOT)}` | {cells} | {' | '.join(shown)} |")


def outcomes() -> None:
    """Independent answers of two runs, one number, tolerance 0.05: the share of each outcome."""
    print("| cells | before | after | held | inconclusive | broken |\n|---|---|---|---|---|---|")
    random = np.random.default_rng(0)
    for cells, before, after in ((30, 0.9, 0.9), (30, 0.9, 0.75), (100, 0.9, 0.9), (100, 0.9, 0.75), (18, 1.0, 0.85)):
        words = Counter(_outcome(random.random(cells) < before, random.random(cells) < after) for _ in range(_RUNS))
        shares = " | ".join(f"{words[word] / _RUNS:.2f}" for word in ("held", "inconclusive", "broken"))
        print(f"| {cells} | {before:g} | {after:g} | {shares} |")


def intervals() -> None:
    """Coverage and mean width over distributions that are hard on intervals of few values."""
    print("| values | n | coverage | mean width | width of the percentile bootstrap | its coverage |")
    print("|---|---|---|---|---|---|")
    draws: dict[str, tuple[Callable[[Any, tuple[int, int]], Any], float]] = {
        "0 or 1, mean 0.95": (lambda random, shape: (random.random(shape) < 0.95).astype(float), 0.95),
        "0 or 1, mean 0.5": (lambda random, shape: (random.random(shape) < 0.5).astype(float), 0.5),
        "0, 0.5 or 1, mean 0.875": (
            lambda random, shape: random.choice([0, 0.5, 1], shape, p=[0.05, 0.15, 0.8]),
            0.875,
        ),
        "skewed, mean 0.05": (lambda random, shape: random.beta(0.1, 2, shape), 0.1 / 2.1),
        "even from 0 to 1": (lambda random, shape: random.random(shape), 0.5),
        "copy of a good head, 0.6 ± 0.1": (lambda random, shape: np.clip(random.normal(0.6, 0.1, shape), 0, 1), 0.6),
    }
    for name, (draw, mean) in draws.items():
        for samples in (5, 10, 30):
            values = draw(np.random.default_rng(samples), (samples, 2000))
            low, high = mean_intervals(values)
            less, more = _bootstrap(values)
            print(
                f"| {name} | {samples} | {_covered(low, high, mean):.3f} | {(high - low).mean():.2f} | "
                f"{(more - less).mean():.2f} | {_covered(less, more, mean):.3f} |"
            )


def clusters() -> None:
    """Samples of heads that stray by needle, by text, by pair of both and by sample, in log odds; the last two columns
    take the samples for independent, as version 0.2 did.
    """
    print("| head, mean | needles × texts × cells | coverage | mean width | taken for independent: width | coverage |")
    print("|---|---|---|---|---|---|")
    for name, (middle, by_needle, by_text, by_pair, by_sample) in {
        "copies": (0.4, 0.5, 0.5, 0.3, 0.4),
        "by the needle": (0.4, 0.6, 0, 0, 0.4),
        "seldom": (-4, 1.5, 1.5, 0.5, 1),
        "nearly always": (3, 1, 1, 0.5, 0.5),
        "independent": (0.4, 0, 0, 0, 0.8),
    }.items():
        for needles, texts, cells in ((3, 4, 10), (1, 6, 10), (5, 1, 12), (10, 10, 1)):
            random = np.random.default_rng(needles)
            scales = (by_needle if needles > 1 else 0, by_text if texts > 1 else 0, by_pair, by_sample)
            shapes = ((needles, 1, 1), (1, texts, 1), (needles, texts, 1), (needles, texts, cells))
            strays = sum(
                scale * random.normal(size=(*shape, 2000)) for scale, shape in zip(scales, shapes, strict=True)
            )
            values = expit(middle + strays).reshape(-1, 2000)
            whole = np.random.default_rng(9).normal(size=1_000_000) * math.hypot(*scales)
            mean = float(expit(middle + whole).mean())
            places = [(needle, text) for needle in range(needles) for text in range(texts) for _ in range(cells)]
            low, high = mean_intervals(values, 1, varied(list(zip(*places, strict=True))))
            less, more = mean_intervals(values)
            print(
                f"| {name}, {mean:.2f} | {needles} × {texts} × {cells} | {_covered(low, high, mean):.3f} | "
                f"{(high - low).mean():.2f} | {(more - less).mean():.2f} | {_covered(less, more, mean):.3f} |"
            )


def _caught(changes: list[tuple[float, float]]) -> str:
    found = smallest_fall(_fall(changes), 2).beyond
    return "none" if found is None else f"{found:.2f}"


def _outcome(before: Any, after: Any) -> str:
    fall = _fall(list(zip(before.astype(float), after.astype(float), strict=True)))
    if not fall.exceeds:
        return "held"
    test = PairedTest(*holm([fall_p_value(fall.drops)]), *holm([smallest_p_value(fall.drops)]), comparisons=1)
    return "broken" if test.decides else "inconclusive"


def _fall(changes: list[tuple[float, float]]) -> Fall:
    before, after = (math.fsum(side) / len(changes) for side in zip(*changes, strict=True))
    weights = (1 / len(changes),) * len(changes)
    return Fall(tuple(Change(_RECORD, *change) for change in changes), weights, before, after, _LIMIT, len(changes))


def _bootstrap(values: Any) -> tuple[Any, Any]:
    """What version 0.1 printed: 1,000 resamples, percentile method."""
    samples = len(values)
    counts = np.random.default_rng(0).multinomial(samples, np.full(samples, 1 / samples), size=1000)
    low, high = np.percentile(counts @ values / samples, [2.5, 97.5], axis=0)
    return low, high


def _covered(low: Any, high: Any, mean: float) -> float:
    return float(((low <= mean) & (mean <= high)).mean())


if __name__ == "__main__":
    tables = {"falls": falls, "outcomes": outcomes, "intervals": intervals, "clusters": clusters}
    asked = sys.argv[1:] or list(tables)
    if unknown := [name for name in asked if name not in tables]:
        sys.exit(f"no table {unknown[0]!r}; accepted are {', '.join(tables)}")
    for name in asked:
        tables[name]()

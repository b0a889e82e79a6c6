"""The smallest true fall that a comparison would have caught 8 times of 10: what a green verdict is worth."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from retrieval_heads.gates.expression import SLACK
from retrieval_heads.gates.fall import Fall
from retrieval_heads.gates.paired import LEVEL

POWER: Final = 0.8

_DRAWS: Final = 1000
_VALUES: Final = 1_000_000  # of a matrix [draws, pairs]: bounds 10,000 cells to 8 MB and a second
_FEWEST_DRAWS: Final = 100
_HALVINGS: Final = 10
_QUANTILES: Final = 1.645 + 0.842  # of the normal distribution: 95 %, and a power of 80 %
_SEED: Final = 20240515


@dataclass(frozen=True)
class SmallestFall:
    """True falls of the mean, in the number's own units; `None` where not even a fall to 0 is caught so often."""

    beyond: float | None
    """Comes out beyond the tolerance 8 times of 10: broken or inconclusive."""
    broken: float | None
    """Comes out broken 8 times of 10."""


def smallest_fall(fall: Fall, comparisons: int = 1) -> SmallestFall:
    """Simulate runs that are worse than the baseline, and see which of them this comparison would catch.

    A fall is made of cells that are lost altogether, each with the same probability, as retrieval fails; small losses
    everywhere would be easier to see. The other cells change by as much as cells of this run rose, up or down: that is
    the noise that is known. 1,000 seeded runs for each fall, fewer above 1,000 pairs.

    Args:
        fall: What was compared.
        comparisons: How many the run makes; each is judged at Bonferroni's level, the strictest that Holm's procedure
            may ask for.
    """
    import numpy as np

    random = np.random.default_rng(_SEED)
    pairs = len(fall.changes)
    draws = min(_DRAWS, max(_FEWEST_DRAWS, _VALUES // pairs))
    weights, before = np.asarray(fall.weights), np.array([change.before for change in fall.changes])
    rises = np.array([max(0.0, -change.drop) for change in fall.changes])
    noise = random.choice(rises, (draws, pairs)) - random.choice(rises, (draws, pairs))
    # One chance for each cell of each run: a greater fall loses the cells of a smaller one and more.
    chances = random.random((draws, pairs))

    def drops(share: float) -> Any:
        return np.where(chances < share, before, noise) * weights

    def beyond(share: float) -> float:
        return float((drops(share).sum(1) > fall.limit + SLACK).mean())

    def broken(share: float) -> float:
        lost = drops(share)
        return float(((lost.sum(1) > fall.limit + SLACK) & _is_significant(lost, LEVEL / comparisons)).mean())

    return SmallestFall(*(_smallest(caught, fall.before) for caught in (beyond, broken)))


def seeds_to_tell(fall: Fall) -> int:
    """Seeds per cell at which a fall would be significant 8 times of 10, should it stay as measured.

    The usual sample size of a one-sided z-test: the standard error falls with the root of the seeds.
    """
    drops = fall.drops
    error = math.sqrt(math.fsum(drop**2 for drop in drops) - fall.drop**2 / len(drops))
    seeds = max(1, round(len(drops) / fall.cells))
    return max(seeds + 1, math.ceil(seeds * (_QUANTILES * error / fall.drop) ** 2))


def _smallest(caught: Callable[[float], float], before: float) -> float | None:
    """The smallest fall, by halving the share of lost cells."""
    if before <= 0 or caught(1.0) < POWER:
        return None
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if caught(middle) >= POWER else (middle, high)
    return high * before


def _is_significant(drops: Any, level: float) -> Any:
    """Whether the exact test would reject, or never could, for each run of `drops` `[runs, pairs]`.

    Where all that moved moved by one size this is McNemar's test itself. Else the movement is taken as that of as many
    equal pairs as have its variance (Kish 1965), which is close enough for 8 times of 10.
    """
    import numpy as np

    sizes = np.abs(drops)
    moved = (sizes > SLACK).sum(1)
    movement, squares = sizes.sum(1), (sizes**2).sum(1)
    equal = np.divide(movement**2, squares, out=np.zeros(len(drops)), where=squares > 0)
    pairs = np.rint(equal).astype(int)
    falls = np.divide(pairs * (1 + drops.sum(1) / np.where(movement > 0, movement, 1)), 2)
    fewest = {count: _fewest_falls(int(count), level) for count in np.unique(pairs)}
    enough = np.floor(falls + 1e-6) >= [fewest[count] for count in pairs]
    never = 0.5**moved > level
    return enough | never


def _fewest_falls(pairs: int, level: float) -> float:
    """Of so many equal pairs, how many must fall for McNemar's exact test to reject; infinite where none do."""
    tail = 0.0
    for falls in range(pairs, -1, -1):
        log = math.lgamma(pairs + 1) - math.lgamma(falls + 1) - math.lgamma(pairs - falls + 1) - pairs * math.log(2)
        tail += math.exp(log)
        if tail > level * (1 + 1e-12):
            return falls + 1 if falls < pairs else math.inf
    return 0

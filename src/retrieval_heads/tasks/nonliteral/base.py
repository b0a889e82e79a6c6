"""The base score and the effective length of arXiv 2502.05167 (NoLiMa), section 4."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from retrieval_heads.runs.place import LENGTH
from retrieval_heads.runs.record import Record, finite_mean
from retrieval_heads.scoring.settings import CONTAINS
from retrieval_heads.tasks.nonliteral.sets import DIRECT

PAIR = "pair"
LONGEST_BASE = 1024
"""Tokens: up to here a length is short enough to tell what a model can do at all."""
SHARE = 0.85
"""Of the base score."""
_SLACK = 1e-9


@dataclass(frozen=True)
class BaseScore:
    """What a run's answers come to.

    Args:
        base: The mean over pairs of each pair's best mean at a length of at most 1,024 tokens.
        means: The mean over pairs at each length.
        effective: The longest length up to which every mean is at least 0.85 of the base, those that the base is of
            not counted; 0 for none. A length at which a pair has no answer ends it.
        missing: Samples without an answer, which count in no mean.
    """

    base: float
    means: Mapping[int, float]
    effective: int
    missing: int = 0


def base_score(records: Iterable[Record]) -> BaseScore | None:
    """The base score of a run, by `contains`; `None` where no short length was measured.

    Questions of the kind `direct` are left out, as in the paper.
    """
    values: defaultdict[int, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    missing = 0
    for record in records:
        length, pair = record.place.get(LENGTH), str(record.place.get(PAIR))
        if isinstance(length, int) and not pair.endswith(f"_{DIRECT}"):
            values[length][pair] += [record.scores[CONTAINS]] if CONTAINS in record.scores else []
            missing += CONTAINS not in record.scores
    # A pair without an answer at a length makes that length's mean one of other pairs.
    broken = {length for length, pairs in values.items() if not all(pairs.values())}
    means = {
        length: {pair: finite_mean(each) for pair, each in pairs.items() if each} for length, pairs in values.items()
    }
    short = [pairs for length, pairs in means.items() if length <= LONGEST_BASE and pairs]
    if not short:
        return None
    asked = sorted({pair for pairs in short for pair in pairs})
    base = finite_mean([max(pairs[pair] for pairs in short if pair in pairs) for pair in asked])
    overall = {length: finite_mean(list(means[length].values())) for length in sorted(means) if means[length]}
    effective = 0
    for length in sorted(means):
        if base > 0 and length not in broken and overall[length] >= SHARE * base - _SLACK:
            effective = length
        elif length > LONGEST_BASE:
            break
    return BaseScore(base, overall, effective, missing)


def totals(records: Sequence[Record]) -> list[str]:
    """The base score and the effective length in a line."""
    found = base_score(records)
    if found is None:
        return [f"no base score: no length of at most {LONGEST_BASE} tokens was measured"]
    reached = f"{found.effective:,} tokens" if found.effective else "none"
    left_out = f"; {found.missing:,} samples have no answer and are left out" if found.missing else ""
    return [
        f"base score {found.base:.3f} ({CONTAINS}, arXiv 2502.05167); effective length ({SHARE} of it): {reached}"
        f"{left_out}"
    ]

"""Finding the effective length without asking every length, where longer is not easier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from retrieval_heads.gates.expression import SLACK


def next_length(lengths: Sequence[int], means: Mapping[int, float | None], share: float) -> int | None:
    """The length to ask next: half way between the longest that holds and the shortest beyond it that does not.

    Args:
        lengths: All of them, ascending.
        means: Of those that were asked; `None` where none of their cells has a value.
        share: What of the best length's mean a length must hold (`effective_length`).

    Returns:
        `None` once these two are neighbours: further lengths cannot change the effective length.
    """
    if not means:
        return lengths[0]
    best = max((mean for mean in means.values() if mean is not None), default=0.0)
    holds, fails = -1, len(lengths)
    for place, length in enumerate(lengths):
        if length not in means:
            continue
        mean = means[length]
        if mean is None or best <= 0 or mean < share * best - SLACK:
            fails = place
            break
        holds = place
    return None if fails - holds <= 1 else lengths[(holds + fails) // 2]

"""How many units a length has room for."""

from __future__ import annotations

from collections.abc import Callable

_PROBE = 32
"""Units more than the fewest, of which the length of a unit is learnt."""


def most_that_fit(tokens_of: Callable[[int], int], fewest: int, room: int) -> int | None:
    """The greatest count of units whose text fits; `None` where the fewest do not.

    Texts are nearly as long as they have units, so that each next count is guessed from the units' length so far: some
    four long texts are tokenized, however many units there are.

    Args:
        tokens_of: Tokens of the text of a count.
        fewest: The least count.
        room: Tokens.
    """
    first = tokens_of(fewest)
    if first > room:
        return None
    low, high, count, tokens = fewest, None, fewest + _PROBE, tokens_of(fewest + _PROBE)
    while True:
        if tokens <= room:
            low = count
        else:
            high = count
        if high == low + 1:
            return low
        each = max((tokens - first) / (count - fewest), 0.01)
        guess = max(low + 1, count + int((room - tokens) // each))
        count = guess if high is None else min(guess, high - 1)
        tokens = tokens_of(count)

"""How many units a length has room for."""

from __future__ import annotations

from collections.abc import Callable


def most_that_fit(tokens_of: Callable[[int], int], fewest: int, room: int) -> int | None:
    """The greatest count of units whose text fits; `None` where the fewest do not.

    Texts are nearly as long as they have units, so that each next count is guessed from the slope: four or five texts
    are tokenized, however many units there are.

    Args:
        tokens_of: Tokens of the text of a count.
        fewest: The least count.
        room: Tokens.
    """
    low, taken = fewest, tokens_of(fewest)
    if taken > room:
        return None
    high, above = 2 * low, tokens_of(2 * low)
    while above <= room:
        low, taken, high = high, above, max(high + 1, high * room // max(above, 1) + 2)
        above = tokens_of(high)
    while high - low > 1:
        guess = low + (room - taken) * (high - low) // max(1, above - taken)
        guess = min(max(guess, low + 1), high - 1)
        count = tokens_of(guess)
        if count <= room:
            low, taken = guess, count
        else:
            high, above = guess, count
    return low

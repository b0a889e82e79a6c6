"""Which request a step's seconds were spent on, of the many that it computed at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


class Shares:
    """Shares each step out by the tokens that it computed of each request.

    A request's seconds from its first step to its last are those of the whole batch: a short prompt waits there for the
    long ones beside it. Its shares add up to what it took itself, and those of all requests to the engine's time.
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    def stepped(self, seconds: float, computed: Mapping[str, int], ended: Iterable[str]) -> dict[str, float]:
        """Count one step.

        Args:
            seconds: What it took.
            computed: Of each request that it worked on, the tokens, without those that a cache gave.
            ended: The requests that it finished.

        Returns:
            Of each of these, the sum of its shares.
        """
        if total := sum(computed.values()):
            for name, tokens in computed.items():
                self._seconds[name] = self._seconds.get(name, 0.0) + seconds * tokens / total
        return {name: self._seconds.pop(name, 0.0) for name in ended}

    def forget(self, name: str) -> None:
        """Let go of a request that nobody waits for."""
        self._seconds.pop(name, None)

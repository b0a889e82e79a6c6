"""Which request a step's seconds were spent on, of the many that it computed at once."""

from __future__ import annotations

from collections.abc import Mapping


class Shares:
    """Shares each step out by the tokens that it computed of each request.

    A request's seconds from its first step to its last are those of the whole batch: a short prompt waits there for the
    long ones beside it. Its shares add up to what it took itself, and those of all requests to the engine's time.
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._reached: dict[str, int] = {}

    def stepped(
        self, seconds: float, running: Mapping[str, tuple[int, int]], ended: Mapping[str, tuple[int, int]]
    ) -> dict[str, float]:
        """Count one step.

        Args:
            seconds: What it took.
            running: Of each unfinished request, its tokens that are computed or cached by now, and how many of them
                were cached at its start.
            ended: The same of each request that the step finished.

        Returns:
            Of each request that it finished, the sum of its shares.
        """
        computed = {}
        for name, (reached, cached) in {**running, **ended}.items():
            computed[name] = max(0, reached - self._reached.get(name, cached))
            self._reached[name] = reached
        if total := sum(computed.values()):
            for name, tokens in computed.items():
                self._seconds[name] = self._seconds.get(name, 0.0) + seconds * tokens / total
        for name in ended:
            del self._reached[name]
        return {name: self._seconds.pop(name, 0.0) for name in ended}

    def forget(self, name: str) -> None:
        """Let go of a request that nobody waits for."""
        self._reached.pop(name, None)
        self._seconds.pop(name, None)

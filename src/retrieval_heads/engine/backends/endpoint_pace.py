"""How much is asked of an endpoint at once, and in all."""

from __future__ import annotations

import asyncio
from collections import deque

from retrieval_heads.engine.backends.endpoint_settings import Budget
from retrieval_heads.errors import EngineError

_FIRST = 16
"""Requests at once, to begin with."""


class Window:
    """How many requests run at once: one more with each answer, half as many when the server has too much.

    That is TCP's way (RFC 5681): after the first halving, one more with each whole window of answers.

    Args:
        most: Never more.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.size = float(min(_FIRST, most))
        self._running = 0
        self._threshold = float(most)
        self._shrunk = 0.0
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def enter(self) -> None:
        """Wait for a place, in order."""
        if self._running < int(self.size) and not self._waiting:
            self._running += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # its turn had come
                self.leave(is_answered=False)
            raise

    def leave(self, *, is_answered: bool) -> None:
        """Give the place back."""
        self._running -= 1
        if is_answered:
            self.size = min(self._most, self.size + (1 if self.size < self._threshold else 1 / self.size))
        while self._waiting and self._running < int(self.size):
            turn = self._waiting.popleft()
            if not turn.done():  # nobody has let go of it
                self._running += 1
                turn.set_result(None)

    def shrink(self, sent: float, now: float) -> None:
        """A try failed: the server was busy, broken or gone.

        Args:
            sent: When it was sent; many that were sent before the last halving tell of one thing.
            now: The time.
        """
        if sent >= self._shrunk:
            self.size = self._threshold = max(1.0, self.size / 2)
            self._shrunk = now


class Purse:
    """What is left of a budget.

    Args:
        budget: Of a run.
    """

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._requests = 0
        self._tokens = 0
        """Spent, and set aside for what runs."""
        self._set_aside = 0
        self._settled = asyncio.Condition()

    async def take(self, tokens: int) -> None:
        """Set aside what a request takes at most; waits for running ones that may take less than they might.

        Args:
            tokens: Of its prompt and the longest answer.

        Raises:
            EngineError: It is not there.
        """
        most = self._budget.tokens
        async with self._settled:
            if self._budget.requests is not None and self._requests >= self._budget.requests:
                raise EngineError(f"not asked: {self._requests} requests are made (engine.budget.requests)")
            while most is not None and self._tokens + tokens > most:
                if not self._set_aside:
                    raise EngineError(
                        f"not asked: it may take {tokens:,} tokens, and {most - self._tokens:,} of {most:,} are left "
                        "(engine.budget.tokens)"
                    )
                await self._settled.wait()
            self._requests += 1
            self._tokens += tokens
            self._set_aside += tokens

    async def settle(self, tokens: int, spent: int) -> None:
        """Say what a request took.

        Args:
            tokens: That were set aside.
            spent: Of those.
        """
        async with self._settled:
            self._tokens += spent - tokens
            self._set_aside -= tokens
            self._settled.notify_all()

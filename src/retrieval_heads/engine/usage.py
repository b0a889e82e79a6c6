"""What an endpoint says that a run took of it: tokens in and out, and what that costs."""

from __future__ import annotations

from dataclasses import dataclass

from retrieval_heads.plain import Plain


@dataclass(frozen=True, slots=True)
class Usage(Plain):
    """What was asked of an endpoint and counted by it.

    Args:
        requests: Those that were answered.
        tokens_in: Of their prompts.
        tokens_out: Of their answers.
        cost: In the money that the price is given in (`engine.price`); `None` where there is no price.
    """

    requests: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float | None = None

    def __add__(self, other: Usage) -> Usage:
        """Both together."""
        return Usage(
            self.requests + other.requests,
            self.tokens_in + other.tokens_in,
            self.tokens_out + other.tokens_out,
            None if self.cost is None and other.cost is None else (self.cost or 0.0) + (other.cost or 0.0),
        )

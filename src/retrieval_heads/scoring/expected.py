"""What an answer is judged by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Expected(Protocol):
    """What an answer is judged by."""

    @property
    def question(self) -> str:
        """What was asked."""

    @property
    def references(self) -> Sequence[str]:
        """The answers that are accepted; each score is that of the best one."""

    @property
    def sayings(self) -> Sequence[str]:
        """Of what `key_words` must find one."""

"""What prefix caching can save at best: how many tokens of a prompt earlier prompts left in the cache."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Prefix:
    """What decides how long a prefix two prompts share.

    Args:
        head: Tokens before the context.
        context: Names the run of haystack tokens that the context is the start of.
        insertion: Tokens of the context before the needle.
        needle: The needle's tokens.
        tail: Tokens after the context.
        salt: Prompts of different salts share no cache: the mask of an ablation's arm.
        tail_salt: Those of different ones share nothing of their tails: the heads that stream behind the context.
    """

    head: tuple[int, ...]
    context: Hashable
    insertion: int
    needle: tuple[int, ...]
    tail: tuple[int, ...]
    salt: Hashable = None
    tail_salt: Hashable = None


@dataclass
class Reuse:
    """The prompts so far, of an engine whose cache holds everything.

    Args:
        block: Tokens of a cache block; only whole blocks are reused.
    """

    block: int
    _heads: set[object] = field(default_factory=set)
    _deepest: dict[object, int] = field(default_factory=dict)
    _longest: dict[object, int] = field(default_factory=dict)
    _whole: set[object] = field(default_factory=set)

    def add(self, prefix: Prefix, tokens: int) -> int:
        """Remember a prompt; how many of its tokens the prompts before it left in the cache.

        Two prompts share all up to the needle that stands first; with one needle at one place, all up to the end of
        the shorter context; of different contexts, what stands before them. A prompt may also have come before.

        Args:
            prefix: The prompt's.
            tokens: Its length. The last token is always computed.
        """
        head = (prefix.salt, prefix.head)
        first = (*head, prefix.needle)  # of a context that begins with the needle
        start = (*head, prefix.context)
        place = (*start, prefix.needle, prefix.insertion)
        end, whole = tokens - len(prefix.tail), (*place, prefix.tail, prefix.tail_salt, tokens)
        shared = len(prefix.head) if head in self._heads else 0
        if prefix.insertion == 0 and first in self._heads:
            shared += len(prefix.needle)
        if start in self._deepest:
            shared = max(shared, len(prefix.head) + min(prefix.insertion, self._deepest[start]))
        if place in self._longest:
            shared = max(shared, min(end, self._longest[place]))
        if whole in self._whole:
            shared = tokens
        self._heads.update([head, first] if prefix.insertion == 0 else [head])
        self._deepest[start] = max(prefix.insertion, self._deepest.get(start, 0))
        self._longest[place] = max(end, self._longest.get(place, 0))
        self._whole.add(whole)
        return min(shared, tokens - 1) // self.block * self.block

"""Token ids of a random text that is repeated."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from retrieval_heads.errors import PromptError


def plain_tokens(tokenizer: Any) -> Sequence[int]:
    """A vocabulary's ids, without those of special and other added tokens.

    Raises:
        PromptError: The tokenizer does not tell them.
    """
    if not hasattr(tokenizer, "get_vocab"):
        raise PromptError("the tokenizer does not tell its vocabulary, of which a random text is made")
    added = set(getattr(tokenizer, "added_tokens_decoder", ())) | set(getattr(tokenizer, "all_special_ids", ()))
    return sorted(set(tokenizer.get_vocab().values()) - added)


def repeated_text(vocabulary: Sequence[int], tokens: int, repeats: int, seed: int) -> list[int]:
    """So many different tokens in random order, again and again.

    Args:
        vocabulary: What they are drawn from.
        tokens: Of one copy.
        repeats: Copies.
        seed: Chooses them.

    Raises:
        PromptError: The vocabulary has fewer.
    """
    if tokens > len(vocabulary):
        raise PromptError(
            f"random_text.tokens: {tokens} different tokens are wanted, and the vocabulary has {len(vocabulary)} that "
            "are not special"
        )
    return random.Random(f"retrieval-heads random text {seed}").sample(vocabulary, tokens) * repeats

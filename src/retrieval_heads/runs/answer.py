"""What a model said to one prompt."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Answer:
    """What the model said to one prompt.

    Args:
        text: The answer.
        token_ids: Its ids, the end-of-sequence token included when it was produced.
        finish_reason: `stop` or `length`.
        prompt_tokens: Tokens of the prompt.
        cached_tokens: How many of those the prefix cache gave.
        seconds: From the first work on the request to its last token.
        prompt_logprob: Mean log probability of the prompt's tokens, where `prompt_logprobs=0` asked for it.
    """

    text: str
    token_ids: list[int] = field(repr=False)
    finish_reason: str
    prompt_tokens: int
    cached_tokens: int
    seconds: float
    prompt_logprob: float | None = None

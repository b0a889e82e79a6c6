"""What a model said to one prompt."""

from __future__ import annotations

from dataclasses import dataclass, field

from retrieval_heads.plain import Plain


@dataclass(frozen=True)
class Answer(Plain):
    """What the model said to one prompt.

    Args:
        text: The answer; of a suite's cell what stands behind the model's thoughts.
        token_ids: The ids of thoughts and answer, the end-of-sequence token included when it was produced.
        finish_reason: `stop` or `length`.
        prompt_tokens: Tokens of the prompt; of one that was sent as text, as the tokenizer counts them.
        cached_tokens: How many of those the prefix cache gave.
        seconds: From the first work on the request to its last token, other requests beside it.
        engine_seconds: What it took of the engine itself, with the replays of its heads' scores; `None` where that is
            not seen.
        queued_seconds: From when it was asked until the engine began with it.
        thoughts: What was said before the answer, the closing tag included; `None` where that is not told apart.
        thought_tokens: How many of `token_ids` those are; `None` where it is not known.
        server_prompt_tokens: The same by the server's own count, of a prompt that was sent as text.
        prompt_logprob: Mean log probability of the prompt's tokens, where `prompt_logprobs=0` asked for it.
    """

    text: str
    token_ids: list[int] = field(repr=False)
    finish_reason: str
    prompt_tokens: int
    cached_tokens: int
    seconds: float
    thoughts: str | None = None
    thought_tokens: int | None = None
    server_prompt_tokens: int | None = None
    prompt_logprob: float | None = None
    engine_seconds: float | None = None
    queued_seconds: float | None = None

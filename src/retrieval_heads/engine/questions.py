"""What anybody may ask the engine beside suites: checked before it crosses, so that a mistake is a sentence."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence

from pydantic import ValidationError

from retrieval_heads.ablation.arms import MODES
from retrieval_heads.engine.jobs import Aim, FreeQuestion
from retrieval_heads.errors import QuestionError
from retrieval_heads.heads.looks import Span
from retrieval_heads.plain import Json
from retrieval_heads.runs.mask import STREAM, Mask

Spans = str | Span | Sequence[str | Span]
"""Parts of a prompt: each a text that stands in it once, or its characters, `(start, end)`."""


def free_question(
    prompt: str | Sequence[Mapping[str, str]],
    sampling: Mapping[str, Json],
    mask: Mask | Mapping[str, object] | None,
    *,
    chat: bool,
    aim: Aim | None = None,
) -> FreeQuestion:
    """A question that no suite asks.

    Args:
        prompt: A user's message, or messages with `role` and `content`.
        sampling: Sampling parameters, `max_tokens` among them; greedy where nothing is said.
        mask: Heads that have no say in it.
        chat: Whether the chat template writes the prompt.
        aim: What heads are scored on, where they are.

    Raises:
        QuestionError: It is made of what does not cross to the engine.
    """
    _check_prompt(prompt)
    budget = sampling["max_tokens"]
    if type(budget) is not int or budget < 1:
        raise QuestionError(f"ask: max_tokens: a number of tokens is expected, found {budget!r}")
    masked, told = _mask_of(mask), {"temperature": 0.0, **sampling}
    for name, value in told.items():
        try:
            json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError):
            raise QuestionError(
                f"ask: {name}: {value!r:.100} does not cross to the engine; texts, finite numbers, true, false, "
                "lists and mappings do"
            ) from None
    messages = prompt if isinstance(prompt, str) else tuple(prompt)
    return FreeQuestion(messages, told, bool(chat), masked, aim=aim)


def aimed_at(prompt: str, spans: Spans, answer: str | None, question: str | Span | None, scores: Sequence[str]) -> Aim:
    """What heads are scored on of a text of a user's own; see `EngineClient.head_scores`.

    Raises:
        QuestionError: The prompt is no text, or a span does not stand in it.
    """
    if not isinstance(prompt, str):
        raise QuestionError(f"head_scores: prompt: a text is expected, found {prompt!r:.100}")
    if answer is not None and not (isinstance(answer, str) and answer):
        raise QuestionError(f"head_scores: answer: a text is expected, found {answer!r:.100}")
    each = [spans] if isinstance(spans, str) or _is_span(spans) else list(spans)
    if not each:
        raise QuestionError("head_scores: spans: name what the answer must find in the prompt")
    asked = None if question is None else _characters(prompt, question, "question")
    return Aim(tuple(_characters(prompt, one, "spans") for one in each), asked, answer, tuple(scores))


def _is_span(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(type(end) is int for end in value)


def _characters(prompt: str, said: object, where: str) -> Span:
    """The characters of a part of a prompt."""
    if isinstance(said, str):
        if not said or (found := prompt.count(said)) != 1:
            times = f"stands in the prompt {found} times" if said else "is empty"
            raise QuestionError(f"head_scores: {where}: {said!r:.100} {times}; once is needed, or give (start, end)")
        start = prompt.index(said)
        return start, start + len(said)
    if isinstance(said, tuple) and _is_span(said) and 0 <= said[0] < said[1] <= len(prompt):
        return said[0], said[1]
    raise QuestionError(
        f"head_scores: {where}: a text of the prompt or its characters (start, end) are expected, found {said!r:.100}"
    )


def _mask_of(mask: object) -> Mask | None:
    """What a user says of the heads that are to have no say.

    Raises:
        QuestionError: It is no mask.
    """
    if mask is None or isinstance(mask, Mask):
        return mask
    if isinstance(mask, Mapping):
        with contextlib.suppress(ValidationError):
            made = Mask.of_json(mask)
            if made.mode in MODES or (made.mode == STREAM and made.stream is not None):
                return made
    raise QuestionError(
        f'ask: mask: such as {{"mode": "zero", "heads": [[18, 7]]}}, with a mode of {", ".join(MODES)}, or of stream '
        f"with a `stream` of sink and recent, is expected, found {mask!r:.100}"
    )


def _check_prompt(prompt: object) -> None:
    """Refuse what is neither a text nor a list of messages, before the engine is asked.

    Raises:
        QuestionError: It is neither, or a text is no Unicode.
    """
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not isinstance(messages, Sequence) or isinstance(messages, bytes) or not messages:
        raise QuestionError(f"ask: prompt: a text or a list of messages is expected, found {prompt!r:.100}")
    for message in messages:
        is_message = isinstance(message, Mapping) and {"role", "content"} <= message.keys()
        if not is_message or not all(isinstance(text, str) for text in message.values()):
            raise QuestionError(f"ask: prompt: a message has a text as role and as content, found {message!r:.100}")
        for text in message.values():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise QuestionError(
                    f"ask: prompt: no Unicode text: half of a surrogate pair stands at character {error.start}"
                ) from None

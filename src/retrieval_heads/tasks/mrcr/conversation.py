"""From a conversation to a prompt of as many whole turns as fit; spans of the asked reply and of those like it."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from retrieval_heads.errors import PromptError
from retrieval_heads.prompts.haystack import AROUND, Text
from retrieval_heads.prompts.prompt import PromptText, hash_ids
from retrieval_heads.prompts.requests import Request, Writer
from retrieval_heads.prompts.reuse import Prefix
from retrieval_heads.runs.facts import PromptFacts
from retrieval_heads.runs.record import Insertion, Recipe
from retrieval_heads.tasks.mrcr.writing import Turn, alike, others

Message = dict[str, str]


@dataclass(frozen=True)
class Conversation:
    """What a prompt holds before it asks.

    Args:
        messages: All of it, the question last.
        asked: The reply that is asked for again.
        like: The replies to the same request, which are not asked for.
    """

    messages: list[Message]
    asked: str
    like: tuple[str, ...] = ()

    @property
    def hash(self) -> str:
        """SHA-256 of the messages."""
        return _hash(self.messages)

    @property
    def context(self) -> str:
        """The same of those before the question."""
        return _hash(self.messages[:-1])


def _hash(messages: Sequence[Message]) -> str:
    return hashlib.sha256(json.dumps(list(messages), sort_keys=True).encode()).hexdigest()


def drawn(seed: int, requests: int, asked: int, turns: int, question: str) -> Conversation:
    """A conversation of a number of turns, those that are alike at drawn places among the others.

    Args:
        seed: Draws texts and places.
        requests: How many requests are alike.
        asked: Which of their replies is asked for, from 1.
        turns: Requests and replies, those that are alike among them.
        question: The last message.
    """
    same = alike(seed, requests)
    rest = itertools.islice(others(seed), turns - requests)
    places = random.Random(f"retrieval-heads mrcr places {seed} {turns}").sample(range(turns), requests)
    standing = dict(zip(sorted(places), same, strict=True))
    ordered: list[Turn] = [standing[at] if at in standing else next(rest) for at in range(turns)]
    messages = [
        {"role": role, "content": text}
        for turn in ordered
        for role, text in (("user", turn.request), ("assistant", turn.reply))
    ]
    like = tuple(turn.reply for number, turn in enumerate(same, start=1) if number != asked)
    return Conversation([*messages, {"role": "user", "content": question}], same[asked - 1].reply, like)


def largest_fit(made: Callable[[int], Conversation], least: int, length: int, writer: Writer) -> Conversation:
    """The conversation of the most turns that fits a length.

    Args:
        made: One of a number of turns.
        least: The fewest that there can be.
        length: Tokens of the whole prompt, by the tested model's tokenizer and chat template.
        writer: The model's.

    Raises:
        PromptError: Not even the fewest turns fit.
    """
    shortest = tokens_of(made(least).messages, writer)
    if shortest > length:
        raise PromptError(
            f"a length of {length} tokens is too short: {least} turns and the question take {shortest}; at least "
            f"{shortest} are needed"
        )
    fits, took, beyond = least, shortest, None
    each = shortest / least
    while beyond is None or beyond - fits > 1:
        # Turns are nearly as long as each other: a step or two come near, and the last ones find the end.
        guess = fits + max(1, int((length - took) / each))
        tried = guess if beyond is None else min(guess, beyond - 1)
        needed = tokens_of(made(tried).messages, writer)
        each = max(1.0, (needed - took) / (tried - fits))
        if needed <= length:
            fits, took = tried, needed
        else:
            beyond = tried
    return made(fits)


def tokens_of(messages: Sequence[Message], writer: Writer) -> int:
    """Tokens of a prompt."""
    return len(writer.prompts.encode_start(writer.prompts.render(list(messages))))


def request_of(
    conversation: Conversation,
    sampling: Mapping[str, Any],
    writer: Writer,
    options: Mapping[str, Any],
    *,
    needs_spans: bool,
) -> Request:
    """The request that asks a conversation's question; head scores aim at the asked reply.

    Args:
        conversation: What stands in the prompt.
        sampling: With `max_tokens` in it.
        writer: The model's.
        options: The task's own settings, for the recipe.
        needs_spans: Whether head scores will be made.

    Raises:
        PromptError: The chat template refuses the messages; or head scores need the reply and the prompt holds it
            more than once, or not as it stands in the conversation.
        CellSkipped: Prompt and answer do not fit the model.
    """
    rendered = writer.prompts.render(conversation.messages)
    ids, tokens = writer.prompts.tokens_at_start(rendered)
    writer.check_room(len(ids), sampling["max_tokens"])
    shift = len(ids) - len(tokens.ids)
    recipe = Recipe(
        hash=conversation.hash,
        wording=conversation.messages[-1:],
        template_hash=writer.prompts.wording_hash(conversation.messages[-1:]),
        prompt_hash=hash_ids(ids),
        options=dict(options),
    )
    question = _span(rendered, conversation.messages[-1]["content"], tokens, shift, last=True)
    facts = PromptFacts(len(ids), recipe, question_span=question)
    begin = question[0] if question else 0
    # Another question to the same conversation shares all before it.
    prefix = Prefix((), conversation.context, begin, (), tuple(ids[begin:]))
    spans = [_span(rendered, text, tokens, shift) for text in (conversation.asked, *conversation.like)]
    text = PromptText(tuple(conversation.messages), rendered) if writer.takes_text else None
    if spans[0] is None:
        if needs_spans:
            raise PromptError("the prompt does not hold the asked reply exactly once, so that heads cannot be scored")
        return Request(ids, dict(sampling), facts, prefix=prefix, text=text)
    stood = [
        _insertion(role, said, span, len(ids))
        for role, said, span in zip(
            ["asked", *["distractor"] * len(conversation.like)],
            [conversation.asked, *conversation.like],
            spans,
            strict=True,
        )
        if span is not None
    ]
    at = rendered.index(conversation.asked.strip())
    end = at + len(conversation.asked.strip())
    facts = PromptFacts(
        len(ids),
        recipe,
        needle_span=spans[0],
        question_span=question,
        achieved_depth=stood[0].achieved_depth,
        around=(rendered[max(0, at - AROUND) : at], rendered[end : end + AROUND]),
        insertions=tuple(stood),
    )
    return Request(ids, dict(sampling), facts, prefix=prefix, text=text)


def _span(rendered: str, said: str, tokens: Text, shift: int, *, last: bool = False) -> tuple[int, int] | None:
    """A text's tokens, where the prompt holds it once; templates may strip it."""
    said = said.strip()
    if not last and rendered.count(said) != 1:
        return None
    at = rendered.rfind(said)
    if at < 0:
        return None
    first, end = tokens.span(at, at + len(said))
    return first + shift, end + shift


def _insertion(role: Any, said: str, span: tuple[int, int], tokens: int) -> Insertion:
    depth = round(100 * span[0] / tokens, 4)
    return Insertion(role=role, text=said, depth=depth, achieved_depth=depth, place=span[0], span=span)

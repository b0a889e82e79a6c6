"""Several texts in one haystack: where each is to stand, and the request that holds them all."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from retrieval_heads.errors import ConfigError, PromptError
from retrieval_heads.plain import Fields
from retrieval_heads.prompts.haystack import SENTENCES, Haystack
from retrieval_heads.prompts.prompt import Frame, Insert
from retrieval_heads.prompts.requests import Request, Writer, recipe_of
from retrieval_heads.prompts.reuse import Prefix
from retrieval_heads.runs.facts import PromptFacts
from retrieval_heads.runs.record import Insertion
from retrieval_heads.scoring.settings import MATCHES, METRICS, STRING_MATCH, Scoring

SAYS_ALL: Mapping[str, object] = {"scoring": {"metric": STRING_MATCH, "threshold": 0.99}}
"""What decides where a suite does not say: an answer says everything that is expected."""


def check_metric(scoring: Scoring) -> None:
    """Refuse a score that an answer of several things does not have.

    Raises:
        ConfigError: With those that it has.
    """
    if scoring.metric not in (*MATCHES, *METRICS):
        accepted = ", ".join((*MATCHES, *METRICS))
        raise ConfigError(f"scoring.metric: the task has no score {scoring.metric}; accepted: {accepted}")


@dataclass(frozen=True)
class Planned:
    """A text that is to stand in a haystack.

    Args:
        role: `asked`: the answer must say what it says; else `distractor`.
        text: The text.
        counted: The part of it that its span holds.
        depth: Percent of the haystack before it.
    """

    role: Literal["asked", "distractor"]
    text: str
    counted: str | None
    depth: float


def request_of(
    writer: Writer,
    haystack: Haystack,
    frame: Frame,
    planned: Sequence[Planned],
    question: str,
    length: int,
    sampling: Fields,
    *,
    seed: int,
    boundary: str,
    options: Fields,
) -> Request:
    """A prompt of exactly `length` tokens with several texts in it, those that are asked for first in `planned`.

    Args:
        writer: The model's.
        haystack: What they stand in.
        frame: What stands around it.
        planned: The texts.
        question: What is asked, as it stands in the frame.
        length: Tokens of the whole prompt.
        sampling: With `max_tokens` in it.
        seed: Chooses where the haystack starts.
        boundary: Where a text may stand.
        options: The task's own settings, for the recipe.

    Raises:
        CellSkipped: Prompt and answer do not fit the model.
        PromptError: The length is too short, or a text has no tokens.
    """
    writer.check_room(length, sampling["max_tokens"])
    inserts = [Insert(each.text, each.counted, each.depth) for each in planned]
    prompt = writer.prompts.build_several(haystack, frame, inserts, length, seed=seed, boundary=boundary)
    context = prompt.context
    first = min(range(len(planned)), key=lambda number: context.starts[number])
    facts = PromptFacts(
        prompt_tokens=length,
        recipe=recipe_of(prompt, haystack, frame, options),
        needle_span=prompt.needle_span,
        question_span=prompt.question_span,
        achieved_depth=round(prompt.achieved_depth, 4),
        around=context.around,
        insertions=tuple(
            Insertion(
                role=each.role,
                text=each.text,
                counted=each.counted,
                depth=each.depth,
                achieved_depth=round(achieved, 4),
                place=place,
                span=span,
            )
            for each, achieved, place, span in zip(
                planned, prompt.achieved_depths, context.insertions, prompt.spans, strict=True
            )
        ),
    )
    prefix = Prefix(
        head=frame.head,
        context=(haystack.hash, context.offset),
        insertion=context.insertions[first],
        # Two prompts are alike behind the first text only where all others stand at the same places too.
        needle=(*prompt.ids[prompt.spans[first][0] : prompt.spans[first][1]], *context.insertions),
        tail=frame.tail,
    )
    texts = [each.text for each in planned]
    text = writer.prompts.prompt_text(prompt, haystack, frame, texts, question) if writer.takes_text else None
    return Request(prompt.ids, dict(sampling), facts, prefix=prefix, text=text)


def as_sentences(planned: Sequence[Planned], haystack: Haystack, tokens: int, writer: Writer) -> list[Planned]:
    """Texts with the blanks that make each a sentence among those of a haystack that stands on one line.

    RULER joins the sentences before a needle, the needle, and those behind it by blanks, wherever it stands: at the
    start of the text, at its end, or where two needles meet, there are no sentences on one side and the blank is there
    all the same.

    Args:
        planned: The texts, without white space around them; depths count sentences.
        haystack: What they stand in.
        tokens: Of haystack and texts together.
        writer: The model's.
    """
    spaced = [replace(each, text=f" {each.text}") for each in planned]
    tokens -= sum(len(writer.prompts.insert_tokens(each.text, each.counted)[0]) for each in spaced)
    places = haystack.places(max(tokens, 0), [each.depth for each in spaced], boundary=SENTENCES)
    order = sorted(range(len(spaced)), key=lambda number: places[number])
    for number, following in zip(order, [*order[1:], None], strict=True):
        meets = following is not None and places[following] == places[number]
        if meets or places[number] in (0, tokens):
            spaced[number] = replace(spaced[number], text=f"{spaced[number].text} ")
    return spaced


def drawn_away(
    draw: random.Random, kept_clear: Sequence[float], apart: float, first: float = 0.0, last: float = 100.0
) -> float:
    """A depth that is drawn evenly from all that lie at least `apart` percent from some others.

    Args:
        draw: Draws it.
        kept_clear: The others, in percent.
        apart: Percent of the haystack.
        first: The least depth.
        last: The greatest.

    Raises:
        PromptError: There is none.
    """
    free, start = [], first
    for depth in sorted(kept_clear):
        if depth - apart > start:
            free.append((start, min(last, depth - apart)))
        start = max(start, depth + apart)
    if start < last:
        free.append((start, last))
    if not free:
        raise PromptError(
            f"no depth is {apart:g} % away from all of {len(kept_clear)} needles; give task.apart a smaller number"
        )
    at = draw.uniform(0, sum(end - begin for begin, end in free))
    for begin, end in free:
        if at <= end - begin:
            return round(begin + at, 4)
        at -= end - begin
    return round(free[-1][1], 4)

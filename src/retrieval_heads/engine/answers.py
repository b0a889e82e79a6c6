"""From a finished request to what is said of its cell."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy

from retrieval_heads.engine.backends.backend import Finished
from retrieval_heads.engine.packed import PackedHeads
from retrieval_heads.errors import EngineError
from retrieval_heads.heads.looks import Rows, Span
from retrieval_heads.heads.score import head_score, is_measured, is_wanted
from retrieval_heads.prompts.prompt import Tokenizer
from retrieval_heads.prompts.requests import Request
from retrieval_heads.runs.answer import Answer
from retrieval_heads.runs.layers import Layer
from retrieval_heads.runs.record import Replay
from retrieval_heads.runs.steps import Steps
from retrieval_heads.scoring.settings import Tags
from retrieval_heads.scoring.thoughts import opens_thoughts, thoughts_in

if TYPE_CHECKING:
    from numpy import float64
    from numpy.typing import NDArray

_PROMPT_END = 32
"""Tokens of a prompt, a prefill's not counted, among which a template opens the thoughts."""


def answer_of(finished: Finished, request: Request) -> Answer:
    """A finished request's answer, without the request's name; of a prompt that was sent as text with both counts."""
    is_text = request.text is not None
    return Answer(
        text=finished.text,
        token_ids=finished.token_ids,
        finish_reason=finished.finish_reason,
        prompt_tokens=len(request.ids) if is_text else finished.prompt_tokens,
        server_prompt_tokens=(finished.prompt_tokens or None) if is_text else None,
        cached_tokens=finished.cached_tokens,
        seconds=finished.seconds,
        prompt_logprob=finished.prompt_logprob,
    )


def without_thoughts(answer: Answer, request: Request, tags: Sequence[Tags], tokenizer: Tokenizer) -> Answer:
    """An answer whose text is what stands behind the thoughts, with those as `thoughts` and `thought_tokens`.

    Args:
        answer: From `answer_of`, or of a record.
        request: What was asked.
        tags: Those that stand around thoughts.
        tokenizer: The model's. Tags may be special tokens, of which an answer's text holds nothing.
    """
    if not tags:
        return answer
    said, ids = (answer.thoughts or "") + answer.text, answer.token_ids
    prefill = (request.facts.recipe and request.facts.recipe.prefill) or ""
    end = tokenizer.decode(request.ids[-_PROMPT_END - len(prefill) :])
    whole = tokenizer.decode(ids) if ids else said
    found = thoughts_in(whole, tags, inside=opens_thoughts(end, prefill, tags))
    if found.are_none:
        return answer
    if found.is_open:
        return replace(answer, text="", thoughts=said, thought_tokens=len(ids))
    # The first token that ends with the tag or behind it, then white space: a token may hold a space and a word.
    count = bisect_left(range(len(ids)), found.end, key=lambda place: len(tokenizer.decode(ids[:place])))
    while count < len(ids) and len(tokenizer.decode(ids[: count + 1])) <= found.answer:
        count += 1
    if said.startswith(whole[: found.answer]):
        text = said[found.answer :]
    else:
        before = tokenizer.decode(ids[:count], skip_special_tokens=True)
        text = (
            said[len(before) :] if said.startswith(before) else tokenizer.decode(ids[count:], skip_special_tokens=True)
        )
    return replace(answer, text=text.lstrip(), thoughts=whole[: found.answer], thought_tokens=count)


def spelled(answer: Sequence[int], sayings: Sequence[str], tokenizer: Tokenizer) -> Span:
    """The answer's tokens that spell what was expected, half open: those that hold a character of its first occurrence,
    in whatever case (LOCOS' `identify_answer_steps`); of an answer that has none, all but the token that ends it.

    Args:
        answer: Its token ids.
        sayings: What is accepted, the best first.
        tokenizer: The model's.
    """
    ids = list(answer)
    text = tokenizer.decode(ids) if ids else ""
    for saying in sayings:
        found = re.search(re.escape(saying.strip()), text, re.IGNORECASE) if saying.strip() else None
        if found is not None:
            counts = range(1, len(ids) + 1)
            first = bisect_right(counts, found.start(), key=lambda count: len(tokenizer.decode(ids[:count])))
            last = bisect_left(counts, found.end(), key=lambda count: len(tokenizer.decode(ids[:count])))
            return first, min(len(ids), last + 1)
    ends = bool(ids) and not tokenizer.decode(ids[-1:], skip_special_tokens=True)
    return 0, len(ids) - ends


def measured_scores(wanted: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """Those of the scores that can be measured of a model that are wanted, in order.

    Args:
        wanted: Names; none stands for the usual ones.
        names: Of the scores that can be measured of the model.

    Raises:
        EngineError: One that was named cannot be measured.
    """
    if lacking := [name for name in wanted if name not in names]:
        raise EngineError(f"scores: {', '.join(lacking)} cannot be measured of this model; {', '.join(names)} can")
    return tuple(name for name in names if is_wanted(head_score(name), wanted))


def handed_over(finished: Finished, rows: Rows, names: Sequence[str]) -> dict[str, NDArray[float64]]:
    """What a finished replay hands over for each score, `[parts, layers, heads]`.

    Args:
        finished: The replay.
        rows: What was replayed.
        names: Of the scores that its figures are of, in order.

    Raises:
        EngineError: The probe failed.
    """
    if finished.error is not None or finished.head_scores is None:
        raise EngineError(f"the heads were not scored: {finished.error or 'the probe did not run'}")
    figures, found, start = numpy.asarray(finished.head_scores, dtype=float), {}, 0
    for name in names:
        end = start + head_score(name).parts(rows)
        found[name] = figures[start:end]
        start = end
    return found


def heads_of(scores: Mapping[str, NDArray[float64]], layers: Sequence[Layer]) -> PackedHeads:
    """Every head's scores of a sample.

    Args:
        scores: By name, `[layers, heads]`.
        layers: The model's; a row of heads for each, empty where a layer cannot be scored.

    Raises:
        EngineError: A layer's queries, keys or decay hold NaN.
    """
    counts = [layer.heads for layer in layers]
    scored = [layer for layer in layers if layer.heads]
    widths = numpy.array([layer.heads for layer in scored])
    whole = {}
    for name, values in scores.items():
        is_own = numpy.arange(values.shape[1]) < widths[:, None]  # a row is as long as the longest layer's
        has = numpy.array([layer.has(head_score(name).needs) for layer in scored])
        broken = is_own & has[:, None] & ~numpy.isfinite(values)
        if broken.any():
            row = int(broken.any(1).argmax())
            path = scored[row].path
            where = f"{path}, head {', '.join(map(str, broken[row].nonzero()[0]))}"
            raise EngineError(
                f"the heads were not scored: {name} is no number, for NaN in the queries, keys or decay of {where}"
            )
        whole[name] = numpy.where(has[:, None], values, numpy.nan).round(8)
    return PackedHeads.of(whole, counts)


def replay_of(finished: Finished) -> Replay:
    """How a replay was run."""
    return Replay(
        cached_tokens=finished.cached_tokens,
        computed_tokens=finished.prompt_tokens - finished.cached_tokens,
        seconds=finished.seconds,
    )


def scores_of(
    finished: Finished, rows: Rows, names: Sequence[str], layers: Sequence[Layer]
) -> tuple[PackedHeads, Replay]:
    """What one finished replay says of a cell: every head's scores, and how they were scored.

    Args:
        finished: The replay, the only one that its scores read.
        rows: What was replayed.
        names: Of the scores that can be measured of the model; its figures are those of them that the rows want.
        layers: The model's.

    Raises:
        EngineError: See `measured_scores`, `handed_over` and `heads_of`.
    """
    handed = handed_over(finished, rows, measured_scores(rows.scores, names))
    scores = {
        name: head_score(name).combined([parts], rows)
        for name, parts in handed.items()
        if is_measured(head_score(name), rows)
    }
    return heads_of(scores, layers), replay_of(finished)


def steps_of(finished: Finished, rows: Rows) -> Steps | None:
    """What heads did at each step of the answer, where the rows say that it is wanted.

    Args:
        finished: A replay that was scored (`scores_of`); its steps are the last of its figures.
        rows: What was replayed.
    """
    if not rows.per_step:
        return None
    figures = numpy.asarray(finished.head_scores, dtype=numpy.float32)[-2 * len(rows.answer) :]
    return Steps.of(numpy.nan_to_num(figures[::2]).astype(numpy.int16), figures[1::2])


def with_texts(steps: Steps, rows: Rows, tokenizer: Tokenizer) -> Steps:
    """Steps with the text of each token of the answer and of the needle, for people."""
    answer, needle = (tuple(tokenizer.decode([token]) for token in ids) for ids in (rows.answer, rows.needle))
    return replace(steps, answer=answer, needle=needle)

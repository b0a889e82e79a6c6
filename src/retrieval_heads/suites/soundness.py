"""Whether a model's tokenizer makes sound prompts of a suite: what is looked at before an hour of GPU is spent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import regex

from retrieval_heads.prompts.haystack import read_text
from retrieval_heads.prompts.prompt import Tokenizer
from retrieval_heads.prompts.settings import Needle
from retrieval_heads.prompts.start_token import start_token_fault, start_tokens
from retrieval_heads.runs.place import NEEDLE
from retrieval_heads.scoring import judge, key_words_of, tokens
from retrieval_heads.scoring.settings import KEY_WORDS, Scoring
from retrieval_heads.suites.suite import Suite

_SHOWN = 60
_FEWEST_KEY_WORDS = 2
_SENTENCE = regex.compile(r"[^.!?。！？।؟\n]+[.!?。！？।؟]*")


@dataclass(frozen=True)
class Check:
    """One thing looked at, and what was found."""

    name: str
    text: str
    is_wrong: bool = False
    is_doubtful: bool = False


def check_answers(suite: Suite) -> Iterator[Check]:
    """Look at what is expected: is it enough to tell a right answer by, and does the haystack say it too?"""
    scoring = suite.settings.scoring
    if not suite.needles:
        return
    sentences_of = lru_cache(maxsize=1)(_sentences)
    for needle in suite.needles:
        sentences = sentences_of(needle.haystack or suite.source)
        for saying in needle.sayings:
            words = key_words_of(saying, needle.question)
            if scoring.metric == KEY_WORDS and len(words) < _FEWEST_KEY_WORDS:
                text = f"{needle.name}: {saying!r} has {len(words)} key word ({', '.join(words)}): a lucky word passes"
                yield Check("expected", text, is_doubtful=True)
        for where, texts in (("the haystack itself", sentences), ("a distractor of its own", needle.distractors)):
            if said := next(_passing(texts, needle, scoring), None):
                text = f"{needle.name}: {where} says what passes ({scoring.metric}): {_cut(said)!r}"
                yield Check("distractor", text, is_doubtful=True)


def _sentences(source: str) -> list[str]:
    return list(dict.fromkeys(each.strip() for each in _SENTENCE.findall(read_text(source))))


def _passing(sentences: Sequence[str], needle: Needle, scoring: Scoring) -> Iterator[str]:
    """The sentences that would pass as answers; only those that share a word with what is expected are judged."""
    asked = set(tokens(needle.question))
    expected = {word for reference in (*needle.references, *needle.sayings) for word in tokens(reference)} - asked
    for sentence in sentences:
        if not expected.isdisjoint(tokens(sentence)) and judge(sentence, needle, scoring).passed:
            yield sentence


def check_prompts(suite: Suite, tokenizer: Tokenizer) -> Iterator[Check]:
    """Look at the first prompt of each needle, and at what an echo of its question would score.

    Args:
        suite: Its model is named.
        tokenizer: The model's.

    Raises:
        PromptError: A prompt cannot be built.
    """
    from retrieval_heads.prompts.tokenizer import load_generation
    from retrieval_heads.tasks.builder import CellBuilder

    model = suite.settings.model.model_dump()
    builder = CellBuilder(tokenizer, model, {}, 1 << 60)
    for index, needle in enumerate(suite.needles):
        cell = next(cell for cell in suite.cells if cell.place.get(NEEDLE) == needle.name)
        request = builder.request(suite.question, cell)
        if index == 0:
            frame = builder.prompts.frame(suite.settings.prompt, needle.question)
            yield _first_token(request.ids, tokenizer, builder.prompts.chat_template)
            head, tail = tokenizer.decode(list(frame.head)), tokenizer.decode(list(frame.tail))
            yield Check("template", f"{_cut(head)!r} … {_cut(tail, from_end=True)!r}")
            yield _stop(tokenizer, load_generation(model))
        span = request.facts.needle_span
        assert span is not None, "a needle's prompt has spans"
        yield _round_trip(needle, tokenizer.decode(request.ids[slice(*span)]))
        yield _echo(suite, needle)


def _first_token(ids: list[int], tokenizer: Tokenizer, template: str | None) -> Check:
    bos = getattr(tokenizer, "bos_token_id", None)
    if fault := start_token_fault(ids, tokenizer, template):
        return Check("first token", fault, is_wrong=True)
    count = start_tokens(ids, tokenizer)
    return Check("first token", f"{count} × {_named(tokenizer, bos)}" if bos is not None else "no such token")


def _stop(tokenizer: Tokenizer, generation: object) -> Check:
    ids = getattr(generation, "eos_token_id", None)
    ids = ids if isinstance(ids, list) else [ids]
    every = {each for each in [*ids, getattr(tokenizer, "eos_token_id", None)] if each is not None}
    text = ", ".join(_named(tokenizer, each) for each in sorted(every))
    return Check("stop tokens", text or "none: every answer runs to max_tokens", is_wrong=not every)


def _named(tokenizer: Tokenizer, token: int) -> str:
    return f"{tokenizer.decode([token])} ({token})"


def _round_trip(needle: Needle, decoded: str) -> Check:
    said = needle.answer_span or needle.needle.strip()
    if decoded.strip() == said.strip():
        return Check("needle", f"{needle.name}: comes back from its tokens as written")
    return Check("needle", f"{needle.name}: comes back from its tokens as {_cut(decoded)!r}", is_wrong=True)


def _echo(suite: Suite, needle: Needle) -> Check:
    scoring = suite.settings.scoring
    value = judge(needle.question, needle, scoring).scores[scoring.metric]
    text = (
        f"{needle.name}: the question alone scores {value:.2f} ({scoring.metric}, {scoring.threshold:g} must be passed)"
    )
    return Check("echo", text, is_wrong=value > scoring.threshold)


def _cut(text: str, *, from_end: bool = False) -> str:
    return text[-_SHOWN:] if from_end else text[:_SHOWN]

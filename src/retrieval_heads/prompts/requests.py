"""What is sent to the engine, and what a task writes it with."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from retrieval_heads.errors import ConfigError, EngineError, PromptError, UnreadableFile
from retrieval_heads.heads.looks import Rows
from retrieval_heads.plain import Fields
from retrieval_heads.prompts.haystack import AROUND, Haystack, Text, read_text, state_of_source
from retrieval_heads.prompts.prompt import BuiltPrompt, Frame, PromptBuilder, PromptText, Tokenizer, hash_ids
from retrieval_heads.prompts.reuse import Prefix
from retrieval_heads.prompts.settings import Prompt
from retrieval_heads.reading import path_of
from retrieval_heads.reading import read_text as read_source
from retrieval_heads.runs.facts import Expectation, PromptFacts
from retrieval_heads.runs.mask import Mask
from retrieval_heads.runs.record import AnsweredBy, Recipe


@dataclass(frozen=True)
class Request:
    """A cell's prompt, ready to be sent. A task gives the fields up to `text`, `tasks.builder` those after it.

    Args:
        ids: The prompt's token ids.
        sampling: vLLM's sampling parameters.
        facts: What the cell's record says of the prompt.
        expected: The question and what its answer must say, where `Task.asked` could not tell it without the prompt.
        prefix: What of the prompt other cells' prompts may share; of a prompt built from a cell.
        text: What is sent in place of the ids, to a model that takes none (`Writer.takes_text`).
        mask: The heads that have no say in the answer.
        hash: Tells it from every other: all of its question, and who is asked (`Record.request`).
        answered_by: Who is asked.
    """

    ids: list[int]
    sampling: Fields
    facts: PromptFacts
    expected: Expectation | None = None
    prefix: Prefix | None = None
    text: PromptText | None = None
    mask: Mask | None = None
    hash: str = ""
    answered_by: AnsweredBy | None = None

    @property
    def prompt(self) -> list[int] | PromptText:
        """What is sent."""
        return self.ids if self.text is None else self.text

    def rows(self, said: Sequence[int], thoughts: int = 0) -> Rows:
        """What head scores read of a replay of it and what the model said.

        Args:
            said: All that the model said.
            thoughts: How many tokens of that stand before its answer.
        """
        facts = self.facts
        assert facts.needle_span is not None, "heads are scored on prompts with spans"
        assert facts.question_span is not None
        stood = (facts.insertions or ())[1:]
        others = tuple(each.span for each in stood if each.role == "asked" and each.span)
        return Rows(
            prompt_tokens=len(self.ids) + thoughts,
            answer=tuple(said[thoughts:]),
            needle_span=facts.needle_span,
            needle=tuple(token for start, end in (facts.needle_span, *others) for token in self.ids[start:end]),
            question_span=facts.question_span,
            more_spans=others,
            distractor_spans=tuple(each.span for each in stood if each.role == "distractor" and each.span),
        )


class CellSkipped(Exception):
    """A cell that cannot be asked of this model, which is no failure of the model."""


class Writer:
    """What tasks write prompts with, for one model; each haystack is tokenized once.

    Args:
        tokenizer: The tested model's.
        model: The `model` section of the settings.
        max_model_len: Tokens that prompt and answer may take together.
        takes_text: Whether the model is sent text, and no token ids.
    """

    def __init__(self, tokenizer: Tokenizer, model: Fields, max_model_len: int, *, takes_text: bool = False) -> None:
        template = _template_text(model.get("chat_template"))
        self.prompts = PromptBuilder(tokenizer, template, model.get("chat_template_kwargs") or {})
        """Builds prompts around a context."""
        self.max_model_len = max_model_len
        self.takes_text = takes_text
        self.haystack = lru_cache(maxsize=4)(self._read_haystack)
        """A haystack by its source, tokenized."""
        self.text = lru_cache(maxsize=4)(self._tokenized_text)
        """A text of a task's own as a haystack, by its name."""
        self._states: dict[str, tuple[object, ...]] = {}
        """By source, what its files were when it was read."""
        self._frame = lru_cache(maxsize=256)(self._make_frame)
        self._tokens = lru_cache(maxsize=4)(self._tokenized)

    def renew(self) -> bool:
        """Forget what haystacks held, where a file of one has changed since it was read.

        Returns:
            Whether one has.
        """
        if all(_state(source) == state for source, state in self._states.items()):
            return False
        self._states.clear()
        self.haystack.cache_clear()
        return True

    def frame(self, prompt: Prompt, question: str, example: str = "") -> Frame:
        """What surrounds a context: the wording, rendered with the question in it.

        Args:
            prompt: The wording.
            question: What stands for its `{question}`.
            example: What stands for its `{example}`, where it has one.

        Raises:
            PromptError: The chat template refuses the messages, or changes context or question.
        """
        return self._frame(prompt.model_dump_json(), question, example)

    def check_room(self, prompt_tokens: int, answer_tokens: int) -> None:
        """See that a question fits the model.

        Raises:
            CellSkipped: It does not.
        """
        if prompt_tokens + answer_tokens > self.max_model_len:
            raise CellSkipped(
                f"{prompt_tokens} prompt tokens and {answer_tokens} answer tokens do not fit max_model_len "
                f"{self.max_model_len}"
            )

    def message(self, text: str, sampling: Fields, prefill: str | None = None) -> Request:
        """A question that is one user's message, with no haystack and no spans.

        Args:
            text: The message.
            sampling: The suite's `generation`, with `max_tokens` in it.
            prefill: The first words of the answer.

        Raises:
            PromptError: The chat template refuses the message.
            CellSkipped: Prompt and answer do not fit the model.
        """
        messages = [{"role": "user", "content": text}]
        rendered = self.prompts.render(messages, prefill)
        ids = self.prompts.encode_start(rendered)
        self.check_room(len(ids), sampling["max_tokens"])
        recipe = Recipe(
            wording=messages,
            template_hash=self.prompts.wording_hash(messages, prefill),
            prompt_hash=hash_ids(ids),
            prefill=prefill or None,
        )
        written = PromptText(tuple(messages), rendered, prefill or "") if self.takes_text else None
        return Request(ids, dict(sampling), PromptFacts(len(ids), recipe), text=written)

    def document(
        self,
        prompt: Prompt,
        context: str,
        question: str,
        said: tuple[int, int] | None,
        sampling: Fields,
        options: Fields,
    ) -> Request:
        """A question about a text of its own, which no haystack gives; its tokens are spliced as a haystack's are.

        Args:
            prompt: The wording.
            context: The text.
            question: What is asked about it.
            said: The characters of the text that the answer stands in; head scores aim at their tokens. `None`: it
                stands nowhere.
            sampling: The suite's `generation`, with `max_tokens` in it.
            options: The task's own settings, for the recipe.

        Raises:
            PromptError: The chat template refuses the messages, or those characters have no token.
            CellSkipped: Prompt and answer do not fit the model.
        """
        frame, tokens = self.frame(prompt, question), self._tokens(context)
        ids = [*frame.head, *tokens.ids, *frame.tail]
        self.check_room(len(ids), sampling["max_tokens"])
        start = len(frame.head)
        shift = 0 if frame.question_in_head else start + len(tokens.ids)
        begin, end = frame.question_span
        hashed = hashlib.sha256(context.encode()).hexdigest()
        recipe = Recipe(
            hash=hashed,
            tokens=len(tokens.ids),
            wording=frame.wording,
            template_hash=frame.hash,
            prompt_hash=hash_ids(ids),
            prefill=frame.prefill or None,
            options=dict(options),
        )
        facts = PromptFacts(len(ids), recipe, question_span=(shift + begin, shift + end))
        if said is not None:
            first, last = tokens.span(*said)
            if first == last:
                raise PromptError(f"{context[slice(*said)]!r} has no tokens in this vocabulary")
            around = (context[max(0, said[0] - AROUND) : said[0]], context[said[1] : said[1] + AROUND])
            facts = replace(facts, needle_span=(start + first, start + last), around=around)
        prefix = Prefix(frame.head, hashed, len(tokens.ids), (), frame.tail)
        text = self.prompts.framed_text(frame, context, question) if self.takes_text else None
        return Request(ids, dict(sampling), facts, prefix=prefix, text=text)

    def stored(self, prompt: str | None, said: str) -> Request:
        """The prompt of a record of the predecessor's, which holds its text.

        Args:
            prompt: That text.
            said: The part of it that head scores aim at.

        Raises:
            PromptError: There is no text, or it does not hold that part once.
        """
        if prompt is None:
            raise PromptError("the record holds neither a recipe nor a prompt")
        found = prompt.count(said) if said else 0
        if found != 1:
            raise PromptError(f"the stored prompt holds the needle {found} times; once is needed")
        tokens = self.prompts.text(prompt)
        start = prompt.index(said)
        facts = PromptFacts(
            len(tokens.ids),
            needle_span=tokens.span(start, start + len(said)),
            question_span=(0, 0),  # its records do not hold the question: `query` is not measured
        )
        return Request(list(tokens.ids), {}, facts)

    def _tokenized(self, text: str) -> Text:
        return Text.of(text, self.prompts.tokenize)

    def _tokenized_text(self, name: str, text: str) -> Haystack:
        return Haystack.of(name, text, self.prompts.tokenize)

    def _read_haystack(self, source: str, *, one_line: bool = False) -> Haystack:
        """A haystack; on one line, where asked, each run of white space is one blank."""
        self._states[source] = _state(source)  # before it is read: a change meanwhile is seen
        try:
            text = read_text(source)
        except ConfigError as error:
            raise PromptError(f"haystack: {error}") from None
        if one_line:
            text = f"{' '.join(text.split())} "
        return Haystack.of(source, text, self.prompts.tokenize)

    def _make_frame(self, prompt: str, question: str, example: str) -> Frame:
        return self.prompts.frame(Prompt.model_validate_json(prompt), question, example)


def recipe_of(prompt: BuiltPrompt, haystack: Haystack, frame: Frame, options: Fields | None = None) -> Recipe:
    """What builds a prompt again that stands in a haystack.

    Args:
        prompt: The prompt.
        haystack: What its needles stand in.
        frame: What stands around it.
        options: The task's own settings.
    """
    return Recipe(
        haystack=haystack.source,
        hash=haystack.hash,
        tokens=len(haystack.tokens.ids),
        offset=prompt.context.offset,
        insertion=prompt.context.insertion,
        repeats=prompt.context.repeats,
        wording=frame.wording,
        prefill=frame.prefill or None,
        template_hash=frame.hash,
        prompt_hash=prompt.hash,
        options=None if options is None else dict(options),
    )


def _state(source: str) -> tuple[object, ...]:
    try:
        return state_of_source(source)
    except ConfigError as error:
        return (str(error),)


def _template_text(template: str | None) -> str | None:
    """A chat template's text, from a file or as it stands."""
    if template is None or "{" in template:
        return template
    try:
        return read_source(path_of(template))
    except UnreadableFile as error:
        raise EngineError(f"model.chat_template: {error}") from None

"""From a cell to the request that asks it."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial

from retrieval_heads.ablation.arms import NONE
from retrieval_heads.errors import PromptError
from retrieval_heads.heads.texts import RandomText
from retrieval_heads.plain import Fields
from retrieval_heads.prompts.prompt import PromptBuilder, PromptText, Tokenizer
from retrieval_heads.prompts.random_text import plain_tokens, repeated_text
from retrieval_heads.prompts.requests import Request, Writer
from retrieval_heads.prompts.reuse import Prefix
from retrieval_heads.prompts.settings import Prompt
from retrieval_heads.prompts.start_token import start_token_fault
from retrieval_heads.runs.answer import Answer
from retrieval_heads.runs.facts import PromptFacts
from retrieval_heads.runs.mask import Mask
from retrieval_heads.runs.place import Place
from retrieval_heads.runs.record import AnsweredBy, Insertion, Recipe, Record, Span
from retrieval_heads.tasks.task import FILE_HASH, TASKS, THE_NEEDLE, Cell, Question

REFERENCE_TOKENS = 4096
REFERENCE_PIECE = 1024


class CellBuilder:
    """Builds the requests of one engine's cells.

    Args:
        tokenizer: The tested model's.
        model: The `model` section of the settings.
        answered_by: Keys of the identities of model and engine: what tells this engine's answers from another's.
        max_model_len: Tokens that prompt and answer may take together.
        takes_text: Whether the model is sent text, and no token ids: where its own tokens lie is not known.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        model: Fields,
        answered_by: Mapping[str, str],
        max_model_len: int,
        *,
        takes_text: bool = False,
    ) -> None:
        self._writer = Writer(tokenizer, model, max_model_len, takes_text=takes_text)
        self._made_of = tokenizer, dict(model), dict(answered_by), max_model_len, takes_text
        self._answered_by = AnsweredBy.model_validate(answered_by) if answered_by else None

    def __reduce__(self) -> tuple[object, ...]:
        """One in another process is made anew: no haystack crosses."""
        *arguments, takes_text = self._made_of
        return partial(CellBuilder, takes_text=takes_text), tuple(arguments)

    @property
    def prompts(self) -> PromptBuilder:
        """What builds the prompts."""
        return self._writer.prompts

    def start_token_fault(self) -> str:
        """What is wrong with the first token of this model's prompts; empty where nothing is."""
        if self._writer.takes_text:  # whoever tokenizes it puts that token there
            return ""
        try:
            ids = self.prompts.encode_start(self.prompts.render([{"role": "user", "content": "?"}]))
        except PromptError:  # a template that refuses it is told with the first cell
            return ""
        return start_token_fault(ids, self.prompts.tokenizer, self.prompts.chat_template)

    def tokenize(self, sources: Iterable[str]) -> None:
        """Read and tokenize haystacks that will be asked for, before anybody waits for a cell.

        One that cannot be read is passed over here: each of its cells will say so.
        """
        for source in sources:
            with contextlib.suppress(PromptError):
                self._writer.haystack(source)

    def renew(self) -> bool:
        """See to it that haystacks which have changed on disk are read again; whether there were any."""
        return self._writer.renew()

    def request(self, question: Question, cell: Cell, mask: Mask | None = None) -> Request:
        """Build a cell's prompt.

        Args:
            question: Of the cell's suite.
            cell: What to ask.
            mask: The heads that its arm masks.

        Raises:
            CellSkipped: Prompt and answer do not fit the model.
            PromptError: The prompt cannot be built.
        """
        request = TASKS.find(question.task).request(question, cell.place, self._writer)
        if request.facts.recipe is None:
            raise PromptError(f"the task {question.task} gives its prompt no recipe")
        recipe = request.facts.recipe.model_copy(
            update={
                "template": self.prompts.template,
                "boundary": question.boundary,
                "sampling": {key: value for key, value in question.generation.items() if value is not None},
            }
        )
        if mask is not None and mask.mode == "mean":
            mask = replace(mask, reference=recipe.hash)
        if mask is not None and mask.stream is not None:
            mask = replace(mask, stream=replace(mask.stream, context=_context_end(request)))
        facts = replace(request.facts, recipe=recipe)
        if self._writer.takes_text:
            if request.text is None:
                raise PromptError(f"the task {question.task} writes token ids alone, and the backend takes text")
            facts = _without_spans(facts)
            request = replace(request, text=self._counted(request.text, len(request.ids)))
        prefix = request.prefix and _salted(request.prefix, question, cell.place, len(request.ids), mask)
        made = replace(request, facts=facts, mask=mask, prefix=prefix, answered_by=self._answered_by)
        return replace(made, hash=_request_hash(recipe, made))

    def reference(self, source: str) -> tuple[str, list[list[int]]]:
        """The text whose mean stands in for a masked head's output: its name, and the haystack's first tokens in
        pieces.
        """
        haystack = self._writer.haystack(source)
        ids, size = haystack.tokens.ids[:REFERENCE_TOKENS], min(REFERENCE_PIECE, self._writer.max_model_len - 1)
        return haystack.hash, [list(ids[start : start + size]) for start in range(0, len(ids), size)]

    def stored(self, record: Record) -> Request:
        """The request whose answer a record holds, rebuilt from its recipe, or as the predecessor tells it.

        Raises:
            PromptError: The prompt that comes out is not the one that was sent, or holds no needle.
            ConfigError: Its task is not known here.
        """
        return TASKS.find(record.task or THE_NEEDLE).rebuilt(record, self._writer)

    def repeated(self, text: RandomText) -> list[int]:
        """The token ids of a random text.

        Raises:
            PromptError: The vocabulary has too few tokens, or the text does not fit the model.
        """
        ids = repeated_text(self._vocabulary, text.tokens, text.repeats, text.seed)
        if len(ids) >= self._writer.max_model_len:
            raise PromptError(
                f"random_text: {text.repeats} times {text.tokens} tokens do not fit max_model_len "
                f"{self._writer.max_model_len}, which has room for one more; set random_text.tokens or .repeats"
            )
        return ids

    @cached_property
    def _vocabulary(self) -> Sequence[int]:
        return plain_tokens(self.prompts.tokenizer)

    def query_span(self, request: Request, question: str) -> tuple[int, int] | None:
        """From a prompt's context to its end: all that stands behind the context, question and template among it.

        Args:
            request: A prompt that was built here.
            question: What it asks, as its wording holds it.

        Returns:
            `None` where the question does not stand behind the context, or the prompt has no such parts.
        """
        tail = self._tail(request, question)
        return None if tail is None else (len(request.ids) - len(tail), len(request.ids))

    def with_query(self, request: Request, question: str, other: str) -> list[int]:
        """A prompt that has a `query_span`, with another question in the place of its own; the same up to that span."""
        span, tail = self.query_span(request, question), self._tail_of(request, other)
        if span is None or tail is None:
            raise PromptError("what stands behind the prompt's context is not known")
        return [*request.ids[: span[0]], *tail]

    def _tail(self, request: Request, question: str) -> Sequence[int] | None:
        """What stands behind a prompt's context, if it is what its wording makes of the question."""
        tail = self._tail_of(request, question)
        return tail if tail and list(request.ids[-len(tail) :]) == list(tail) else None

    def _tail_of(self, request: Request, question: str) -> Sequence[int] | None:
        recipe = request.facts.recipe
        marked = "".join(message["content"] for message in recipe.wording or ()) if recipe else ""
        if recipe is None or any(marked.count(mark) != 1 for mark in ("{context}", "{question}")):
            return None
        prompt = Prompt.model_validate({"messages": recipe.wording, "prefill": recipe.prefill})
        frame = self._writer.frame(prompt, question)
        return None if frame.question_in_head else frame.tail

    def ask(self, prompt: str | Sequence[Mapping[str, str]], *, chat: bool) -> Request:
        """The prompt of a free question: a user's message or messages, or with `chat` off the text itself.

        Raises:
            PromptError: The chat template refuses the messages.
        """
        if chat:
            messages = (
                [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(one) for one in prompt]
            )
            text = self.prompts.render(messages)
        else:
            messages, text = [], str(prompt)
        ids = self.prompts.encode_start(text)
        if self._writer.takes_text:
            counted = self._counted(PromptText(tuple(messages), text), len(ids))
            return Request(ids, {}, PromptFacts(), text=counted)
        return Request(ids, {}, PromptFacts())

    def aimed(self, prompt: str, spans: Sequence[Span], question: Span | None, *, chat: bool) -> Request:
        """The prompt of a free question that heads are scored on.

        Args:
            prompt: A user's message, or with `chat` off the text itself.
            spans: Characters of it that an answer must find, half open.
            question: Those that ask.
            chat: Whether the chat template writes it.

        Raises:
            PromptError: The chat template refuses the message or changes it, or a span has no tokens.
        """
        text = self.prompts.render([{"role": "user", "content": prompt}]) if chat else prompt
        if text.count(prompt) != 1:
            raise PromptError("head_scores: the chat template changes the prompt; with chat=False it stays as it is")
        ids, tokens = self.prompts.tokens_at_start(text)
        shift, at = len(ids) - len(tokens.ids), text.index(prompt)

        def positions(span: Span) -> Span:
            first, end = tokens.span(at + span[0], at + span[1])
            if first == end:
                raise PromptError(f"head_scores: {prompt[slice(*span)]!r:.100} has no tokens in this vocabulary")
            return shift + first, shift + end

        found = [positions(span) for span in spans]
        insertions = tuple(
            Insertion(role="asked", text=prompt[slice(*span)], depth=0, achieved_depth=0, place=0, span=where)
            for span, where in zip(spans, found, strict=True)
        )
        facts = PromptFacts(
            prompt_tokens=len(ids),
            needle_span=found[0],
            question_span=(0, 0) if question is None else positions(question),
            insertions=insertions if len(insertions) > 1 else None,
        )
        return Request(ids, {}, facts)

    def said(self, request: Request, text: str) -> Answer:
        """An answer to a prompt that nobody gave, as if the model had said it."""
        ids, _ = self.prompts.tokenize(text)
        return Answer(
            text, list(ids), finish_reason="given", prompt_tokens=len(request.ids), cached_tokens=0, seconds=0
        )

    def _counted(self, text: PromptText, tokens: int) -> PromptText:
        return replace(text, tokens=tokens, template_kwargs=self.prompts.template_kwargs)


def _request_hash(recipe: Recipe, request: Request) -> str:
    """Tells a request from every other: all of its question, and who is asked."""
    question: list[object] = [recipe.prompt_hash, recipe.hash, recipe.wording, recipe.boundary, recipe.sampling]
    template = recipe.template and [recipe.template.hash, recipe.template.model_dump(mode="json")["kwargs"]]
    if file_hash := (recipe.options or {}).get(FILE_HASH):
        question.append(file_hash)
    asked = request.answered_by and request.answered_by.model_dump()
    sent = [question, template, request.sampling, asked, request.mask and request.mask.to_json()]
    return hashlib.sha256(json.dumps(sent, sort_keys=True).encode()).hexdigest()


def _without_spans(facts: PromptFacts) -> PromptFacts:
    """Where a backend's own tokens lie is not known."""
    insertions = facts.insertions and tuple(each.model_copy(update={"span": None}) for each in facts.insertions)
    return replace(facts, needle_span=None, question_span=None, insertions=insertions)


def _context_end(request: Request) -> int:
    """Where a prompt's context ends: rows behind it are those of the question and of the answer."""
    if request.prefix is not None:
        return len(request.ids) - len(request.prefix.tail)
    span = request.facts.question_span
    return span[0] if span else len(request.ids) - 1


def _salted(prefix: Prefix, question: Question, place: Place, prompt_tokens: int, mask: Mask | None) -> Prefix:
    """Tells apart the masks of cells, as `Engine.add` does in the prefix cache: arms that mask the same heads share it.

    Before the masks are known, each arm counts as one of its own.
    """
    if question.ablate is None or place.arm in ("", NONE):
        return prefix
    stream, masked = question.ablate.stream, mask or (question.suite, place.arm)
    if stream is not None and not stream.prefill:  # heads stream behind the context, which is everybody's
        return replace(prefix, tail_salt=masked)
    # A mask of this mode is for one length of prompt.
    is_uniform = question.ablate.mode == "uniform"
    return replace(prefix, salt=(masked, prompt_tokens if is_uniform else None))

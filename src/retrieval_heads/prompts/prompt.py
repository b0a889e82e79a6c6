"""Prompts: from a wording, a chat template and a cell to token ids with known spans.

The template is rendered once with marks in the place of context and question, and cut at the context's mark. What
stands before and after is tokenized with the question in it; the context's tokens are spliced between. Text is
never decoded and encoded again, and the special tokens are those the template writes, each once.
"""

from __future__ import annotations

import hashlib
import json
import re
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from retrieval_heads.errors import PromptError
from retrieval_heads.plain import Fields
from retrieval_heads.prompts.haystack import Context, Haystack, Text, Tokenize
from retrieval_heads.prompts.rendering import render_limited
from retrieval_heads.prompts.settings import Needle, Prompt
from retrieval_heads.runs.record import Recipe, Template

_KEPT, _LONGEST_KEPT = 256, 20_000
"""How many rendered prompts are kept, and the characters of the longest: memory does not grow with a suite."""
_MARKED = re.compile(r"\{context\}|\{question\}|\{example\}")
# Plain letters: no template trims, escapes or splits them, and no haystack holds them.
_CONTEXT, _QUESTION, _EXAMPLE = "RHxCONTEXTxMARKxRH", "RHxQUESTIONxMARKxRH", "RHxEXAMPLExMARKxRH"


class Tokenizer(Protocol):
    """What is used of a Hugging Face tokenizer."""

    chat_template: Any
    is_fast: bool

    def __call__(self, text: str, **options: Any) -> Any:
        """Tokenize."""

    def apply_chat_template(self, conversation: list[dict[str, str]], **options: Any) -> Any:
        """Render messages."""

    def decode(self, token_ids: Sequence[int], **options: Any) -> str:
        """Ids to text."""


@dataclass(frozen=True)
class Insert:
    """A text that goes into a context.

    Args:
        text: As it is given; without white space around it, it stands on a line of its own.
        counted: The part of it that its span holds; all of it where it is `None`.
        depth: Percent of the haystack before it.
    """

    text: str
    counted: str | None
    depth: float


@dataclass(frozen=True)
class BuiltPrompt:
    """A prompt as sent.

    Args:
        ids: Token ids.
        spans: Each needle's tokens, surrounding white space excluded.
        question_span: The question's tokens.
        context: The context inside, its positions its own.
        achieved_depths: Of each needle, 100 × haystack tokens before it / haystack tokens.
    """

    ids: list[int]
    spans: tuple[tuple[int, int], ...]
    question_span: tuple[int, int]
    context: Context
    achieved_depths: tuple[float, ...]

    @property
    def needle_span(self) -> tuple[int, int]:
        """The first needle's."""
        return self.spans[0]

    @property
    def achieved_depth(self) -> float:
        """The first needle's."""
        return self.achieved_depths[0]

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the ids as little-endian int32."""
        return hash_ids(self.ids)


@dataclass(frozen=True)
class PromptText:
    """A prompt for a model that takes no token ids.

    Args:
        messages: `role` and `content` of each; none where a text is to be sent as it stands.
        text: The same as one text, as the tokenizer's chat template writes it.
        prefill: The first words of the answer, with which `text` ends; in no message. Whoever sends messages sends
            these as the assistant's unfinished turn.
        tokens: How many the tokenizer makes of the text; 0 where that was not counted.
        template_kwargs: What the chat template is given.
    """

    messages: tuple[Mapping[str, str], ...]
    text: str
    prefill: str = ""
    tokens: int = 0
    template_kwargs: Fields = field(default_factory=dict)


def hash_ids(ids: Sequence[int]) -> str:
    """SHA-256 of token ids as little-endian int32."""
    return hashlib.sha256(array("i", ids).tobytes()).hexdigest()


@dataclass(frozen=True)
class Frame:
    """What surrounds a context: the rendered template with the question in it.

    Args:
        head: Tokens before the context.
        tail: Tokens after it.
        question_in_head: Whether the question stands before the context.
        question_span: The question's tokens inside the part that holds it.
        rendered: What the template writes before the context and after it, question and prefill in it.
        wording: The messages, `{context}` and `{question}` in them.
        hash: SHA-256 of the wording, the chat template and its arguments.
        prefill: The first words of the answer, at the end of `tail`.
        example: What stands for `{example}` in the wording, in `head`.
    """

    head: tuple[int, ...]
    tail: tuple[int, ...]
    question_in_head: bool
    question_span: tuple[int, int]
    rendered: tuple[str, str]
    wording: list[dict[str, str]]
    hash: str
    prefill: str | None = None
    example: str = ""

    def __len__(self) -> int:
        """Tokens around the context."""
        return len(self.head) + len(self.tail)


@dataclass(frozen=True)
class PromptBuilder:
    """Builds prompts for one tokenizer.

    Args:
        tokenizer: The tested model's.
        chat_template: Jinja text to use in place of the tokenizer's own.
        template_kwargs: Given to the template.
    """

    tokenizer: Tokenizer
    chat_template: str | None
    template_kwargs: Fields
    _rendered: dict[str, str] = field(default_factory=dict, init=False, repr=False, compare=False)
    """What the template wrote last, by the messages: rendering takes a process of its own."""

    @property
    def tokenize(self) -> Tokenize:
        """Text to ids and character offsets, special tokens neither added nor read from the text."""
        return tokenize_with(self.tokenizer, read_special=False)

    def count(self, text: str) -> int:
        """How many tokens `tokenize` makes of a text, in half its time: without their offsets."""
        split = {"split_special_tokens": True} if getattr(self.tokenizer, "is_fast", False) else {}
        return len(self.tokenizer(text, add_special_tokens=False, **split).input_ids)

    @cached_property
    def template(self) -> Template:
        """The chat template, for records."""
        text = hashlib.sha256(str(self._template or "").encode()).hexdigest()
        return Template(hash=text, kwargs=dict(self.template_kwargs), is_given=self.chat_template is not None)

    def frame(self, prompt: Prompt, question: str, example: str = "") -> Frame:
        """Render and tokenize what surrounds a context.

        Args:
            prompt: The wording.
            question: What stands for its `{question}`.
            example: What stands for `{example}`, before the context; where it is empty the wording has no such mark.
                It is no part of the wording: the chat template is rendered once, whatever the example.

        Raises:
            PromptError: The chat template refuses the messages, or changes context or question.
        """
        marks = {"{context}": _CONTEXT, "{question}": _QUESTION, **({"{example}": _EXAMPLE} if example else {})}
        messages = [
            {"role": message.role, "content": _MARKED.sub(lambda mark: marks.get(mark[0], mark[0]), message.content)}
            for message in prompt.messages
        ]
        rendered = self.render(messages, prompt.prefill)
        for mark in marks.values():
            if rendered.count(mark) != 1:
                raise PromptError(f"the chat template writes a message {rendered.count(mark)} times; once is needed")
        before, after = rendered.split(_CONTEXT)
        before = before.replace(_EXAMPLE, example)
        in_head = _QUESTION in before
        head = self._part(before, question, is_start=True)
        tail = self._part(after, question, is_start=False)
        wording = prompt.model_dump(mode="json")["messages"]
        return Frame(
            head=head[0],
            tail=tail[0],
            question_in_head=in_head,
            question_span=head[1] if in_head else tail[1],
            rendered=(before.replace(_QUESTION, question), after.replace(_QUESTION, question)),
            wording=wording,
            hash=self.wording_hash(wording, prompt.prefill),
            prefill=prompt.prefill,
            example=example,
        )

    def wording_hash(self, wording: Sequence[Mapping[str, str]], prefill: str | None = None) -> str:
        """SHA-256 of a prompt's wording, the chat template and its arguments, and of a prefill where there is one."""
        said = [wording, str(self._template), dict(self.template_kwargs), *([prefill] if prefill else [])]
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()

    def render(self, messages: list[dict[str, str]], prefill: str | None = None) -> str:
        """Messages to the text that a model is given; without a chat template, their contents joined.

        Args:
            messages: As the template takes them.
            prefill: The first words of the answer. They stand behind the assistant's turn that the template begins,
                as if the model had said them: no message of their own, which a template would end.

        Raises:
            PromptError: The chat template refuses the messages.
        """
        return self._rendered_turns(messages) + (self._opening(prefill) if prefill else "")

    def _opening(self, prefill: str) -> str:
        """A prefill as the text ends with it; where no template begins a turn, on a line of its own."""
        return prefill if self._template or prefill[0].isspace() else f"\n{prefill}"

    def _rendered_turns(self, messages: list[dict[str, str]]) -> str:
        if not self._template:
            return "\n".join(message["content"] for message in messages)
        said = json.dumps(messages)
        if said in self._rendered:
            return self._rendered[said]
        rendered = render_limited(lambda: self._apply(messages))
        if len(said) <= _LONGEST_KEPT:  # a whole conversation comes once
            if len(self._rendered) == _KEPT:
                del self._rendered[next(iter(self._rendered))]
            self._rendered[said] = rendered
        return rendered

    def _apply(self, messages: list[dict[str, str]]) -> str:
        text: str = self.tokenizer.apply_chat_template(
            messages,
            chat_template=self.chat_template,
            tokenize=False,
            add_generation_prompt=True,
            **self.template_kwargs,
        )
        return text

    def encode_start(self, text: str) -> list[int]:
        """Token ids of a rendered prompt; the tokenizer's own first token is added where no template wrote it."""
        return self.tokens_at_start(text)[0]

    def tokens_at_start(self, text: str) -> tuple[list[int], Text]:
        """The same, and the text's tokens alone with their characters."""
        tokens = Text.of(text, tokenize_with(self.tokenizer, read_special=True))
        return [*self._first_tokens(text), *tokens.ids], tokens

    def build(
        self,
        haystack: Haystack,
        frame: Frame,
        needle: Needle,
        length: int,
        depth: float,
        *,
        seed: int,
        boundary: str,
    ) -> BuiltPrompt:
        """Build a prompt of exactly `length` tokens.

        Raises:
            PromptError: The length has no room for template, question and needle, or the needle has no tokens.
        """
        inserts = [Insert(needle.needle, needle.answer_span, depth)]
        return self.build_several(haystack, frame, inserts, length, seed=seed, boundary=boundary)

    def build_several(
        self, haystack: Haystack, frame: Frame, inserts: Sequence[Insert], length: int, *, seed: int, boundary: str
    ) -> BuiltPrompt:
        """Build a prompt of exactly `length` tokens with several needles.

        Raises:
            PromptError: The length has no room for template, question and needles, or a needle has no tokens.
        """
        inserted, spans = self._tokens_of(inserts)
        count = sum(map(len, inserted))
        room = length - len(frame) - count
        if room < 0:
            noun = "the needle" if len(inserts) == 1 else f"the {len(inserts)} needles"
            raise PromptError(
                f"a length of {length} tokens is too short: template and question take {len(frame)}, "
                f"{noun} {count}; at least {len(frame) + count} are needed"
            )
        needles = [(ids, insert.depth) for ids, insert in zip(inserted, inserts, strict=True)]
        return self._built(frame, haystack.filled(room, needles, seed=seed, boundary=boundary), spans, room)

    def rebuild(
        self,
        haystack: Haystack,
        frame: Frame,
        inserts: Sequence[Insert],
        places: Sequence[int],
        length: int,
        recipe: Recipe,
    ) -> BuiltPrompt:
        """Build the prompt that a record's recipe describes, with a number of haystack tokens before each needle.

        Raises:
            PromptError: What comes out is another prompt: haystack, wording, chat template or tokenizer changed.
        """
        changed = [
            (haystack.hash == recipe.hash, f"the haystack {recipe.haystack}"),
            (frame.hash == recipe.template_hash, "the prompt's wording or the model's chat template"),
        ]
        inserted, spans = self._tokens_of(inserts)
        room = length - len(frame) - sum(map(len, inserted))
        context = haystack.splice(room, inserted, places, recipe.offset)
        prompt = self._built(frame, context, spans, room)
        changed.append((prompt.hash == recipe.prompt_hash, "the tokenizer"))
        for is_same, what in changed:
            if not is_same:
                raise PromptError(f"{what} is not what the stored answer was given to (its hash differs)")
        return prompt

    def prompt_text(
        self, prompt: BuiltPrompt, haystack: Haystack, frame: Frame, texts: Sequence[str], question: str
    ) -> PromptText:
        """A built prompt as text: the haystack's and the needles' own, not what their tokens decode to."""
        offset, places = prompt.context.offset, prompt.context.insertions
        taken = sum(len(self.insert_tokens(text, None)[0]) for text in texts)
        parts, done = [], 0
        for number in sorted(range(len(texts)), key=lambda number: places[number]):
            parts += [haystack.run(offset + done, offset + places[number]), _inserted(texts[number])]
            done = places[number]
        parts.append(haystack.run(offset + done, offset + len(prompt.context.ids) - taken))
        return self.framed_text(frame, "".join(parts), question)

    def framed_text(self, frame: Frame, context: str, question: str) -> PromptText:
        """A context in its frame, as text."""
        inserts = {
            "{context}": context,
            "{question}": question,
            **({"{example}": frame.example} if frame.example else {}),
        }
        messages = [
            {**message, "content": _MARKED.sub(lambda mark: inserts.get(mark[0], mark[0]), message["content"])}
            for message in frame.wording
        ]
        return PromptText(tuple(messages), context.join(frame.rendered), frame.prefill or "")

    def text(self, text: str) -> Text:
        """Tokenize a whole prompt that is given as text, as vLLM itself would."""
        return Text.of(text, tokenize_with(self.tokenizer, read_special=True, add_special=True))

    def _built(self, frame: Frame, context: Context, spans: Sequence[tuple[int, int]], room: int) -> BuiltPrompt:
        starts = [len(frame.head) + start for start in context.starts]
        shift = 0 if frame.question_in_head else len(frame.head) + len(context.ids)
        return BuiltPrompt(
            ids=[*frame.head, *context.ids, *frame.tail],
            spans=tuple((start + first, start + end) for start, (first, end) in zip(starts, spans, strict=True)),
            question_span=(shift + frame.question_span[0], shift + frame.question_span[1]),
            context=context,
            achieved_depths=tuple(100 * place / room if room else 0.0 for place in context.insertions),
        )

    def needle_tokens(self, needle: Needle) -> tuple[list[int], tuple[int, int]]:
        """The inserted token ids, and the span in them that counts; see `insert_tokens`."""
        return self.insert_tokens(needle.needle, needle.answer_span)

    def insert_tokens(self, text: str, counted: str | None) -> tuple[list[int], tuple[int, int]]:
        """A needle's token ids, and the span in them that counts.

        A needle without white space around it is inserted on a line of its own.

        Raises:
            PromptError: The needle has no tokens.
        """
        inserted = _inserted(text)
        said = counted or inserted.strip()
        start = inserted.index(said)
        tokens = Text.of(inserted, self.tokenize)
        first, last = tokens.span(start, start + len(said))
        if first == last:
            raise PromptError(f"the needle {text!r} has no tokens in this vocabulary")
        return list(tokens.ids), (first, last)

    def _tokens_of(self, inserts: Sequence[Insert]) -> tuple[list[list[int]], list[tuple[int, int]]]:
        """Each one's token ids, and the span in them that counts."""
        pairs = [self.insert_tokens(insert.text, insert.counted) for insert in inserts]
        return [ids for ids, _ in pairs], [span for _, span in pairs]

    @property
    def _template(self) -> Any:
        return self.chat_template or getattr(self.tokenizer, "chat_template", None)

    def _part(self, text: str, question: str, *, is_start: bool) -> tuple[tuple[int, ...], tuple[int, int]]:
        """Tokens of the text before or after the context, and the question's among them."""
        at = text.find(_QUESTION)
        text = text.replace(_QUESTION, question)
        added = self._first_tokens(text) if is_start else []
        tokens = Text.of(text, tokenize_with(self.tokenizer, read_special=True))
        first, last = tokens.span(at, at + len(question)) if at >= 0 else (0, 0)
        return (*added, *tokens.ids), (first + len(added), last + len(added))

    def _first_tokens(self, text: str) -> list[int]:
        """The tokens that the tokenizer puts at the start of every text, unless the template wrote them."""
        bare = tokenize_with(self.tokenizer, read_special=True)("a")[0]
        dressed = list(self.tokenizer("a", add_special_tokens=True).input_ids)
        count = next((at for at in range(len(dressed)) if dressed[at : at + len(bare)] == bare), 0)
        first = dressed[:count]
        written = tokenize_with(self.tokenizer, read_special=True)(text)[0] if text else []
        return [] if written[: len(first)] == first else first


def _inserted(needle: str) -> str:
    return f"\n{needle}\n" if needle == needle.strip() else needle


def tokenize_with(tokenizer: Tokenizer, *, read_special: bool, add_special: bool = False) -> Tokenize:
    """A function from text to ids and character offsets.

    Args:
        tokenizer: A fast tokenizer gives offsets itself; for others they are found by decoding token by token.
        read_special: Whether a special token's name in the text becomes that token. A template's must; a
            haystack's or a needle's must not.
        add_special: Whether the tokenizer adds its own first token.
    """

    def fast(text: str) -> tuple[list[int], list[tuple[int, int]]]:
        encoded = tokenizer(
            text, add_special_tokens=add_special, split_special_tokens=not read_special, return_offsets_mapping=True
        )
        return list(encoded.input_ids), [(start, end) for start, end in encoded.offset_mapping]

    def slow(text: str) -> tuple[list[int], list[tuple[int, int]]]:
        ids = list(tokenizer(text, add_special_tokens=add_special).input_ids)
        offsets, end = [], 0
        for token in ids:
            start, end = end, min(len(text), end + len(tokenizer.decode([token])))
            offsets.append((start, end))
        return ids, offsets

    return fast if getattr(tokenizer, "is_fast", False) else slow

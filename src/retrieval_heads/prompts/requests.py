"""From a cell to the request that asks it."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from retrieval_heads.ablation.arms import NONE
from retrieval_heads.errors import ConfigError, EngineError, PromptError, UnreadableFile
from retrieval_heads.prompts.haystack import Haystack, read_text
from retrieval_heads.prompts.prompt import BuiltPrompt, Frame, PromptBuilder, Tokenizer
from retrieval_heads.prompts.reuse import Prefix
from retrieval_heads.prompts.settings import Needle, Prompt
from retrieval_heads.prompts.start_token import start_token_fault
from retrieval_heads.reading import path_of
from retrieval_heads.reading import read_text as read_source
from retrieval_heads.runs.record import Record

REFERENCE_TOKENS = 4096
REFERENCE_PIECE = 1024


@dataclass(frozen=True)
class Request:
    """A cell's prompt, ready to be sent.

    Args:
        ids: The prompt's token ids.
        sampling: vLLM's sampling parameters.
        facts: What the cell's result says of the prompt.
        mask: The heads that have no say in the answer, as `retrieval_heads.ablation.arms.as_mask` makes them.
        prefix: What of the prompt other cells' prompts may share; of a prompt built from a cell.
    """

    ids: list[int]
    sampling: dict[str, Any]
    facts: dict[str, Any]
    mask: dict[str, Any] | None = None
    prefix: Prefix | None = None

    def rows(self, answer: list[int]) -> dict[str, Any]:
        """What a probe needs to know: the fields of `retrieval_heads.heads.looks.Rows`."""
        start, end = self.facts["needle_span"]
        return {
            "prompt_tokens": len(self.ids),
            "answer": answer,
            "needle_span": [start, end],
            "needle": self.ids[start:end],
            "question_span": list(self.facts["question_span"]),
        }


class CellSkipped(Exception):
    """A cell that cannot be asked of this model, which is no failure of the model."""


class CellBuilder:
    """Builds the requests of one engine's cells; each haystack is tokenized once.

    Args:
        tokenizer: The tested model's.
        model: The `model` section of the settings.
        answered_by: Keys of the identities of model and engine: what tells this engine's answers from another's.
        max_model_len: Tokens that prompt and answer may take together.
    """

    def __init__(
        self, tokenizer: Tokenizer, model: Mapping[str, Any], answered_by: Mapping[str, str], max_model_len: int
    ) -> None:
        self._prompts = PromptBuilder(
            tokenizer, _template_text(model.get("chat_template")), model.get("chat_template_kwargs") or {}
        )
        self._answered_by = dict(answered_by)
        self._max_model_len = max_model_len
        self._haystack = lru_cache(maxsize=4)(self._read_haystack)
        self._frame = lru_cache(maxsize=256)(self._make_frame)

    @property
    def prompts(self) -> PromptBuilder:
        """What builds the prompts."""
        return self._prompts

    def start_token_fault(self) -> str:
        """What is wrong with the first token of this model's prompts; empty where nothing is."""
        prompts = self._prompts
        try:
            ids = prompts.encode_start(prompts.render([{"role": "user", "content": "?"}]))
        except PromptError:  # a template that refuses it is told with the first cell
            return ""
        return start_token_fault(ids, prompts.tokenizer, prompts.chat_template)

    def tokenize(self, sources: Iterable[str]) -> None:
        """Read and tokenize haystacks that will be asked for, before anybody waits for a cell.

        One that cannot be read is passed over here: each of its cells will say so.
        """
        for source in sources:
            with contextlib.suppress(PromptError):
                self._haystack(source)

    def request(
        self, question: Mapping[str, Any], cell: Mapping[str, Any], mask: dict[str, Any] | None = None
    ) -> Request:
        """Build a cell's prompt.

        Args:
            question: `Suite.question()` of the cell's suite.
            cell: The fields of a `Cell`.
            mask: The heads that its arm masks.

        Raises:
            CellSkipped: Prompt and answer do not fit the model.
            PromptError: The cell has no room for its needle, or the template refuses the wording.
        """
        needle = Needle.model_validate(question["needles"][cell["needle"]])
        sampling = {key: value for key, value in question["generation"].items() if value is not None}
        inserted = tuple(self._prompts.needle_tokens(needle)[0])
        sampling.setdefault("max_tokens", 4 * len(inserted))
        length, limit = int(cell["length"]), self._max_model_len
        if length + sampling["max_tokens"] > limit:
            raise CellSkipped(
                f"{length} prompt tokens and {sampling['max_tokens']} answer tokens do not fit max_model_len {limit}"
            )
        haystack = self._haystack(question["source"])
        frame = self._frame(Prompt.model_validate(question["prompt"]).model_dump_json(), needle.question)
        prompt = self._prompts.build(
            haystack, frame, needle, length, cell["depth"], seed=cell["seed"], boundary=question["boundary"]
        )
        if mask is not None and mask["mode"] == "mean":
            mask = {**mask, "reference": haystack.hash}
        prefix = Prefix(
            head=frame.head,
            context=(haystack.hash, prompt.context.offset),
            insertion=prompt.context.insertion,
            needle=inserted,
            tail=frame.tail,
            salt=_salt(question, cell),
        )
        facts = self._facts(prompt, haystack, frame)
        facts["recipe"] |= {
            "template": self._prompts.template.model_dump(mode="json"),
            "boundary": question["boundary"],
            "sampling": {key: value for key, value in question["generation"].items() if value is not None},
        }
        if mask:
            facts["mask"] = mask
        if self._answered_by:
            facts["answered_by"] = self._answered_by
        facts["request"] = _request_hash(facts, sampling)
        return Request(prompt.ids, sampling, facts, mask, prefix)

    def reference(self, source: str) -> tuple[str, list[list[int]]]:
        """The text whose mean stands in for a masked head's output: its name, and the haystack's first tokens in
        pieces.
        """
        haystack = self._haystack(source)
        ids, size = haystack.tokens.ids[:REFERENCE_TOKENS], min(REFERENCE_PIECE, self._max_model_len - 1)
        return haystack.hash, [list(ids[start : start + size]) for start in range(0, len(ids), size)]

    def stored(self, record: Record) -> Request:
        """The request whose answer a record holds, rebuilt from its recipe, or as the predecessor tells it.

        Raises:
            PromptError: The prompt that comes out is not the one that was sent, or holds no needle.
        """
        if record.recipe is None:
            return self._predecessors(record)
        haystack = self._haystack(record.recipe.haystack)
        wording = Prompt.model_validate({"messages": record.recipe.wording})
        frame = self._frame(wording.model_dump_json(), record.question)
        needle = Needle(needle=record.needle, question=record.question, answer_span=record.answer_span)
        prompt = self._prompts.rebuild(haystack, frame, needle, record.context_length, record.recipe)
        facts = self._facts(prompt, haystack, frame) | {"recipe": record.recipe.model_dump(mode="json")}
        return Request(prompt.ids, {}, facts)

    def _predecessors(self, record: Record) -> Request:
        """Its records hold the prompt's text; its needle is where that text says so."""
        if record.prompt is None:
            raise PromptError("the record holds neither a recipe nor a prompt")
        said = record.needle.strip()
        found = record.prompt.count(said) if said else 0
        if found != 1:
            raise PromptError(f"the stored prompt holds the needle {found} times; once is needed")
        tokens = self._prompts.text(record.prompt)
        start = record.prompt.index(said)
        span = tokens.span(start, start + len(said))
        facts = {
            "prompt_tokens": len(tokens.ids),
            "needle_span": span,
            "question_span": (0, 0),  # its records do not hold the question: `query` is not measured
        }
        return Request(list(tokens.ids), {}, facts)

    def ask(self, prompt: Any, *, chat: bool) -> list[int]:
        """Token ids of a free question: a user's message or messages, or with `chat` off the text itself.

        Raises:
            PromptError: The chat template refuses the messages.
        """
        if not chat:
            return self._prompts.encode_start(str(prompt))
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        return self._prompts.encode_start(self._prompts.render(messages))

    def _facts(self, prompt: BuiltPrompt, haystack: Haystack, frame: Frame) -> dict[str, Any]:
        return {
            "prompt_tokens": len(prompt.ids),
            "achieved_depth": round(prompt.achieved_depth, 4),
            "needle_span": prompt.needle_span,
            "question_span": prompt.question_span,
            "around": prompt.context.around,
            "recipe": {
                "haystack": haystack.source,
                "hash": haystack.hash,
                "tokens": len(haystack.tokens.ids),
                "offset": prompt.context.offset,
                "insertion": prompt.context.insertion,
                "repeats": prompt.context.repeats,
                "wording": frame.wording,
                "template_hash": frame.hash,
                "prompt_hash": prompt.hash,
            },
        }

    def _read_haystack(self, source: str) -> Haystack:
        try:
            return Haystack.of(source, read_text(source), self._prompts.tokenize)
        except ConfigError as error:
            raise PromptError(f"haystack: {error}") from None

    def _make_frame(self, prompt: str, question: str) -> Frame:
        return self._prompts.frame(Prompt.model_validate_json(prompt), question)


def _request_hash(facts: Mapping[str, Any], sampling: Mapping[str, Any]) -> str:
    """Tells a request from every other: all of its question, and who is asked."""
    recipe = facts["recipe"]
    question = [recipe[key] for key in ("prompt_hash", "hash", "wording", "boundary", "sampling")]
    template = [recipe["template"]["hash"], recipe["template"]["kwargs"]]
    sent = [question, template, sampling, facts.get("answered_by"), facts.get("mask")]
    return hashlib.sha256(json.dumps(sent, sort_keys=True).encode()).hexdigest()


def _salt(question: Mapping[str, Any], cell: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """Tells apart the masks of cells, which `Engine.add` keeps apart in the prefix cache."""
    if cell.get("arm", "") in ("", NONE):
        return None
    # A mask of this mode is for one length of prompt.
    is_uniform = question["ablate"]["mode"] == "uniform"
    return (question["suite"], cell["arm"], cell["length"] if is_uniform else None)


def _template_text(template: str | None) -> str | None:
    """A chat template's text, from a file or as it stands."""
    if template is None or "{" in template:
        return template
    try:
        return read_source(path_of(template))
    except UnreadableFile as error:
        raise EngineError(f"model.chat_template: {error}") from None

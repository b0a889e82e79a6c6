"""An engine of one's own, outside of pytest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self, overload

from tqdm.auto import tqdm

from retrieval_heads.engine.client import EngineClient, EngineProcess
from retrieval_heads.engine.questions import Spans
from retrieval_heads.engine.results import Answered
from retrieval_heads.engine.start import hello_of
from retrieval_heads.errors import EngineError
from retrieval_heads.heads.table import Estimate, HeadTable, rectangle
from retrieval_heads.notebook.heads import Heads
from retrieval_heads.plain import Json
from retrieval_heads.runs.answer import Answer
from retrieval_heads.runs.folder import Facts
from retrieval_heads.runs.layers import Layer
from retrieval_heads.runs.mask import Mask
from retrieval_heads.suites.reading import resolve

Messages = Sequence[Mapping[str, str]]
"""A conversation: each with `role` and `content`."""
_AT_ONCE = 256
"""Prompts of a batch that are with the engine at a time."""


class ScoredHeads(Heads):
    """The heads' scores on one answer, and that answer."""

    def __init__(self, table: HeadTable, answer: Answer, title: str) -> None:
        super().__init__({"": table}, title)
        self.answer = answer
        """What was said."""

    def __repr__(self) -> str:
        return f"<ScoredHeads {', '.join(self)} on {self.answer.text!r:.60}>"


class Engine:
    """vLLM with a model, in a process of its own, which ends with the `with` block, `close()`, or this process.

    Args:
        model: A folder, a hub's name, or a name that needs no hub, such as `SmolLM2-135M-Instruct`.
        traced: Whether heads can be scored and masked; without it answers come a little faster.
        engine: What the `engine` section of a config says, such as `{"replicas": 2}` or `{"kind": "openai", ...}`.
        **arguments: What its `model` section says beside the name: `dtype`, `max_model_len`, `chat_template`, and any
            of vLLM's engine arguments.

    Raises:
        ConfigError: A setting is not accepted.
        EngineError: The model is not there, or the engine does not start; with the last lines of its log.

    Example:
        >>> with Engine("SmolLM2-135M-Instruct", max_model_len=2048) as engine:
        ...     engine.ask("What is the capital of France?").text
    """

    def __init__(
        self, model: str, *, traced: bool = True, engine: Mapping[str, object] | None = None, **arguments: object
    ) -> None:
        said = {"model": {"model": model, **arguments}, "engine": dict(engine or {})}
        settings = resolve(said, "Engine")
        hello = hello_of(settings.model.model_dump(), settings.engine, traced=traced)
        self._process = EngineProcess()
        try:
            self._process.launch(hello, self._process.own_log)
            self._info = self._process.wait_ready()
            self._process.begin()
        except BaseException:
            self._process.end()
            raise
        self._client = EngineClient(self._process.address)
        self._name = Path(model).name
        self._is_closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_is_closed"):  # else it never started
            self.close()

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else f"{self._info['dtype']} on {self._info['device']}"
        return f"<Engine {self._name}, {state}>"

    @property
    def info(self) -> Facts:
        """What the engine says of itself: versions, device, layers."""
        return self._info

    @property
    def log(self) -> Path:
        """What it prints; gone with the engine."""
        return self._process.own_log

    def close(self) -> None:
        """End the engine, and give its memory back."""
        if not self._is_closed:
            self._is_closed = True
            self._client.close()
            self._process.end()

    @overload
    def ask(
        self,
        prompt: str | Messages,
        *,
        max_tokens: int = 64,
        chat: bool = True,
        mask: Mask | Mapping[str, object] | None = None,
        progress: bool = False,
        **sampling: Json,
    ) -> Answer: ...
    @overload
    def ask(
        self,
        prompt: list[str] | list[Messages],
        *,
        max_tokens: int = 64,
        chat: bool = True,
        mask: Mask | Mapping[str, object] | None = None,
        progress: bool = False,
        **sampling: Json,
    ) -> list[Answer]: ...
    def ask(
        self,
        prompt: str | Messages | list[str] | list[Messages],
        *,
        max_tokens: int = 64,
        chat: bool = True,
        mask: Mask | Mapping[str, object] | None = None,
        progress: bool = False,
        **sampling: Json,
    ) -> Answer | list[Answer]:
        """Ask anything; of a list of prompts all at once.

        Args:
            prompt: A user's message, a conversation (messages with `role` and `content`), or a list of either.
            max_tokens: Each answer's budget.
            chat: Put it into the model's chat template; `False` sends the text as it is.
            mask: Heads that have no say, such as `{"mode": "zero", "heads": [[18, 7]]}`.
            progress: Show a bar while a list is answered.
            **sampling: More of vLLM's `SamplingParams`; greedy where nothing is said.

        Returns:
            An answer, or one for each prompt of the list, in its order.

        Raises:
            EngineError: The engine refused a prompt or a sampling parameter, or is gone.
        """
        self._see_open()

        def answer(one: str | Messages) -> Answer:
            return self._client.ask(one, max_tokens=max_tokens, chat=chat, mask=mask, **sampling)

        batch = _batch(prompt)
        if batch is None:
            return answer(prompt)  # type: ignore[arg-type]
        with ThreadPoolExecutor(max(1, min(len(batch), _AT_ONCE))) as pool:
            answers = pool.map(answer, batch)
            return list(tqdm(answers, total=len(batch), unit="prompt", disable=not progress))

    def head_scores(
        self,
        prompt: str,
        *,
        spans: Spans,
        answer: str | None = None,
        question: str | tuple[int, int] | None = None,
        scores: Sequence[str] = (),
        max_tokens: int = 64,
        chat: bool = True,
    ) -> ScoredHeads:
        """Score every head on a text of one's own.

        Args:
            prompt: A user's message; with `chat` off the text as it is.
            spans: What an answer must find: texts that stand in the prompt once, or their characters `(start, end)`.
            answer: What heads are scored on as it is said; left out, what the model says, greedily.
            question: The part of the prompt that asks, for scores that read its rows (`query`).
            scores: Names of head scores; left out, the usual ones.
            max_tokens: The answer's budget, where none is given.
            chat: Put the prompt into the model's chat template.

        Returns:
            By score an array `[layers, heads]`, and under `answer` what was said.

        Raises:
            EngineError: A span does not stand in the prompt, or the engine scores no heads.
        """
        self._see_open()
        found = self._client.head_scores(
            prompt, spans=spans, answer=answer, question=question, scores=scores, max_tokens=max_tokens, chat=chat
        )
        return self._scored(found)

    def _scored(self, found: Answered) -> ScoredHeads:
        import numpy

        layers = tuple(Layer(**layer) for layer in self._info["layers"])
        estimates = {}
        for name, rows in (found.head_scores or {}).items():
            mean = numpy.array(rectangle(rows), dtype=float)
            unknown = numpy.full_like(mean, numpy.nan)
            estimates[name] = Estimate(mean, unknown, unknown)
        return ScoredHeads(HeadTable("", layers, estimates, counted=1, measured=1), found.answer, self._name)

    def _see_open(self) -> None:
        if self._is_closed:
            raise EngineError("the engine was closed; make another")


def _batch(prompt: object) -> list[str | Messages] | None:
    """A list of prompts; `None` where it is one prompt."""
    if isinstance(prompt, str) or not isinstance(prompt, Sequence):
        return None
    if prompt and all(isinstance(one, Mapping) for one in prompt):
        return None
    return list(prompt)

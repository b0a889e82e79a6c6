"""A backend of another distribution, in one file: it adds numbers, and takes messages and no token ids."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar

from retrieval_heads.engine.backends.backend import Backend, Capabilities, Fields, Finished, Info, Prompt
from retrieval_heads.prompts.prompt import PromptText
from retrieval_heads.runs.mask import Mask
from toy_tokenizer import WordTokenizer


class Calculator(Backend):
    """Answers sums of up to `most` terms, and is at a loss beyond."""

    capabilities: ClassVar[Capabilities] = Capabilities(takes="text")

    def __init__(self, model: str, arguments: Fields, options: Fields, *, traced: bool) -> None:
        self.most = int(options.get("most", 2))
        self.info = Info(f"calculator of {self.most} terms", "paper", "decimal", 4096, 8, 4096, 1)
        self.tokenizer: Any = WordTokenizer()
        self.waiting: list[tuple[str, PromptText]] = []

    def add(self, request: str, prompt: Prompt, sampling: Fields, mask: Mask | None, *, is_replayed: bool) -> None:
        """Queue a prompt."""
        assert isinstance(prompt, PromptText)
        self.waiting.append((request, prompt))

    def step(self) -> list[Finished]:
        """Answer all that waits."""
        waiting, self.waiting = self.waiting, []
        return [Finished(name, self._sum(prompt.messages), [], "stop", 0, 0, 0.5) for name, prompt in waiting]

    def _sum(self, messages: Sequence[Fields]) -> str:
        numbers = [int(number) for number in re.findall(r"\d+", str(messages[-1]["content"]))]
        return f"That is {sum(numbers)}." if len(numbers) <= self.most else "I am at a loss."

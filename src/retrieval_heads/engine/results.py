"""What the engine process says of a job: an answer with all that is known of it, or why there is none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from retrieval_heads.engine.packed import PackedHeads
from retrieval_heads.plain import JsonObject, Plain
from retrieval_heads.runs.answer import Answer
from retrieval_heads.runs.facts import Expectation, PromptFacts
from retrieval_heads.runs.mask import Mask
from retrieval_heads.runs.record import AnsweredBy, HeadScores, Replay
from retrieval_heads.runs.steps import Steps


@dataclass(frozen=True, slots=True)
class Answered(Plain):
    """An answer, and what is known of it; of a free question the answer alone.

    Args:
        answer: What the model said.
        facts: What is known of the prompt.
        expected: See `retrieval_heads.prompts.requests.Request`, as the next three.
        request: Its hash.
        answered_by: Who was asked.
        mask: The heads that had no say.
        heads: Every head's scores (detection); lists where a record held them.
        replay: How the heads were scored.
        other_replays: What scores cost that read the prompt with another question as well, by that question.
        steps: What they did at each step, where that is asked for.
        lost_replica: How the replica was lost that was asked before; empty where none was.
    """

    answer: Answer
    facts: PromptFacts = field(default_factory=PromptFacts)
    expected: Expectation | None = None
    request: str = ""
    answered_by: AnsweredBy | None = None
    mask: Mask | None = None
    heads: PackedHeads | HeadScores | None = None
    replay: Replay | None = None
    other_replays: Mapping[str, Replay] = field(default_factory=dict)
    steps: Steps | None = None
    lost_replica: str = ""

    @property
    def head_scores(self) -> HeadScores | None:
        """As records hold them."""
        return self.heads.lists() if isinstance(self.heads, PackedHeads) else self.heads


@dataclass(frozen=True, slots=True)
class Unanswered(Plain):
    """Why there is no answer.

    Args:
        status: `skipped`: it was never asked; `spared`: nor was it, since it was not needed; or `error`.
        reason: One sentence.
    """

    status: Literal["skipped", "error", "spared"]
    reason: str


Result = Answered | Unanswered


def result_of_json(data: JsonObject) -> Result:
    """A result as its `to_json` gave it."""
    return Answered.of_json(data) if "answer" in data else Unanswered.of_json(data)

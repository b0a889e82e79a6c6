"""Answers of an earlier run, as its records hold them.

Imports neither torch nor vllm.
"""

from __future__ import annotations

from pathlib import Path

from retrieval_heads.engine.results import Answered, Result, Unanswered
from retrieval_heads.runs.answer import Answer
from retrieval_heads.runs.facts import PromptFacts
from retrieval_heads.runs.record import Record, read_records


def key_of(record: Record) -> str:
    """Names a record's cell to the engine."""
    return f"{record.suite}::{record.cell}"


def answer_in(record: Record) -> Answer:
    """The answer that a record holds."""
    return Answer(
        text=record.text,
        token_ids=record.token_ids,
        finish_reason=record.finish_reason,
        prompt_tokens=record.prompt_tokens or 0,
        cached_tokens=record.cached_tokens or 0,
        seconds=record.seconds or 0.0,
        engine_seconds=record.engine_seconds,
        queued_seconds=record.queued_seconds,
        thoughts=record.thoughts,
        thought_tokens=record.thought_tokens,
        server_prompt_tokens=record.server_prompt_tokens,
    )


def result_of(record: Record) -> Result:
    """What the engine said of a cell, as its record holds it."""
    if record.status in ("skipped", "error", "spared"):
        return Unanswered(record.status, record.reason)
    facts = PromptFacts(
        prompt_tokens=record.prompt_tokens,
        recipe=record.recipe,
        needle_span=record.needle_span,
        question_span=record.question_span,
        achieved_depth=record.achieved_depth,
        around=record.around,
        insertions=None if record.insertions is None else tuple(record.insertions),
    )
    return Answered(
        answer=answer_in(record),
        facts=facts,
        request=record.request,
        answered_by=record.answered_by,
        mask=record.mask,
        heads=record.heads,
        replay=record.replay,
        other_replays=record.other_replays or {},
        steps=record.steps,
        lost_replica=record.lost_replica or "",
    )


def complete_answers(path: Path) -> dict[str, Record]:
    """The records of an earlier run's results that hold an answer, by the name of their cell."""
    if not path.exists() or not path.read_bytes().strip():
        return {}
    return {key_of(record): record for record in read_records(path) if record.status in ("pass", "low")}

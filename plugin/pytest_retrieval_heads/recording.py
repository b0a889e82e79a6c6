"""From what the engine says of a cell to the cell's record."""

from __future__ import annotations

from dataclasses import replace

from retrieval_heads.ablation.arms import NONE
from retrieval_heads.engine.results import Answered, Result, Unanswered
from retrieval_heads.errors import RetrievalHeadsError
from retrieval_heads.prompts.settings import prompt_name
from retrieval_heads.runs.answer import Answer
from retrieval_heads.runs.facts import Expectation
from retrieval_heads.runs.place import DEPTH, LENGTH, NEEDLE, Place
from retrieval_heads.runs.record import Record
from retrieval_heads.scoring.settings import Scoring
from retrieval_heads.scoring.thoughts import thoughts_in, told_apart
from retrieval_heads.suites.suite import Suite
from retrieval_heads.tasks.task import THE_NEEDLE, Cell

Fields = dict[str, object]
"""Fields of `Record` by name."""


def record_of(suite: Suite, cell: Cell, result: Result) -> Record:
    """The record of a cell, its answer judged.

    Args:
        suite: The cell's.
        cell: What was asked.
        result: What came of it.
    """
    if cell.stored is not None:
        return _traced(suite, cell, cell.stored, result)
    expected, scoring = suite.task.asked(suite.question, cell.place), suite.settings.scoring
    told: Fields = {}
    if isinstance(result, Answered):
        expected = result.expected or expected
        answer = _told_apart(result.answer, scoring)
        told = {**_said(result, answer), **_judged(suite, expected, answer)}
    else:
        told = _unanswered(result)
    return Record.model_validate(
        {
            "kind": suite.settings.kind,
            "suite": suite.name,
            "setting": suite.setting or None,
            "cell": cell.id,
            "wording": prompt_name(suite.question.prompt),
            **_place(suite.question.task, cell.place),
            **expected.fields(),
            "metric": scoring.metric,
            "threshold": scoring.threshold,
            **told,
        }
    )


def _traced(suite: Suite, cell: Cell, stored: Record, result: Result) -> Record:
    """The record of a stored answer, which keeps its scores; new are the heads'."""
    told = _heads(result) if isinstance(result, Answered) else _unanswered(result)
    return Record.model_validate(
        {
            **dict(stored),
            "kind": "detect",
            "suite": suite.name,
            "setting": suite.setting or None,
            "cell": cell.id,
            "prompt": None,
            "heads": None,
            "replay": None,
            "steps": None,
            "extra": None,
            **told,
        }
    )


def _place(task: str, place: Place) -> Fields:
    """What `Record.place` reads: axes, or of the needle fields of their own."""
    told: Fields = {"seed": place.seed, "arm": "" if place.arm == NONE else place.arm}
    if task != THE_NEEDLE:
        return {**told, "task": task, "axes": dict(place.axes)}
    axes = {"context_length": LENGTH, "document_depth": DEPTH, "needle_name": NEEDLE}
    return told | {field: place.get(axis) for field, axis in axes.items()}


def _told_apart(answer: Answer, scoring: Scoring) -> Answer:
    """An answer by the suite's tags, where those are not the ones by which it was told apart."""
    thoughts, text = told_apart(answer.thoughts, answer.text, scoring.tags)
    if thoughts == answer.thoughts:
        return answer
    return replace(answer, text=text, thoughts=thoughts, thought_tokens=None)


def _said(result: Answered, answer: Answer) -> Fields:
    """The answer and what is known of it."""
    return {
        **_heads(result),
        "request": result.request,
        "text": answer.text,
        "thoughts": answer.thoughts,
        "thought_tokens": answer.thought_tokens,
        "token_ids": answer.token_ids,
        "finish_reason": answer.finish_reason,
        "prompt_tokens": answer.prompt_tokens,
        "server_prompt_tokens": answer.server_prompt_tokens,
        "cached_tokens": answer.cached_tokens,
        "seconds": answer.seconds,
        "engine_seconds": answer.engine_seconds,
        "queued_seconds": answer.queued_seconds,
    }


def _heads(result: Answered) -> Fields:
    """What is known beside the answer: of the prompt, the mask, and the heads."""
    told: Fields = {
        **result.facts.fields(),
        "answered_by": result.answered_by,
        "mask": result.mask and result.mask.as_stored,
        "heads": result.head_scores,
        "replay": result.replay,
        "other_replays": dict(result.other_replays) or None,
        "steps": result.steps,
        "lost_replica": result.lost_replica or None,
    }
    return {name: value for name, value in told.items() if value is not None}


def _unanswered(result: Unanswered) -> Fields:
    return {"status": result.status, "reason": result.reason}


def _judged(suite: Suite, expected: Expectation, answer: Answer) -> Fields:
    """Scores and status of an answer."""
    scoring = suite.settings.scoring
    try:
        found = suite.task.judge(answer.text, expected, scoring)
    except RetrievalHeadsError as error:
        return {"status": "error", "reason": str(error)}
    return {
        "scores": found.scores,
        "rougeL": found.scores.get("rougeL_f"),
        "passed": found.passed,
        "status": "pass" if found.passed else "low",
        "reason": found.reason and (_no_answer(answer, scoring) or found.reason),
    }


def _no_answer(answer: Answer, scoring: Scoring) -> str:
    """Why a model that thought gave no answer; empty where it gave one."""
    if answer.thoughts is None or answer.text.strip():
        return ""
    if answer.finish_reason == "length":
        count = len(answer.token_ids)
        budget = f"the budget of {count} tokens" if count else "the budget"
        return f"cut off while thinking: {budget} ended before an answer began; give generation.max_tokens more"
    if thoughts_in(answer.thoughts, scoring.tags, inside=True).is_open:
        return "stopped while thinking: no closing tag, and no answer behind it (scoring.thinking names the tags)"
    return ""

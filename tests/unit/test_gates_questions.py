"""A baseline's cells must have been asked what the run's were; and both sides are judged by one metric."""

from __future__ import annotations

import json
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from retrieval_heads.gates import (
    Baseline,
    Verdict,
    load_baseline,
    meta_of,
    parse_max_drop,
    save_baseline,
    set_against,
)
from retrieval_heads.runs.record import Record

META = {"model": "m", "model_revision": "r", "dtype": "bfloat16", "engine": "vllm 0.32.0", "device": "cpu"}
RECIPE: dict[str, Any] = {
    "haystack": "/home/somebody/tales",
    "hash": "a" * 64,
    "tokens": 900,
    "offset": 0,
    "insertion": 10,
    "repeats": 0,
    "wording": [{"role": "user", "content": "{context} {question}"}],
    "template_hash": "t",
    "prompt_hash": "1" * 64,
    "template": {"hash": "b" * 64},
    "boundary": "sentence",
    "sampling": {"temperature": 0.0},
}
OF_BEFORE = ("template", "boundary", "sampling")


def record(depth: int, **fields: Any) -> Record:
    recipe = fields.pop("recipe", {})
    return Record.model_validate(
        {
            "cell": f"niah/tales/sf/seed_0/len_512/depth_{depth}",
            "suite": "tale",
            "context_length": 512,
            "document_depth": depth,
            "needle": "The ferry to Oslo leaves at dawn.",
            "question": "When does the ferry to Oslo leave?",
            "reference": "The ferry to Oslo leaves at dawn.",
            "text": "At dawn it leaves.",
            "scores": {"rouge1_recall_novel": 1.0, "substring": 0.0},
            "metric": "rouge1_recall_novel",
            "threshold": 0.5,
            "passed": True,
            "recipe": None if recipe is None else {**RECIPE, "prompt_hash": f"{depth}" * 8, **recipe},
            **fields,
        }
    )


def run(**fields: Any) -> tuple[Record, ...]:
    return tuple(record(depth, **fields) for depth in (0, 50, 100))


def judged(
    now: tuple[Record, ...], before: tuple[Record, ...], meta: dict[str, str] | None = None, **options: Any
) -> Verdict:
    return set_against(
        now, Baseline(before, META), max_drop=parse_max_drop("0"), meta=meta or META, suite="niah/tale", **options
    ).judged()


def test_the_same_questions_are_no_gate_and_no_warning() -> None:
    verdict = judged(run(), run())
    assert verdict.passed
    assert len(verdict.outcomes) == 2
    assert verdict.warnings == ()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"hash": "c" * 64}, "question.haystack: aaaaaaaaaaaa in the baseline, cccccccccccc now"),
        ({"boundary": "token"}, "question.boundary: sentence in the baseline, token now"),
        ({"wording": [{"role": "user", "content": "{question} {context}"}]}, "question.wording: "),
        ({"template": {"hash": "d" * 64}}, "question.template: bbbbbbbbbbbb in the baseline, dddddddddddd now"),
        ({"template": {"hash": "b" * 64, "kwargs": {"x": 1}}}, "question.chat_template_kwargs: none in the baseline"),
        ({"sampling": {"temperature": 0.7}}, "question.sampling.temperature: 0.0 in the baseline, 0.7 now"),
        ({}, "question.prompt: "),
    ],
)
def test_a_changed_question_fails_and_is_named_for_its_suite(change: dict[str, Any], named: str) -> None:
    now = run(recipe={**change, "prompt_hash": "9" * 64})
    verdict = judged(now, run())
    (broken,) = verdict.broken
    assert broken.line().startswith(f"niah/tale: 3 of 3 cells are not asked what the baseline was asked: {named}")
    assert "--rh-allow-changed" in broken.sentence
    allowed = judged(now, run(), allow_changed=True)
    assert allowed.passed
    assert named in " ".join(allowed.warnings)


def worded(**fields: Any) -> tuple[Record, ...]:
    """A run whose cells are named as a suite names them: another digest for other words."""
    said = {"needle_name": "ferry", **fields}
    digest = f"{zlib.crc32(repr(sorted(fields.items())).encode()):08x}"
    return tuple(
        record(depth, **said, cell=f"niah/tales/ferry-{digest}/seed_0/len_512/depth_{depth}") for depth in (0, 50, 100)
    )


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            {"question": "At what time does the ferry leave?"},
            "the question of ferry: 'When does the ferry to Oslo leave?' in the baseline, "
            "'At what time does the ferry leave?' now",
        ),
        (
            {"reference": "at dawn"},
            "the expected answer of ferry: 'The ferry to Oslo leaves at dawn.' in the baseline, 'at dawn' now",
        ),
        (
            {"alternatives": ["at sunrise"]},
            "the expected answer of ferry: 'The ferry to Oslo leaves at dawn.' in the baseline, "
            "'The ferry to Oslo leaves at dawn. or at sunrise' now",
        ),
        (
            {"needle": "The ferry leaves at noon.", "reference": "The ferry leaves at noon."},
            "the needle of ferry: 'The ferry to Oslo leaves at dawn.' in the baseline, 'The ferry leaves at noon.' now",
        ),
    ],
)
@pytest.mark.parametrize("selected", [True, False])
def test_other_words_are_told_once_for_a_suite(change: dict[str, Any], named: str, selected: bool) -> None:
    now, before = worded(**change), worded()
    cells = [one.cell for one in now] if selected else None
    verdict = judged(now, before, selected=cells)
    (broken,) = verdict.broken
    told = f"niah/tale: 3 of 3 cells are not asked what the baseline was asked: {named}; save the baseline anew"
    assert broken.line().startswith(told)
    assert judged(now, before, selected=cells, allow_changed=True).passed
    assert judged(before, before, selected=None).passed


def test_other_words_of_a_long_text_are_shown_where_they_begin() -> None:
    long = "The ferry leaves, as it has for many years and in any weather, from the old pier behind the mill "
    now, before = (worded(question=f"{long}at {when}?") for when in ("dawn", "noon"))
    (broken,) = judged(now, before).broken
    assert "'… behind the mill at noon?' in the baseline, '… behind the mill at dawn?' now" in broken.sentence


def test_a_haystack_of_another_name_is_the_same_question_where_its_text_is() -> None:
    renamed = [one.model_copy(update={"cell": one.cell.replace("tales", "stories")}) for one in worded()]
    assert judged(tuple(renamed), worded()).passed
    other = worded(recipe={"hash": "c" * 64})
    renamed = [one.model_copy(update={"cell": one.cell.replace("tales", "stories")}) for one in other]
    (broken,) = judged(tuple(renamed), worded()).broken
    assert "question.haystack: aaaaaaaaaaaa in the baseline, cccccccccccc now" in broken.sentence


def test_other_words_of_one_needle_are_counted_beside_the_others() -> None:
    bus = {"needle_name": "bus", "needle": "The bus leaves at noon.", "reference": "The bus leaves at noon."}
    same = tuple(one.model_copy(update={"cell": one.cell.replace("/ferry-", "/bus-")}) for one in worded(**bus))
    (broken,) = judged((*same, *worded(question="Why?")), (*worded(), *same)).broken
    assert broken.sentence.startswith("3 of 6 cells are not asked what the baseline was asked: the question of ferry: ")
    ferry = [one.cell for one in worded()]
    assert judged((*same, *worded()), (*worded(), *same), selected=ferry).passed


def test_a_baseline_that_does_not_say_its_words_lacks_the_cell() -> None:
    before = worded(recipe=None)
    sentences = [one.sentence for one in judged(worded(question="Why?"), before).broken]
    assert all("3 selected cells" in sentence or "not in the baseline" in sentence for sentence in sentences)
    assert len(sentences) == 2


def test_a_part_of_the_cells_is_counted() -> None:
    now = (*run(recipe={"boundary": "token"})[:1], *run()[1:])
    (broken,) = judged(now, run()).broken
    assert "1 of 3 cells" in broken.sentence


def test_of_pydoc_it_is_said_why_its_text_may_differ() -> None:
    (broken,) = judged(run(recipe={"haystack": "pydoc", "hash": "c" * 64}), run()).broken
    assert "pydoc is Python's own help, which changes with its version" in broken.sentence


def test_another_models_own_template_and_tokens_are_the_models() -> None:
    other = run(recipe={"template": {"hash": "d" * 64, "kwargs": {"thinking": False}}, "prompt_hash": "9" * 64})
    verdict = judged(other, run(), {**META, "model": "other"})
    assert verdict.passed
    assert verdict.warnings == ("model differs: m in the baseline, other now",)
    given = run(recipe={"template": {"hash": "d" * 64, "is_given": True}})
    assert not judged(given, run(), {**META, "model": "other"}).passed


def test_another_tokenizer_of_the_same_model_is_no_other_question() -> None:
    now = run(recipe={"prompt_hash": "9" * 64})
    assert judged(now, run(), {**META, "model_revision": "s"}).passed


def test_a_run_of_before_is_compared_by_what_it_says() -> None:
    before = run(recipe=dict.fromkeys(OF_BEFORE[:1]) | {"boundary": "", "sampling": None})
    verdict = judged(run(), before)
    assert verdict.passed
    (warning,) = verdict.warnings
    assert warning.startswith("the baseline does not say what it was asked (boundary, sampling); save it anew: ")
    changed = run(recipe={"hash": "c" * 64})
    assert not judged(changed, before).passed
    assert not judged(run(recipe={"template_hash": "u"}), before).passed


def test_a_baseline_of_before_is_one_warning_with_the_command_that_saves_it_anew(tmp_path: Path) -> None:
    lines = [{"schema": "retrieval-heads-baseline/1", "cells": 3, **META}]
    for one in run():
        kept = (
            "cell",
            "suite",
            "status",
            "context_length",
            "document_depth",
            "metric",
            "threshold",
            "passed",
            "scores",
        )
        lines.append({key: getattr(one, key) for key in kept})
    file = tmp_path / "suites" / "baselines" / "main.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    now = run(metric="new", threshold=0.0, passed=False, scores={"new": 0.0, "rouge1_recall_novel": 1.0})
    verdict = set_against(
        now, load_baseline(file), max_drop=parse_max_drop("0"), meta={**META, "weights_hash": "w"}
    ).judged()
    assert verdict.passed, "judged by the baseline's own metric and threshold, nothing fell"
    assert verdict.warnings == (
        "the baseline was judged by rouge1_recall_novel > 0.5, and so is this run here, not by its own new > 0 and "
        "does not say what it was asked (haystack, wording, chat template, boundary, sampling); save it anew: "
        f"pytest {tmp_path / 'suites'} ... --rh-save-baseline main",
    )


def test_a_fall_is_found_by_the_baselines_own_metric() -> None:
    now = run(metric="new", threshold=0.0, scores={"rouge1_recall_novel": 0.2, "new": 1.0})
    before = run(reference="", text="")
    verdict = judged(now, before)
    assert {outcome.gate.split(" <=")[0] for outcome in verdict.broken} == {
        "drop of rouge1_recall_novel",
        "drop of pass_rate",
    }


def test_a_baseline_with_answers_is_scored_again(tmp_path: Path) -> None:
    file = tmp_path / "b.jsonl"
    save_baseline(run(), META, file)
    now = run(metric="rougeL_recall_novel", threshold=0.4, scores={"rougeL_recall_novel": 0.5}, passed=True)
    verdict = set_against(now, load_baseline(file), max_drop=parse_max_drop("0.9"), meta=META).judged()
    assert {outcome.gate.split(" <=")[0] for outcome in verdict.outcomes} == {
        "drop of rougeL_recall_novel",
        "drop of pass_rate",
    }
    (warning,) = verdict.warnings
    assert warning == (
        "the baseline's answers were scored again by rougeL_recall_novel > 0.4; "
        "they had been judged by rouge1_recall_novel > 0.5"
    )


def test_alternatives_of_an_answer_count_when_it_is_scored_again(tmp_path: Path) -> None:
    file = tmp_path / "b.jsonl"
    answers: dict[str, Any] = {"reference": "at noon", "alternatives": ["at dawn"], "text": "It leaves at dawn."}
    save_baseline(run(**answers), META, file)
    stored = load_baseline(file)
    assert stored.records[0].alternatives == ["at dawn"]
    now = run(**answers, metric="key_words", scores={"key_words": 1.0})
    verdict = set_against(now, stored, max_drop=parse_max_drop("0"), meta=META).judged()
    figures = {outcome.gate.split(" <=")[0]: outcome.figures["baseline"] for outcome in verdict.outcomes}
    assert figures == {"drop of key_words": 1.0, "drop of pass_rate": 1.0}


def test_thoughts_in_a_baselines_answer_do_not_count_when_it_is_scored_again(tmp_path: Path) -> None:
    file = tmp_path / "b.jsonl"
    answers: dict[str, Any] = {"reference": "at dawn", "text": "<think>At dawn?</think>Noon."}
    save_baseline(run(**answers), META, file)
    now = run(**{**answers, "text": "Noon."}, metric="rougeL_recall_novel", scores={"rougeL_recall_novel": 0.0})
    verdict = set_against(now, load_baseline(file), max_drop=parse_max_drop("0"), meta=META).judged()
    assert {outcome.figures["baseline"] for outcome in verdict.outcomes} == {0.0}


def test_a_saved_baseline_keeps_question_and_answer_and_no_path(tmp_path: Path) -> None:
    file = tmp_path / "b.jsonl"
    save_baseline(run(), META, file)
    stored = load_baseline(file).records[0]
    assert stored.recipe == replace_haystack(record(0))
    assert (stored.text, stored.reference, stored.question) == (record(0).text, record(0).reference, record(0).question)
    assert "somebody" not in file.read_text("utf-8")
    assert judged(run(), load_baseline(file).records).warnings == ()


def replace_haystack(one: Record) -> Any:
    assert one.recipe is not None
    return one.recipe.model_copy(update={"haystack": "tales"})


def test_the_header_says_what_else_tells_model_and_engine() -> None:
    fields = {"dtype": "bfloat16", "quantization": "fp8", "weights/a.safetensors": "1", "weights/b.safetensors": "2"}
    facts = {
        **META,
        "answered_by": {"model": "M", "engine": "E"},
        "identities": {
            "models": {"M": {"name": "m", "fields": fields}},
            "engines": {"E": {"fields": {"version": "vllm", "traced": False, "enforce_eager": True}}},
        },
    }
    meta = meta_of(facts)
    assert META.items() <= meta.items()
    assert meta["quantization"] == "fp8"
    assert meta["enforce_eager"] == "true"
    assert meta.keys() - META.keys() == {"quantization", "enforce_eager", "weights_hash"}
    plain = replace(Baseline(run(), META), meta=META)
    verdict = set_against(run(), plain, max_drop=parse_max_drop("0"), meta=meta).judged()
    assert "quantization differs: not said in the baseline, fp8 now" in verdict.warnings
    assert verdict.passed

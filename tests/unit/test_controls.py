"""Other behaviour under a mask: what counts as answered, and means over draws."""

from __future__ import annotations

import math
from typing import Any

import pytest

from retrieval_heads.ablation.controls import QUESTIONS, TAIL_CHARACTERS, Control, is_answered, mean_of, measure
from retrieval_heads.errors import RetrievalHeadsError
from retrieval_heads.runs.answer import Answer


@pytest.mark.parametrize(
    ("text", "said"), [("It is Paris.", True), ("PARIS", True), ("Parisian", False), ("I do not know.", False)]
)
def test_an_answer_says_the_word_itself(text: str, said: bool) -> None:
    assert is_answered(text, ["paris"]) is said


def test_draws_have_a_geometric_mean_perplexity() -> None:
    mean = mean_of([Control(10, 1.0), Control(1000, 0.5)])
    assert mean.perplexity == pytest.approx(100)
    assert mean.closed_book == 0.75


def answer(text: str, logprob: float | None = None) -> Answer:
    return Answer(text, [1], "stop", 5, 0, 0.1, prompt_logprob=logprob)


def test_each_arm_is_asked_under_its_own_mask() -> None:
    mask = {"mode": "zero", "heads": [[0, 0]]}
    tails = []

    def ask(prompt: str, *, mask: Any = None, chat: bool = True, **sampling: Any) -> Answer:
        if not chat:
            tails.append(prompt)
            return answer("", -1.0 if mask is None else -3.0)
        return answer("Paris" if mask is None else "no")

    found = measure(ask, {"none": None, "top_1": mask}, "x" * 10 * TAIL_CHARACTERS)
    assert found["none"] == Control(pytest.approx(math.e), 1 / len(QUESTIONS))
    assert found["top_1"] == Control(pytest.approx(math.exp(3)), 0)
    assert {len(tail) for tail in tails} == {TAIL_CHARACTERS}


def test_without_log_probabilities_there_is_no_perplexity() -> None:
    with pytest.raises(RetrievalHeadsError, match="no log probabilities"):
        measure(lambda *_, **__: answer("Paris"), {"none": None}, "text")

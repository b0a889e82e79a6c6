"""Other behaviour under an ablation's masks, so that "it cannot find the needle" and "it is broken" can be told apart.

Two measures: how well the model predicts plain text, the end of the haystack without any needle (perplexity), and
whether it answers questions that need no context (closed book).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from retrieval_heads.errors import RetrievalHeadsError
from retrieval_heads.intervals import share_interval
from retrieval_heads.runs.answer import Answer
from retrieval_heads.runs.mask import Mask
from retrieval_heads.runs.record import finite_mean

QUESTIONS: Sequence[tuple[str, Sequence[str]]] = (
    ("What is the capital of France?", ["paris"]),
    ("What is the capital of Italy?", ["rome"]),
    ("How many days are there in a week?", ["seven", "7"]),
    ("What is the opposite of hot?", ["cold"]),
    ("Which animal says meow?", ["cat", "cats"]),
    ("What is frozen water called?", ["ice"]),
    ("What do bees make?", ["honey"]),
    ("Which planet do we live on?", ["earth"]),
    ("What is the first month of the year?", ["january"]),
    ("What color is the sky on a clear day?", ["blue"]),
)
"""Questions that need no context, and the words of which one must be said."""

TAIL_CHARACTERS = 3000
"""Of the haystack's end that perplexity is measured on: some 700 tokens of English."""

_AT_ONCE = 32

Ask = Callable[..., Answer]
"""`EngineClient.ask`, on a connection of its own for each call."""


@dataclass(frozen=True)
class Control:
    """One arm's other behaviour.

    Args:
        perplexity: e to the mean negative log probability of the tail's tokens.
        closed_book: Share of the questions answered.
    """

    perplexity: float
    closed_book: float


def measure(ask: Ask, masks: Mapping[str, Mask | None], haystack: str) -> dict[str, Control]:
    """Measure every arm, all of them at once.

    Args:
        ask: The engine.
        masks: By arm, what is masked.
        haystack: Its text.

    Raises:
        RetrievalHeadsError: The engine refuses, or is gone.
    """
    tail = haystack[-TAIL_CHARACTERS:]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        tails = {
            arm: pool.submit(ask, tail, chat=False, max_tokens=1, prompt_logprobs=0, mask=mask)
            for arm, mask in masks.items()
        }
        asked = {
            arm: [pool.submit(ask, question, max_tokens=24, mask=mask) for question, _ in QUESTIONS]
            for arm, mask in masks.items()
        }
        return {
            arm: Control(
                perplexity=_perplexity(tails[arm].result()),
                closed_book=finite_mean(
                    [
                        float(is_answered(answer.result().text, accepted))
                        for answer, (_, accepted) in zip(asked[arm], QUESTIONS, strict=True)
                    ]
                ),
            )
            for arm in masks
        }


def is_answered(text: str, accepted: Sequence[str]) -> bool:
    """Whether an answer says one of the accepted words."""
    return not set(accepted).isdisjoint(re.findall(r"\w+", text.lower()))


def mean_of(controls: Sequence[Control]) -> Control:
    """Of a control's draws: perplexities have a geometric mean."""
    logs = [math.log(control.perplexity) for control in controls]
    return Control(math.exp(finite_mean(logs)), finite_mean([control.closed_book for control in controls]))


def intervals(arms: Mapping[str, Iterable[str]], controls: Mapping[str, Control]) -> str:
    """The share of questions answered with its exact interval, arm by arm.

    Draws of a control ask the same questions, so that they are counted once.

    Args:
        arms: By the name that figures stand under, the arms whose mean is shown: the draws of a control.
        controls: By arm, what was measured.
    """
    shown = []
    for name, members in arms.items():
        if measured := [controls[arm] for arm in members if arm in controls]:
            share = mean_of(measured).closed_book
            interval = share_interval(share, len(QUESTIONS))
            shown.append(f"{name} {share:.2f} [{interval.low:.2f}, {interval.high:.2f}]")
    return ", ".join(shown)


def _perplexity(answer: Answer) -> float:
    if answer.prompt_logprob is None:
        raise RetrievalHeadsError("the engine told no log probabilities")
    return math.exp(-answer.prompt_logprob)

"""The share of wrong verdicts of every metric on the labelled answers: `python benchmarks/verdicts.py`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from answers import Labelled, labelled
from retrieval_heads.scoring import score_answer
from retrieval_heads.scoring.settings import METRICS

THRESHOLD = 0.5


def main() -> None:
    answers = labelled()
    scores = [score_answer(each.answer, each.reference, each.question) for each in answers]
    model = [each.source != "hand" for each in answers]
    groups = {
        "all": [True] * len(answers),
        "held out": [each.part == "held out" for each in answers],
        "of the model": model,
    }
    heads = [f"{name}: {kind}" for name in groups for kind in ("false passes", "false misses")]
    print(f"| metric above {THRESHOLD} | {' | '.join(heads)} |")
    print(f"|{'---|' * (len(heads) + 1)}")
    for metric in METRICS:
        row = []
        for members in groups.values():
            kept = [(each, score[metric]) for each, score, is_in in zip(answers, scores, members, strict=True) if is_in]
            row += [share(kept, is_right=False), share(kept, is_right=True)]
        print(f"| `{metric}` | {' | '.join(row)} |")


def share(scored: list[tuple[Labelled, float]], *, is_right: bool) -> str:
    chosen = [value > THRESHOLD for each, value in scored if each.is_right is is_right]
    wrong = sum(passed is not is_right for passed in chosen)
    return f"{100 * wrong / len(chosen):.1f} % ({wrong} of {len(chosen)})" if chosen else "–"


if __name__ == "__main__":
    main()

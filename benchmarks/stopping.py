"""What a stopping rule is worth: how often it errs, and how many cells it spares. The table of docs/heads.md.

    python benchmarks/stopping.py                       # heads that are made up, of a stated model
    python benchmarks/stopping.py reports/latest ...    # the samples of stored runs of kind detect

Of each run its cells are asked in many random orders; an error is a stop after which fewer of the best heads than asked
for are those of all cells. No engine is started.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from retrieval_heads.heads.agreement import overlaps
from retrieval_heads.heads.score import ranking_of
from retrieval_heads.heads.stopping import UntilStable
from retrieval_heads.runs.record import read_records

_ORDERS = 50
_RULES = (UntilStable(), UntilStable(agreement=0.8))


def made_up(name: str, random: np.random.Generator) -> tuple[Any, Any]:
    """600 cells of 6 needles by 10 texts, 270 heads: `[cells, heads]`, and which of them count.

    Means fall as named; in log odds heads stray by needle (0.3), by text (0.3) and by cell (0.8); figures below 0.02
    are 0, others twentieths, as counts over a needle's tokens are; 85 % of the answers count.
    """
    rank = np.arange(270)
    mean = {
        "steep": 0.8 * np.exp(-rank / 8),
        "a gap behind the tenth": np.where(rank < 10, 0.6, 0.1 * np.exp(-(rank - 10) / 20)),
        "flat": 0.4 * np.exp(-rank / 60),
    }[name]
    odds = np.log(np.clip(mean, 1e-4, 0.99) / (1 - np.clip(mean, 1e-4, 0.99)))
    strays = random.normal(0, 0.3, (6, 1, 1, 270)) + random.normal(0, 0.3, (1, 10, 1, 270))
    figures = 1 / (1 + np.exp(-(odds + strays + random.normal(0, 0.8, (6, 10, 10, 270)))))
    figures = np.where(figures < 0.02, 0, np.round(20 * figures) / 20).reshape(600, 270)
    return figures, random.random(600) < 0.85


def stored(run: Path) -> tuple[Any, Any]:
    """Those of a run's detect suite: of cells that do not count figures are 0."""
    records = [record for record in read_records(run / "results.jsonl") if record.kind == "detect"]
    counts = np.array([bool(record.passed) and record.heads is not None for record in records])
    scores = [np.concatenate([*record.heads[ranking_of(record.heads)]]) for record in records if record.heads]
    figures = np.zeros((len(records), len(scores[0])))
    figures[[record.heads is not None for record in records]] = scores
    return figures, counts


def asked(rule: UntilStable, figures: Any, counts: Any) -> tuple[int, bool]:
    """After how many cells a rule stops, and whether it errs."""
    order = np.array(rule.in_order(range(len(figures))))
    for look in rule.looks(len(figures))[:-1]:
        samples = order[:look][counts[order[:look]]]
        if rule.is_settled(figures[samples], look, len(figures)):
            shared = overlaps(figures[samples].mean(0)[None], figures[counts].mean(0)[None], rule.top)[0]
            return look, not shared >= rule.agreement - 1e-9
    return rule.looks(len(figures))[-1], False


def main() -> None:
    """A line for each kind of heads and each rule."""
    print("| heads | cells | top | agreement | error allowed | errors | stopped early | cells asked, mean |")
    print("|---|---|---|---|---|---|---|---|")
    runs = list(map(Path, sys.argv[1:]))
    for name in runs or ("steep", "a gap behind the tenth", "flat"):
        for rule in _RULES:
            ends = []
            for seed in range(_ORDERS):
                random = np.random.default_rng(seed)
                figures, counts = stored(name) if isinstance(name, Path) else made_up(name, random)
                ends.append(asked(rule.model_copy(update={"seed": seed}), figures, counts))
            cells = len(figures)
            looks, errors = np.array([look for look, _ in ends]), sum(wrong for _, wrong in ends)
            print(
                f"| {getattr(name, 'name', name)} | {cells} | {rule.top} | {rule.agreement:g} | {rule.error:g} | "
                f"{errors / _ORDERS:.2f} | {(looks < cells).mean():.2f} | {looks.mean():.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()

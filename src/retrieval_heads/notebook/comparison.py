"""Two runs, one set against the other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from retrieval_heads import gates
from retrieval_heads.notebook.run import Run, load_run
from retrieval_heads.notebook.showing import shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Comparison:
    """What became of the scores of one run in another.

    Args:
        before: The run to compare with.
        after: The run that is judged.
        verdict: Each score with what was measured, its limit, and whether it holds.
    """

    before: Run
    after: Run
    verdict: gates.Verdict

    @property
    def passed(self) -> bool:
        """Whether no score fell by more than is allowed, or may have."""
        return self.verdict.passed

    @property
    def lines(self) -> list[str]:
        """One for each score, and what is worth knowing beside."""
        return list(gates.lines(self.verdict, 120))

    def __str__(self) -> str:
        return "\n".join(self.lines)

    def __repr__(self) -> str:
        return f"<Comparison of {self.before.name} and {self.after.name}: {self.verdict.outcome}>"

    def heatmap(self, *, metric: str | None = None) -> Figure:
        """Cell by cell, the score of the second run minus that of the first."""
        from retrieval_heads.plots.difference import difference_figure

        names = (_name(self.before), _name(self.after))
        return shown(difference_figure(self.before.cells, self.after.cells, metric=metric, names=names))

    def profiles(self, *, metric: str | None = None) -> Figure:
        """Both runs' mean scores against length and against depth."""
        from retrieval_heads.plots.curves import profiles_figure

        first, second = _name(self.before), _name(self.after)
        names = (first, second) if first != second else (self.before.name, f"{self.after.name} (after)")
        runs = dict(zip(names, (self.before.cells, self.after.cells), strict=True))
        return shown(profiles_figure(runs, metric=metric))

    def head_overlap(self, count: int = 10, score: str | None = None) -> float | None:
        """The share of the best heads that both runs have; `None` where none stands out.

        Raises:
            ResultsError: A run scored no heads, or has several detect suites.
        """
        return self.before.heads.overlap(self.after.heads, count, score)


def compare(
    before: Run | str | Path,
    after: Run | str | Path,
    *,
    max_drop: str | tuple[str, ...] = gates.DEFAULT_MAX_DROP,
    inconclusive: gates.Inconclusive = "fail",
    allow_new: bool = False,
    allow_removed: bool = False,
    allow_changed: bool = False,
) -> Comparison:
    """Judge a run against an earlier one, as `retrieval-heads compare` does.

    Args:
        before: The earlier run, or where it is.
        after: The run to judge, or where it is.
        max_drop: How far a score may fall: `0.05`, `5%`, `rougeL_recall:0.05`, or several of these.
        inconclusive: What a fall beyond the limit that noise can explain comes to.
        allow_new: Leave out cells that the earlier run lacks.
        allow_removed: Let go of its cells that the run to judge has not.
        allow_changed: Compare cells that were asked something else.

    Raises:
        RetrievalHeadsError: A run cannot be read, or the two cannot be compared.
    """
    first, second = (one if isinstance(one, Run) else load_run(one) for one in (before, after))
    earlier = gates.load_baseline(first.path)
    verdict = gates.set_against(
        tuple(second.cells),
        earlier,
        max_drop=gates.parse_max_drop((max_drop,) if isinstance(max_drop, str) else max_drop),
        meta=gates.load_baseline(second.path).meta,
        selected={gates.cell_name(record) for record in second.cells} if allow_removed else None,
        allow_new=allow_new,
        allow_changed=allow_changed,
    ).judged(inconclusive)
    return Comparison(first, second, verdict)


def _name(run: Run) -> str:
    return run.model or run.name

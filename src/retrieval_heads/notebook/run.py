"""A stored run, as a notebook has it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, overload

from retrieval_heads.ablation.effect import effect_of
from retrieval_heads.errors import ResultsError
from retrieval_heads.notebook.frames import frame
from retrieval_heads.notebook.heads import Heads
from retrieval_heads.notebook.showing import shown
from retrieval_heads.report import StoredRun
from retrieval_heads.report import load_run as stored_run
from retrieval_heads.runs.folder import Facts
from retrieval_heads.runs.record import Record, finite_mean

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

_FIELDS = (
    "kind", "suite", "cell", "setting", "arm", "status", "reason", "metric", "passed", "text", "reference", "question",
    "finish_reason", "prompt_tokens", "cached_tokens", "seconds", "engine_seconds", "queued_seconds",
)  # fmt: skip


class Cells(Sequence[Record]):
    """The cells of a run: its records, in the order in which they were answered."""

    def __init__(self, records: Sequence[Record]) -> None:
        self._records = tuple(records)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Cells: ...
    def __getitem__(self, index: int | slice) -> Record | Cells:
        return Cells(self._records[index]) if isinstance(index, slice) else self._records[index]

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records)

    def __repr__(self) -> str:
        counts = Counter(record.status for record in self._records)
        return f"<{len(self)} cells: {', '.join(f'{count} {status}' for status, count in counts.items()) or 'none'}>"

    def of(self, suite: str) -> Cells:
        """The cells of one suite.

        Raises:
            ResultsError: The run has none of it.
        """
        found = [record for record in self._records if record.suite == suite]
        if not found:
            names = ", ".join(dict.fromkeys(record.suite for record in self._records)) or "none"
            raise ResultsError(f"cells: no suite {suite!r}; there are: {names}")
        return Cells(found)

    @property
    def mean(self) -> float:
        """The mean of the score that decides, over the cells that have it; NaN for none."""
        return finite_mean([record.scores[record.metric] for record in self._records if record.metric in record.scores])

    @property
    def rows(self) -> list[dict[str, object]]:
        """One for each cell: its place (length, depth, needle, or its task's axes), seed, every score, and more."""
        return [
            {
                **dict(record.place.axes),
                "seed": record.seed,
                **{name: getattr(record, name) for name in _FIELDS},
                "answer_tokens": record.answer_tokens,
                **record.scores,
            }
            for record in self._records
        ]

    def to_pandas(self) -> DataFrame:
        """`rows` as a DataFrame.

        Raises:
            RetrievalHeadsError: There is no pandas.
        """
        return frame(self.rows)


class Plot:
    """Pictures of a run; each is a matplotlib figure, which `savefig` writes.

    Args:
        run: The run.
    """

    def __init__(self, run: Run) -> None:
        self._run = run

    def heatmap(self, suite: str | None = None, *, metric: str | None = None) -> Figure:
        """Score by context length and needle depth.

        Args:
            suite: Which; left out, all of the run's.
            metric: Name of a score; left out, the one that decides.
        """
        from retrieval_heads.plots.niah import niah_figure

        return shown(niah_figure(self._cells(suite), metric=metric, title=self._run.title))

    def profiles(self, suite: str | None = None, *, metric: str | None = None) -> Figure:
        """Mean score against length and against depth, with 95 % intervals."""
        from retrieval_heads.plots.curves import profiles_figure

        return shown(profiles_figure(self._cells(suite), metric=metric, title=self._run.title))

    def heads(self, *scores: str, suite: str | None = None, top: int = 10) -> Figure:
        """Layers by heads, one panel for each score, the best heads ringed."""
        return self._heads(suite).heatmap(*scores, top=top)

    def distribution(self, score: str | None = None, *, suite: str | None = None) -> Figure:
        """The heads' scores from highest to lowest."""
        return self._heads(suite).distribution(score)

    def ablation(self, suite: str | None = None) -> Figure:
        """Accuracy against the number of masked heads."""
        from retrieval_heads.plots.ablation import ablation_figure

        records = [record for record in self._cells(suite) if record.kind == "ablate"]
        return shown(ablation_figure(effect_of(records), title=self._run.title))

    def _cells(self, suite: str | None) -> Cells:
        return self._run.cells if suite is None else self._run.cells.of(suite)

    def _heads(self, suite: str | None) -> Heads:
        return self._run.heads if suite is None else self._run.heads.of(suite)


class Run:
    """A stored run.

    Args:
        stored: As it was read.
        path: Where.
    """

    def __init__(self, stored: StoredRun, path: Path) -> None:
        self._stored = stored
        self.path = path

    @property
    def name(self) -> str:
        """Its folder's."""
        return self._stored.name

    @property
    def model(self) -> str:
        """The model's name; empty where `run.json` is missing."""
        return Path(str(self.facts.get("model") or "")).name

    @property
    def title(self) -> str:
        """Heads its pictures."""
        return (
            " · ".join(filter(None, (self.model, *dict.fromkeys(record.suite for record in self.cells)))) or self.name
        )

    @property
    def facts(self) -> Facts:
        """What `run.json` says."""
        return self._stored.facts

    @property
    def cells(self) -> Cells:
        """Its cells."""
        return Cells(self._stored.records)

    @property
    def heads(self) -> Heads:
        """Its heads."""
        return Heads(self._stored.heads, self.title)

    @property
    def gates(self) -> Mapping[str, object]:
        """What `gates.json` says; empty where there were none."""
        return self._stored.gates

    @property
    def plot(self) -> Plot:
        """Its pictures."""
        return Plot(self)

    def __repr__(self) -> str:
        told = [f"{self.name}", *([self.model] if self.model else []), repr(self.cells).strip("<>")]
        if self.cells and self.cells.mean == self.cells.mean:
            told.append(f"mean {self.cells[0].metric} {self.cells.mean:.3f}")
        if self.heads.suites:
            told.append(f"heads of {', '.join(self.heads.suites)}")
        return f"<Run {', '.join(told)}>"


def load_run(path: str | Path) -> Run:
    """Read a run.

    Args:
        path: Its folder, such as `reports/latest`, a `results.jsonl` (the predecessor's as well), or a file of heads.

    Raises:
        ResultsError: Nothing of a run is there, or a file cannot be read.
    """
    found = Path(path).expanduser()
    return Run(stored_run(found), found)

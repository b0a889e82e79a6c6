"""Everything that can be drawn of a run, from its stored numbers: what `--rh-report` and `visualize` write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from retrieval_heads.errors import RetrievalHeadsError
from retrieval_heads.files import write_whole
from retrieval_heads.heads.detection import RETRIEVAL_THRESHOLD
from retrieval_heads.heads.table import HeadTable
from retrieval_heads.report import StoredRun, write_report
from retrieval_heads.report.text import text_report
from retrieval_heads.runs.layers import Layer
from retrieval_heads.runs.record import Record

RINGED = 10
"""How many of the best heads are ringed."""


@dataclass(frozen=True)
class Drawn:
    """What was written, and what could not be, a sentence each."""

    paths: Sequence[Path]
    complaints: Sequence[str]


def draw_run(run: StoredRun, folder: Path) -> Drawn:
    """Draw a run's heatmaps, profiles and head scores, and write its report.

    Args:
        run: What was measured.
        folder: Where `heatmap.png`, `profiles.png`, `detect_heatmap.png`, `head_scores.png` (each as `.svg` too, with
            the suite's name behind where there are several) and `report.html` go.

    Returns:
        A picture that cannot be drawn is a complaint, and the others are drawn all the same.
    """
    niah = {
        record.suite: [each for each in run.records if (each.kind, each.suite) == ("niah", record.suite)]
        for record in run.records
        if record.kind == "niah"
    }
    paths: list[Path] = []
    complaints: list[str] = []
    model = Path(str(run.facts.get("model") or "")).name

    def attempt(what: str, draw: Callable[[], Sequence[Path]]) -> None:
        try:
            paths.extend(draw())
        except RetrievalHeadsError as error:
            complaints.append(f"no {what}: {error}")

    for suite, records in niah.items():
        title = " · ".join(filter(None, (model, suite))) or run.name
        suffix = f"-{suite}" if len(niah) > 1 else ""
        attempt(f"heatmap of {suite or run.name}", lambda: _draw_cells(records, folder, suffix, title))  # noqa: B023
    for suite, table in run.heads.items():
        title = " · ".join(filter(None, (model, suite)))
        suffix = f"-{suite}" if len(run.heads) > 1 else ""
        attempt(f"head heatmap of {suite}", lambda: draw_heads(table, folder / "detect_heatmap.png", title, suffix))  # noqa: B023
    if any(record.task for record in run.records):
        attempt("text report", lambda: [_write_text(run, folder / "report.txt")])
    attempt("report", lambda: [write_report(run, folder / "report.html")])
    return Drawn(paths, complaints)


def _write_text(run: StoredRun, path: Path) -> Path:
    write_whole(path, f"{text_report(run.records)}\n".encode())
    return path


def _draw_cells(records: Sequence[Record], folder: Path, suffix: str, title: str) -> list[Path]:
    from retrieval_heads.plots import niah_heatmap, profiles

    paths = niah_heatmap(records, folder / f"heatmap{suffix}.png", title=title)
    if any(record.scores for record in records):
        paths += profiles(records, folder / f"profiles{suffix}.png", title=title)
    return paths


def draw_heads(table: HeadTable, path: Path, title: str, suffix: str = "") -> list[Path]:
    """Draw a head heatmap and, beside it as `head_scores`, the distribution of the head scores.

    Args:
        table: The heads.
        path: The heatmap's.
        title: Heading, such as the model's name.
        suffix: Behind each file's name.

    Returns:
        The paths written.

    Raises:
        ResultsError: They cannot be drawn.
    """
    from retrieval_heads.plots import head_heatmap, score_distribution

    heatmap, distribution = head_pictures(path, suffix)
    paths = head_heatmap(
        {name: estimate.mean for name, estimate in table.estimates.items()},
        heatmap,
        title=title,
        top=table.ranked(table.ranking)[:RINGED],
        marked_layers=marked_layers(table.layers),
        layer_labels=[str(layer.number) for layer in table.layers],
    )
    return paths + score_distribution(scored(table), distribution, threshold=RETRIEVAL_THRESHOLD, title=title)


def head_pictures(path: Path, suffix: str = "") -> tuple[Path, Path]:
    """What `draw_heads` draws: the heatmap and the distribution of the head scores."""
    return path.with_name(f"{path.stem}{suffix}{path.suffix}"), path.with_name(f"head_scores{suffix}.png")


def scored(table: HeadTable) -> list[list[float]]:
    """What every head is ranked by, in one row, `[1, heads]`: what stands beyond a layer's heads is left out."""
    mean = table.estimates[table.ranking].mean
    return [[float(mean[row, head]) for row, layer in enumerate(table.layers) for head in range(layer.heads)]]


def marked_layers(layers: Sequence[Layer]) -> dict[int, str]:
    """By row, what is said beside the axis: that a layer cannot be scored, sees a window, or is of another kind."""
    marked = {}
    kinds = {layer.kind for layer in layers if layer.heads}
    for row, layer in enumerate(layers):
        if not layer.heads:
            marked[row] = f"unscored {layer.kind}"
        elif layer.sliding_window is not None:
            marked[row] = "sliding window"
        elif len(kinds) > 1 and layer.kind != "attention":
            marked[row] = layer.kind
    return marked

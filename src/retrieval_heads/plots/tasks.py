"""Several models over programs or a phonebook: one line each, over what makes a question harder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from retrieval_heads.errors import ResultsError
from retrieval_heads.plots.cells import Scale, grid_figure
from retrieval_heads.plots.curves import curve, measured, number_axis
from retrieval_heads.plots.grid import Panel, Sample, measured_samples, panels
from retrieval_heads.plots.layout import Page, arrange, new_figure
from retrieval_heads.plots.saving import save
from retrieval_heads.plots.style import SCORES, counted, line_look, shorten, styled
from retrieval_heads.runs.place import DEPTH, in_order, shown
from retrieval_heads.runs.record import Record

_WIDTH, _HEIGHT = 4.2, 3.2
PROGRAMS = {
    "recall": "Recall",
    "state_tracking": "State tracking",
    "state_based_recall": "State-based recall",
}


@dataclass(frozen=True)
class _Line:
    """A panel: what of a task's records is drawn over which axis."""

    title: str
    axis: str
    label: str
    takes: Callable[[Record], bool]


def _is_of(kind: str) -> Callable[[Record], bool]:
    return lambda record: record.place.get("program") == kind


_LINES = {
    "program": (
        _Line(PROGRAMS["recall"], "variables", "Bits in the list", _is_of("recall")),
        _Line(PROGRAMS["state_tracking"], "steps", "Swaps, mean over variables", _is_of("state_tracking")),
        _Line(
            PROGRAMS["state_based_recall"],
            "steps",
            "Swaps, as many as bits",
            lambda record: (
                _is_of("state_based_recall")(record) and record.place.get("steps") == record.place.get("variables")
            ),
        ),
    ),
    "phonebook": (_Line("", "entries", "Entries of the phonebook", lambda record: True),),
}
_SWEEPS = {"program": ("program", "variables", "steps"), "phonebook": ("entries", DEPTH)}


def task_lines(
    runs: Mapping[str, Sequence[Record]], path: Path, *, colours: Sequence[str] = (), title: str = ""
) -> list[Path]:
    """Overlay the accuracy of several models: of programs one panel a kind, of a phonebook one over its entries.

    Args:
        runs: Records of each model by its name; all of programs or all of a phonebook, over one sweep.
        path: Where to write, with or without `.png` or `.svg`; both are written.
        colours: One for each run, as matplotlib reads them; left out, ours.
        title: Heading.

    Returns:
        The two paths written.

    Raises:
        ResultsError: The runs are of different tasks or sweeps, or hold nothing that is drawn.
    """
    return save(lines_figure(runs, colours=colours, title=title), path)


@styled()
def lines_figure(runs: Mapping[str, Sequence[Record]], *, colours: Sequence[str] = (), title: str = "") -> Figure:
    """Build the figure of `task_lines`."""
    task = _shared_task(runs)
    samples = {name: measured(name, records, None) for name, records in runs.items()}
    drawn = [(line, [[s for s in each if line.takes(s.record)] for each in samples.values()]) for line in _LINES[task]]
    drawn = [(line, members) for line, members in drawn if any(members)]
    if not drawn:
        raise ResultsError("the runs hold nothing that a line is drawn of")
    figure = new_figure()
    row = [figure.add_subplot() for _ in drawn]
    for axes, (line, members) in zip(row, drawn, strict=True):
        for index, each in enumerate(members):
            curve(axes, [(_on(line.axis, s), s.value) for s in each], index, len(runs), colours)
        number_axis(figure, axes, line.axis, sorted({_on(line.axis, s) for each in members for s in each}), _WIDTH)
        axes.set_xlabel(line.label + (" (log scale)" if axes.get_xscale() == "log" else ""))
        axes.set_title(line.title)
        axes.set_ylim(-0.03, 1.03)
        axes.grid(axis="y")
    row[0].set_ylabel("Accuracy")
    legend = [Line2D([], [], label=shorten(name, 60), **line_look(index, colours)) for index, name in enumerate(runs)]
    arrange(Page(figure, [row], (_WIDTH, _HEIGHT), title, "mean with its 95 % interval", legend))
    return figure


def program_heatmap(
    records: Sequence[Record], path: Path, *, title: str = "", limits: tuple[float, float] = (0.0, 1.0)
) -> list[Path]:
    """Draw the accuracy of programs, a panel for each kind: variables across, steps down, mean over seeds.

    Args:
        records: Of one run; the predecessor's as well.
        path: Where to write, with or without `.png` or `.svg`; both are written.
        title: Heading, such as the model's name.
        limits: Accuracy of the first and last colour.

    Returns:
        The two paths written.

    Raises:
        ResultsError: There is no record of a program, or the folder cannot be written.
    """
    return save(program_figure(records, title=title, limits=limits), path)


@styled()
def program_figure(records: Sequence[Record], *, title: str = "", limits: tuple[float, float] = (0.0, 1.0)) -> Figure:
    """Build the figure of `program_heatmap`."""
    programs = [record for record in records if record.task == "program"]
    if not programs:
        raise ResultsError("no record of a program is there")
    samples = measured_samples(programs, None)
    kinds = [kind for kind in PROGRAMS if any(_is_of(kind)(record) for record in programs)]
    subtitle = f"accuracy · {counted(len(programs), 'record')}"
    scale = Scale(SCORES, limits, "Accuracy")
    return grid_figure([_panel(kind, samples) for kind in kinds], scale, title=title or "Programs", subtitle=subtitle)


def _panel(kind: str, samples: Sequence[Sample]) -> Panel:
    """The panel of a kind, whatever the suite and the seed."""
    alike = {"seed": 0, "suite": "", "recipe": None}
    members = [replace(s, record=s.record.model_copy(update=alike)) for s in samples if _is_of(kind)(s.record)]
    (panel,), _ = panels(members)
    return replace(panel, label=PROGRAMS[kind])


def _shared_task(runs: Mapping[str, Sequence[Record]]) -> str:
    """The one task of all runs, over one sweep."""
    tasks = {name: "/".join(sorted({record.task or "needle" for record in records})) for name, records in runs.items()}
    if len(set(tasks.values())) > 1 or not set(tasks.values()) <= _LINES.keys():
        told = ", ".join(f"{name} is of {task}" for name, task in tasks.items())
        raise ResultsError(f"lines are drawn of runs that are all of {' or all of '.join(_LINES)}: {told}")
    task = next(iter(tasks.values()))
    for axis in _SWEEPS[task]:
        swept = {
            name: ", ".join(map(shown, in_order(record.place.get(axis) or 0 for record in records)))
            for name, records in runs.items()
        }
        if len(set(swept.values())) > 1:
            told = "; ".join(f"{name} has {values}" for name, values in swept.items())
            raise ResultsError(f"the runs are of different sweeps of {axis}: {told}")
    return task


def _on(axis: str, sample: Sample) -> float:
    value = sample.record.place.get(axis)
    assert isinstance(value, int | float)
    return value

"""`retrieval-heads visualize`: pictures and report from stored files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import tyro

from retrieval_heads.commands.history import VisualizeHistory
from retrieval_heads.commands.names import distinct
from retrieval_heads.commands.overlays import check_looks
from retrieval_heads.errors import ConfigError, ResultsError
from retrieval_heads.gates import load_baseline
from retrieval_heads.heads.groups import by_kv_head
from retrieval_heads.heads.table import HeadTable
from retrieval_heads.heads.top_heads import overlap
from retrieval_heads.report import StoredRun, load_run, write_report
from retrieval_heads.report.pictures import draw_heads, head_pictures, scored
from retrieval_heads.runs.record import Record
from retrieval_heads.runs.signature import refuse_foreign

_TOP = 10


@dataclass(frozen=True)
class VisualizeNiah:
    """Draw heatmap, profiles and report of NIAH results; several runs are overlaid, two are compared cell by cell.

    Example: retrieval-heads visualize niah --results reports/main/results.jsonl reports/latest/results.jsonl
    """

    results: tuple[Path, ...]
    """One or more results.jsonl (the predecessor's as well) or run folders."""
    labels: tuple[str, ...] | None = None
    """A name for each where several are overlaid; left out, its folder's."""
    colors: tuple[str, ...] | None = None
    """A colour for each, as matplotlib reads them."""
    output: Path = Path("heatmap.png")
    """The heatmap; .png and .svg are both written, and everything else beside it."""
    title: str = ""
    """Heading, such as the model's name."""
    metric: str | None = None
    """The score to draw; left out, the one that decides whether a cell passed."""
    vmin: float = 0.0
    """The score of the heatmap's first colour."""
    vmax: float = 1.0
    """The score of its last."""
    baseline: Path | None = None
    """An earlier run, its results or a saved baseline, for the report to compare with."""

    def run(self) -> None:
        """Draw, and print what was written."""
        from retrieval_heads.plots import difference_map, niah_heatmap, profiles

        _check_output(self.output)
        _check_limits(self.vmin, self.vmax)
        check_looks(self.labels, self.colors, len(self.results), len(self.results))
        runs = _named([(path, load_run(path)) for path in self.results])
        labels = dict(zip(runs, self.labels or runs, strict=True))
        records = {name: _cells(run, name) for name, run in runs.items()}
        targets = {name: self.output if len(runs) == 1 else _beside(self.output, name) for name in runs}
        folder, written = self.output.parent, list[Path]()
        curves, difference, page = (folder / name for name in ("profiles.png", "difference.png", "report.html"))
        _refuse_foreign(
            [*targets.values(), curves, *([difference] if len(runs) == 2 else [])], page if len(runs) <= 2 else None
        )
        for name, each in records.items():
            shown = self.title or (labels[name] if self.labels else _title(runs[name], name))
            written += niah_heatmap(each, targets[name], metric=self.metric, title=shown, limits=(self.vmin, self.vmax))
        named = {labels[name]: each for name, each in records.items()}
        overlaid = named if len(named) > 1 or self.labels else next(iter(named.values()))
        written += profiles(overlaid, curves, metric=self.metric, colours=self.colors or (), title=self.title)
        if len(runs) == 2:
            first, second = records
            written += difference_map(
                records[first],
                records[second],
                difference,
                metric=self.metric,
                title=self.title,
                names=(labels[first], labels[second]),
            )
        *earlier, last = runs.values()
        if len(runs) <= 2:
            before = load_baseline(self.baseline).records if self.baseline else earlier[0].records if earlier else ()
            written.append(write_report(replace(last, baseline=before), page))
        _tell(written)


@dataclass(frozen=True)
class VisualizeDetect:
    """Draw head heatmaps and score distributions, with a report of one run; the distributions of several are overlaid,
    and their best heads compared.

    Example: retrieval-heads visualize detect --results reports/latest/detected-agg.json
    """

    results: tuple[Path, ...]
    """One or more heads.json, detected.json, detected-agg.json (the predecessor's as well) or run folders."""
    labels: tuple[str, ...] | None = None
    """A name for each where several are overlaid; left out, its folder's."""
    colors: tuple[str, ...] | None = None
    """A colour for each suite's line, as matplotlib reads them."""
    output: Path = Path("detect_heatmap.png")
    """The heatmap; .png and .svg are both written, and everything else beside it; the page is `detect_report.html`."""
    title: str = ""
    """Heading, such as the model's name."""
    kv_heads: int | None = None
    """Draw KV heads, so many a layer, each with the greatest of its query heads by each score; the report has query
    heads."""

    def run(self) -> None:
        """Draw, and print what was written."""
        from retrieval_heads.plots import score_distribution

        _check_output(self.output)
        runs = _named([(path, load_run(path)) for path in self.results])
        check_looks(self.labels, self.colors, len(runs), sum(len(run.heads) for run in runs.values()))
        labels, tables = dict[str, str](), dict[str, HeadTable]()
        for (name, run), label in zip(runs.items(), self.labels or runs, strict=True):
            for suite, table in run.heads.items():
                key = name if len(run.heads) == 1 else f"{name}-{suite}"
                tables[key], labels[key] = table, label if len(run.heads) == 1 else f"{label}-{suite}"
        if not tables:
            raise ResultsError(f"{', '.join(map(str, self.results))}: no file of heads there")
        if self.kv_heads is not None:
            tables = {name: by_kv_head(table, self.kv_heads) for name, table in tables.items()}
        suffixes = {name: "" if len(tables) == 1 else f"-{name}" for name in tables}
        folder, written = self.output.parent, list[Path]()
        together, page = folder / "head_scores.png", folder / "detect_report.html"
        drawn = [path for suffix in suffixes.values() for path in head_pictures(self.output, suffix)]
        _refuse_foreign([*drawn, together], page if len(runs) == 1 else None)
        for name, table in tables.items():
            own = labels[name] if self.labels else str(table.facts.get("model") or name)
            title = self.title or own + (" · KV heads" if self.kv_heads else "")
            written += draw_heads(table, self.output, title, suffixes[name])
        if len(runs) == 1:
            written.append(write_report(next(iter(runs.values())), page))
        if len(tables) > 1:
            overlaid = {labels[name]: scored(table) for name, table in tables.items()}
            written += score_distribution(overlaid, together, colours=self.colors or (), title=self.title)
        for (first, one), (second, other) in combinations(tables.items(), 2):
            best = {name: table.top(table.ranking, _TOP) for name, table in ((first, one), (second, other))}
            shared = overlap(*best.values())
            told = "no head in common" if shared is None else f"{100 * shared:.0f} % of the top {_TOP} heads in common"
            notes = "".join(f"; {note}" for name, heads in best.items() if (note := heads.note(labels[name])))
            print(f"{labels[first]} and {labels[second]}: {told}{notes}")
        _tell(written)


@dataclass(frozen=True)
class VisualizeCodeEval:
    """Draw the accuracy of programs, a panel for each kind, variables by steps.

    Example: retrieval-heads visualize code-eval --results reports/latest/results.jsonl --title SmolLM2
    """

    results: Path
    """A results.jsonl (the predecessor's as well) or a run's folder."""
    output: Path = Path("code_eval.png")
    """The picture; .png and .svg are both written."""
    title: str = ""
    """Heading, such as the model's name."""
    vmin: float = 0.0
    """The accuracy of the first colour."""
    vmax: float = 1.0
    """That of the last."""

    def run(self) -> None:
        """Draw, and print what was written."""
        from retrieval_heads.plots import program_heatmap

        _check_output(self.output)
        _check_limits(self.vmin, self.vmax)
        run = load_run(self.results)
        _refuse_foreign([self.output], None)
        title = self.title or _title(run, run.name)
        _tell(program_heatmap(run.records, self.output, title=title, limits=(self.vmin, self.vmax)))


@dataclass(frozen=True)
class VisualizePhonebook:
    """Draw the accuracy of a phonebook, entries across and depth down; several runs are averaged.

    Example: retrieval-heads visualize phonebook --results reports/latest/results.jsonl --mode grid --depths 0 50 100
    """

    results: tuple[Path, ...]
    """One or more results.jsonl (the predecessor's as well) or run folders."""
    mode: Literal["normalized", "grid"] = "normalized"
    """`normalized`: a count of entries has as many cells as depths were asked; `grid`: depths are snapped to rows."""
    output: Path = Path("phonebook_heatmap.png")
    """The picture; .png and .svg are both written."""
    depths: tuple[float, ...] | None = None
    """The rows of `grid`, in percent; 0, 10, ... 100 where they are left out."""
    title: str = ""
    """Heading, such as the model's name."""
    vmin: float = 0.0
    """The accuracy of the first colour."""
    vmax: float = 1.0
    """That of the last."""

    def run(self) -> None:
        """Draw, and print what was written."""
        from retrieval_heads.plots import phonebook_heatmap

        _check_output(self.output)
        _check_limits(self.vmin, self.vmax)
        depths = self.depths
        if depths is not None and self.mode != "grid":
            raise ConfigError("--depths: they are the rows of --mode grid")
        if depths is not None and not (depths and all(0 <= depth <= 100 for depth in depths)):
            raise ConfigError("--depths: depths in percent are expected, from 0 to 100")
        if self.mode == "grid" and depths is None:
            depths = tuple(range(0, 101, 10))
        runs = [load_run(path) for path in self.results]
        _refuse_foreign([self.output], None)
        title = self.title or _title(runs[0], runs[0].name)
        records = [record for run in runs for record in run.records]
        _tell(phonebook_heatmap(records, self.output, depths=depths, title=title, limits=(self.vmin, self.vmax)))


@dataclass(frozen=True)
class VisualizeLines:
    """Overlay several models over programs, or over a phonebook, one line each.

    Example: retrieval-heads visualize lines --results one/results.jsonl two/results.jsonl --labels small large
    """

    results: tuple[Path, ...]
    """A results.jsonl (the predecessor's as well) or run folder for each model, all over one sweep."""
    labels: tuple[str, ...] | None = None
    """A name for each; left out, its folder's."""
    colors: tuple[str, ...] | None = None
    """A colour for each, as matplotlib reads them."""
    output: Path = Path("lines.png")
    """The picture; .png and .svg are both written."""
    title: str = ""
    """Heading."""

    def run(self) -> None:
        """Draw, and print what was written."""
        from retrieval_heads.plots import task_lines

        _check_output(self.output)
        check_looks(self.labels, self.colors, len(self.results), len(self.results))
        runs = _named([(path, load_run(path)) for path in self.results])
        names = self.labels or tuple(runs)
        _refuse_foreign([self.output], None)
        records = {name: run.records for name, run in zip(names, runs.values(), strict=True)}
        _tell(task_lines(records, self.output, colours=self.colors or (), title=self.title))


@dataclass(frozen=True)
class Visualize:
    """Draw pictures and report.html from stored results: `visualize niah`, `detect`, `code-eval`, `phonebook`, `lines`
    or `history`.

    Example: retrieval-heads visualize niah --results reports/latest/results.jsonl
    """


def visualize(arguments: Sequence[str], program: str) -> None:
    """Draw what the arguments name.

    Args:
        arguments: The command line behind `visualize`.
        program: What it was called as, for `--help`.

    Raises:
        ResultsError: A file cannot be read, or a picture not be drawn.
    """
    kinds: dict[str, Any] = {
        "niah": VisualizeNiah,
        "detect": VisualizeDetect,
        "code-eval": VisualizeCodeEval,
        "phonebook": VisualizePhonebook,
        "lines": VisualizeLines,
        "history": VisualizeHistory,
    }
    tyro.extras.subcommand_cli_from_dict(kinds, prog=program, args=list(arguments), description=Visualize.__doc__).run()


def _named(runs: Sequence[tuple[Path, StoredRun]]) -> dict[str, StoredRun]:
    """Each run by a short name of its own: its folder's, its file's where several lie in one, else with a number."""
    folders = [(path.resolve() if path.is_dir() else path.resolve().parent) for path, _ in runs]
    by_file = len(set(folders)) < len(runs)
    names = distinct(
        path.stem if by_file and not path.is_dir() else folder.name
        for (path, _), folder in zip(runs, folders, strict=True)
    )
    return dict(zip(names, (run for _, run in runs), strict=True))


def _cells(run: StoredRun, name: str) -> Sequence[Record]:
    """The records of needles that were asked for; those behind heads where there is nothing else."""
    niah = [record for record in run.records if record.kind == "niah"]
    if not run.records:
        raise ResultsError(f"{name}: no results.jsonl there")
    return niah or run.records


def _title(run: StoredRun, name: str) -> str:
    return Path(str(run.facts.get("model") or name)).name


def _check_output(output: Path) -> None:
    if output.name in ("", "..") or output.is_dir():
        raise ConfigError(f"--output {str(output)!r}: the name of a picture is expected, such as heatmap.png")


def _check_limits(low: float, high: float) -> None:
    if not low < high or not math.isfinite(high - low):
        raise ConfigError(f"--vmin {low:g} and --vmax {high:g}: two numbers are expected, the lower first")


def _refuse_foreign(pictures: Sequence[Path], page: Path | None) -> None:
    """See that nothing of somebody else's stands where pictures, and the page where there is one, go."""
    from retrieval_heads.plots.saving import picture_files

    files = [file for picture in pictures for file in picture_files(picture)]
    refuse_foreign([*files, *([page] if page else [])])


def _beside(output: Path, name: str) -> Path:
    return output.with_name(f"{output.stem}-{name}{output.suffix}")


def _tell(written: Sequence[Path]) -> None:
    for path in written:
        if path.suffix != ".svg":
            print(f"wrote {path}")

"""From a suite file to pytest items, one for each cell, and what an item does with its result."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import pytest

from pytest_retrieval_heads.config_file import ConfigFile
from pytest_retrieval_heads.failure import as_failure
from pytest_retrieval_heads.plan import SelectedCell
from pytest_retrieval_heads.user_hooks import AdditionError, with_additions
from retrieval_heads.engine.client import EngineDied
from retrieval_heads.errors import RetrievalHeadsError, printable
from retrieval_heads.runs.place import Value, shown
from retrieval_heads.runs.record import Record, Span
from retrieval_heads.suites.settings import Settings
from retrieval_heads.suites.suite import Suite
from retrieval_heads.tasks.task import Cell


class Asker(Protocol):
    """What suites and their items need of the session's run."""

    @property
    def file(self) -> ConfigFile:
        """The session's config."""

    @property
    def log(self) -> str:
        """Where the engine writes, for failure texts."""

    def check(self, suite: Suite) -> None:
        """See that the engine takes what a suite says of its answers."""

    def has_collected(self, suite: Suite, node: str, items: Sequence[pytest.Item]) -> None:
        """Remember what a suite asks before any of it is deselected."""

    def see_model(self, settings: Settings) -> None:
        """See that there is a model to ask."""

    def record(self, item: CellItem) -> Record:
        """Wait for a cell's result, scored and judged."""

    def verdict(self, suite: Suite) -> str:
        """What decides the exit code for a suite."""


class LowScore(Exception):
    """A cell whose answer did not retrieve the needle."""


class CellFailed(Exception):
    """A cell that could not be asked or scored."""


class SuiteFile(pytest.File):
    """A suite's YAML file; one that the config stands in place of has no items."""

    def __init__(self, *, run: Asker, is_replaced: bool, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._run = run
        self._is_replaced = is_replaced

    def collect(self) -> Iterator[CellItem | SuiteOfRun]:
        """One item for each cell, in the suite's order; of a run's `config.yaml` a collector for each of its suites.

        Raises:
            CollectError: The suite cannot be used; one sentence for each mistake.
        """
        if self._is_replaced:
            return
        try:
            suites = self._run.file.suites_in(self.path)
            for suite in suites.values():
                self._run.check(suite)
        except RetrievalHeadsError as error:
            raise self.CollectError(str(error)) from None
        for name, suite in suites.items():
            if name:
                yield SuiteOfRun.from_parent(self, name=name, run=self._run, suite=suite)
            else:
                yield from _items(self, self._run, suite)


class SuiteOfRun(pytest.Collector):
    """One of the suites that the `config.yaml` of a run of several holds."""

    def __init__(self, *, run: Asker, suite: Suite, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._run = run
        self._suite = suite

    def collect(self) -> list[CellItem]:
        """One item for each cell."""
        return _items(self, self._run, self._suite)


def _items(parent: pytest.Collector, run: Asker, suite: Suite) -> list[CellItem]:
    items = []
    for cell in suite.cells:
        name = f"{suite.settings.kind}[{cell.name}]"
        # The id is given, not derived: pytest 9.2's --lf does not find derived ids with a bracket in them.
        node = f"{parent.nodeid}::{name}"
        items.append(CellItem.from_parent(parent, name=name, nodeid=node, run=run, suite=suite, cell=cell))
    run.has_collected(suite, parent.nodeid, items)
    return items


class CellItem(pytest.Item):
    """One question to the engine."""

    def __init__(self, *, run: Asker, suite: Suite, cell: Cell, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._run = run
        self.suite = suite
        self.cell = cell
        self.record: Record | None = None
        self._failure: Exception | None = None
        mark = getattr(pytest.mark, suite.settings.kind)
        place = cell.place
        more = {"arm": place.arm} if place.arm else {}
        if suite.setting:
            more["setting"] = suite.setting
        axes = {axis: _plain(value) for axis, value in place.axes}
        self.add_marker(mark(**axes, seed=place.seed, **more))

    @property
    def selected(self) -> SelectedCell:
        """This cell, without pytest."""
        return SelectedCell(self.suite, self.cell, self.nodeid.partition(f"::{self.name}")[0])

    def setup(self) -> None:
        """See that there is a model to ask.

        Raises:
            NoModel: There is none; skipped where the ini file says `rh_no_model = skip`.
        """
        self._run.see_model(self.suite.settings)

    @property
    def own_seconds(self) -> float:
        """What the cell took of the engine, the others beside it and its waiting left out, as far as that is seen."""
        if self.record is None:
            return 0.0
        own = self.record.engine_seconds
        return (self.record.seconds or 0.0) if own is None else own

    def wait(self) -> None:
        """Wait for the cell's result, and score it; what goes wrong is told when the item runs."""
        try:
            self.record = self._run.record(self)
        except Exception as error:
            self._failure = error

    def runtest(self) -> None:
        """Judge the cell by its result, which was waited for.

        Raises:
            LowScore: The answer did not retrieve the needle.
            CellFailed: The cell could not be asked or scored.
            AdditionError: A hook added to the record what it cannot hold.
            EngineDied: The engine is gone.
        """
        if self._failure is not None:
            raise self._failure
        record = self.record
        assert record is not None, "pytest_runtest_protocol waits for it"
        self.user_properties += properties(record, self.suite.settings.model.model)
        self.record = record = with_additions(record, self)
        if record.status == "spared":
            self.user_properties.append(("spared", record.reason))
        if record.status == "skipped":
            pytest.skip(printable(record.reason))
        if record.status == "error":
            raise CellFailed(printable(record.reason))
        if record.status == "low":
            if self._run.verdict(self.suite) != "cell":
                pytest.xfail(printable(record.reason))
            raise LowScore(printable(record.reason))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """About ten lines on a cell that failed, or scored low and is not what decides; none of them a traceback."""
        if isinstance(excinfo.value, LowScore | pytest.xfail.Exception) and self.record is not None:
            return self._told(f"{describe_low(self.record)}\n    engine    {self._run.log}")
        if isinstance(excinfo.value, CellFailed | AdditionError):
            return self._told(f"{excinfo.value}\n\n{self._where()}")
        if isinstance(excinfo.value, EngineDied):
            return self._told(str(excinfo.value))
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int, str]:
        """Where editors jump to, and the headline of a failure."""
        return self.path, 0, f"{self.suite.name}::{self.name}"

    def _told(self, text: str) -> Any:
        return as_failure(text, self.path, is_line=self.config.getoption("tbstyle", "auto") == "line")

    def _where(self) -> str:
        return f"    suite     {self.suite.path}\n    engine    {self._run.log}"


def selected_cells(items: Iterable[pytest.Item]) -> list[SelectedCell]:
    """The cells among a session's selected items."""
    return [item.selected for item in items if isinstance(item, CellItem)]


def properties(record: Record, model: str | None) -> list[tuple[str, object]]:
    """What JUnit XML says of a cell: scores, the one that decides first, where it stands, and what it took."""
    scores = {record.metric: record.scores.get(record.metric)} | dict(record.scores)
    place = record.place
    told = {
        **scores,
        **dict(place.axes),
        "seed": place.seed,
        "arm": place.arm or None,
        "setting": record.setting,
        "model": model,
        "prompt_tokens": record.prompt_tokens,
        "cached_tokens": record.cached_tokens,
        "answer_tokens": len(record.token_ids) or None,
        "engine_seconds": record.engine_seconds,
        "queued_seconds": record.queued_seconds,
    }
    return [(name, value) for name, value in told.items() if value is not None]


def _plain(value: Value) -> Value:
    """A value as a user types it with `-m`: `depth=50` and not 50.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def describe_low(record: Record) -> str:
    """What a user wants to know of an answer that did not retrieve its needle."""
    is_needle = record.task is None
    lines = [
        f"    question  {record.question if is_needle else _shown(record.question)}",
        f"    expected  {' / '.join((record.reference, *record.alternatives))}",
        f"    answer    {_shown(record.text)} ({record.finish_reason} after {len(record.token_ids)} tokens)",
        f"    score     {_scores(record)}",
    ]
    if record.thoughts is not None:
        lines.insert(2, f"    thoughts  {_shown(record.thoughts)}")
    if record.insertions is None:
        lines.append(f"    {'needle' if is_needle else 'place '}    {', '.join(_place(record))}")
    for each in record.insertions or ():
        where = ", ".join([*_tokens(record, each.span), _depth(each.achieved_depth, each.depth)])
        lines.append(f"    {each.role:<10}{each.counted or each.text}, {where}")
    return "\n".join([record.reason, "", *lines])


def _scores(record: Record) -> str:
    decides = f"{record.metric} {record.scores[record.metric]:.3f}, passes above {record.threshold:g}"
    if record.rougeL is None or "substring" not in record.scores:
        return decides
    return f"{decides}; ROUGE-L {record.rougeL:.3f}, substring {record.scores['substring']:g}"


def _place(record: Record) -> Iterator[str]:
    yield from _tokens(record, record.needle_span)
    if record.task is not None:
        yield from (f"{axis} {shown(value)}" for axis, value in record.place.axes)
    elif record.achieved_depth is not None:
        yield _depth(record.achieved_depth, record.document_depth)


def _tokens(record: Record, span: Span | None) -> list[str]:
    return [] if span is None else [f"tokens {span[0]}–{span[1]} of {record.prompt_tokens}"]


def _depth(achieved: float, asked: float) -> str:
    return f"depth {achieved:.1f} % (asked {asked:g} %)"


def _shown(text: str) -> str:
    said = " ".join(text.split())
    return repr(said if len(said) <= 300 else f"{said[:300]}…")

"""What every process that collects does: read suites, submit the selected cells, ask, score and judge.

That is the plain pytest process, and under xdist each worker: equal clients of the one engine.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_retrieval_heads import reporting
from pytest_retrieval_heads.collect import CellItem, SuiteFile, selected_cells
from pytest_retrieval_heads.config_file import ConfigFile
from pytest_retrieval_heads.failure import NO_MODEL, NoModel
from pytest_retrieval_heads.host import COLLECTED, Host
from pytest_retrieval_heads.last_failed import LastFailed
from pytest_retrieval_heads.options import Options
from pytest_retrieval_heads.plan import Plan, SelectedCell, awaited, cells_of, suites_of, unfit
from pytest_retrieval_heads.recording import record_of
from pytest_retrieval_heads.sampling import Choice, Sampling, bisected, until_decided, until_stable
from retrieval_heads.engine.backends.backend import check_suite
from retrieval_heads.engine.client import Address, EngineClient, EngineDied
from retrieval_heads.engine.results import Unanswered
from retrieval_heads.errors import EngineError, RetrievalHeadsError
from retrieval_heads.gates.expression import EffectiveLength, parse_gate
from retrieval_heads.hub import length_limit
from retrieval_heads.matrix.sequential import drawn
from retrieval_heads.matrix.settings import AGAIN, REFERENCE
from retrieval_heads.runs.record import Record
from retrieval_heads.scoring import judge
from retrieval_heads.suites.settings import Settings
from retrieval_heads.suites.suite import Suite

RUN: pytest.StashKey[Run] = pytest.StashKey()


class Run:
    """This session's run, and its hooks."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._options = Options.of(config)
        self.file = ConfigFile(self._options)
        self._collected: dict[str, Suite] = {}
        self._last_failed = LastFailed(config)
        self._samplings: dict[tuple[str, str], Sampling] = {}
        """Of suites that ask no more cells than it takes, by the setting of a matrix and the suite's id."""
        self._limit: int | None = None
        """What the model takes, where no selected cell fits and so none is asked."""
        self.host: Host | None = None
        if hasattr(config, "workerinput"):
            address = Address.of_json(config.workerinput["rh"])
        else:
            self.host = Host(config, self._options, self.settings, self.file)
            address = self.host.address
        self._plan_file = Path(address.path).with_name("plan.json")
        self.client = EngineClient(address)
        self.file.be_collected(config)

    @property
    def settings(self) -> Settings:
        """The settings of config and overrides, without any suite's."""
        return self.file.settings

    @property
    def log(self) -> str:
        """Where the engine writes, for failure texts."""
        return self.host.log if self.host else "engine.log in the run's folder"

    def collect_file(self, parent: pytest.Collector, path: Path) -> SuiteFile:
        """A suite file's collector."""
        collector: SuiteFile = SuiteFile.from_parent(parent, path=path, run=self, is_replaced=self.file.replaces(path))
        return collector

    def check(self, suite: Suite) -> None:
        """See that the backend can measure what a suite asks for, and takes what it says of its answers.

        Raises:
            EngineError: It does not.
        """
        if not self._needs_model:
            return
        try:
            backend = check_suite(suite)
            if not suite.settings.from_results:
                backend.check_sampling(suite.settings.generation.model_dump())
        except RetrievalHeadsError as error:
            raise EngineError(f"{suite.path}: {error}") from None

    def has_collected(self, suite: Suite, node: str, items: Sequence[pytest.Item]) -> None:
        """Remember what a suite asks before any of it is deselected."""
        self._collected[suite.id] = suite
        if self.host is not None:
            self.host.has_collected()
        self._last_failed.select_whole(node, items)

    def engine(self) -> EngineClient:
        """The shared engine, for whoever asks it; started now if no selected test's arguments told that it is needed.

        Raises:
            NoModel: There is none to start it with.
            EngineDied: It did not start, or is gone.
            EngineError: It was not started, and a worker cannot start it.
        """
        if self.host is None:
            if not self._plan_file.exists():
                self.see_model(self.settings)
                by_name = "no engine was started for this session; under xdist a test names rh_engine in its arguments"
                raise EngineError(by_name)
            self.client.connect()
            return self.client
        if not self.host.is_prepared:
            self.see_model(self.settings)
            self.host.prepare(Plan.for_all([], [], self.settings))
        self.host.start()
        if self.host.failure is not None:
            raise EngineDied(self.host.failure.line)
        return self.client

    def see_model(self, settings: Settings) -> None:
        """See that there is a model to ask, where one is asked.

        Raises:
            NoModel: There is none.
            pytest.skip.Exception: There is none, and the ini file says `rh_no_model = skip`.
        """
        if self._has_model(settings):
            return
        # A run that is to be compared or kept is never green because nothing ran.
        if self._options.no_model == "skip" and not self._options.is_compared:
            pytest.skip(NO_MODEL)
        raise NoModel

    def verdict(self, suite: Suite) -> str:
        """What fails a run: `--rh-verdict`, else the suite's own, else its gates where it has some, else each cell."""
        return self._options.verdict_of(suite.settings)

    def record(self, item: CellItem) -> Record:
        """Wait for a cell's result and score it.

        Raises:
            EngineDied: The engine is gone, or did not start.
        """
        if self._limit is not None:
            reason = unfit(item.suite, item.cell, self._limit)
            return record_of(item.suite, item.cell, Unanswered("skipped", reason or ""))
        sampling = self._samplings.get((item.suite.setting, item.suite.id))
        if sampling is not None and sampling.is_spared(item.selected):
            return record_of(item.suite, item.cell, Unanswered("spared", sampling.reason))
        return self._answered(item.selected)

    def _answered(self, asked: SelectedCell) -> Record:
        """The record of a cell that was submitted, its answer scored."""
        try:
            result = self.client.result(asked.key)
        except EngineDied:
            raise
        except RetrievalHeadsError as error:
            result = Unanswered("error", str(error))
        return record_of(asked.suite, asked.cell, result)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """A matrix that is asked until its gates are certain goes setting by setting, however others order them: of its
        reference every cell is known before another setting is decided.
        """
        matrix = self.file.matrix
        if matrix is None or matrix.until is None:
            return
        places = [at for at, item in enumerate(items) if isinstance(item, CellItem) and item.suite.setting]
        order = list(matrix.settings)
        cells = sorted((items[at] for at in places), key=lambda item: order.index(item.suite.setting))  # type: ignore[attr-defined]
        for at, item in zip(places, cells, strict=True):
            items[at] = item

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """A worker leaves its plan to the controller, before xdist tells it that collection is done.

        Where the folder is gone the session was refused by another worker's plan, and is over.
        """
        if self.host is not None or not self._is_to_run or not self._plan_file.parent.exists():
            return
        if plan := self._plan(session.items):
            plan.save(self._plan_file)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Generator[None, object, object]:
        """Start the engine and hand it every selected cell; outside of any item's time."""
        stopped = session.testsfailed and not session.config.option.continue_on_collection_errors
        if self._is_to_run and not stopped and (plan := self._plan(session.items)):
            selected = selected_cells(session.items)
            suites = [suite for suite in suites_of(selected) if suite.id in plan.suites]
            if suites:
                # While the engine starts, nobody waits for these imports; later they would take its cores from it.
                threading.Thread(target=_load_words, args=[suites]).start()
            if self.host:
                self.host.prepare(plan)
            self._limit = length_limit(plan.model) if plan.misfit else None
            if plan.misfit:
                suites = []
            with suppress(EngineDied):  # each cell will say so
                # What finds heads goes before what masks them: an engine waits for no cell that it was not given.
                for suite in sorted(suites, key=lambda suite: awaited(suite) is not None):
                    self._begin(suite, cells_of(suite, selected), selected, plan)
            for sampling in self._samplings.values():
                sampling.go_on()
        return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Wait for a cell's result before it begins for pytest, and for plugins that limit how long a test may take.

        All cells are asked at once: the first would else have everybody's time.
        """
        if isinstance(item, CellItem) and self._is_to_run and self._has_model(item.suite.settings):
            item.wait()
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Put the record on the report, as plain builtins: it crosses from worker to controller."""
        report = yield
        reporting.complete(report, item, call)
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A cell that fails by itself is asked again for itself."""
        if report.failed:
            self._last_failed.failed(report.nodeid)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        """Before pytest writes its set of what failed last."""
        self._last_failed.restore()
        if self.host is None:
            self._config.workeroutput[COLLECTED] = len(self._collected)  # type: ignore[attr-defined]

    def pytest_unconfigure(self) -> None:
        """Hang up."""
        self.client.close()

    def _has_model(self, settings: Settings) -> bool:
        return settings.model.model is not None or not self._needs_model

    @property
    def _needs_model(self) -> bool:
        return not self._options.rescore

    @property
    def _is_to_run(self) -> bool:
        """Whether tests are run at all, and not only collected or shown."""
        option = self._config.option
        return not (option.collectonly or option.setuponly or option.setupplan)

    def _plan(self, items: Sequence[pytest.Item]) -> Plan | None:
        plan = Plan.of(
            selected_cells(items),
            self.settings,
            is_engine_asked=any("rh_engine" in getattr(item, "fixturenames", ()) for item in items),
            needs_model=self._needs_model,
        )
        collected = self._collected.values()
        # For a baseline alone.
        beside = self.file.suites_beside(collected) if self._options.is_compared else ()
        return plan and plan.before_deselection(collected, beside)

    def _begin(self, suite: Suite, cells: Sequence[SelectedCell], selected: Sequence[SelectedCell], plan: Plan) -> None:
        """Submit a suite's cells; of one that asks no more than it takes, the first of them."""
        choice = None if self._options.rescore else self._choice(suite, cells, selected, plan)
        if choice is None:  # stored answers were asked already, or spared
            self._submit(suite, cells, selected)
            return

        def submit(some: Sequence[SelectedCell], are_more_to_come: bool) -> None:
            self._submit(suite, some, selected, are_more_to_come=are_more_to_come)

        sampling = Sampling(choice, submit, self._answered)
        self._samplings[suite.setting, suite.id] = sampling
        sampling.begin()

    def _choice(
        self, suite: Suite, cells: Sequence[SelectedCell], selected: Sequence[SelectedCell], plan: Plan
    ) -> Choice | None:
        """Which of a suite's cells are asked; `None` where all are."""
        if (samples := suite.settings.sweep.samples) is not None:
            if samples.until_stable is not None:
                return until_stable(samples.until_stable, cells)
            measures = [parse_gate(gate).measure for gate in suite.settings.gates]
            return bisected([one for one in measures if isinstance(one, EffectiveLength)], cells)
        matrix = self.file.matrix
        if matrix is None or matrix.until is None or not (gates := matrix.deciding(suite.setting)):
            return None
        # Gates are judged of whole suites alone.
        if REFERENCE not in plan.settings or not all(map(plan.is_whole, plan.suites)):
            return None
        name = suite.id.removesuffix(f"@{suite.setting}")
        reference = {one.cell.id: one for one in selected if one.suite.setting == REFERENCE and one.suite.id == name}
        own = {one.cell.id: one for one in cells}
        in_order = [own[cell] for cell in drawn(own, matrix.until.seed)]
        return until_decided(gates, in_order, lambda one: self._answered(reference[one.cell.id]))

    def _submit(
        self,
        suite: Suite,
        cells: Sequence[SelectedCell],
        selected: Sequence[SelectedCell],
        *,
        are_more_to_come: bool = False,
    ) -> None:
        question = suite.question
        if (name := awaited(suite)) and question.ablate is not None:
            awaits = tuple(one.key for one in selected if one.suite.id == name)
            question = replace(question, ablate=replace(question.ablate, awaits=awaits))
        given = {one.key: one.cell for one in cells}
        if suite.setting == AGAIN:  # in another order: what that changes is noise as well
            given = dict(reversed(given.items()))
        self.client.submit(question, given, are_more_to_come=are_more_to_come)


def _load_words(suites: Sequence[Suite]) -> None:
    """Read the dictionaries that answers will be judged by."""
    with suppress(Exception):  # the first answer that is judged tries again, and says what is wrong
        for suite in suites:
            for needle in suite.needles[:1]:
                judge("", needle, suite.settings.scoring)

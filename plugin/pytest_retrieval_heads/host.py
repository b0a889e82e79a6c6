"""What one process of a session does for all: the order of launching, writing, deciding and showing.

That is the plain pytest process, or under xdist the controller, which itself collects and asks nothing.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pytest

from pytest_retrieval_heads.config_file import ConfigFile
from pytest_retrieval_heads.console import Console
from pytest_retrieval_heads.decision import Decision
from pytest_retrieval_heads.earlier_run import own_folder, stored_answers
from pytest_retrieval_heads.failure import EngineFailure, as_failure
from pytest_retrieval_heads.gate_reports import report_gates
from pytest_retrieval_heads.judging import Judge
from pytest_retrieval_heads.options import Options, flag
from pytest_retrieval_heads.plan import Plan
from pytest_retrieval_heads.presentation import Presentation
from pytest_retrieval_heads.progress import Progress
from pytest_retrieval_heads.provenance import check_answers
from pytest_retrieval_heads.run_files import RunFiles
from pytest_retrieval_heads.shared_engine import SharedEngine
from pytest_retrieval_heads.termination import Termination
from pytest_retrieval_heads.user_hooks import call_hook
from retrieval_heads.engine.client import Address, EngineClient, EngineProcess, said_now
from retrieval_heads.engine.warm import SessionEngine
from retrieval_heads.errors import ConfigError, RetrievalHeadsError
from retrieval_heads.redaction import give_variables_back, take_variable, without_secrets
from retrieval_heads.runs.record import Record
from retrieval_heads.suites.settings import Settings

COLLECTED = "rh_collected"
"""What a worker says to the controller under this name: how many suites it collected."""


class Host:
    """Owns the session's engine and files, and has the hooks that only their owner has.

    Args:
        config: pytest's.
        options: The session's.
        settings: Those of config and options, without any suite's.
        file: The session's config file.
    """

    def __init__(self, config: pytest.Config, options: Options, settings: Settings, file: ConfigFile) -> None:
        self._config = config
        self._options = options
        self._settings = settings
        self._file = file
        self._termination = Termination()
        self._console = Console(config)
        self._files = RunFiles(options, self._console)
        self._engine = SharedEngine(self._process(), options, self._files, self._console)
        self._progress = Progress(config, self._console, partial(said_now, self.address, EngineClient.counters))
        self._plan: Plan | None = None
        self._decision: Decision | None = None
        self._presentation: Presentation | None = None
        self._has_broken_suite = False
        self._has_suites = False
        """Whether any suite was collected."""
        self._failed_hooks = 0
        if isinstance(name := self._settings.engine.options.get("api_key_env"), str):
            take_variable(name)  # before workers are made, which would inherit it
        config.pluginmanager.register(self, "rh-host")

    def _process(self) -> EngineProcess:
        """The engine to come, or the stored answers of the run that is scored again."""
        if self._options.run and not (self._options.rescore or self._options.resume):
            raise pytest.UsageError("rh: --rh-run names the run for --rh-resume or --rh-rescore: give one of them")
        if self._options.matrix and self._options.engine == "keep":
            raise pytest.UsageError("rh: --rh-engine keep is for one engine, and --rh-matrix has several take turns")
        if not self._options.rescore:
            return SessionEngine()
        answers, facts = stored_answers(self._options, self._settings.output_dir)
        self._files.facts = dict(facts)
        return answers

    @property
    def address(self) -> Address:
        """Where the engine listens, or will."""
        return self._engine.process.address

    @property
    def failure(self) -> EngineFailure | None:
        """Why there is no engine, or none any more."""
        return self._engine.failure

    @property
    def log(self) -> str:
        """The engine's log, as a user would type its path."""
        return self._console.path(self._engine.log) if self.is_prepared else "no engine.log yet"

    @property
    def is_prepared(self) -> bool:
        """Whether it is known what the session asks."""
        return self._plan is not None

    def prepare(self, plan: Plan) -> None:
        """Make the run's folder, launch the engine and wait until the model is loaded.

        Raises:
            pytest.exit.Exception: A usage error; one line, exit status 4.
        """
        if plan.error:
            self._exit(plan.error, pytest.ExitCode.USAGE_ERROR)
        try:
            judge = Judge.of(plan, self._options, self._config.args, own_folder(self._options, plan.output_dir))
            if not self._options.rescore:
                check_answers(plan)
            self._files.open(plan)
        except RetrievalHeadsError as error:
            self._exit(str(error), pytest.ExitCode.USAGE_ERROR)
        self._engine.place_log(self._config)
        self._plan = plan
        if self._files.folder is not None:
            self._decision = Decision(plan, judge, self._files, self._options, self.address, self._file.matrix)
            self._presentation = Presentation(plan, self._files, self._decision, self._options, self._console)
        if self._options.rescore:
            self._engine.serve_stored()
            folder = self._files.folder
            where = f"; scoring the answers of {self._console.path(folder.path)}" if folder else ""
            self._console.say(f"{plan.total} cells of {', '.join(plan.suites)}{where}")
        elif plan.misfit:
            self._console.say(f"{plan.misfit}; no engine is started")
        else:
            # Of a run that is gone on with it is not known which answers are there.
            self._progress.begin(plan.total, 0 if self._options.resume else plan.prompt_tokens)
            self.start()

    def start(self) -> None:
        """Launch the engine, where that was not done or tried, and wait until the model is loaded."""
        if self._plan is not None and (info := self._engine.start(self._plan)) is not None:
            self._call("pytest_rh_engine_ready", info=info)

    def pytest_report_header(self) -> str | None:
        """One line, when a config is in play."""
        path = self._options.config_file
        model = self._settings.model.model or "(named by the suite)"
        return without_secrets(f"rh: {path}, model {model}") if path else None

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Tell a worker where the engine will listen."""
        node.workerinput["rh"] = self.address.to_json()

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Hear from a worker whether it collected a suite."""
        self._has_suites |= bool(getattr(node, "workeroutput", {}).get(COLLECTED))

    def pytest_enter_pdb(self) -> None:
        """The terminal is the debugger's."""
        self._progress.end()

    def has_collected(self) -> None:
        """A suite was collected, whatever of it is selected."""
        self._has_suites = True

    @pytest.hookimpl(tryfirst=True)
    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Remember a suite that could not be read: workers would go on with the others."""
        self._has_broken_suite |= report.failed

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: Any) -> None:
        """The first worker has collected: launch what its plan needs."""
        plan_file = Path(self.address.path).with_name("plan.json")
        if self.is_prepared or not plan_file.exists():
            return
        if self._has_broken_suite and not self._config.option.continue_on_collection_errors:
            self._exit("a suite cannot be used; nothing was started", pytest.ExitCode.INTERRUPTED)
        try:
            plan = Plan.load(plan_file, self._file.over_suites)
            sections = [plan.engine, *(setting.engine for setting in plan.settings.values())]
            if any(os.environ.get(str(section.get("api_key_env"))) for section in sections):
                raise ConfigError(
                    "engine.api_key_env: under xdist it is named by the config or --rh-set: workers inherit the key "
                    "of one that only a suite names"
                )
        except ConfigError as error:
            self._exit(str(error), pytest.ExitCode.USAGE_ERROR)
        self.prepare(plan)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Write a cell's record as its report arrives; say of the first that found no engine all there is to say."""
        if reason := getattr(report, "rh_died", None):
            report.longrepr = as_failure(self._engine.died(reason).tell(), report.fspath)
        content = getattr(report, "rh", None)
        if content is not None and self._files.folder is not None:
            record = Record.model_validate(content)
            if self._files.is_new_engine(record):
                self._files.settings_are_known(self._engine.settings())
            self._files.write_record(record)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Generator[None, object, object]:
        """Once every cell is done: the heads, and what was expected of them, while the exit status can still change."""
        result = yield
        self._progress.end()
        self._decide(session)
        self._refuse_nothing(session)
        session.testsfailed += self._failed_hooks
        return result

    def _decide(self, session: pytest.Session) -> None:
        """Heads, gates and baseline; once, whether the loop came to its end or was cut short."""
        decision = self._decision
        if decision is None or decision.is_made:
            return
        if self._plan is not None and self._plan.settings and not self._options.rescore:
            self._files.settings_are_known(self._engine.settings())
        decision.make()
        if decision.is_judged:
            session.testscollected += len(decision.verdict.outcomes)  # so that progress ends at 100 %
            report_gates(self._config, decision.verdict, decision.judge, self._options, self._settings)
            records = tuple(self._files.records)
            self._call("pytest_rh_verdict", verdict=decision.verdict, records=records, folder=self._files.path)
        session.testsfailed += decision.failures

    def _refuse_nothing(self, session: pytest.Session) -> None:
        """A comparison of no cell is no comparison, whatever else the session ran."""
        name = "baseline" if self._options.baseline else "save_baseline"
        if not self._options.is_compared or (self._plan and self._plan.total) or session.config.option.collectonly:
            return
        self._files.complaints.append(f"{flag(name)}: no cell of any suite is selected: nothing was compared")
        typed = [argument.partition("=")[0] for argument in self._options.arguments]
        # In addopts it stands for every session of the project, and one of other tests alone has nothing to compare.
        if self._has_suites or flag(name) in typed:
            session.testsfailed += 1

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Close the books, draw what was asked for."""
        is_interrupted = exitstatus == pytest.ExitCode.INTERRUPTED
        self._progress.end()
        if is_interrupted:
            self._engine.process.end()  # before xdist waits for workers that wait for it
        if self._plan is None or self._presentation is None:
            return
        self._decide(session)
        unwritten = self._files.unwritten
        self._files.settle()
        if failure := self._engine.process.log_failure:
            self._files.complaints.append(str(failure))
        # After Ctrl-C nobody waits for an engine that may be stuck.
        counters = {} if is_interrupted or self._options.rescore else self._engine.counters()
        self._files.finish(self._plan, int(exitstatus), counters)
        if self._options.report:
            self._presentation.draw()
        self._presentation.summarize_for_github()
        if self._files.unwritten > unwritten and exitstatus in (
            pytest.ExitCode.OK,
            pytest.ExitCode.NO_TESTS_COLLECTED,
        ):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """The grid of scores and the paths of what was written."""
        if self._presentation is not None:
            self._presentation.summarize(terminalreporter, self._engine.log if self.failure else None)
            return
        for complaint in self._files.complaints:
            terminalreporter.write_line(f"rh: {complaint}", yellow=True)

    def pytest_unconfigure(self) -> None:
        """Nothing survives the session."""
        self._progress.end()
        self._engine.process.end()
        if self._files.folder is not None:
            self._files.folder.close()
        give_variables_back()
        self._termination.restore()

    def _call(self, name: str, **arguments: object) -> None:
        """Call a hook of users; one that raises fails the session, and the run goes on."""
        if complaint := call_hook(self._config, name, **arguments):
            self._files.complaints.append(complaint)
            self._failed_hooks += 1

    def _exit(self, line: str, status: pytest.ExitCode) -> NoReturn:
        """End the session; the engine first, so that no worker goes on waiting for it."""
        self._progress.end()
        self._engine.process.end()
        pytest.exit(without_secrets(f"rh: {line}"), returncode=status)

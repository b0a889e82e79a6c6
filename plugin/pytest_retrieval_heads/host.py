"""What one process of a session does for all: launch the engine, write the run's files, tell the user.

That is the plain pytest process, or under xdist the controller, which itself collects and asks nothing.
"""

from __future__ import annotations

import itertools
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pytest

from pytest_retrieval_heads import ablating, detection, terminal
from pytest_retrieval_heads.failure import EngineFailure, as_failure
from pytest_retrieval_heads.judging import Judge, report_of
from pytest_retrieval_heads.last_failed import LastFailed
from pytest_retrieval_heads.options import config_file, verdict_of
from pytest_retrieval_heads.plan import Plan
from pytest_retrieval_heads.provenance import check_answers, check_rescored
from pytest_retrieval_heads.termination import Termination
from retrieval_heads import __version__
from retrieval_heads.ablation.controls import Control
from retrieval_heads.engine.client import EngineClient, EngineDied, EngineProcess
from retrieval_heads.engine.stored_answers import StoredAnswers
from retrieval_heads.errors import (
    ConfigError,
    EngineError,
    FileError,
    ResultsError,
    RetrievalHeadsError,
    UnreadableFile,
    printable,
)
from retrieval_heads.gates import Verdict, read_gates, to_json, to_markdown, with_kept
from retrieval_heads.heads.detection import Head
from retrieval_heads.reading import path_of
from retrieval_heads.redaction import without_secrets, without_values
from retrieval_heads.runs.folder import RunFolder, read_facts
from retrieval_heads.runs.identity import Identities, asked_again_line, why_asked_again
from retrieval_heads.runs.record import Record, read_records
from retrieval_heads.suites.settings import Settings

COLLECTED = "rh_collected"
"""What a worker says to the controller under this name: how many suites it collected."""
_TIME = "%Y-%m-%dT%H:%M:%S%z"


class Host:
    """The session's one engine and one folder, and the hooks that only their owner has.

    Args:
        config: pytest's.
        settings: Those of config and options, without any suite's.
        over_suites: What is laid over each suite: the keys of the config, and those of `--rh-set`.
    """

    def __init__(self, config: pytest.Config, settings: Settings, over_suites: Sequence[Mapping[str, Any]]) -> None:
        self._config = config
        self._over_suites = over_suites
        self._settings = settings
        self._facts: dict[str, Any] = {}
        self._termination = Termination()
        self._earlier = Identities()
        self._warnings: list[str] = []
        self.engine = self._engine()
        self.failure: EngineFailure | None = None
        """Why there is no engine, or none any more."""
        self._plan: Plan | None = None
        self._log = self.engine.own_log
        self._folder: RunFolder | None = None
        self._records: list[Record] = []
        self._pictures: list[Path] = []
        self._complaints: list[str] = []
        self._found: list[detection.Found] = []
        self._ablated: list[ablating.Ablated] = []
        self._judge: Judge | None = None
        self._verdict = Verdict(())
        self._gates: Path | None = None
        self._is_judged = False
        self._baselines: list[Path] = []
        self._unwritten = 0
        """How many files could not be written: each fails the session."""
        self._has_broken_suite = False
        self._has_suites = False
        """Whether any suite was collected."""
        self._began = self._ready = self._answered = time.monotonic()
        config.pluginmanager.register(self, "rh-host")

    @property
    def log(self) -> str:
        """The engine's log, as a user would type its path."""
        return self._shown(self._log) if self.is_prepared else "no engine.log yet"

    @property
    def is_prepared(self) -> bool:
        """Whether it is known what the session asks."""
        return self._plan is not None

    def prepare(self, plan: Plan) -> None:
        """Make the run's folder, launch the engine and wait until the model is loaded.

        An engine that does not start is no end: `failure` says why, and every test that needed it will.

        Raises:
            pytest.exit.Exception: A usage error; one line, exit status 4.
        """
        if plan.error:
            self._exit(plan.error, pytest.ExitCode.USAGE_ERROR)
        self._began = time.monotonic()
        try:
            self._judge = Judge.of(plan, self._config, self._own_folder(plan))
            if not self._is_rescored:
                check_answers(plan)
            if plan.suites:
                self._folder = folder = self._open_folder(plan)
                folder.write_config(plan.resolved())
                if not folder.earlier:  # that it cannot be written is told before an engine is loaded
                    folder.write_run({**self._facts_of(plan), "status": "starting"})
        except RetrievalHeadsError as error:
            self._exit(str(error), pytest.ExitCode.USAGE_ERROR)
        self._log = self._folder.log if self._folder else self._cached_log()
        self._plan = plan
        if self._is_rescored:
            # What the cells were asked of stays as it was.
            self._facts |= {"rescored": time.strftime(_TIME), "arguments": self._arguments}
            self.engine.launch({}, self._log)
            where = f"; scoring the answers of {self._shown(self._folder.path)}" if self._folder else ""
            self._say(f"rh: {plan.total} cells of {', '.join(plan.suites)}{where}")
            return
        self._facts = self._facts_of(plan)
        if plan.misfit:
            self._say(f"rh: {plan.misfit}; no engine is started")
        else:
            self.start()

    def start(self) -> None:
        """Launch the engine, where that was not done or tried, and wait until the model is loaded."""
        if self._plan is None or self.engine.is_launched or self.failure is not None:
            return
        plan = self._plan
        cells = f"{plan.total} cells of {', '.join(plan.suites)}; " if plan.suites else ""
        self._say(f"rh: {cells}starting the engine, log {self.log}")
        try:
            is_offline = self.engine.check(plan.model, traced=plan.traced)
        except EngineError as error:
            self._dismiss(f"the engine did not start: {error}", "the engine did not start")
            return
        hello = {
            "model": plan.model,
            **plan.engine,
            "offline": is_offline,
            "traced": plan.traced,
            "haystacks": plan.haystacks,
            "earlier": str(self._folder.results) if self._folder and self._folder.earlier else None,
        }
        self.engine.launch(hello, self._log)
        try:
            info = self.engine.wait_ready()
        except EngineError as error:
            self._dismiss(str(error), "the engine did not start")
            return
        self._ready = self._answered = time.monotonic()
        starting = self._ready - self._began
        told = without_values(info)
        now = Identities.of_facts(told)
        self._facts |= {
            "engine_start_seconds": round(starting, 2),
            **told,
            "identities": (self._earlier | now).to_json(),
            "answered_by": now.answered_by,
        }
        if (folder := self._folder) is not None:
            self._attempt(lambda: folder.write_run({**self._facts, "status": "running"}))
        try:
            ablating.check_heads(plan.suites, info)
            self._warnings += check_answers(plan, now)
        except ConfigError as error:
            self._dismiss(f"the engine is not asked: {error}", "the engine was not asked")
            return
        several = f"{info['replicas']} replicas of " if "replicas" in info else ""
        self._say(
            f"rh: {several}{info['model']} {'are' if several else 'is'} ready in {starting:.1f} s "
            f"({info['dtype']} on {info['device']}, {info['engine']})"
        )
        for warning in info.get("warnings", ()):
            self._say(f"rh: WARNING: {info['model']}: {warning}")

    @property
    def _arguments(self) -> list[str]:
        return [without_secrets(str(argument)) for argument in self._config.invocation_params.args]

    def _facts_of(self, plan: Plan) -> dict[str, Any]:
        return {
            "began": time.strftime(_TIME),
            "retrieval_heads": __version__,
            "python": platform.python_version(),
            "arguments": self._arguments,
            "model": without_values(plan.model["model"]),
            "engine_args": without_values({key: value for key, value in plan.model.items() if value not in (None, {})}),
            "selected_cells": plan.total,
            # Whatever becomes of this session, the records of before refer to them.
            **({"identities": self._earlier.to_json()} if self._earlier.models else {}),
        }

    def _dismiss(self, text: str, status: str) -> None:
        """End an engine that nobody can ask; whatever needed it is an error, and all else runs.

        Args:
            text: Why, one line that begins with "the engine", and the engine's last words below it.
            status: What `run.json` says of it.
        """
        self._facts |= {"status": status}
        self.engine.dismiss(self._fail(text).line.removeprefix("the engine "))

    def _fail(self, text: str) -> EngineFailure:
        """The engine did not start or is gone: say so at once, and remember it for whatever needs it.

        Args:
            text: One line, and the engine's last words below it.
        """
        self.failure = EngineFailure(text)
        self._facts |= {"engine_failure": self.failure.line}
        self._say(f"rh: {self.failure.line}")
        return self.failure

    def _cached_log(self) -> Path:
        """The engine's log where the session makes no run's folder: in pytest's cache, a new file for each session."""
        cache = getattr(self._config, "cache", None)
        try:
            if cache is not None:
                log: Path = cache.mkdir("rh") / "engine.log"
                log.unlink(missing_ok=True)
                return log
        except OSError:
            pass  # a cache that cannot be written, as pytest itself says
        return self.engine.own_log

    def pytest_report_header(self) -> str | None:
        """One line, when a config is in play."""
        path = config_file(self._config)
        model = self._settings.model.model or "(named by the suite)"
        return without_secrets(f"rh: {path}, model {model}") if path else None

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Tell a worker where the engine will listen."""
        node.workerinput["rh"] = asdict(self.engine.address)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Hear from a worker whether it collected a suite."""
        self._has_suites |= bool(getattr(node, "workeroutput", {}).get(COLLECTED))

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
        plan_file = Path(self.engine.address.path).with_name("plan.json")
        if self.is_prepared or not plan_file.exists():
            return
        if self._has_broken_suite and not self._config.option.continue_on_collection_errors:
            self._exit("a suite cannot be used; nothing was started", pytest.ExitCode.INTERRUPTED)
        try:
            plan = Plan.load(plan_file, self._over_suites)
        except ConfigError as error:
            self._exit(str(error), pytest.ExitCode.USAGE_ERROR)
        self.prepare(plan)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Write a cell's record as its report arrives; say of the first that found no engine all there is to say."""
        if reason := getattr(report, "rh_died", None):
            failure = self.failure or self._fail(self._obituary(reason))
            report.longrepr = as_failure(failure.tell(), report.fspath)
        content = getattr(report, "rh", None)
        if content is not None and self._folder is not None:
            record = Record.model_validate(content)
            was_written = self._folder.journal.failure is None
            if self._folder.write_record(record):
                self._records.append(record)
                self._answered = time.monotonic()
            if was_written and (unwritten := self._folder.journal.failure):
                self._say(f"rh: {unwritten}; it is tried again with each further answer")

    def _obituary(self, reason: str) -> str:
        """How the engine ended, or what a client heard of it, and its last words."""
        ended = self.engine.obituary(patience=2)
        return f"the engine {ended or f'failed: {reason}'}{self.engine.log_tail()}"

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Generator[None, object, object]:
        """Once every cell is done: the heads, and what was expected of them, while the exit status can still change."""
        result = yield
        self._decide(session)
        self._refuse_nothing(session)
        return result

    def _refuse_nothing(self, session: pytest.Session) -> None:
        """A comparison of no cell is no comparison, whatever else the session ran."""
        name = next((one for one in ("rh_baseline", "rh_save_baseline") if self._config.getoption(one)), None)
        if name is None or (self._plan and self._plan.total) or session.config.option.collectonly:
            return
        option = f"--{name.replace('_', '-')}"
        self._complaints.append(f"{option}: no cell of any suite is selected: nothing was compared")
        typed = [str(argument).partition("=")[0] for argument in self._config.invocation_params.args]
        # In addopts it stands for every session of the project, and one of other tests alone has nothing to compare.
        if self._has_suites or option in typed:
            session.testsfailed += 1

    def _decide(self, session: pytest.Session) -> None:
        """Heads, gates and baseline; once, whether the loop came to its end or was cut short."""
        if self._folder is None or self._judge is None or self._is_judged:
            return
        self._is_judged = True
        self._settle()
        for suite, settings in self._suites("detect").items():
            suffix, settings = self._suffix("detect", suite), self._expecting(f"detect/{suite}", settings)
            try:
                found = detection.finish(suite, settings, self._of("detect", suite), self._facts, self._path, suffix)
            except FileError as error:
                self._tell_unwritten(error)
                continue
            self._found.append(found)
            session.testsfailed += found.error is not None
        for suite, settings in self._suites("ablate").items():
            suffix, settings = self._suffix("ablate", suite), self._expecting(f"ablate/{suite}", settings)
            mine, controls = self._of("ablate", suite), self._controls(suite, settings)
            try:
                ablated = ablating.finish(
                    suite,
                    settings,
                    mine,
                    controls,
                    self._facts,
                    self._folder,
                    suffix,
                    ranked=self._ranked(settings),
                    inconclusive=self._judge.inconclusive,
                )
            except FileError as error:
                self._tell_unwritten(error)
                continue
            self._ablated.append(ablated)
        expected = [*(found.expected for found in self._found), *(ablated.expected for ablated in self._ablated)]
        self._verdict = Verdict(tuple(itertools.chain(*expected)))
        is_judged = any(verdict_of(settings, self._config) != "none" for settings in self._judge.settings.values())
        if is_judged and self._records and all(record.status == "skipped" for record in self._records):
            self._complaints.append("no cell was measured: every one was skipped")
            session.testsfailed += 1
        try:
            self._verdict += self._judge.verdict(self._records, self._found, self._facts)
        except RetrievalHeadsError as error:
            self._complaints.append(str(error))
            session.testsfailed += 1
        else:
            self._write_gates(self._judge)
            session.testscollected += len(self._verdict.outcomes)  # so that progress ends at 100 %
            self._report_gates(self._judge)
        if name := self._config.getoption("rh_save_baseline"):
            try:
                if failed := Counter(outcome.outcome for outcome in self._verdict.failed):
                    (word, count), *more = sorted(failed.items())
                    others = "".join(f", {number} {other}" for other, number in more)
                    raise ResultsError(f"no baseline was saved: {count} of the gates are {word}{others}")
                self._baselines, notes = self._judge.save(name, self._records, self._found, self._facts)
                self._warnings += notes
            except RetrievalHeadsError as error:
                self._complaints.append(str(error))
                session.testsfailed += 1
        session.testsfailed += self._unwritten

    def _settle(self) -> None:
        """See that what was measured is on disk; what is not is told with the way to get it there."""
        assert self._folder is not None
        try:
            self._complaints += self._folder.settle()
        except FileError as error:
            missing = self._folder.journal.missing or len(self._records)
            self._tell_unwritten(
                f"{error}; {missing} of {len(self._records)} records are not there; with room for them, "
                f"--rh-resume --rh-run {self._shown(self._folder.path)} asks their cells again"
            )

    def _attempt(self, write: Callable[[], object]) -> None:
        """Write a file; where that fails, what was measured goes on and the session fails at its end."""
        try:
            write()
        except FileError as error:
            self._tell_unwritten(error)

    def _tell_unwritten(self, reason: object) -> None:
        if str(reason) not in self._complaints:
            self._complaints.append(str(reason))
            self._unwritten += 1

    def _expecting(self, suite: str, settings: Settings) -> Settings:
        """A suite's settings; what it expects is left out where it was run in part."""
        assert self._plan is not None
        return settings if self._plan.is_whole(suite) else settings.model_copy(update={"expect": None})

    def _write_gates(self, judge: Judge) -> None:
        """Write `gates.json`; what an earlier run of the folder says of suites that were run in part now stays."""
        whole = judge.of_whole(self._verdict)
        if not whole.outcomes:
            return
        assert self._folder is not None
        in_part = [suite for suite in judge.plan.collected if not judge.plan.is_whole(suite)]
        content = with_kept(to_json(whole), read_gates(self._path), in_part)
        folder = self._folder
        self._attempt(lambda: folder.write_json("gates.json", content))
        self._gates = folder.path / "gates.json"

    def _controls(self, suite: str, settings: Settings) -> Mapping[str, Control]:
        """Other behaviour under the suite's masks: measured, or of the run whose stored answers are scored again."""
        is_whole = self._plan is not None and len(self._records) == self._plan.total
        if not is_whole or settings.ablate is None or not settings.ablate.controls:
            return {}
        try:
            if self._is_rescored:
                return ablating.stored_controls(self._path, suite)
            return ablating.controls(self.engine.address, self._of("ablate", suite))
        except RetrievalHeadsError as error:
            self._complaints.append(f"no controls of {suite}: {error}")
            return {}

    def _ranked(self, settings: Settings) -> Mapping[Head, float]:
        """Mean `copy` of the heads that a detect suite of this run found for an ablation; empty where none did."""
        name = settings.ablate.awaited if settings.ablate else None
        detections = (found.detection for found in self._found if f"detect/{found.suite}" == name)
        return dict(next((detection.ranked() for detection in detections if detection), []))

    def _report_gates(self, judge: Judge) -> None:
        """Tell pytest of every gate as of a test: its summary, JUnit XML and --lf know it then."""
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None and self._verdict.outcomes:
            reporter.write_ensure_prefix("gates ", "")
        judged: list[str] = []
        for outcome in self._verdict.outcomes:
            node = judge.plan.nodes.get(outcome.suite) or self._node_of(judge.baseline_of(outcome.suite))
            settings = judge.settings.get(outcome.suite, self._settings)
            report = report_of(outcome, node, verdict_of(settings, self._config))
            judged.append(report.nodeid)
            self._config.hook.pytest_runtest_logreport(report=report)
        for suite, node in judge.plan.nodes.items():
            if judge.plan.is_whole(suite):
                LastFailed(self._config).settle(node, judged, partial(judge.is_no_gate, suite))

    def _node_of(self, file: Path) -> str:
        root = self._config.rootpath
        return file.relative_to(root).as_posix() if file.is_relative_to(root) else str(file)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Close the books, draw what was asked for."""
        if exitstatus == pytest.ExitCode.INTERRUPTED:
            self.engine.end()  # before xdist waits for workers that wait for it
        if self._folder is None or self._plan is None:
            return
        self._decide(session)
        told = self._unwritten
        self._settle()
        if failure := self.engine.log_failure:
            self._complaints.append(str(failure))
        counts = {status: sum(record.status == status for record in self._records) for status in terminal.STATUSES}
        self._facts.setdefault("status", "finished" if len(self._records) == self._plan.total else "cut short")
        self._facts |= {
            # From the first submission, which follows the engine's start at once, to the last record written.
            "answer_seconds": round(self._answered - self._ready, 3),
            "seconds": round(time.monotonic() - self._began, 2),
            "cells": counts,
            **({"reused_cells": self._folder.reused} if self._folder.earlier else {}),
            **({"asked_again": dict(reasons)} if (reasons := self._asked_again()) else {}),
            # After Ctrl-C nobody waits for an engine that may be stuck.
            **(self._done() if exitstatus != pytest.ExitCode.INTERRUPTED else {}),
            "exit_status": int(exitstatus),
        }
        folder = self._folder
        self._attempt(lambda: folder.write_run(self._facts))
        if self._config.getoption("rh_report"):
            self._draw(self._folder)
        self._summarize_for_github()
        if self._unwritten > told and exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _done(self) -> dict[str, Any]:
        """What the engine did, as `retrieval_heads.engine.jobs.Done` counts it; nothing where none can tell."""
        if self._is_rescored:
            return {}
        client = EngineClient(self.engine.address)
        try:
            client.connect(patience=0)
            told = client.counters()
        except EngineDied:
            return {}
        finally:
            client.close()
        if not told["steps"]:
            return {}
        share = told["feed_gap_seconds"] / (told["feed_gap_seconds"] + told["step_seconds"])
        done = {name: told[name] for name in ("prompt_tokens", "cached_tokens", "reusable_tokens", "steps")}
        seconds = {name: round(told[name], 3) for name in ("step_seconds", "feed_gap_seconds")}
        return {**done, **seconds, "feed_gap_share": round(share, 5)}

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """The grid of scores and the paths of what was written."""
        if self._folder is None or self._plan is None or not self._plan.suites:
            for complaint in self._complaints:
                terminalreporter.write_line(f"rh: {complaint}", yellow=True)
            return
        paths = {"results": self._shown(self._folder.results)}
        paths |= {"engine": self.log} if self.failure else {}
        paths |= {path.stem: self._shown(path) for found in self._found for path in found.paths[:1]}
        paths |= {ablated.path.stem: self._shown(ablated.path) for ablated in self._ablated if ablated.path}
        paths |= {picture.stem: self._shown(picture) for picture in self._pictures if picture.suffix != ".svg"}
        if self._gates:
            paths["gates"] = self._shown(self._path / "gates.json")
        for path in self._baselines:
            paths[f"baseline of {path.parents[1].name}"] = self._shown(path)
        notes = []
        if self._folder.earlier and not self._is_rescored:
            notes.append(f"{self._folder.reused} of {len(self._records)} answers are those of the earlier run")
        if reasons := self._asked_again():
            notes.append(asked_again_line(len(self._folder.asked_again), reasons))
        if self._folder.is_torn:
            notes.append("the earlier run's last line was incomplete; its cell was asked again")
        notes += [*self._warnings, *terminal.done(self._facts)]
        notes += [f"WARNING: {self._facts['model']}: {warning}" for warning in self._facts.get("warnings", ())]
        terminal.summary(
            terminalreporter,
            self._records,
            self._found,
            self._ablated,
            self._plan.total,
            self._resume,
            paths,
            notes,
            [*self._folder.complaints, *self._complaints],
            self._verdict,
        )

    @property
    def _resume(self) -> str:
        """How a user goes on with a run that was cut short: every option that found its folder finds it again."""
        return "the same command" + (" again" if self._config.getoption("rh_resume") else " with --rh-resume")

    def pytest_unconfigure(self) -> None:
        """Nothing survives the session."""
        self.engine.end()
        if self._folder is not None:
            self._folder.close()
        self._termination.restore()

    def _engine(self) -> EngineProcess:
        """The engine to come, or the stored answers of the run that is scored again."""
        is_named = self._config.getoption("rh_run")
        if is_named and not (self._is_rescored or self._config.getoption("rh_resume")):
            raise pytest.UsageError("rh: --rh-run names the run for --rh-resume or --rh-rescore: give one of them")
        if not self._is_rescored:
            return EngineProcess()
        run = self._earlier_run(self._settings.output_dir)
        if run is None:
            raise pytest.UsageError("rh: --rh-rescore: there is no earlier run here; name one with --rh-run")
        try:
            self._facts = dict(read_facts(run))
            if not self._facts.get("model"):
                raise ResultsError(
                    f"{run / 'run.json'}: does not say which model answered, so it cannot be scored again"
                )
            return StoredAnswers(read_records(run / "results.jsonl", torn_last_line=True), self._facts)
        except RetrievalHeadsError as error:
            raise pytest.UsageError(f"rh: --rh-rescore: {error}") from None

    @property
    def _is_rescored(self) -> bool:
        return bool(self._config.getoption("rh_rescore"))

    def _earlier_run(self, output_dir: str | None) -> Path | None:
        """The folder of the run to go on with: the one named, the settings' own, or the latest."""
        base = Path(self._config.invocation_params.dir)
        named = self._config.getoption("rh_run")
        try:
            run = base / path_of(
                "reports/latest" if named is None and output_dir is None else named or output_dir or ""
            )
        except UnreadableFile as error:
            raise pytest.UsageError(f"rh: {'--rh-run' if named is not None else 'output_dir'}: {error}") from None
        if named and not run.is_dir():
            raise pytest.UsageError(f"rh: --rh-run {named}: there is no such folder")
        return run.resolve() if run.is_dir() else None

    def _own_folder(self, plan: Plan) -> Path | None:
        """The folder that this run will write to, where it may be one that an earlier run wrote."""
        if self._is_rescored or self._config.getoption("rh_resume"):
            return self._earlier_run(plan.output_dir)
        base = Path(self._config.invocation_params.dir)
        return (base / path_of(plan.output_dir)).resolve() if plan.output_dir else None

    def _open_folder(self, plan: Plan) -> RunFolder:
        """A new run's folder, or that of the run to go on with.

        Raises:
            ConfigError: It cannot be written, or holds another suite's run.
        """
        if self._is_rescored or self._config.getoption("rh_resume"):
            if run := self._earlier_run(plan.output_dir):
                return self._take_up(run, plan)
            self._say("rh: there is no earlier run to resume; starting one")
        names = list(dict.fromkeys(suite.partition("/")[2] for suite in plan.suites))
        return RunFolder.create(plan.output_dir, Path(self._config.invocation_params.dir), names)

    def _asked_again(self) -> Sequence[tuple[str, int]]:
        """Why answers of the run that is resumed were not taken."""
        if self._folder is None or self._is_rescored or not self._folder.earlier:
            return []
        now = Identities.of_facts(self._facts)
        return why_asked_again(self._folder.asked_again, self._earlier, now)

    def _take_up(self, run: Path, plan: Plan) -> RunFolder:
        self._earlier = Identities.of_facts(read_facts(run))
        if self._is_rescored:
            check_rescored(plan, read_records(run / "results.jsonl", torn_last_line=True), self._facts, self._allows)
        folder = RunFolder(run, resumed=True)
        stored = {record.suite_id for record in folder.earlier.values()}
        if stored and not stored & plan.suites.keys():
            folder.close()
            raise ConfigError(
                f"{self._shown(run)} is a run of {', '.join(sorted(stored))}, not of {', '.join(plan.suites)}; "
                "name the one you mean with --rh-run"
            )
        return folder

    @property
    def _allows(self) -> bool:
        return bool(self._config.getoption("rh_allow_changed"))

    def _summarize_for_github(self) -> None:
        """Append grid and gates to the page that GitHub shows for a job."""
        path = os.environ.get("GITHUB_STEP_SUMMARY")
        if not path or not self._records:
            return
        try:
            with Path(path).open("a", encoding="utf-8") as file:
                file.write(to_markdown(self._verdict, self._records))
        except OSError as error:
            self._complaints.append(f"GITHUB_STEP_SUMMARY {path}: cannot be written ({error.strerror})")

    def _draw(self, folder: RunFolder) -> None:
        from retrieval_heads.report import StoredRun, read_ablations
        from retrieval_heads.report.pictures import draw_run

        drawn = draw_run(
            StoredRun(
                name=folder.path.name,
                records=self._records,
                facts=self._facts,
                heads={found.suite: found.detection.table(found.suite) for found in self._found if found.detection},
                ablations=read_ablations(folder.path) if self._ablated else (),
                gates=to_json(self._verdict) if self._verdict.outcomes else {},
                config=folder.config,
                baseline=self._judge.baseline_records() if self._judge else (),
            ),
            folder.path,
        )
        self._pictures += drawn.paths
        self._complaints += drawn.complaints
        model = Path(str(self._facts["model"])).name
        for ablated in self._ablated:
            try:
                title, suffix = f"{model} · {ablated.suite}", self._suffix("ablate", ablated.suite)
                records = self._of("ablate", ablated.suite)
                self._pictures += ablating.draw(ablated, records, folder.path, title, suffix)
            except RetrievalHeadsError as error:
                self._complaints.append(f"no picture of {ablated.suite}: {error}")

    def _suites(self, kind: str) -> dict[str, Settings]:
        """The settings of every suite of a kind that has a record, by name."""
        with_records = {record.suite_id for record in self._records}
        return {
            suite.partition("/")[2]: settings
            for suite, settings in (self._judge.settings if self._judge else {}).items()
            if suite in with_records and settings.kind == kind
        }

    def _suffix(self, kind: str, suite: str) -> str:
        """Tells the files of several suites of a kind apart."""
        return f"-{suite}" if len(self._suites(kind)) > 1 else ""

    def _of(self, kind: str, suite: str) -> list[Record]:
        return [record for record in self._records if (record.kind, record.suite) == (kind, suite)]

    @property
    def _path(self) -> Path:
        assert self._folder is not None
        return self._folder.path

    def _exit(self, line: str, status: pytest.ExitCode) -> NoReturn:
        """End the session; the engine first, so that no worker goes on waiting for it."""
        self.engine.end()
        pytest.exit(without_secrets(f"rh: {line}"), returncode=status)

    def _say(self, line: str) -> None:
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.ensure_newline()
            if reporter._tw.width_of_current_line:  # xdist's progress, of which ensure_newline knows nothing
                reporter.write_line("")
            reporter.write_line(printable(without_secrets(line)))

    def _shown(self, path: Path) -> str:
        base = Path(self._config.invocation_params.dir)
        return str(path.relative_to(base)) if path.is_relative_to(base) else str(path)

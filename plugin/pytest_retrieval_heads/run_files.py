"""The files of a session's run: its folder, the records, and what `run.json` says."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pytest_retrieval_heads.console import Console
from pytest_retrieval_heads.earlier_run import check_answers_fit, earlier_run, take_up
from pytest_retrieval_heads.options import Options
from pytest_retrieval_heads.plan import Plan
from retrieval_heads.engine.jobs import SettingState
from retrieval_heads.errors import FileError
from retrieval_heads.reading import path_of
from retrieval_heads.redaction import without_secrets, without_values
from retrieval_heads.runs.folder import Facts, RunFolder, read_facts
from retrieval_heads.runs.identity import Identities, why_asked_again
from retrieval_heads.runs.record import Record, Status
from retrieval_heads.version import __version__

_STATUSES = get_args(Status)
TIME = "%Y-%m-%dT%H:%M:%S%z"


class RunFiles:
    """One run's folder and what is written there; none where no suite is asked.

    A file that cannot be written fails the session at its end, and what is measured goes on.

    Args:
        options: The session's.
        console: Where it speaks.
    """

    def __init__(self, options: Options, console: Console) -> None:
        self._options = options
        self._console = console
        self._began = self._ready = self._answered = time.monotonic()
        self.folder: RunFolder | None = None
        self.facts: dict[str, Any] = {}
        """What `run.json` says."""
        self.earlier = Identities()
        """What the records of the run that is gone on with refer to."""
        self.records: list[Record] = []
        self.warnings: list[str] = []
        self.complaints: list[str] = []
        """What could not be made, a sentence each."""
        self.unwritten = 0
        """How many files could not be written: each fails the session."""

    def open(self, plan: Plan) -> None:
        """Make the run's folder, or take up the earlier run's.

        Raises:
            RetrievalHeadsError: It cannot be written, or is the run of other suites or another model.
        """
        self._began = time.monotonic()
        if plan.suites:
            self.folder = self._open_folder(plan)
            self.folder.write_config(plan.resolved())
            if plan.settings and self._options.matrix:
                self.folder.write_matrix(self._options.base / path_of(self._options.matrix))
        if self._options.rescore:
            # What the cells were asked of stays as it was.
            self.facts |= {"rescored": time.strftime(TIME), "arguments": self._arguments}
            return
        self.facts = self._facts_of(plan)
        if self.folder and not self.folder.earlier:  # that it cannot be written is told before an engine is loaded
            self.folder.write_run({**self.facts, "status": "starting"})

    def _open_folder(self, plan: Plan) -> RunFolder:
        if self._options.rescore or self._options.resume:
            if run := earlier_run(self._options, plan.output_dir):
                self.earlier = Identities.of_facts(read_facts(run))
                if self._options.rescore:
                    check_answers_fit(run, plan, self._options, self.facts)
                return take_up(run, plan, self._console.path(run))
            self._console.say("there is no earlier run to resume; starting one")
        first = next(iter(plan.settings.values()), None)
        names = list(dict.fromkeys(suite.partition("/")[2] for suite in (first.suites if first else plan.suites)))
        return RunFolder.create(plan.output_dir, self._options.base, names)

    @property
    def _arguments(self) -> list[str]:
        return [without_secrets(argument) for argument in self._options.arguments]

    def _facts_of(self, plan: Plan) -> dict[str, object]:
        facts = {
            "began": time.strftime(TIME),
            "retrieval_heads": __version__,
            "python": platform.python_version(),
            "arguments": self._arguments,
            "model": without_values(plan.model["model"]),
            "engine_args": without_values({key: value for key, value in plan.model.items() if value not in (None, {})}),
            "selected_cells": plan.total,
        }
        if self.earlier.models:  # whatever becomes of this session, the records of before refer to them
            facts["identities"] = self.earlier.to_json()
        return facts

    def engine_is_ready(self, info: Facts) -> float:
        """Note which engine answers from now on.

        Args:
            info: What it says of itself, without secrets.

        Returns:
            Seconds since the folder was opened.
        """
        self._ready = self._answered = time.monotonic()
        seconds = self._ready - self._began
        now = Identities.of_facts(info)
        self.facts |= {
            "engine_start_seconds": round(seconds, 2),
            **info,
            "identities": (self.earlier | now).to_json(),
            "answered_by": now.answered_by,
        }
        if (folder := self.folder) is not None:
            self.attempt(lambda: folder.write_run({**self.facts, "status": "running"}))
        return seconds

    def is_new_engine(self, record: Record) -> bool:
        """Whether a record of a matrix refers to an engine or a model that `run.json` does not tell yet."""
        if record.setting is None or record.answered_by is None or self._options.rescore:
            return False
        known = Identities.of_facts(self.facts)
        return record.answered_by.model not in known.models or record.answered_by.engine not in known.engines

    def settings_are_known(self, settings: Mapping[str, SettingState]) -> None:
        """Note the engines of a matrix that had their turn by now.

        Args:
            settings: What the engine process says of each.
        """
        told, known = {}, Identities.of_facts(self.facts)
        for name, state in settings.items():
            info = without_values(dict(state.info or {}))
            known |= Identities.of_facts(info)
            failure = {"failure": without_secrets(state.failure)} if state.failure else {}
            figures = {
                "engine_start_seconds": round(state.start_seconds, 2),
                "first_seconds": state.first_seconds,
                "answer_seconds": state.answer_seconds,
                **state.done.to_json(),
            }
            told[name] = {**{key: value for key, value in info.items() if key != "identities"}, **failure, **figures}
        self.facts |= {"settings": told, "identities": known.to_json()}
        if (folder := self.folder) is not None:
            self.attempt(lambda: folder.write_run({**self.facts, "status": "running"}))

    def write_record(self, record: Record) -> None:
        """Append a cell's record; that it cannot be written is said once."""
        if self.folder is None:
            return
        was_written = self.folder.journal.failure is None
        if self.folder.write_record(record):
            self.records.append(record)
            self._answered = time.monotonic()
        if was_written and (failure := self.folder.journal.failure):
            self._console.say(f"{failure}; it is tried again with each further answer")

    def facts_of(self, suite: str, plan: Plan) -> Facts:
        """What `run.json` says of the engine that a suite was asked on."""
        settings = self.facts.get("settings", {})
        own: Facts = next((settings.get(name, {}) for name, one in plan.settings.items() if suite in one.suites), {})
        return {**self.facts, **own}

    def of_suite(self, kind: str, suite: str) -> list[Record]:
        """A suite's records."""
        return [record for record in self.records if (record.kind, record.suite) == (kind, suite)]

    def settle(self) -> None:
        """See that what was measured is on disk; what is not is told with the way to get it there."""
        assert self.folder is not None
        try:
            self.complaints += self.folder.settle()
        except FileError as error:
            missing = self.folder.journal.missing or len(self.records)
            self.cannot_write(
                f"{error}; {missing} of {len(self.records)} records are not there; with room for them, "
                f"--rh-resume --rh-run {self._console.path(self.folder.path)} asks their cells again"
            )

    def attempt(self, write: Callable[[], object]) -> None:
        """Write a file; where that fails, the session fails at its end."""
        try:
            write()
        except FileError as error:
            self.cannot_write(error)

    def cannot_write(self, reason: object) -> None:
        """Remember a file that is missing."""
        if str(reason) not in self.complaints:
            self.complaints.append(str(reason))
            self.unwritten += 1

    def finish(self, plan: Plan, exit_status: int, counters: Mapping[str, object]) -> None:
        """Write how the run ended.

        Args:
            plan: The session's.
            exit_status: pytest's.
            counters: What the engine did.
        """
        folder = self.folder
        assert folder is not None
        counts = {status: sum(record.status == status for record in self.records) for status in _STATUSES}
        self.facts.setdefault("status", "finished" if len(self.records) == plan.total else "cut short")
        self.facts |= {
            # From the first submission, which follows the engine's start at once, to the last record written.
            "answer_seconds": round(self._answered - self._ready, 3),
            "seconds": round(time.monotonic() - self._began, 2),
            "cells": {status: count for status, count in counts.items() if count or status != "spared"},
        }
        if folder.earlier:
            self.facts["reused_cells"] = folder.reused
        if reasons := self.asked_again():
            self.facts["asked_again"] = dict(reasons)
        self.facts |= {**counters, "exit_status": exit_status}
        self.attempt(lambda: folder.write_run(self.facts))

    def asked_again(self) -> Sequence[tuple[str, int]]:
        """Why answers of the run that is resumed were not taken, and of how many cells."""
        if self.folder is None or self._options.rescore or not self.folder.earlier:
            return []
        return why_asked_again(self.folder.asked_again, self.earlier, Identities.of_facts(self.facts))

    @property
    def path(self) -> Path:
        """The run's folder."""
        assert self.folder is not None
        return self.folder.path

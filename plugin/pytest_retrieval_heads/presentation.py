"""What a finished run shows: the terminal's summary, the page that GitHub shows for a job, pictures and the report."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from pytest_retrieval_heads import ablating, compressing, terminal
from pytest_retrieval_heads.console import Console
from pytest_retrieval_heads.decision import Decision
from pytest_retrieval_heads.options import Options
from pytest_retrieval_heads.plan import Plan
from pytest_retrieval_heads.run_files import RunFiles
from retrieval_heads.errors import RetrievalHeadsError
from retrieval_heads.gates import to_json, to_markdown
from retrieval_heads.runs.identity import asked_again_line


class Presentation:
    """Shows a run.

    Args:
        plan: The session's.
        files: The run's.
        decision: What the run came to.
        options: The session's.
        console: Where it speaks.
    """

    def __init__(self, plan: Plan, files: RunFiles, decision: Decision, options: Options, console: Console) -> None:
        self._plan = plan
        self._files = files
        self._decision = decision
        self._options = options
        self._console = console
        self._pictures: list[Path] = []

    def draw(self) -> None:
        """Draw the pictures and `report.html` into the run's folder."""
        from retrieval_heads.report import StoredRun, read_ablations, read_compressions
        from retrieval_heads.report.pictures import draw_run

        files, decision, folder = self._files, self._decision, self._files.folder
        assert folder is not None
        drawn = draw_run(
            StoredRun(
                name=folder.path.name,
                records=files.records,
                facts=files.facts,
                heads={
                    one.suite: one.detection.table(one.suite, one.spared)
                    for one in decision.detections
                    if one.detection
                },
                ablations=read_ablations(folder.path) if decision.ablations else (),
                compressions=read_compressions(folder.path) if decision.compressions else (),
                gates=to_json(decision.verdict) if decision.verdict.outcomes else {},
                config=folder.config,
                baseline=decision.judge.baseline_records(),
            ),
            folder.path,
        )
        self._pictures += drawn.paths
        files.complaints += drawn.complaints
        model = Path(str(files.facts["model"])).name
        for outcome in decision.ablations:
            title, suffix = f"{model} · {outcome.suite}", decision.suffix("ablate", outcome.suite)
            try:
                records = files.of_suite("ablate", outcome.suite)
                self._pictures += ablating.draw(outcome, records, folder.path, title, suffix)
            except RetrievalHeadsError as error:
                files.complaints.append(f"no picture of {outcome.suite}: {error}")

        for compressed in decision.compressions:
            title, suffix = f"{model} · {compressed.suite}", decision.suffix("compress", compressed.suite)
            try:
                self._pictures += compressing.draw(compressed, folder.path, title, suffix)
            except RetrievalHeadsError as error:
                files.complaints.append(f"no picture of {compressed.suite}: {error}")

    def summarize_for_github(self) -> None:
        """Append grid and gates to the page that GitHub shows for a job."""
        path = os.environ.get("GITHUB_STEP_SUMMARY")
        if not path or not self._files.records:
            return
        try:
            with Path(path).open("a", encoding="utf-8") as page:
                page.write(to_markdown(self._decision.verdict, self._files.records))
        except OSError as error:
            self._files.complaints.append(f"GITHUB_STEP_SUMMARY {path}: cannot be written ({error.strerror})")

    def summarize(self, reporter: pytest.TerminalReporter, engine_log: Path | None) -> None:
        """The grid of scores, the gates, and the paths of what was written.

        Args:
            reporter: pytest's.
            engine_log: The engine's log, where it failed.
        """
        folder = self._files.folder
        assert folder is not None
        terminal.summary(
            reporter,
            self._files.records,
            self._decision.detections,
            self._decision.ablations,
            self._plan.total,
            self._resume,
            {name: self._console.path(path) for name, path in self._paths(engine_log).items()},
            self._notes(),
            [*folder.complaints, *self._files.complaints],
            self._decision.verdict,
            self._decision.comparisons,
            self._files.facts,
            self._decision.compressions,
        )

    def _paths(self, engine_log: Path | None) -> Mapping[str, Path]:
        """What was written, by a short name."""
        folder, decision = self._files.folder, self._decision
        assert folder is not None
        paths = {"results": folder.results}
        if engine_log:
            paths["engine"] = engine_log
        paths |= {path.stem: path for outcome in decision.detections for path in outcome.paths[:1]}
        paths |= {outcome.path.stem: outcome.path for outcome in decision.ablations if outcome.path}
        paths |= {picture.stem: picture for picture in self._pictures if picture.suffix != ".svg"}
        if decision.comparisons:
            paths["matrix"] = folder.path / "matrix.json"
        if decision.gates:
            paths["gates"] = folder.path / "gates.json"
        return paths | {f"baseline of {path.parents[1].name}": path for path in decision.baselines}

    def _notes(self) -> list[str]:
        """What is worth knowing of the run, a sentence each."""
        folder, facts = self._files.folder, self._files.facts
        assert folder is not None
        notes = []
        if folder.earlier and not self._options.rescore:
            notes.append(f"{folder.reused} of {len(self._files.records)} answers are those of the earlier run")
        if reasons := self._files.asked_again():
            notes.append(asked_again_line(len(folder.asked_again), reasons))
        if folder.is_torn:
            notes.append("the earlier run's last line was incomplete; its cell was asked again")
        notes += [*self._files.warnings, *terminal.done(facts), *terminal.taken(facts)]
        notes += terminal.count_gap(self._files.records) + terminal.lost(self._files.records)
        notes += [f"WARNING: {facts['model']}: {warning}" for warning in facts.get("warnings", ())]
        return notes

    @property
    def _resume(self) -> str:
        """How a user goes on with a run that was cut short: every option that found its folder finds it again."""
        return "the same command" + (" again" if self._options.resume else " with --rh-resume")

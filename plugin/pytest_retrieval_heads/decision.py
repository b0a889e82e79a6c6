"""What a finished run came to: its heads, the effect of its masks, its gates, and the baseline it becomes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from pytest_retrieval_heads import ablating, compressing, detection
from pytest_retrieval_heads.ablating import AblationOutcome
from pytest_retrieval_heads.baselines import save_baselines
from pytest_retrieval_heads.compressing import CompressionOutcome
from pytest_retrieval_heads.detection import DetectionOutcome
from pytest_retrieval_heads.judging import Judge
from pytest_retrieval_heads.options import Options
from pytest_retrieval_heads.plan import Plan
from pytest_retrieval_heads.run_files import RunFiles
from retrieval_heads.ablation.controls import Control
from retrieval_heads.engine.client import Address
from retrieval_heads.errors import FileError, ResultsError, RetrievalHeadsError
from retrieval_heads.gates import Outcome, Verdict, read_gates, to_json, with_kept
from retrieval_heads.heads.formats.heads import measured_texts
from retrieval_heads.heads.table import Head
from retrieval_heads.heads.texts import MeasuredText
from retrieval_heads.matrix.comparison import Comparison, compare
from retrieval_heads.matrix.settings import REFERENCE, Matrix
from retrieval_heads.matrix.stored import to_json as to_json_of
from retrieval_heads.matrix.verdict import judge_settings, other_prompts
from retrieval_heads.suites.settings import Settings


class Decision:
    """Decides a run once its cells are done, and writes what it decided.

    Args:
        plan: The session's.
        judge: What is demanded of it.
        files: The run's.
        options: The session's.
        engine: Where the engine listens, for the controls of an ablation.
        matrix: The settings that the cells are asked under, where there are several.
    """

    def __init__(
        self,
        plan: Plan,
        judge: Judge,
        files: RunFiles,
        options: Options,
        engine: Address,
        matrix: Matrix | None = None,
    ) -> None:
        self._plan = plan
        self._matrix = matrix
        self._files = files
        self._options = options
        self._engine = engine
        self.judge = judge
        self.is_made = False
        self.detections: list[DetectionOutcome] = []
        self.ablations: list[AblationOutcome] = []
        self.compressions: list[CompressionOutcome] = []
        self.comparisons: list[Comparison] = []
        """The settings of a matrix, each set against the reference."""
        self.verdict = Verdict(())
        self.is_judged = False
        """Whether the verdict holds gates and baseline, and not only what is expected of heads."""
        self.gates: Path | None = None
        """The file of the gates, where it was written."""
        self.baselines: list[Path] = []
        """The run, stored as a baseline."""
        self.failures = 0
        """What fails the session beside the gates themselves."""

    def make(self) -> None:
        """Heads, ablations, gates, baseline; what cannot be told is a complaint, and the rest is decided."""
        self.is_made = True
        self._files.settle()
        self._detect()
        self._ablate()
        self._compress()
        self._compare_settings()
        self._require_measurement()
        self._judge_all()
        if self._options.save_baseline:
            self._save_baseline(self._options.save_baseline)
        self.failures += self._files.unwritten

    def suites(self, kind: str) -> dict[str, Settings]:
        """The settings of every suite of a kind that has a record, by name."""
        with_records = {record.suite_id for record in self._files.records}
        return {
            suite.partition("/")[2]: settings
            for suite, settings in self.judge.settings.items()
            if suite in with_records and settings.kind == kind
        }

    def suffix(self, kind: str, suite: str) -> str:
        """Tells the files of several suites of a kind apart."""
        return f"-{suite}" if len(self.suites(kind)) > 1 else ""

    def _detect(self) -> None:
        for suite, settings in self.suites("detect").items():
            try:
                outcome = detection.finish(
                    suite,
                    self._expecting(f"detect/{suite}", settings),
                    self._files.of_suite("detect", suite),
                    self._files.facts_of(f"detect/{suite}", self._plan),
                    self._files.path,
                    self.suffix("detect", suite),
                    self._texts(suite, settings),
                    inconclusive=self.judge.inconclusive,
                )
            except FileError as error:
                self._files.cannot_write(error)
                continue
            self.detections.append(outcome)
            self._expect(*outcome.expected)
            if outcome.error is not None:
                self.failures += 1

    def _ablate(self) -> None:
        assert self._files.folder is not None
        for suite, settings in self.suites("ablate").items():
            expecting = self._expecting(f"ablate/{suite}", settings)
            controls = self._controls(suite, settings)
            try:
                outcome = ablating.finish(
                    suite,
                    expecting,
                    self._files.of_suite("ablate", suite),
                    controls,
                    self._files.facts,
                    self._files.folder,
                    self.suffix("ablate", suite),
                    ranked=self._ranked(settings),
                    inconclusive=self.judge.inconclusive,
                )
            except FileError as error:
                self._files.cannot_write(error)
                continue
            self.ablations.append(outcome)
            self._expect(*outcome.expected)

    def _compress(self) -> None:
        folder = self._files.folder
        assert folder is not None
        for suite, settings in self.suites("compress").items():
            records, suffix = self._files.of_suite("compress", suite), self.suffix("compress", suite)
            try:
                outcome = compressing.finish(suite, settings, records, self._files.facts, folder, suffix)
            except FileError as error:
                self._files.cannot_write(error)
                continue
            self.compressions.append(outcome)

    def _compare_settings(self) -> None:
        """Set each setting of a matrix against the reference, and judge the matrix's gates."""
        if self._matrix is None or not self._plan.settings:
            return
        if REFERENCE not in self._plan.settings:
            self._files.warnings.append("no cell of the reference is selected: no setting was compared")
            return
        is_whole = all(self._plan.is_whole(suite) for suite in self._plan.suites)
        if is_whole and (until := self._matrix.until):
            self._files.facts["until_decided"] = {
                name: {"seed": until.seed, "spared": self._spared(one.suites)}
                for name, one in self._plan.settings.items()
                if self._matrix.deciding(name)
            }
        self.comparisons = compare(self._files.records, self._files.facts)
        if not self._options.allow_other_prompts:
            for one in self.comparisons:
                if one.other_prompts:
                    self._fail(f"{one.setting}: {one.suite}: {other_prompts(one)}")
        if is_whole:
            gates = [gate for gate in self._matrix.gates if gate.setting in self._plan.settings]
            self._expect(
                *judge_settings(
                    gates,
                    self.comparisons,
                    self._files.records,
                    {one.suite: one.means for one in self.detections},
                    allow_other_prompts=self._options.allow_other_prompts,
                    inconclusive=self.judge.inconclusive,
                )
            )
        elif self._matrix.gates:
            self._files.warnings.append("the gates of the matrix were not judged: its suites were run in part")
        heads = {one.suite: one.means for one in self.detections}
        content = to_json_of(self.comparisons, heads, self._files.facts)
        folder = self._files.folder
        assert folder is not None
        self._files.attempt(lambda: folder.write_json("matrix.json", content))

    def _spared(self, suites: Collection[str]) -> int:
        return sum(record.suite_id in suites and record.status == "spared" for record in self._files.records)

    def _expect(self, *outcomes: Outcome) -> None:
        self.verdict += Verdict(outcomes)

    def _expecting(self, suite: str, settings: Settings) -> Settings:
        """A suite's settings; what it expects is left out where it was run in part."""
        return settings if self._plan.is_whole(suite) else settings.model_copy(update={"expect": None})

    def _texts(self, suite: str, settings: Settings) -> Sequence[MeasuredText]:
        """Heads on a suite's random texts: measured, or of the run whose stored answers are scored again."""
        try:
            if self._options.rescore:
                return measured_texts(self._files.path / f"heads{self.suffix('detect', suite)}.json")
            return detection.measure_texts(self._engine, settings)
        except RetrievalHeadsError as error:
            self._fail(f"no random texts of detect/{suite}: {error}")
            return ()

    def _controls(self, suite: str, settings: Settings) -> Mapping[str, Control]:
        """Other behaviour under the suite's masks: measured, or of the run whose stored answers are scored again."""
        is_whole = len(self._files.records) == self._plan.total
        if not is_whole or settings.ablate is None or not settings.ablate.controls:
            return {}
        try:
            if self._options.rescore:
                return ablating.stored_controls(self._files.path, suite)
            return ablating.controls(self._engine, self._files.of_suite("ablate", suite))
        except RetrievalHeadsError as error:
            self._files.complaints.append(f"no controls of {suite}: {error}")
            return {}

    def _ranked(self, settings: Settings) -> Mapping[str, Mapping[Head, float]]:
        """By ranking, mean scores of the heads that a detect suite of this run found for an ablation; empty where none
        did.
        """
        for outcome in self.detections:
            found = outcome.detection
            if settings.ablate and f"detect/{outcome.suite}" == settings.ablate.awaited and found:
                rankings = [by for by in settings.ablate.rankings if by in ("", *found.estimates)]
                return {by: dict(found.ranked(by or None)) for by in rankings}
        return {}

    def _require_measurement(self) -> None:
        is_judged = any(self._options.verdict_of(settings) != "none" for settings in self.judge.settings.values())
        if is_judged and self._files.records and all(record.status == "skipped" for record in self._files.records):
            self._fail("no cell was measured: every one was skipped")

    def _judge_all(self) -> None:
        try:
            self.verdict += self.judge.verdict(self._files.records, self.detections, self._files.facts)
        except RetrievalHeadsError as error:
            self._fail(str(error))
            return
        self.is_judged = True
        self._write_gates()

    def _write_gates(self) -> None:
        """Write `gates.json`; what an earlier run of the folder says of suites that were run in part now stays."""
        whole = self.judge.of_whole(self.verdict)
        if not whole.outcomes:
            return
        folder = self._files.folder
        assert folder is not None
        in_part = [suite for suite in self._plan.collected if not self._plan.is_whole(suite)]
        content = with_kept(to_json(whole), read_gates(folder.path), in_part)
        self._files.attempt(lambda: folder.write_json("gates.json", content))
        self.gates = folder.path / "gates.json"

    def _save_baseline(self, name: str) -> None:
        try:
            if counts := Counter(outcome.outcome for outcome in self.verdict.failed):
                (word, count), *more = sorted(counts.items())
                others = "".join(f", {number} {other}" for other, number in more)
                raise ResultsError(f"no baseline was saved: {count} of the gates are {word}{others}")
            self.baselines, notes = save_baselines(
                name, self._plan, self._files.records, self.detections, self._files.facts
            )
            self._files.warnings += notes
        except RetrievalHeadsError as error:
            self._fail(str(error))

    def _fail(self, complaint: str) -> None:
        self._files.complaints.append(complaint)
        self.failures += 1

"""What a run as a whole must reach: its suites' gates, and a baseline. Read before anything is started."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pytest_retrieval_heads.baselines import baseline_file, shrinkage_of
from pytest_retrieval_heads.detection import DetectionOutcome
from pytest_retrieval_heads.options import Options, flag
from pytest_retrieval_heads.plan import Plan
from retrieval_heads.errors import ConfigError
from retrieval_heads.gates import (
    PASS_RATE,
    Baseline,
    Comparison,
    Inconclusive,
    Outcome,
    Shrinkage,
    Tolerance,
    Verdict,
    agreement,
    check,
    judge,
    load_baseline,
    meta_of,
    parse_gate,
    parse_max_drop,
    set_against,
)
from retrieval_heads.gates.expression import nearest
from retrieval_heads.gates.tolerance import DEFAULT_MAX_DROP
from retrieval_heads.heads.detection import Detection
from retrieval_heads.runs.folder import Facts
from retrieval_heads.runs.record import Record
from retrieval_heads.scoring.settings import EVERY_METRIC
from retrieval_heads.suites.settings import Settings

EXPECTED = "expect "
"""Begins the name of the gate that an expectation is."""

_COMPARABLE = (*EVERY_METRIC, PASS_RATE, "rougeL")


@dataclass(frozen=True)
class Judge:
    """The gates of a plan's suites.

    Args:
        settings: Each suite's settings, by kind and name.
        plan: Which cells are selected, and where the suites lie.
        baselines: What each suite is compared with; empty without a baseline.
        max_drop: How far a number may fall below its baseline.
        allow_new: Whether a cell that the baseline lacks is no break.
        allow_changed: Whether a question that is not the baseline's is none.
        inconclusive: Whether a fall that noise can explain fails the run.
        shrinkages: By baseline file, what of it the suites do not ask any more.
        allow_removed: Whether that is no break.
    """

    settings: Mapping[str, Settings]
    plan: Plan
    baselines: Mapping[str, Baseline] = field(default_factory=dict)
    max_drop: Mapping[str, Tolerance] = field(default_factory=dict)
    allow_new: bool = False
    allow_changed: bool = False
    inconclusive: Inconclusive = "fail"
    shrinkages: Mapping[Path, Shrinkage] = field(default_factory=dict)
    allow_removed: bool = False

    @classmethod
    def of(cls, plan: Plan, options: Options, arguments: Sequence[str], own: Path | None = None) -> Judge:
        """What options and suites demand.

        Args:
            plan: What will be asked.
            options: The session's.
            arguments: The paths and node ids that pytest collects.
            own: The folder that the run will write to, where an earlier run may have written.

        Raises:
            ConfigError: An option cannot be used.
            ResultsError: A baseline cannot be read.
        """
        named = options.baseline
        for name in ("max_drop", "allow_new", "allow_removed"):
            if getattr(options, name) and not named:
                raise ConfigError(f"{flag(name)} is of a comparison with a baseline: give --rh-baseline too")
        if options.allow_changed and not (named or options.rescore):
            raise ConfigError("--rh-allow-changed is for stored answers: give --rh-baseline or --rh-rescore too")
        if (saved := options.save_baseline) and not re.fullmatch(r"\w[\w.-]*", saved):
            raise ConfigError(f"--rh-save-baseline {saved}: a name of letters, digits, '.', '-' and '_' is expected")
        tolerances = parse_max_drop(options.max_drop or DEFAULT_MAX_DROP)
        if unknown := [name for name in tolerances if name and name not in _COMPARABLE]:
            raise ConfigError(f"--rh-max-drop: {unknown[0]!r} cannot be compared; {nearest(unknown[0], _COMPARABLE)}")
        compared = {
            suite: baseline_file(named, options.base, Path(file)) for suite, file in plan.files.items() if named
        }
        for file in compared.values():
            results = (file / "results.jsonl" if file.is_dir() else file).resolve()
            if own is not None and results == own / "results.jsonl":
                raise ConfigError(
                    f"--rh-baseline {named}: this run writes there, so it is compared with itself; name an earlier run"
                )
        # Each file once: suites of a folder share one, and all of them a run.
        loaded = {file: load_baseline(file) for file in dict.fromkeys(compared.values())}
        judge = cls(
            settings={suite: Settings.model_validate(settings) for suite, settings in plan.suites.items()},
            plan=plan,
            baselines={suite: loaded[file] for suite, file in compared.items()},
            max_drop=tolerances,
            allow_new=options.allow_new,
            allow_changed=options.allow_changed,
            inconclusive=options.inconclusive,
            shrinkages={file: shrinkage_of(file, baseline, plan, arguments) for file, baseline in loaded.items()},
            allow_removed=options.allow_removed,
        )
        for suite, settings in judge.settings.items():
            is_gated = named or settings.gates or settings.kind in ("ablate", "compress")
            if (options.verdict or settings.verdict) == "gates" and not is_gated:
                raise ConfigError(f"{suite}: the verdict is gates, but there are none and no --rh-baseline is given")
        return judge

    def verdict(self, records: Sequence[Record], detections: Sequence[DetectionOutcome], facts: Facts) -> Verdict:
        """Judge a finished run.

        Args:
            records: All of it.
            detections: What its detect suites came to.
            facts: What `run.json` says.
        """
        found = {f"detect/{each.suite}": each.detection for each in detections}
        of_suite = {suite: [record for record in records if record.suite_id == suite] for suite in self.settings}
        # All suites are compared before any is judged: the more comparisons, the more of them fall by chance.
        compared = {suite: self._compare(suite, of_suite[suite], facts) for suite in self.baselines}
        judged = dict(zip(compared, judge(list(compared.values()), self.inconclusive), strict=True))
        verdict = Verdict(())
        for suite in self.settings:
            of_baseline = judged.get(suite, Verdict(()))
            if not self.plan.is_whole(suite):
                verdict += _of_part(of_baseline)
                continue
            verdict += self._gates(suite, of_suite[suite], found.get(suite))
            verdict += of_baseline
        return verdict + self._partial() + self._shrunk()

    def of_whole(self, verdict: Verdict) -> Verdict:
        """What of a verdict is of suites whose every cell is selected, which `gates.json` holds."""
        whole = [outcome for outcome in verdict.outcomes if self.plan.is_whole(outcome.suite)]
        return replace(verdict, outcomes=tuple(whole))

    def is_no_gate(self, suite: str, gate: str) -> bool:
        """Whether a gate that was broken before is none any more, now that its suite was judged without it."""
        if gate.startswith(EXPECTED):
            return True  # every whole run judges what is expected of it
        try:
            parse_gate(gate)
        except ConfigError:
            return suite in self.baselines  # one of a comparison, which this run made too
        return True

    def baseline_of(self, suite: str) -> Path | None:
        """The baseline file that knows a suite which this run has not; `None` of a matrix's setting without a cell."""
        return next((file for file, shrunk in self.shrinkages.items() if suite in shrunk.removed), None)

    def _partial(self) -> Verdict:
        """A warning for each suite of which cells are deselected and something is demanded."""
        warnings = []
        for suite, cells in self.plan.collected.items():
            selected, total = len(self.plan.cells.get(suite, ())), len(cells)
            if selected == total or not (suite in self.plan.gated or self.shrinkages):
                continue
            told = f"{suite} is partial: {selected} of {total} cells are selected"
            if suite in self.plan.gated:
                told += "; what it demands of all of them is not judged"
            if self.shrinkages:
                told += f"; the {total - selected} others are not compared with the baseline"
            warnings.append(told)
        return Verdict((), tuple(warnings))

    def _shrunk(self) -> Verdict:
        """What the baselines measured and nobody asks any more."""
        outcomes, warnings = [], []
        for shrunk in self.shrinkages.values():
            for suite, count in shrunk.uncollected.items():
                warnings.append(f"{count} cells of the baseline are of {suite}, which was not collected")
            if self.allow_removed:
                warnings += shrunk.lines()
            else:
                outcomes += [shrunk.outcome(suite) for suite in shrunk.removed]
        return Verdict(tuple(outcomes), tuple(warnings))

    def _gates(self, suite: str, records: Sequence[Record], found: Detection | None) -> Verdict:
        heads = found.means if found else None
        settings, baseline = self.settings[suite], self.baselines.get(suite)
        before = baseline.heads.get(suite.partition("/")[2]) if baseline else None
        verdict = check(
            [parse_gate(gate) for gate in settings.gates],
            records,
            self.plan.cells[suite],
            allow_skipped=settings.allow_skipped,
            suite=suite,
            heads=heads,
            baseline_heads=before,
            drawn=found.drawn if found else None,
            inconclusive=self.inconclusive,
        )
        return verdict + Verdict((), notes=tuple(agreement(suite, heads, before)))

    def _compare(self, suite: str, records: Sequence[Record], facts: Facts) -> Comparison:
        try:
            return set_against(
                records,
                self.baselines[suite],
                max_drop=self.max_drop,
                meta=meta_of(facts),
                selected=self.plan.cells[suite],
                allow_new=self.allow_new,
                allow_skipped=self.settings[suite].allow_skipped,
                allow_changed=self.allow_changed,
                suite=suite,
            )
        except ConfigError as error:  # a score that no record holds; the gates beside it are judged all the same
            gate = "the comparison with the baseline"
            return Comparison((), outcomes=(Outcome(gate, False, None, None, str(error), suite=suite),))

    def baseline_records(self) -> list[Record]:
        """What the run is compared with; each record once, whichever suites share its file."""
        found = {
            (record.suite_id, record.cell): record
            for baseline in self.baselines.values()
            for record in baseline.records
        }
        return list(found.values())


def _of_part(judged: Verdict) -> Verdict:
    """Of some of a suite's cells no gate holds; that they fell below the baseline is said all the same."""
    return replace(judged, outcomes=tuple(one for one in judged.outcomes if one.outcome != "held"))

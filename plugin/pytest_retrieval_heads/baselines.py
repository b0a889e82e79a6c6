"""The baselines of a session: which file each suite is compared with, and the files that the run is stored as."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from pytest_retrieval_heads.detection import DetectionOutcome
from pytest_retrieval_heads.plan import Plan
from retrieval_heads.errors import ResultsError
from retrieval_heads.gates import (
    Baseline,
    HeadMeans,
    Shrinkage,
    load_baseline,
    meta_differences,
    meta_of,
    save_baseline,
    shrinkage,
)
from retrieval_heads.kinds import KINDS
from retrieval_heads.reading import path_of
from retrieval_heads.runs.folder import Facts
from retrieval_heads.runs.record import Record


def baseline_file(named: str, base: Path, suite: Path) -> Path:
    """A file or run folder where there is one of that path, else the baseline of that name beside the suite."""
    given = base / path_of(named)
    stored = suite.parent / "baselines" / f"{named}.jsonl"
    if given.exists():
        return given
    if stored.exists():
        return stored
    raise ResultsError(f"--rh-baseline {named}: there is neither {given} nor {stored}")


def shrinkage_of(file: Path, baseline: Baseline, plan: Plan, arguments: Sequence[str]) -> Shrinkage:
    """What became of a baseline's cells: a file beside suites is of their folder, a run may be of others too.

    Args:
        file: The baseline.
        baseline: What it holds.
        plan: The session's.
        arguments: The paths and node ids that pytest collects.
    """
    folders = {Path(suite).parent for suite in plan.files.values()}
    owner = file.resolve().parent.parent
    is_beside = file.parent.name == "baselines" and owner in {folder.resolve() for folder in folders}
    covered = [owner] if is_beside else folders
    collected = [Path(os.path.abspath(arg)) for arg in arguments if "::" not in arg]  # noqa: PTH100 - as pytest does
    is_whole = all(any(folder.is_relative_to(one) for one in collected if one.is_dir()) for folder in covered)
    kinds = KINDS if is_beside else {suite.partition("/")[0] for suite in plan.collected}
    return shrinkage(baseline.records, plan.collected, plan.beside, kinds if is_whole else ())


def save_baselines(
    name: str,
    plan: Plan,
    records: Sequence[Record],
    detections: Sequence[DetectionOutcome],
    facts: Facts,
) -> tuple[list[Path], list[str]]:
    """Store the run as a baseline: a file beside the suites of each folder.

    What a file of that name holds of cells that the folder's suites ask and this run did not select is kept.

    Args:
        name: The files', without the suffix.
        plan: The session's.
        records: The run's.
        detections: What its detect suites came to.
        facts: What `run.json` says.

    Returns:
        The files written, and a note for each that keeps cells of before.

    Raises:
        ResultsError: A selected cell has no result, nothing was measured, a file cannot be written, or the cells
            that are to be kept were measured by another model or engine.
    """
    has = {(record.suite_id, record.cell) for record in records}
    missing = sum((suite, cell) not in has for suite, cells in plan.cells.items() for cell in cells)
    if missing:
        raise ResultsError(f"no baseline was saved: {missing} of {plan.total} selected cells have no result")
    partial = [suite for suite in plan.cells if not plan.is_whole(suite)]
    if unjudged := [suite for suite in partial if suite in plan.gated]:
        raise ResultsError(f"no baseline was saved: {unjudged[0]} is partial, and its gates were not judged")
    written, notes = [], []
    meta = meta_of(facts)
    for folder in dict.fromkeys(Path(file).parent for file in plan.files.values()):
        mine = {suite for suite, file in plan.files.items() if Path(file).parent == folder}
        means = {one.suite: one.means for one in detections if f"detect/{one.suite}" in mine and one.means}
        path = folder / "baselines" / f"{name}.jsonl"
        kept, heads = _kept(path, plan, meta)
        if kept:
            notes.append(f"{path.name} keeps {len(kept)} cells that were not selected now")
        of_folder = [record for record in records if record.suite_id in mine]
        save_baseline([*kept, *of_folder], meta, path, {**heads, **means})
        written.append(path)
    return written, notes


def _kept(path: Path, plan: Plan, meta: Mapping[str, str]) -> tuple[list[Record], Mapping[str, HeadMeans]]:
    """What a baseline file holds of cells that the suites ask and this run did not select."""
    asked = {(suite, cell) for of in (plan.beside, plan.collected) for suite in of for cell in of[suite]}
    unselected = asked - {(suite, cell) for suite, cells in plan.cells.items() for cell in cells}
    if not unselected or not path.exists():
        return [], {}
    before = load_baseline(path)
    kept = [record for record in before.records if (record.suite_id, record.cell) in unselected]
    if kept and (differing := meta_differences(before.meta, meta)):
        raise ResultsError(
            f"no baseline was saved: {path} holds {len(kept)} cells that were not selected now, and they were "
            f"measured otherwise ({differing[0]}); select them too, or save under another name"
        )
    detected = [record for record in kept if record.kind == "detect"]
    if torn := [record.suite_id for record in detected if record.suite_id in plan.cells]:
        raise ResultsError(
            f"no baseline was saved: {path} holds all samples of {torn[0]}, and its head scores are means of them; "
            "select the whole suite, or save under another name"
        )
    suites = {record.suite for record in detected}
    return kept, {suite: means for suite, means in before.heads.items() if suite in suites}

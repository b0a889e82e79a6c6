"""The run that `--rh-resume` goes on with or `--rh-rescore` scores again: where it is, and whether it fits."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_retrieval_heads.options import Options
from pytest_retrieval_heads.plan import Plan
from pytest_retrieval_heads.provenance import check_rescored
from retrieval_heads.engine.stored_answers import StoredAnswers
from retrieval_heads.errors import ConfigError, ResultsError, RetrievalHeadsError, UnreadableFile
from retrieval_heads.reading import path_of
from retrieval_heads.runs.folder import Facts, RunFolder, read_facts
from retrieval_heads.runs.record import read_records


def earlier_run(options: Options, output_dir: str | None) -> Path | None:
    """The folder of the run to go on with: the one named, the settings' own, or the latest; `None` where there is none.

    Args:
        options: The session's.
        output_dir: What the settings name.

    Raises:
        pytest.UsageError: The folder that is named is none.
    """
    named = options.run
    try:
        run = options.base / path_of(
            "reports/latest" if named is None and output_dir is None else named or output_dir or ""
        )
    except UnreadableFile as error:
        raise pytest.UsageError(f"rh: {'--rh-run' if named is not None else 'output_dir'}: {error}") from None
    if named and not run.is_dir():
        raise pytest.UsageError(f"rh: --rh-run {named}: there is no such folder")
    return run.resolve() if run.is_dir() else None


def own_folder(options: Options, output_dir: str | None) -> Path | None:
    """The folder that this run will write to, where it may be one that an earlier run wrote."""
    if options.rescore or options.resume:
        return earlier_run(options, output_dir)
    return (options.base / path_of(output_dir)).resolve() if output_dir else None


def stored_answers(options: Options, output_dir: str | None) -> tuple[StoredAnswers, Facts]:
    """The answers that are scored again in place of an engine's, and what `run.json` says of them.

    Raises:
        pytest.UsageError: There is no such run, or it cannot be read.
    """
    run = earlier_run(options, output_dir)
    if run is None:
        raise pytest.UsageError("rh: --rh-rescore: there is no earlier run here; name one with --rh-run")
    try:
        facts = read_facts(run)
        if not facts.get("model"):
            raise ResultsError(f"{run / 'run.json'}: does not say which model answered, so it cannot be scored again")
        return StoredAnswers(read_records(run / "results.jsonl", torn_last_line=True), facts), facts
    except RetrievalHeadsError as error:
        raise pytest.UsageError(f"rh: --rh-rescore: {error}") from None


def check_answers_fit(run: Path, plan: Plan, options: Options, facts: Facts) -> None:
    """See that a run's answers are those of the plan's model to its questions, as far as `--rh-allow-changed` asks.

    Args:
        run: The folder.
        plan: The session's.
        options: Its options.
        facts: What `run.json` says of the answers.

    Raises:
        ConfigError: They are not.
    """
    records = read_records(run / "results.jsonl", torn_last_line=True)
    check_rescored(plan, records, facts, options.allow_changed)


def take_up(run: Path, plan: Plan, shown: str) -> RunFolder:
    """The folder of an earlier run, to go on with.

    Args:
        run: The folder.
        plan: The session's.
        shown: The folder as errors name it.

    Raises:
        ConfigError: It cannot be written, or holds other suites' run.
    """
    folder = RunFolder(run, resumed=True)
    stored = {record.suite_id for record in folder.earlier.values()}
    if stored and not stored & plan.suites.keys():
        folder.close()
        raise ConfigError(
            f"{shown} is a run of {', '.join(sorted(stored))}, not of {', '.join(plan.suites)}; "
            "name the one you mean with --rh-run"
        )
    return folder

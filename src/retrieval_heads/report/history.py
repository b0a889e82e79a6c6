"""Several runs on one page: what each suite came to, over dates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from retrieval_heads.ablation.arms import NONE
from retrieval_heads.errors import ResultsError
from retrieval_heads.heads.detection import RETRIEVAL_THRESHOLD
from retrieval_heads.intervals import Interval, mean_interval, share_interval
from retrieval_heads.report.page import write_page
from retrieval_heads.report.stored_run import StoredRun, load_run
from retrieval_heads.runs.record import Record, finite_mean


@dataclass(frozen=True)
class Outcome:
    """What one suite came to in one run.

    Args:
        run: Its folder's name.
        began: When it did.
        model: The tested model, its last name.
        cells: Cells that were measured.
        retrieved: Share of them, with its interval.
        score: Mean of the score that decides, with its interval where there are values enough.
        metric: That score.
        heads: How many heads retrieve, of a detect suite.
    """

    run: str
    began: datetime
    model: str
    cells: int
    retrieved: tuple[float, Interval]
    score: tuple[float, Interval | None]
    metric: str
    heads: int | None


@dataclass(frozen=True)
class History:
    """By suite and model, what its runs came to, the oldest first; and why runs are left out, a sentence each."""

    outcomes: dict[tuple[str, str], list[Outcome]]
    left_out: list[str]


def history_of(folder: Path) -> History:
    """Read every run in a folder.

    Args:
        folder: Of run folders, such as `reports`; `latest`, which points to one of them, is none of its own.

    Raises:
        ResultsError: There is no run in it that can be read.
    """
    if not folder.is_dir():
        raise ResultsError(f"{folder}: a folder of runs is expected, such as reports")
    outcomes: dict[tuple[str, str], list[Outcome]] = {}
    left_out: list[str] = []
    for path in sorted(folder.iterdir()):
        if path.is_symlink() or not (path / "results.jsonl").exists():
            continue
        try:
            run = load_run(path)
            began = _began(run)
        except ResultsError as error:
            left_out.append(str(error))
            continue
        for suite, outcome in _outcomes(run, began):
            outcomes.setdefault((suite, outcome.model), []).append(outcome)
    if not outcomes:
        why = f"; {left_out[0]}" if left_out else ""
        raise ResultsError(f"{folder}: no run with measured cells in it{why}")
    return History({key: sorted(each, key=lambda one: one.began) for key, each in outcomes.items()}, left_out)


def _began(run: StoredRun) -> datetime:
    try:
        began = datetime.fromisoformat(str(run.facts.get("began")))
    except ValueError:
        raise ResultsError(f"{run.name}: its run.json does not say when it began") from None
    return began if began.tzinfo else began.replace(tzinfo=UTC)


def _outcomes(run: StoredRun, began: datetime) -> Iterator[tuple[str, Outcome]]:
    model = str(run.facts.get("model") or "").rstrip("/").rpartition("/")[2]
    suites: dict[str, list[Record]] = {}
    for record in run.records:
        is_measured = record.status in ("pass", "low") and record.scores.get(record.metric) is not None
        if is_measured and record.arm in ("", NONE):
            suites.setdefault(record.suite_id, []).append(record)
    for suite, records in suites.items():
        passed = sum(bool(record.passed) for record in records) / len(records)
        scores = [record.scores[record.metric] for record in records]
        kind, _, name = suite.partition("/")
        table = run.heads.get(name) if kind == "detect" else None
        copy = table.estimates.get("copy") if table else None
        yield (
            suite,
            Outcome(
                run=run.name,
                began=began,
                model=model,
                cells=len(records),
                retrieved=(passed, share_interval(passed, len(records))),
                score=(finite_mean(scores), mean_interval(scores)),
                metric=records[0].metric,
                heads=None if copy is None else int((copy.mean >= RETRIEVAL_THRESHOLD).sum()),
            ),
        )


def write_history(history: History, path: Path, title: str) -> Path:
    """Write the page.

    Args:
        history: What to show.
        path: The file; reports of runs that lie in folders beside it are linked.
        title: Heading.

    Raises:
        ResultsError: The file cannot be written.
    """
    has_models = len({model for _, model in history.outcomes}) > 1
    lines = {
        " · ".join(filter(None, (_titled(suite), model if has_models else ""))): each
        for (suite, model), each in history.outcomes.items()
    }
    context = {
        "title": title,
        "suites": [
            {"name": name, "rows": [_row(one, path.parent) for one in reversed(each)]} for name, each in lines.items()
        ],
        "left_out": history.left_out,
    }
    return write_page(path, "history.html.j2", ("text.js", "curves.js", "history.js"), context, _data(lines))


def _titled(suite: str) -> str:
    kind, _, name = suite.partition("/")
    return name or "needle in a haystack" if kind == "niah" else f"{name}: {kind}"


def _data(lines: dict[str, list[Outcome]]) -> dict[str, object]:
    """What the page's script draws: a line for each suite, x in seconds since 1970."""

    def points(each: Sequence[Outcome], part: str) -> list[tuple[float, float, float | None, float | None, int]]:
        found = []
        for one in each:
            value, interval = getattr(one, part)
            ends = (round(interval.low, 4), round(interval.high, 4)) if interval else (None, None)
            found.append((one.began.timestamp(), round(value, 4), *ends, one.cells))
        return found

    return {
        "lines": {
            part: [{"name": name, "points": points(each, part)} for name, each in lines.items()]
            for part in ("retrieved", "score")
        }
    }


def _row(one: Outcome, folder: Path) -> dict[str, object]:
    share, interval = one.retrieved
    mean, ends = one.score
    report = folder / one.run / "report.html"
    return {
        "date": one.began.strftime("%Y-%m-%d %H:%M"),
        "run": one.run,
        "link": f"{quote(one.run)}/report.html" if report.exists() else "",
        "cells": f"{one.cells:,}",
        "retrieved": f"{share:.2f} [{interval.low:.2f}, {interval.high:.2f}]",
        "score": f"{mean:.3f}" + (f" [{ends.low:.3f}, {ends.high:.3f}]" if ends else ""),
        "metric": one.metric.replace("_", " "),
        "heads": "" if one.heads is None else f"{one.heads:,}",
    }

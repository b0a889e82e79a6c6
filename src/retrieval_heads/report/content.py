"""What the page's scripts draw: records and heads as plain builtins, with nothing said twice."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from retrieval_heads import colours
from retrieval_heads.errors import ResultsError
from retrieval_heads.heads.detection import RETRIEVAL_THRESHOLD
from retrieval_heads.heads.score import SCORES, head_score
from retrieval_heads.heads.table import Estimate, HeadTable
from retrieval_heads.report.curves import curves, dose
from retrieval_heads.report.head_samples import head_samples
from retrieval_heads.report.head_views import agreements, views
from retrieval_heads.report.matching import marked
from retrieval_heads.report.matrix import references
from retrieval_heads.report.stored_run import StoredRun
from retrieval_heads.runs.grid import Grid, at
from retrieval_heads.runs.place import axis_label
from retrieval_heads.runs.record import Record

MAX_TEXT = 20_000
"""Characters of an answer that the page holds; `results.jsonl` has them all."""
MAX_INSERTED = 300
"""Characters of each of several texts in a context."""


def content(run: StoredRun) -> dict[str, object]:
    """Everything that the page's scripts read.

    Raises:
        ResultsError: A score is NaN or infinite.
    """
    before = {(record.suite_id, record.cell): record for record in run.baseline if record.cell}
    before |= references(run.records)
    by_suite: dict[str, list[Record]] = {}
    for record in run.records:
        if record.status == "spared":
            continue  # nothing is known of it; the overview counts it
        by_suite.setdefault(record.suite_id, []).append(record)
    return {
        "colours": {
            "scores": colours.SCORES,
            "heads": colours.HEADS,
            "headsOnDark": colours.HEADS_ON_DARK,
            "differences": colours.DIFFERENCES,
            "differencesOnDark": colours.DIFFERENCES_ON_DARK,
        },
        "suites": [_suite(records, before) for records in by_suite.values()],
        "heads": [_heads(name, table, by_suite.get(f"detect/{name}", ())) for name, table in run.heads.items()],
        "doses": [dose(each) for each in run.ablations],
    }


def _suite(records: Sequence[Record], before: Mapping[tuple[str, str], Record]) -> dict[str, object]:
    metrics = sorted({name for record in records for name in record.scores})
    own = next((record.metric for record in records if record.metric), metrics[0] if metrics else "")
    questions: dict[tuple[object, ...], int] = {}
    rows = []
    for record in records:
        asked = (
            record.needle_name,
            record.needle,
            record.question,
            " / ".join((record.reference, *record.alternatives)),
            record.answer_span,
        )
        number = questions.setdefault(asked, len(questions))
        rows.append(_record(record, number, metrics, before.get((record.suite_id, record.cell))))
    keys = ("name", "needle", "question", "expected", "span")
    x, y = Grid.of(records).sides
    return {
        "sides": {"x": {"axis": x, "title": axis_label(x)}, "y": {"axis": y, "title": axis_label(y)}},
        "kind": records[0].kind,
        "name": records[0].suite,
        "metric": own,
        "metrics": metrics,
        "threshold": next((record.threshold for record in records if record.threshold is not None), None),
        "questions": [dict(zip(keys, asked, strict=True)) for asked in questions],
        "records": rows,
        "curves": curves(records),
        "isCompared": any("baseline" in row for row in rows),
        "comparedWith": "baseline" if records[0].setting is None else "reference",
    }


def _record(record: Record, question: int, metrics: Sequence[str], before: Record | None) -> dict[str, object]:
    x, y = at(record)
    said = {
        "question": question,
        "x": x,
        "y": y,
        "status": record.status,
        "scores": _scores(record, metrics),
        "answer": marked(record.text[:MAX_TEXT], record.sayings, record.question, record.metric),
        "characters": len(record.text),
    }
    # What is absent takes no room; a page of 10,000 records has to be small.
    more: dict[str, object] = {
        "achieved": record.achieved_depth,
        "seed": record.seed or None,
        "arm": record.arm or None,
        "reason": record.reason or None,
        "baseline": _scores(before, metrics) if before else None,
        "around": record.around or _around(record),
        "inserted": _inserted(record),
        "finish": record.finish_reason or None,
        "promptTokens": record.prompt_tokens,
        "answerTokens": record.answer_tokens or None,
        "thoughts": None if record.thoughts is None else record.thoughts[:MAX_TEXT],
        "thoughtTokens": record.thought_tokens,
        "cachedTokens": record.cached_tokens,
        "needleSpan": record.needle_span,
        "seconds": record.seconds,
        "cell": record.cell or None,
        "request": record.request or None,
    }
    if record.recipe:
        more["haystack"] = {"source": record.recipe.haystack, "offset": record.recipe.offset}
    return said | {key: value for key, value in more.items() if value is not None}


def _inserted(record: Record) -> list[tuple[str, str, float]] | None:
    """Of a record with several texts in its context, the role of each, the text and where it stands, in percent."""
    stood = record.insertions or []
    if len(stood) < 2:
        return None
    return [(each.role, each.text.strip()[:MAX_INSERTED], round(each.achieved_depth, 1)) for each in stood]


def _around(record: Record) -> tuple[str, str] | None:
    """The predecessor's records hold the whole prompt."""
    needle = record.needle.strip()
    if not record.prompt or not needle or record.prompt.count(needle) != 1:
        return None
    before, _, after = record.prompt.partition(needle)
    return before[-240:], after[:240]


def _scores(record: Record, metrics: Sequence[str]) -> list[float | None]:
    for name, value in record.scores.items():
        if not math.isfinite(value):
            raise ResultsError(f"record {record.cell!r}: score {name} is {value}, not a number; run the cell again")
    if record.status not in ("pass", "low"):
        return [None] * len(metrics)
    return [round(record.scores[name], 4) if name in record.scores else None for name in metrics]


def _heads(name: str, table: HeadTable, records: Sequence[Record]) -> dict[str, object]:
    return {
        "name": name,
        "ranking": table.ranking,
        "threshold": RETRIEVAL_THRESHOLD,
        "counted": table.counted,
        "intervals": str(table.facts.get("intervals") or ""),
        "scores": {
            score: {
                "definition": head_score(score).definition if score in SCORES.names else "",
                "signed": score in SCORES.names and head_score(score).is_signed,
            }
            for score in table.estimates
        },
        "views": [_view(*view) for view in views(table)],
        "samples": head_samples(table, records),
    }


def _view(label: str, group: int, table: HeadTable) -> dict[str, object]:
    return {
        "label": label,
        "group": group,
        "layers": [
            {"number": layer.number, "heads": layer.heads, "kind": layer.kind}
            | ({"window": layer.sliding_window} if layer.sliding_window is not None else {})
            for layer in table.layers
        ],
        "scores": {
            score: {part: _rows(values) for part, values in _parts(estimate)}
            for score, estimate in table.estimates.items()
        },
        "agreement": agreements(table),
    }


def _parts(estimate: Estimate) -> Iterator[tuple[str, Iterable[Iterable[float]]]]:
    """The mean, and the ends of its interval where any head has one: KV heads have none."""
    yield "mean", estimate.mean
    for part in ("low", "high"):
        values = getattr(estimate, part)
        if any(map(math.isfinite, values.ravel())):
            yield part, values


def _rows(values: Iterable[Iterable[float]]) -> list[list[float | None]]:
    return [[round(float(value), 4) if math.isfinite(value) else None for value in row] for row in values]

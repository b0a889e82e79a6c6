"""The baseline file: what a run scored, one short line a cell, small enough to commit.

The first line is a header: schema, number of cells, what measured them (`META_KEYS`, and what else tells the model and
the engine), and with a detection the mean scores of its heads. The others are `Record`s of which only the fields below
are kept: what tells the question apart from the model (`recipe`), and the answer, so that it can be scored again.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, Final

from pydantic import ValidationError

from retrieval_heads.errors import ResultsError, UnreadableFile
from retrieval_heads.files import write_whole
from retrieval_heads.gates.head_agreement import HeadMeans
from retrieval_heads.gates.selection import cell_name, last_of_each, place
from retrieval_heads.heads.formats import read_table
from retrieval_heads.heads.formats.figures import named_score
from retrieval_heads.heads.formats.heads import SCHEMA as HEADS_SCHEMA
from retrieval_heads.reading import parse_json, read_object, read_text
from retrieval_heads.runs.folder import Facts
from retrieval_heads.runs.identity import Identities, Identity, shown
from retrieval_heads.runs.record import Record, check_bounds, first_mistake, read_records

BASELINE_SCHEMA: Final = "retrieval-heads-baseline/1"
META_KEYS: Final = ("model", "model_revision", "dtype", "engine", "device")
"""What measured the cells: keys of the header, and of a run folder's `run.json`."""

_KEPT: Final = (
    "cell",
    "suite",
    "kind",
    "task",
    "axes",
    "answered_by",
    "status",
    "context_length",
    "document_depth",
    "needle_name",
    "seed",
    "arm",
    "needle",
    "answer_span",
    "question",
    "reference",
    "alternatives",
    "text",
    "recipe",
    "metric",
    "threshold",
    "passed",
    "rougeL",
    "scores",
)
HASH: Final = "_hash"
"""Ends the header's keys of files, such as `weights_hash`."""
_IN_META_KEYS: Final = {"name", "revision", "dtype", "version", "device", "torch", "nnsight"}
_SAVE_AGAIN = "save it again with --rh-save-baseline"


@dataclass(frozen=True)
class Baseline:
    """Stored scores to compare with, and what measured them."""

    records: tuple[Record, ...]
    meta: Mapping[str, str] = field(default_factory=dict)
    heads: Mapping[str, HeadMeans] = field(default_factory=dict)
    """Mean head scores of each detect suite, by its name; a head without a score is NaN."""
    file: Path | None = field(default=None, compare=False)
    """Where it was read."""

    @property
    def save_command(self) -> str:
        """What saves it anew."""
        if self.file is None or self.file.parent.name != "baselines":
            return "pytest ... --rh-save-baseline NAME"
        return f"pytest {_shown(self.file.parents[1])} ... --rh-save-baseline {self.file.stem}"


def save_baseline(
    records: Iterable[Record],
    meta: Mapping[str, str],
    path: Path,
    heads: Mapping[str, HeadMeans] | None = None,
) -> None:
    """Write a baseline file, whole or not at all.

    Args:
        records: A run's records; of several for one cell the last is kept. Skipped cells and those in error
            are kept as such, and compare as cells that the baseline lacks.
        meta: Values of `META_KEYS`, and others that a comparison is to warn of.
        path: The file; its folder is made.
        heads: Mean head scores of each detect suite, by its name.

    Raises:
        ResultsError: Nothing was measured, a value is NaN, or the file cannot be written.
    """
    kept, _ = last_of_each(records)
    if not any(record.status in ("pass", "low") for record in kept.values()):
        raise ResultsError(f"{path}: no baseline was written, because no cell was measured")
    header: dict[str, Any] = {"schema": BASELINE_SCHEMA, "cells": len(kept)}
    header |= {key: value for key, value in meta.items() if key not in header}
    if heads:
        header["heads"] = {suite: {name: _plain_rows(rows) for name, rows in of.items()} for suite, of in heads.items()}
    lines = [json.dumps(header, ensure_ascii=False)]
    for record in sorted(kept.values(), key=_order):
        try:
            lines.append(json.dumps(_kept_fields(record), ensure_ascii=False, allow_nan=False))
        except ValueError:
            raise ResultsError(
                f"{path}: no baseline was written, because a score of cell {place(record)} is not a number"
            ) from None
    try:
        write_whole(path, ("\n".join(lines) + "\n").encode())
    except OSError as error:
        raise ResultsError(f"{path}: the baseline cannot be written ({error.strerror or error})") from None


def load_baseline(path: Path) -> Baseline:
    """Read a baseline file, a `results.jsonl` or a run folder.

    A results file's meta is read from the `run.json` beside it, where there is one.

    Raises:
        ResultsError: The file is missing, empty, torn or of another schema.
    """
    file = path / "results.jsonl" if path.is_dir() else path
    if path.is_dir() and not file.exists():
        raise ResultsError(f"{path}: no results.jsonl in this folder; expected a run folder or a baseline file")
    lines = _lines(file)
    header = _object(lines[0], f"{file}:1")
    schema = str(header.get("schema", ""))
    if schema == BASELINE_SCHEMA:
        return _read_baseline(file, header, lines[1:])
    if schema.startswith(BASELINE_SCHEMA.split("/")[0]):
        raise ResultsError(f"{file}: baseline of schema {schema!r}; this version reads {BASELINE_SCHEMA!r}")
    meta = _run_meta(file.with_name("run.json"))
    return Baseline(tuple(read_records(file)), meta, dict(_run_heads(file.parent)), file)


def meta_of(facts: Facts) -> dict[str, str]:
    """What measured a run, as a header holds it: `META_KEYS`, and what else tells its model and its engine.

    Args:
        facts: What its `run.json` says.
    """
    meta = {key: str(facts[key]) for key in META_KEYS if facts.get(key) is not None}
    known = Identities.of_facts(facts)
    by = facts.get("answered_by")
    if isinstance(by, Mapping):
        sides = known.models.get(str(by.get("model"))), known.engines.get(str(by.get("engine")))
        meta |= {key: value for side in sides if side for key, value in _header_fields(side)}
    return meta


def _header_fields(identity: Identity) -> Iterator[tuple[str, str]]:
    """The fields that `META_KEYS` do not say; all files of a kind by one hash."""
    files: dict[str, dict[str, Any]] = {}
    for key, value in identity.fields.items():
        kind, _, name = key.rpartition("/")
        if kind:
            files.setdefault(kind, {})[name] = value
        elif key not in _IN_META_KEYS and value is not False and value != "none":
            yield key, shown(value)
    for kind, named in files.items():
        yield f"{kind}{HASH}", Identity(named).key


def meta_differences(baseline: Mapping[str, str], current: Mapping[str, str]) -> list[str]:
    """A warning for each key of `META_KEYS`, or beside them, that the two sides do not share.

    Hashes of a model's files, which baselines of before do not hold, are compared where both sides say them.
    """
    if current and not baseline:
        return ["the baseline does not say which model and engine measured it"]
    keys = dict.fromkeys((*META_KEYS, *baseline, *current))
    compared = [key for key in keys if not key.endswith(HASH) or (key in baseline and key in current)]
    return [
        f"{key} differs: {_said(baseline, key)} in the baseline, {_said(current, key)} now"
        for key in compared
        if baseline.get(key) != current.get(key)
    ]


def _said(meta: Mapping[str, str], key: str) -> str:
    return meta.get(key, "unknown" if key in META_KEYS else "not said")


def _read_baseline(file: Path, header: Mapping[str, Any], lines: Sequence[str]) -> Baseline:
    records = tuple(_record(line, f"{file}:{number}") for number, line in enumerate(lines, start=2))
    expected = header.get("cells", len(records))
    if type(expected) is not int or expected < 0:
        raise ResultsError(f"{file}:1: cells: a number of cells is expected, found {expected!r}; {_SAVE_AGAIN}")
    if not records:
        raise ResultsError(f"{file}: the baseline holds no cell; {_SAVE_AGAIN}")
    if len(records) != expected:
        raise ResultsError(f"{file}: holds {len(records)} of its {expected} cells; {_SAVE_AGAIN}")
    meta = {key: str(value) for key, value in header.items() if key not in ("schema", "cells", "heads")}
    seen: dict[tuple[str, str], int] = {}
    for number, record in enumerate(records, start=2):
        key = record.suite_id, record.cell
        if record.cell and key in seen:
            raise ResultsError(f"{file}:{number}: the cell of line {seen[key]} again; {_SAVE_AGAIN}")
        seen[key] = number
    heads = header.get("heads", {})
    if not isinstance(heads, dict):
        raise ResultsError(f"{file}:1: heads: scores are expected by suite, found {heads!r}; {_SAVE_AGAIN}")
    return Baseline(records, meta, {suite: _scored_rows(scores, f"{file}:1") for suite, scores in heads.items()}, file)


def _shown(folder: Path) -> Path:
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def _record(line: str, where: str) -> Record:
    data = _object(line, where)
    try:
        record = Record.model_validate(data)
    except ValidationError as error:
        raise ResultsError(f"{where}: {first_mistake(error)}; {_SAVE_AGAIN}") from None
    try:
        check_bounds(data, where)
    except ResultsError as error:
        raise ResultsError(f"{error}; {_SAVE_AGAIN}") from None
    return record


def _kept_fields(record: Record) -> dict[str, Any]:
    if record.recipe is not None:
        source = PurePath(record.recipe.haystack)
        name = source.name if source.is_absolute() else str(source)  # no path of this machine
        record = record.model_copy(update={"recipe": record.recipe.model_copy(update={"haystack": name})})
    data = record.to_json() | {"cell": cell_name(record)}
    return {name: data[name] for name in _KEPT if data.get(name, "") not in ("", [])}


def _order(record: Record) -> tuple[str | float, ...]:
    place = record.place
    facets = (str(value) for _, value in place.facets)
    return (record.suite, record.task or "", *facets, *place.grid, record.arm, record.seed, record.cell)


def _lines(file: Path) -> list[str]:
    if not os.path.lexists(file):
        raise ResultsError(f"{file}: no such baseline")
    try:
        text = read_text(file)
    except UnreadableFile as error:
        raise ResultsError(f"the baseline cannot be read: {error}") from None
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        raise ResultsError(f"{file}: the baseline is empty; {_SAVE_AGAIN}")
    return lines


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        data = parse_json(line, where)
    except ResultsError as error:
        raise ResultsError(f"{error}; {_SAVE_AGAIN}") from None
    if not isinstance(data, dict):
        raise ResultsError(f"{where}: expected a JSON object, found {type(data).__name__}; {_SAVE_AGAIN}")
    return data


def _plain_rows(rows: Any) -> list[list[float | None]]:
    return [[round(float(value), 6) if math.isfinite(value) else None for value in row] for row in rows]


def _scored_rows(scores: Any, where: str) -> HeadMeans:
    """Mean head scores as a header holds them, `null` for a head without one."""
    is_table = isinstance(scores, dict) and all(
        isinstance(rows, list) and all(isinstance(row, list) for row in rows) for rows in scores.values()
    )
    if not is_table:
        raise ResultsError(f"{where}: heads: scores are expected by name, layer and head; {_SAVE_AGAIN}")
    try:
        return {name: _checked_rows(rows, f"heads: {name}", name) for name, rows in scores.items()}
    except ValueError as error:
        raise ResultsError(f"{where}: {error}; {_SAVE_AGAIN}") from None


def _checked_rows(rows: Any, where: str, name: str) -> list[list[float]]:
    return [[math.nan if value is None else named_score(value, where, name) for value in row] for row in rows]


def _run_heads(folder: Path) -> Iterator[tuple[str, HeadMeans]]:
    """The mean head scores of a run folder's detections; a file that is none of ours is passed over."""
    for file in sorted(folder.glob("heads*.json")):
        data = read_object(file)
        if data.get("schema") != HEADS_SCHEMA or "suite" not in data:
            continue
        table = read_table(file)
        yield table.suite, {name: estimate.mean.tolist() for name, estimate in table.estimates.items()}


def _run_meta(file: Path) -> dict[str, str]:
    """What a run folder says of itself; a run without it is still a baseline, and the comparison warns."""
    try:
        known = read_object(file)
    except UnreadableFile:
        return {}
    return meta_of(known)

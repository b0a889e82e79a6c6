"""A run as it lies on disk, or as its session still holds it: what reports and pictures are made of."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from retrieval_heads.ablation.effect import SCHEMA as ABLATION_SCHEMA
from retrieval_heads.ablation.sparsity import SCHEMA as COMPRESSION_SCHEMA
from retrieval_heads.errors import ResultsError
from retrieval_heads.heads.formats import read_table
from retrieval_heads.heads.table import HeadTable
from retrieval_heads.reading import read_object, read_text
from retrieval_heads.runs.folder import Facts, read_facts
from retrieval_heads.runs.record import Record, first_mistake, read_records


class _Interval(BaseModel):
    value: float
    low: float
    high: float


class _Group(BaseModel):
    name: str
    cells: int
    accuracy: _Interval
    drop: _Interval | None
    masks: dict[str, object] | list[str]
    draws: dict[str, float]


class _Compared(BaseModel):
    by: str
    count: int
    drop: _Interval
    excess: _Interval | None
    per_head: _Interval
    behind: _Interval | None


class _Ablation(BaseModel):
    """What the page draws of an `ablation.json`."""

    suite: str
    mode: str
    groups: list[_Group]
    excess: dict[str, _Interval] | None = None
    comparison: list[_Compared] = []
    controls: dict[str, dict[str, object]] | None = None
    notes: list[str] | None = None


class _Point(BaseModel):
    ranking: str
    keep: float
    cells: int
    accuracy: _Interval
    drop: _Interval | None
    above: _Interval | None = None
    draws: dict[str, float]
    bytes_share: float | None


class _Least(BaseModel):
    ranking: str
    length: int | None
    share: float
    low: float
    high: float


class _Compression(BaseModel):
    """What the page draws of a `compression.json`."""

    suite: str
    measures: str
    until: float
    points: list[_Point]
    least: list[_Least]
    notes: list[str] | None = None


class _Gate(BaseModel):
    suite: str = ""
    gate: str = ""
    sentence: str = ""
    worst: list[str] = []


class _Gates(BaseModel):
    """What the page draws of a `gates.json`."""

    gates: list[_Gate] = []
    warnings: list[str] = []
    notes: list[str] = []


@dataclass(frozen=True)
class StoredRun:
    """What a report shows.

    Args:
        name: Heads the report; the run folder's name.
        records: Every cell's record.
        facts: What `run.json` says.
        heads: The heads of each detect suite, by its name.
        ablations: What each ablate suite's `ablation.json` says.
        compressions: What each compress suite's `compression.json` says.
        gates: What `gates.json` says.
        config: The text of `config.yaml`.
        baseline: Records of an earlier run to compare with.
    """

    name: str
    records: Sequence[Record] = ()
    facts: Facts = field(default_factory=dict)
    heads: Mapping[str, HeadTable] = field(default_factory=dict)
    ablations: Sequence[Mapping[str, object]] = ()
    compressions: Sequence[Mapping[str, object]] = ()
    gates: Mapping[str, object] = field(default_factory=dict)
    config: str = ""
    baseline: Sequence[Record] = ()


def load_run(path: Path) -> StoredRun:
    """Read a run's folder, or the folder of one of its files.

    Args:
        path: A run folder, a `results.jsonl` (ours or the predecessor's), or a file of heads.

    Raises:
        ResultsError: Nothing of a run is there, or a file cannot be read.
    """
    folder = path if path.is_dir() else path.parent
    if not path.exists():
        raise ResultsError(f"{path}: no such file or folder")
    if path.is_dir():
        results = folder / "results.jsonl"
        head_files = sorted(folder.glob("heads*.json"))
        if not os.path.lexists(results) and not head_files:
            raise ResultsError(f"{path}: neither results.jsonl nor heads.json is in this folder")
    else:
        is_heads = path.suffix == ".json"
        results, head_files = (folder / "-", [path]) if is_heads else (path, [])
    tables = [(file, read_table(file)) for file in head_files]
    return StoredRun(
        name=path.resolve().name if path.is_dir() else path.stem,
        records=pick_records(read_records(results, torn_last_line=True)) if os.path.lexists(results) else (),
        facts=read_facts(folder),
        heads={table.suite or file.stem: table for file, table in tables},
        ablations=read_ablations(folder) if path.is_dir() else (),
        compressions=read_compressions(folder) if path.is_dir() else (),
        gates=_checked(_Gates, _read_object(folder / "gates.json"), folder / "gates.json"),
        config=_read_text(folder / "config.yaml"),
    )


def pick_records(records: Sequence[Record]) -> list[Record]:
    """The last record of each cell: a resumed run that was killed holds some cells twice.

    Records without a cell's name (the predecessor's) are kept as they are.

    Raises:
        ResultsError: A cell was asked in two different ways: the records are of several runs.
    """
    last: dict[tuple[str, str], Record] = {}
    for record in records:
        key = record.suite_id, record.cell
        if record.cell and record.request and key in last and last[key].request not in ("", record.request):
            raise ResultsError(
                f"cell {record.cell!r} was sent in two different ways: the results are of several runs; "
                "give each run's own file"
            )
        last[key] = record
    return [record for record in records if not record.cell or last[record.suite_id, record.cell] is record]


def read_ablations(folder: Path) -> list[Mapping[str, Any]]:
    """What the ablate suites of a run's folder came to.

    Raises:
        ResultsError: A file cannot be read, or is of another schema.
    """
    return _read_each(folder, "ablation*.json", ABLATION_SCHEMA, _Ablation)


def read_compressions(folder: Path) -> list[Mapping[str, Any]]:
    """What the compress suites of a run's folder came to.

    Raises:
        ResultsError: A file cannot be read, or is of another schema.
    """
    return _read_each(folder, "compression*.json", COMPRESSION_SCHEMA, _Compression)


def _read_each(folder: Path, pattern: str, schema: str, form: type[BaseModel]) -> list[Mapping[str, Any]]:
    found = [(file, _read_object(file)) for file in sorted(folder.glob(pattern))]
    for file, content in found:
        if content.get("schema") != schema:
            raise ResultsError(f"{file}: schema {content.get('schema')!r}; this version reads {schema!r}")
    return [_checked(form, content, file) for file, content in found]


def _read_object(file: Path) -> dict[str, object]:
    return read_object(file) if os.path.lexists(file) else {}


def _read_text(file: Path) -> str:
    return read_text(file) if os.path.lexists(file) else ""


def _checked(form: type[BaseModel], content: Mapping[str, object], file: Path) -> Mapping[str, object]:
    """A file's content, which has the form that the page draws."""
    try:
        form.model_validate(content)
    except ValidationError as error:
        raise ResultsError(f"{file}: {first_mistake(error)}") from None
    return content

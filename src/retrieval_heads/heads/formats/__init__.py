"""The files that heads are kept in, ours and our peers': one module a format, and the way in and out of all of them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retrieval_heads.errors import ResultsError
from retrieval_heads.files import write_whole
from retrieval_heads.heads.detection import Detection
from retrieval_heads.heads.formats import detected, head_score, heads
from retrieval_heads.heads.formats.figures import Nonsense
from retrieval_heads.heads.table import HeadTable, Ranked, rank
from retrieval_heads.reading import parse_json, read_text
from retrieval_heads.runs.folder import Facts

_MALFORMED = (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError)


def write_heads(detection: Detection, folder: Path, facts: Facts, suffix: str = "") -> list[Path]:
    """Write a detection in every form that is read elsewhere.

    Args:
        detection: What was measured.
        folder: The run's folder.
        facts: What `heads.json` says of the run: model, revision, dtype, engine.
        suffix: Behind each file's name, when a run has several detect suites.

    Returns:
        `heads.json` (everything), `detected.json` and `detected-agg.json` (the predecessor's form, `copy`), and
        `head_score.json` (the paper's form, `copy_reference`).
    """
    contents = heads.contents(detection, facts) | detected.contents(detection) | head_score.contents(detection)
    written = []
    for name, content in contents.items():
        path = folder / f"{name}{suffix}.json"
        write_whole(path, (json.dumps(content, ensure_ascii=False) + "\n").encode())
        written.append(path)
    return written


def read_ranked(path: Path) -> list[Ranked]:
    """The heads of any head file with their mean scores, best first; ties in the order of layer, then head.

    Args:
        path: `heads.json`, `detected.json` or `detected-agg.json` (ours or the predecessor's), or the paper's form
            `{"layer-head": [scores]}`.

    Raises:
        ResultsError: The file is missing, empty, or of none of these forms.
    """
    data = _read_object(path)
    try:
        return rank(_form_of(data).means_in(data))
    except _MALFORMED as error:
        raise _no_heads(path, error) from None


def read_table(path: Path) -> HeadTable:
    """Every score of any head file that `read_ranked` accepts.

    Raises:
        ResultsError: The file is missing, empty, of none of these forms, or a score is no number.
    """
    data = _read_object(path)
    try:
        table: HeadTable = _form_of(data).table_in(data)
    except _MALFORMED as error:
        raise _no_heads(path, error) from None
    if all(math.isnan(value) for estimate in table.estimates.values() for value in estimate.mean.flat):
        raise ResultsError(f"{path}: no head has a score that is a number")
    return table


def _form_of(data: Mapping[str, Any]) -> Any:
    """The module of the format that a file's object is in."""
    return next((form for form in (heads, detected) if form.is_form_of(data)), head_score)


def _read_object(path: Path) -> dict[str, Any]:
    data = parse_json(read_text(path), str(path), "JSON")
    if not isinstance(data, dict) or not data:
        raise ResultsError(f"{path}: holds no heads")
    return data


def _no_heads(path: Path, error: Exception) -> ResultsError:
    if isinstance(error, Nonsense):
        return ResultsError(f"{path}: {error}")
    return ResultsError(
        f"{path}: not a file of heads; accepted are heads.json, detected.json, detected-agg.json and the paper's "
        'form {"layer-head": [scores]}'
    )

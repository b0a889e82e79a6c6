"""The files that heads are kept in, ours and our peers': one module a format, and the way in and out of all of them."""

from __future__ import annotations

import json
import math
from pathlib import Path

from retrieval_heads.errors import ResultsError
from retrieval_heads.files import write_whole
from retrieval_heads.heads.detection import Detection
from retrieval_heads.heads.formats import detected, head_score, heads
from retrieval_heads.heads.formats.figures import Nonsense, scored_heads
from retrieval_heads.heads.formats.format import FORMATS, HeadFile, HeadFormat, Source
from retrieval_heads.heads.table import HeadTable, Ranked, rank
from retrieval_heads.runs.folder import Facts

_MALFORMED = (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError, IndexError)


def write_heads(detection: Detection, folder: Path, facts: Facts, suffix: str = "") -> list[Path]:
    """Write a detection in every form that is read elsewhere.

    Args:
        detection: What was measured.
        folder: The run's folder.
        facts: What `heads.json` says of the run: model, revision, dtype, engine.
        suffix: Behind each file's name, when a run has several detect suites.

    Returns:
        `heads.json` (everything), `detected.json` and `detected-agg.json` (the predecessor's form, `copy`), and
        `head_score.json` (the paper's form, `copy_reference`), each where its score was measured.
    """
    contents = heads.contents(detection, facts) | detected.contents(detection) | head_score.contents(detection)
    written = []
    for name, content in contents.items():
        path = folder / f"{name}{suffix}.json"
        write_whole(path, (json.dumps(content, ensure_ascii=False) + "\n").encode())
        written.append(path)
    return written


def read_ranked(path: Path, by: str | None = None) -> list[Ranked]:
    """The heads of any head file with their mean scores, best first; ties in the order of layer, then head.

    Args:
        path: As `read_table` takes.
        by: The score that ranks them; `None` for the file's own.

    Raises:
        ResultsError: See `read_table`; or the file has no such score.
    """
    table = read_table(path)
    if by is not None and by not in table.estimates:
        raise ResultsError(f"{path}: has no score {by}; it has {', '.join(table.estimates)}")
    return rank(scored_heads(table, by or table.ranking))


def read_table(path: Path) -> HeadTable:
    """Every score of any file that holds query heads, whatever its format.

    Args:
        path: `heads.json`, `detected.json` or `detected-agg.json` (ours or the predecessor's), the paper's form
            `{"layer-head": [scores]}`, or another of `FORMATS`.

    Raises:
        ResultsError: The file is missing, empty, of none of these forms, or a score is no number.
    """
    source = Source(path)
    form = form_of(source)
    if form.kv_heads:
        raise ResultsError(f"{path}: holds KV heads, and query heads are expected; `heads import` makes them")
    return _table(source, form)


def read_heads(path: Path, form: str | None = None) -> HeadFile:
    """All that a file says of heads, each sample's figures among it.

    Args:
        path: A file of any of `FORMATS`.
        form: The name of its format; `None` to recognise it.

    Raises:
        ResultsError: The file is missing, empty, or not of that form, or of none.
        ConfigError: There is no format of that name.
    """
    source = Source(path)
    found = form_of(source) if form is None else FORMATS.find(form)
    table = _table(source, found)
    try:
        samples = found.samples(source, table)
    except _MALFORMED as error:
        raise _no_heads(path, error) from None
    return HeadFile(table, samples, found.kv_heads)


def form_of(source: Source) -> HeadFormat:
    """The format of a file, the first that recognises it.

    Raises:
        ResultsError: It cannot be read, or none does.
    """
    forms = [FORMATS.find(name) for name in FORMATS.names]
    for form in forms:
        if form.binary and form.recognises(source):
            return form
    found = next((form for form in forms if not form.binary and form.recognises(source)), None)
    if found is None:
        raise ResultsError(f"{source.path}: holds no heads")
    return found


def _table(source: Source, form: HeadFormat) -> HeadTable:
    try:
        table = form.table(source)
    except _MALFORMED as error:
        raise _no_heads(source.path, error) from None
    if all(math.isnan(value) for estimate in table.estimates.values() for value in estimate.mean.flat):
        raise ResultsError(f"{source.path}: no head has a score that is a number")
    return table


def _no_heads(path: Path, error: Exception) -> ResultsError:
    if isinstance(error, Nonsense):
        return ResultsError(f"{path}: {error}")
    return ResultsError(
        f"{path}: not a file of heads; accepted are heads.json, detected.json, detected-agg.json, the paper's "
        f'form {{"layer-head": [scores]}} and the formats {", ".join(FORMATS.names)}'
    )

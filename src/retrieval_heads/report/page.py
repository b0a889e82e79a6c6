"""From a stored run to the page: template, styles, scripts and data in one file."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, FunctionLoader, StrictUndefined, Template
from markupsafe import Markup

from retrieval_heads.errors import ResultsError
from retrieval_heads.files import write_whole
from retrieval_heads.report.content import content
from retrieval_heads.report.overview import overview
from retrieval_heads.report.stored_run import StoredRun
from retrieval_heads.runs.signature import NAME

_SCRIPTS = (
    "text.js",
    "address.js",
    "heatmap.js",
    "curves.js",
    "record.js",
    "records.js",
    "cells.js",
    "heads.js",
    "head_table.js",
    "side_by_side.js",
    "head.js",
    "page.js",
)
_ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})


def write_report(run: StoredRun, path: Path) -> Path:
    """Write the report of a run.

    Args:
        run: What to show.
        path: The file, `report.html`; it is written whole or not at all.

    Raises:
        ResultsError: There is nothing to show, a score is no number, or the file cannot be written.
    """
    return _write(path, render(run))


def write_page(
    path: Path, template: str, scripts: Sequence[str], context: Mapping[str, object], data: Mapping[str, object]
) -> Path:
    """Write a page of another kind.

    Args:
        path: The file; it is written whole or not at all.
        template: The asset that it is made of.
        scripts: The assets that it runs, in order.
        context: What the template shows.
        data: What the scripts draw.

    Raises:
        ResultsError: The file cannot be written.
    """
    return _write(path, _page(template, scripts, context, data))


def _write(path: Path, page: str) -> Path:
    try:
        write_whole(path, page.encode("utf-8", "replace"))
    except OSError as error:
        raise ResultsError(
            f"{path}: the report cannot be written ({error.strerror or error}); choose another folder"
        ) from None
    return path


def render(run: StoredRun) -> str:
    """The report's HTML.

    Raises:
        ResultsError: There is nothing to show, or a score is no number.
    """
    if not run.records and not run.heads:
        raise ResultsError("there is nothing to report: no record and no heads")
    return _page("report.html.j2", _SCRIPTS, overview(run), content(run))


def _page(template: str, scripts: Sequence[str], context: Mapping[str, object], data: Mapping[str, object]) -> str:
    script, style = "\n".join(_asset(name) for name in scripts), _asset("report.css")
    page: str = _template(template).render(
        generator=NAME,
        **context,
        # Nothing but our own script and style runs, whatever stands in the data; and nothing is fetched.
        policy=f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'",
        script=Markup(script),
        style=Markup(style),
        data=Markup(embedded(data)),
    )
    return page


def embedded(data: Mapping[str, object]) -> str:
    """JSON that can stand in a `<script>` element: no tag, no entity, no line separator and no lone surrogate in it."""
    return json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":")).translate(_ESCAPES)


@cache
def _template(name: str) -> Template:
    environment = Environment(
        loader=FunctionLoader(_asset),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def _asset(name: str) -> str:
    return files("retrieval_heads.report").joinpath("assets", name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

"""Calling the hooks of users: what they add to a record is plain JSON, and what they raise ends no run."""

from __future__ import annotations

import math
import traceback
from collections.abc import Mapping
from pathlib import Path

import pytest

from retrieval_heads.errors import RetrievalHeadsError
from retrieval_heads.reading import DEEPEST, LARGEST
from retrieval_heads.redaction import without_secrets
from retrieval_heads.runs.record import Record


class AdditionError(RetrievalHeadsError):
    """A hook added what a record cannot hold."""


def with_additions(record: Record, item: pytest.Item) -> Record:
    """The record with what `pytest_rh_record` adds under `extra`; the record itself where that is nothing.

    Args:
        record: A cell's.
        item: Its test, whose folder tells which `conftest.py` have a say.

    Raises:
        AdditionError: It is no plain JSON, or two hooks use the same name.
    """
    extra: dict[str, object] = {}
    for addition in item.ihook.pytest_rh_record(record=record, item=item):
        if not isinstance(addition, Mapping):
            raise AdditionError(f"pytest_rh_record: a mapping or None is expected, found {_kind(addition)}")
        for name in addition:
            if name in extra:
                raise AdditionError(f"pytest_rh_record: two hooks add {name!r}")
        extra |= addition
    return record.model_copy(update={"extra": _plain(extra, "extra", 2)}) if extra else record


def call_hook(config: pytest.Config, name: str, **arguments: object) -> str | None:
    """Call a hook that returns nothing.

    Args:
        config: pytest's.
        name: The hook.
        arguments: What it is given.

    Returns:
        What it raised and where, in one sentence; `None` where nothing.
    """
    try:
        getattr(config.hook, name)(**arguments)
    except pytest.exit.Exception:
        raise
    except (Exception, pytest.fail.Exception) as error:
        frames = traceback.extract_tb(error.__traceback__)
        frame = next((frame for frame in frames if frame.name == name), frames[-1])
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        file, base = Path(frame.filename), Path(config.invocation_params.dir)
        place = file.relative_to(base) if file.is_relative_to(base) else file
        return without_secrets(f"{name} raised {reason} ({place}:{frame.lineno})")
    return None


def _plain(value: object, place: str, depth: int) -> object:
    """A value of builtins alone, as JSON gives it back.

    Args:
        value: What a hook added.
        place: Names it in errors.
        depth: How many lists and mappings of the record's line it stands in, its own included.

    Raises:
        AdditionError: JSON has no such value, or no file of ours may hold it.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _text(value, place)
    if isinstance(value, int):
        if abs(value) >= LARGEST:
            raise AdditionError(f"pytest_rh_record: {place}: a number of more than 63 bits")
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise AdditionError(f"pytest_rh_record: {place}: JSON has no number {float(value)}; use None")
        return float(value)
    if depth > DEEPEST:
        raise AdditionError(f"pytest_rh_record: {place}: more than {DEEPEST} lists and mappings stand in each other")
    if isinstance(value, list):
        return [_plain(one, f"{place}[{number}]", depth + 1) for number, one in enumerate(value)]
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str):
                raise AdditionError(f"pytest_rh_record: {place}: a name is expected to be a text, found {name!r}")
        return {_text(name, place): _plain(one, f"{place}.{name}", depth + 1) for name, one in value.items()}
    raise AdditionError(
        f"pytest_rh_record: {place}: plain JSON is expected (None, bool, int, float, str, list, mapping), "
        f"found {_kind(value)}"
    )


def _text(value: str, place: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise AdditionError(f"pytest_rh_record: {place}: a text holds half of a surrogate pair") from None
    return str.__str__(value)


def _kind(value: object) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"

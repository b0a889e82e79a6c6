"""JSON documents that are wrong: a value at a place, or the text itself."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from typing import Any

from hypothesis import strategies as st

Place = tuple[str | int, ...]

RAW: tuple[str, ...] = (
    "NaN",
    "Infinity",
    "-Infinity",
    "1e400",
    "-1e999",
    "1" + "0" * 400,
    "9" * 5000,
    "-" + "9" * 5000,
    "[" * 500 + "]" * 500,
    '{"a":' * 500 + "1" + "}" * 500,
    "[" * 100_000,
    "[" * 100_000 + "]" * 100_000,
    '"\\ud800"',
    '{"a": 1, "a": 2}',
    "tru",
    "'x'",
    "",
    "0x1F",
    "{1: 2}",
)
"""No JSON of a document of ours, whatever it stands for."""

_MARK = "RAWxVALUE"

TEXTS: dict[str, bytes] = {
    "nothing": b"",
    "white space": b" \n",
    "null": b"null\n",
    "a number": b"5\n",
    "a text": b'"x"\n',
    "a list": b"[]\n",
    "an empty object": b"{}\n",
    "an open bracket": b"{\n",
    "100,000 brackets": b"[" * 100_000,
    "100,000 pairs": b"[" * 100_000 + b"]" * 100_000,
    "500 deep": b'{"a":' * 500 + b"1" + b"}" * 500,
    "NUL": b"\0" * 100,
    "no UTF-8": b'{"a": "\xff"}\n',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "NaN": b"NaN\n",
    "5,000 digits": b'{"a": ' + b"9" * 5000 + b"}\n",
    "10^400": b'{"a": 1' + b"0" * 400 + b"}\n",
    "a picture": b"\x89PNG\r\n\x1a\n\0\0",
    "control characters": b'{"\x1b[31mred": 1}\n',
    "escaped control characters": b'{"schema": "\\u001b[31mred\\u0007"}\n',
}
"""Texts that are no file of a run's."""


def places(data: Any, at: Place = ()) -> Iterator[Place]:
    """Every place in a document, but for the document itself."""
    found = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in found:
        yield (*at, key)
        yield from places(value, (*at, key))


def with_value(data: Any, at: Place, value: Any) -> Any:
    """The document with another value at a place."""
    made = copy.deepcopy(data)
    node = made
    for key in at[:-1]:
        node = node[key]
    node[at[-1]] = value
    return made


def with_raw(data: Any, at: Place, raw: str) -> str:
    """The document on one line, with a value as it is written."""
    return json.dumps(with_value(data, at, _MARK)).replace(f'"{_MARK}"', raw)


def without(data: Any, at: Place) -> Any:
    """The document without the value at a place."""
    made = copy.deepcopy(data)
    node = made
    for key in at[:-1]:
        node = node[key]
    del node[at[-1]]
    return made


def value_at(data: Any, at: Place) -> Any:
    """What stands at a place."""
    for key in at:
        data = data[key]
    return data


def wrong_for(value: Any) -> Sequence[Any]:
    """Values of another kind than one."""
    if isinstance(value, bool):
        return ("x", 5, [], {})
    if isinstance(value, int):
        return ("x", 1.5, [], {}, [value])
    if isinstance(value, float):
        return ("x", [], {}, [value])
    if isinstance(value, str):
        return (5, [], {}, True)
    if isinstance(value, list):
        return ("x", 5, {}, [{}], [[{}]])
    return ("x", 5, [], [{}])


def places_of(data: Any) -> st.SearchStrategy[Place]:
    """A place of a document."""
    return st.sampled_from(sorted(places(data), key=str))

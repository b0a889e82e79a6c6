"""A mistake in the settings as one sentence: what, where, what is accepted."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic import ValidationError

from retrieval_heads.settings import yaml_reading
from retrieval_heads.settings.section import Section


def sentences(
    schema: type[Section], error: ValidationError, where: str, text: str, under: tuple[str, ...] = ()
) -> Iterator[str]:
    """One sentence for each mistake: file, line, key, what is wrong, what is accepted.

    Args:
        schema: What was expected.
        error: What pydantic found.
        where: Names the file or option.
        text: The file's; lines are looked up in it.
        under: The keys under which the settings stand in it.
    """
    seen = set()
    slips = {
        (*detail["loc"][:-1], meant)
        for detail in error.errors()
        if detail["type"] == "extra_forbidden" and (meant := _meant(schema, detail["loc"]))
    }
    for detail in error.errors():
        if detail["type"] == "missing" and detail["loc"] in slips:
            continue  # it is there, misspelt
        keys = [part for part in detail["loc"] if not _is_branch(part)]
        name = ".".join(str(key) for key in (*under, *keys))
        line = yaml_reading.line_of(text, [*under, *keys])
        sentence = f"{where}{f':{line}' if line else ''}: {name}: {_message(schema, detail, keys)}"
        if (line, name) not in seen:
            seen.add((line, name))
            yield sentence


def _meant(schema: type[Section], loc: Sequence[int | str]) -> str | None:
    """The accepted key nearest to an unknown one."""
    valid = _fields_at(schema, [part for part in loc[:-1] if not _is_branch(part)])
    return next(iter(difflib.get_close_matches(str(loc[-1]), valid, n=1, cutoff=0.6)), None)


def _is_branch(part: int | str) -> bool:
    """Pydantic names the branch of a union it tried; a user never wrote that."""
    return isinstance(part, str) and bool(
        re.match(r"(list\[|Range$|NeedleFile$|(Other)?Engine$|function-|constrained-)", part)
    )


def _message(schema: type[Section], detail: Any, keys: list[int | str]) -> str:
    if detail["type"] == "extra_forbidden":
        valid = _fields_at(schema, keys[:-1])
        accepted = f"; accepted: {', '.join(valid)}" if valid else "; none is accepted here"
        return "unknown key" + (nearest(str(keys[-1]), valid) or accepted)
    if detail["type"] == "missing":
        return "this key is missing"
    message = re.sub(r" or instance of \w+$", "", str(detail["msg"]).removeprefix("Value error, "))
    if detail["type"] == "value_error":
        return message
    value = detail.get("input")
    found = "a mapping" if isinstance(value, dict) else "a list" if isinstance(value, list) else repr(value)
    return f"{message[0].lower()}{message[1:]}, found {found}"


def _fields_at(schema: type[Section], keys: Sequence[int | str]) -> list[str]:
    model: Any = schema
    for key in keys:
        if isinstance(key, int):
            continue
        found = list(_sections_in(model.model_fields[key].annotation))
        # Of a list or a mapping, the mapping's section stands behind the list's.
        is_listed = len(found) > 1 and any(isinstance(part, int) for part in keys)
        model = found[0 if is_listed else -1] if found else None
        if model is None:
            return []
    return list(model.model_fields)


def _sections_in(annotation: Any) -> Iterator[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for part in get_args(annotation):
        yield from _sections_in(part)


def nearest(word: str, valid: Sequence[str]) -> str:
    """The accepted word nearest to a mistaken one, as the end of a sentence; empty where none is near."""
    close = difflib.get_close_matches(word, valid, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""

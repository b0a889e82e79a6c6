"""Secrets stay out of every file and off the terminal: the one place that knows what they are and takes them out.

A secret is a value under one of a few exact keys (`hf_token`, `api_key`, ...) in suites, configs and options, the value
of an environment variable of such a name that has 12 characters or more, or that settings name (`api_key_env`), and the
credentials in a URL.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from functools import cache, lru_cache
from typing import Any, TypeVar
from urllib.parse import quote

MARK = "***"
"""What stands in a secret's place."""

_KEYS = (
    "access_token",
    "api_key",
    "api_token",
    "apikey",
    "auth_token",
    "authorization",
    "bearer_token",
    "client_secret",
    "hf_hub_token",
    "hf_token",
    "hugging_face_hub_token",
    "huggingface_hub_token",
    "huggingface_token",
    "passphrase",
    "passwd",
    "password",
    "private_key",
    "refresh_token",
    "secret",
    "secret_access_key",
    "secret_key",
    "session_token",
    "token",
)
_VARIABLE = re.compile(r"(^|_)(ACCESS_KEY|API_?KEY|PASSPHRASE|PASSWD|PASSWORD|PRIVATE_KEY|SECRET(_KEY)?|TOKEN)$")
_ENDING = re.compile(r"_(api_key|password|secret_key|access_token|auth_token|api_token|secret_access_key)$")
_SHORTEST_VARIABLE = 12
_SHORTEST = 5
"""A shorter value is left out by its key alone: as a part of other words it would be found everywhere."""

# A bare `token:` in a text is a tokenizer's more often than a secret; in a URL's query it is one.
_key = "|".join(["(?<=[?&])token", *(key.replace("_", "[_-]") for key in _KEYS if key != "token")])
_ASSIGNED = re.compile(
    rf"(?P<key>{_key})(?P<is>[\"']?\s*[=:]\s*)"
    r"(?P<value>\"[^\"]*\"|'[^']*'|(?:(?:Bearer|Basic)\s+)?[^\s\"',;&}\]){]+)",
    re.IGNORECASE,
)
_NO_SECRETS = frozenset({"", "none", "null", "true", "false", "~", "str", "bool", MARK})
_IN_URL = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]{0,20}://)(?P<credentials>[^\s/?#@\"'<>]+)@", re.IGNORECASE)

VARIABLE_NAME = re.compile("[A-Z_][A-Z0-9_]*")
"""What settings may name under a key such as `api_key_env`; of another form it may be the key itself."""

_told: set[str] = set()
_taken: dict[str, str] = {}
"""Variables that are in no environment any more."""

Data = TypeVar("Data")


def is_secret_key(key: object) -> bool:
    """Whether a setting of this name holds a secret; `max_tokens` and `eos_token` do not."""
    name = str(key).lower().replace("-", "_")
    return name in _KEYS or bool(_ENDING.search(name))


def keep_secret(settings: Any) -> None:
    """Remember the values under secret keys, at any depth, so that they are known wherever they turn up."""
    _told.update(value for value in _secrets_in(settings, is_secret=False) if _is_telling(value, _SHORTEST))


def keep_assignment_secret(assignment: str) -> None:
    """Remember the value of an option `section.key=VALUE`, before anybody reads it as YAML and quotes it."""
    key, _, value = assignment.partition("=")
    if is_secret_key(key.strip().rpartition(".")[2]):
        _told.update(each for each in (value, value.strip(" \"'[]{}")) if _is_telling(each, _SHORTEST))
    values = [found["value"].strip("\"'") for found in _ASSIGNED.finditer(value)]
    values += [found["credentials"] for found in _IN_URL.finditer(value)]
    _told.update(each for each in values if _is_telling(each, _SHORTEST))


def take_variable(name: str) -> str | None:
    """The value of an environment variable, which no child process inherits from here on; `None` where it has none."""
    value = os.environ.pop(name, "").strip()
    if value:
        _taken[name] = value
        _told.add(value)
    return _taken.get(name)


def give_variables_back() -> None:
    """Put what was taken back into the environment."""
    os.environ.update(_taken)
    _taken.clear()


def without_secrets(data: Data) -> Data:
    """What may be written or shown.

    Args:
        data: Text, or settings or facts of plain builtins.

    Returns:
        Text with `***` in place of each secret; mappings without the keys that hold one.
    """
    if isinstance(data, str):
        return _plain(_ASSIGNED.sub(_marked, _IN_URL.sub(rf"\g<scheme>{MARK}@", without_values(data))), data)
    return _plain(_without(data, without_secrets), data)


def without_values(data: Data) -> Data:
    """As `without_secrets`, but only values that are known: for text of other people's, such as questions and answers.

    In it `password: swordfish` is no secret of this run.
    """
    if isinstance(data, str):
        text: str = data
        for value in _known():
            if value in text:
                text = text.replace(value, MARK)
        return _plain(text, data)
    return _plain(_without(data, without_values), data)


def _without(data: Any, clean: Any) -> Any:
    if isinstance(data, Mapping):
        return {key: clean(value) for key, value in data.items() if not _is_secret(key, value)}
    if isinstance(data, list | tuple):
        return type(data)(clean(each) for each in data)
    return data


def _is_secret(key: object, value: object) -> bool:
    if isinstance(value, str) and is_secret_key(str(key).removesuffix("_env")) and str(key).endswith("_env"):
        return not VARIABLE_NAME.fullmatch(value)
    return is_secret_key(key) and value is not None and not isinstance(value, bool)


def _plain(result: Any, _: Data) -> Data:
    return result  # type: ignore[no-any-return]


def _marked(found: re.Match[str]) -> str:
    value = found["value"].strip("\"'")
    if value.lower() in _NO_SECRETS:
        return found[0]
    return f"{found['key']}{found['is']}{MARK}"


def _secrets_in(data: Any, *, is_secret: bool) -> Iterator[str]:
    if isinstance(data, Mapping):
        for key, value in data.items():
            yield from _secrets_in(value, is_secret=is_secret or _is_secret(key, value))
    elif isinstance(data, list | tuple):
        for value in data:
            yield from _secrets_in(value, is_secret=is_secret)
    elif is_secret and data is not None and not isinstance(data, bool):
        yield str(data)
    elif isinstance(data, str):
        for found in _IN_URL.finditer(data):
            yield from (found["credentials"], found["credentials"].partition(":")[2])


def _is_telling(value: str, shortest: int) -> bool:
    return len(value.strip()) >= shortest and value.strip().lower() not in _NO_SECRETS


def _known() -> list[str]:
    """Every secret value in every form in which files and messages may hold it, the longest first."""
    values = {*_told, *(value for name, value in os.environ.items() if _names_secret(name) and _is_private(value))}
    return _forms(frozenset(values))


@cache
def _names_secret(variable: str) -> bool:
    return bool(_VARIABLE.search(variable.upper()))


def _is_private(value: str) -> bool:
    """A path to a secret is none."""
    return _is_telling(value, _SHORTEST_VARIABLE) and not (value.startswith("/") and os.path.exists(value))  # noqa: PTH110


@lru_cache(maxsize=8)
def _forms(values: frozenset[str]) -> list[str]:
    forms = set()
    for value in values:
        forms |= {value, value.strip(), quote(value, safe=""), json.dumps(value)[1:-1], repr(value)[1:-1]}
        forms.add(json.dumps(value, ensure_ascii=False)[1:-1])
        forms |= {line.strip() for line in value.splitlines() if len(line.strip()) >= _SHORTEST_VARIABLE}
    return sorted(forms, key=len, reverse=True)

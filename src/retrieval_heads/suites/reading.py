"""Suites and configs as they stand in files and options, and how they are laid over each other.

Later ones win: suite, then config, then `--rh-set`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from retrieval_heads.errors import ConfigError
from retrieval_heads.kinds import KINDS
from retrieval_heads.prompts.settings import PREDECESSORS_KEYS, PREDECESSORS_PROMPT
from retrieval_heads.reading import DEEPEST, read_bytes
from retrieval_heads.redaction import keep_assignment_secret, keep_secret
from retrieval_heads.settings import yaml_reading
from retrieval_heads.settings.messages import sentences
from retrieval_heads.settings.yaml_reading import NotYaml, decode, parse
from retrieval_heads.suites.predecessor import SECTIONS
from retrieval_heads.suites.settings import Settings

_SHARED = ("model", "engine", "output_dir")
"""What all suites of a run have in common, and so a run's config lays over others."""


def is_whole_suite(data: Mapping[str, object]) -> bool:
    """Whether a config file says what to ask, and so is a suite itself."""
    return any(section in data for section in ("haystack", "from_results", *SECTIONS))


def read_settings(path: Path) -> dict[str, object]:
    """Read and validate one YAML file on its own.

    Returns:
        The file's own keys, unresolved, ready to be laid over another's.

    Raises:
        ConfigError: The file is missing, is no YAML mapping, or holds a key or value that is not accepted.
    """
    data, text = _read(path)
    if "suites" in data:
        first = next(iter(_suites_of_run(data, path, text).values()))
        return {key: value for key, value in first.items() if key in _SHARED}
    return validated(data, path, text)


def read_suites(path: Path) -> dict[str, dict[str, object]]:
    """The suites that the `config.yaml` of a run of several holds, by kind and name; none of any other file.

    Raises:
        ConfigError: As `read_settings`.
    """
    data, text = _read(path)
    return _suites_of_run(data, path, text) if "suites" in data else {}


def _read(path: Path) -> tuple[dict[str, object], str]:
    """A file's mapping, and its text."""
    if not os.path.lexists(path):
        raise ConfigError(f"{path}: no such file")
    text = decode(read_bytes(path), str(path))
    data = parse(text, str(path))
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: a mapping of sections is expected, found {type(data).__name__}")
    return data, text


def _suites_of_run(data: Mapping[str, object], path: Path, text: str) -> dict[str, dict[str, object]]:
    suites = data["suites"]
    at = f"{path}:{yaml_reading.line_of(text, ['suites'])}"
    if len(data) > 1 or not isinstance(suites, dict) or not suites:
        raise ConfigError(f"{at}: suites: expected each suite of a run by kind and name, and no other key beside it")
    read = {}
    for suite, own in suites.items():
        kind, _, name = str(suite).partition("/")
        if kind not in KINDS or not name or not isinstance(own, dict):
            raise ConfigError(f"{at}: suites.{suite}: expected KIND/NAME with a suite's sections under it")
        if (own.get("kind", kind), own.get("name", name)) != (kind, name):
            raise ConfigError(f"{at}: suites.{suite}: the suite under it says another kind or name")
        read[suite] = validated({**own, "kind": kind, "name": name}, path, text, ("suites", suite))
    return read


def validated(data: Mapping[str, object], path: Path, text: str, under: tuple[str, ...] = ()) -> dict[str, object]:
    """Settings with their short forms written out.

    Args:
        data: What a file says.
        path: The file.
        text: What is in it.
        under: The keys under which the settings stand.

    Raises:
        ConfigError: A key or value is not accepted.
    """
    normal = _normal(data, str(path))
    haystack = normal.get("haystack")
    if isinstance(haystack, dict) and not haystack.keys().isdisjoint(PREDECESSORS_KEYS):
        normal.setdefault("prompt", PREDECESSORS_PROMPT)  # its users' results are comparable in its own wording alone
    keep_secret(normal)
    try:
        Settings.model_validate(normal)
    except ValidationError as error:
        raise ConfigError("\n".join(sentences(Settings, error, str(path), text, under))) from None
    return normal


def line_of(path: Path, *keys: str) -> int | None:
    """The 1-based line of a file on which the last of nested keys that it holds is written."""
    return yaml_reading.line_of(decode(read_bytes(path), str(path)), keys)


def overrides(assignments: Sequence[str]) -> dict[str, object]:
    """Turn `--rh-set section.key=value` into settings; a value is read as YAML.

    Raises:
        ConfigError: An assignment has no `=`, a value that is no YAML, or a key that is not accepted.
    """
    settings: dict[str, object] = {}
    for assignment in assignments:
        keep_assignment_secret(assignment)
        key, found, text = assignment.partition("=")
        parts = key.strip().split(".")
        if not found or any(not part or part != part.strip() for part in parts):
            raise ConfigError(f"--rh-set {assignment}: expected section.key=value")
        if not text.strip():
            raise ConfigError(
                f"--rh-set {assignment}: no value (a variable that is not set?); write '' for an empty text"
            )
        if len(parts) > DEEPEST:
            raise ConfigError(f"--rh-set {assignment}: {len(parts)} keys stand in each other; {DEEPEST} may")
        try:
            value = parse(text, f"--rh-set {assignment}")
        except NotYaml:
            raise ConfigError(f"--rh-set {assignment}: {text!r} is not valid YAML") from None
        if value is None and len(parts) == 1:
            raise ConfigError(f"--rh-set {assignment}: null is no value of a section; leave it out")
        nested = {parts[-1]: value}
        for part in reversed(parts[:-1]):
            nested = {part: nested}
        settings = overlay(settings, _normal(nested, "--rh-set"))
    keep_secret(settings)
    engine = settings.get("engine")
    # Which backend's keys they are may be said elsewhere: whoever lays them over that looks at all of it.
    kind = {"kind": "any"} if isinstance(engine, dict) and "kind" not in engine else {}
    try:
        Settings.model_validate({**settings, "engine": {**engine, **kind}} if isinstance(engine, dict) else settings)
    except ValidationError as error:
        raise ConfigError("\n".join(sentences(Settings, error, "--rh-set", ""))) from None
    return settings


def overlay(below: Mapping[str, object], above: Mapping[str, object]) -> dict[str, object]:
    """Lay one mapping over another: mappings are merged key by key, anything else is replaced."""
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        merged[key] = overlay(under, value) if isinstance(under, dict) and isinstance(value, dict) else value
    return merged


def resolve(data: Mapping[str, object], where: str) -> Settings:
    """Validate laid-over settings as a whole.

    Raises:
        ConfigError: The parts are each accepted, but not together.
    """
    try:
        return Settings.model_validate(dict(data))
    except ValidationError as error:
        raise ConfigError("\n".join(sentences(Settings, error, where, ""))) from None


def _normal(data: Mapping[str, object], where: str) -> dict[str, object]:
    """Short forms written out, so that files can be merged key by key; an empty section says nothing."""
    normal = {key: value for key, value in data.items() if value is not None}
    if {"results_files", "from_results"} <= normal.keys():
        raise ConfigError(f"{where}: results_files and from_results are two names of one key; give one of them")
    if "results_files" in normal:  # the predecessor's name, whose file says no kind
        normal["from_results"] = normal.pop("results_files")
    if "from_results" in normal:
        normal.setdefault("kind", "detect")
    if isinstance(normal.get("haystack"), str):
        normal["haystack"] = {"source": normal["haystack"]}
    if isinstance(normal.get("task"), str):
        normal["task"] = {"name": normal["task"]}
    if isinstance(normal.get("model"), str):
        normal["model"] = {"model": normal["model"]}
    return normal

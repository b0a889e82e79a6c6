"""Any setting as a flag: `--model.max-model-len 16384` is `--rh-set model.max_model_len=16384`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import fields
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Union, get_args, get_origin

from retrieval_heads.errors import ConfigError
from retrieval_heads.settings.section import Section
from retrieval_heads.settings.yaml_reading import NotYaml, parse

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_LISTS = (
    *("sweep.context_lengths", "sweep.document_depths", "sweep.seeds"),
    *("code_eval.num_vars", "code_eval.num_steps", "code_eval.task_types", "phonebook.lengths", "phonebook.depths"),
)


def split_settings(arguments: Sequence[str], options: type[DataclassInstance]) -> tuple[list[str], list[str]]:
    """Tell a command's own options from flags that set settings.

    Args:
        arguments: The command line.
        options: The dataclass of the command's options.

    Returns:
        The options with whatever stands before the first setting, and the settings, each with the values behind it.
    """
    names = [field.name.replace("_", "-") for field in fields(options)]
    known = {"--help", *(f"--{name}" for name in names), *(f"--no-{name}" for name in names)}
    own: list[str] = []
    settings: list[str] = []
    target = own
    for argument in arguments:
        if argument.startswith("--"):
            target = own if argument.partition("=")[0] in known else settings
        elif argument == "-h":
            target = own
        target.append(argument)
    return own, settings


def assignments(flags: Sequence[str]) -> list[str]:
    """Flags that no option claimed, as assignments for `--rh-set`.

    `--section.key VALUE` and `--section.key=VALUE` set a key, several values make a list, no value is true, and
    `--section.no-key` is false. Dashes in a key mean underscores.

    Raises:
        ConfigError: A value stands without a flag.
    """
    made = []
    for key, values in _pairs(flags):
        section, _, name = key.rpartition(".")
        if not values and name.startswith("no_"):
            made.append(f"{section}{'.' if section else ''}{name.removeprefix('no_')}=false")
        else:
            made.append(f"{key}={_written(key, values)}")
    return made


def setting_flags() -> list[str]:
    """Every setting as a flag, a line each, with its default."""
    from retrieval_heads.suites.settings import Settings

    return [f"  {line}" for line in _flags_of(Settings, "--")]


def _flags_of(section: type[Section], before: str) -> Iterator[str]:
    for name, field in section.model_fields.items():
        flag, inner = f"{before}{name.replace('_', '-')}", _section_in(field.annotation)
        if inner is not None:
            yield from _flags_of(inner, f"{flag}.")
        else:
            default = field.get_default(call_default_factory=True)
            shown = "" if default in (None, {}, []) or field.is_required() else json.dumps(default, default=str)
            yield f"{flag} {shown and f'({shown:.60})'}".rstrip()
    if section.model_config.get("extra") == "allow":
        yield f"{before}KEY, whatever else the receiver takes"


def _section_in(annotation: object) -> type[Section] | None:
    """The section that a field holds; `None` where it may hold a list or another value as well."""
    if get_origin(annotation) is Annotated:
        return _section_in(get_args(annotation)[0])
    if isinstance(annotation, type):
        return annotation if issubclass(annotation, Section) else None
    parts = [part for part in get_args(annotation) if part is not NoneType]
    if not parts or get_origin(annotation) not in (Union, UnionType):
        return None
    found = [_section_in(part) for part in parts]
    return found[0] if None not in found else None


def _pairs(flags: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    key, values = "", list[str]()
    for flag in flags:
        if flag.startswith("--"):
            if key:
                yield key, values
            name, found, value = flag[2:].partition("=")
            key, values = name.replace("-", "_"), [value] if found else []
        elif not key:
            raise ConfigError(f"{flag!r} is neither a suite nor an option; a setting is written --section.key VALUE")
        else:
            values.append(flag)
    if key:
        yield key, values


def _written(key: str, values: Sequence[str]) -> str:
    if not values:
        return "true"
    texts = [_scalar(value) for value in values]
    is_list = len(texts) > 1 or (key in _LISTS and not texts[0].lstrip().startswith(("[", "{")))
    return f"[{', '.join(texts)}]" if is_list else texts[0]


def _scalar(value: str) -> str:
    """The value as YAML; a text that YAML would take for more than it says is quoted."""
    try:
        read: object = parse(value, "a setting")
    except NotYaml:
        read = {}
    is_meant = not isinstance(read, dict | list) or value.lstrip().startswith(("{", "["))
    return value if is_meant and read is not None and "\n" not in value else json.dumps(value, ensure_ascii=False)

"""YAML as this project reads it: one document, no key twice, and every mistake with its file and line."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from typing import Any, Final

import yaml

from retrieval_heads.errors import ConfigError

_MERGE: Final = "tag:yaml.org,2002:merge"
_MARKS: Final = (
    # UTF-32's little-endian mark starts with UTF-16's.
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    # Without a mark the zeros of the first character, which is ASCII, tell (YAML 1.2, section 5.2).
    (b"\0\0\0", "utf-32-be"),
    (b"\0", "utf-16-be"),
)


class NotYaml(ConfigError):
    """A text that is no YAML at all."""


class _Loader(yaml.CSafeLoader):
    """YAML without dates: settings cross to the engine as JSON, and a model's revision may look like one."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own name and form
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
    }


def decode(content: bytes, where: str) -> str:
    """A file's text in any of YAML's encodings: UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    Raises:
        ConfigError: The bytes are none of these.
    """
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    if encoding == "utf-8" and content[1:4] == b"\0\0\0":
        encoding = "utf-32-le"
    elif encoding == "utf-8" and content[1:2] == b"\0":
        encoding = "utf-16-le"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: cannot be read ({error})") from None


def parse(text: str, where: str) -> Any:
    """The one document of a YAML text, as plain builtins.

    Args:
        text: YAML, or JSON, which is YAML too.
        where: Its file or option, for errors.

    Raises:
        NotYaml: It is none, or several documents; with the line.
        ConfigError: It holds a key twice; with both lines.
    """
    try:
        loader = _Loader(text)
        try:
            document = loader.get_single_node()
            if document is None:
                return None
            _refuse_twins(loader, document, where)
            return loader.construct_document(document)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise NotYaml(f"{where}:{line}: not valid YAML: {error.problem}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise NotYaml(f"{where}:{line}: not valid YAML: {error.reason}") from None


def line_of(text: str, keys: Sequence[int | str]) -> int | None:
    """The 1-based line on which the last of nested keys that a YAML text holds is written; `None` without any."""
    if not text:
        return None
    node, line = yaml.compose(text, yaml.CSafeLoader), None
    for key in keys:
        if isinstance(node, yaml.MappingNode):
            pair = next((pair for pair in node.value if pair[0].value == str(key)), None)
            if pair is None:
                break
            line, node = pair[0].start_mark.line + 1, pair[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
            node = node.value[key]
            line = node.start_mark.line + 1
        else:
            break
    return line


def _refuse_twins(loader: _Loader, document: yaml.Node, where: str) -> None:
    """Refuse a mapping that holds a key twice: PyYAML would drop the first in silence."""
    for path, node in _mappings(document):
        lines: dict[Any, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # no key of ours; the constructor refuses it
            value = "<<" if key.tag == _MERGE else loader.construct_object(key)
            line = key.start_mark.line + 1
            if value in lines:
                name = ".".join([*path, key.value])
                raise ConfigError(
                    f"{where}:{line}: {name}: this key is given twice, on lines {lines[value]} and {line}; "
                    "once is accepted"
                )
            lines[value] = line


def _mappings(document: yaml.Node) -> Iterator[tuple[tuple[str, ...], yaml.MappingNode]]:
    """Every mapping of a document with the keys that lead to it; one that aliases share comes once."""
    waiting: list[tuple[tuple[str, ...], yaml.Node]] = [((), document)]
    seen: set[int] = set()
    while waiting:
        path, node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            yield path, node
            for key, value in reversed(node.value):
                waiting.append(((*path, key.value if isinstance(key, yaml.ScalarNode) else "?"), value))
        elif isinstance(node, yaml.SequenceNode):
            waiting += [((*path, str(number)), value) for number, value in reversed(list(enumerate(node.value)))]

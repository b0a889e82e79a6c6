"""YAML as this project reads it: one document, no key twice, and every mistake with its file and line."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
    with _loading(text, where) as loader:
        document = loader.get_single_node()
        if document is None:
            return None
        _refuse_twins(loader, document, where)
        return loader.construct_document(document)


def documents(text: str, where: str) -> list[yaml.Node]:
    """The documents of a YAML text as nodes, whatever their tags say.

    Raises:
        NotYaml: It is none; with the line.
    """
    found: list[yaml.Node] = []
    with _loading(text, where) as loader:
        while loader.check_node():
            document = loader.get_node()
            assert document is not None  # as `check_node` said
            found.append(document)
    return found


def entries(node: yaml.Node | None) -> dict[str, yaml.Node]:
    """The keys of a mapping and what stands under them, merged mappings (`<<`) included; none of another node."""
    found: dict[str, yaml.Node] = {}
    waiting, seen = [node], set[int]()
    while waiting:
        mapping = waiting.pop()
        if not isinstance(mapping, yaml.MappingNode) or id(mapping) in seen:
            continue
        seen.add(id(mapping))
        for key, value in mapping.value:
            if key.tag == _MERGE:
                waiting += reversed(value.value) if isinstance(value, yaml.SequenceNode) else [value]
            elif isinstance(key, yaml.ScalarNode):
                found.setdefault(key.value, value)  # a key of one's own goes before a merged one
    return found


def listed_in(node: yaml.Node) -> list[yaml.Node]:
    """What a sequence holds; nothing of another node."""
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def is_scalar(node: yaml.Node) -> bool:
    """Whether a node is a text, a number or nothing."""
    return isinstance(node, yaml.ScalarNode)


def is_null(node: yaml.Node) -> bool:
    """Whether a node says nothing: `~`, `null` or nothing at all."""
    return bool(node.tag == "tag:yaml.org,2002:null")


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


@contextmanager
def _loading(text: str, where: str) -> Iterator[_Loader]:
    """A loader of a text; what it cannot read becomes one sentence."""
    try:
        loader = _Loader(text)
        try:
            yield loader
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise NotYaml(f"{where}:{line}: not valid YAML: {error.problem}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise NotYaml(f"{where}:{line}: not valid YAML: {error.reason}") from None


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

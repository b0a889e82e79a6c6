"""YAML as this project reads it: one document, no key twice, and every mistake with its file and line."""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import yaml

from retrieval_heads.errors import ConfigError
from retrieval_heads.reading import DEEPEST, LARGEST

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


MOST_CHARACTERS: Final = 4_000_000
"""Of a document. A suite of ten thousand needles has a tenth."""
MOST_VALUES: Final = 1_000_000
"""Of a document, what its aliases repeat counted as often as it is repeated."""

_TAGS: Final = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "seq", "map", "merge")}
_KEYS: Final = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "merge")}
_NUMBERS: Final = {f"tag:yaml.org,2002:{name}" for name in ("int", "float", "bool")}


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


def parse(text: str, where: str) -> object:
    """The one document of a YAML text, as plain builtins.

    Args:
        text: YAML, or JSON, which is YAML too.
        where: Its file or option, for errors.

    Raises:
        NotYaml: It is none, or several documents; with the line.
        ConfigError: It holds a key twice, with both lines; or what no setting is: a set, a date, an anchor inside of
            itself, a number of more than 64 bits, or more than anybody can mean.
    """
    with _loading(text, where) as loader:
        document = loader.get_single_node()
        if document is None:
            return None
        _refuse_size(document, where)
        _refuse_twins(loader, document, where)
        _refuse_values(loader, document, where)
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
    if len(text) > MOST_CHARACTERS:
        raise ConfigError(f"{where}: {len(text):,} characters; {MOST_CHARACTERS:,} are accepted")
    try:
        _refuse_depth(text, where)
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


def _refuse_depth(text: str, where: str) -> None:
    """Refuse deep nesting before anything that walks the document by recursion."""
    depth = 0
    for event in yaml.parse(text, yaml.CSafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > DEEPEST:
                line = event.start_mark.line + 1 if event.start_mark else 1
                raise ConfigError(f"{where}:{line}: more than {DEEPEST} lists and mappings stand in each other")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _refuse_size(document: yaml.Node, where: str) -> None:
    """Refuse aliases that repeat themselves, or more than a document can mean."""
    sizes: dict[int, tuple[int, int]] = {}
    within: set[int] = set()

    def measure(node: yaml.Node) -> tuple[int, int]:
        """Values and depth of a node, its aliases written out."""
        if isinstance(node, yaml.ScalarNode):
            return 1, 0
        if id(node) in sizes:
            return sizes[id(node)]
        line = node.start_mark.line + 1
        if id(node) in within:
            raise ConfigError(f"{where}:{line}: an anchor stands for something that holds the anchor itself")
        within.add(id(node))
        inside = [
            measure(each) for part in node.value for each in (part if isinstance(node, yaml.MappingNode) else (part,))
        ]
        within.remove(id(node))
        count = 1 + sum(each for each, _ in inside)
        depth = 1 + max((each for _, each in inside), default=0)
        if count > MOST_VALUES:
            raise ConfigError(f"{where}:{line}: its aliases make more than {MOST_VALUES:,} values of it")
        if depth > DEEPEST:
            raise ConfigError(f"{where}:{line}: more than {DEEPEST} lists and mappings stand in each other")
        sizes[id(node)] = count, depth
        return count, depth

    measure(document)


def _refuse_values(loader: _Loader, document: yaml.Node, where: str) -> None:
    """Refuse what does not cross to the engine as JSON."""
    for path, node in _nodes(document):
        place = " ".join([f"{where}:{node.start_mark.line + 1}:", *([f"{'.'.join(path)}:"] if path else [])])
        if node.tag not in _TAGS and node.tag.startswith("tag:yaml.org,2002:"):  # others are no YAML of PyYAML's
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            raise ConfigError(f"{place} {tag} is not accepted; text, numbers, true, false, lists and mappings are")
        if isinstance(node, yaml.MappingNode):
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.tag not in _KEYS:
                    raise ConfigError(f"{place} the key {key.value!r} is read as no text; quote it if it is one")
        elif isinstance(node, yaml.ScalarNode) and node.tag in _NUMBERS:
            _refuse_number(loader, node, place)
        elif isinstance(node, yaml.ScalarNode) and ("\0" in node.value or not _is_unicode(node.value)):
            raise ConfigError(f"{place} the text {node.value!r} holds a NUL or half of a surrogate pair")


def _refuse_number(loader: _Loader, node: yaml.ScalarNode, place: str) -> None:
    if len(node.value) > 100:  # int() takes a minute for a million digits
        raise ConfigError(f"{place} a number of {len(node.value):,} characters; quote it if it is a text")
    try:
        value = loader.construct_object(node)
    except (ValueError, KeyError):
        raise ConfigError(f"{place} {node.value!r} is no {node.tag.rpartition(':')[2]}") from None
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{place} {node.value} is not a finite number")
    if isinstance(value, int) and abs(value) >= LARGEST:
        raise ConfigError(f"{place} the number {node.value} has more than 64 bits")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse_twins(loader: _Loader, document: yaml.Node, where: str) -> None:
    """Refuse a mapping that holds a key twice: PyYAML would drop the first in silence."""
    for path, node in _nodes(document):
        if not isinstance(node, yaml.MappingNode):
            continue
        lines: dict[object, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag not in _KEYS:
                continue  # no key of ours; `_refuse_values` says so
            try:
                value = "<<" if key.tag == _MERGE else loader.construct_object(key)
            except (ValueError, KeyError):
                continue  # no number, though its tag says so; `_refuse_values` says so
            line = key.start_mark.line + 1
            if value in lines:
                name = ".".join([*path, key.value])
                raise ConfigError(
                    f"{where}:{line}: {name}: this key is given twice, on lines {lines[value]} and {line}; "
                    "once is accepted"
                )
            lines[value] = line


def _nodes(document: yaml.Node) -> Iterator[tuple[tuple[str, ...], yaml.Node]]:
    """Every node of a document, keys among them, with the keys that lead to it; one that aliases share comes once."""
    waiting: list[tuple[tuple[str, ...], yaml.Node]] = [((), document)]
    seen: set[int] = set()
    while waiting:
        path, node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield path, node
        if isinstance(node, yaml.MappingNode):
            for key, value in reversed(node.value):
                within = (*path, key.value if isinstance(key, yaml.ScalarNode) else "?")
                waiting += [(within, value), (within, key)]
        elif isinstance(node, yaml.SequenceNode):
            waiting += [((*path, str(number)), value) for number, value in reversed(list(enumerate(node.value)))]

"""RULER's own wordings, read at run time out of the files of the PyPI package lm-eval, whose code is not run.

They are read from its syntax trees: importing its modules downloads a sentence splitter and loads torch. What is read
are texts; how prompts are made of them is NVIDIA's (github.com/NVIDIA/RULER, scripts/data/synthetic).
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from retrieval_heads.errors import ConfigError, UnreadableFile
from retrieval_heads.reading import read_text
from retrieval_heads.settings.section import Section
from retrieval_heads.tasks.ruler.wording import (
    DocumentsWording,
    ListWording,
    NiahWording,
    Phrases,
    TrackingWording,
)

PACKAGE = "lm_eval"
CHECKED = "0.4.13"
"""The version that the reading was checked on."""

EXAMPLE_TOKENS = 500
"""Tokens that RULER gives vt's worked example."""

_TYPES = {"type_needle_v[:-1]": "{type}", "type_needle_v": "{types}", "query": "{query}"}


_Found = TypeVar("_Found")
_Wording = TypeVar("_Wording", bound=Section)


class _OtherShape(Exception):
    """A file that does not hold what is looked for, which the text names."""


@cache
def read_niah() -> NiahWording:
    """Of the needle tasks.

    Raises:
        ConfigError: lm-eval is not installed, or its files have another shape.
    """
    return _read(_niah, "niah_utils", "prepare_niah")


@cache
def read_vt() -> TrackingWording:
    """Of vt; raises as `read_niah` does."""
    return _read(_vt, "vt_utils")


@cache
def read_cwe() -> ListWording:
    """Of cwe; raises as `read_niah` does."""
    return _read(_cwe, "cwe_utils")


@cache
def read_fwe() -> ListWording:
    """Of fwe; raises as `read_niah` does."""
    return _read(_fwe, "fwe_utils")


@cache
def read_qa() -> DocumentsWording:
    """Of qa_1 and qa_2; raises as `read_niah` does."""
    return _read(_qa, "qa_utils")


def _read(make: Callable[..., _Wording], *names: str) -> _Wording:
    folder = _folder()
    files = [folder / f"{name}.py" for name in names]
    try:
        return make(*(_tree(file) for file in files))
    except (_OtherShape, UnreadableFile, LookupError, SyntaxError, TypeError, ValueError) as error:
        missing = f": {error}" if isinstance(error, _OtherShape) else ""
        where = " and ".join(file.name for file in files)
        raise ConfigError(
            f"task.wording: RULER's texts are not found in {where} of {folder}{missing}; they are read from lm-eval "
            f"{CHECKED}"
        ) from None


def _folder() -> Path:
    spec = importlib.util.find_spec(PACKAGE)  # does not import it
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            "task.wording: ruler reads RULER's texts from the package lm-eval, which is not installed; try: "
            "pip install 'pytest-retrieval-heads[lm-eval]', or for its files alone pip install --no-deps lm-eval"
        )
    return Path(spec.submodule_search_locations[0]) / "tasks" / "ruler"


def _niah(utils: ast.Module, prepare: ast.Module) -> NiahWording:
    template = _text(utils, "TEMPLATE").replace("{type_needle_v}", "{types}")
    prefixes = _values(_function(prepare, "generate_samples"), "gen_prefix")
    prefix = _first((each for each in prefixes if isinstance(each, ast.IfExp)), "gen_prefix")
    # With a single answer RULER's template turns singular; every "are" in it does.
    alone = template.replace("Some", "A").replace("are all", "is").replace("are", "is").replace("{types}", "{type}")
    return NiahWording(
        one=_phrases(alone, _joined(prefix.body)),
        several=_phrases(template, _joined(prefix.orelse)),
        needle=_text(prepare, "NEEDLE").replace("{type_needle_v}", "{types}"),
        noise=_text(_function(prepare, "get_haystack"), "haystack"),
        numbers=("number", "numbers"),
        identifiers=("uuid", "uuids"),
        last=", and ",
        is_rulers=True,
    )


def _vt(tree: ast.Module) -> TrackingWording:
    config = _config(tree)["variable_tracking"]
    joins = _joins_of_two(_function(tree, "generate_chains"))
    first, hop = _first(joins, "first assignment"), _first(joins, "second assignment")
    return TrackingWording(
        # NVIDIA's has no such slip.
        phrases=_phrases(
            config["template"], config["answer_prefix"].replace("assgined", "assigned"), "{asked}{prefill} {answer}\n\n"
        ),
        first=_joined(first, "{name}", "{value}"),
        hop=_joined(hop, "{name}", "{of}"),
        noise=_text(_function(tree, "generate_input_output"), "noise").strip(),
        joint="\n",
        between=" ",
        example_tokens=EXAMPLE_TOKENS,
    )


def _cwe(tree: ast.Module) -> ListWording:
    config = _config(tree)
    return ListWording(phrases=_phrases(config["template"], config["answer_prefix"], "{asked}{prefill} {answer}\n"))


def _fwe(tree: ast.Module) -> ListWording:
    config = _config(tree)
    return ListWording(phrases=_phrases(config["template"], config["answer_prefix"]))


def _qa(tree: ast.Module) -> DocumentsWording:
    config = _config(tree)
    before, after = _around_context(config["template"])
    message = f"{before}{{context}}{after.replace('{query}', '{question}')}"
    phrases = Phrases(message=message, question="{query}", prefill=config["answer_prefix"])
    return DocumentsWording(phrases=phrases, document=_text(tree, "DOCUMENT_PROMPT"))


def _phrases(template: str, prefill: str, example: str = "") -> Phrases:
    """A template cut behind its context: what follows is the question."""
    before, after = _around_context(template)
    question = after.strip()
    message = f"{before}{{context}}{after.replace(question, '{question}')}"
    return Phrases(message=message, question=question, prefill=prefill, example=example)


def _around_context(template: str) -> tuple[str, str]:
    before, mark, after = template.partition("{context}")
    if not mark or not after.strip():
        raise _OtherShape("no {context} with a question behind it")
    return before, after


def _tree(file: Path) -> ast.Module:
    return ast.parse(read_text(file))


def _config(tree: ast.Module) -> Mapping[str, Any]:
    value: Mapping[str, Any] = ast.literal_eval(_first(_assigned(tree, "CONFIG"), "CONFIG"))
    return value


def _text(tree: ast.AST, name: str) -> str:
    """The text that a name is given."""
    texts = (
        value.value
        for value in _assigned(tree, name)
        if isinstance(value, ast.Constant) and isinstance(value.value, str)
    )
    return _first(texts, name)


def _assigned(tree: ast.AST, name: str) -> Iterator[ast.expr]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id == name for to in node.targets):
            yield node.value


def _function(tree: ast.AST, name: str) -> ast.FunctionDef:
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == name)
    return _first(functions, f"function {name}")


def _values(tree: ast.AST, key: str) -> Iterator[ast.expr]:
    """What stands under a key in the dictionaries of a tree."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            for name, value in zip(node.keys, node.values, strict=True):
                if isinstance(name, ast.Constant) and name.value == key:
                    yield value


def _joins_of_two(tree: ast.AST) -> Iterator[ast.JoinedStr]:
    """The f-strings that hold two values."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr) and sum(isinstance(part, ast.FormattedValue) for part in node.values) == 2:
            yield node


def _joined(node: ast.expr, *marks: str) -> str:
    """An f-string as a text with marks: those given, in their order, or what `_TYPES` says."""
    if not isinstance(node, ast.JoinedStr):
        raise _OtherShape(f"no f-string in line {node.lineno}")
    texts, left = [], list(marks)
    for part in node.values:
        if isinstance(part, ast.Constant):
            texts.append(str(part.value))
        elif isinstance(part, ast.FormattedValue):
            texts.append(left.pop(0) if marks else _TYPES[ast.unparse(part.value)])
    return "".join(texts)


def _first(found: Iterator[_Found], name: str) -> _Found:
    for each in found:
        return each
    raise _OtherShape(f"no {name}")

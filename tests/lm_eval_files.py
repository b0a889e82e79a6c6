"""lm-eval's RULER generators, run from the files of the installed package as they stand.

Its code is executed and none of it is changed; what it imports that downloads, loads torch or is not wanted here
(datasets, the sentence splitter, words, the essays of a hub) is given by the test.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retrieval_heads.tasks.ruler import harness

WORDS = [f"{first}{second}" for first in "bdfglmnrst" for second in ("ako", "elu", "iga", "omi", "una", "yre")]
"""In place of the lists of wonderwords, of which it makes six million pairs."""

WITHOUT = "lm-eval is not installed; make test installs it: pip install --no-deps lm-eval"


class _Rows:
    """In place of a data set: its rows."""

    @staticmethod
    def from_list(rows: list[Any], split: str) -> list[Any]:
        return rows


def folder() -> Path:
    """Where its RULER tasks are; skips the test where it is not installed."""
    spec = importlib.util.find_spec(harness.PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(WITHOUT)
    return Path(spec.submodule_search_locations[0]) / "tasks" / "ruler"


def module(name: str, sentences: Callable[[str], list[str]] = str.splitlines, **imported: Any) -> dict[str, Any]:
    """What one of its files defines.

    Args:
        name: The file's, without `.py`.
        sentences: The sentence splitter.
        imported: Names that it imports from its other files, in place of them.
    """
    data = types.SimpleNamespace(find=lambda _: None)
    shared = {"DEFAULT_SEQ_LENGTHS": [4096], "get_tokenizer": lambda _: None, "resolve_tokenizer_name": lambda _: None}
    lists = {f"{kind}{end}": WORDS for kind in ("noun", "adjective", "verb") for end in ("", "s")}
    found = {
        "datasets": {"Dataset": _Rows, "Split": types.SimpleNamespace(TEST="test")},
        "nltk": {"data": data, "sent_tokenize": sentences},
        "wonderwords": {"RandomWord": lambda: types.SimpleNamespace(_categories=lists)},
        "transformers": {"AutoTokenizer": None},
        harness.PACKAGE: {},
        f"{harness.PACKAGE}.tasks": {},
        f"{harness.PACKAGE}.tasks.ruler": {},
        f"{harness.PACKAGE}.tasks.ruler.common_utils": shared,
        f"{harness.PACKAGE}.tasks.ruler.prepare_niah": imported,
    }
    file = folder() / f"{name}.py"
    made: dict[str, Any] = {"__name__": name}
    with pytest.MonkeyPatch.context() as patched:
        for path, names in found.items():
            stub = types.ModuleType(path)
            vars(stub).update(names)
            patched.setitem(sys.modules, path, stub)
        exec(compile(file.read_text(encoding="utf-8"), str(file), "exec"), made)
    return made


def counted(text: str) -> Any:
    """A tokenizer that its generators can call: a token for each word."""
    return types.SimpleNamespace(input_ids=text.split())

"""The names that vLLM takes: its engine arguments and sampling parameters. Read from its source, which takes no import.

Importing vLLM takes half a minute; a name that is none of them is told before.
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib.util
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Final

from retrieval_heads.errors import EngineError
from retrieval_heads.plain import Fields

_ENGINE: Final = ("engine/arg_utils.py", "EngineArgs")
_SAMPLING: Final = ("sampling_params.py", "SamplingParams")
_BARE: Final = frozenset({"Struct", "PydanticMsgspecMixin"})
"""Base classes that bring no field."""
_EVERYWHERE: Final = frozenset({"max_tokens", "temperature"})
"""Sampling parameters that every suite has: nothing need be read for them."""
_OURS: Final = frozenset({"model", "chat_template", "chat_template_kwargs"})
"""Keys of the `model` section that no vLLM hears of."""


def check_arguments(model: Fields) -> None:
    """See that vLLM takes the engine arguments of the settings; nothing where it is not installed, or is written in
    another way than known: the engine will tell.

    Args:
        model: The `model` section of the settings.

    Raises:
        EngineError: It does not; one sentence with the nearest name.
    """
    if accepted := _fields(*_ENGINE):
        refuse_unknown("model", (key for key in model if key not in _OURS), accepted, "engine argument in vLLM")


def check_sampling(generation: Fields) -> None:
    """See that vLLM takes the sampling parameters of a suite; nothing where that cannot be told without it.

    Args:
        generation: The `generation` section of its settings.

    Raises:
        EngineError: It does not; one sentence with the nearest name.
    """
    asked = [key for key in generation if key not in _EVERYWHERE]
    if asked and (accepted := _fields(*_SAMPLING)):
        refuse_unknown("generation", asked, accepted, "sampling parameter in vLLM")


def refuse_unknown(section: str, given: Iterable[str], accepted: Collection[str], what: str) -> None:
    """See that every key of a section of the settings is a name that vLLM takes.

    Args:
        section: The section's name.
        given: The keys.
        accepted: The names.
        what: What they name.

    Raises:
        EngineError: One is not.
    """
    for key in given:
        if key not in accepted:
            close = difflib.get_close_matches(key, accepted, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise EngineError(f"{section}.{key}: there is no such {what}{hint}")


@functools.cache
def _fields(file: str, name: str) -> tuple[str, ...]:
    """The fields of a dataclass of vLLM's; empty where they cannot be read, or it inherits more."""
    spec = importlib.util.find_spec("vllm")  # of a package itself: nothing is imported
    for folder in (spec and spec.submodule_search_locations) or ():
        try:
            module = ast.parse((Path(folder) / file).read_bytes())
        except (OSError, SyntaxError, ValueError):
            return ()
        for node in module.body:
            if isinstance(node, ast.ClassDef) and node.name == name and {_last(base) for base in node.bases} <= _BARE:
                fields = (one.target for one in node.body if isinstance(one, ast.AnnAssign))
                return tuple(field.id for field in fields if isinstance(field, ast.Name))
    return ()


def _last(name: ast.expr) -> str:
    """The last word of a dotted name."""
    return name.attr if isinstance(name, ast.Attribute) else name.id if isinstance(name, ast.Name) else ""

"""RULER's tasks by their names, in a wording."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import ValidationError

from retrieval_heads.errors import ConfigError
from retrieval_heads.runs.record import first_mistake
from retrieval_heads.settings.section import Section
from retrieval_heads.tasks.ruler import harness, qa, wording
from retrieval_heads.tasks.ruler.cwe import CommonWords
from retrieval_heads.tasks.ruler.fwe import FrequentWords
from retrieval_heads.tasks.ruler.niah import InText, niah
from retrieval_heads.tasks.ruler.part import Units
from retrieval_heads.tasks.ruler.vt import VariableTracking

RULERS = "ruler"
"""The name of RULER's own wordings."""

Said = str | Mapping[str, Any] | None
"""A wording as settings say it: `ruler`, the texts themselves as a record's recipe holds them, or `None` for ours."""


@dataclass(frozen=True)
class _Family:
    """Tasks of one wording.

    Args:
        own: Ours.
        read: Reads RULER's.
        made: The tasks in a wording, by their names; where they ask of a file, with it.
    """

    own: Section
    read: Callable[[], Section]
    made: Callable[[Any, str], Mapping[str, InText | Units]]


def _over_documents(name: str, said: Any, file: str) -> Mapping[str, InText | Units]:
    return {name: qa.OverDocuments(name, said, _READERS[name](file))}


_NIAH = _Family(wording.OWN_NIAH, harness.read_niah, lambda said, _: niah(said))
_READERS = {"qa_1": qa.read_squad, "qa_2": qa.read_hotpotqa}
_FAMILIES: dict[str, _Family] = {
    **dict.fromkeys(niah(wording.OWN_NIAH), _NIAH),
    "vt": _Family(wording.OWN_VT, harness.read_vt, lambda said, _: {"vt": VariableTracking(said)}),
    "cwe": _Family(wording.OWN_CWE, harness.read_cwe, lambda said, _: {"cwe": CommonWords(said)}),
    "fwe": _Family(wording.OWN_FWE, harness.read_fwe, lambda said, _: {"fwe": FrequentWords(said)}),
    **{
        name: _Family(
            wording.OWN_QA,
            harness.read_qa,
            partial(_over_documents, name),
        )
        for name in _READERS
    },
}

NAMES = tuple(_FAMILIES)
"""In RULER's order."""
OF_FILES = {"qa_1": "squad", "qa_2": "hotpotqa"}
"""The settings that say which file the tasks are of that have one."""


def wording_of(name: str, said: Said) -> Section:
    """The texts of a task.

    Raises:
        ConfigError: They cannot be read, or are not those of such a task.
    """
    family = _FAMILIES[name]
    if said is None:
        return family.own
    if said == RULERS:
        return family.read()
    try:
        return type(family.own).model_validate(said)
    except ValidationError as error:
        said_of = f"task.wording.{first_mistake(error)}"
        raise ConfigError(f"{said_of}; {name} takes {RULERS}, or what a recipe of it holds") from None


def part_of(name: str, said: Said = None, file: str = "") -> InText | Units:
    """A task by its name.

    Args:
        name: One of `NAMES`.
        said: Its wording.
        file: Of those of `OF_FILES`, what is asked of.

    Raises:
        ConfigError: Its texts or its file cannot be read.
    """
    return _FAMILIES[name].made(wording_of(name, said), file)[name]

"""The predecessor's sections `code_eval` and `phonebook` (PyPI `retrieval-heads` 0.1.2), and what they mean here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from retrieval_heads.errors import ConfigError
from retrieval_heads.settings.range import MOST_CELLS, Counts, Range, whole_values
from retrieval_heads.settings.section import Said, Section, Whole

_COUNTS = [4, 8, 16, 32, 64, 128]
_SEED = 42


class CodeEval(Section):
    """Programs, as the predecessor writes them."""

    num_vars: Counts = _COUNTS
    num_steps: Counts = _COUNTS
    num_tasks: Annotated[Whole, Field(ge=1, le=MOST_CELLS)] = 100
    """Programs of each place: as many seeds."""
    task_types: list[Literal["RECALL", "STATE_TRACKING", "STATE_BASED_RECALL"]] = Field(
        default=["RECALL", "STATE_TRACKING", "STATE_BASED_RECALL"], min_length=1
    )
    seed: Annotated[Whole, Field(ge=0)] = _SEED
    prompt_template: Said | None = None
    """With `{context}` and `{target_var}` in it, once each."""

    def sections(self) -> dict[str, object]:
        """What it means here."""
        task: dict[str, object] = {
            "name": "program",
            "kinds": [kind.lower() for kind in self.task_types],
            "variables": sorted(set(whole_values(self.num_vars))),
            "steps": sorted(set(whole_values(self.num_steps))),
        }
        made = {"task": task, "sweep": {"seeds": list(range(self.seed, self.seed + self.num_tasks))}}
        if self.prompt_template is None:
            return made
        for mark in ("{context}", "{target_var}"):
            if (found := self.prompt_template.count(mark)) != 1:
                raise ConfigError(f"code_eval.prompt_template: holds {mark} {found} times; once is accepted")
        task["question"] = "{target}"
        return {**made, "prompt": self.prompt_template.replace("{target_var}", "{question}")}


class Phonebook(Section):
    """A phonebook, as the predecessor writes it."""

    phonebook_size: Whole = 1000
    lengths: Counts = Range(min=8, max=999)
    depths: Counts | None = None
    randomize: bool = False
    seed: Annotated[Whole, Field(ge=0)] | None = _SEED
    """`null` draws another book each time there; here it is the default, so that a run can be repeated."""
    question: Said | None = None
    store_context: bool = True
    """Read for the predecessor's sake: a record holds what rebuilds its prompt."""

    def sections(self) -> dict[str, object]:
        """What it means here."""
        task: dict[str, object] = {
            "name": "phonebook",
            "entries": sorted(set(whole_values(self.lengths))),
            "size": self.phonebook_size,
            "randomize": self.randomize,
            "names": "package",
        }
        if self.question is not None:
            task["question"] = self.question
        sweep: dict[str, object] = {"seeds": [_SEED if self.seed is None else self.seed]}
        if self.depths is not None:
            sweep["document_depths"] = sorted(set(whole_values(self.depths)))
        return {"task": task, "sweep": sweep}


SECTIONS: Mapping[str, type[CodeEval] | type[Phonebook]] = {"code_eval": CodeEval, "phonebook": Phonebook}


def sections_of(data: Mapping[str, object]) -> dict[str, object]:
    """What the predecessor's section in settings means here; nothing where there is none.

    Args:
        data: Settings, each section validated.

    Raises:
        ConfigError: There are two of them, or one beside what it would say itself.
    """
    given = [name for name in SECTIONS if name in data]
    if not given:
        return {}
    beside = [name for name in (*given[1:], "task", "haystack", "needles", "from_results") if name in data]
    if beside:
        raise ConfigError(f"{given[0]}: says what is asked, and so does {beside[0]}; give one of them")
    return SECTIONS[given[0]].model_validate(data[given[0]]).sections()

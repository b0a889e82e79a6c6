"""Who gave stored answers, and whether they may be traced on the model that is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

from retrieval_heads.errors import ConfigError
from retrieval_heads.plain import Fields
from retrieval_heads.runs.folder import Facts
from retrieval_heads.runs.identity import Identities, Identity, differences
from retrieval_heads.runs.record import Record

UNNAMED = "unknown"
"""How a suite's `from_model` names a model that nothing names."""


@dataclass(frozen=True)
class Origin:
    """The model that gave answers of one file.

    Args:
        file: The file.
        name: The model's name, or `UNNAMED`.
        model: Its identity; `None` where nothing says it.
        is_predecessors: Whether the answers are records of PyPI's `retrieval-heads`, which name no model.
    """

    file: str
    name: str
    model: Identity | None
    is_predecessors: bool = False

    def to_json(self) -> dict[str, object]:
        """Plain builtins, for another process."""
        told = {"file": self.file, "name": self.name, "is_predecessors": self.is_predecessors}
        return {**told, "model": self.model.to_json() if self.model else None}

    @classmethod
    def of_json(cls, data: Fields) -> Origin:
        """What `to_json` made."""
        return cls(**{**data, "model": Identity.of_json(data["model"]) if data["model"] else None})

    def check(self, loaded: Identity | None, model: str, from_model: str | None) -> str | None:
        """See whether the answers may be traced; a warning where that cannot be told.

        Args:
            loaded: The model that is to trace them; `None` before it is loaded.
            model: Its name.
            from_model: The model whose answers the suite asks for by name.

        Raises:
            ConfigError: They are another model's, or nothing says whose, and the suite does not ask for them.
        """
        if self.is_predecessors:
            return f"{self.file}: records that do not say which model answered; they are traced as this model's"
        if from_model is not None:
            if from_model not in (self.name, PurePath(self.name).name):
                raise ConfigError(f"from_model names {from_model}, and the answers of {self.file} are of {self.name}")
            return None
        if self.model is None:
            raise ConfigError(
                f"{self.file} does not say which model gave its answers (an earlier version wrote it); "
                f"ask again, or have them traced by the model's name: `from_model: {self.name}`"
            )
        if loaded is None:
            # Two models of a hub are told apart by their names, without loading one.
            hub = self.model.fields.get("name")
            differing = (
                [f"model.name: {hub} then, {model} now"] if hub and not _is_folder(model) and hub != model else []
            )
        else:
            differing = [one.sentence() for one in differences("model", self.model, loaded)]
        if differing:
            more = f"; and {len(differing) - 3} more" if len(differing) > 3 else ""
            raise ConfigError(
                f"{self.file} holds answers of another model than {model} ({'; '.join(differing[:3])}{more}); "
                f"trace them all the same by that model's name: `from_model: {self.name}`"
            )
        return None


def origins(file: str, records: Iterable[Record], facts: Facts) -> Iterator[Origin]:
    """Who gave the answers of a file's records.

    Args:
        file: The file, for messages.
        records: Those that are to be traced.
        facts: What the `run.json` beside the file says; empty where there is none.
    """
    known = Identities.of_facts(facts)
    by_model = {record.answered_by.model if record.answered_by else "": record for record in records}
    for record in by_model.values():
        model = known.model_of(record)
        named = model.name if model and model.name else str(facts.get("model") or UNNAMED)
        yield Origin(file, named, model, is_predecessors=record.recipe is None)


def _is_folder(model: str) -> bool:
    return Path(model).expanduser().exists()

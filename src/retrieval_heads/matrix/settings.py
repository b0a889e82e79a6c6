"""A matrix file: the settings under which the same cells are asked, and what each of them must reach."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Final

from pydantic import BeforeValidator, Field, ValidationError, field_validator

from retrieval_heads.errors import ConfigError
from retrieval_heads.gates.expression import EffectiveLength, Gate, parse_gate
from retrieval_heads.heads.score import head_score, is_of_texts
from retrieval_heads.matrix.gate import NotWorse, SettingGate, parse_setting_gate
from retrieval_heads.plain import Fields
from retrieval_heads.reading import read_bytes
from retrieval_heads.redaction import keep_secret
from retrieval_heads.settings.messages import sentences
from retrieval_heads.settings.section import Section, Whole
from retrieval_heads.settings.yaml_reading import decode, line_of, parse
from retrieval_heads.suites.reading import overlay, validated
from retrieval_heads.suites.settings import Settings
from retrieval_heads.suites.suite import Suite

REFERENCE: Final = "reference"
"""The setting that all others are compared with."""

AGAIN: Final = "again"
"""The reference once more, on an engine of its own and in the other order: what it differs by is noise."""

_SECTIONS: Final = ("model", "engine", "generation")
"""What a setting may change: anything else would be another question."""

_NAME: Final = r"\w[\w.+-]*"


def _gates(value: object) -> object:
    """`{NAME: gate}`, and entries of a list that YAML read as such a mapping, as `NAME: gate`."""
    entries = [value] if isinstance(value, dict | str) else value
    if not isinstance(entries, list):
        return value
    said: list[object] = []
    for entry in entries:
        said += [f"{name}: {gate}" for name, gate in entry.items()] if isinstance(entry, dict) else [entry]
    return said


class Decided(Section):
    """Cells are asked in a random order until a setting's gates are certain."""

    seed: Annotated[Whole, Field(ge=0)] = 0
    """Draws the order in which cells are asked."""


class Until(Section):
    """How many cells of a setting are asked."""

    decided: Decided
    """As many as make its gates certain; see `retrieval_heads.matrix.sequential`."""


def _until(value: object) -> object:
    if value == "decided":
        return {"decided": {}}
    if value is None or isinstance(value, dict | Until):
        return value
    raise ValueError(f"decided is expected, or {{decided: {{seed: 0}}}}; found {value!r}")


class _File(Section):
    """What a matrix file may say."""

    matrix: Annotated[dict[str, dict[str, object] | None], Field(min_length=1)]
    """Each setting by its name, with what it lays over the config; `reference` is the config as it is."""
    gates: Annotated[list[str], BeforeValidator(_gates)] = []
    """What a setting must reach: `NAME: mean(pass_rate) >= reference - 0.02`."""
    again: bool = True
    """Whether the reference is asked a second time."""
    until: Annotated[Until, BeforeValidator(_until)] | None = None
    """How many cells of each setting are asked; all where it is left out."""

    @field_validator("matrix")
    @classmethod
    def _known_sections(cls, matrix: dict[str, dict[str, object] | None]) -> dict[str, dict[str, object] | None]:
        for name, laid in matrix.items():
            if not re.fullmatch(_NAME, name):
                raise ValueError(f"{name!r}: a name of letters, digits, '.', '+', '-' and '_' is expected")
            if other := [key for key in laid or {} if key not in _SECTIONS]:
                raise ValueError(
                    f"{name}: {other[0]}: a setting changes {', '.join(_SECTIONS)}; the cells stay as they are"
                )
        return matrix


@dataclass(frozen=True)
class Matrix:
    """Settings by their names, the reference first, and the gates of those that have some.

    Args:
        settings: What each lays over suite and config.
        gates: What settings must reach.
        until: How many cells of each are asked; `None`: all.
    """

    settings: Mapping[str, Fields]
    gates: tuple[SettingGate, ...] = ()
    until: Decided | None = None

    def deciding(self, setting: str) -> tuple[NotWorse, ...]:
        """The gates of a setting whose verdicts end its questions; none where all of its cells are asked: a gate of
        another kind is certain once they are.
        """
        own = [one.gate for one in self.gates if self.until and one.setting == setting]
        compared = tuple(gate for gate in own if isinstance(gate, NotWorse))
        return compared if len(compared) == len(own) else ()

    def check(self, read: Mapping[str, Mapping[str, Suite]]) -> None:
        """See that every setting changes something of what suite, config and options come to.

        Args:
            read: Suites by name, under each setting.

        Raises:
            ConfigError: One does not.
        """
        for setting, suites in read.items():
            for name, suite in suites.items():
                under = read[REFERENCE][name]
                if setting not in (REFERENCE, AGAIN) and _canonical(suite.settings) == _canonical(under.settings):
                    raise ConfigError(
                        f"{suite.path}: matrix.{setting}: what it says is what suite and config say already: it is "
                        f"the same as {REFERENCE}"
                    )

    def variant(self, suite: Suite, setting: str) -> Suite:
        """A suite that was read under a setting, under a name of its own; the reference keeps the suite's.

        Raises:
            ConfigError: It is of a kind that is not compared.
        """
        if suite.settings.kind in ("ablate", "compress"):
            kind = suite.settings.kind
            raise ConfigError(f"{suite.path}: kind: a matrix compares suites of kind niah and detect, not {kind}")
        if texts := [name for name in suite.question.scores if is_of_texts(head_score(name))]:
            raise ConfigError(
                f"{suite.path}: scores: {', '.join(texts)} are measured once a run's cells are done, on the engine "
                "there is then, and a matrix has several; leave them out"
            )
        if self.until and suite.settings.sweep.samples is not None:
            raise ConfigError(
                f"{suite.path}: sweep.samples: the matrix says `until: decided`, and both choose which cells are "
                "asked; leave one out"
            )
        self._check_bisection(suite)
        if setting == REFERENCE:
            return replace(suite, setting=setting)
        name = f"{suite.name}@{setting}"
        return replace(
            suite,
            name=name,
            setting=setting,
            settings=suite.settings.model_copy(update={"name": name}),
            question=replace(suite.question, suite=name),
        )

    def _check_bisection(self, suite: Suite) -> None:
        """Refuse a gate on an effective length that the lengths which are asked would not tell."""
        samples = suite.settings.sweep.samples
        if samples is None or samples.bisect_lengths is None:
            return
        known = [parse_gate(gate).measure for gate in suite.settings.gates]
        for one in self.gates:
            measure = one.gate.measure if isinstance(one.gate, Gate) else None
            if isinstance(measure, EffectiveLength) and measure not in known:
                raise ConfigError(
                    f"{suite.path}: sweep.samples: bisect_lengths asks what the suite's own gates take, and the matrix "
                    f"has the gate `{one}`; give the suite a gate on {measure} too"
                )


def read_matrix(path: Path) -> Matrix:
    """Read a matrix file.

    Raises:
        ConfigError: The file is missing, holds what is not accepted, a setting that changes nothing, or a gate of a
            setting that there is not.
    """
    text = decode(read_bytes(path), str(path))
    data = parse(text, str(path))
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: a mapping with `matrix: {{NAME: settings}}` is expected")
    try:
        file = _File.model_validate(data)
    except ValidationError as error:
        raise ConfigError("\n".join(sentences(_File, error, str(path), text))) from None
    settings = {name: validated(laid or {}, path, text, ("matrix", name)) for name, laid in file.matrix.items()}
    keep_secret(settings)
    reference = settings.pop(REFERENCE, {})
    if AGAIN in settings:
        raise ConfigError(
            f"{_at(path, text, AGAIN)}: matrix.{AGAIN}: that is the reference asked a second time; name it otherwise"
        )
    known = {_canonical(_resolved(reference)): REFERENCE}
    for name, laid in settings.items():
        twin = known.setdefault(_canonical(_resolved(overlay(reference, laid))), name)
        if twin != name:
            raise ConfigError(f"{_at(path, text, name)}: matrix.{name}: it is the same as {twin}")
    if not settings and not file.again:
        raise ConfigError(f"{path}: matrix: there is nothing to compare the reference with")
    again = {AGAIN: reference} if file.again else {}
    named = {REFERENCE: reference, **again, **{name: overlay(reference, laid) for name, laid in settings.items()}}
    try:
        gates = tuple(parse_setting_gate(gate, [name for name in named if name != REFERENCE]) for gate in file.gates)
    except ConfigError as error:
        raise ConfigError(f"{path}:{line_of(text, ['gates'])}: gates: {error}") from None
    matrix = Matrix(named, gates, file.until.decided if file.until else None)
    if matrix.until and not any(map(matrix.deciding, named)):
        raise ConfigError(
            f"{path}:{line_of(text, ['until'])}: until: decided: no gate can be certain before all cells are asked; "
            "give a setting one such as `NAME: mean(pass_rate) >= reference - 0.02`, and none of another kind beside it"
        )
    return matrix


def _at(path: Path, text: str, name: str) -> str:
    line = line_of(text, ["matrix", name])
    return f"{path}:{line}" if line else str(path)


def _resolved(laid: Fields) -> Settings:
    return Settings.model_validate(dict(laid))


def _canonical(settings: Settings) -> str:
    return json.dumps(settings.model_dump(mode="json", include=set(_SECTIONS)), sort_keys=True)

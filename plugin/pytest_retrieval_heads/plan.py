"""What a session is about to ask: made from its selected items, handed as plain JSON to whoever launches."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path

from retrieval_heads.files import write_whole
from retrieval_heads.heads.score import head_score, is_wanted
from retrieval_heads.hub import length_limit
from retrieval_heads.plain import Fields, Plain
from retrieval_heads.redaction import without_values
from retrieval_heads.runs.place import LENGTH
from retrieval_heads.suites.reading import overlay, read_settings, resolve
from retrieval_heads.suites.settings import Engine, OtherEngine, Settings
from retrieval_heads.suites.suite import Suite
from retrieval_heads.tasks.task import Cell


@dataclass(frozen=True)
class SelectedCell:
    """A cell that a session asks.

    Args:
        suite: The cell's.
        cell: The question.
        node: The node id that the items of the suite stand under.
    """

    suite: Suite
    cell: Cell
    node: str

    @property
    def key(self) -> str:
        """Names this cell to the engine."""
        return f"{self.suite.name}::{self.cell.id}"


@dataclass(frozen=True)
class PlannedSetting(Plain):
    """A setting of a matrix that cells are selected of.

    Args:
        model: The `model` section under it.
        engine: The `engine` section under it.
        suites: The suites that are asked under it, by kind and name.
    """

    model: dict[str, object]
    engine: dict[str, object]
    suites: list[str]

    @property
    def engine_section(self) -> Engine:
        """The `engine` section as settings."""
        return Settings.model_validate({"engine": self.engine}).engine


@dataclass(frozen=True)
class Plan(Plain):
    """The engine that a session needs and the cells that it will ask.

    Args:
        model: The `model` section, the same for every suite.
        engine: The `engine` section, the same for every suite.
        suites: Each suite's resolved settings, by kind and name: `niah/demo`.
        files: Each suite's file.
        haystacks: Their sources.
        cells: Each suite's selected cells, by `Cell.id`.
        traced: Whether heads are scored or masked, which takes an engine that nnsight instruments.
        output_dir: The folder that the settings name.
        origins: Who gave the stored answers that suites trace, as `Origin.to_json` tells it.
        prompt_tokens: Of all selected cells' prompts; 0 where a task leaves them to the prompt.
        misfit: Why nothing is loaded: no selected cell fits the model, and nothing else is asked of it.
        error: Why the session cannot run, in one sentence.
        nodes: The node id that the items of each suite stand under.
        collected: Each collected suite's cells before any was deselected, also of suites of which none is selected.
        gated: The collected suites with gates or expectations.
        beside: The cells of suites that lie in the same folders and were not collected.
        settings: Of a matrix, each setting by its name, in the order of their turns; `model` and `engine` are then
            those of the first.
    """

    model: dict[str, object]
    engine: dict[str, object]
    suites: dict[str, dict[str, object]]
    files: dict[str, str]
    haystacks: list[str]
    cells: dict[str, list[str]]
    traced: bool
    output_dir: str | None
    origins: dict[str, list[dict[str, object]]] = field(default_factory=dict)
    prompt_tokens: int = 0
    misfit: str | None = None
    error: str | None = None
    nodes: dict[str, str] = field(default_factory=dict)
    collected: dict[str, list[str]] = field(default_factory=dict)
    gated: list[str] = field(default_factory=list)
    beside: dict[str, list[str]] = field(default_factory=dict)
    settings: dict[str, PlannedSetting] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        selected: Sequence[SelectedCell],
        settings: Settings,
        *,
        is_engine_asked: bool = False,
        needs_model: bool = True,
    ) -> Plan | None:
        """The plan of a session; `None` when nothing that is selected needs the engine.

        Args:
            selected: The selected cells; those of suites without a model stay out of it.
            settings: Those of config and options, for tests that ask the engine themselves.
            is_engine_asked: Whether a selected test asks the engine itself.
            needs_model: Whether a model is asked; not where stored answers are scored again.
        """
        suites = [suite for suite in suites_of(selected) if suite.settings.model.model or not needs_model]
        if not suites and not (is_engine_asked and (settings.model.model or not needs_model)):
            return None
        plan = cls.for_all(suites, selected, settings)
        if is_engine_asked or not needs_model or plan.settings:
            return plan
        return replace(plan, misfit=_misfit([one for one in selected if one.suite.id in plan.suites]))

    @classmethod
    def for_all(cls, suites: Sequence[Suite], selected: Sequence[SelectedCell], settings: Settings) -> Plan:
        """The plan of suites and their selected cells; of none, for an engine that is only asked."""
        settings_of = {suite.id: suite.settings for suite in suites}
        every = [*settings_of.values()] or [settings]
        first = every[0]
        error = None
        if len(settings_of) < len(suites):
            error = "two suites of a kind have the same name: " + ", ".join(str(suite.path) for suite in suites)
        elif unlike := _unlike(suites):
            error = unlike
        elif any(other.output_dir != first.output_dir for other in every):
            error = f"the suites {', '.join(settings_of)} name different output_dirs; one run has one folder"
        else:
            error = next((f"{suite.id}: {broken}" for suite in suites if (broken := _unfound(suite, suites))), None)
        return cls(
            model=first.model.model_dump(),
            engine=first.engine.model_dump(),
            suites={suite.id: suite.resolved() for suite in suites},
            files={suite.id: str(suite.path) for suite in suites},
            haystacks=sorted({suite.source for suite in suites if not suite.settings.from_results}),
            cells={suite.id: [one.cell.id for one in cells_of(suite, selected)] for suite in suites},
            traced=any(one.kind != "niah" for one in settings_of.values()),
            output_dir=first.output_dir,
            origins={suite.id: [one.to_json() for one in suite.origins] for suite in suites if suite.origins},
            prompt_tokens=_prompt_tokens(selected),
            error=error,
            nodes={one.suite.id: one.node for one in selected},
            settings=_settings_of(suites),
        )

    def before_deselection(self, collected: Iterable[Suite], beside: Iterable[Suite]) -> Plan:
        """The plan that knows what its suites ask before any cell is deselected.

        Args:
            collected: Every suite that was collected, selected or not.
            beside: Suites in the same folders that were not.
        """
        collected = list(collected)
        return replace(
            self,
            collected={suite.id: [cell.id for cell in suite.cells] for suite in collected},
            gated=[suite.id for suite in collected if suite.settings.gates or suite.settings.expect],
            beside={suite.id: [cell.id for cell in suite.cells] for suite in beside},
        )

    def is_whole(self, suite: str) -> bool:
        """Whether every cell of a suite is selected."""
        return len(self.cells.get(suite, ())) == len(self.collected.get(suite, self.cells.get(suite, ())))

    @property
    def total(self) -> int:
        """How many cells are selected."""
        return sum(map(len, self.cells.values()))

    def save(self, path: Path) -> None:
        """Write the plan whole or not at all, without secrets; every worker writes the same."""
        write_whole(path, json.dumps(without_values(self.to_json())).encode(), is_private=True)

    @classmethod
    def load(cls, path: Path, over_suites: Callable[[str], Sequence[Fields]]) -> Plan:
        """Read a saved plan; the model's secrets are read where they were written.

        Args:
            path: The file.
            over_suites: Under a setting, or an empty name, what is laid over each suite: the keys of the config, those
                of the setting, and those of `--rh-set`.

        Raises:
            ConfigError: A suite changed since, and cannot be read.
        """
        plan = cls.of_json(json.loads(path.read_text(encoding="utf-8")))
        if plan.error is not None:
            return plan
        suite = next((read_settings(Path(file)) for file in plan.files.values()), {})

        def sections(setting: str) -> tuple[dict[str, object], dict[str, object]]:
            parts = {
                part: reduce(overlay, (layer.get(part, {}) for layer in (suite, *over_suites(setting))))
                for part in ("model", "engine")
            }
            settings = resolve(parts, str(path))
            return settings.model.model_dump(), settings.engine.model_dump()

        settings = {name: PlannedSetting(*sections(name), one.suites) for name, one in plan.settings.items()}
        model, engine = sections(next(iter(settings), ""))
        return replace(plan, model=model, engine=engine, settings=settings)

    @property
    def engine_section(self) -> Engine:
        """The `engine` section as settings."""
        return Settings.model_validate({"engine": self.engine}).engine

    def resolved(self) -> Mapping[str, object]:
        """What `config.yaml` says: one suite's settings, or each suite's by name; of a matrix under its first setting,
        which the file of the matrix says the others beside.
        """
        first = next(iter(self.settings.values()), None)
        suites = {name: said for name, said in self.suites.items() if first is None or name in first.suites}
        if len(suites) == 1:
            return next(iter(suites.values()))
        return {"suites": suites} if self.suites else {"model": self.model, "engine": self.engine}


def awaited(suite: Suite) -> str | None:
    """The suite whose heads a suite masks: `detect/NAME`."""
    masked = suite.settings.compress if suite.settings.kind == "compress" else suite.settings.ablate
    return masked.awaited if suite.settings.kind in ("ablate", "compress") and masked else None


def _unlike(suites: Sequence[Suite]) -> str | None:
    """Why suites cannot share an engine, those of a setting that of the setting; `None` where they can."""
    groups: dict[str, list[Suite]] = {}
    for suite in suites:
        groups.setdefault(suite.setting, []).append(suite)
    for group in groups.values():
        names, first = ", ".join(suite.id for suite in group), group[0].settings
        if any(suite.settings.model != first.model for suite in group):
            return f"the suites {names} name different models; one run has one engine"
        if any(suite.settings.engine != first.engine for suite in group):
            said = [dict(suite.settings.engine) for suite in group]
            named = dict.fromkeys(key for one in said for key in one)
            odd = [key for key in named if any(one.get(key) != said[0].get(key) for one in said)]
            keys = ", ".join(f"engine.{key}" for key in odd)
            return f"the suites {names} name different {keys}; one run has one engine"
    return None


def _settings_of(suites: Iterable[Suite]) -> dict[str, PlannedSetting]:
    settings: dict[str, PlannedSetting] = {}
    for suite in suites:
        if suite.setting:
            said = suite.settings
            one = PlannedSetting(said.model.model_dump(), said.engine.model_dump(), [])
            settings.setdefault(suite.setting, one).suites.append(suite.id)
    return settings


def _unfound(suite: Suite, suites: Sequence[Suite]) -> str | None:
    """What is wrong when the heads that a suite masks are to be found by one that does not run."""
    name = awaited(suite)
    found = next((other for other in suites if other.id == name), None)
    if found is not None and found.settings.sweep.samples is not None:
        return (
            f"the heads of {name} are to be masked, and it asks until they are stable (sweep.samples): mask the heads "
            "of its run's heads.json, or leave sweep.samples out"
        )
    if name is None or found is not None:
        return _unranked(suite, found)
    return f"the heads of {name} are to be masked, and no cell of that suite is selected; select it too, or name a file"


def _unranked(suite: Suite, found: Suite | None) -> str | None:
    """What is wrong when the heads are to be ranked by a score that the suite which finds them does not measure."""
    ablate, compress = suite.settings.ablate, suite.settings.compress
    key, names = "ablate.by", list(ablate.by or ()) if ablate else []
    if suite.settings.kind == "compress" and compress is not None:
        key, names = "compress.scores", compress.measured
    if found is None:
        return None
    for by in names:
        if not is_wanted(head_score(by), found.question.scores):
            return f"{key}: {found.id} does not measure {by}; name it in that suite's `scores`"
    return None


def _misfit(selected: Sequence[SelectedCell]) -> str | None:
    """Why none of the selected cells can be asked, as far as can be told without the engine."""
    first = selected[0].suite.settings
    if isinstance(first.engine, OtherEngine):  # the model's files need not be here
        said = first.model.engine_args.get("max_model_len")
        limit = said if isinstance(said, int) and said > 0 else None
    else:
        limit = length_limit(first.model.model_dump())
    if limit is None or any(one.cell.stored is not None for one in selected):
        return None
    if any(unfit(one.suite, one.cell, limit) is None for one in selected):
        return None
    shortest = min(selected, key=lambda one: length_of(one.cell))
    settings = shortest.suite.settings
    limited = f"the model takes {limit} tokens"
    if settings.model.engine_args.get("max_model_len"):
        limited = f"model.max_model_len is {limit}"
    size = f"the shortest has {length_of(shortest.cell)} prompt tokens"
    if budget := settings.generation.max_tokens:
        size += f" and {budget} for the answer"
    return f"{limited}, and none of the {len(selected)} selected cells fits: {size}"


def unfit(suite: Suite, cell: Cell, limit: int) -> str | None:
    """Why a cell does not fit a model, as the engine says it; `None` where it may.

    Args:
        suite: The cell's.
        cell: A question.
        limit: Tokens that prompt and answer may take together.
    """
    budget = suite.settings.generation.max_tokens
    if length_of(cell) + (budget or 1) <= limit:
        return None
    answer = f"{budget} answer tokens" if budget else "an answer"
    return f"{length_of(cell)} prompt tokens and {answer} do not fit max_model_len {limit}"


def length_of(cell: Cell) -> int:
    """Tokens of a cell's prompt; 0 where its task leaves them to the prompt."""
    length = cell.place.get(LENGTH)
    return length if isinstance(length, int) else 0


def _prompt_tokens(selected: Sequence[SelectedCell]) -> int:
    lengths = [length_of(one.cell) for one in selected if one.cell.stored is None]
    return sum(lengths) if all(lengths) else 0


def cells_of(suite: Suite, selected: Iterable[SelectedCell]) -> list[SelectedCell]:
    """A suite's selected cells."""
    return [one for one in selected if one.suite is suite]


def suites_of(selected: Iterable[SelectedCell]) -> list[Suite]:
    """The suites of the selected cells, in order."""
    return list({id(one.suite): one.suite for one in selected}.values())

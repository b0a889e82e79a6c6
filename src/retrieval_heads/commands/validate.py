"""`retrieval-heads validate`: what a run would ask and cost, and whether its prompts are sound."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from retrieval_heads.commands.flags import assignments, split_settings
from retrieval_heads.engine.backends.backend import check_suite
from retrieval_heads.errors import ConfigError, RetrievalHeadsError, printable
from retrieval_heads.kinds import KINDS
from retrieval_heads.plain import Fields
from retrieval_heads.runs.place import LENGTH, NEEDLE, in_order
from retrieval_heads.suites.cost import earlier_run, plan_suite
from retrieval_heads.suites.reading import is_whole_suite, overrides, read_settings, read_suites
from retrieval_heads.suites.recognition import find_suites
from retrieval_heads.suites.soundness import Check, check_answers, check_prompts
from retrieval_heads.suites.suite import Suite, load_suites


@dataclass(frozen=True)
class Validate:
    """Check suites and a config and print the plan, without starting an engine; exit status 1 where something is wrong.

    Any setting is a flag, as in `niah` and `detect`.

    Example: retrieval-heads validate suites/niah --config configs/qwen.yaml --model.max-model-len 16384
    """

    suites: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Suite files or folders; `suites` where neither they nor the config say what to ask."""
    config: Path | None = None
    """YAML config: the model under test, and what overrides the suites."""


def validate(arguments: Sequence[str], program: str) -> None:
    """Print the plan of the suites that the arguments name.

    Args:
        arguments: The command line behind the subcommand.
        program: What it was called as, for `--help`.

    Raises:
        ConfigError: There is nothing to check, or a suite or config cannot be used.
    """
    own, settings = split_settings(arguments, Validate)
    asked = tyro.cli(Validate, prog=program, args=own)
    found = False
    for suite in _suites(asked, overrides(assignments(settings))):
        found = _show(suite) or found
    if found:
        sys.exit(1)


def _suites(asked: Validate, sets: Fields) -> list[Suite]:
    config = read_settings(asked.config) if asked.config else {}
    named = list(asked.suites)
    if not named and asked.config and (is_whole_suite(config) or read_suites(asked.config)):
        return list(load_suites(asked.config, config, sets).values())
    named = named or [Path("suites")]
    files = []
    for path in named:
        if not path.exists():
            raise ConfigError(f"{path}: no such suite or folder; name a suite, or a config that holds a haystack")
        files += find_suites(path) if path.is_dir() else [path]
    if not files:
        raise ConfigError(f"{', '.join(map(str, named))}: no suite of kind {', '.join(KINDS)} there")
    return [suite for file in files for suite in load_suites(file, config, sets).values()]


def _show(suite: Suite) -> bool:
    """Print one suite's plan; whether something is wrong with it."""
    print(printable(f"{suite.id}  ({suite.path})"))
    model = suite.settings.model.model_dump()
    for name, text in _grid(suite):
        _line(name, text)
    checks: list[Check] = []
    if not suite.settings.from_results:
        checks += _checks("answers", lambda: check_answers(suite))
    checks += _backend_checks(suite, model)
    if model["model"] is None or suite.settings.from_results:
        _line("model", model["model"] or "not named: give --config FILE for tokens, memory and checks")
    else:
        checks += _checks("prompts", lambda: _prompt_checks(suite, model))
    for check in checks:
        mark = "WRONG: " if check.is_wrong else "warning: " if check.is_doubtful else ""
        _line(check.name, f"{mark}{check.text}")
    return any(check.is_wrong for check in checks)


def _backend_checks(suite: Suite, model: Fields) -> list[Check]:
    try:
        backend = check_suite(suite)
    except ConfigError as error:
        return [Check("backend", str(error), is_wrong=True)]
    checks = _checks("versions", lambda: backend.check_installed(traced=suite.settings.kind != "niah"))
    checks += _checks("arguments", lambda: backend.check_arguments(model, suite.settings.engine.options))
    if not suite.settings.from_results:
        generation = suite.settings.generation.model_dump()
        checks += _checks("sampling", lambda: backend.check_sampling(generation))
    return checks


def _prompt_checks(suite: Suite, model: Fields) -> Iterator[Check]:
    from retrieval_heads.prompts.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(model)
    earlier = earlier_run(Path("reports"), model["model"])
    plan = plan_suite(suite, tokenizer, earlier)
    for name, text in plan.lines(earlier):
        _line(name, text)
    if sum(plan.skipped.values()) == len(suite.cells):
        yield Check("fit", "none of the cells fits the model", is_wrong=True)
    yield from check_prompts(suite, tokenizer)


def _checks(name: str, look: Callable[[], Iterable[Check] | None]) -> list[Check]:
    """What was found; a suite that cannot be looked at is itself a finding."""
    try:
        return list(look() or ())
    except RetrievalHeadsError as error:
        return [Check(name, str(error), is_wrong=True)]


def _grid(suite: Suite) -> Iterator[tuple[str, str]]:
    parts = []
    for axis in suite.task.axes:
        values = in_order(value for cell in suite.cells if (value := cell.place.get(axis)) is not None)
        if axis == LENGTH:
            parts.append(f"{len(values)} lengths from {values[0]:,} to {values[-1]:,} tokens")
        elif axis != NEEDLE:
            parts.append(f"{len(values)} {axis if axis.endswith('s') else f'{axis}s'}")
    seeds, arms = ({getattr(cell.place, key) for cell in suite.cells} for key in ("seed", "arm"))
    for count, noun in ((len(suite.needles), "needles"), (len(seeds), "seeds"), (len(arms), "arms")):
        parts += [f"{count} {noun}"] if count > 1 else []
    yield "cells", f"{len(suite.cells):,}: {' × '.join(parts)}"


def _line(name: str, text: str) -> None:
    print(printable(f"  {name:<15}{text}"))

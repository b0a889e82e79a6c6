"""Before stored answers are used: are they answers of this model, and to this suite's questions?"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from pytest_retrieval_heads.plan import Plan
from retrieval_heads.errors import ConfigError
from retrieval_heads.prompts.haystack import read_text
from retrieval_heads.runs.folder import Facts
from retrieval_heads.runs.identity import Difference, Identities, Identity, argument_differences, differences
from retrieval_heads.runs.origin import Origin
from retrieval_heads.runs.record import Recipe, Record
from retrieval_heads.suites.settings import Settings


def check_answers(plan: Plan, loaded: Identities | None = None) -> list[str]:
    """See that the answers which detect suites trace are those of the plan's model.

    Args:
        plan: The session's.
        loaded: The model that was loaded; without it only what names tell.

    Returns:
        Warnings.

    Raises:
        ConfigError: They are another model's, and the suite does not ask for them by name.
    """
    model = next(iter(loaded.models.values())) if loaded and loaded.models else None
    warnings = []
    for suite, told in plan.origins.items():
        from_model = Settings.model_validate(plan.suites[suite]).from_model
        for origin in map(Origin.of_json, told):
            try:
                warning = origin.check(model, str(plan.model["model"]), from_model)
            except ConfigError as error:
                raise ConfigError(f"{suite}: {error}") from None
            if warning:
                warnings.append(f"WARN {suite}: {warning}")
    return warnings


def check_rescored(plan: Plan, records: Sequence[Record], facts: Facts, allow_changed: bool) -> None:
    """See that the answers which are scored again are those of the settings' model, to the suites' questions.

    Args:
        plan: The session's.
        records: The earlier run's.
        facts: What its `run.json` says.
        allow_changed: Whether the questions may have changed.

    Raises:
        ConfigError: Another model is named, or the questions are others.
    """
    then = {"model": facts.get("model"), **facts.get("engine_args", {})}
    known = Identities.of_facts(facts)
    answered = {model.name for record in records if (model := known.model_of(record)) and model.name}
    if differing := argument_differences(then, plan.model, answered):
        raise ConfigError(
            f"--rh-rescore: the stored answers are another model's ({_told(differing)}); "
            "leave the model out, or run again"
        )
    if allow_changed:
        return
    for suite, resolved in plan.suites.items():
        settings = Settings.model_validate(resolved)
        if settings.from_results:
            continue
        now = _asked(settings)
        for recipe in (record.recipe for record in records if record.suite_id == suite):
            if recipe is not None and (changed := _changed(recipe, now)):
                raise ConfigError(
                    f"--rh-rescore: {suite}: the stored answers were given to another question ({_told(changed)}); "
                    "run again, or score them all the same with --rh-allow-changed"
                )


def _asked(settings: Settings) -> dict[str, object]:
    """What a suite asks, as far as it can be told without a model."""
    source = settings.haystack and (settings.haystack.source or settings.haystack.haystack_dir)
    haystack = {"haystack": hashlib.sha256(read_text(str(source)).encode()).hexdigest()} if source else {}
    return {
        **haystack,
        "wording": settings.prompt.model_dump(mode="json")["messages"],
        "boundary": settings.boundary,
        "sampling": {key: value for key, value in settings.generation.model_dump().items() if value is not None},
    }


def _changed(recipe: Recipe, now: Mapping[str, object]) -> list[Difference]:
    """What differs of a question, as far as its record says it."""
    then = {
        "haystack": recipe.hash,
        "wording": recipe.wording,
        "boundary": recipe.boundary,
        "sampling": recipe.sampling,
    }
    known = {key: value for key, value in then.items() if key in now and value not in (None, "")}
    return differences("question", Identity(known), Identity({key: now[key] for key in known}))


def _told(differing: Sequence[Difference]) -> str:
    return "; ".join(one.sentence() for one in differing)

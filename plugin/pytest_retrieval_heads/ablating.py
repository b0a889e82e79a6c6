"""Before and after an ablation: heads that fit the model, then accuracy by arm, a table, pictures, expectations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pytest_retrieval_heads.detection import failures, identity_of
from retrieval_heads.ablation.arms import MODES, NONE, check, idle_heads
from retrieval_heads.ablation.controls import QUESTIONS, Control, intervals, mean_of, measure
from retrieval_heads.ablation.effect import Effect, effect_of, to_json
from retrieval_heads.engine.client import Address, EngineClient
from retrieval_heads.errors import ConfigError, ResultsError
from retrieval_heads.gates import Inconclusive, Outcome
from retrieval_heads.gates.expression import SLACK
from retrieval_heads.gates.settings import Expect
from retrieval_heads.heads.table import Head
from retrieval_heads.prompts.haystack import read_text
from retrieval_heads.runs.answer import Answer
from retrieval_heads.runs.folder import Facts, RunFolder
from retrieval_heads.runs.layers import named
from retrieval_heads.runs.mask import Mask
from retrieval_heads.runs.record import Record
from retrieval_heads.suites.settings import Settings


@dataclass(frozen=True)
class AblationOutcome:
    """What an ablate suite came to.

    Args:
        suite: Its name.
        effect: Accuracy by arm; `None` when it cannot be told.
        expected: What was expected of it, judged.
        controls: By arm, other behaviour under its mask; empty where it was not measured.
        error: Why there are no figures.
        path: The file written.
    """

    suite: str
    effect: Effect | None
    expected: Sequence[Outcome]
    controls: Mapping[str, Control]
    error: str | None
    path: Path | None


def check_heads(suites: Mapping[str, Mapping[str, object]], info: Facts) -> list[str]:
    """See that the heads which suites name are heads of the engine's model.

    Args:
        suites: Resolved settings by kind and name.
        info: What the engine says of itself.

    Returns:
        Warnings: what a suite cannot mask of heads that can be scored.

    Raises:
        ConfigError: A suite's are not, or too few others are left for a control.
    """
    layers = {layer["number"]: layer["heads"] for layer in info.get("layers", ())}
    shape = {number: layers[number] for number in info.get("maskable_layers", ())}
    unmasked = [number for number, heads in layers.items() if heads and number not in shape]
    warnings = []
    for suite, said in suites.items():
        settings = Settings.model_validate(said)
        ablate = settings.ablate if settings.kind == "ablate" else None
        if ablate is not None and unmasked:
            warnings.append(
                f"WARNING: {suite}: ablate: the heads of {named(unmasked)} can be scored and not masked; "
                "`retrieval-heads models --check` says why"
            )
        if ablate is not None and shape and ablate.lists:
            try:
                check(list(ablate.lists.values()), ablate.top, shape)
            except ConfigError as error:
                raise ConfigError(f"{suite}: ablate: {error}") from None
    return warnings


def finish(
    suite: str,
    settings: Settings,
    records: Sequence[Record],
    controls: Mapping[str, Control],
    facts: Facts,
    folder: RunFolder,
    suffix: str,
    *,
    ranked: Mapping[str, Mapping[Head, float]],
    inconclusive: Inconclusive,
) -> AblationOutcome:
    """Compute a suite's figures and write `ablation.json`.

    Args:
        suite: Its name.
        settings: Its settings.
        records: Its records.
        controls: What `controls` measured.
        facts: What `run.json` says.
        folder: The run's folder.
        suffix: Behind the file's name, when the run has several ablate suites.
        ranked: By ranking, its score of the heads that a suite of the run found; empty where none did.
        inconclusive: Whether a figure whose interval holds what is expected of it fails the run.
    """
    assert settings.ablate is not None
    try:
        effect = effect_of(records, settings.ablate.until)
    except ResultsError as error:
        counts = settings.expect.drop_exceeds_random if settings.expect else {}
        expected = [
            Outcome(_gate(*drop), False, None, drop[1], f"expected figures, and {error}", suite=f"ablate/{suite}")
            for drop in sorted(counts.items())
        ]
        return AblationOutcome(suite, None, expected, {}, str(error), None)
    effect = replace(effect, notes=[*effect.notes, *_never_copied(effect, ranked)])
    told = to_json(effect, {"suite": suite, **identity_of(facts), "seed": settings.ablate.seed})
    told["controls"] = {arm: asdict(control) for arm, control in controls.items()}
    path = folder.write_json(f"ablation{suffix}.json", told)
    expected = [replace(one, suite=f"ablate/{suite}") for one in _judged(settings.expect, effect, inconclusive)]
    return AblationOutcome(suite, effect, expected, controls, None, path)


def controls(address: Address, records: Sequence[Record]) -> dict[str, Control]:
    """Measure other behaviour under the masks that a suite's records hold.

    Raises:
        RetrievalHeadsError: The engine refuses or is gone, or the haystack cannot be read.
    """

    def ask(*arguments: Any, **options: Any) -> Answer:
        client = EngineClient(address)
        try:
            return client.ask(*arguments, **options)
        finally:
            client.close()

    masks: dict[str, Mask | None] = {}
    for record in records:
        if record.recipe is not None:
            mask = replace(record.mask, reference=record.recipe.hash) if record.mask else None
            masks.setdefault(record.arm or NONE, mask)
    sources = [record.recipe.haystack for record in records if record.recipe is not None]
    return measure(ask, masks, read_text(sources[0])) if sources else {}


def stored_controls(folder: Path, suite: str) -> dict[str, Control]:
    """What an earlier run in this folder measured under a suite's masks; empty where there is none.

    Raises:
        ResultsError: Its file cannot be read, or is of another schema.
    """
    from retrieval_heads.report import read_ablations  # with its templates: not at every start of pytest

    found = [told for told in read_ablations(folder) if told.get("suite") == suite]
    return {arm: Control(**control) for told in found for arm, control in told.get("controls", {}).items()}


def draw(outcome: AblationOutcome, records: Sequence[Record], folder: Path, title: str, suffix: str) -> list[Path]:
    """Draw accuracy by count, and each arm's cells.

    Raises:
        ResultsError: It cannot be drawn.
    """
    from retrieval_heads.plots import ablation_curve, niah_heatmap

    if outcome.effect is None:
        return []
    return [
        *ablation_curve(outcome.effect, folder / f"ablation{suffix}.png", title=title),
        *niah_heatmap(records, folder / f"ablation_cells{suffix}.png", title=title),
    ]


def table(outcome: AblationOutcome) -> Iterator[str]:
    """Accuracy by arm with its interval and the drop against the unmasked arm."""
    effect = outcome.effect
    if effect is None:
        yield str(outcome.error)
        yield from failures(outcome.expected)
        return
    more = f"{'perplexity':>12}{'closed book':>13}" if outcome.controls else ""
    wide = max(10, *(len(group.name) for group in effect.groups))
    yield f"{'arm':>{wide}}{'cells':>7}{'accuracy':>19}{'drop':>20}{more}"
    for group in effect.groups:
        line = f"{group.name:>{wide}}{group.cells:>7}{group.accuracy!s:>19}{group.drop or ''!s:>20}"
        if found := [outcome.controls[arm] for arm in group.masks if arm in outcome.controls]:
            control = mean_of(found)
            line += f"{control.perplexity:>12.1f}{control.closed_book:>13.2f}"
        yield line.rstrip()
    yield "intervals are 95 %"
    if outcome.controls:
        yield f"perplexity is that of the haystack's end; closed book: {len(QUESTIONS)} questions that need no context"
        arms = {group.name: group.masks for group in effect.groups}
        yield f"closed book with its interval: {intervals(arms, outcome.controls)}"
    for group in effect.groups:
        if len(group.draws) > 1:
            least, most = min(group.draws.values()), max(group.draws.values())
            yield f"{group.name}: {len(group.draws)} draws, accuracy {least:.2f} to {most:.2f}"
    yield from _comparison(effect) if effect.comparison else _excess(effect)
    yield f"mode {effect.mode}: {MODES.get(effect.mode, effect.mode)}"
    yield from effect.notes
    yield from failures(outcome.expected)


def _excess(effect: Effect) -> Iterator[str]:
    """What the best heads of one ranking cost beside their controls."""
    for group in effect.groups:
        if excess := effect.excess.get(group.name):
            count = group.count
            yield f"masking the top {count} costs {excess} more accuracy than masking {count} others of the same layers"
    if len(effect.groups) > 3:
        reached = effect.reached.get("")
        where = f"the top {reached}" if reached else "none of these counts"
        yield f"accuracy falls to {100 * effect.until:g} % of the unmasked with {where}"


def _comparison(effect: Effect) -> Iterator[str]:
    """What the best heads of each ranking cost, side by side."""
    wide = max(10, *(len(one.by) for one in effect.comparison))
    yield f"{'top by':>{wide}}{'heads':>7}{'drop':>20}{'beyond others':>20}{'a head':>20}{'behind the first':>20}"
    for one in effect.comparison:
        figures = "".join(f"{figure or '–'!s:>20}" for figure in (one.drop, one.excess, one.per_head, one.behind))
        yield f"{one.by:>{wide}}{one.count:>7}{figures}"
    yield "beyond others: than as many heads of the same layers that are among the best of no ranking"


def _judged(expect: Expect | None, effect: Effect, inconclusive: Inconclusive) -> Iterator[Outcome]:
    for count, least in sorted(expect.drop_exceeds_random.items()) if expect else ():
        gate, more = _gate(count, least), effect.excess.get(f"top_{count}")
        if more is None:
            why = f"expected the drop of the top {count} and of {count} others, and not both were measured"
            yield Outcome(gate, False, None, least, why)
            continue
        sentence = (
            f"expected masking the top {count} to cost {least:g} more accuracy than masking {count} others; "
            f"it cost {more} more"
        )
        is_open = more.low < least - SLACK and more.high >= least - SLACK
        if is_open:
            sentence += f": the interval holds {least:g}, so more cells are needed to tell"
        passed = more.low >= least - SLACK or (is_open and inconclusive == "warn")
        figures = {"low": more.low, "high": more.high}
        yield Outcome(gate, passed, more.value, least, sentence, figures=figures, is_inconclusive=is_open)


def _gate(count: int, least: float) -> str:
    return f"expect top_{count}_drop_exceeds_random {least:g}"


def _never_copied(effect: Effect, ranked: Mapping[str, Mapping[Head, float]]) -> Iterator[str]:
    """A sentence for each count of best heads of which some never copied: masking those tells nothing of copying."""
    for group in effect.groups:
        for by, scores in ranked.items() if group.count and not group.draws else ():
            if group.by in ("", by) and (idle := idle_heads(group.masks[group.name], scores, by or None)):
                yield f"{group.name}: {idle}"

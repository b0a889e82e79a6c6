"""`matrix.json`, and the same as a table for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from retrieval_heads.errors import ResultsError
from retrieval_heads.gates import HeadMeans, compare_heads
from retrieval_heads.gates.number import PASS_RATE
from retrieval_heads.heads.score import RANKING
from retrieval_heads.intervals import TOO_FEW, Interval
from retrieval_heads.matrix.comparison import Comparison, Difference
from retrieval_heads.matrix.settings import REFERENCE
from retrieval_heads.runs.folder import Facts
from retrieval_heads.runs.place import shown

SCHEMA: Final = "retrieval-heads-matrix/1"

_COSTS: Final = ("engine_start_seconds", "first_seconds", "answer_seconds", "prompt_tokens", "kv_bytes_per_token")


def to_json(comparisons: Sequence[Comparison], heads: Mapping[str, HeadMeans | None], facts: Facts) -> dict[str, Any]:
    """The content of `matrix.json`: plain builtins.

    Args:
        comparisons: Every setting of every suite.
        heads: Mean head scores by a detect suite's name.
        facts: What `run.json` says; of each setting, under `settings`.
    """
    return {
        "schema": SCHEMA,
        "reference": REFERENCE,
        "comparisons": [_comparison(one, heads) for one in comparisons],
        "settings": {name: costs(told) for name, told in facts.get("settings", {}).items()},
    }


def lines(comparisons: Sequence[Comparison], facts: Facts) -> Iterator[str]:
    """A table for a terminal of 80 columns: a line a setting, then what the settings cost.

    Args:
        comparisons: Of one suite.
        facts: What `run.json` says.
    """
    width = max([len(REFERENCE), *(len(one.setting) for one in comparisons)])
    yield f"{'setting':<{width}}  pass rate  difference  95 % interval         p  equal  parts at"
    if comparisons and (first := comparisons[0].of(PASS_RATE)):
        yield f"{REFERENCE:<{width}}  {first.reference:9.3f}"
    for one in comparisons:
        yield f"{one.setting:<{width}}  {_line(one)}"
    for one in comparisons:
        if one.spared:
            yield spared(one)
    if parted := parts_more(comparisons):
        yield parted
    settings = facts.get("settings", {})
    for name, told in settings.items():
        if failure := told.get("failure"):
            yield f"{name}: {failure.splitlines()[0]}"
    figures_of = [(name, costs(told)) for name, told in settings.items() if not told.get("failure")]
    if figures_of:
        yield f"{'':<{width}}  {'start s':>9}{'first s':>10}{'answers s':>11}{'tokens/s':>10}{'KV B/token':>12}"
    for name, cost in figures_of:
        figures = (cost["engine_start_seconds"], cost["first_seconds"], cost["answer_seconds"])
        starts, first_at, took = (f"{value:.1f}" if value is not None else "" for value in figures)
        rate, bytes_each = (
            f"{value:,.0f}" if value else "" for value in (cost["tokens_per_second"], cost["kv_bytes_per_token"])
        )
        yield f"{name:<{width}}  {starts:>9}{first_at:>10}{took:>11}{rate:>10}{bytes_each:>12}"


def spared(one: Comparison) -> str:
    """How many cells were not asked, in words."""
    told = f"{one.setting}: {one.spared:,} of {one.cells:,} cells spared"
    return f"{told}; interval and p hold whenever one stops" if one.stopped_of else told


def parts_more(comparisons: Sequence[Comparison]) -> str:
    """Which settings change more answers than noise does, in words; empty for none."""
    names = [one.setting for one in comparisons if one.parting.is_more_than_noise]
    return f"more answers part than noise explains: {', '.join(names)}" if names else ""


def _line(one: Comparison) -> str:
    found = one.of(PASS_RATE)
    if found is None:
        return "no cell was answered under both"
    equal = f"{one.parting.equal / one.parting.pairs:.0%}" if one.parting.pairs else ""
    at = "" if one.parting.median is None else f"{one.parting.median:g}"
    return (
        f"{found.setting:9.3f}  {found.value:+10.3f}  {_interval(found.interval):<18}{found.p_value:5.3f}"
        f"{equal:>7}{at:>10}"
    )


def _interval(interval: Interval | None) -> str:
    return f"[{interval.low:+.3f}, {interval.high:+.3f}]" if interval else TOO_FEW


def _comparison(one: Comparison, heads: Mapping[str, HeadMeans | None]) -> dict[str, Any]:
    parting = one.parting
    return {
        "setting": one.setting,
        "suite": one.suite,
        "pairs": len(one.pairs),
        "unpaired": one.unpaired,
        "spared": one.spared,
        "other_prompts": one.other_prompts,
        "differences": {each.number: _difference(each) for each in one.differences},
        "by": {
            axis: {shown(value): _difference(each) for value, each in values.items()} for axis, values in one.by.items()
        },
        "answers": {
            "pairs": parting.pairs,
            "equal": parting.equal,
            "p_value": parting.p_value,
            "first_token_that_differs": {"median": parting.median, "each": list(parting.first)},
        },
        **({"heads": agreement} if (agreement := _heads(one, heads)) else {}),
    }


def _heads(one: Comparison, heads: Mapping[str, HeadMeans | None]) -> dict[str, Any]:
    """How the heads of a detect suite agree with the reference's."""
    kind, _, name = one.suite.partition("/")
    after, before = heads.get(f"{name}@{one.setting}"), heads.get(name)
    if kind != "detect" or not after or not before or RANKING not in after or RANKING not in before:
        return {}
    try:
        found = compare_heads(after[RANKING], before[RANKING], top=10)
    except ResultsError as error:
        return {"note": str(error)}
    change = after[RANKING] - before[RANKING]
    moved = sorted(((abs(float(value)), at, float(value)) for at, value in _each(change)), reverse=True)[:10]
    return {
        "score": RANKING,
        "spearman": found.spearman,
        "overlap_of_10": found.overlap,
        "moved_most": [[*at, value] for _, at, value in moved],
        "notes": list(found.notes),
    }


def _each(change: Any) -> Iterator[tuple[tuple[int, int], float]]:
    """Rows (scored layers in order) and heads with their change; those that were not scored are left out."""
    for row, values in enumerate(change.tolist()):
        for head, value in enumerate(values):
            if value == value:  # no NaN
                yield (row, head), value


def _difference(one: Difference) -> dict[str, Any]:
    return {
        "reference": one.reference,
        "setting": one.setting,
        "difference": one.value,
        "interval": [one.interval.low, one.interval.high] if one.interval else None,
        "p_value": one.p_value,
        "pairs": one.pairs,
        "moved": one.moved,
    }


def costs(told: Mapping[str, Any]) -> dict[str, Any]:
    """What a setting cost, of what `run.json` says of it; `None` where it does not."""
    cost: dict[str, Any] = {name: told.get(name) for name in _COSTS}
    seconds = told.get("answer_seconds")
    cost["tokens_per_second"] = told["prompt_tokens"] / seconds if seconds and told.get("prompt_tokens") else None
    return cost | ({"failure": told["failure"]} if told.get("failure") else {})

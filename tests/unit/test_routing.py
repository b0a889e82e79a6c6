"""Which replica asks which cell: prefixes stay whole, nobody is idle, and little is computed twice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval_heads.engine.routing import ANSWER, Asked, computed_tokens, share_out
from retrieval_heads.runs.place import Place
from retrieval_heads.runs.record import Recipe, Record
from retrieval_heads.suites.suite import load_suite
from retrieval_heads.tasks.task import Cell, Question

SUITE = """\
kind: {kind}
haystack: pydoc
needles: [{{needle: The ferry leaves at dawn., question: When?}}]
sweep: {{context_lengths: {lengths}, document_depths: {{min: 0, max: 100, intervals: 10}}, seeds: {seeds}}}
ablate: {{heads: [[0, 0]], top: 1, draws: 1}}
"""
LONG = [4096, 8192, 16384, 32768]


def asked(folder: Path, kind: str = "niah", lengths: Sequence[int] = LONG, seeds: Sequence[int] = (0,)) -> list[Asked]:
    """The cells of a suite."""
    file = folder / "suite.yaml"
    file.write_text(SUITE.format(kind=kind, lengths=list(lengths), seeds=list(seeds)), encoding="utf-8")
    suite = load_suite(file)
    return [Asked.of(suite.question, cell, 40_000) for cell in suite.cells]


def shares(cells: Sequence[Asked], chosen: Sequence[int], replicas: int) -> list[list[Asked]]:
    return [
        [cell for cell, choice in zip(cells, chosen, strict=True) if choice == number] for number in range(replicas)
    ]


def computed(part: Sequence[Asked]) -> int:
    """Tokens that an engine computes for cells of any prefixes."""
    return sum(computed_tokens(cell for cell in part if cell.prefix == one) for one in {cell.prefix for cell in part})


def speedup(cells: Sequence[Asked], replicas: int) -> float:
    """How much sooner replicas have computed everything than one engine, if all compute as fast."""
    chosen = share_out(cells, [0] * replicas)
    return computed(cells) / max(computed(part) for part in shares(cells, chosen, replicas))


def test_tokens_before_the_first_of_two_needles_are_computed_once() -> None:
    shallow, deep = Asked("a", "ferry", 100, 1000), Asked("a", "ferry", 400, 1000)
    assert computed_tokens([shallow, deep]) == 400 + 900 + 600 + 2 * ANSWER
    assert computed_tokens([shallow, deep], cached=400) == 900 + 600 + 2 * ANSWER


def test_prompts_with_their_needle_at_one_place_share_what_is_behind_it() -> None:
    shorter, longer = Asked("a", "ferry", 100, 500), Asked("a", "ferry", 100, 1000)
    assert computed_tokens([shorter, longer]) == 1000 + 2 * ANSWER
    assert computed_tokens([shorter, Asked("a", "boat", 100, 1000)]) == 100 + 400 + 900 + 2 * ANSWER


def test_cells_of_one_haystack_and_seed_start_alike_whatever_their_suite(tmp_path: Path) -> None:
    assert len({cell.prefix for cell in asked(tmp_path, seeds=[0, 1, 2])}) == 3
    assert {cell.prefix for cell in asked(tmp_path)} == {cell.prefix for cell in asked(tmp_path, "detect")}


def test_a_mask_starts_another_prefix_and_the_unmasked_arm_does_not(tmp_path: Path) -> None:
    plain = {cell.prefix for cell in asked(tmp_path)}
    arms = {cell.prefix for cell in asked(tmp_path, "ablate")}
    assert plain < arms
    assert len(arms) == 3


def test_stored_answers_go_by_the_recipe_of_their_prompt() -> None:
    question = Question("tales", "detect")
    place = Place((("length", 1000), ("depth", 50.0), ("needle", "ferry")))

    def prefix(haystack: str, **context: int) -> str:
        recipe = Recipe(haystack=haystack, wording=[], template_hash="", prompt_hash="", **context)
        return Asked.of(question, Cell("", "", place, Record(recipe=recipe)), 40_000).prefix

    assert prefix("pydoc", offset=0) == prefix("pydoc", offset=0, insertion=7)
    assert len({prefix("pydoc", offset=0), prefix("pydoc", offset=9), prefix("tales")}) == 3


def test_a_cell_that_does_not_fit_costs_nothing_but_its_answer(tmp_path: Path) -> None:
    assert {cell.work for cell in asked(tmp_path, lengths=[50_000])} == {ANSWER}


def test_as_many_seeds_as_replicas_are_not_split(tmp_path: Path) -> None:
    cells = asked(tmp_path, seeds=[0, 1])
    halves = shares(cells, share_out(cells, [0, 0]), 2)
    assert [len({cell.prefix for cell in half}) for half in halves] == [1, 1]


@pytest.mark.parametrize("seeds", [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3, 4]], ids=len)
@pytest.mark.parametrize("replicas", [2, 3, 4])
def test_a_grid_is_shared_out_evenly(tmp_path: Path, seeds: list[int], replicas: int) -> None:
    assert speedup(asked(tmp_path, seeds=seeds), replicas) >= 0.87 * replicas


@pytest.mark.parametrize("seeds", [[0], [0, 1, 2]], ids=len)
def test_two_replicas_have_1_9_times_the_throughput(tmp_path: Path, seeds: list[int]) -> None:
    assert speedup(asked(tmp_path, seeds=seeds), 2) >= 1.9


def test_a_split_sweep_reads_little_of_the_haystack_twice(tmp_path: Path) -> None:
    cells = asked(tmp_path)
    halves = shares(cells, share_out(cells, [0, 0]), 2)
    assert min(max(cell.insertion for cell in half) for half in halves) < 0.25 * max(LONG)
    assert sum(map(computed, halves)) < 1.03 * computed(cells)
    dealt = [cells[::2], cells[1::2]]
    assert sum(map(computed, dealt)) > 1.1 * computed(cells)


def test_a_sweep_of_one_length_uses_both_too(tmp_path: Path) -> None:
    assert speedup(asked(tmp_path, lengths=[32768]), 2) > 1.6  # eleven cells: the two longest are a third


def test_a_prefix_goes_where_it_is_cached(tmp_path: Path) -> None:
    niah = asked(tmp_path, seeds=[0, 1])
    chosen = share_out(niah, [0, 0])
    cached = {cell.prefix: [0, 0] for cell in niah}
    for cell, replica in zip(niah, chosen, strict=True):
        cached[cell.prefix][replica] = max(cached[cell.prefix][replica], cell.insertion)
    again = share_out(niah[::-1], [0, 500], cached)
    assert again[::-1] == chosen


def test_whoever_is_busy_gets_less(tmp_path: Path) -> None:
    cells = asked(tmp_path)
    half = computed(cells) // 2
    busy, idle = shares(cells, share_out(cells, [half, 0]), 2)
    assert half + computed(busy) == pytest.approx(computed(idle), rel=0.1)


CELLS = st.lists(
    st.builds(
        lambda prefix, needle, length, depth: Asked(prefix, needle, length * depth // 100, length),
        st.sampled_from("abc"),
        st.sampled_from(["ferry", "boat"]),
        st.integers(1, 5000),
        st.integers(0, 100),
    ),
    max_size=60,
)


@given(CELLS, st.lists(st.integers(0, 10_000), min_size=1, max_size=5))
def test_nobody_is_done_later_than_if_the_busiest_did_it_all(cells: list[Asked], loads: list[int]) -> None:
    chosen = share_out(cells, loads)
    assert set(chosen) <= set(range(len(loads)))
    assert len(chosen) == len(cells)
    ends = [load + computed(part) for load, part in zip(loads, shares(cells, chosen, len(loads)), strict=True)]
    whole = max(loads) + computed(cells)
    assert max(ends) <= whole
    assert share_out(cells, loads) == chosen

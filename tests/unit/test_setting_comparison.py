"""Settings against the reference: pairs, differences, where answers part, and what gates say of them."""

from __future__ import annotations

import math
import random
from collections import Counter
from functools import cache

import pytest
from scipy.stats import binomtest

from retrieval_heads.gates.paired import holm
from retrieval_heads.matrix.comparison import Pair, change_interval, compare, first_parted
from retrieval_heads.matrix.gate import NotWorse, SettingGate, parse_setting_gate
from retrieval_heads.matrix.power import cells_to_decide, smallest_fall
from retrieval_heads.matrix.sequential import (
    Bets,
    decided_after,
    drawn,
    looks,
    sequential_interval,
    sequential_p_value,
)
from retrieval_heads.matrix.stored import lines
from retrieval_heads.matrix.verdict import judge_settings
from retrieval_heads.runs.record import Record


def record(
    setting: str, number: int, passed: bool | None, token_ids: list[int] | None = None, length: int = 512
) -> Record:
    return Record.model_validate(
        {
            "kind": "niah",
            "suite": "tale" if setting == "reference" else f"tale@{setting}",
            "setting": setting,
            "cell": f"niah/len_{length}/{number}",
            "context_length": length,
            "document_depth": float(number),
            "needle": "The ferry leaves at dawn.",
            "question": "When?",
            "status": "error" if passed is None else "pass" if passed else "low",
            "metric": "key_words" if passed is not None else "",
            "scores": {} if passed is None else {"key_words": float(passed)},
            "passed": passed,
            "token_ids": token_ids or [],
        }
    )


def run(**outcomes: str) -> list[Record]:
    """Of each setting its cells in order: `+` passed, `-` missed, `!` an error."""
    signs = {"+": True, "-": False, "!": None}
    return [
        record(setting, number, signs[sign], [1, 2, 3] if sign == "+" else [1, 4])
        for setting, cells in outcomes.items()
        for number, sign in enumerate(cells)
    ]


def test_cells_are_paired_and_differences_are_mcnemars() -> None:
    (one,) = compare(run(reference="++++++++-!", fp8="++------+-"))
    found = one.of("pass_rate")
    assert found is not None
    assert (found.pairs, found.moved, one.unpaired) == (9, 7, 1)
    assert found.value == pytest.approx(-5 / 9)
    assert found.p_value == pytest.approx(binomtest(1, 7).pvalue)
    assert (one.parting.pairs, one.parting.equal, one.parting.first) == (9, 2, (1,) * 7)


def test_p_values_are_adjusted_over_settings_and_not_over_noise() -> None:
    found = compare(run(reference="+" * 12, again="+" * 11 + "-", one="-" * 6 + "+" * 6, other="-" * 7 + "+" * 5))
    raw = [2 * 0.5**6, 2 * 0.5**7]
    told = {one.setting: one.of("pass_rate") for one in found}
    assert [told[name].p_value for name in ("one", "other")] == pytest.approx(holm(raw))  # type: ignore[union-attr]
    assert told["again"].p_value == 1  # type: ignore[union-attr]


def test_a_run_without_settings_or_without_a_reference_compares_nothing() -> None:
    assert compare(run(fp8="++")) == []
    assert compare([one.model_copy(update={"setting": None}) for one in run(reference="++")]) == []


@pytest.mark.parametrize(
    ("reference", "setting", "at"),
    [([1, 2], [1, 2], None), ([1, 2], [1, 3], 1), ([1, 2], [1, 2, 3], 2), ([], [4], 0)],
)
def test_where_answers_part(reference: list[int], setting: list[int], at: int | None) -> None:
    assert first_parted(Pair(record("reference", 0, True, reference), record("fp8", 0, True, setting))) == at


def answers(setting: str, equal: int) -> list[Record]:
    """Twenty cells that pass, so many of which with the reference's tokens, the first ones."""
    return [record(setting, number, True, [1, 2, 3 if number < equal else 4]) for number in range(20)]


def test_answers_that_part_more_often_than_noise_has_them_part() -> None:
    records = [*answers("reference", 20), *answers("again", 18), *answers("same", 18), *answers("fp8", 8)]
    again, same, fp8 = compare(records)
    assert again.parting.p_value is None, "noise is no setting"
    assert same.parting.p_value == 1.0
    assert not same.parting.is_more_than_noise
    # Ten cells part under fp8 alone, none under `again` alone; Holm's first of two.
    assert fp8.parting.p_value == pytest.approx(2 * binomtest(10, 10, alternative="greater").pvalue)
    assert fp8.parting.is_more_than_noise
    assert "more answers part than noise explains: fp8" in list(lines([again, same, fp8], {}))


def test_without_the_reference_asked_again_noise_is_not_known() -> None:
    (fp8,) = compare([*answers("reference", 20), *answers("fp8", 0)])
    assert fp8.parting.p_value is None
    assert not any("noise" in line for line in lines([fp8], {}))


def test_an_interval_of_changes_is_clopper_pearsons_where_none_rises() -> None:
    found = change_interval([0.0] * 16 + [-1.0] * 4)
    exact = binomtest(4, 20).proportion_ci(method="exact")
    assert found is not None
    # Values −1 and 0: the side of the misses is that of a share; the other may hold a rise that was never seen.
    assert found.low == pytest.approx(-1 + (1 - exact.high), abs=0.2)
    assert found.low <= -0.2 <= found.high
    assert change_interval([0.0] * 4) is None


def test_coverage_of_the_interval_of_changes() -> None:
    import numpy as np

    random, covered, rounds = np.random.default_rng(3), 0, 200
    for _ in range(rounds):
        changes = random.choice([-1.0, 0.0, 1.0], 40, p=[0.15, 0.8, 0.05])
        found = change_interval(changes.tolist())
        assert found is not None
        covered += found.low <= -0.1 <= found.high
    assert covered / rounds >= 0.95


def test_how_many_cells_would_decide() -> None:
    held = cells_to_decide([0.0] * 20, lambda interval: interval.low >= -0.05)
    # Nothing moved in n cells: the lower end is 0.025^(1/n) − 1.
    assert held is not None
    assert math.isclose(held, math.log(0.025) / math.log(0.95), rel_tol=0.35)
    assert cells_to_decide([-0.05] * 20, lambda interval: interval.low >= -0.05) is None


@pytest.mark.parametrize(("cells", "margin"), [(18, 0.0), (60, 0.0), (60, 0.1), (400, 0.02)])
def test_the_smallest_fall_that_is_told_is_caught_8_times_of_10(cells: int, margin: float) -> None:
    """Losing each of the cells that passed with that chance, and judging each run."""
    passed = cells * 4 // 5
    fall = smallest_fall(passed, 0, cells, margin)
    assert fall is not None

    @cache
    def is_broken(lost: int) -> bool:
        interval = change_interval([-1.0] * lost + [0.0] * (cells - lost))
        return interval is not None and interval.high < -margin

    def caught(fall: float) -> float:
        draw = random.Random(7)
        lost = [sum(draw.random() < fall * cells / passed for _ in range(passed)) for _ in range(400)]
        return sum(map(is_broken, lost)) / len(lost)

    assert caught(fall) == pytest.approx(0.8, abs=0.08)
    assert caught(fall * 0.75) < 0.7


def test_noise_hides_a_fall_and_too_few_cells_hide_all() -> None:
    calm, noisy = (smallest_fall(50, rises, 60, 0.0) for rises in (0, 6))
    assert calm is not None
    assert noisy is not None
    assert noisy > calm
    assert smallest_fall(3, 0, 6, 0.0) is None
    assert smallest_fall(0, 0, 60, 0.0) is None


def test_an_undecided_gate_says_which_fall_it_would_have_shown() -> None:
    records = run(reference="+" * 50 + "-" * 10, fp8="+" * 50 + "-" * 10)
    (outcome,) = judge_settings([SettingGate("fp8", NotWorse("pass_rate", 0.0))], compare(records), records, {})
    fall = smallest_fall(50, 0, 60, 0.0)
    assert outcome.sentence.endswith(f"in these a true fall of {fall:.2f} comes out broken 8 times of 10")


@pytest.mark.parametrize(
    ("margin", "outcomes", "word"),
    [
        (0.1, "+" * 60, "held"),
        (0.1, "-" * 30 + "+" * 30, "broken"),
        (0.02, "+" * 60, "inconclusive"),
        (0.1, "-" * 8 + "+" * 52, "inconclusive"),
    ],
)
def test_a_setting_is_not_worse_is_worse_or_is_not_told(margin: float, outcomes: str, word: str) -> None:
    records = run(reference="+" * 60, fp8=outcomes)
    gate = SettingGate("fp8", NotWorse("pass_rate", margin))
    (outcome,) = judge_settings([gate], compare(records), records, {})
    assert outcome.outcome == word
    assert ("would decide" in outcome.sentence) == (word == "inconclusive")


def test_cells_without_a_pair_break_a_gate_that_would_hold() -> None:
    records = run(reference="+" * 60, fp8="+" * 59 + "!")
    (outcome,) = judge_settings([SettingGate("fp8", NotWorse("pass_rate", 0.2))], compare(records), records, {})
    assert outcome.outcome == "broken"
    assert "1 cell was not answered under both" in outcome.sentence


def test_a_gate_reads_back_as_it_was_written() -> None:
    for text in (
        "fp8: mean(pass_rate) >= reference - 0.02",
        "fp8: mean(key_words) >= reference",
        "fp8: min(pass_rate) >= 0.5",
    ):
        assert str(parse_setting_gate(text, ["fp8"])) == text


def test_a_bet_is_won_where_the_mean_lies_on_its_side() -> None:
    assert decided_after([-1.0, 0.0] * 100, 200, -0.05) == ("below", pytest.approx(20, abs=15))
    side, asked = decided_after([0.0] * 1000, 1000, -0.05)
    assert side == "above"
    assert asked < 400
    assert decided_after([0.0] * 18, 18, -0.02) == (None, 18)
    with pytest.raises(ValueError, match="is not in"):
        Bets(3, 0.0).see(1.5)


def test_bets_keep_their_level_under_continuous_looking() -> None:
    """Numbers whose mean is the bound itself: each side may be told wrongly in 2.5 % of the runs."""
    told = {None: 0, "above": 0, "below": 0}
    for seed in range(1000):
        draw = random.Random(seed)
        values = [draw.choice([-1.0, 0.0, 0.0, 0.0, 1.0]) for _ in range(150)]
        told[decided_after(values, 150, 0.0)[0]] += 1
    assert told["above"] <= 25 + 15
    assert told["below"] <= 25 + 15


def test_intervals_and_p_values_of_bets_hold_at_every_look() -> None:
    """The true mean lies outside at some time in at most 5 % of the runs, and p is below 0.05 as seldom."""
    missed = small = 0
    for seed in range(60):
        draw = random.Random(f"interval {seed}")
        values = [draw.choice([-1.0, 0.0, 0.0, 0.0, 1.0]) for _ in range(60)]
        looked = [values[:count] for count in range(20, 61, 20)]
        missed += any(not (found.low <= 0 <= found.high) for found in (sequential_interval(one, 60) for one in looked))
        small += any(sequential_p_value(one, 60) <= 0.05 for one in looked)
    assert missed <= 3 + 5
    assert small <= 3 + 5


@pytest.mark.parametrize("values", [[-1.0, 0.0] * 10, [0.0] * 150 + [-1.0], [1.0, -1.0, 0.0] * 9])
@pytest.mark.parametrize("margin", [0.0, 0.1, 0.3])
def test_an_interval_of_bets_lies_on_the_side_of_a_margin_that_they_tell(values: list[float], margin: float) -> None:
    found, side = sequential_interval(values, 200), decided_after(values, 200, -margin)[0]
    assert (found.low >= -margin - 1e-5) is (side == "above")
    assert (found.high <= -margin + 1e-5) is (side == "below")
    assert found.low <= sum(values) / len(values) <= found.high


def test_an_order_is_drawn_by_its_seed_and_of_every_part_alike() -> None:
    cells = [f"cell {number}" for number in range(50)]
    order = drawn(cells, 0)
    assert sorted(order) == sorted(cells) != order != drawn(cells, 1)
    assert drawn(reversed(cells[:20]), 0) == [cell for cell in order if cell in cells[:20]]
    first = Counter(drawn(cells[:3], seed)[0] for seed in range(300))
    assert all(70 <= count <= 130 for count in first.values())
    assert looks(18)[-1] == 18
    assert looks(5) == [5]
    assert all(count <= 1000 for count in looks(1000))


def test_a_setting_that_stopped_is_judged_in_the_order_drawn() -> None:
    """Of sixty cells the first of the order fell; those that were spared are neither pairs nor gaps."""
    facts = {"until_decided": {"fp8": {"seed": 3, "spared": 40}}}
    records = run(reference="+" * 60, fp8="+" * 60)
    order = drawn([one.cell for one in records if one.setting == "fp8"], 3)
    fallen, spared = set(order[:20]), set(order[20:])
    stopped = [
        one.model_copy(update={"status": "spared", "passed": None, "scores": {}, "token_ids": []})
        if one.setting == "fp8" and one.cell in spared
        else record("fp8", int(one.document_depth), False)
        if one.setting == "fp8" and one.cell in fallen
        else one
        for one in records
    ]
    (found,) = compare(stopped, facts)
    assert (len(found.pairs), found.spared, found.unpaired, found.cells) == (20, 40, 0, 60)
    assert [pair.reference.cell for pair in found.pairs] == order[:20]
    (outcome,) = judge_settings([SettingGate("fp8", NotWorse("pass_rate", 0.1))], [found], stopped, {})
    assert outcome.outcome == "broken"
    assert "in 20 of 60 cells" in outcome.sentence
    difference = found.of("pass_rate")
    assert difference is not None
    assert difference.interval == sequential_interval([-1.0] * 20, 60)
    assert difference.p_value == sequential_p_value([-1.0] * 20, 60)

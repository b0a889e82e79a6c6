import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval_heads.gates import check, parse_gate
from retrieval_heads.runs.record import Record


def cell(length=4096, depth=50, score=1.0, seed=0, needle="sf", status=None, **fields):
    """A cell of one score, `recall`; without a score it was not measured."""
    passed = None if score is None else score > 0.5
    values = {
        "cell": f"niah/{needle}/seed_{seed}/len_{length}/depth_{depth}",
        "suite": "essays",
        "context_length": length,
        "document_depth": depth,
        "needle": needle,
        "needle_name": needle,
        "seed": seed,
        "status": status or ("pass" if passed else "low"),
        "metric": "recall",
        "threshold": 0.5,
        "scores": {} if score is None else {"recall": score},
        "passed": passed,
    }
    return Record.model_validate(values | fields)


def judge(gate, records, selected=None, **options):
    names = [record.cell for record in records] if selected is None else selected
    verdict = check([parse_gate(gate)], records, names, **options)
    assert verdict.passed is verdict.outcomes[0].passed
    return verdict.outcomes[0]


def grid(*rows, lengths=(1024, 2048, 4096, 8192), depths=(0, 50, 100)):
    return [
        cell(length, depth, score)
        for length, row in zip(lengths, rows, strict=False)
        for depth, score in zip(depths, row, strict=False)
    ]


@pytest.mark.parametrize(
    ("gate", "measured"),
    [
        ("mean(recall) >= 0", 0.7),
        ("min(recall) >= 0", 0.0),
        ("max(recall) >= 0", 0.9),
        ("median(recall) >= 0", 0.85),
        ("mean over length(recall) >= 0", 0.7),
        ("min over length(recall) >= 0", 0.5),
        ("max over length(recall) >= 0", 0.9),
        ("median over depth(recall) >= 0", 0.8),
        ("min over depth(recall) >= 0", 0.45),
        ("min over needle(recall) >= 0", 0.7),
        ("mean(pass_rate) >= 0", 5 / 6),
        ("max(seconds) <= 9", 2.5),
    ],
)
def test_an_aggregate_is_over_cells_or_over_the_means_of_its_groups(gate, measured):
    records = grid((0.9, 0.9, 0.9), (0.8, 0.0, 0.7))
    timed = [record.model_copy(update={"seconds": 2.5}) for record in records]
    assert judge(gate, timed).measured == pytest.approx(measured)


def test_needles_and_seeds_are_groups_of_their_own():
    records = [cell(needle="a", score=1), cell(needle="b", score=0.2), cell(needle="b", score=0.4, seed=1)]
    outcome = judge("min over needle(recall) >= 0.8", records)
    assert outcome.measured == pytest.approx(0.3)
    assert "at needle b" in outcome.sentence


@pytest.mark.parametrize(
    ("rows", "length"),
    [
        ([(1, 1, 1), (1, 1, 1), (0.9, 0.9, 0.9)], 4096),
        ([(1, 1, 1), (0.8, 0.8, 0.8), (1, 1, 1)], 1024),
        ([(0.5, 0.5, 0.5), (1, 1, 1)], 0),
        ([(0, 0, 0), (0, 0, 0)], 0),
        ([(0.85, 0.85, 0.85), (1, 1, 1)], 2048),
    ],
)
def test_effective_length_ends_before_the_first_row_that_lost_its_share(rows, length):
    assert judge("effective_length(0.85) >= 0", grid(*rows)).measured == length


def test_effective_length_of_another_score_than_the_pass_metric():
    records = [cell(length, score=1, scores={"recall": 1, "f": f}) for length, f in ((1024, 1), (2048, 0.2))]
    assert judge("effective_length(0.85, f) >= 0", records).measured == 1024
    assert judge("effective_length(0.85) >= 0", records).measured == 2048


def test_effective_length_does_not_reach_over_a_length_that_was_skipped():
    records = [cell(1024), cell(2048, score=None, status="skipped"), cell(4096)]
    outcome = judge("effective_length(0.85) >= 4096", records, allow_skipped=True)
    assert not outcome.passed
    assert outcome.measured == 1024
    assert "length 2048 was skipped" in outcome.line()


def test_a_broken_gate_is_one_line_with_measured_limit_and_the_three_worst_cells():
    outcome = judge("mean(recall) >= 0.8", grid((1, 1, 0.3), (0.1, 0.2, 0.4)))
    assert outcome.line() == "mean(recall) is 0.5, must be >= 0.8; worst 2048/0 0.1, 2048/50 0.2, 1024/100 0.3"


def test_a_broken_group_names_its_own_worst_cells():
    outcome = judge("min over length(recall) >= 0.8", grid((1, 1, 0), (0.1, 0.1, 0.2)))
    assert (
        outcome.line() == "min over length(recall) is 0.133 at length 2048, must be >= 0.8; "
        "worst 2048/0 0.1, 2048/50 0.1, 2048/100 0.2"
    )


def test_where_low_is_good_the_worst_cells_are_the_highest():
    records = [cell(1024, depth, seconds=depth) for depth in (1, 2, 3, 4)]
    assert judge("mean(seconds) <= 2", records).worst == ("1024/4 4", "1024/3 3")


def test_worst_is_the_mean_of_a_place_over_its_seeds_and_needles():
    records = [cell(depth=0), cell(depth=0, score=0, seed=1), cell(depth=50, score=0.2)]
    assert judge("mean(recall) >= 0.8", records).worst == ("4096/50 0.2", "4096/0 0.5")


def test_a_value_just_below_the_limit_does_not_look_like_it():
    assert "is 0.79996, must be >= 0.8" in judge("mean(recall) >= 0.8", [cell(score=0.79996)]).line()


@pytest.mark.parametrize(
    ("records", "selected", "said"),
    [
        ([], [], "nothing was measured"),
        ([], ["niah/sf/seed_0/len_4096/depth_50"], "1 of 1 selected cells without a result; worst 4096/50"),
        ([cell(depth=0)], ["lost", cell(depth=0).cell], "1 of 2 selected cells without a result; worst lost"),
        ([cell(), cell(depth=0, score=None, status="skipped")], None, "1 of 2 selected cells skipped"),
        ([cell(), cell(depth=0, score=None, status="error")], None, "1 of 2 selected cells in error"),
        ([cell(), cell(depth=0, score=math.nan)], None, "1 of 2 selected cells with recall not a number"),
        ([cell(), cell(depth=0, score=None, status="low")], None, "1 of 2 selected cells without recall"),
        ([cell(score=None, status="skipped")], None, "nothing was measured: 1 of 1 selected cells skipped"),
    ],
)
@pytest.mark.parametrize("gate", ["mean(recall) >= 0", "effective_length(0.1, recall) >= 0"])
def test_a_cell_without_a_value_breaks_every_gate(gate, records, selected, said):
    outcome = judge(gate, records, selected)
    assert not outcome.passed
    assert said in outcome.line()
    assert "\n" not in outcome.line()


def test_gaps_of_several_kinds_are_counted_in_one_line():
    records = [cell(depth=depth, score=None, status="error") for depth in (1, 2)]
    records.append(cell(depth=3, score=None, status="skipped"))
    outcome = judge("mean(recall) >= 0", [cell(), *records])
    assert "but 2 of 4 selected cells in error, 1 skipped; worst 4096/1 in error" in outcome.line()


def test_an_allowed_skipped_cell_stays_out_of_the_mean():
    records = [cell(score=0.8), cell(depth=0, score=None, status="skipped")]
    outcome = judge("mean(recall) >= 0.8", records, allow_skipped=True)
    assert outcome.passed
    assert outcome.measured == 0.8


def test_all_cells_skipped_is_no_pass_even_where_skipping_is_allowed():
    outcome = judge("mean(recall) >= 0", [cell(score=None, status="skipped", scores={"recall": 1})], allow_skipped=True)
    assert not outcome.passed
    assert outcome.measured is None


def test_records_of_cells_that_were_not_selected_are_left_out():
    good, bad = cell(depth=0), cell(depth=50, score=0)
    assert judge("mean(recall) >= 0.8", [good, bad], [good.cell]).passed


def test_of_several_records_of_a_cell_the_last_counts_and_is_warned_of():
    verdict = check([parse_gate("mean(recall) >= 0.8")], [cell(score=1), cell(score=0)], [cell().cell])
    assert verdict.outcomes[0].measured == 0
    assert "1 cell has several records" in verdict.warnings[0]


def test_a_number_that_no_cell_holds_breaks_the_gate_and_says_what_they_hold():
    outcome = judge("mean(f) >= 0", [cell()])
    assert (outcome.passed, outcome.measured) == (False, None)
    assert outcome.sentence.startswith(
        "mean(f) has no value, must be >= 0: no measured cell holds f; they hold achieved_depth, cached_tokens, "
    )
    assert "recall" in outcome.sentence


def test_a_number_that_only_some_cells_hold_breaks_the_gate():
    records = [cell(), cell(depth=0, scores={"recall": 1, "extra": 1})]
    assert "1 of 2 selected cells without extra" in judge("mean(extra) >= 0", records).line()


def test_a_cell_that_nobody_judged_breaks_a_gate_on_the_pass_rate():
    outcome = judge("mean(pass_rate) >= 0", [cell(), cell(depth=0, passed=None)])
    assert not outcome.passed
    assert "1 of 2 selected cells without pass_rate" in outcome.line()


def test_no_gate_at_all_proves_nothing():
    assert not check([], [cell()], [cell().cell]).passed


def test_verdicts_of_two_suites_join_and_one_broken_gate_breaks_both():
    gate = parse_gate("mean(recall) >= 0.8")
    good = check([gate], [cell()], [cell().cell], suite="essays")
    bad = check([gate], [cell(score=0)], [cell().cell], suite="book")
    assert good.passed
    assert not (good + bad).passed
    assert [outcome.line() for outcome in (good + bad).broken] == [
        "book: mean(recall) is 0, must be >= 0.8; worst 4096/50 0"
    ]


scores = st.lists(st.floats(0, 1), min_size=12, max_size=12)
aggregates = [
    f"{how}{over}(recall) >= {limit}"
    for how in ("mean", "min", "max", "median")
    for over in ("", " over length", " over depth")
    for limit in (0.3, 0.8)
]


@given(scores, scores, st.sampled_from(aggregates))
def test_worse_scores_never_mend_a_broken_gate(before, after, gate):
    worse = list(map(min, before, after))
    places = [(length, depth) for length in (1024, 2048, 4096) for depth in (0, 30, 60, 100)]

    def passes(values):
        return judge(gate, [cell(*at, value) for at, value in zip(places, values, strict=True)]).passed

    assert passes(before) or not passes(worse)

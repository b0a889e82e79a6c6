import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_heads.errors import ConfigError
from retrieval_heads.gates import Baseline, Tolerance, parse_max_drop, set_against
from retrieval_heads.gates import judge as judge_all
from retrieval_heads.gates.fall import measure_fall, paired_changes
from retrieval_heads.gates.pairing import pair_records
from retrieval_heads.runs.record import Recipe, Record

DEPTHS = 10


def run(scores, seeds=1, **fields):
    """A run of one score, `recall`: the seeds of a cell stand one after the other; None was not measured."""
    return tuple(record(index, score, seeds, **fields) for index, score in enumerate(scores))


def record(index, score, seeds=1, **fields):
    place, seed = divmod(index, seeds)
    row, column = divmod(place, DEPTHS)
    length, depth = 1024 * (row + 1), column * 10
    values = {
        "cell": f"niah/essays/sf/seed_{seed}/len_{length}/depth_{depth}",
        "suite": "essays",
        "context_length": length,
        "document_depth": depth,
        "needle": "a needle",
        "needle_name": "sf",
        "seed": seed,
        "metric": "recall",
        "threshold": 0.5,
        "scores": {} if score is None else {"recall": score},
        "passed": None if score is None else score > 0.5,
        "status": "error" if score is None else "pass",
    }
    return Record.model_validate(values | fields)


def judge(current, baseline, max_drop="5%", inconclusive="fail", **options):
    comparison = set_against(current, Baseline(tuple(baseline)), max_drop=parse_max_drop(max_drop), **options)
    verdict = comparison.judged(inconclusive)
    assert all("\n" not in outcome.line() for outcome in verdict.outcomes)
    return verdict


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.05", {"": Tolerance(0.05)}),
        ("5%", {"": Tolerance(0.05, relative=True)}),
        ("0", {"": Tolerance(0)}),
        ("rougeL_recall:0.05", {"rougeL_recall": Tolerance(0.05), "": Tolerance(0.05)}),
        ("only:rougeL_recall:0.05", {"rougeL_recall": Tolerance(0.05)}),
        ("only : substring : 1%, rougeL_f:0.2", {"substring": Tolerance(0.01, True), "rougeL_f": Tolerance(0.2)}),
        (["pass_rate:0.1", "only:substring:0"], {"pass_rate": Tolerance(0.1), "substring": Tolerance(0)}),
        (" 5 % , pass_rate : 2.5%", {"": Tolerance(0.05, True), "pass_rate": Tolerance(0.025, True)}),
        (["0.1", "substring:0"], {"": Tolerance(0.1), "substring": Tolerance(0)}),
    ],
)
def test_a_tolerance_is_absolute_or_relative_and_may_name_its_score(text, expected):
    assert parse_max_drop(text) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected such as 0.05, 5%"),
        ([], "no tolerance"),
        ("five", "expected such as"),
        ("rougeL=0.05", "expected such as"),
        ("5%%", "expected such as"),
        ("nan", "expected such as"),
        ("a:b:0.1", "expected such as"),
        ("5", "percent need a %"),
        ("-0.1", "0 to below 1"),
        ("inf", "0 to below 1"),
        ("100%", "below 100%"),
        ("0.1,0.2", "given twice"),
        ("a:0.1,a:5%", "a is given twice"),
        ("only:a:0.1,a:5%", "a is given twice"),
        ("only:a:0.1,0.05", "'only:' leaves out the pass metric and pass_rate, and 0.05 is given for them"),
        ("only:only:a:0.1", "expected such as"),
    ],
)
def test_a_tolerance_that_cannot_be_meant_is_refused(text, said):
    with pytest.raises(ConfigError, match="max drop") as caught:
        parse_max_drop(text)
    assert said in str(caught.value)


@given(st.floats(0, 0.99), st.booleans())
def test_a_tolerance_is_read_back_from_its_own_text(amount, relative):
    found = parse_max_drop(f"only:x:{Tolerance(amount, relative)}")["x"]
    assert found.amount == pytest.approx(amount, rel=1e-9, abs=1e-12)
    assert found.relative is relative


@pytest.mark.parametrize(
    ("lost", "gained", "cells", "word"),
    [
        (0, 0, 30, "held"),
        (1, 0, 30, "held"),
        (2, 0, 18, "broken"),  # two pairs that moved: McNemar's test could never reject
        (3, 0, 18, "broken"),
        (4, 0, 30, "broken"),
        (6, 0, 30, "broken"),  # p 2 × 1/64
        (12, 2, 30, "broken"),
        (6, 3, 30, "inconclusive"),
        (6, 1, 30, "inconclusive"),  # p 2 × 0.0625
        (12, 6, 100, "inconclusive"),
        (3, 8, 30, "held"),
        (1, 0, 3, "broken"),
    ],
)
def test_three_outcomes(lost, gained, cells, word):
    verdict = judge(run([0] * lost + [1] * (cells - lost)), run([1] * (cells - gained) + [0] * gained))
    assert [outcome.outcome for outcome in verdict.outcomes] == [word, word]
    assert verdict.outcome == word
    assert verdict.passed is (word == "held")
    assert all(f", {word}: drop" in outcome.sentence for outcome in verdict.outcomes)


def test_an_inconclusive_fall_may_be_a_warning_and_a_broken_one_never():
    before = run([1] * 27 + [0] * 3)
    assert not judge(run([0] * 6 + [1] * 24), before).passed
    warned = judge(run([0] * 6 + [1] * 24), before, inconclusive="warn")
    assert warned.passed
    assert warned.outcome == "inconclusive"
    assert not judge(run([0] * 16 + [1] * 14), before, inconclusive="warn").passed
    assert not judge(run([0] * 2 + [1] * 16), run([1] * 18), inconclusive="warn").passed


def test_a_broken_fall_says_drop_limit_p_value_and_worst_cells():
    recall = judge(run([0] * 7 + [1] * 23), run([1] * 30)).outcomes[0]
    assert recall.measured == pytest.approx(7 / 30)
    assert recall.limit == 0.05
    assert recall.figures["p_value"] == pytest.approx(2 / 2**7)
    assert recall.line() == (
        "recall 1→0.767, broken: drop 0.233, limit 0.05 (5%), p 0.0156; a fall of 0.0967 is caught 8 times of 10; "
        "worst 1024/0 1→0, 1024/10 1→0, 1024/20 1→0"
    )


def test_an_inconclusive_fall_says_how_many_seeds_would_tell():
    outcome = judge(run([0] * 6 + [1] * 24), run([1] * 27 + [0] * 3)).outcomes[0]
    assert "but noise can explain it (p 0.508): about 6 seeds a cell in both runs would tell" in outcome.sentence


def test_too_few_pairs_that_moved_are_said():
    assert (
        "too few pairs moved to tell it from noise" in judge(run([0, 0] + [1] * 16), run([1] * 18)).outcomes[0].line()
    )


def test_scores_are_tested_by_flipping_signs():
    before = run([0.9] * 12)
    tiny = judge(run([0.5, 0.4] + [0.95] * 5 + [0.85] * 5), before, "only:recall:0.05").outcomes[0]
    assert tiny.outcome == "inconclusive"
    clear = judge(run([0.6] * 6 + [0.7] * 6), before, "only:recall:0.05").outcomes[0]
    assert clear.outcome == "broken"
    assert clear.figures["p_value"] == pytest.approx(1 / 2**12)


def test_holm_is_over_the_numbers_of_all_suites():
    """Nine lost, one gained: p 0.0107, significant alone and not among eight."""
    before, after = run([1] * 59 + [0]), run([0] * 9 + [1] * 51)

    def falls(suites):
        return [
            set_against(after, Baseline(before), max_drop=parse_max_drop("only:recall:0.05"), suite=f"s{n}")
            for n in range(suites)
        ]

    assert [verdict.outcome for verdict in judge_all(falls(1))] == ["broken"]
    assert [verdict.outcome for verdict in judge_all(falls(8))] == ["inconclusive"] * 8
    assert judge_all(falls(8))[0].outcomes[0].figures["p_value"] == pytest.approx(8 * 11 / 2**10)


def test_a_suite_that_falls_alone_among_many_is_broken_or_too_small_to_tell():
    same = run([1] * 30)
    for lost in (2, 4, 5, 8, 30):
        falls = [
            set_against(run([0] * n + [1] * (30 - n)), Baseline(same), max_drop=parse_max_drop("5%"), suite=str(n))
            for n in (lost, *[0] * 20)
        ]
        assert judge_all(falls, "warn")[0].outcome == "broken"


@pytest.mark.parametrize("cells", [10, 18, 30, 59])
def test_no_fall_that_the_bootstrap_called_worse_is_green(cells):
    """The verdict of before: a drop beyond the tolerance whose percentile bootstrap bound excluded 0."""
    for lost in range(1, 9):
        if lost / cells > 0.05:
            assert not judge(run([0] * lost + [1] * (cells - lost)), run([1] * cells)).passed


def test_the_worst_cells_are_those_that_fell_most():
    outcome = judge(run([0.9, 0.2, 1, 0.5, 0.1]), run([1] * 5), "only:recall:0.05").outcomes[0]
    assert outcome.worst == ("1024/40 1→0.1", "1024/10 1→0.2", "1024/30 1→0.5")


def test_every_cell_counts_the_same_whatever_its_seeds():
    before = (*run([1, 1], seeds=2), *run([1, 1, 1])[1:])
    after = (*run([0, 0], seeds=2), *run([1, 1, 1])[1:])
    assert judge(after, before).outcomes[0].measured == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    "other",
    [
        {"needle_name": "nyc"},
        {"arm": "top_20"},
        {"kind": "detect"},
        {"suite": "book"},
        {"recipe": Recipe.model_construct(haystack="pydoc")},
    ],
)
def test_another_question_at_the_same_place_is_no_seed_of_the_first(other):
    def both(scores):
        second = [record.model_copy(update={"cell": f"2/{record.cell}", **other}) for record in run(scores)]
        return (*run(scores), *second)

    changes, _ = paired_changes(
        "recall", pair_records(both([0] + [1] * 11), both([1] * 12), None, allow_new=False, allow_skipped=False)
    )
    assert measure_fall(changes, Tolerance(0.05)).cells == 24


scores = st.lists(st.sampled_from([0.0, 0.3, 0.6, 0.9, 1.0]), min_size=24, max_size=24)


@settings(max_examples=40, deadline=None)
@given(scores, scores, scores, st.sampled_from([1, 2]), st.sampled_from(["0", "0.05", "20%"]))
def test_worse_scores_never_mend_a_broken_comparison(baseline, current, other, seeds, max_drop):
    before = run(baseline, seeds)
    worse = list(map(min, current, other))
    current_verdict = judge(run(current, seeds), before, max_drop)
    worse_verdict = judge(run(worse, seeds), before, max_drop)
    for good, bad in zip(current_verdict.outcomes, worse_verdict.outcomes, strict=True):
        assert good.passed or not bad.passed
        assert good.outcome == "held" or bad.outcome != "held"


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_a_run_compared_with_itself_passes_at_tolerance_0(scores):
    verdict = judge(run(scores), run(scores), "0")
    assert verdict.passed
    assert not verdict.warnings


def test_a_better_run_passes():
    assert judge(run([1] * 12), run([0.2] * 12), "0").passed


def test_a_relative_tolerance_is_of_the_baselines_mean():
    before = run([0.4] * 12)
    assert judge(run([0.385] * 12), before, "only:recall:5%").passed
    assert not judge(run([0.375] * 12), before, "only:recall:5%").passed
    assert judge(run([0.375] * 12), before, "only:recall:0.05").passed


def test_a_bare_tolerance_gates_pass_metric_and_pass_rate_and_a_named_one_goes_before_it():
    gates = [outcome.gate for outcome in judge(run([1] * 12), run([1] * 12), "5%,recall:0.2").outcomes]
    assert gates == ["drop of recall <= 0.2", "drop of pass_rate <= 5%"]
    assert len(judge(run([1] * 12), run([1] * 12), "only:recall:0.2").outcomes) == 1


def test_a_named_tolerance_adds_to_the_default_gates():
    """A named one alone let recall fall from 1 to 0."""
    before = [record.model_copy(update={"scores": {"recall": 1.0, "substring": 1.0}}) for record in run([1] * 12)]
    after = [record.model_copy(update={"scores": {"recall": 0.0, "substring": 1.0}}) for record in run([0] * 12)]
    verdict = judge(after, before, "substring:0.01")
    assert [(outcome.gate, outcome.outcome) for outcome in verdict.outcomes] == [
        ("drop of recall <= 0.05", "broken"),
        ("drop of pass_rate <= 0.05", "broken"),
        ("drop of substring <= 0.01", "held"),
    ]
    assert judge(after, before, "only:substring:0.01").passed


def test_suites_with_different_pass_metrics_are_compared_each_by_its_own():
    def both(score, metric):
        others = run([0.5] * 12, suite="b", metric=metric, kind="other")
        others = [record.model_copy(update={"scores": {"f": score, "g": 1.0}}) for record in others]
        return (*run([1] * 12), *others)

    outcome = judge(both(0.1, "f"), both(0.9, "g"), "0.05").outcomes[0]
    assert outcome.gate == "drop of pass metric <= 0.05"
    assert outcome.measured == pytest.approx(0.4)


@pytest.mark.parametrize("name", ["recal", "seconds"])
def test_a_tolerance_for_what_cannot_be_compared_is_refused(name):
    with pytest.raises(ConfigError, match=f"'{name}' cannot be compared; did you mean"):
        judge(run([1] * 3), run([1] * 3), f"{name}:0.1")


@pytest.mark.parametrize(
    ("current", "baseline", "said"),
    [
        (run([1] * 3), run([1] * 2), "1 of 3 selected cells not in the baseline; worst 1024/20"),
        (run([1] * 3), run([1, 1, None]), "1 of 3 selected cells not in the baseline"),
        (run([1] * 2), run([1] * 3), "1 of 3 selected cells without a result; worst 1024/20"),
        (run([1, 1, None]), run([1] * 3), "1 of 3 selected cells in error"),
        (run([1, 1, math.nan]), run([1] * 3), "recall not a number"),
        (run([1] * 3), run([1, 1, math.nan]), "recall not a number in the baseline"),
        (run([1] * 3), (*run([1, 1]), record(2, 1, scores={"f": 1})), "without recall in the baseline"),
        (run([1] * 3), (), "no cell pairs with the baseline: 3 of 3 selected cells not in the baseline"),
        ((), run([1] * 3), "no cell pairs with the baseline: 3 of 3 selected cells without a result"),
        ((), (), "no cell pairs"),
    ],
)
@pytest.mark.parametrize("max_drop", ["only:recall:0.5", "5%"])
def test_a_cell_that_cannot_be_compared_breaks_the_gate(current, baseline, said, max_drop):
    verdict = judge(current, baseline, max_drop)
    assert not verdict.passed
    assert said in verdict.outcomes[0].line()


def test_a_selected_cell_without_result_breaks_and_an_unselected_one_does_not():
    before = run([1] * 12)
    after = before[:11]
    assert not judge(after, before, selected=[record.cell for record in before]).passed
    assert judge(after, before, selected=[record.cell for record in after]).passed


def test_a_new_cell_stays_out_where_that_is_allowed_and_is_counted():
    verdict = judge(run([1] * 11 + [0]), run([1] * 11), "0", allow_new=True)
    assert verdict.passed
    assert verdict.warnings == ("1 of 12 cells are new and not compared",)
    assert not judge(run([1] * 3), (), allow_new=True).passed


def test_an_allowed_skipped_cell_stays_out():
    after = (*run([1] * 11), record(11, None, status="skipped"))
    assert not judge(after, run([1] * 12)).passed
    assert judge(after, run([1] * 12), allow_skipped=True).passed


def test_a_cell_of_two_suites_pairs_within_its_suite():
    essays, other = run([1] * 3), run([0] * 3, suite="other")
    for current, baseline in ((other + essays, essays + other), (essays, other + essays)):
        pairing = pair_records(current, baseline, None, allow_new=False, allow_skipped=False)
        assert [pair.baseline.suite for pair in pairing.pairs] == [pair.current.suite for pair in pairing.pairs]
        assert len(pairing.pairs) == len(current)
        assert len(pairing.gaps) == 6 - len(current)


def test_a_renamed_suite_still_pairs():
    assert judge(run([1] * 12, suite="new"), run([1] * 12), "0").passed


def test_of_two_suites_with_the_same_cells_one_may_be_selected_alone():
    before = run([1] * 12) + run([0] * 12, suite="other")
    names = [record.cell for record in before[:12]]
    assert judge(run([1] * 12), before, "0", selected=names).passed


def test_records_of_the_predecessor_pair_by_what_they_asked():
    before = run([1] * 12, cell="", needle_name="", suite="")
    outcome = judge(before, before, "0").outcomes[0]
    assert outcome.passed
    assert outcome.figures["pairs"] == 12
    assert not judge(run([0] * 12, cell="", needle_name="", suite=""), before).passed


def test_another_model_is_a_warning_that_names_both():
    meta = {"model": "a", "dtype": "bfloat16"}
    verdict = set_against(
        run([1]), Baseline(run([1]), meta), max_drop=parse_max_drop("0"), meta=meta | {"model": "b"}
    ).judged()
    assert verdict.passed
    assert verdict.warnings == ("model differs: a in the baseline, b now",)


def test_a_baseline_that_does_not_say_what_measured_it_is_a_warning():
    verdict = judge(run([1]), run([1]), meta={"model": "a"})
    assert verdict.warnings == ("the baseline does not say which model and engine measured it",)


def test_another_pass_mark_is_a_warning():
    verdict = judge(run([1]), run([1], threshold=0.9))
    assert verdict.warnings == ("pass_rate means recall > 0.9 in the baseline and recall > 0.5 now",)

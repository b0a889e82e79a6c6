import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from retrieval_heads.errors import ConfigError, ResultsError
from retrieval_heads.gates import Baseline, check, compare_heads, load_baseline, parse_gate, save_baseline
from retrieval_heads.heads.clusters import Clusters, drawn
from retrieval_heads.runs.record import Record

RNG = np.random.default_rng(0)
SCORES = RNG.random((6, 8))


def test_a_run_agrees_with_itself():
    found = compare_heads(SCORES, SCORES, top=10)
    assert (found.spearman, found.overlap, found.heads, found.notes) == (pytest.approx(1), 1, 48, ())


def test_the_opposite_order_disagrees():
    found = compare_heads(-SCORES, SCORES, top=10)
    assert (found.spearman, found.overlap) == (pytest.approx(-1), 0)


def test_overlap_counts_the_heads_that_are_best_in_both():
    other = SCORES.copy()
    best = np.argsort(SCORES, axis=None)[::-1][:10]
    other.flat[best[:3]] = 0
    assert compare_heads(other, SCORES, top=10).overlap == pytest.approx(0.7)


def test_constant_scores_are_said_and_never_nan():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = compare_heads(np.zeros((6, 8)), SCORES, top=10)
    assert (found.spearman, found.overlap) == (None, None)
    assert "this run scores every head 0" in found.notes
    assert "undefined" in str(found)


def test_layers_without_scores_on_either_side_are_left_out_and_said():
    after, before = SCORES.copy(), SCORES[:, ::-1].copy()
    after[1] = np.nan
    before[4] = np.nan
    kept = [0, 2, 3, 5]
    found = compare_heads(after, before, top=10)
    same = compare_heads(after[kept], before[kept], top=10)
    assert (found.spearman, found.overlap, found.heads) == (same.spearman, same.overlap, 32)
    assert found.notes == ("layers without scores left out: 1, 4",)


def test_a_single_head_without_a_score_is_left_out_and_said():
    after = SCORES.copy()
    after[1, 2] = np.nan
    found = compare_heads(after, SCORES, top=10)
    assert found.heads == 47
    assert found.notes == ("heads without scores left out: 1",)


def test_heads_that_tie_across_the_last_place_are_in_no_top():
    after, before = np.zeros((6, 8)), np.zeros((6, 8))
    after[0, :4] = before[5, :4] = 0.5
    found = compare_heads(after, before, top=10)
    assert found.overlap == 0
    assert "4 of the top 10 stand out in this run, the others tie" in found.notes
    assert compare_heads(after, after, top=10).overlap == 1


def test_a_top_of_all_heads_says_nothing():
    found = compare_heads(SCORES, SCORES, top=48)
    assert found.overlap is None
    assert found.notes == ("the top 48 are all 48 scored heads",)


def test_other_shapes_are_refused():
    with pytest.raises(ResultsError, match=r"is \[6, 8\] in this run and \[6, 7\] in the baseline"):
        compare_heads(SCORES, SCORES[:, :7])
    with pytest.raises(ResultsError, match="cannot be compared"):
        compare_heads(SCORES.ravel(), SCORES.ravel())


def test_no_head_scored_on_both_sides_is_refused():
    with pytest.raises(ResultsError, match="no head has a score in both"):
        compare_heads(np.full((2, 2), np.nan), np.ones((2, 2)))


def test_a_top_below_1_is_refused():
    with pytest.raises(ConfigError, match="at least 1"):
        compare_heads(SCORES, SCORES, top=0)


grids = arrays(float, (3, 4), elements=st.sampled_from([0.0, 0.1, 0.5, 1.0, np.nan]))


@settings(max_examples=100, deadline=None)
@given(grids, grids, st.integers(1, 15))
def test_no_figure_is_ever_nan(after, before, top):
    try:
        found = compare_heads(after, before, top=top)
    except ResultsError:
        assert not (np.isfinite(after) & np.isfinite(before)).any()
        return
    assert found.spearman is None or -1.001 <= found.spearman <= 1.001
    assert found.overlap is None or 0 <= found.overlap <= 1


CELL = Record(
    kind="detect",
    suite="tale",
    cell="detect/a/len_512/depth_0",
    context_length=512,
    document_depth=0,
    needle="n",
    metric="substring",
    threshold=0.5,
    passed=True,
    scores={"substring": 1.0},
)


def judged(gate, heads, before, records=(CELL,), **more):
    """The outcome of one gate over one selected cell."""
    return check([parse_gate(gate)], records, [CELL.cell], heads=heads, baseline_heads=before, **more).outcomes[0]


def test_a_gate_on_heads_holds_for_the_same_and_breaks_for_others():
    same, other = {"copy": SCORES}, {"copy": SCORES[::-1, ::-1]}
    assert judged("head_spearman() >= 0.99", same, same).passed
    assert judged("head_overlap(10) >= 1", same, same).passed
    broken = judged("head_overlap(10) >= 0.9", other, same)
    assert not broken.passed
    assert broken.measured == compare_heads(other["copy"], SCORES, top=10).overlap


@pytest.mark.parametrize(
    ("heads", "before", "told"),
    [
        (None, {"copy": SCORES}, "the run has no head scores"),
        ({"copy": SCORES}, None, "no baseline with head scores is given (--rh-baseline)"),
        ({"copy": SCORES}, {"mass": SCORES}, "the baseline has no head score 'copy'"),
        ({"copy": SCORES * 0}, {"copy": SCORES}, "this run scores every head 0"),
        ({"copy": SCORES[:2]}, {"copy": SCORES}, "head scores cannot be compared: [layers, heads] is [2, 8]"),
    ],
)
def test_heads_that_cannot_be_compared_break_the_gate(heads, before, told):
    outcome = judged("head_spearman(copy) >= -1", heads, before)
    assert not outcome.passed
    assert outcome.measured is None
    assert told in outcome.sentence


def test_a_figure_below_its_limit_that_chance_can_explain_is_inconclusive():
    """Six needles of which two find the heads in another order."""
    samples = np.stack([*[SCORES] * 4, *[SCORES[::-1]] * 2])
    clusters = Clusters(tuple((f"needle {number}", "text") for number in range(6)))
    heads, means = {"copy": samples.mean(0)}, {"copy": SCORES}
    more = {"drawn": lambda score: drawn(samples, clusters)}
    value = judged("head_overlap(10) >= 0", heads, means).measured
    assert value < 1
    outcome = judged("head_overlap(10) >= 1", heads, means, **more)
    assert (outcome.outcome, outcome.passed) == ("inconclusive", False)
    assert outcome.figures["low"] < value < outcome.figures["high"] == 1
    assert "the interval holds 1, so more needles or seeds are needed to tell" in outcome.sentence
    assert judged("head_overlap(10) >= 1", heads, means, **more, inconclusive="warn").passed
    assert judged("head_overlap(10) >= 1", heads, means).outcome == "broken", "of too few needles there is no interval"
    assert judged("head_spearman() >= 1.5", heads, means, **more).outcome == "broken"
    held = judged(f"head_overlap(10) >= {value}", heads, means, **more)
    assert held.outcome == "held"
    assert judged("head_overlap(10) >= 1", heads, means, (), **more).outcome == "broken", "a cell has no result"


def test_a_cell_without_a_result_breaks_a_gate_on_heads():
    outcome = judged("head_spearman(copy) >= 0", {"copy": SCORES}, {"copy": SCORES}, records=())
    assert not outcome.passed
    assert outcome.sentence.endswith("1 of 1 selected cells without a result")


def test_a_baseline_keeps_the_heads(tmp_path):
    scores = SCORES.copy()
    scores[2, 3] = np.nan
    save_baseline([CELL], {"model": "m"}, tmp_path / "main.jsonl", {"tale": {"copy": scores}})
    found: Baseline = load_baseline(tmp_path / "main.jsonl")
    assert found.meta == {"model": "m"}
    np.testing.assert_allclose(found.heads["tale"]["copy"], scores, atol=1e-6)

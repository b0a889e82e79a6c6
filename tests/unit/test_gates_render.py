import json
import math
from dataclasses import replace

from retrieval_heads.gates import Outcome, Verdict, check, lines, parse_gate, to_json, to_markdown, with_kept
from retrieval_heads.runs.record import Record

LONG = "min over length(rougeL_recall) is 0.133 at length 2048, must be >= 0.8"
BAD = Outcome("bad", False, 0.133, 0.8, LONG, ("2048/0 0.1", "2048/50 0.1", "2048/100 0.2"))
GOOD = Outcome("good", True, 0.9, 0.8, "mean(x) is 0.9, must be >= 0.8")
UNSURE = Outcome("unsure", False, 0.1, 0.05, "x 1→0.9, inconclusive: drop 0.1", is_inconclusive=True)
WARNED = replace(UNSURE, passed=True)
EMPTY = Outcome("empty", False, None, None, "mean(x) has no value")


def cell(length, depth, score=1.0, status="pass", **fields):
    values = {
        "cell": f"{length}/{depth}/{fields}",
        "suite": "essays",
        "context_length": length,
        "document_depth": depth,
        "needle": "n",
        "status": status,
        "metric": "recall",
        "scores": {"recall": score},
        "passed": True,
    }
    return Record.model_validate(values | fields)


def test_json_holds_plain_builtins_and_no_nan():
    odd = Outcome("odd", False, math.nan, math.inf, "odd", figures={"bound": math.nan, "pairs": 3})
    data = to_json(Verdict((BAD, GOOD, EMPTY, odd), ("mind this",)))
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert data["schema"] == "retrieval-heads-gates/1"
    assert data["passed"] is False
    assert data["warnings"] == ["mind this"]
    assert data["outcome"] == "broken"
    assert [gate["outcome"] for gate in data["gates"]] == ["broken", "held", "broken", "broken"]
    assert data["gates"][0]["measured"] == 0.133
    assert data["gates"][0]["worst"] == ["2048/0 0.1", "2048/50 0.1", "2048/100 0.2"]
    assert data["gates"][3]["figures"] == {"bound": None, "pairs": 3}


def test_kept_gates_of_an_older_file_have_the_word_of_what_they_were():
    kept = {"suite": "a", "gate": "old", "passed": False}
    content = with_kept(to_json(Verdict((GOOD,))), {"gates": [kept]}, ["a"])
    assert (content["passed"], content["outcome"]) == (False, "broken")
    content = with_kept(to_json(Verdict((WARNED,))), {"gates": [kept | {"passed": True}]}, ["a"])
    assert (content["passed"], content["outcome"]) == (True, "inconclusive")


def test_the_terminal_gets_broken_gates_first_and_one_line_each():
    shown = lines(Verdict((GOOD, BAD), ("a warning " * 20,)))
    assert shown[0] == "1 of 2 gates broken"
    assert shown[1] == f"FAIL {LONG}; worst 2048/0 0.1"
    assert shown[2] == "ok   mean(x) is 0.9, must be >= 0.8"
    assert all(line.startswith(("WARN ", "     ")) and len(line) <= 80 for line in shown[3:])


def test_a_wide_terminal_gets_all_worst_cells():
    assert lines(Verdict((BAD,)), width=160)[1].endswith("2048/0 0.1, 2048/50 0.1, 2048/100 0.2")


def test_headlines():
    assert lines(Verdict(()))[0] == "no gate was judged"
    assert lines(Verdict((GOOD,)))[0] == "the gate holds"
    assert lines(Verdict((EMPTY,)))[0] == "the gate is broken"
    assert lines(Verdict((GOOD, GOOD)))[0] == "all 2 gates hold"
    assert lines(Verdict((UNSURE,)))[0] == "the gate is inconclusive"
    assert lines(Verdict((UNSURE, GOOD)))[0] == "1 of 2 gates inconclusive"
    assert lines(Verdict((UNSURE, BAD, GOOD)))[0] == "1 of 3 gates broken, 1 inconclusive"


def test_an_inconclusive_gate_is_shown_as_what_it_does_to_the_run():
    assert lines(Verdict((GOOD, UNSURE, BAD)))[1:] == [
        f"FAIL {LONG}; worst 2048/0 0.1",
        f"FAIL {UNSURE.sentence}",
        f"ok   {GOOD.sentence}",
    ]
    assert lines(Verdict((GOOD, WARNED)))[1:] == [f"WARN {UNSURE.sentence}", f"ok   {GOOD.sentence}"]
    for outcome, passed in ((UNSURE, False), (WARNED, True)):
        (told,) = to_json(Verdict((outcome,)))["gates"]
        assert (told["outcome"], told["passed"]) == ("inconclusive", passed)
        assert f"- ❓ inconclusive: `{UNSURE.sentence}`" in to_markdown(Verdict((outcome,)), [])


def test_markdown_is_headline_gates_and_a_grid_of_means():
    records = [cell(1024, 0, 1.0), cell(1024, 50, 0.25), cell(2048, 0, 0.5), cell(2048, 0, 1.0, seed=1)]
    assert to_markdown(Verdict((BAD, GOOD), ("mind `this`",)), records) == (
        "### Retrieval heads: 1 of 2 gates broken\n\n"
        f"- ❌ broken: `{BAD.line()}`\n"
        "- ✅ held: `mean(x) is 0.9, must be >= 0.8`\n"
        "- ⚠️ `mind 'this'`\n\n"
        "`essays`: mean recall\n\n"
        "| length \\ depth | 0 % | 50 % |\n"
        "| ---: | ---: | ---: |\n"
        "| 1024 | 1.00 | 0.25 |\n"
        "| 2048 | 0.75 | – |\n"
    )


def test_a_hole_in_the_grid_is_a_word_and_not_a_score():
    records = [
        cell(1024, 0, status="error"),
        cell(1024, 50, status="skipped"),
        cell(1024, 100, math.nan),
        cell(2048, 0, 1.0),
        cell(2048, 0, status="error", seed=1),
        cell(2048, 0, status="error", seed=2),
    ]
    shown = to_markdown(Verdict(()), records)
    assert "| 1024 | error | skipped | no value |" in shown
    assert "| 2048 | 1.00, 2 error | – | – |" in shown


def test_suites_and_arms_have_grids_of_their_own_and_any_number_can_be_shown():
    records = [cell(1024, 0), cell(1024, 0, suite="book"), cell(1024, 0, 0.0, arm="top_20")]
    shown = to_markdown(Verdict((GOOD,)), records, "pass_rate")
    assert [line for line in shown.splitlines() if "mean pass_rate" in line] == [
        "`essays`: mean pass_rate",
        "`book`: mean pass_rate",
        "`essays top_20`: mean pass_rate",
    ]


def test_a_judged_run_renders_everywhere():
    records = [cell(1024, depth, depth / 100) for depth in (0, 50, 100)]
    verdict = check([parse_gate("mean(recall) >= 0.8")], records, [record.cell for record in records])
    assert lines(verdict) == [
        "the gate is broken",
        "FAIL mean(recall) is 0.5, must be >= 0.8; worst 1024/0 0, 1024/50 0.5",
    ]
    assert to_json(verdict)["gates"][0]["measured"] == 0.5
    assert "❌ broken: `mean(recall) is 0.5" in to_markdown(verdict, records)

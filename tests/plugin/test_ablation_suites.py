"""Suites of kind ablate: their items, their order, their figures, and what cannot be masked."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest
import yaml
from project import Project

HEADS = [[1, 0], [2, 3], [0, 0]]
SWEEP = {"context_lengths": [128], "document_depths": [0, 100]}


def ablation(project: Project, name: str = "cut", **ablate: Any) -> None:
    """A suite of two cells that masks the best two heads, beside two draws of others."""
    said = {"heads": HEADS, "top": [2], "draws": 2, **ablate}
    project.suite(name, kind="ablate", sweep=SWEEP, ablate=said)


def figures(project: Project, name: str = "ablation") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((project.latest / f"{name}.json").read_text("utf-8"))
    return found


def test_one_item_an_arm_and_cell_the_arm_first(project: Project) -> None:
    ablation(project)
    result = project.run("--co", "-q")
    assert [line.rpartition("::")[2] for line in result.outlines if "::" in line] == [
        f"ablate[{arm}-len_128-depth_{depth}]"
        for arm in ("none", "top_2", "random_2_draw_1", "random_2_draw_2")
        for depth in (0, 100)
    ]


@pytest.mark.parametrize(
    ("arguments", "count"),
    [(["-k", "top_2"], 2), (["-k", "random_2"], 4), (["-m", "ablate(arm='none')"], 2), (["-m", "ablate"], 8)],
)
def test_arms_are_selected_by_name_and_marker(project: Project, arguments: list[str], count: int) -> None:
    ablation(project)
    result = project.run("--co", "-q", *arguments)
    assert sum("::" in line for line in result.outlines) == count


def test_masked_cells_are_missed_without_failing_and_figures_are_written(project: Project, workers: list[str]) -> None:
    ablation(project)
    project.behave(retrieval_heads=HEADS[:2])
    result = project.run(*workers)
    result.assert_outcomes(passed=6, xfailed=2)
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            "*- ablation: cut -*",
            "*none      2  1.00 [[]0.16, 1.00]   *   7.4         0.00",
            "*top_2      2  0.00 [[]0.00, 0.84]  1.00 [[]-0.19, 1.00]         7.4         0.00",
            "*random_2      2  1.00 [[]*]  0.00 [[]*] *",
            "closed book with its interval: none 0.00 [[]0.00, 0.31], top_2 0.00 [[]0.00, 0.31], random_2 *",
            "random_2: 2 draws, accuracy 1.00 to 1.00",
            "masking the top 2 costs 1.00 [[]*] more accuracy than masking 2 others of the same layers",
            "mode zero: *",
        ]
    )
    found = figures(project)
    assert [group["name"] for group in found["groups"]] == ["none", "top_2", "random_2"]
    assert found["excess"]["2"]["value"] == 1
    assert (found["model"], found["mode"], found["seed"]) == ("toy", "zero", 0)
    assert found["controls"].keys() == {"none", "top_2", "random_2_draw_1", "random_2_draw_2"}
    assert found["controls"]["top_2"] == {"perplexity": pytest.approx(7.389, abs=1e-3), "closed_book": 0}
    records = project.records()
    assert {record.arm for record in records} == {"", "top_2", "random_2_draw_1", "random_2_draw_2"}
    masks = {record.arm: record.mask for record in records}
    assert masks[""] is None
    assert masks["top_2"] is not None
    assert masks["top_2"].heads == ((1, 0), (2, 3))
    assert len({record.request for record in records}) == 8


MANY = {"context_lengths": [128], "document_depths": list(range(0, 100, 8))}
DROP = "expect.top_2_drop_exceeds_random=0.3"


@pytest.mark.parametrize(
    ("heads", "sweep", "outcome"),
    [(HEADS, MANY, "held"), ([[3, 3], [0, 1]], MANY, "broken"), (HEADS, SWEEP, "inconclusive")],
)
def test_the_interval_of_an_expected_drop_decides_the_run(
    project: Project, heads: list[list[int]], sweep: dict[str, Any], outcome: str
) -> None:
    ablation(project, heads=heads)
    project.behave(retrieval_heads=HEADS[:2])
    expected = ["--rh-set", DROP, "--rh-set", f"sweep={json.dumps(sweep)}", "--junit-xml", "junit.xml"]
    result = project.run(*expected, "--rh-save-baseline", "main")
    assert result.ret == (outcome != "held")
    told = [line for line in result.outlines if line.startswith((f"{outcome}:", "no baseline was saved"))]
    if outcome != "held":
        assert told[0].startswith(
            f"{outcome}: expected masking the top 2 to cost 0.3 more accuracy than masking 2 others"
        )
        assert told[1] == f"no baseline was saved: 1 of the gates are {outcome}"
        failure = ElementTree.parse(project.path / "junit.xml").find(".//failure")
        assert failure is not None
        assert "to cost 0.3 more accuracy" in str(failure.get("message"))
    (gate,) = json.loads((project.latest / "gates.json").read_text("utf-8"))["gates"]
    assert (gate["outcome"], gate["gate"]) == (outcome, "expect top_2_drop_exceeds_random 0.3")
    if outcome == "inconclusive":  # the drops differ by all there is, and two cells are too few to tell
        assert (gate["measured"], gate["passed"]) == (1, False)
        assert gate["figures"]["low"] < 0.3
    assert project.run(*expected, "--rh-verdict", "none").ret == 0
    assert project.run(*expected, "--rh-inconclusive", "warn").ret == (outcome == "broken")


@pytest.mark.parametrize("is_stored", [False, True])
def test_masked_heads_that_never_copied_are_named(project: Project, is_stored: bool) -> None:
    """The stand-in's second head copies nothing: a top two of one copying head and one other."""
    project.suite("heads", kind="detect", sweep=SWEEP)
    project.behave(retrieval_heads=HEADS[:1])
    if is_stored:
        project.run("-m", "detect")
        stored = str((project.latest / "heads.json").resolve())
        ablation(project, heads=stored)
        project.run("-m", "ablate").stdout.fnmatch_lines(["*heads.json: 1 of the top 2 heads never copied: 0-0"])
    else:
        ablation(project, heads="detect/heads")
        project.run().stdout.fnmatch_lines(["top_2: 1 of the top 2 heads never copied: 0-0"])


@pytest.mark.parametrize("names", [("a_heads", "b_cut"), ("b_heads", "a_cut")])
def test_heads_of_a_detect_suite_of_the_run_are_waited_for(
    project: Project, workers: list[str], names: tuple[str, str]
) -> None:
    detect, cut = names
    project.suite(detect, kind="detect", sweep=SWEEP)
    ablation(project, cut, heads=f"detect/{detect}")
    project.behave(retrieval_heads=HEADS[:2])
    result = project.run(*workers)
    result.assert_outcomes(passed=8, xfailed=2)
    masks = {record.arm: record.mask for record in project.records()}
    assert masks["top_2"] is not None
    assert masks["top_2"].heads == ((1, 0), (2, 3))


def test_where_no_sample_counts_masked_cells_say_so_and_the_unmasked_are_answered(project: Project) -> None:
    project.suite("heads", kind="detect", sweep={"context_lengths": [256], "document_depths": [0]})
    ablation(project, heads="detect/heads")
    project.behave(wrong_lengths=[256])
    project.run().assert_outcomes(passed=2, failed=7)
    reasons = {record.reason for record in project.records() if record.arm}
    assert len(reasons) == 1
    assert reasons.pop().startswith("none of the 1 samples retrieved its needle")


def test_resumed_masks_are_not_asked_again_but_other_masks_are(project: Project) -> None:
    ablation(project)
    project.run().assert_outcomes(passed=8)
    project.behave(asked=str(project.path / "asked"))
    bare = ["--rh-set", "ablate.controls=false"]
    project.run("--rh-resume", *bare).assert_outcomes(passed=8)
    assert not (project.path / "asked").exists()
    project.run("--rh-resume", *bare, "--rh-set", "ablate.heads=[[3, 3], [0, 2]]").assert_outcomes(passed=8)
    assert (project.path / "asked").read_text().split() == ["6"]
    result = project.run("--rh-rescore")
    result.stdout.fnmatch_lines(["*top_2      2  1.00*"])


def test_stored_answers_keep_the_controls_that_were_measured_with_them(project: Project) -> None:
    ablation(project)
    project.run().assert_outcomes(passed=8)
    measured = figures(project)["controls"]
    assert measured
    project.run("--rh-rescore").assert_outcomes(passed=8)
    assert figures(project)["controls"] == measured


def test_a_mask_of_means_waits_for_its_reference(project: Project) -> None:
    ablation(project, mode="mean")
    project.behave(retrieval_heads=HEADS[:2])
    project.run().assert_outcomes(passed=6, xfailed=2)
    assert figures(project)["mode"] == "mean"


def test_pictures_are_drawn(project: Project, drawing: None) -> None:
    ablation(project, top=[1, 2])
    project.run("--rh-report")
    for name in ("ablation", "ablation_cells"):
        for form in ("png", "svg"):
            assert (project.latest / f"{name}.{form}").stat().st_size > 5_000


@pytest.mark.parametrize(
    ("ablate", "said"),
    [
        (
            {"heads": [[4, 0], [0, 0]]},
            "head 4-0: the model has no layer 4 whose heads can be masked; it has *",
        ),
        ({"heads": [[0, 4], [0, 0]]}, "head 0-4: layer 0 of the model has heads 0 to 3"),
        (
            {"heads": [[layer, head] for layer in range(3) for head in range(4)], "top": [12]},
            "top: masking 12 of the model's 16 heads leaves 4 others, too few for a control of 12",
        ),
    ],
)
def test_heads_that_the_model_has_not_are_an_error_of_each_cell(
    project: Project, ablate: dict[str, Any], said: str, workers: list[str]
) -> None:
    ablation(project, **ablate)
    project.pytester.makepyfile(test_own="def test_mine():\n    pass\n")
    result = project.run(*workers, suites=False)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    found = result.parseoutcomes()
    assert found.pop("passed") == 1, "what needs no engine runs"
    assert found.keys() <= {"errors", "failed"}
    assert found["errors"] > 0
    result.stdout.fnmatch_lines([f"*rh: the engine is not asked: ablate/cut: *{said}*"])
    (run,) = [path for path in (project.path / "reports").iterdir() if not path.is_symlink()]
    assert '"the engine was not asked"' in (run / "run.json").read_text()


def test_heads_that_nobody_is_to_find_end_the_run_with_one_sentence(project: Project) -> None:
    ablation(project, heads="detect/elsewhere")
    result = project.run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    said = "the heads of detect/elsewhere are to be masked, and no cell of that suite is"
    result.stdout.fnmatch_lines([f"*rh: ablate/cut: {said}*"])


@pytest.mark.parametrize(
    ("ablate", "said"),
    [
        ({"heads": [[1, 0], [1, 0]]}, "cut.yaml:*: ablate: heads: head 1-0 is given twice"),
        ({"heads": []}, "cut.yaml:*: ablate.heads: * at least 1 item *"),
        ({"heads": HEADS, "top": [5]}, "cut.yaml:*: ablate.top: 5 heads are to be masked, heads holds 3"),
        ({"top": [2, 2]}, "cut.yaml:*: ablate: top: 2 is given twice"),
        ({"heads": "nowhere.json"}, "cut.yaml:*: ablate.heads: *nowhere.json: cannot be read (No such file or *)"),
        ({"heads": "empty.json"}, "cut.yaml:*: ablate.heads: *empty.json: holds no heads"),
        ({"mode": "one"}, "cut.yaml:*: ablate.mode: input should be 'zero', 'mean' or 'uniform', found 'one'"),
        ({"mod": "zero"}, "cut.yaml:*: ablate.mod: unknown key; did you mean 'mode'[?]"),
    ],
)
def test_a_mistake_in_a_suite_is_one_sentence(project: Project, ablate: dict[str, Any], said: str) -> None:
    project.write("empty.json", "{}")
    ablation(project, **ablate)
    result = project.run()
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines([f"*{said}"])
    assert project.starts == []


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"ablate": None}, "no heads to mask; expected `ablate: {heads: FILE}`*"),
        ({"gates": ["mean(rougeL_f) >= 0.5"]}, "gates: an ablation has a score for each arm; *"),
        ({"expect": {"top_heads": [[0, 0]]}}, "expect: that is of suites of kind detect"),
        ({"expect": {"top_3_drop_exceeds_random": 0.3}}, "expect: no arm masks the top 3; top is [[]2[]]"),
        (
            {
                "ablate": {"heads": "detect/heads", "top": [2], "by": ["copy", "mass"]},
                "expect": {"top_2_drop_exceeds_random": 0.3},
            },
            "expect: each ranking has its own drop; give `by` one score",
        ),
    ],
)
def test_what_a_suite_of_arms_cannot_have(project: Project, keys: dict[str, Any], said: str) -> None:
    base = {"kind": "ablate", "sweep": SWEEP, "ablate": {"heads": HEADS, "top": [2]}}
    project.suite("cut", **{**base, **keys})
    project.run().stdout.fnmatch_lines([f"*cut.yaml:*: {said}"])


def test_heads_of_another_model_are_a_warning_that_names_both(project: Project) -> None:
    scores = {"copy": {"mean": [[0.1, 0.5, 0, 0]]}}
    layers = [{"path": "layers.0.attn", "number": 0, "heads": 4}]
    heads = {"schema": "retrieval-heads-heads/1", "model": "big", "layers": layers, "scores": scores}
    project.write("heads.json", json.dumps(heads))
    ablation(project, heads="heads.json", top=[1])
    result = project.run()
    result.assert_outcomes(passed=8, warnings=1)
    result.stdout.fnmatch_lines(["*ablate.heads: *heads.json holds the heads of big, and toy is ablated"])


def test_draws_that_do_not_exist_are_skipped(project: Project) -> None:
    everything = [[0, 0], [0, 1], [0, 2], [0, 3], [1, 0], [1, 1], [1, 2], [1, 3]]
    ablation(project, heads=everything, top=[8], draws=2)
    result = project.run()
    result.assert_outcomes(passed=6, skipped=2)
    result.stdout.fnmatch_lines(["skipped: * no draw 2: the distinct draws of 8 other heads number 1"])


def test_heads_are_ranked_by_the_score_that_is_named(project: Project) -> None:
    project.suite("heads", kind="detect", sweep=SWEEP, scores=["copy", "mass"])
    project.behave(retrieval_heads=HEADS[:2])
    ablation(project, heads="detect/heads", by="mass")
    project.run().assert_outcomes(passed=8, xfailed=2)
    ablation(project, heads="detect/heads", by="query")
    result = project.run()
    assert result.ret == 4
    result.stdout.fnmatch_lines(["*ablate.by: detect/heads does not measure query; name it in that suite's `scores`*"])


def test_rankings_of_several_scores_share_the_unmasked_arm_and_the_controls(project: Project, drawing: None) -> None:
    """The stand-in's heads that copy are the best by copy, and by mass; the needle's answers are lost without both."""
    project.suite("heads", kind="detect", sweep=SWEEP, scores=["copy", "mass"])
    project.behave(retrieval_heads=HEADS[:2])
    ablation(project, heads="detect/heads", by=["copy", "mass"])
    result = project.run("--rh-report")
    result.assert_outcomes(passed=8, xfailed=4)
    result.stdout.fnmatch_lines(
        [
            "*top by  heads * drop * beyond others * a head * behind the first",
            "*copy *  2  1.00 [[]-0.19, 1.00]  1.00 [[]*]  0.50 [[]-0.1*, 0.50] *–",
            "*mass *  2  1.00 *  0.50 * 0.00 *",
            "top_2: the same heads by copy, mass",
        ]
    )
    assert {record.arm for record in project.records() if record.kind == "ablate"} == {
        *("", "top_2_by_copy", "top_2_by_mass", "random_2_draw_1", "random_2_draw_2"),
    }
    told = figures(project)
    assert [(one["by"], one["count"]) for one in told["comparison"]] == [("copy", 2), ("mass", 2)]
    assert told["excess"].keys() == {"2_by_copy", "2_by_mass"}
    page = (project.latest / "report.html").read_text("utf-8")
    assert '<th scope="row">top 2 by mass</th><td>1.00 [−0.19, 1.00]</td>' in page


def test_rankings_of_a_file_are_written_as_lists_that_run_again(project: Project) -> None:
    layers = [{"path": f"layers.{number}.attn", "number": number, "heads": 4} for number in range(2)]
    scores = {
        "copy": {"mean": [[0.1, 0.5, 0, 0], [0.4, 0, 0, 0]]},
        "mass": {"mean": [[0.6, 0.5, 0, 0], [0, 0.4, 0, 0]]},
    }
    told = {"schema": "retrieval-heads-heads/1", "model": "toy", "layers": layers, "scores": scores}
    project.write("heads.json", json.dumps(told))
    for by, heads in (
        ("mass", [[0, 0], [0, 1]]),
        (["copy", "mass"], {"copy": [[0, 1], [1, 0]], "mass": [[0, 0], [0, 1]]}),
    ):
        ablation(project, heads="heads.json", by=by)
        assert project.run().ret == 0
        said = yaml.safe_load((project.latest / "config.yaml").read_text("utf-8"))["ablate"]
        assert (said["heads"], said.get("by")) == (heads, None)
        masked = {record.arm: record.mask for record in project.records()}
        again = project.run("--rh-config", str(project.latest.resolve() / "config.yaml"), config=False, suites=False)
        assert again.ret == 0
        assert {record.arm: record.mask for record in project.records()} == masked


@pytest.mark.parametrize(
    ("ablate", "message"),
    [
        ({"heads": {"a": HEADS, "b-c": HEADS}}, "*ablate: heads: 'b-c': a ranking's name is of letters, *"),
        ({"heads": {"a": [[0, 0], [0, 0]]}}, "*ablate: heads: head 0-0 is given twice*"),
        ({"heads": "detect/heads", "by": ["copy", "copy"]}, "*ablate: by: copy is given twice*"),
        ({"heads": "detect/heads", "by": ["copy", "echo"]}, "*ablate: by: echo is measured when a run's cells*"),
        ({"heads": "detect/heads", "by": ["copy", "qr"]}, "*ablate.by: detect/heads does not measure qr; name it in *"),
        ({"heads": "detect/heads", "by": "mas"}, "*ablate: by: unknown head score 'mas'; did you mean 'mass'*"),
        ({"heads": "detect/heads", "by": "echo"}, "*ablate: by: echo is measured when a run's cells are done; name*"),
        ({"heads": [[0, 0], [0, 1]], "by": "mass"}, "*ablate: by: a list of heads is ranked as it stands*"),
        ({"heads": "file.json", "by": "mass"}, "*ablate.heads: *file.json: has no score mass; it has copy_reference*"),
    ],
)
def test_a_ranking_that_cannot_be_is_refused(project: Project, ablate: dict[str, Any], message: str) -> None:
    project.suite("heads", kind="detect", sweep=SWEEP)
    project.write("file.json", json.dumps({"0-0": [0.5], "0-1": [0.25]}))
    ablation(project, **ablate)
    result = project.run()
    assert result.ret != 0
    (result.stdout if any("ablate" in line for line in result.outlines) else result.stderr).fnmatch_lines([message])

"""What a run leaves behind: its folder, its files, its terminal summary."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml
from project import NEEDLE, ON_WORKERS_IF_LONG, Project

from retrieval_heads.runs.record import SCHEMA, read_records


def test_results_hold_a_record_a_cell(project: Project, workers: list[str]) -> None:
    project.suite()
    project.run(*workers).assert_outcomes(passed=6)
    records = project.records()
    assert [(record.context_length, record.document_depth) for record in records] == [
        (128, 0), (128, 100), (128, 50), (256, 0), (256, 100), (256, 50),
    ]  # fmt: skip
    for record in records:
        assert record.schema_ == SCHEMA
        assert (record.kind, record.suite, record.status, record.passed) == ("niah", "tale", "pass", True)
        assert record.prompt_tokens == record.context_length
        assert record.cell.endswith(f"/seed_0/len_{record.context_length}/depth_{record.document_depth:g}")
        assert (record.text, record.finish_reason, record.rougeL) == (NEEDLE["needle"], "stop", 1.0)
        assert (record.seconds, record.cached_tokens) == (0.25, 0)
        assert len(record.token_ids) == 8
        assert record.needle_span is not None
        assert record.needle_span[1] - record.needle_span[0] == 8
        assert record.recipe is not None
        assert record.recipe.haystack == str(project.path / "tales")
        assert record.achieved_depth is not None


def test_a_cells_request_is_the_same_in_every_run_and_for_no_other(project: Project) -> None:
    project.suite()
    project.run()
    first = {record.cell: record.request for record in project.records()}
    project.run("-k", "depth_50")
    second = {record.cell: record.request for record in project.records()}
    assert len(set(first.values())) == 6
    assert second.items() <= first.items()
    project.run("--rh-set", "generation.seed=1")
    assert not {record.request for record in project.records()} & set(first.values())


def test_a_short_haystack_is_repeated_and_the_record_says_so(project: Project) -> None:
    project.suite(sweep={"context_lengths": [128, 4000], "document_depths": [50]})
    project.run().assert_outcomes(passed=2)
    repeats = {record.context_length: record.recipe.repeats for record in project.records() if record.recipe}
    assert repeats[128] == 0
    assert repeats[4000] >= 5


def test_a_hubs_token_stays_out_of_the_files(project: Project) -> None:
    project.suite()
    project.write("config.yaml", {"model": {"model": "toy", "hf_token": "hf_secret"}})
    project.run().assert_outcomes(passed=6)
    files = [path for path in project.latest.resolve().iterdir() if path.is_file()]
    assert {"config.yaml", "run.json", "results.jsonl"} <= {path.name for path in files}
    assert not [path for path in files if b"hf_secret" in path.read_bytes()]


def test_run_json_says_what_ran_where(project: Project, workers: list[str]) -> None:
    project.suite()
    project.behave(wrong_lengths=[256])
    project.run(*workers)
    facts = project.facts()
    assert facts["status"] == "finished"
    assert facts["exit_status"] == 1
    assert facts["cells"] == {"pass": 3, "low": 3, "skipped": 0, "error": 0}
    assert facts["selected_cells"] == 6
    assert facts["model"] == "toy"
    assert facts["engine_args"] == {"model": "toy"}
    assert {"dtype": "float32", "device": "no device", "engine": "stand-in 0"}.items() <= facts.items()
    assert {"began", "seconds", "engine_start_seconds", "python", "retrieval_heads", "model_revision"} <= set(facts)
    assert facts["start_seconds"].keys() == {"engine", "haystacks"}
    assert facts["arguments"][:1] == ["suites"]


def test_run_json_and_summary_say_what_the_cache_gave_and_what_was_possible(
    project: Project, workers: list[str]
) -> None:
    project.suite()
    result = project.run(*workers)
    facts = project.facts()
    prompts = sum(record.prompt_tokens or 0 for record in project.records())
    assert (facts["prompt_tokens"], facts["cached_tokens"]) == (prompts, 0) == (6 * 192, 0)
    assert 0 < facts["reusable_tokens"] < prompts
    assert facts["reusable_tokens"] % 16 == 0, "whole blocks of the stand-in's cache"
    assert facts["steps"] > 0
    assert 0 < facts["feed_gap_seconds"] < facts["seconds"]
    share = facts["reusable_tokens"] / prompts
    (line,) = (line for line in result.outlines if line.startswith("prefix cache: "))
    assert line.startswith(f"prefix cache: 0.0% of 1,152 tokens (at best {share:.1%}); between steps: ")
    assert len(line) <= 80


def test_a_run_whose_answers_were_all_there_says_nothing_of_a_cache(project: Project) -> None:
    project.suite()
    project.run()
    result = project.run("--rh-resume")
    result.stdout.fnmatch_lines(["6 of 6 answers are those of the earlier run"])
    result.stdout.no_fnmatch_line("prefix cache: *")


def test_config_yaml_is_what_it_came_to_and_runs_again(project: Project) -> None:
    project.suite(scoring={"threshold": 0.9})
    project.run("--rh-set", "sweep.document_depths=[25]", "--rh-set", "model.max_model_len=512")
    first = project.latest.resolve()
    settings = yaml.safe_load((first / "config.yaml").read_text("utf-8"))
    assert settings["model"] == {"model": "toy", "max_model_len": 512, "chat_template_kwargs": {}}
    assert settings["sweep"] == {"context_lengths": [128, 256], "document_depths": [25.0], "seeds": [0]}
    assert settings["scoring"] == {"metric": "key_words", "threshold": 0.9}
    project.run("--rh-config", str(first / "config.yaml"), suites=False, config=False).assert_outcomes(passed=2)
    again = [(record.cell, record.request) for record in project.records()]
    assert again == sorted((record.cell, record.request) for record in read_records(first / "results.jsonl"))


def test_config_yaml_of_several_suites_has_each(project: Project) -> None:
    project.suite("one")
    project.suite("two", sweep={"context_lengths": [128], "document_depths": [0]})
    project.run().assert_outcomes(passed=7)
    settings = yaml.safe_load((project.latest / "config.yaml").read_text("utf-8"))
    assert list(settings["suites"]) == ["niah/one", "niah/two"]
    assert len(project.starts) == 1
    assert {record.suite for record in project.records()} == {"one", "two"}


@ON_WORKERS_IF_LONG
def test_config_yaml_of_several_suites_runs_again(project: Project, workers: list[str]) -> None:
    project.suite("one", gates=["mean(pass_rate) >= 1"])
    project.suite("two", kind="detect", sweep={"context_lengths": [128], "document_depths": [0, 50]})
    project.suite("three", kind="ablate", ablate={"heads": "detect/two", "top": [1], "draws": 1, "controls": False})
    project.run(*workers)
    first = project.latest.resolve()
    before = sorted((one.suite_id, one.cell, one.request) for one in read_records(first / "results.jsonl"))
    assert len(before) == 6 + 2 + 18
    config = ("--rh-config", str((first / "config.yaml").relative_to(project.path)))
    for arguments in ([], ["suites"], [config[1]]):
        project.run(*arguments, *config, *workers, suites=False, config=False)
        again = sorted((one.suite_id, one.cell, one.request) for one in project.records())
        assert project.latest.resolve() != first
        assert again == before
    node = f"{config[1]}::niah/one::niah[len_128-depth_50]"
    project.run(node, *config, *workers, suites=False, config=False).assert_outcomes(passed=1)
    assert [one.suite_id for one in project.records()] == ["niah/one"]


def test_a_suite_that_runs_again_keeps_its_name(project: Project) -> None:
    project.suite()
    project.run("--rh-save-baseline", "main")
    config = ("--rh-config", "reports/latest/config.yaml", "--rh-baseline", "suites/niah/baselines/main.jsonl")
    project.run(*config, suites=False, config=False).assert_outcomes(passed=6 + 2)
    assert {one.suite_id for one in project.records()} == {"niah/tale"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("suites: {}\n", "config.yaml:1: suites: expected each suite of a run by kind and name"),
        ("kind: niah\nsuites: {niah/a: {}}\n", "config.yaml:2: suites: expected each suite of a run by kind and name"),
        ("suites:\n  mine: {haystack: x}\n", "config.yaml:1: suites.mine: expected KIND/NAME"),
        ("suites:\n  niah/a: {kind: detect}\n", "config.yaml:1: suites.niah/a: the suite under it says another kind"),
        ("suites:\n  niah/a:\n    swep: {}\n", "config.yaml:3: suites.niah/a.swep: unknown key; did you mean 'sweep'?"),
        ("suites:\n  niah/a:\n    haystack: nowhere\n", "config.yaml:2: no needle"),
    ],
)
def test_a_config_of_suites_that_cannot_be_used_says_why(project: Project, text: str, told: str) -> None:
    project.write("config.yaml", text)
    result = project.run(suites=False)
    assert result.ret in (pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.INTERRUPTED)
    assert any(told in line for line in result.outlines + result.errlines), result.outlines + result.errlines


def test_the_log_is_the_engines_own(project: Project) -> None:
    project.suite()
    result = project.run()
    assert (project.latest / "engine.log").exists()
    result.stdout.fnmatch_lines(["rh: 6 cells of niah/tale; starting the engine, log reports/*-tale/engine.log"])


def test_output_dir_is_taken_as_it_is_and_earlier_results_are_kept(project: Project) -> None:
    project.suite()
    for depth in (0, 50):
        project.run("--rh-set", "output_dir=./results/toy", "-k", f"depth_{depth}").assert_outcomes(
            passed=2, deselected=4
        )
    folder = project.path / "results" / "toy"
    assert not (project.path / "reports").exists()
    assert {record.document_depth for record in read_records(folder / "results.jsonl")} == {50}
    (earlier,) = folder.glob("results-*.jsonl")
    assert {record.document_depth for record in read_records(earlier)} == {0}


def test_latest_is_the_newest_run(project: Project) -> None:
    project.suite()
    for _ in range(2):
        project.run("-k", "len_128-depth_50")
    folders = sorted(path for path in (project.path / "reports").iterdir() if not path.is_symlink())
    assert len(folders) == 2
    assert project.latest.resolve() == max(folders, key=lambda path: path.stat().st_mtime_ns)
    assert os.readlink(project.latest) == project.latest.resolve().name, "the folder can be moved"  # noqa: PTH115


def test_a_second_run_does_not_write_to_the_same_folder(project: Project, workers: list[str]) -> None:
    from retrieval_heads.runs.folder import RunFolder

    project.suite()
    running = RunFolder(project.path / "results")
    result = project.run("--rh-set", "output_dir=results", *workers)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stdout.fnmatch_lines(["*rh: *results: another run is writing to this folder; give output_dir another*"])
    assert project.starts == []
    running.close()


def test_a_folder_that_cannot_be_made_is_one_line(project: Project) -> None:
    project.suite()
    project.write("file", "")
    result = project.run("--rh-set", "output_dir=file/run")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stdout.fnmatch_lines(["*rh: *file/run: the run's folder cannot be written (Not a directory)*"])


def test_the_summary_is_a_grid_of_scores(project: Project) -> None:
    project.suite()
    project.behave(wrong_lengths=[256])
    project.run().stdout.fnmatch_lines(
        [
            "-* needle in a haystack: tale -*",
            "*depth %",
            "  tokens       0      50     100    mean",
            "     128    1.00    1.00    1.00    1.00",
            "     256    0.00    0.00    0.00    0.00",
            "6 cells: 3 retrieved, 3 below the threshold; mean key_words 0.500",
            "95 % interval of that mean: 0.118 – 0.881",  # Clopper-Pearson of 3 in 6, by R: 0.1181172 0.8818828
            "prefix cache: 0.0% of 1,152 tokens (at best *); between steps: *%",
            "results  reports/*-tale/results.jsonl",
        ],
        consecutive=True,
    )


def test_the_grid_fits_a_narrow_terminal(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    lengths, depths = list(range(128, 128 + 32)), {"min": 0, "max": 100, "intervals": 20}
    project.suite(sweep={"context_lengths": lengths, "document_depths": depths})
    result = project.run("--rh-verdict", "none")
    result.assert_outcomes(passed=32 * 21)
    grid = [line for line in result.outlines if line.strip().startswith("1") and "█" in line]
    assert len(grid) == 32
    assert max(map(len, grid)) <= 60


@pytest.mark.usefixtures("drawing")
def test_the_report_is_pictures_and_a_page(project: Project) -> None:
    project.suite()
    result = project.run("--rh-report")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["heatmap *reports/*-tale/heatmap.png", "report *reports/*-tale/report.html"])
    assert (project.latest / "heatmap.png").read_bytes().startswith(b"\x89PNG")
    assert (project.latest / "heatmap.svg").exists()
    page = (project.latest / "report.html").read_text()
    assert "6 of 6" in page
    assert page.count('"cell":"niah/tales/') == 6


@pytest.mark.usefixtures("drawing")
def test_the_report_of_several_suites_has_a_heatmap_each(project: Project) -> None:
    project.suite("one")
    project.suite("two")
    project.run("--rh-report", "-k", "len_128").assert_outcomes(passed=6, deselected=6)
    drawn = sorted(path.name for path in project.latest.glob("*.png"))
    assert drawn == ["heatmap-one.png", "heatmap-two.png", "profiles-one.png", "profiles-two.png"]


def test_strict_warnings_find_nothing_left_open(project: Project) -> None:
    project.suite()
    result = project.spawn("-W", "error")
    assert result.ret == 0, result.stdout.str() + result.stderr.str()
    result.stderr.no_fnmatch_line("*ResourceWarning*")


def test_no_temporary_folder_stays(project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    project.suite()
    project.spawn().assert_outcomes(passed=6)
    assert list(tmp_path.glob("rh-*")) == []
    assert json.loads((project.latest / "run.json").read_text())["status"] == "finished"


@pytest.mark.parametrize("output_dir", [".", "mine"])
def test_a_folder_with_files_of_ones_own_is_refused(project: Project, output_dir: str) -> None:
    project.suite()
    mine = [project.write(name, "mine") for name in ("report.html", "heatmap.png", "mine/config.yaml")]
    before = (project.path / "config.yaml").read_text()
    result = project.run("--rh-set", f"output_dir={output_dir}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stdout.fnmatch_lines(["*rh: *: holds files that no run wrote (*); give output_dir a folder of its own*"])
    assert [path.read_text() for path in mine] == ["mine"] * 3
    assert (project.path / "config.yaml").read_text() == before
    assert project.starts == []


def test_an_empty_output_dir_replaces_nothing(project: Project) -> None:
    project.suite()
    before = (project.path / "config.yaml").read_text()
    result = project.run("--rh-set", 'output_dir=""')
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*output_dir: a path is expected, found ''*"])
    assert (project.path / "config.yaml").read_text() == before
    assert project.starts == []


@ON_WORKERS_IF_LONG
def test_prompts_without_the_start_token_are_told(project: Project, workers: list[str]) -> None:
    project.suite()
    project.behave(takes_start_token=True)
    result = project.run(*workers)
    result.assert_outcomes(passed=6)
    fault = "no prompt begins with the model's start token <s> (1): neither template nor tokenizer writes it; *"
    result.stdout.fnmatch_lines([f"rh: WARNING: toy: {fault}", f"WARNING: toy: {fault}"])
    assert project.facts()["warnings"][0].startswith("no prompt begins with")
    project.behave()
    project.run(*workers).stdout.no_fnmatch_line("*WARNING*")

"""Whole runs, from the command line to the files and the exit status."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from conftest import CI_ARGUMENTS, CI_CACHE, CI_LENGTHS, write_yaml
from retrieval_heads.cli import main
from retrieval_heads.prompts.prompt import hash_ids
from retrieval_heads.runs.record import SCHEMA, read_records
from retrieval_heads.suites.suite import load_suite

if TYPE_CHECKING:
    from conftest import Outcome, Started

pytestmark = pytest.mark.engine

CHECKOUT = Path(__file__).parents[2]
SMOLLM2 = str(CHECKOUT / "configs/smollm2.yaml")
CI = CHECKOUT / "suites/niah/ci.yaml"


def test_run_ends_well_and_leaves_no_process(ci_run: Outcome) -> None:
    assert ci_run.exit_status == 0, ci_run.output
    assert ci_run.left == []


def test_records_are_the_cells_of_the_suite_in_order(ci_run: Outcome) -> None:
    suite = load_suite(CI, CI_LENGTHS)
    records = list(ci_run.records.values())

    assert [record.cell for record in records] == [cell.id for cell in suite.cells]
    assert {record.schema_ for record in records} == {SCHEMA}
    assert all(record.status in ("pass", "low") for record in records)
    assert sum(record.status == "pass" for record in records) >= 9  # it is a small model


def test_run_json_says_what_ran(ci_run: Outcome) -> None:
    facts, records = ci_run.facts, ci_run.records.values()

    assert facts["status"] == "finished"
    assert facts["exit_status"] == 0
    assert facts["model"] == "SmolLM2-135M-Instruct"
    assert facts["dtype"] == "float32"
    assert facts["engine"].startswith("vllm 0.")
    assert facts["device"] == "cpu"
    assert facts["engine_args"]["max_model_len"] == facts["max_model_len"] == 8192
    assert facts["selected_cells"] == sum(facts["cells"].values()) == len(records) == 18
    assert facts["cells"]["pass"] == sum(record.status == "pass" for record in records)
    assert 0 < facts["answer_seconds"] < facts["seconds"]
    assert facts["start_seconds"].keys() == {"import", "engine", "haystacks"}
    assert sum(facts["start_seconds"].values()) < facts["engine_start_seconds"]
    assert facts["engine_start_seconds"] + facts["answer_seconds"] <= facts["seconds"] + 0.1


def test_run_json_says_what_the_prefix_cache_gave_of_the_best_possible(ci_run: Outcome) -> None:
    facts, records = ci_run.facts, ci_run.records.values()

    assert facts["prompt_tokens"] == sum(record.prompt_tokens or 0 for record in records)
    assert facts["cached_tokens"] == sum(record.cached_tokens or 0 for record in records)
    assert facts["reusable_tokens"] >= facts["cached_tokens"] >= 0.9 * facts["reusable_tokens"] > 0
    assert 0 < facts["feed_gap_seconds"] < facts["answer_seconds"]
    assert facts["feed_gap_seconds"] + facts["step_seconds"] < facts["seconds"]


def test_the_engines_time_is_shared_out_among_the_cells(ci_run: Outcome) -> None:
    facts, records = ci_run.facts, list(ci_run.records.values())

    own = [record.engine_seconds or 0.0 for record in records]
    assert all(seconds > 0 for seconds in own)
    assert 0.8 * facts["step_seconds"] <= sum(own) <= facts["step_seconds"]
    assert all(seconds <= (record.seconds or 0.0) + 0.01 for seconds, record in zip(own, records, strict=True))
    assert all(record.queued_seconds is not None for record in records)


def test_reconstruct_prints_the_prompt_that_was_sent(ci_run: Outcome, capsys: pytest.CaptureFixture[str]) -> None:
    record = list(ci_run.records.values())[4]
    assert record.recipe is not None
    main(["reconstruct", str(ci_run.folder), "--cell", record.cell, "--ids"])
    assert hash_ids(json.loads(capsys.readouterr().out)) == record.recipe.prompt_hash
    main(["reconstruct", str(ci_run.folder), "--cell", record.cell])
    before, after = record.around or ("", "")
    assert f"{before}\n{record.needle.strip()}\n{after}" in capsys.readouterr().out


def test_validate_foresees_what_the_cache_saves(
    ci_run: Outcome, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    block = ci_run.facts["block_size"]
    config = write_yaml(tmp_path / "config.yaml", {**yaml.safe_load(Path(SMOLLM2).read_text()), **CI_LENGTHS})
    main(["validate", str(CI), "--config", str(config), "--model.dtype", "float32", "--model.block-size", str(block)])
    told = capsys.readouterr().out
    records = ci_run.records.values()
    assert f"{sum(record.prompt_tokens or 0 for record in records):,}; " in told
    foreseen = int(told.partition("; ")[2].partition(" to compute")[0].replace(",", ""))
    computed = sum((record.prompt_tokens or 0) - (record.cached_tokens or 0) for record in records)
    assert foreseen == pytest.approx(computed, rel=0.1)
    assert "1 × <|im_start|>" in told
    assert "<|im_end|>" in told


def test_config_yaml_is_a_suite_of_the_same_cells(ci_run: Outcome, run_pytest: Callable[..., Outcome]) -> None:
    written = ci_run.folder / "config.yaml"
    again = run_pytest("--rh-config", str(written), "--co", "-q")
    asked, resolved = load_suite(CI, CI_LENGTHS), load_suite(written)

    assert [cell.id for cell in resolved.cells] == [cell.id for cell in asked.cells]
    assert resolved.settings.model.engine_args["dtype"] == "float32"
    assert resolved.settings.generation.max_tokens == 48  # smollm2.yaml lies over the suite
    assert again.exit_status == 0, again.output
    assert [line.partition("::")[2] for line in again.output.splitlines() if "::" in line] == [
        f"niah[{cell.name}]" for cell in asked.cells
    ]


def test_heatmap_shows_the_scores(ci_run: Outcome) -> None:
    from matplotlib.image import imread

    pixels = imread(ci_run.folder / "heatmap.png")[..., :3]
    drawing = (ci_run.folder / "heatmap.svg").read_text(encoding="utf-8")

    assert min(pixels.shape[:2]) >= 300
    assert len({tuple(pixel) for pixel in (pixels[::3, ::3].reshape(-1, 3) * 255).astype(int)}) > 20
    assert 0.02 < (pixels.mean(axis=2) < 0.9).mean() < 0.98  # neither blank nor a slab
    assert all(f">{shown}<" in drawing for shown in ("256", "512", "1,024"))
    assert "SmolLM2-135M-Instruct" in drawing
    assert str(Path("reports") / ci_run.folder.name / "heatmap.png") in ci_run.output


def test_terminal_shows_the_engine_the_grid_and_the_paths(ci_run: Outcome) -> None:
    lines = ci_run.output.splitlines()

    assert "Traceback" not in ci_run.output
    assert sum("rh: 18 cells of niah/ci; starting the engine, log reports/" in line for line in lines) == 1
    assert sum("rh: SmolLM2-135M-Instruct is ready in " in line for line in lines) == 1
    assert [line.split()[0] for line in lines if line.split()[:1] in (["256"], ["512"], ["1024"])] == [
        "256",
        "512",
        "1024",
    ]
    assert any(line.startswith("results  ") and line.endswith("results.jsonl") for line in lines)


def test_two_workers_ask_the_same_on_one_engine(ci_run: Outcome, ci_run_of_two_workers: Outcome) -> None:
    alone, shared = ci_run.records, ci_run_of_two_workers.records
    compared = ("status", "text", "token_ids", "finish_reason", "scores", "needle_span", "recipe", "request")

    assert shared.keys() == {cell for cell, record in alone.items() if record.context_length == 256}
    assert len(shared) == 6
    for cell, record in shared.items():
        assert {key: getattr(record, key) for key in compared} == {key: getattr(alone[cell], key) for key in compared}
    assert ci_run_of_two_workers.output.count("starting the engine") == 1
    assert ci_run_of_two_workers.engine_log.count("Initializing a V1 LLM engine") == 1
    assert ci_run_of_two_workers.left == []


def test_low_cells_fail_the_run_and_are_described(ci_run_of_two_workers: Outcome) -> None:
    low = [record for record in ci_run_of_two_workers.records.values() if record.status == "low"]
    output = ci_run_of_two_workers.output

    assert low, "SmolLM2 is expected to miss some of these cells"
    assert ci_run_of_two_workers.exit_status == 1
    assert f"{len(low)} failed, {6 - len(low)} passed" in output
    assert output.count("    question  ") == output.count("    needle    ") == len(low)
    assert "Traceback" not in output


def test_unknown_engine_argument_is_named_with_the_nearest_valid_one(run_pytest: Callable[..., Outcome]) -> None:
    outcome = run_pytest(str(CI), "--rh-config", SMOLLM2, "--rh-set", "model.max_model_length=100")
    naming = [line for line in outcome.output.splitlines() if line.startswith("rh: ") and "max_model_length" in line]

    assert outcome.exit_status == 1
    assert len(naming) == 1, outcome.output
    assert "model.max_model_length: there is no such engine argument in vLLM" in naming[0]
    assert "did you mean 'max_model_len'?" in naming[0]
    assert "Traceback" not in outcome.output
    assert outcome.left == []


def test_missing_model_folder_is_named(run_pytest: Callable[..., Outcome]) -> None:
    outcome = run_pytest(str(CI), "--rh-config", SMOLLM2, "--rh-set", "model.model=./no-such-model")
    naming = [line for line in outcome.output.splitlines() if line.startswith("rh: ") and "no folder" in line]

    assert outcome.exit_status == 1
    assert len(naming) == 1, outcome.output
    assert "model.model: no folder './no-such-model'" in naming[0]
    assert "Traceback" not in outcome.output
    assert outcome.left == []


@pytest.mark.long
def test_of_a_killed_engine_finished_cells_stay_and_the_others_are_errors(
    start_pytest: Callable[..., Started], tmp_path: Path
) -> None:
    """Under two workers; without, tests/plugin has the same with a stand-in."""
    suite = yaml.safe_load(CI.read_text(encoding="utf-8"))
    suite["sweep"] = {"context_lengths": [256], "document_depths": list(range(0, 100, 5))}
    suite |= {"generation": {"max_tokens": 24}, "verdict": "none"}
    (tmp_path / "many.yaml").write_text(yaml.safe_dump(suite), encoding="utf-8")
    # One request at a time, so that there is a middle of the run to be killed in.
    run = start_pytest("many.yaml", "--rh-config", SMOLLM2, "--rh-set", "model.max_num_seqs=1", *CI_CACHE, "-n", "2")
    while not (found := list(tmp_path.glob("reports/latest/results.jsonl"))) or found[0].read_text().count("\n") < 3:
        assert run.process.poll() is None, (tmp_path / "output.txt").read_text()
        time.sleep(0.05)
    (engine,) = (one for one in run.processes() if os.getsid(one.pid) == one.pid)
    engine.kill()
    outcome = run.finish()

    records = read_records(outcome.folder / "results.jsonl")
    facts = json.loads((outcome.folder / "run.json").read_text(encoding="utf-8"))
    assert outcome.exit_status == 1, outcome.output
    assert outcome.left == []
    assert 3 <= len(records) < 40
    assert {record.status for record in records} <= {"pass", "low"}
    assert facts["status"] == "cut short"
    assert facts["selected_cells"] == 40
    assert outcome.output.count("ended by signal SIGKILL") >= 1, outcome.output
    assert f"{40 - len(records)} error" in outcome.output
    assert f"{40 - len(records)} of 40 selected cells have no result" in outcome.output
    assert "Traceback" not in outcome.output
    assert "INTERNALERROR" not in outcome.output


@pytest.mark.long
def test_the_shipped_suite_is_asked_whole_as_it_is(run_pytest: Callable[..., Outcome]) -> None:
    outcome = run_pytest(str(CI), "--rh-config", SMOLLM2, "--rh-verdict", "none")
    assert outcome.exit_status == 0, outcome.output
    assert list(outcome.records) == [cell.id for cell in load_suite(CI).cells]
    assert outcome.facts["cells"]["pass"] + outcome.facts["cells"]["low"] == 18


def test_killed_run_resumes_to_what_an_undisturbed_one_gives(
    start_pytest: Callable[..., Started], run_pytest: Callable[..., Outcome], tmp_path: Path, ci_run: Outcome
) -> None:
    arguments = [*CI_ARGUMENTS, *CI_CACHE, "--rh-verdict", "none", "-k", "len_256"]
    # One request at a time, so that there is a middle of the run to be killed in.
    run = start_pytest(*arguments, "--rh-set", "model.max_num_seqs=1")
    while not (found := list(tmp_path.glob("reports/latest/results.jsonl"))) or found[0].read_text().count("\n") < 2:
        assert run.process.poll() is None, (tmp_path / "output.txt").read_text()
        time.sleep(0.05)
    run.process.kill()
    assert run.finish().left == []
    kept = len(found[0].read_text().splitlines())

    resumed = run_pytest(*arguments, "--rh-resume")

    compared = ("request", "status", "text", "token_ids", "scores")
    assert resumed.exit_status == 0, resumed.output
    assert f"{kept} of 6 answers are those of the earlier run" in resumed.output
    assert resumed.records.keys() == {cell for cell, record in ci_run.records.items() if record.context_length == 256}
    for cell, record in resumed.records.items():
        assert {key: getattr(record, key) for key in compared} == {
            key: getattr(ci_run.records[cell], key) for key in compared
        }
    assert len((resumed.folder / "results.jsonl").read_text(encoding="utf-8").splitlines()) == 6

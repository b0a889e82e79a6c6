"""Detection from the command line: fresh answers, stored answers, the predecessor's, expectations kept and broken."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from conftest import DETECTED_CONFIG, DETECTED_SUITE, MODEL, finished, write_yaml
from retrieval_heads.cli import main
from retrieval_heads.heads.formats import read_ranked
from retrieval_heads.heads.steps import figures_of
from retrieval_heads.runs.record import Record, read_records

if TYPE_CHECKING:
    from conftest import Outcome

pytestmark = pytest.mark.engine


@pytest.fixture(scope="session")
def stored_run(detect_run: Outcome, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The same answers traced from the results file, the predecessor's form of them, and files that were changed."""
    folder = tmp_path_factory.mktemp("stored")
    results = detect_run.folder / "results.jsonl"
    records = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    heads = [record for record in records if record["kind"] == "detect"]
    (folder / "predecessor.jsonl").write_text(
        "".join(json.dumps(predecessors(record)) + "\n" for record in heads[:3]), encoding="utf-8"
    )
    changed = [json.loads(json.dumps(record)) for record in heads[:4]]
    changed[0]["recipe"]["hash"] = "0" * 64
    changed[1]["recipe"]["template_hash"] = "0" * 64
    changed[2]["recipe"]["prompt_hash"] = "0" * 64
    changed[3]["token_ids"] = changed[3]["token_ids"][:1]
    (folder / "changed.jsonl").write_text("".join(json.dumps(record) + "\n" for record in changed), encoding="utf-8")
    suites = {
        "again": {
            "from_results": str(results),
            "sweep": {"context_lengths": [448]},
            "per_step": True,
            "expect": {"min_overlap_with": str(detect_run.folder / "heads.json"), "min_overlap": 0.7},
        },
        "predecessor": {"from_results": "predecessor.jsonl"},
        "changed": {"from_results": "changed.jsonl", "from_model": "unknown"},  # no run.json stands beside it
        "broken": {
            "from_results": str(results),
            "sweep": {"document_depths": [50]},
            "expect": {"top_heads": [[0, 0], [99, 0]]},
        },
    }
    for name, suite in suites.items():
        write_yaml(folder / f"{name}.yaml", {"kind": "detect", **suite})
    config = write_yaml(folder / "config.yaml", DETECTED_CONFIG)
    return finished([*(f"{name}.yaml" for name in suites), "--rh-config", str(config)], folder)


def predecessors(record: dict[str, Any]) -> dict[str, Any]:
    """A record with the fields that PyPI's `retrieval-heads` documents, made of one of ours."""
    from transformers import AutoTokenizer

    from retrieval_heads.models import locate_model
    from retrieval_heads.prompts.haystack import Haystack, read_text
    from retrieval_heads.prompts.prompt import PromptBuilder
    from retrieval_heads.prompts.settings import Needle, Prompt

    tokenizer = AutoTokenizer.from_pretrained(locate_model(MODEL))
    builder = PromptBuilder(tokenizer, None, {})
    source = record["recipe"]["haystack"]
    haystack = Haystack.of(source, read_text(source), builder.tokenize)
    needle = Needle(needle=record["needle"], question=record["question"])
    prompt = builder.build(
        haystack,
        builder.frame(Prompt.model_validate({"messages": record["recipe"]["wording"]}), needle.question),
        needle,
        record["context_length"],
        record["document_depth"],
        seed=0,
        boundary="sentence",
    )
    return {
        "context_length": record["context_length"],
        "document_depth": int(record["document_depth"]),
        "needle": record["needle"],
        "context": tokenizer.decode(prompt.context.ids),
        "needle_idx": prompt.context.insertion,
        "prompt": tokenizer.decode(prompt.ids),
        "token_ids": record["token_ids"],
        "text": record["text"],
        "rougeL": record["rougeL"],
    }


def of_suite(outcome: Outcome, suite: str) -> list[Record]:
    """The records of one suite, in order; suites over the same answers have cells of the same names."""
    return [record for record in read_records(outcome.folder / "results.jsonl") if record.suite == suite]


def test_known_heads_are_found_and_the_run_passes(detect_run: Outcome) -> None:
    assert detect_run.exit_status == 0, detect_run.output
    assert detect_run.left == []
    assert "10 of 10 samples counted" in detect_run.output
    for name in ("heads", "detected", "detected-agg", "head_score"):
        best = [head for head, _ in read_ranked(detect_run.folder / f"{name}.json")[:10]]
        assert {(18, 6), (18, 7), (17, 3), (20, 6), (17, 4), (23, 2)} <= set(best), name
    assert (detect_run.folder / "detect_heatmap.png").stat().st_size > 10_000
    assert (detect_run.folder / "heatmap.png").stat().st_size > 10_000


def test_heads_of_a_text_of_ones_own_are_those_of_the_cell(detect_run: Outcome) -> None:
    own = json.loads((detect_run.cwd / "own.json").read_text(encoding="utf-8"))
    record = detect_run.records[own["cell"]]
    assert own["text"] == record.text
    assert record.heads is not None
    for how in ("said", "given"):  # the token that ends an answer is none of the needle's
        assert np.allclose(np.array(own[how]), np.array(record.heads["copy"]), atol=1e-6), how


def test_scores_lie_in_their_ranges_and_a_sample_says_how_it_was_traced(detect_run: Outcome) -> None:
    records = [record for record in detect_run.records.values() if record.kind == "detect"]
    assert len(records) == 10
    for record in records:
        assert record.heads is not None
        assert set(record.heads) == {"copy", "copy_reference", "mass", "query", "write"}
        for name, scores in record.heads.items():
            assert [len(row) for row in scores] == [9] * 30
            assert name == "write" or all(0 <= value <= 1 for row in scores for value in row)
        written = [value for row in record.heads["write"] for value in row]
        assert min(written) < 0 < max(written)
        assert record.replay is not None
        assert record.question_span is not None
        assert record.replay.cached_tokens <= record.question_span[0]
        replayed = record.replay.cached_tokens + record.replay.computed_tokens
        assert replayed == record.context_length + len(record.token_ids) - 1
    assert any(record.replay and record.replay.cached_tokens for record in records)


def test_in_bfloat16_heads_are_scored_as_answers_end_and_nothing_is_computed_again(tmp_path: Path) -> None:
    sweep = {"context_lengths": [448], "document_depths": {"min": 0, "max": 100, "intervals": 4}}
    write_yaml(tmp_path / "heads.yaml", {**DETECTED_SUITE, "sweep": sweep})
    write_yaml(tmp_path / "config.yaml", {"model": {**DETECTED_CONFIG["model"], "dtype": "bfloat16"}})
    run = finished(["heads.yaml", "--rh-config", "config.yaml"], tmp_path)
    assert run.exit_status == 0, run.output
    for record in run.records.values():
        assert record.heads is not None
        assert record.replay is not None
        assert record.replay.computed_tokens == 0
        assert record.replay.cached_tokens == record.context_length + len(record.token_ids) - 1
        assert record.engine_seconds is not None
        assert record.engine_seconds > record.replay.seconds > 0
    steps = np.load(run.folder / "steps.npz")
    assert len(steps.files) > 0


@pytest.mark.parametrize("suite", ["fresh", "again"])
def test_the_steps_of_answers_come_to_their_scores(detect_run: Outcome, stored_run: Outcome, suite: str) -> None:
    records = list(detect_run.records.values()) if suite == "fresh" else of_suite(stored_run, "again")
    file = detect_run.folder / "steps.npz" if suite == "fresh" else stored_run.folder / "steps-again.npz"
    by_cell, steps = {record.cell: record for record in records}, np.load(file)
    assert steps["layers"].tolist() == list(range(30))
    assert len(steps["cells"]) == {"fresh": 10, "again": 5}[suite]
    for number, cell in enumerate(steps["cells"].tolist()):
        copied, mass, heads = steps[f"copied.{number}"], steps[f"mass.{number}"], by_cell[cell].heads
        assert copied.shape == mass.shape == (len(by_cell[cell].token_ids), 30, 9)
        assert heads is not None
        spelled = by_cell[cell].steps
        assert spelled is not None
        assert "".join(spelled.answer).startswith(by_cell[cell].text.strip())
        assert "".join(spelled.needle).strip() == by_cell[cell].needle.strip()
        derived = figures_of(copied, mass, int(steps["needle_tokens"][number]))
        assert derived["copy_reference"].tolist() == heads["copy_reference"]
        assert derived["copy"].tolist() == heads["copy"]
        np.testing.assert_allclose(derived["mass"], heads["mass"], rtol=0, atol=1e-6)


def test_a_cell_beside_a_detection_is_answered_as_ever_and_has_no_heads(detect_run: Outcome) -> None:
    (record,) = (record for record in detect_run.records.values() if record.kind == "niah")
    assert record.passed
    assert record.heads is None
    layers = detect_run.facts["layers"]
    assert [layer["number"] for layer in layers] == list(range(30))
    assert {(layer["heads"], layer["kv_heads"]) for layer in layers} == {(9, 3)}
    assert layers[3]["path"] == "model.model.layers.3.self_attn.attn"


def test_stored_answers_get_the_scores_that_they_got_fresh(detect_run: Outcome, stored_run: Outcome) -> None:
    again = of_suite(stored_run, "again")
    assert len(again) == 5
    for record in again:
        fresh = detect_run.records[record.cell]
        assert record.token_ids == fresh.token_ids
        assert record.heads is not None
        assert fresh.heads is not None
        assert record.heads["copy"] == fresh.heads["copy"]
        for name in ("mass", "query"):
            for row, expected in zip(record.heads[name], fresh.heads[name], strict=True):
                assert row == pytest.approx(expected, abs=1e-4)


def test_the_predecessors_records_are_traced_from_their_own_prompt(detect_run: Outcome, stored_run: Outcome) -> None:
    records = of_suite(stored_run, "predecessor")
    assert len(records) == 3
    for record in records:
        (fresh,) = (
            one
            for one in detect_run.records.values()
            if one.kind == "detect"
            and (one.context_length, one.document_depth) == (record.context_length, record.document_depth)
        )
        assert record.heads is not None
        assert fresh.heads is not None
        assert "query" not in record.heads
        ours, theirs = (
            {(layer, head) for layer, row in enumerate(heads["copy"]) for head, value in enumerate(row) if value > 0.3}
            for heads in (record.heads, fresh.heads)
        )
        # Decoding and encoding again may cut a token at a seam otherwise; the heads are the same.
        assert len(ours & theirs) >= len(theirs) - 1
    assert (stored_run.folder / "detected-agg-predecessor.json").exists()


@pytest.mark.parametrize(
    ("place", "said"),
    [(0, "the haystack"), (1, "the prompt's wording or the model's chat template"), (2, "the tokenizer")],
)
def test_a_changed_prompt_is_named_and_refused(stored_run: Outcome, place: int, said: str) -> None:
    record = of_suite(stored_run, "changed")[place]
    assert record.status == "error"
    assert record.reason.startswith(said)
    assert "is not what the stored answer was given to" in record.reason
    assert record.heads is None


def test_an_answer_of_one_token_is_scored_on_one_row(stored_run: Outcome) -> None:
    record = of_suite(stored_run, "changed")[3]
    assert record.heads is not None
    assert record.replay is not None
    assert record.replay.cached_tokens + record.replay.computed_tokens == record.context_length


def test_kept_and_broken_expectations_are_told_apart(stored_run: Outcome) -> None:
    assert stored_run.exit_status == 1
    broken = [line for line in stored_run.output.splitlines() if line.startswith("broken:")]
    assert len(broken) == 1, stored_run.output
    assert "expected within the top 10: 0-0 is number" in broken[0]
    assert "99-0 is no head" in broken[0]
    assert len(read_records(stored_run.folder / "results.jsonl")) == 5 + 3 + 4 + 3


def test_every_run_shows_its_best_heads(detect_run: Outcome, stored_run: Outcome) -> None:
    for outcome, suites in ((detect_run, ["heads"]), (stored_run, ["again", "predecessor", "broken"])):
        for suite in suites:
            assert f"retrieval heads: {suite}" in outcome.output
    assert Path(stored_run.folder / "heads-again.json").exists()


@pytest.mark.long
def test_an_atlas_is_measured_again_from_its_card_with_the_same_hashes(
    detect_run: Outcome, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Alone, where the run that it is of had another suite beside it."""
    atlas = tmp_path / "atlas"
    main(["heads", "atlas", str(detect_run.folder), "--output", str(atlas)])
    shutil.copy(atlas / "suite.yaml", tmp_path / "suite.yaml")
    again = finished(["suite.yaml"], tmp_path)
    assert again.exit_status == 0, again.output
    assert {one.name for one in again.folder.iterdir()} >= {"heads.json", "steps.npz"}
    capsys.readouterr()
    main(["heads", "atlas", str(again.folder), "--check", str(atlas)])
    assert "all 7 files are what" in capsys.readouterr().out
    files = json.loads((atlas / "atlas.json").read_text(encoding="utf-8"))["files"]
    main(["heads", "atlas", str(again.folder), "--output", str(tmp_path / "other")])
    assert json.loads((tmp_path / "other" / "atlas.json").read_text(encoding="utf-8"))["files"] == files


def test_heads_are_gated_against_a_baseline(detect_run: Outcome, tmp_path: Path) -> None:
    """On the stored scores of the real run: `--rh-rescore` starts no engine."""
    shutil.copytree(detect_run.folder, tmp_path / "run")
    again = ["heads.yaml", "--rh-rescore", "--rh-run", "run"]
    ungated = {key: value for key, value in DETECTED_SUITE.items() if key != "expect"}
    write_yaml(tmp_path / "heads.yaml", ungated)

    saved = finished([*again, "--rh-save-baseline", "main"], tmp_path)
    write_yaml(tmp_path / "heads.yaml", {**ungated, "gates": ["head_spearman() >= 0.99", "head_overlap(10) >= 0.9"]})
    same = finished([*again, "--rh-baseline", "main"], tmp_path)
    baseline = tmp_path / "baselines/main.jsonl"
    header, *lines = baseline.read_text(encoding="utf-8").splitlines()
    changed = json.loads(header)
    changed["heads"]["heads"]["copy"] = [row[::-1] for row in changed["heads"]["heads"]["copy"]][::-1]
    baseline.write_text("\n".join([json.dumps(changed), *lines]) + "\n", encoding="utf-8")
    other = finished([*again, "--rh-baseline", "main"], tmp_path)

    assert saved.exit_status == 0, saved.output
    assert same.exit_status == 0, same.output
    assert "detect/heads: 270 heads: Spearman 1.000, overlap of the top 20 100%" in same.output
    assert other.exit_status == 1
    assert "FAIL detect/heads: head_spearman(copy) is " in other.output
    assert "FAIL detect/heads: head_overlap(10) is " in other.output
    assert not any("Initializing a V1 LLM engine" in run.output for run in (saved, same, other))

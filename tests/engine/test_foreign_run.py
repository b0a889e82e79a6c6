"""A task and a head score of another distribution on the real engine: records, head files, gates and pictures."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from conftest import ENVIRONMENT, MODEL, SMALL_CACHE, finished, write_yaml
from equal_runs import differences, read

pytestmark = pytest.mark.engine

TESTS = Path(__file__).parents[1]
POINTS = """\
[retrieval_heads.tasks]
sums = foreign_task:SUMS

[retrieval_heads.head_scores]
predecessor_mass = foreign_score:SCORE
"""
NEEDLE = {"needle": "The ferry to Oslo leaves at dawn.", "question": "When does the ferry to Oslo leave?"}
SUITES = {
    "sums": {
        "kind": "niah",
        "task": {"name": "sums", "terms": [2, 3]},
        "gates": ["mean over terms(seconds) <= 1000"],
        "verdict": "gates",
    },
    "tale": {
        "kind": "detect",
        "haystack": "pydoc",
        "needles": [NEEDLE],
        "sweep": {"context_lengths": [256], "document_depths": [0, 100]},
        "gates": ["mean(pass_rate) >= 0.5"],
        "verdict": "gates",
    },
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Runs both suites with that distribution installed; the run's folder."""

    @cache
    def made(is_real: bool) -> Path:
        folder = tmp_path_factory.mktemp("foreign")
        info = folder / "site" / "foreign_things-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: foreign-things\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(POINTS)
        for name, suite in SUITES.items():
            write_yaml(folder / f"{name}.yaml", suite)
        model = {"model": MODEL, "dtype": "float32", "max_model_len": 512, "enforce_eager": True, **SMALL_CACHE}
        write_yaml(folder / "config.yaml", {"model": model})
        paths = [str(info.parent), str(TESTS), str(TESTS / "foreign"), ENVIRONMENT.get("PYTHONPATH", "")]
        outcome = finished(
            ["sums.yaml", "tale.yaml", "--rh-config", "config.yaml", "--rh-report"],
            folder,
            is_real=is_real,
            PYTHONPATH=os.pathsep.join(filter(None, paths)),
        )
        assert outcome.exit_status == 0, outcome.output[-3000:]
        return outcome.folder

    return made


@pytest.mark.long
def test_copies_of_one_process_find_what_new_processes_do(run: Callable[..., Path]) -> None:
    """Session and engine; the answers of a copied pair of workers are compared in `test_run.py`."""
    copied, real = run(is_real=False), run(is_real=True)
    names = {"results.jsonl", "heads.json", "detected.json", "detected-agg.json", "head_score.json"}
    assert names <= {file.name for file in real.iterdir()}
    assert [found for name in names for found in differences(read(real / name), read(copied / name), name)] == []


def test_records_head_files_gates_and_pictures_know_them(run: Callable[..., Path]) -> None:
    folder = run(is_real=False)
    records = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert [record["axes"] for record in records if record.get("task") == "sums"] == [
        {"terms": 2, "digits": 1},
        {"terms": 3, "digits": 1},
    ]
    heads = json.loads((folder / "heads.json").read_text())
    assert heads["definitions"]["predecessor_mass"].startswith("attention weight on the token before")
    best = max(value for row in heads["scores"]["predecessor_mass"]["mean"] for value in row)
    assert 0.5 < best <= 1, "some head of any trained model looks at the token before"
    gates = json.loads((folder / "gates.json").read_text())["gates"]
    assert {(gate["suite"], gate["gate"]) for gate in gates} == {
        ("niah/sums", "mean over terms(seconds) <= 1000"),
        ("detect/tale", "mean(pass_rate) >= 0.5"),
    }
    assert (folder / "heatmap.png").exists() or list(folder.glob("heatmap*.png"))
    page = (folder / "report.html").read_text()
    assert "predecessor (token before)" in page or "predecessor_mass" in page

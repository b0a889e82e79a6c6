"""A task and a head score of another distribution on the real engine: records, head files, gates and pictures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

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


def test_records_head_files_gates_and_pictures_know_them(tmp_path: Path) -> None:
    info = tmp_path / "site" / "foreign_things-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: foreign-things\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(POINTS)
    for name, suite in SUITES.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(suite))
    model = {"model": "SmolLM2-135M-Instruct", "dtype": "float32", "max_model_len": 512, "enforce_eager": True}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"model": model}))
    paths = [str(info.parent), str(TESTS), str(TESTS / "foreign"), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "sums.yaml", "tale.yaml", "--rh-config", "config.yaml", "--rh-report"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    run = tmp_path / "reports" / "latest"
    records = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    assert [record["axes"] for record in records if record.get("task") == "sums"] == [
        {"terms": 2, "digits": 1},
        {"terms": 3, "digits": 1},
    ]
    heads = json.loads((run / "heads.json").read_text())
    assert heads["definitions"]["predecessor_mass"].startswith("attention weight on the token before")
    best = max(value for row in heads["scores"]["predecessor_mass"]["mean"] for value in row)
    assert 0.5 < best <= 1, "some head of any trained model looks at the token before"
    gates = json.loads((run / "gates.json").read_text())["gates"]
    assert {(gate["suite"], gate["gate"]) for gate in gates} == {
        ("niah/sums", "mean over terms(seconds) <= 1000"),
        ("detect/tale", "mean(pass_rate) >= 0.5"),
    }
    assert (run / "heatmap.png").exists() or list(run.glob("heatmap*.png"))
    page = (run / "report.html").read_text()
    assert "predecessor (token before)" in page or "predecessor_mass" in page

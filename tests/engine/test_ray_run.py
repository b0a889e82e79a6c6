"""A detection on two nodes of a Ray cluster, of which one is killed in mid-run: in float32 it is one engine's."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from conftest import DETECTED_CONFIG, PATIENCE, detection, engine_forks, started, write_yaml
from forks import ADDRESS
from ray_nodes import Nodes, ray_nodes

if TYPE_CHECKING:
    from conftest import Outcome

pytest.importorskip("ray", reason="the extra ray is not installed")
pytestmark = [pytest.mark.engine, pytest.mark.long]

# Whatever a node starts is a copy, as what the tests themselves start: importing vLLM takes 8 s of a processor.
COPIES = "import subprocess, forks; subprocess.Popen = forks.Popen"


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    folder = tmp_path_factory.mktemp("nodes")
    (folder / "sitecustomize.py").write_text(COPIES)
    paths = [str(folder), str(Path(__file__).parents[1]), *sys.path]
    with ray_nodes(
        2, {**os.environ, ADDRESS: engine_forks().address, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    ) as found:
        yield found


@pytest.fixture(scope="module")
def outcome(nodes: Nodes, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The run. Each engine answers two cells at a time, so that the one that is killed has some left."""
    folder = tmp_path_factory.mktemp("ray")
    engine = {"kind": "ray", "replicas": 2, "address": nodes.address, "place_limit": PATIENCE}
    model = {**DETECTED_CONFIG["model"], "max_num_seqs": 2}
    config = write_yaml(folder / "config.yaml", {"model": model, "engine": engine})
    with started([*detection(folder), "--rh-config", str(config)], folder) as run:
        give_up = time.monotonic() + PATIENCE
        while not any(file.read_bytes() for file in folder.glob("reports/latest/results.jsonl")):
            assert run.process.poll() is None, (folder / "output.txt").read_text()
            assert time.monotonic() < give_up
            time.sleep(0.05)
        nodes.kill()
        return run.finish()


def test_every_cell_is_answered_once_and_says_where_it_was_lost(outcome: Outcome) -> None:
    assert outcome.exit_status == 0, outcome.output
    assert (outcome.facts["replicas"], len(outcome.facts["devices"])) == (2, 2)
    lines = (outcome.folder / "results.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(outcome.records) == 11
    lost = {record.lost_replica for record in outcome.records.values()}
    assert None in lost
    (said,) = lost - {None}
    assert said is not None
    again = sum(record.lost_replica == said for record in outcome.records.values())
    assert f"{again} of 11 cells were asked again: {said}" in outcome.output
    assert outcome.left == []


def test_answers_and_heads_are_those_of_one_engine(outcome: Outcome, detect_run: Outcome) -> None:
    assert outcome.records.keys() == detect_run.records.keys()
    for name, alone in detect_run.records.items():
        record = outcome.records[name]
        assert (record.token_ids, record.text, record.needle_span) == (
            alone.token_ids,
            alone.text,
            alone.needle_span,
        )
        assert record.recipe == alone.recipe
        if alone.heads is None:
            assert record.heads is None
            continue
        assert record.heads is not None
        assert record.heads.keys() == alone.heads.keys()
        for score, layers in alone.heads.items():
            ours = np.concatenate([np.array(layer) for layer in record.heads[score]])
            theirs = np.concatenate([np.array(layer) for layer in layers])
            np.testing.assert_allclose(ours, theirs, atol=1e-5, err_msg=f"{name} {score}")

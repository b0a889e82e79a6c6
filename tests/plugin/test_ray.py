"""Replicas that Ray places: as one engine to whoever asks, and what becomes of a run when the cluster lets it down."""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from project import PATHS, Project, finished, until

from forks import ADDRESS, Server
from ray_nodes import Nodes, ray_nodes

pytest.importorskip("ray", reason="the extra ray is not installed")

SECRET = "hf_abcdefghijklmnop"
PATIENCE = 250
"""Seconds; below those in which `Project.run` ends a session."""

COPIES = "import subprocess, forks; subprocess.Popen = forks.Popen"
"""Engines on the nodes are copies, as they are elsewhere in these tests."""


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory, forks: Server) -> Iterator[Nodes]:
    """Two nodes without a GPU."""
    folder = tmp_path_factory.mktemp("nodes")
    (folder / "sitecustomize.py").write_text(COPIES)
    tests = str(Path(__file__).parents[1])
    paths = os.pathsep.join(filter(None, [str(folder), tests, PATHS, os.environ.get("PYTHONPATH", "")]))
    with ray_nodes(2, {**os.environ, "PYTHONPATH": paths, ADDRESS: forks.address}) as found:
        yield found


@pytest.fixture
def two(project: Project, nodes: Nodes) -> Project:
    """A replica on each of two nodes."""
    project.suite(sweep={"context_lengths": [128, 256], "document_depths": [0, 50, 100], "seeds": [0, 7]})
    engine = {"kind": "ray", "replicas": 2, "address": nodes.address, "gpus": 0, "place_limit": PATIENCE}
    project.write("config.yaml", {"model": {"model": "toy", "hf_token": SECRET}, "engine": engine})
    return project


@contextmanager
def killing(now: Callable[[], bool]) -> Iterator[None]:
    """Meanwhile an actor is killed, once something is so."""

    def kill() -> None:
        until(now, PATIENCE)
        time.sleep(0.2)  # what it has answered has reached the one in front
        every = psutil.Process().children(recursive=True)
        next(one for one in every if one.name().startswith("ray::EngineActor")).kill()

    killer = threading.Thread(target=kill)
    killer.start()
    yield
    killer.join()


def told(project: Project) -> dict[str, tuple[Any, ...]]:
    """What one engine and two must give alike."""
    return {
        one.cell: (one.request, one.text, one.scores, one.status, one.recipe, one.mask, one.heads)
        for one in project.records()
    }


def test_answers_are_those_of_one_engine_and_no_secret_is_written(two: Project, nodes: Nodes) -> None:
    two.behave(served="served", says=["model"])
    result = two.run("-k", "seed_0")
    result.assert_outcomes(passed=6, deselected=6)
    result.stdout.fnmatch_lines(["rh: 2 replicas of toy are ready in *"])
    facts = two.facts()
    assert (facts["replicas"], len(facts["devices"])) == (2, 2)
    assert all(device.startswith("no device, node ") for device in facts["devices"])
    assert facts["prompt_tokens"] == sum(record.prompt_tokens or 0 for record in two.records())
    (two.path / "served").unlink()
    two.run("--rh-resume").assert_outcomes(passed=12)
    asked = (two.path / "served").read_text().splitlines()
    assert len(asked) == 6
    assert all("seed_7" in line for line in asked)
    folder, found = two.latest.resolve(), told(two)
    assert [(folder / f"engine-{number}.log").read_text().count("told ") for number in (1, 2)] == [2, 2]
    written = [path for path in (*folder.rglob("*"), *nodes.logs.rglob("*")) if path.is_file()]
    assert any(path.name.startswith("worker-") for path in written)
    assert not [path for path in written if SECRET.encode() in path.read_bytes()]
    two.write("config.yaml", {"model": {"model": "toy"}})
    two.run().assert_outcomes(passed=12)
    assert told(two) == found


class TestEnds:
    def test_cells_of_a_lost_actor_are_asked_elsewhere(self, two: Project) -> None:
        two.behave(delay=0.3)
        with killing(lambda: finished(two) >= 2):
            result = two.run()
        result.assert_outcomes(passed=12)
        records = two.records()
        assert len(records) == len({record.cell for record in records}) == 12
        again = Counter(record.lost_replica for record in records if record.lost_replica)
        ((lost, count),) = again.items()
        assert re.fullmatch(r"replica [12] of 2 was lost with its actor on node [0-9.]+", lost)
        assert count < 12
        result.stdout.fnmatch_lines([f"{count} of 12 cells were asked again: {lost}"])

    def test_the_only_one_is_placed_again_and_once(self, two: Project) -> None:
        two.behave(delay=0.3)
        with (
            killing(lambda: finished(two) >= 2),
            killing(lambda: len(two.starts) == 2 and finished(two) >= 5),
        ):
            result = two.run("--rh-set", "engine.replicas=1")
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        records = [record for record in two.records() if record.status == "pass"]
        assert 5 <= len(records) == len({record.cell for record in records}) < 12
        assert any(record.lost_replica for record in records)
        assert not all(record.lost_replica for record in records)
        assert len(two.starts) == 2
        result.stdout.fnmatch_lines(
            ["rh: the engine failed: replica 1 of 1 was lost with its actor on node *, and did not come back: *"]
        )
        result.stdout.no_fnmatch_line("*Traceback*")

    def test_an_actor_that_dies_at_its_start(self, two: Project) -> None:
        two.behave(start_seconds=3600)
        with killing(lambda: len(two.starts) == 1):
            result = two.run("--rh-set", "engine.replicas=1")
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        result.stdout.fnmatch_lines(
            ["rh: the engine did not start: replica 1 of 1 did not start: its actor on node * died (*)"]
        )

    def test_an_engine_that_dies_on_its_node_ends_the_run(self, two: Project) -> None:
        two.behave(die_after=2)
        result = two.run("--rh-set", "engine.replicas=1")
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        result.stdout.fnmatch_lines(["rh: the engine failed: replica 1 of 1 ended by signal SIGKILL"])

    def test_an_engine_that_does_not_start_shows_its_last_words(self, two: Project) -> None:
        two.behave(crash=True)
        result = two.run("--rh-set", "engine.replicas=1")
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        result.stdout.fnmatch_lines(
            [
                "rh: the engine did not start: replica 1 of 1 did not start: ended by signal SIGKILL",
                "*last lines of *engine-1.log:",
                "*the last words of the engine",
            ]
        )


ROOM = "within 1 s (engine.place_limit); the cluster's nodes have 0 GPU and 2 CPU together, 2 of them"


class TestFaults:
    @pytest.mark.parametrize(
        ("setting", "sentence"),
        [
            ("engine.cpus=2", f"engine.replicas: Ray placed 0 of 2 replicas of 0 GPU and 2 CPU each {ROOM}"),
            (
                "engine.gpus=1",
                f"engine.replicas: Ray placed 0 of 2 replicas of 1 GPU and 1 CPU each {ROOM}; "
                "engine.gpus: 0 is for vLLM's CPU build",
            ),
            ("engine.address=127.0.0.1:1", "engine.address: there is no Ray cluster at 127.0.0.1:1 (*)"),
        ],
    )
    def test_each_is_one_sentence(self, two: Project, setting: str, sentence: str) -> None:
        result = two.run("--rh-set", setting, "--rh-set", "engine.place_limit=1")
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        result.stdout.fnmatch_lines([f"rh: the engine did not start: {sentence}"])
        result.stdout.no_fnmatch_line("*Traceback*")

    def test_without_ray(self, two: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "ray", None)
        result = two.run()
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        result.stdout.fnmatch_lines(
            [
                "rh: the engine did not start: engine.kind: ray needs ray, which is not installed; "
                "pip install 'pytest-retrieval-heads[[]ray]'"
            ]
        )

"""Several engines behind one: nobody can tell them apart by what they answer, and none outlives the others."""

from __future__ import annotations

import os
import signal
from collections import Counter
from typing import Any

import psutil
import pytest
from project import Project, finished, is_gone, until

TWO = {"model": {"model": "toy"}, "engine": {"replicas": "auto"}}


@pytest.fixture
def two(project: Project) -> Project:
    """Two replicas, each on a GPU of its own."""
    project.suite(sweep={"context_lengths": [128, 256], "document_depths": [0, 50, 100], "seeds": [0, 7]})
    project.write("config.yaml", TWO)
    project.behave(gpus=["3", "5"], served="served")
    return project


def served(project: Project) -> dict[str, str]:
    """The GPU on which each cell was asked."""
    lines = [line for line in (project.path / "served").read_text().splitlines() if "\task " not in line]
    assert len({line.partition("\t")[2] for line in lines}) == len(lines), "a cell was asked twice"
    return {cell: gpu for gpu, cell in (line.split("\t") for line in lines)}


def told(project: Project) -> dict[str, tuple[Any, ...]]:
    """What one engine and two must give alike."""
    return {
        one.cell: (one.request, one.text, one.scores, one.status, one.recipe, one.mask, one.heads)
        for one in project.records()
    }


class TestAsking:
    def test_each_cell_is_asked_once_and_answered_as_by_one_engine(self, two: Project, workers: list[str]) -> None:
        result = two.run(*workers)
        result.assert_outcomes(passed=12)
        result.stdout.fnmatch_lines(["rh: 2 replicas of toy are ready in *"])
        assert Counter(served(two).values()) == {"3": 6, "5": 6}
        assert len(two.starts) == 3
        found = told(two)
        two.run("--rh-set", "engine.replicas=1").assert_outcomes(passed=12)
        assert len(two.starts) == 4
        assert told(two) == found

    def test_cells_of_one_seed_are_asked_on_one_gpu(self, two: Project) -> None:
        two.run().assert_outcomes(passed=12)
        gpus = {(request.partition("seed_")[2][0], gpu) for request, gpu in served(two).items()}
        assert len(gpus) == 2

    def test_one_seed_uses_both(self, two: Project) -> None:
        two.run("--rh-set", "sweep.seeds=[0]").assert_outcomes(passed=6)
        assert set(served(two).values()) == {"3", "5"}

    def test_run_json_tells_the_replicas_and_their_devices(self, two: Project) -> None:
        two.run()
        facts = two.facts()
        assert (facts["replicas"], facts["devices"]) == (2, ["no device, GPU 3", "no device, GPU 5"])
        assert facts["prompt_tokens"] == sum(record.prompt_tokens or 0 for record in two.records())
        assert {"engine.log", "engine-1.log", "engine-2.log"} <= {path.name for path in two.latest.resolve().iterdir()}

    def test_tensor_parallel_engines_get_as_many_gpus_each(self, two: Project) -> None:
        two.behave(gpus=["0", "1", "2", "3", "4"], served="served")
        two.run("--rh-set", "model.tensor_parallel_size=2").assert_outcomes(passed=12)
        assert set(served(two).values()) == {"0,1", "2,3"}

    @pytest.mark.parametrize("gpus", [None, ["0"]])
    def test_auto_is_one_engine_where_there_is_no_second_gpu(self, two: Project, gpus: list[str] | None) -> None:
        two.behave(gpus=gpus)
        two.run().assert_outcomes(passed=12)
        assert len(two.starts) == 1
        assert "replicas" not in two.facts()

    def test_on_a_cpu_each_keeps_to_its_own_cores(self, two: Project) -> None:
        two.behave()
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) < 2:
            pytest.skip("one core cannot be shared out")
        two.run("--rh-set", "engine.replicas=2").assert_outcomes(passed=12)
        named = [device.removeprefix("no device, core ").split(",") for device in two.facts()["devices"]]
        assert sorted(int(core) for share in named for core in share) == cores

    def test_a_resumed_run_asks_only_what_is_missing(self, two: Project) -> None:
        two.run("-k", "seed_0").assert_outcomes(passed=6, deselected=6)
        (two.path / "served").unlink()
        two.run("--rh-resume").assert_outcomes(passed=12)
        missing = served(two)
        assert len(missing) == 6
        assert all("seed_7" in request for request in missing)
        assert set(missing.values()) == {"3", "5"}

    def test_a_users_own_test_asks_and_counts(self, two: Project) -> None:
        two.pytester.makepyfile(
            test_mine="""
            import pytest

            from retrieval_heads.errors import EngineError

            def test_mine(rh_engine):
                assert rh_engine.ask("The ferry to Oslo leaves at dawn. When?").text.endswith("dawn.")
                with pytest.raises(EngineError, match="no such sampling parameter"):
                    rh_engine.ask("When?", temprature=1)
                counted = rh_engine.counters()
                assert counted.submitted == 14
                assert counted.finished >= 2
            """
        )
        two.run("test_mine.py").assert_outcomes(passed=13)


class TestHeads:
    def test_what_a_detection_finds_is_masked_on_either(self, two: Project) -> None:
        sweep = {"context_lengths": [128, 256], "document_depths": [0, 100]}
        two.suite("find", kind="detect", sweep=sweep)
        two.suite("cut", kind="ablate", sweep=sweep, ablate={"heads": "detect/find", "top": [2], "draws": 2})
        two.behave(gpus=["3", "5"], retrieval_heads=[[1, 0], [2, 3]], served="served")
        two.run("--rh-report").assert_outcomes(passed=12 + 4 + 4 + 8, xfailed=4)
        found = told(two)
        masked = {gpu for request, gpu in served(two).items() if "top_2" in request or "random_2" in request}
        assert masked == {"3", "5"}
        (two.path / "served").unlink()
        two.run("--rh-set", "engine.replicas=1").assert_outcomes(passed=12 + 4 + 4 + 8, xfailed=4)
        assert told(two) == found

    def test_no_heads_found_is_told_by_every_masked_cell(self, two: Project) -> None:
        two.suite("tale", kind="detect", sweep={"context_lengths": [128], "document_depths": [0]})
        two.suite(
            "cut",
            kind="ablate",
            sweep={"context_lengths": [256], "document_depths": [0]},
            ablate={"heads": "detect/tale", "top": [2], "draws": 1},
        )
        two.behave(gpus=["3", "5"], wrong_lengths=[128], retrieval_heads=[[1, 0]])
        result = two.run()
        reasons = {record.arm: record.reason for record in two.records() if record.kind == "ablate"}
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        assert reasons[""] == ""
        assert "none of the 1 samples retrieved its needle" in reasons["top_2"]
        assert reasons["top_2"] == reasons["random_2_draw_1"]

    def test_controls_with_means_are_asked_where_these_were_measured(self, two: Project) -> None:
        ablate = {"heads": [[1, 0]], "top": [1], "draws": 1, "mode": "mean"}
        two.suite("tale", kind="ablate", sweep={"context_lengths": [128], "document_depths": [0]}, ablate=ablate)
        result = two.run("-k", "none or top_1")
        result.assert_outcomes(passed=2, deselected=1)
        assert len(set(served(two).values())) == 2
        result.stdout.fnmatch_lines(["*none * 7.4 * 0.00", "*top_1 * 7.4 * 0.00"])


class TestEnds:
    def test_one_that_refuses_is_told_once(self, two: Project, workers: list[str]) -> None:
        two.behave(gpus=["3", "5"], bad_gpu="5", fail="CUDA out of memory")
        result = two.run(*workers)
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        assert result.parseoutcomes().keys() == {"errors"}
        said = [line for line in result.outlines if line.startswith("rh: ") and "CUDA out of memory" in line]
        assert said == ["rh: the engine did not start: replica 2 of 2 did not start: CUDA out of memory"]
        result.stdout.no_fnmatch_line("*Traceback*")

    def test_one_that_crashes_shows_its_last_words(self, two: Project) -> None:
        two.behave(gpus=["3", "5"], bad_gpu="3", crash=True)
        result = two.run()
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        result.stdout.fnmatch_lines(
            [
                "rh: the engine did not start: replica 1 of 2 did not start: ended by signal SIGKILL",
                "*last lines of *engine-1.log:",
                "*the last words of the engine",
            ]
        )

    def test_one_that_is_killed_ends_the_run(self, two: Project, workers: list[str]) -> None:
        two.behave(gpus=["3", "5"], bad_gpu="5", die_after=2)
        result = two.run(*workers)
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        outcomes = result.parseoutcomes()
        assert outcomes["errors"] >= 1
        assert 2 <= len(two.records()) == outcomes["passed"] <= 8
        result.stdout.fnmatch_lines(["rh: the engine failed: replica 2 of 2 ended by signal SIGKILL"])
        result.stdout.no_fnmatch_line("*Traceback*")

    def test_one_whose_step_fails_shows_its_log(self, two: Project) -> None:
        two.behave(gpus=["3", "5"], bad_gpu="5", fail_after=2)
        result = two.run()
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        result.stdout.fnmatch_lines(
            [
                "the engine failed: replica 2 of 2 failed: RuntimeError: the stand-in's step fails",
                "*last lines of *engine-2.log:",
            ]
        )

    @pytest.mark.parametrize("victim", ["pytest", "router"])
    def test_kill_9_of_whoever_launched_them_leaves_none(self, two: Project, victim: str) -> None:
        two.behave(gpus=["3", "5"], delay=0.5)
        process = two.popen()
        until(lambda: finished(two) >= 1)
        (router,) = psutil.Process(process.pid).children()
        assert sorted(one.pid for one in router.children()) == sorted(set(two.starts) - {router.pid})
        os.kill(process.pid if victim == "pytest" else router.pid, signal.SIGKILL)
        assert all(is_gone(one) for one in two.starts)
        process.wait(timeout=300)
        assert process.returncode == (-signal.SIGKILL if victim == "pytest" else pytest.ExitCode.TESTS_FAILED)

    def test_kill_9_while_they_start_leaves_none(self, two: Project) -> None:
        two.behave(gpus=["3", "5"], start_seconds=3600)
        process = two.popen()
        until(lambda: len(two.starts) == 3)
        process.kill()
        process.wait()
        assert all(is_gone(one) for one in two.starts)


class TestMistakes:
    @pytest.mark.parametrize(
        ("gpus", "sets", "sentence"),
        [
            (
                ["0", "1"],
                ["engine.replicas=3"],
                "engine.replicas: 3 replicas of 1 GPU need 3, and 2 GPUs can be seen",
            ),
            (
                ["0", "1", "2"],
                ["engine.replicas=2", "model.tensor_parallel_size=2"],
                "engine.replicas: 2 replicas of 2 GPUs need 4, and 3 GPUs can be seen",
            ),
            (None, ["engine.replicas=999"], "engine.replicas: 999 replicas need a core each, and * can be used"),
        ],
    )
    def test_more_than_there_is_room_for(
        self, two: Project, gpus: list[str] | None, sets: list[str], sentence: str
    ) -> None:
        two.behave(gpus=gpus)
        result = two.run(*(part for one in sets for part in ("--rh-set", one)))
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        result.stdout.fnmatch_lines([f"rh: the engine did not start: {sentence}"])
        result.stdout.no_fnmatch_line("*Traceback*")

    def test_suites_that_name_different_numbers(self, two: Project) -> None:
        two.write("config.yaml", {"model": {"model": "toy"}})
        two.suite("other", engine={"replicas": 2})
        result = two.run()
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stdout.fnmatch_lines(["*niah/other, niah/tale name different engine.replicas; one run has one engine*"])

"""A warm engine: started once, asked by every run that needs one like it, and gone when its time is up."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from project import Project, finished, is_gone, until

from retrieval_heads.cli import main
from retrieval_heads.engine.client import EngineClient
from retrieval_heads.engine.warm import Warm, warm_engines

TELLING = """
import pathlib, sys

def pytest_unconfigure(config):
    pathlib.Path("modules").write_text(" ".join(sys.modules))
"""
ONE = {"context_lengths": [128], "document_depths": [50]}


@pytest.fixture
def warm(
    project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Project]:
    """A project in which warm engines are nobody else's, and gone at the end."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:  # the path of a socket must be short
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", None)
        monkeypatch.setenv("RH_CACHE", str(tmp_path_factory.mktemp("cache")))
        project.suite(sweep=ONE)
        project.behave(asked="asked")
        yield project
        for engine in warm_engines():
            assert engine.stop()


def the_one() -> Warm:
    (found,) = warm_engines()
    return found


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What `retrieval-heads engine ...` prints; where it fails, its sentence and status."""
    capsys.readouterr()
    try:
        main(["engine", *arguments])
    except SystemExit as end:
        return f"{capsys.readouterr().out}{end.code}"
    return capsys.readouterr().out


class TestKeep:
    def test_the_first_run_starts_it_and_later_ones_ask_it(self, warm: Project, workers: list[str]) -> None:
        first = warm.run("--rh-engine", "keep", *workers)
        first.assert_outcomes(passed=1)
        first.stdout.fnmatch_lines(["*1 cells of niah/tale; starting an engine that stays, log *"])
        second = warm.run(*workers)
        second.assert_outcomes(passed=1)
        second.stdout.fnmatch_lines(["*asking the warm engine of toy (process *", "*toy is ready in *"])
        third = warm.run("--rh-engine", "keep")
        third.assert_outcomes(passed=1)
        assert len(warm.starts) == 1
        assert warm.facts()["warm_engine"]["process"] == the_one().process
        assert warm.facts()["status"] == "finished"
        assert f"its log is {the_one().log}" in (warm.latest / "engine.log").read_text()

    def test_without_it_an_engine_ends_with_its_run(self, warm: Project) -> None:
        warm.run()
        assert warm_engines() == []
        assert is_gone(warm.starts[0])

    def test_a_run_may_refuse_it(self, warm: Project) -> None:
        warm.run("--rh-engine", "keep")
        warm.run("--rh-engine", "own").stdout.no_fnmatch_line("*warm*")
        assert len(warm.starts) == 2

    def test_what_a_run_asked_is_its_own(self, warm: Project) -> None:
        """The same cells, another question: each run gets the answer to its own."""
        warm.run("--rh-engine", "keep")
        again = warm.run("--rh-set", "boundary=token", "--rh-set", "generation.max_tokens=9")
        again.assert_outcomes(passed=1)
        recipe = warm.records()[0].recipe
        assert recipe is not None
        assert (recipe.boundary, recipe.sampling) == ("token", {"max_tokens": 9, "temperature": 0.0})
        assert (warm.path / "asked").read_text() == "2"

    def test_a_users_own_test_asks_it(self, warm: Project) -> None:
        warm.pytester.makepyfile(
            test_own="""
            def test_own(rh_engine):
                assert "Oslo" in rh_engine.ask("The ferry to Oslo leaves at dawn.").text

            def test_by_name(request):
                assert request.getfixturevalue("rh_engine").ask("?").text
            """
        )
        for arguments in (["--rh-engine", "keep"], [], ["-n", "2"]):
            warm.run("test_own.py", *arguments, suites=False).assert_outcomes(passed=2)
        assert len(warm.starts) == 1

    def test_heads_are_found_and_masked_on_a_traced_one(self, warm: Project) -> None:
        warm.behave(retrieval_heads=[[1, 2]])
        detect = {"kind": "detect", "haystack": "tales", "sweep": ONE}
        suite = json.loads(json.dumps(detect))
        suite["needles"] = [{"needle": "The ferry to Oslo leaves at dawn.", "question": "When?"}]
        warm.write("suites/detect/tale.yaml", suite)
        ablate = {**suite, "kind": "ablate", "ablate": {"heads": "detect/tale", "top": [1]}}
        warm.write("suites/ablate/tale.yaml", ablate)
        for _ in range(2):
            result = warm.run("suites/detect", "suites/ablate", "--rh-engine", "keep", suites=False)
            assert result.parseoutcomes().get("errors", 0) == 0
            assert json.loads((warm.latest / "heads.json").read_text()) if (warm.latest / "heads.json").exists() else 1
        assert len(warm.starts) == 1

    def test_an_edited_haystack_is_read_again(self, warm: Project) -> None:
        warm.run("--rh-engine", "keep")
        before = warm.records()[0].recipe
        tale = warm.path / "tales/a.txt"
        tale.write_text(tale.read_text().replace("boat", "ship"))
        warm.run()
        after = warm.records()[0].recipe
        assert before is not None
        assert after is not None
        assert before.hash != after.hash

    def test_a_run_that_is_resumed_takes_what_is_the_same(self, warm: Project) -> None:
        warm.run("--rh-engine", "keep")
        result = warm.run("--rh-resume")
        result.stdout.fnmatch_lines(["1 of 1 answers are those of the earlier run"])
        warm.run("--rh-resume", "--rh-set", "boundary=token").stdout.fnmatch_lines(["*1 answer was asked again: *"])
        assert (warm.path / "asked").read_text() == "2"

    def test_a_start_that_fails_is_told_with_the_last_lines_of_its_log(self, warm: Project) -> None:
        warm.behave(fail="no memory", says=["HOME"])
        result = warm.run("--rh-engine", "keep")
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        result.stdout.fnmatch_lines(["*rh: the engine did not start: no memory", "*last lines of *.log:"])
        assert warm_engines() == []

    def test_two_runs_at_once_start_one_and_share_it(self, warm: Project) -> None:
        warm.behave(start_seconds=1, asked="asked")
        runs = [warm.popen("--rh-engine", "keep", "--rh-set", f"output_dir=run-{number}") for number in range(2)]
        assert [run.wait(120) for run in runs] == [0, 0]
        assert len(warm.starts) == 1
        assert (warm.path / "asked").read_text() == "2"

    def test_a_run_that_asks_it_imports_nothing_heavy(self, warm: Project) -> None:
        """It would be waited for by every run: seconds, where the answers take tenths of one."""
        warm.write("telling.py", TELLING)
        warm.run("--rh-engine", "keep")
        asks = warm.popen("-p", "telling", "-p", "no:xdist")
        assert asks.wait(120) == 0
        assert "asking the warm engine" in (warm.path / "printed").read_text()
        modules = set((warm.path / "modules").read_text().split())
        assert "simplemma" in modules, "the answer was judged"
        # numpy is the stand-in engine's own; of a model that is no folder the hub's library tells the length.
        heavy = {"torch", "vllm", "transformers", "scipy", "matplotlib", "nltk", "openai"}
        assert not modules & (heavy | {"retrieval_heads.plots", "tyro"})


class TestUnlike:
    @pytest.mark.parametrize(
        ("setting", "told"),
        [
            ("model.dtype=float16", "model.dtype: none there, float16 here"),
            ("model.model=other", "model.model: toy there, other here"),
            ("engine.replicas=2", "engine.replicas: 1 there, 2 here"),
        ],
    )
    def test_the_key_that_differs_is_told_and_it_is_not_used(self, warm: Project, setting: str, told: str) -> None:
        warm.run("--rh-engine", "keep")
        result = warm.run("--rh-set", setting)
        result.assert_outcomes(passed=1)
        result.stdout.fnmatch_lines(
            [f"*the warm engine of toy (process *) is not used: {told}", "*starting the engine*"]
        )

    def test_what_cannot_change_an_answer_but_says_how_to_wait_is_no_difference(self, warm: Project) -> None:
        warm.run("--rh-engine", "keep")
        warm.run("--rh-set", "engine.silence=77", "--rh-set", "engine.idle=50", "--rh-set", "verdict=none")
        assert len(warm.starts) == 1

    def test_a_plain_one_is_none_for_heads(self, warm: Project) -> None:
        warm.run("--rh-engine", "keep")
        suite = {"kind": "detect", "haystack": "tales", "sweep": ONE, "verdict": "none"}
        needle = {"needle": "The ferry to Oslo leaves at dawn.", "question": "When?"}
        warm.write("suites/detect/tale.yaml", {**suite, "needles": [needle]})
        result = warm.run("suites/detect", suites=False)
        result.stdout.fnmatch_lines(["*is not used: traced: false there, true here"])

    def test_the_environment_counts(self, warm: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        warm.run("--rh-engine", "keep")
        monkeypatch.setenv("VLLM_ATTENTION_BACKEND", "TRITON_ATTN")
        warm.run().stdout.fnmatch_lines(["*is not used: VLLM_ATTENTION_BACKEND: none there, TRITON_ATTN here"])

    def test_another_version_of_this_package_is_another(self, warm: Project) -> None:
        warm.run("--rh-engine", "keep")
        record = the_one().folder / "warm.json"
        record.write_text(record.read_text().replace('"package": "', '"package": "0.0.1 or '))
        warm.run().stdout.fnmatch_lines(["*is not used: package: 0.0.1 or * there, * here"])

    def test_a_file_that_changed_since_is_told_at_once_and_ends_it(self, warm: Project) -> None:
        model = warm.path / "model"
        model.mkdir()
        (model / "config.json").write_text("{}")
        (model / "model.safetensors").write_bytes(bytes(100))
        warm.write("config.yaml", {"model": {"model": "model"}})
        warm.run("--rh-engine", "keep")
        engine = the_one()
        (model / "model.safetensors").write_bytes(bytes(99))
        result = warm.run()
        result.stdout.fnmatch_lines(["*is not used: *model.safetensors has changed since it was read"])
        assert is_gone(engine.process)

    def test_a_gpu_that_it_holds_is_told_before_anything_is_loaded(
        self, warm: Project, capsys: pytest.CaptureFixture[str]
    ) -> None:
        warm.behave(gpus=["0", "1"])
        warm.run("--rh-engine", "keep")
        told = "GPU 0 is held by the warm engine of toy (process *), 90% of its memory; `retrieval-heads engine stop`*"
        for arguments in ([], ["--rh-engine", "keep"]):
            result = warm.run("--rh-set", "model.dtype=float16", *arguments)
            result.assert_outcomes(errors=1)
            result.stdout.fnmatch_lines([f"*rh: the engine did not start: {told}"])
        assert len(warm.starts) == 1
        result = warm.run("--rh-set", "model.dtype=float16", "--rh-set", "model.gpu_memory_utilization=0.1")
        result.assert_outcomes(passed=1)
        status = command(capsys, "start", "--config", "config.yaml", "--set", "model.dtype=float16")
        assert "retrieval-heads: GPU 0 is held by the warm engine of toy" in status


class TestEnds:
    def test_its_time_is_up(self, warm: Project) -> None:
        warm.run("--rh-engine", "keep", "--rh-set", "engine.idle=0.5")
        assert is_gone(warm.starts[0])
        until(lambda: not warm_engines())

    def test_not_while_a_run_lasts(self, warm: Project) -> None:
        warm.suite(sweep={"context_lengths": [128], "document_depths": [0, 50, 100]})
        warm.behave(delay=0.7)
        warm.run("--rh-engine", "keep", "--rh-set", "engine.idle=0.3").assert_outcomes(passed=3)

    def test_the_config_asks_for_another(self, warm: Project) -> None:
        warm.run("--rh-engine", "keep")
        warm.write("config.yaml", {"model": {"model": "toy"}, "verdict": "none"})
        warm.run().assert_outcomes(passed=1)
        assert len(warm.starts) == 1, "nothing of the engine has changed"
        warm.write("config.yaml", {"model": {"model": "toy", "dtype": "float16"}})
        assert is_gone(warm.starts[0])

    def test_a_killed_keeper_leaves_nothing(self, warm: Project) -> None:
        warm.run("--rh-engine", "keep")
        folder = the_one().folder
        os.kill(the_one().process, signal.SIGKILL)
        assert is_gone(warm.starts[0])
        until(lambda: not warm_engines())
        warm.run("--rh-engine", "keep").assert_outcomes(passed=1)
        assert not folder.exists(), "the next one that is made sweeps it, socket and all"

    def test_a_killed_engine_is_not_asked(self, warm: Project) -> None:
        warm.run("--rh-engine", "keep")
        os.kill(warm.starts[0], signal.SIGKILL)
        until(lambda: not warm_engines())
        warm.run("--rh-engine", "keep").assert_outcomes(passed=1)
        assert len(warm.starts) == 2

    def test_what_a_killed_run_asked_is_dropped(self, warm: Project) -> None:
        warm.behave(delay=0.2, drops="drops")
        many = {"context_lengths": [128], "document_depths": {"min": 0, "max": 100, "intervals": 100}}
        warm.suite("long", sweep=many)
        long = warm.popen("--rh-engine", "keep", "-k", "long", "--rh-set", "output_dir=reports/latest")
        until(lambda: finished(warm) >= 2)
        os.killpg(long.pid, signal.SIGKILL)
        long.wait()
        client = EngineClient(the_one().address)
        until(lambda: not client.use().runs)
        client.close()
        until((warm.path / "drops").exists)
        dropped = (warm.path / "drops").read_text().splitlines()
        assert 0 < len(dropped) <= 16, "what was in flight; the rest never came that far"
        warm.run("-k", "tale", "--rh-set", "output_dir=other").assert_outcomes(passed=1, deselected=101)

    def test_a_short_run_is_not_kept_waiting_by_a_long_one(self, warm: Project) -> None:
        warm.behave(delay=0.2)
        many = {"context_lengths": [128], "document_depths": {"min": 0, "max": 100, "intervals": 100}}
        warm.suite("long", sweep=many)
        long = warm.popen("--rh-engine", "keep", "-k", "long", "--rh-set", "output_dir=reports/latest")
        until(lambda: finished(warm) >= 1)
        warm.run("-k", "tale", "--rh-set", "output_dir=other").assert_outcomes(passed=1, deselected=101)
        assert finished(warm) < 101
        (run,) = the_one().use().runs  # type: ignore[union-attr]
        assert run == f"process {long.pid} in {warm.path}"
        os.killpg(long.pid, signal.SIGTERM)
        long.wait()

    def test_memory_is_given_back_meanwhile(self, warm: Project, capsys: pytest.CaptureFixture[str]) -> None:
        warm.behave(sleeps="sleeps")
        warm.run("--rh-engine", "keep", "--rh-set", "engine.sleep=0.1")
        until((warm.path / "sleeps").exists)
        until(lambda: "asleep: 0.1 GiB are given back" in command(capsys, "status"))
        warm.run().assert_outcomes(passed=1)
        assert (warm.path / "sleeps").read_text().split()[:2] == ["asleep", "awake"]


class TestCommand:
    def test_start_status_stop(self, warm: Project, capsys: pytest.CaptureFixture[str]) -> None:
        started = command(capsys, "start", "--config", "config.yaml")
        assert "toy is ready in " in started
        assert "is there already" in command(capsys, "start", "--config", "config.yaml")
        warm.run().assert_outcomes(passed=1)
        assert len(warm.starts) == 1
        engine = the_one()
        status = command(capsys, "status")
        assert f"toy: process {engine.process}, plain, since " in status
        assert "  used by nobody for " in status
        assert f"  log {engine.log}" in status
        assert command(capsys, "stop") == f"the warm engine of toy (process {engine.process}) is stopped\n"
        assert is_gone(warm.starts[0])

    def test_where_there_is_none_it_says_so(self, warm: Project, capsys: pytest.CaptureFixture[str]) -> None:
        assert command(capsys, "stop") == "retrieval-heads: there is no warm engine"
        assert command(capsys, "status") == "retrieval-heads: there is no warm engine"
        assert command(capsys, "stop", "--process", "1") == "retrieval-heads: there is no warm engine of process 1"

    def test_a_start_that_fails_is_one_sentence(self, warm: Project, capsys: pytest.CaptureFixture[str]) -> None:
        warm.behave(fail="no memory")
        told = command(capsys, "start", "--config", "config.yaml")
        assert "retrieval-heads: the engine did not start: no memory" in told
        assert "names no model" in command(capsys, "start")

    def test_a_run_is_told_that_it_was_stopped(self, warm: Project, capsys: pytest.CaptureFixture[str]) -> None:
        warm.behave(delay=3600)
        run = warm.popen("--rh-engine", "keep")
        until(lambda: bool(warm_engines()) and bool(the_one().use().runs))  # type: ignore[union-attr]
        command(capsys, "stop")
        assert run.wait(120) == pytest.ExitCode.TESTS_FAILED
        assert "the engine was ended by `retrieval-heads engine stop`" in (warm.path / "printed").read_text()

    def test_nobody_else_can_reach_it(self, warm: Project, capsys: pytest.CaptureFixture[str]) -> None:
        command(capsys, "start", "--config", "config.yaml")
        folder = the_one().folder
        assert folder.stat().st_mode & 0o777 == 0o700
        assert {path.stat().st_mode & 0o077 for path in folder.iterdir()} == {0}
        folder.chmod(0o755)  # another's, or one that others can enter: it is not trusted
        assert warm_engines() == []
        assert "keeps one that nobody else can use" in command(capsys, "status")
        folder.chmod(0o700)


def test_a_start_that_nobody_waits_for_any_more_ends(warm: Project) -> None:
    warm.behave(start_seconds=3600)
    run = warm.popen("--rh-engine", "keep")
    until(lambda: bool(warm.starts))
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    assert is_gone(warm.starts[0])
    assert warm_engines() == []


def test_a_secret_is_in_no_file_of_it(warm: Project) -> None:
    secret = "hf_swordfish_of_nobody"
    warm.write("config.yaml", {"model": {"model": "toy", "hf_token": secret}})
    warm.behave(says=["model"])
    warm.run("--rh-engine", "keep").assert_outcomes(passed=1)
    engine = the_one()
    files = [*engine.folder.iterdir(), Path(engine.log)]
    assert all(secret.encode() not in file.read_bytes() for file in files if file.is_file())

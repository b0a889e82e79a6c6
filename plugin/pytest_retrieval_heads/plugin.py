"""The pytest plugin `rh`: options, fixtures and collection; everything else only once it is in play.

Loaded in every pytest session of whoever has it installed, so it imports nothing but pytest until a suite, a
config or a fixture asks for more. PYTEST_DONT_REWRITE: there is no assertion here to rewrite.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_retrieval_heads import hookspecs
from pytest_retrieval_heads.options import Options, add_options

if TYPE_CHECKING:
    from pytest_retrieval_heads.collect import SuiteFile
    from pytest_retrieval_heads.run import Run
    from retrieval_heads.engine.client import EngineClient
    from retrieval_heads.suites.settings import Settings


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Hooks of our own."""
    pluginmanager.add_hookspecs(hookspecs)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options, all prefixed `--rh-`."""
    add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers; come into play when a config or setting is given, or as xdist's controller."""
    for kind, arm in (("niah", ""), ("detect", ""), ("ablate", ", arm"), ("compress", ", arm")):
        config.addinivalue_line(
            "markers", f"{kind}(length, depth, needle, seed{arm}): a cell, set by its suite of that kind"
        )
    options = Options.of(config)
    is_controller = config.getoption("dist", "no") != "no" and not hasattr(config, "workerinput")
    if options.config_file or options.sets or options.is_compared or is_controller:
        run_of(config)


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> SuiteFile | None:
    """Collect YAML files that say they are a suite of ours."""
    if file_path.suffix.lower() not in (".yaml", ".yml"):
        return None
    config = parent.config
    paths = [Path(os.path.abspath(str(arg).partition("::")[0])) for arg in config.args]  # noqa: PTH100 - as pytest does
    # A file that the command line names is never passed over in silence. pytest offers its siblings too.
    is_named = file_path in paths
    # Without a config and without being asked for on the command line, a suite in somebody's tree is left alone.
    is_asked = config.args_source is pytest.Config.ArgsSource.ARGS and any(
        file_path.is_relative_to(one) for one in paths
    )
    if not (Options.of(config).config_file or is_asked):
        return None
    from retrieval_heads.suites.recognition import is_suite

    if is_named:
        return run_of(config).collect_file(parent, file_path)
    if not is_suite(file_path) or run_of(config).file.is_mere_config(file_path):
        return None
    return run_of(config).collect_file(parent, file_path)


def pytest_report_teststatus(report: pytest.CollectReport | pytest.TestReport) -> tuple[str, str, str] | None:
    """A cell that was not asked, since it was not needed, is none that passed."""
    record = getattr(report, "rh", None)
    if report.when == "call" and report.passed and record is not None and record["status"] == "spared":
        return "spared", "-", "SPARED"
    return None


@pytest.fixture(scope="session")
def rh_engine(request: pytest.FixtureRequest) -> EngineClient:
    """The run's one vLLM engine: `rh_engine.ask("...", max_tokens=16).text`."""
    from retrieval_heads.engine.client import EngineDied
    from retrieval_heads.errors import EngineError

    try:
        return run_of(request.config).engine()
    except EngineDied:
        raise  # the run says why, in as many words as are new
    except EngineError as error:
        pytest.fail(f"rh: {error}", pytrace=False)


@pytest.fixture(scope="session")
def rh_config(request: pytest.FixtureRequest) -> Settings:
    """The settings of `--rh-config` and `--rh-set`, resolved."""
    return run_of(request.config).settings


def run_of(config: pytest.Config) -> Run:
    """This session's run; made, and its hooks registered, on first use.

    Raises:
        pytest.UsageError: The config file or an override cannot be used.
    """
    from pytest_retrieval_heads.run import RUN, Run
    from retrieval_heads.errors import ConfigError
    from retrieval_heads.namesake import refuse_predecessor

    run = config.stash.get(RUN, None)
    if run is None:
        try:
            refuse_predecessor()
            run = Run(config)
        except ConfigError as error:
            raise pytest.UsageError(f"rh: {error}") from None
        config.stash[RUN] = run
        config.pluginmanager.register(run, "rh-run")
    return run

"""The pytest plugin `rh`: options, fixtures and collection; everything else only once it is in play.

Loaded in every pytest session of whoever has it installed, so it imports nothing but pytest until a suite, a
config or a fixture asks for more. PYTEST_DONT_REWRITE: there is no assertion here to rewrite.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_retrieval_heads.options import config_file

if TYPE_CHECKING:
    from pytest_retrieval_heads.collect import SuiteFile
    from pytest_retrieval_heads.run import Run
    from retrieval_heads.engine.client import EngineClient
    from retrieval_heads.suites.settings import Settings


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options, all prefixed `--rh-`."""
    group = parser.getgroup("rh", "retrieval heads: needle-in-a-haystack suites on vLLM")
    group.addoption(
        "--rh-config", metavar="FILE", help="YAML config: the model under test and what overrides the suites"
    )
    group.addoption(
        "--rh-set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="Override one setting, such as model.max_model_len=16384; may be given again",
    )
    group.addoption("--rh-report", action="store_true", help="Draw the pictures and report.html into the run's folder")
    group.addoption(
        "--rh-verdict",
        choices=["cell", "gates", "none"],
        help="What fails a run: a cell below its threshold, the gates and baseline, or nothing but errors",
    )
    group.addoption(
        "--rh-baseline",
        metavar="PATH-OR-NAME",
        help="Compare with an earlier run's folder, a results file, or a baseline saved under this name",
    )
    group.addoption(
        "--rh-max-drop",
        metavar="[[only:]NAME:]DROP",
        action="append",
        default=[],
        help="How far a score may fall below the baseline: 0.05, 5%%, rougeL_recall:0.05 beside the default scores, or "
        "only:rougeL_recall:0.05 in their place (default: 0.05)",
    )
    group.addoption(
        "--rh-inconclusive",
        choices=["fail", "warn"],
        default="fail",
        help="What a fall beyond the limit that noise can explain does to the run (default: fail)",
    )
    group.addoption(
        "--rh-allow-removed", action="store_true", help="Let go of the baseline's cells that the suites ask no more"
    )
    group.addoption(
        "--rh-allow-changed",
        action="store_true",
        help="Compare with, or score again, answers to a question that was changed since: text, wording, placement",
    )
    group.addoption("--rh-allow-new", action="store_true", help="Leave out cells that the baseline lacks")
    group.addoption(
        "--rh-save-baseline", metavar="NAME", help="Store the run as baselines/NAME.jsonl beside its suites"
    )
    group.addoption(
        "--rh-resume", action="store_true", help="Go on with the latest run: what it has answered is not asked again"
    )
    group.addoption(
        "--rh-rescore", action="store_true", help="Score the latest run's stored answers again, without an engine"
    )
    group.addoption("--rh-run", metavar="DIR", help="The run for --rh-resume and --rh-rescore, where not the latest")
    parser.addini("rh_config", "Config file to use where --rh-config is not given", default="")
    parser.addini(
        "rh_no_model", "What a test that needs a model is where none is named: error (default) or skip", default="error"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers; come into play when a config or setting is given, or as xdist's controller."""
    for kind, arm in (("niah", ""), ("detect", ""), ("ablate", ", arm")):
        config.addinivalue_line(
            "markers", f"{kind}(length, depth, needle, seed{arm}): a cell, set by its suite of that kind"
        )
    for name in ("config", "baseline", "save_baseline", "run"):
        _refuse_empty(f"--rh-{name.replace('_', '-')}", config.getoption(f"rh_{name}"))
    for name in ("set", "max_drop"):
        for value in config.getoption(f"rh_{name}"):
            _refuse_empty(f"--rh-{name.replace('_', '-')}", value)
    if (no_model := config.getini("rh_no_model")) not in ("error", "skip"):
        raise pytest.UsageError(f"rh: rh_no_model: 'error' or 'skip' is expected in the ini file, found {no_model!r}")
    is_controller = config.getoption("dist", "no") != "no" and not hasattr(config, "workerinput")
    is_compared = config.getoption("rh_baseline") or config.getoption("rh_save_baseline")
    if config_file(config) or config.getoption("rh_set") or is_compared or is_controller:
        run_of(config)


def _refuse_empty(option: str, value: str | None) -> None:
    """An option that is given without a value is a variable that nobody set, not an option left out."""
    if value is not None and not value.strip():
        raise pytest.UsageError(f"rh: {option} is given without a value (a variable that is not set?); leave it out")


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
    if not (config_file(config) or is_asked):
        return None
    from retrieval_heads.suites.recognition import is_suite

    if is_named:
        return run_of(config).collect_file(parent, file_path)
    if not is_suite(file_path) or run_of(config).is_mere_config(file_path):
        return None
    return run_of(config).collect_file(parent, file_path)


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

    run: Any = config.stash.get(RUN, None)
    if run is None:
        try:
            run = Run(config)
        except ConfigError as error:
            raise pytest.UsageError(f"rh: {error}") from None
        config.stash[RUN] = run
        config.pluginmanager.register(run, "rh-run")
    return run  # type: ignore[no-any-return]

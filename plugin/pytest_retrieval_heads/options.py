"""The plugin's options and ini values: declared here, and read once into one frozen value."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

if TYPE_CHECKING:
    from retrieval_heads.suites.settings import Settings


@dataclass(frozen=True)
class Options:
    """What command line and ini file say.

    Args:
        config_file: The config's path as given, one in the ini file from that file's folder; empty where there is none.
        sets: Each `--rh-set KEY=VALUE`.
        report: Whether pictures and `report.html` are drawn.
        verdict: What decides the exit code of every suite; `None` leaves it to each.
        baseline: What the run is compared with: a path or a name.
        max_drop: How far which score may fall below the baseline, as typed.
        inconclusive: What a fall that noise can explain does to the run.
        allow_removed: Whether the baseline's cells that no suite asks any more are let go.
        allow_changed: Whether answers to a question that was changed since may be used.
        allow_new: Whether cells that the baseline lacks are left out.
        save_baseline: The name under which the run is stored as a baseline.
        resume: Whether an earlier run is gone on with.
        rescore: Whether an earlier run's answers are scored again, without an engine.
        run: The folder of the earlier run, where it is not the latest.
        matrix: The file of settings that the same cells are asked under.
        allow_other_prompts: Whether settings may be compared whose prompts are not the same tokens.
        engine: `own`: one that ends with the session; `keep`: a warm one, which is started where none fits and stays;
            `None`: a warm one that fits, else its own.
        no_model: What a test that needs a model is where none is named.
        base: The folder that pytest was called in; paths of options start there.
        arguments: What was typed, without what `addopts` adds.
    """

    config_file: str
    sets: tuple[str, ...]
    report: bool
    verdict: str | None
    baseline: str | None
    max_drop: tuple[str, ...]
    inconclusive: Literal["fail", "warn"]
    allow_removed: bool
    allow_changed: bool
    allow_new: bool
    save_baseline: str | None
    resume: bool
    rescore: bool
    run: str | None
    matrix: str | None
    allow_other_prompts: bool
    engine: Literal["own", "keep"] | None
    no_model: Literal["error", "skip"]
    base: Path
    arguments: tuple[str, ...]

    @classmethod
    def of(cls, config: pytest.Config) -> Options:
        """The options of a session; read on first use.

        Raises:
            pytest.UsageError: One is given without a value, or the ini file says what is not known.
        """
        options = config.stash.get(_OPTIONS, None)
        if options is None:
            options = config.stash[_OPTIONS] = cls._read(config)
        return options

    @classmethod
    def _read(cls, config: pytest.Config) -> Options:
        def given(name: str) -> Any:
            return config.getoption(f"rh_{name}")

        for name in ("config", "baseline", "save_baseline", "run", "matrix"):
            _refuse_empty(name, given(name))
        for name in ("set", "max_drop"):
            for value in given(name):
                _refuse_empty(name, value)
        if (no_model := config.getini("rh_no_model")) not in ("error", "skip"):
            raise pytest.UsageError(
                f"rh: rh_no_model: 'error' or 'skip' is expected in the ini file, found {no_model!r}"
            )
        return cls(
            config_file=_config_file(config),
            sets=tuple(given("set")),
            report=given("report"),
            verdict=given("verdict"),
            baseline=given("baseline"),
            max_drop=tuple(given("max_drop")),
            inconclusive=given("inconclusive"),
            allow_removed=given("allow_removed"),
            allow_changed=given("allow_changed"),
            allow_new=given("allow_new"),
            save_baseline=given("save_baseline"),
            resume=given("resume"),
            rescore=given("rescore"),
            run=given("run"),
            matrix=given("matrix"),
            allow_other_prompts=given("allow_other_prompts"),
            engine=given("engine"),
            no_model=no_model,
            base=Path(config.invocation_params.dir),
            arguments=tuple(map(str, config.invocation_params.args)),
        )

    @property
    def is_compared(self) -> bool:
        """Whether the run is compared with a baseline or becomes one."""
        return bool(self.baseline or self.save_baseline)

    def verdict_of(self, settings: Settings) -> str:
        """What decides the exit code for a suite: `cell`, `gates` or `none`."""
        # Masked cells are meant to be missed: what decides on an ablation is what it expects. A matrix asks what a
        # setting costs, and cells that are missed are how it is paid.
        is_judged_whole = settings.gates or self.baseline or self.matrix or settings.kind in ("ablate", "compress")
        default = "gates" if is_judged_whole else "cell"
        return str(self.verdict or settings.verdict or default)


_OPTIONS: pytest.StashKey[Options] = pytest.StashKey()


def flag(name: str) -> str:
    """How an option is typed: `--rh-max-drop` for `max_drop`."""
    return f"--rh-{name.replace('_', '-')}"


def _refuse_empty(name: str, value: str | None) -> None:
    """An option that is given without a value is a variable that nobody set, not an option left out."""
    if value is not None and not value.strip():
        raise pytest.UsageError(
            f"rh: {flag(name)} is given without a value (a variable that is not set?); leave it out"
        )


def _config_file(config: pytest.Config) -> str:
    if given := config.getoption("rh_config"):
        return str(given)
    named = str(config.getini("rh_config"))
    base = config.inipath.parent if config.inipath else Path.cwd()
    return named if not named or base == Path.cwd() else str(base / named)


def add_options(parser: pytest.Parser) -> None:
    """Declare the options, all prefixed `--rh-`, and the ini values."""
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
    group.addoption(
        "--rh-engine",
        choices=["own", "keep"],
        help="keep: ask a warm engine, started where none fits and left for later runs; own: one that ends with this "
        "run (default: a warm one that fits, else its own)",
    )
    group.addoption("--rh-run", metavar="DIR", help="The run for --rh-resume and --rh-rescore, where not the latest")
    group.addoption(
        "--rh-matrix", metavar="FILE", help="YAML file of settings: ask the same cells under each, and compare"
    )
    group.addoption(
        "--rh-allow-other-prompts",
        action="store_true",
        help="Compare settings of --rh-matrix whose prompts are not the same tokens, cell by cell",
    )
    parser.addini("rh_config", "Config file to use where --rh-config is not given", default="")
    parser.addini(
        "rh_no_model", "What a test that needs a model is where none is named: error (default) or skip", default="error"
    )

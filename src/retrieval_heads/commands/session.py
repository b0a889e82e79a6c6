"""`retrieval-heads niah`, `detect`, `ablate` and `compress`: the pytest session that a user would type."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import tyro

from retrieval_heads.commands.flags import assignments, setting_flags, split_settings
from retrieval_heads.errors import ConfigError
from retrieval_heads.suites.reading import is_whole_suite, read_settings, read_suites


@dataclass(frozen=True)
class Session:
    """What a session of one kind of suite is told; every further `--section.key VALUE` overrides a setting."""

    suites: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Suite files or folders; `suites/KIND` where neither they nor the config say what to ask."""
    config: Path | None = None
    """YAML config: the model under test, and what overrides the suites."""
    report: bool = True
    """Draw the pictures and report.html."""
    verdict: Literal["cell", "gates", "none"] | None = None
    """What fails the run; a config that says itself what to ask fails by errors alone, suites as in pytest."""
    baseline: str | None = None
    """Compare with an earlier run's folder, a results file or a saved baseline."""
    resume: bool = False
    """Go on with the latest run: what it has answered is not asked again."""


@dataclass(frozen=True)
class Niah(Session):
    """Ask for needles in haystacks, as `pytest suites/niah --rh-config FILE` does.

    Any setting is a flag, and what follows a lone -- goes to pytest.

    Example: retrieval-heads niah --config configs/qwen.yaml --model.max-model-len 16384 --output-dir ./results
    """


@dataclass(frozen=True)
class Detect(Session):
    """Score every attention head on whether it copies the needle, as `pytest suites/detect --rh-config FILE` does.

    Any setting is a flag, and what follows a lone -- goes to pytest.

    Example: retrieval-heads detect --config configs/qwen.yaml --sweep.context-lengths 1024 4096
    """


@dataclass(frozen=True)
class Ablate(Session):
    """Mask heads and ask again, as `pytest suites/ablate --rh-config FILE` does; detect suites may stand beside.

    Any setting is a flag, and what follows a lone -- goes to pytest.

    Example: retrieval-heads ablate suites/detect/demo.yaml suites/ablate/demo.yaml --config configs/smollm2.yaml
    """


@dataclass(frozen=True)
class Compress(Session):
    """Have heads forget all but sinks and a recent window, as `pytest suites/compress --rh-config FILE` does.

    Any setting is a flag, and what follows a lone -- goes to pytest.

    Example: retrieval-heads compress --config configs/smollm2.yaml --compress.keep 0.5 0.25
    """


@dataclass(frozen=True)
class CodeEval(Session):
    """Ask for values at the end of small programs, as a config with a section `code_eval` says.

    Any setting is a flag, and what follows a lone -- goes to pytest.

    Example: retrieval-heads code-eval --config code.yaml --code-eval.num-tasks 50
    """


@dataclass(frozen=True)
class Phonebook(Session):
    """Ask for numbers of a phonebook, as a config with a section `phonebook` says.

    Any setting is a flag, and what follows a lone -- goes to pytest.

    Example: retrieval-heads phonebook --config phonebook.yaml --phonebook.lengths 8 64
    """


@dataclass(frozen=True)
class Matrix(Session):
    """Ask the same cells under several settings and say what each costs, as `pytest --rh-matrix FILE` does.

    Any setting is a flag, and what follows a lone -- goes to pytest.

    Example: retrieval-heads matrix suites/niah --config configs/qwen.yaml --settings configs/kv.yaml
    """

    settings: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """The settings: a YAML file with `matrix: {NAME: ...}`."""


KINDS: dict[str, type[Session]] = {"niah": Niah, "detect": Detect, "ablate": Ablate, "compress": Compress}
TASKS: dict[str, type[Session]] = {"code-eval": CodeEval, "phonebook": Phonebook}
"""Those that ask what the predecessor's section of that name says; suites of kind niah."""


def run_session(kind: str, arguments: Sequence[str], program: str) -> NoReturn:
    """Become the pytest session that the arguments ask for.

    Args:
        kind: `niah`, `detect`, `ablate` or `compress`, one of `TASKS`, or `matrix`.
        arguments: The command line behind the subcommand.
        program: What it was called as, for `--help`.

    Raises:
        ConfigError: There is nothing to ask, or an argument cannot be used.
    """
    command = [sys.executable, "-m", "pytest", *pytest_arguments(kind, arguments, program)]
    sys.stdout.flush()
    # In place of this process: an interrupt, the exit status and the terminal are pytest's own.
    os.execv(sys.executable, command)


MATRIX = "matrix"
_MARKERS = {"ablate": "ablate or detect", "compress": "compress or detect", MATRIX: "niah or detect"}
"""What is selected where that is more than a kind: an ablation may take its heads from a detect suite of the run."""


def pytest_arguments(kind: str, arguments: Sequence[str], program: str) -> list[str]:
    """What pytest is to be called with.

    Raises:
        ConfigError: There is nothing to ask, or an argument cannot be used.
    """
    arguments = list(arguments)
    at = arguments.index("--") if "--" in arguments else len(arguments)
    ours, passed_on = arguments[:at], arguments[at + 1 :]
    options: type[Session] = {**KINDS, **TASKS, MATRIX: Matrix}[kind]
    own, settings = split_settings(ours, options)
    try:
        session = tyro.cli(options, prog=program, args=own)
    except SystemExit as end:
        if end.code in (None, 0):  # it was asked for help
            print("\n".join(["", "Settings, each a flag (docs/suites.md says what they mean):", *setting_flags()]))
        raise
    data = read_settings(session.config) if session.config else {}
    if kind in TASKS:
        section = kind.replace("-", "_")
        if section not in data and not session.suites:
            where = session.config or "nothing to ask"
            raise ConfigError(
                f"{where}: expected --config FILE with a section {section}; `{section}: {{}}` is its default"
            )
        kind = "niah"
    of_run = read_suites(session.config) if session.config else {}
    is_suite = is_whole_suite(data) or bool(of_run)
    kinds = sorted({str(suite["kind"]) for suite in of_run.values()}) or [str(data.get("kind", "niah"))]
    if kind == MATRIX and (not isinstance(session, Matrix) or session.settings is None):
        raise ConfigError("nothing to compare: name the file of the settings, --settings FILE")
    if is_suite and kind not in (*kinds, MATRIX):
        raise ConfigError(f"{session.config} is a config of kind {', '.join(kinds)}; call retrieval-heads {kinds[0]}")
    suites = list(session.suites)
    if not suites and not is_suite:
        suites = [f"suites/{'niah' if kind == MATRIX else kind}"]
        if not Path(suites[0]).is_dir():
            raise ConfigError(
                f"nothing to ask: name a suite, or a config that holds a haystack (there is no folder {suites[0]})"
            )
    made = [*suites, "-m", _MARKERS.get(kind, kind)]
    if session.config:
        made += ["--rh-config", str(session.config)]
    for assignment in assignments(settings):
        made += ["--rh-set", assignment]
    verdict = session.verdict
    if verdict is None and is_suite and not session.baseline and not of_run and not {"verdict", "gates"} & data.keys():
        verdict = "none"  # a config of the predecessor's kind is a measurement, no test
    made += ["--rh-report"] if session.report else []
    made += ["--rh-verdict", verdict] if verdict else []
    made += ["--rh-baseline", session.baseline] if session.baseline else []
    made += ["--rh-resume"] if session.resume else []
    made += ["--rh-matrix", str(session.settings)] if isinstance(session, Matrix) else []
    return made + passed_on

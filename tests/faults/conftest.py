"""The project in which nothing is wrong, made once, and what runs a case."""

from __future__ import annotations

import itertools
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path += [str(Path(__file__).parents[1] / "plugin")]

import fault_project
from fault_case import Case, Outcome, faults
from fault_process import run

from forks import Server

CASES = "malformed inputs"


@pytest.fixture(scope="session")
def good(forks: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project with a finished run in it, which the stand-in engine answered."""
    made = tmp_path_factory.mktemp("project")
    fault_project.make(made / "seed")
    before = made / "seed"
    for kind, output in (("niah", "run"), ("detect", "detected")):
        options = [f"suites/{kind}", "--rh-config", "config.yaml", "--rh-set", f"output_dir={output}"]
        case = Case("pytest", ["-q", *options, "--rh-save-baseline", "main"])
        outcome = run(case, made / kind, before, forks, keep=True)
        assert outcome.status == 0, outcome.text
        before = made / kind
    folder = before
    for name in ("printed", ".pytest_cache"):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return folder


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for each case."""
    made = tmp_path_factory.mktemp("cases")
    return (made / str(number) for number in itertools.count())


@pytest.fixture
def check(
    forks: Server, good: Path, folders: Iterator[Path], request: pytest.FixtureRequest
) -> Iterator[Callable[[Case], None]]:
    """Run a case, and fail with everything about it where its outcome is not as it must be."""
    count = 0

    def checked(case: Case) -> None:
        nonlocal count
        count += 1
        outcome: Outcome = run(case, next(folders), good, forks)
        if found := faults(case, outcome):
            shown = {name: str(content)[:300] for name, content in case.files.items()}
            wrong = "; ".join(found)
            pytest.fail(
                f"{wrong}\n{case.do} {' '.join(case.arguments)!r:.600}\nfiles {shown}\nexpected {case.expected} "
                f"{list(case.says)} {case.note}\nstatus {outcome.status}\n{outcome.text[-1500:]}",
                pytrace=False,
            )

    yield checked
    request.node.user_properties.append((CASES, count))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many cases there were, those of every worker of xdist."""
    reports = [one for each in terminalreporter.stats.values() for one in each if isinstance(one, pytest.TestReport)]
    told = [count for one in reports if one.when == "teardown" for key, count in one.user_properties if key == CASES]
    if told:
        terminalreporter.write_line(f"malformed inputs: {sum(told)} cases")

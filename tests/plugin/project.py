"""What a user has, in a pytester folder: suites, a config and a stand-in engine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import stand_in_engine
import yaml
from stand_in_engine import FERRY, ON_RAY, REFERENCE, VARIABLE, Behaviour

import toy_tokenizer
from forks import ADDRESS, Popen, Server
from retrieval_heads.engine.backends import backend
from retrieval_heads.registry import Registry
from retrieval_heads.runs.record import Record, read_records

CONFTEST = """\
import os
import sys

from retrieval_heads.engine.backends import backend
from retrieval_heads.registry import Registry

backend.BACKENDS = Registry(
    backend.GROUP,
    "backend",
    {
        "vllm": "stand_in_engine:StandIn",
        "openai": "stand_in_endpoint:ToyEndpoint",
        "ray": "stand_in_engine:StandInOnRay",
    },
)
if "PYTEST_XDIST_WORKER" in os.environ:
    # A worker gets the import path that xdist itself was imported on.
    sys.path += os.environ["PYTHONPATH"].split(os.pathsep)
"""

TWO_WORKERS = ["-n", "2"]
ON_WORKERS_IF_LONG = pytest.mark.parametrize(
    "workers", [pytest.param([], id="plain"), pytest.param(TWO_WORKERS, id="xdist", marks=pytest.mark.long)]
)
"""In place of the fixture `workers`, where tests beside it show that workers do what one process does."""


def on_workers(cases: Sequence[Any]) -> list[Any]:
    """Each case without workers; with two the first, and the others where tests marked `long` are run."""
    made = []
    for number, case in enumerate(cases):
        values = case if isinstance(case, tuple) else (case,)
        made += [
            pytest.param(*values, []),
            pytest.param(*values, TWO_WORKERS, marks=pytest.mark.long if number else ()),
        ]
    return made


NEEDLE = {"needle": FERRY, "question": "When does the ferry to Oslo leave?"}
ENDPOINT = "stand_in_endpoint:ToyEndpoint"
PATHS = os.pathsep.join(str(Path(module.__file__).parent) for module in (stand_in_engine, toy_tokenizer))


class Project:
    """A user's project: `suites/niah/*.yaml`, `config.yaml`, and the engine's behaviour.

    Its suite has lengths 128 and 256 at depths 0, 50 and 100: six cells.
    """

    def __init__(self, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, forks: Server) -> None:
        self.pytester = pytester
        self.path = pytester.path
        self._monkeypatch = monkeypatch
        monkeypatch.setattr(subprocess, "Popen", Popen)
        monkeypatch.setenv(ADDRESS, forks.address)
        builtin = {"vllm": REFERENCE, "openai": ENDPOINT, "ray": ON_RAY}
        monkeypatch.setattr(backend, "BACKENDS", Registry(backend.GROUP, "backend", builtin))
        monkeypatch.setenv("PYTHONPATH", PATHS, prepend=os.pathsep)
        # Other people's plugins take two seconds of every start and every worker where no bytecode is written.
        monkeypatch.setenv("PYTEST_ADDOPTS", "-p no:hypothesispytest -p no:typeguard -p no:anyio")
        # With one of the first two set, pytest does not trim its summary; into the third's file every run writes;
        # the fourth says that this process is a worker of xdist, which a user's session is not.
        for variable in ("CI", "BUILD_NUMBER", "GITHUB_STEP_SUMMARY", "PYTEST_XDIST_WORKER"):
            monkeypatch.delenv(variable, raising=False)
        pytester.makeconftest(CONFTEST)
        self.write("tales/a.txt", "Once upon a time there was a boat. It sailed far away. Nobody saw it again.\n" * 20)
        self.write("config.yaml", {"model": {"model": "toy"}})
        self.behave()

    def write(self, name: str, content: str | dict[str, Any]) -> Path:
        """Write a file, as YAML where it is no text."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False), "utf-8")
        return path

    def suite(self, name: str = "tale", **keys: Any) -> Path:
        """Write a suite; top-level keys are replaced, `None` leaves one out."""
        data = {
            "kind": "niah",
            "haystack": "tales",
            "needles": [NEEDLE],
            "sweep": {"context_lengths": [128, 256], "document_depths": [0, 50, 100]},
            "generation": {"max_tokens": 16},
        }
        data |= keys
        return self.write(f"suites/niah/{name}.yaml", {key: value for key, value in data.items() if value is not None})

    def behave(self, **behaviour: Any) -> None:
        """Tell the engine of the next runs what to do."""
        told = Behaviour(starts=str(self.path / "starts"), **behaviour)
        self._monkeypatch.setenv(VARIABLE, told.environment())

    def run(self, *arguments: str, config: bool = True, suites: bool = True) -> pytest.RunResult:
        """Run pytest in this process over `suites` with the config."""
        return self.pytester.runpytest_inprocess(*self._arguments(arguments, config, suites))

    def spawn(self, *arguments: str, config: bool = True, suites: bool = True) -> pytest.RunResult:
        """Run pytest in a process of its own."""
        return self.pytester.runpytest_subprocess(*self._arguments(arguments, config, suites), timeout=300)

    def popen(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start pytest in a process and session of its own and leave it running; what it prints goes to `printed`.

        It, its workers and its engine are no copies: a signal to its process group reaches whom it would at a user's.
        """
        command = [sys.executable, "-m", "pytest", *self._arguments(arguments, config=True, suites=True)]
        with (self.path / "printed").open("wb") as printed:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={key: value for key, value in os.environ.items() if key != ADDRESS},
                # As from a terminal: what a shell in the background or nohup ignores is inherited.
                preexec_fn=_hear_signals,
            )

    def _arguments(self, arguments: tuple[str, ...], config: bool, suites: bool) -> list[str]:
        where = ["suites"] if suites else []
        what = ["--rh-config", "config.yaml"] if config else []
        return [*where, *arguments, *what]

    @property
    def starts(self) -> list[int]:
        """The process ids of the engines that were started."""
        file = self.path / "starts"
        return [int(line) for line in file.read_text().split()] if file.exists() else []

    @property
    def latest(self) -> Path:
        """The folder of the newest run."""
        return self.path / "reports" / "latest"

    def records(self) -> list[Record]:
        """The newest run's records, in the order of their cells."""
        return sorted(read_records(self.latest / "results.jsonl"), key=lambda record: record.cell)

    def facts(self) -> dict[str, Any]:
        """The newest run's `run.json`."""
        facts: dict[str, Any] = json.loads((self.latest / "run.json").read_text("utf-8"))
        return facts


def _hear_signals() -> None:
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def until(found: Callable[[], bool], patience: float = 120) -> None:
    """Wait for something to be so."""
    give_up = time.monotonic() + patience
    while not found():
        assert time.monotonic() < give_up, "it never came"
        time.sleep(0.05)


def finished(project: Project) -> int:
    """Cells with a record on disk."""
    file = project.latest / "results.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def is_gone(process: int, *, patience: float = 60.0) -> bool:
    """Whether a process ended; a zombie that nobody waits for has."""
    give_up = time.monotonic() + patience
    while time.monotonic() < give_up:
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False

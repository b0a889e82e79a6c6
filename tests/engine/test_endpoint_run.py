"""A suite asked of vLLM's own server, in float32 on a CPU: answers are those of the engine in process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conftest import CI_LENGTHS, CI_SUITE, MODEL, Outcome, Started, write_yaml
from retrieval_heads.models import locate_model

pytestmark = pytest.mark.engine

SERVE = ["--served-model-name", "small", "--dtype", "float32", "--max-model-len", "8192", "--enforce-eager"]
PATIENCE = 500


class Served:
    """`vllm serve`, until it is closed."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        arguments = [locate_model(MODEL), *SERVE, "--host", "127.0.0.1", "--port", str(self.port)]
        self.log = folder / "served.log"
        with self.log.open("wb") as log:
            self._launcher = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("served_vllm.py")), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, "TORCH_COMPILE_DISABLE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"},
            )
        self._process = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        """Start it; it answers later."""
        assert self._launcher.stdin is not None
        assert self._launcher.stdout is not None
        self._launcher.stdin.write(b"\n")
        self._launcher.stdin.flush()
        self._process = int(self._launcher.stdout.readline())

    def kill(self) -> None:
        """Kill it and all that it started."""
        os.killpg(self._process, signal.SIGKILL)

    def wait(self) -> None:
        """Wait until it answers."""
        give_up = time.monotonic() + PATIENCE
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/version"):
                    return
            except OSError:
                assert time.monotonic() < give_up, self.log.read_text(errors="replace")[-4000:]
                time.sleep(0.2)

    def close(self) -> None:
        self.kill()
        assert self._launcher.stdin is not None
        self._launcher.stdin.close()
        self._launcher.wait(30)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    server = Served(tmp_path_factory.mktemp("served"))
    try:
        server.wait()
        yield server
    finally:
        server.close()


@pytest.fixture
def asked(tmp_path: Path, served: Served) -> list[str]:
    """What has the CI suite asked of the server."""
    config = {
        "model": {"model": MODEL},
        "engine": {"kind": "openai", "base_url": served.url, "model": "small", "timeout": PATIENCE},
        "generation": {"max_tokens": 48},
        **CI_LENGTHS,
    }
    return [str(CI_SUITE), "--rh-config", str(write_yaml(tmp_path / "endpoint.yaml", config)), "--rh-verdict", "none"]


def answers(outcome: Outcome) -> dict[str, tuple[object, ...]]:
    """By cell, what was asked and said."""
    return {
        name: (
            one.recipe and one.recipe.prompt_hash,
            one.needle_span,
            tuple(one.token_ids),
            one.text,
            one.finish_reason,
        )
        for name, one in outcome.records.items()
    }


def test_every_answer_is_that_of_the_engine_in_process(
    ci_run: Outcome, run_pytest: Callable[..., Outcome], asked: list[str]
) -> None:
    outcome = run_pytest(*asked, "-k", "not len_1024")
    assert outcome.exit_status == 0, outcome.output
    expected = {name: said for name, said in answers(ci_run).items() if "len_1024" not in name}
    assert len(expected) == 12
    assert answers(outcome) == expected
    assert all(record.token_ids for record in outcome.records.values())
    usage = outcome.facts["usage"]
    assert usage["requests"] == 14  # two of them see at the start what the server takes
    assert usage["tokens_out"] == sum(len(record.token_ids) for record in outcome.records.values()) + 2


def test_through_chat_completions_both_counts_are_stored(run_pytest: Callable[..., Outcome], asked: list[str]) -> None:
    outcome = run_pytest(*asked, "-k", "len_256-depth_50", "--rh-set", "engine.api=chat")
    assert outcome.exit_status == 0, outcome.output
    for record in outcome.records.values():
        assert record.prompt_tokens == 256
        # A text's tokens may join where ids were put together.
        assert record.server_prompt_tokens == pytest.approx(256, abs=3)
        assert record.needle_span is None


@pytest.mark.long
def test_a_server_that_is_killed_and_started_again_loses_and_doubles_nothing(
    ci_run: Outcome, start_pytest: Callable[..., Started], asked: list[str], served: Served
) -> None:
    few = ["-k", "len_256", "--rh-set", "engine.concurrency=3"]  # so that some are not asked yet
    run = start_pytest(*asked, *few, "--rh-set", "output_dir=reports/killed")
    results = run.cwd / "reports/killed/results.jsonl"
    give_up = time.monotonic() + PATIENCE
    while not results.exists() or results.read_bytes().count(b"\n") < 2:
        assert time.monotonic() < give_up
        assert run.process.poll() is None
        time.sleep(0.02)
    served.kill()
    before = results.read_bytes()
    served.start()
    outcome = run.finish()
    assert outcome.exit_status == 0, outcome.output
    expected = {name: said for name, said in answers(ci_run).items() if "len_256" in name}
    assert before.count(b"\n") < len(expected), "it was killed in mid-run"
    assert results.read_bytes().startswith(before)
    assert results.read_bytes().count(b"\n") == len(expected)
    assert answers(outcome) == expected
    # Every cell was answered once, and two questions at the start.
    assert outcome.facts["usage"]["requests"] == len(expected) + 2

"""Runs cases: a process that has everything loaded forks for each, with limits of time and memory.

Run as `python -m fault_process`: reads a line of JSON for each case, writes one with its outcome.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

import fault_project
from fault_case import Case, Outcome, Special
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from toy_tokenizer import WordTokenizer

SECONDS = 300.0
"""A case that takes longer hangs: the slowest takes three, and a busy machine is no hang."""
PROCESSOR_SECONDS = 60
"""Of each process."""
MEMORY = 3 << 30
"""Bytes of address space."""
_PRINTED = "printed"


class Children:
    """The process that forks; started with the first case, started again when it is gone."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, case: Case, folder: Path, good: Path, *, keep: bool = False) -> Outcome:
        """Make the project wrong as the case says, and run its command there."""
        shutil.copytree(good, folder, symlinks=True)
        for name, content in case.files.items():
            _write(folder / name, content)
        said = {"do": case.do, "arguments": list(case.arguments), "folder": str(folder), "seconds": case.seconds}
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(said).encode() + b"\n")
        process.stdin.flush()
        reply = json.loads(process.stdout.readline())
        text = (folder / _PRINTED).read_bytes().decode(errors="replace")
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
        return Outcome(reply["status"], reply["ended"], text)

    def end(self) -> None:
        """No more cases."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            here = Path(__file__).parent
            paths = [str(here), str(here.parent / "plugin"), str(here.parent), os.environ.get("PYTHONPATH", "")]
            # As in a terminal of 200 columns, without colours, and with no plugin of other people's.
            environment = {
                **{key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "GITHUB_"))},
                "PYTHONPATH": os.pathsep.join(paths),
                "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
                "PYTHONDONTWRITEBYTECODE": "1",
                "COLUMNS": "200",
                "NO_COLOR": "1",
            }
            self._process = subprocess.Popen(
                [sys.executable, "-m", "fault_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
            )
        return self._process


def _write(path: Path, content: Any) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, Special):
        if content.kind == "fifo":
            os.mkfifo(path)
        elif content.kind == "folder":
            path.mkdir()
        elif content.kind == "link":
            path.symlink_to(content.target)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content, encoding="utf-8")


def main() -> None:
    """Fork for each case."""
    _load()
    for line in sys.stdin.buffer:
        said = json.loads(line)
        child = os.fork()
        if child == 0:
            _live(said)
        print(json.dumps(_wait(child)), flush=True)


def _load() -> None:
    """What every case would load for itself."""
    for name in (
        "pytest",
        "pytest_retrieval_heads.plugin",
        "pytest_retrieval_heads.run",
        "retrieval_heads.cli",
        "retrieval_heads.plots",
        "retrieval_heads.suites.soundness",
        "retrieval_heads.prompts.requests",
        "rouge_score.rouge_scorer",
        "seaborn",
        "yaml",
    ):
        importlib.import_module(name)
    from retrieval_heads.scoring import score_answer

    score_answer("dawn", "dawn", "?")
    _warm_up()
    gc.freeze()


def _warm_up() -> None:
    """Everything that is imported late, imported by commands over the project in which nothing is wrong."""
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder, Path(os.devnull).open("w") as nothing:
        fault_project.make(Path(folder))
        os.chdir(folder)
        with contextlib.redirect_stdout(nothing), contextlib.redirect_stderr(nothing):
            for kind in ("niah", "detect", "ablate"):
                _status({"do": "cli", "arguments": ["validate", f"suites/{kind}", "--config", "config.yaml"]})
            _status({"do": "cli", "arguments": ["visualize", "detect", "--results", "heads/heads.json"]})
            _status({"do": "pytest", "arguments": fault_project.NIAH})
        os.chdir(here)


def _live(said: dict[str, Any]) -> None:
    """One case, in a process of its own."""
    status = 70
    try:
        os.setsid()
        os.chdir(said["folder"])
        printed = os.open(_PRINTED, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for number, target in ((nothing, 0), (printed, 1), (printed, 2)):
            os.dup2(number, target)
        sys.stdin, sys.stdout, sys.stderr = (os.fdopen(n, m) for n, m in ((0, "r"), (1, "w"), (2, "w")))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (PROCESSOR_SECONDS, PROCESSOR_SECONDS))
        status = _status(said)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


class Words(WordTokenizer):
    """A tokenizer without a hub, which renders templates of users as transformers does."""

    def __init__(self) -> None:
        super().__init__()
        self.bos_token_id = None  # its template writes none

    def apply_chat_template(self, conversation: Any, *, chat_template: str | None = None, **options: Any) -> str:
        """Messages to text."""
        if chat_template is None:
            return super().apply_chat_template(conversation, **options)
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _raise
        del options["tokenize"]
        return environment.from_string(chat_template).render(messages=conversation, **options)


def _raise(message: str) -> None:
    raise TemplateError(message)


def _status(said: dict[str, Any]) -> int:
    from retrieval_heads.engine.backends import backend
    from retrieval_heads.prompts import rendering, tokenizer
    from retrieval_heads.registry import Registry

    backend.BACKENDS = Registry(backend.GROUP, "backend", {"vllm": "stand_in_engine:StandIn"})
    rendering.SECONDS = said.get("seconds", rendering.SECONDS)
    setattr(tokenizer, "load_tokenizer", lambda model: Words())  # noqa: B010
    setattr(tokenizer, "load_generation", lambda model: None)  # noqa: B010
    setattr(tokenizer, "kv_bytes_per_token", lambda model: 1)  # noqa: B010
    if said["do"] == "pytest":
        import pytest

        options = ["-p", "pytest_retrieval_heads.plugin", "-p", "no:cacheprovider", "--color=no", "--tb=short"]
        return int(pytest.main([*options, *said["arguments"]]))
    if said["do"] == "ask":
        return _ask(json.loads(said["arguments"][0]))
    from retrieval_heads.cli import main as command_line

    try:
        command_line(said["arguments"])
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return int(end.code or 0)
    return 0


def _ask(keywords: dict[str, Any]) -> int:
    """Ask a server whose engine answers everything; what is no JSON stands as `{"python": EXPRESSION}`."""
    from retrieval_heads.engine.client import Address, EngineClient
    from retrieval_heads.engine.server import Server
    from retrieval_heads.errors import RetrievalHeadsError

    for key, value in keywords.items():
        if isinstance(value, dict) and "python" in value:
            keywords[key] = eval(value["python"])
    server = Server("key")
    server.listen("engine.sock")
    server.started({})
    answer = {"text": "dawn", "token_ids": [1], "finish_reason": "stop", "prompt_tokens": 1, "cached_tokens": 0}

    def serve() -> None:
        while True:
            server.finish(server.waiting.get(), {"answer": {**answer, "seconds": 0.1}})

    threading.Thread(target=serve, daemon=True).start()
    try:
        print(EngineClient(Address("engine.sock", "key")).ask(**keywords).text)
    except RetrievalHeadsError as error:
        print(error)
        return 1
    return 0


def _wait(child: int) -> dict[str, Any]:
    give_up = time.monotonic() + SECONDS
    pause = 0.001
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() > give_up:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return asdict(Outcome(None, "hang", ""))
        time.sleep(pause)
        pause = min(pause * 1.3, 0.02)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)  # what it may have left
    if os.WIFSIGNALED(status):
        return asdict(Outcome(None, signal.Signals(os.WTERMSIG(status)).name, ""))
    return asdict(Outcome(os.WEXITSTATUS(status), "", ""))


if __name__ == "__main__":
    main()

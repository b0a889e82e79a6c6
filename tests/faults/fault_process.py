"""Runs cases: each is a process with limits of time and memory, a copy of one that has everything loaded (`forks`).

Run as `python -c "import fault_process; fault_process.main()" CASE`.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import fault_project
from fault_case import Case, Outcome, Special
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from forks import ADDRESS, Popen, Server
from toy_tokenizer import WordTokenizer

SECONDS = 300.0
"""A case that takes longer hangs: the slowest takes three, and a busy machine is no hang."""
PROCESSOR_SECONDS = 60
"""Of each process."""
MEMORY = 3 << 30
"""Bytes of address space."""
_PRINTED = "printed"


def run(case: Case, folder: Path, good: Path, forks: Server, *, keep: bool = False) -> Outcome:
    """Make the project wrong as the case says, and run its command there."""
    shutil.copytree(good, folder, symlinks=True)
    for name, content in case.files.items():
        _write(folder / name, content)
    told = json.dumps({"do": case.do, "arguments": list(case.arguments), "seconds": case.seconds})
    with (folder / _PRINTED).open("wb") as printed:
        process = Popen(
            [sys.executable, "-c", "import fault_process; fault_process.main()", told],
            cwd=folder,
            env=_environment(forks),
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    status, ended = _ended(process)
    text = (folder / _PRINTED).read_bytes().decode(errors="replace")
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)
    return Outcome(status, ended, text)


def _environment(forks: Server) -> dict[str, str]:
    """As in a terminal of 200 columns, without colours, and with no plugin of other people's."""
    here = Path(__file__).parent
    paths = [str(here), str(here.parent / "plugin"), str(here.parent), os.environ.get("PYTHONPATH", "")]
    return {
        **{key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "GITHUB_"))},
        **fault_project.environment(),
        ADDRESS: forks.address,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "COLUMNS": "200",
        "NO_COLOR": "1",
    }


def _ended(process: Any) -> tuple[int | None, str]:
    """A case's exit status, or why it has none."""
    try:
        status = process.wait(SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return None, "hang"
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)  # what it may have left
    return (None, signal.Signals(-status).name) if status < 0 else (status, "")


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
    """One case, in a process of its own."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (PROCESSOR_SECONDS, PROCESSOR_SECONDS))
    sys.exit(_status(json.loads(sys.argv[1])))


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
    from retrieval_heads.engine.results import Answered
    from retrieval_heads.engine.server import Server
    from retrieval_heads.errors import RetrievalHeadsError
    from retrieval_heads.runs.answer import Answer

    for key, value in keywords.items():
        if isinstance(value, dict) and "python" in value:
            keywords[key] = eval(value["python"])
    server = Server("key")
    server.listen("engine.sock")
    server.started({})
    answer = Answer("dawn", token_ids=[1], finish_reason="stop", prompt_tokens=1, cached_tokens=0, seconds=0.1)

    def serve() -> None:
        while True:
            server.finish(server.waiting.get(), Answered(answer))

    threading.Thread(target=serve, daemon=True).start()
    try:
        print(EngineClient(Address("engine.sock", "key")).ask(**keywords).text)
    except RetrievalHeadsError as error:
        print(error)
        return 1
    return 0

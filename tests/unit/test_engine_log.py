"""What an engine prints reaches its log without secrets, and nobody waits for a log that cannot be written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from retrieval_heads import redaction
from retrieval_heads.engine.log import EngineLog


def logged(code: str, path: Path) -> EngineLog:
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    log = EngineLog(process.stdout, path)
    process.wait()
    log.close(patience=30)
    return log


def test_lines_arrive_as_they_were_printed(tmp_path: Path) -> None:
    path = tmp_path / "engine.log"
    path.write_text("before\n")
    log = logged("print('one'); print('  0%\\r 50%\\r100%'); print('no end', end='')", path)
    assert path.read_bytes() == b"before\none\n  0%\r 50%\r100%\nno end"
    assert log.last_lines(patience=1)[-2:] == ["100%", "no end"]


def test_secrets_are_taken_out(tmp_path: Path) -> None:
    redaction.keep_secret({"hf_token": "swordfish"})
    path = tmp_path / "engine.log"
    logged("print('a swordfish'); print({'hf_token': 'other', 'max_tokens': 5})", path)
    assert path.read_text() == "a ***\n{'hf_token': ***, 'max_tokens': 5}\n"


def test_a_log_that_cannot_be_written_stops_nobody_and_its_end_is_known(tmp_path: Path) -> None:
    log = logged("for number in range(20_000): print(number)", tmp_path)  # more than a pipe holds
    assert log.last_lines(patience=1)[-1] == "19999"
    assert str(log.failure) == f"{tmp_path}: cannot be written (Is a directory)"


def test_a_line_without_an_end_is_not_kept_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "engine.log"
    logged("print('x' * 1_000_000, end='')", path)
    assert path.stat().st_size == 1_000_000

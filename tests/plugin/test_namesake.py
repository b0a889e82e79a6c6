"""The predecessor's package beside ours: one sentence, and no traceback out of overwritten files."""

from __future__ import annotations

import subprocess
import sys

from project import Project

BESIDE = """\
import importlib.metadata
real = importlib.metadata.version
importlib.metadata.version = lambda name: "0.1.2" if name == "retrieval-heads" else real(name)
"""
SAID = "retrieval-heads 0.1.2 is installed beside pytest-retrieval-heads, and both hold the package retrieval_heads"


def test_a_session_says_so(project: Project) -> None:
    project.suite()
    (project.path / "conftest.py").write_text(BESIDE + (project.path / "conftest.py").read_text())
    project.write("plugged.py", BESIDE)
    result = project.spawn("-p", "plugged")
    assert result.ret == 4
    result.stderr.fnmatch_lines([f"*rh: {SAID}*pip uninstall -y retrieval-heads*"])
    assert "Traceback" not in result.stderr.str()


def test_the_program_says_so(project: Project) -> None:
    code = f"{BESIDE}\nfrom retrieval_heads.cli import main\nmain(['models'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=project.path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith(f"retrieval-heads: {SAID}")

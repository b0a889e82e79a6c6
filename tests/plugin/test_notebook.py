"""The page on notebooks, run as a notebook: on stored runs of the stand-in engine, and on the stand-in itself."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from project import PATHS, Project

pytest.importorskip("nbclient", reason="the notebook needs nbclient and ipykernel (the extra `test` has them)")
pytest.importorskip("ipykernel", reason="the notebook needs nbclient and ipykernel (the extra `test` has them)")

PAGE = Path(__file__).parents[2] / "docs" / "notebook.md"
SWEEP = {"context_lengths": [128, 256], "document_depths": [0, 50, 100], "seeds": [0, 1]}
STAND_IN = """\
from retrieval_heads.engine.backends import backend
from retrieval_heads.registry import Registry
backend.BACKENDS = Registry(backend.GROUP, "backend", {"vllm": "stand_in_engine:StandIn"})
"""


OWN = "# my_package.py"
LAST = """\
import json
print(json.dumps([both.before.model, both.after.model, run.cells[0].metric, run.gates["passed"], len(run.cells)]))
"""


def blocks() -> list[str]:
    """The page's Python; one block is a file."""
    return re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def runs(project: Project) -> Project:
    """`reports/main` and `reports/latest`, of two models and every kind, and what the page names."""
    project.behave(retrieval_heads=[[1, 2], [2, 0], [3, 3]])
    project.suite("demo", sweep=SWEEP)
    project.suite("heads", kind="detect", sweep=SWEEP)
    project.suite("masked", kind="ablate", sweep=SWEEP, ablate={"heads": "detect/heads", "top": [1], "draws": 2})
    project.run("--rh-set", "model.model=small", "--rh-set", "output_dir=reports/main", "-m", "niah or detect")
    project.run("--rh-verdict", "none").assert_outcomes(passed=12 + 12 + 48 - 12, xfailed=12)
    shutil.move(project.path / "suites/niah/heads.yaml", project.write("suites/detect/demo.yaml", ""))
    (project.path / "suites/niah/masked.yaml").unlink()
    project.write("configs/smollm2.yaml", {"model": {"model": "toy"}})
    return project


def test_the_page_on_notebooks_runs_as_it_stands(runs: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.chdir(runs.path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([PATHS, *filter(None, sys.path)]))
    for file in (block for block in blocks() if block.startswith(OWN)):
        runs.write(OWN.removeprefix("# "), file)
    cells = [nbformat.v4.new_code_cell(code) for code in (STAND_IN, *blocks(), LAST)]
    notebook: Any = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": runs.path}}).execute()
    shown = [output for cell in notebook.cells for output in cell.outputs]
    pictures = [one for one in shown if one.output_type == "execute_result" and "image/png" in one.data]
    assert pictures, "a figure is shown without pyplot"
    printed = "".join(one.text for one in shown if one.output_type == "stream")
    assert "niah/demo" in printed, "print(both) names what was compared"
    assert "12 passed" in printed, "run_suite shows what pytest says"
    assert (runs.path / "heatmap.svg").exists()
    compared, judged = ["small", "toy"], ["my_package:score", True, 12]
    assert json.loads(printed.splitlines()[-1]) == compared + judged

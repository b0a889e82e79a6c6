"""What is imported when: pytest's own process stays light, and a session that asks nothing of us pays nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HEAVY = {"torch", "vllm", "nnsight", "transformers", "numpy", "scipy", "pandas", "matplotlib", "seaborn", "nltk"}
CONFTEST = """\
import json, sys

def pytest_unconfigure(config):
    found = {"modules": sorted(sys.modules), "rh": config.pluginmanager.hasplugin("pytest_retrieval_heads.plugin")}
    with open("found.json", "w") as file:
        json.dump(found, file)
"""


def session(folder: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """A pytest session with no plugin but ours; its result, and what its process had imported in the end."""
    (folder / "conftest.py").write_text(CONFTEST)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "pytest_retrieval_heads.plugin", "-p", "no:cacheprovider", *arguments],
        cwd=folder,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
    )
    found = json.loads((folder / "found.json").read_text())
    assert found["rh"]
    return done, found


def test_installed_but_unused_imports_nothing(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text("def test_mine():\n    pass\n")
    (tmp_path / "compose.yaml").write_text("kind: Deployment\n")
    done, found = session(tmp_path)
    assert done.returncode == 0, done.stdout
    modules = set(found["modules"])
    assert not modules & (HEAVY | {"pydantic", "yaml", "regex"})
    assert {name for name in modules if name.startswith(("retrieval_heads", "pytest_retrieval_heads"))} == {
        "pytest_retrieval_heads",
        "pytest_retrieval_heads.hookspecs",
        "pytest_retrieval_heads.options",
        "pytest_retrieval_heads.plugin",
    }


def test_ten_thousand_cells_are_collected_lightly(tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text(
        "kind: niah\nhaystack: pydoc\nmodel: m\n"
        "needles: [{needle: The ferry leaves at dawn., question: When?}]\n"
        "sweep: {context_lengths: {min: 1000, max: 1099, intervals: 99}, document_depths: {min: 0, max: 99}}\n"
    )
    done, found = session(tmp_path, "suite.yaml", "--co", "-q")
    assert done.returncode == 0, done.stdout[-2000:]
    assert "10000 tests collected" in done.stdout
    assert not set(found["modules"]) & HEAVY


LIGHT = (
    "settings.section",
    "suites.suite",
    "prompts.prompt",
    "runs.folder",
    "gates",
    "scoring",
    "heads.detection",
    "heads.formats",
    "engine.client",
    "engine.process",
)


def test_light_modules_import_nothing_heavy() -> None:
    """One behind another in one process: of what is heavy, it is told who was the first to import it."""
    code = (
        "import importlib, json, sys\n"
        "found = {}\n"
        "for module in sys.argv[1:]:\n"
        "    importlib.import_module(f'retrieval_heads.{module}')\n"
        "    found[module] = sorted(sys.modules)\n"
        "print(json.dumps(found))\n"
    )
    printed = subprocess.run([sys.executable, "-c", code, *LIGHT], capture_output=True, text=True, check=True).stdout
    assert {module: (HEAVY | {"pytest"}) & set(loaded) for module, loaded in json.loads(printed).items()} == {
        module: set() for module in LIGHT
    }

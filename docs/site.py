"""Puts the pages of the checkout's top level into the site, and has links lead where they are there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
_CODE = {
    "tasks/task.py": "retrieval_heads.tasks.task.Task",
    "engine/backends/backend.py": "retrieval_heads.engine.backends.backend.Backend",
    "heads/score.py": "retrieval_heads.heads.score.HeadScore",
}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that stand beside `docs`."""
    for name, source in PAGES.items():
        files.append(File.generated(config, name, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Lead links to where their pages are in the site."""
    for name, source in PAGES.items():
        markdown = re.sub(rf"\]\((?:\.\./)?{re.escape(source)}", f"]({name}", markdown)
    for file, anchor in _CODE.items():
        markdown = markdown.replace(f"](../src/retrieval_heads/{file})", f"](api.md#{anchor})")
    markdown = re.sub(r"\[([^\]]*)\]\(\.\./src/[^)]*\)", r"\1", markdown)  # a file of the code alone
    return markdown.replace("](docs/", "](")

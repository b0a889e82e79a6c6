"""The commands that the README, the docs, the workflows and the Dockerfiles tell a reader to type."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / ".github/workflows").glob("*.yml")),
]
PROGRAMS = (
    "pytest",
    "retrieval-heads",
    "retrieval-heads.niah",
    "retrieval-heads.detect",
    "make",
    "pip",
    "python",
    "docker",
)
_FENCE = re.compile(r"^```[a-z]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"^    (\S.*)$", re.MULTILINE)
_INLINE = re.compile(r"`((?:pytest|retrieval-heads|python) [^`]+)`")
_OPEN = ("...", "…", "<", " [", "SUBCOMMAND", "ARGUMENTS", "BEFORE")
"""What stands in a command that is a form, and none to type."""


def commands(*programs: str) -> list[tuple[str, str]]:
    """Pages' names and commands, those of some programs, each command of a page once."""
    return [(page.name, told) for page in PAGES for told in _of(page) if told.split()[0].split(".")[0] in programs]


def arguments_of(command: str) -> list[str]:
    """What the program is given; of several commands in a line the first's."""
    return shlex.split(command.partition(" && ")[0].partition(" | ")[0], comments=True)[1:]


def _of(page: Path) -> Iterator[str]:
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".yml":  # a folded text is one line
        folded = re.compile(r">\n(?P<lines>(?P<by> +)\S.*\n(?:(?P=by).*\n)*)")
        lines = folded.sub(lambda found: " ".join(found["lines"].split()) + "\n", text).splitlines()
    else:
        blocks = [*_FENCE.findall(text), *(_INDENTED.findall(text) if page.name == "package.md" else ())]
        lines = [line for block in blocks for line in re.sub(r"\\\n\s*", " ", block).splitlines()]
        lines += [re.sub(r"\s+", " ", said) for said in _INLINE.findall(text)]
    for line in dict.fromkeys(lines):
        told = re.sub(r"^\s*(- )?(run: )?(\$ )?(\.venv/bin/)?", "", line)
        is_name = re.fullmatch(r"(retrieval-heads|pytest)( [a-z-]+)*( --[a-z-]+)?", told)
        if told.split(" ")[0] in PROGRAMS and not is_name and not any(mark in told for mark in _OPEN):
            yield told

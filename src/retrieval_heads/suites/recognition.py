"""Which YAML files of a tree are a suite; nothing is imported for a file that cannot be."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from retrieval_heads.kinds import KINDS

if TYPE_CHECKING:
    import yaml

_LARGEST: Final = 4 << 20
"""Bytes of a file that is read whole to recognise it; of a larger one, the start."""
_START: Final = 64 << 10
_OURS: Final = frozenset({"haystack", "needles", "sweep", "from_results", "results_files", "suites"})
"""Keys that say what to ask."""
_LINE: Final = re.compile(
    r"""^[ \t{]*["']?kind["']?[ \t]*:[ \t]*(?:!!str[ \t]+)?["']?(niah|detect|ablate|compress)\b"""
    r"|^(?:needles|from_results)[ \t]*:",
    re.MULTILINE,
)
"""What a file that is no YAML says on a line where it was meant as a suite."""


def is_yaml(path: Path) -> bool:
    """Whether a file's name says that it holds YAML."""
    return path.suffix.lower() in (".yaml", ".yml")


def find_suites(folder: Path) -> list[Path]:
    """Every suite file under a folder, in order."""
    return [path for path in sorted(folder.rglob("*")) if is_yaml(path) and is_suite(path)]


def is_suite(path: Path) -> bool:
    """Whether a YAML file is a suite, or looks so much like one that to pass it over would be a silence.

    A run folder's `config.yaml` says all that a suite does and is none.
    """
    return kind_said(path) is not None and not is_resolved(path)


def is_resolved(path: Path) -> bool:
    """Whether a file is the `config.yaml` of a run's folder."""
    if path.name != "config.yaml":
        return False
    from retrieval_heads.runs.folder import is_run_folder

    return is_run_folder(path.parent)


def kind_said(path: Path) -> str | None:
    """What a suite file says of its kind, or would if it said it; `None` for a file that is no suite of ours.

    Returns:
        One of `KINDS`, or the slip that stands in its place; the empty text where a suite was meant and the file is no
        YAML, or holds it in a list or beside other documents: reading it says what is wrong.
    """
    content = _content(path)
    if not _may_be_a_suite(content):
        return None
    from retrieval_heads.errors import ConfigError
    from retrieval_heads.settings.yaml_reading import decode, documents

    try:
        found = documents(decode(content, str(path)), str(path))
    except ConfigError:
        meant = _LINE.search(content.replace(b"\0", b"").decode("utf-8", "replace"))
        return (meant[1] or "") if meant else None
    if len(found) == 1 and (kind := _kind_of(found[0])) is not None:
        return kind
    return "" if any(_is_misplaced(document, len(found) > 1) for document in found) else None


def _content(path: Path) -> bytes:
    """A file whole, or the start of one that is too large to be a suite; nothing where it cannot be read."""
    try:
        if not path.is_file():
            return b""
        with path.open("rb") as stream:
            return stream.read(_START if path.stat().st_size > _LARGEST else _LARGEST)
    except OSError:
        return b""


def _may_be_a_suite(content: bytes) -> bool:
    """A look at the letters, in whichever encoding: most YAML of a tree is somebody else's."""
    letters = content.replace(b"\0", b"").lower()
    says_kind = b"kind" in letters and any(kind.encode() in letters for kind in KINDS)
    return says_kind or any(key in letters for key in (b"haystack", b"needles", b"from_results"))


def _kind_of(document: yaml.Node) -> str | None:
    """The kind of a document that is a suite, or was meant as one."""
    from retrieval_heads.settings.yaml_reading import entries, is_null, is_scalar

    keys = entries(document)
    ours, said = _OURS & keys.keys(), keys.get("kind")
    if said is None or is_null(said):
        if "from_results" in keys:
            return "detect"
        is_run = any(name.partition("/")[0] in KINDS for name in entries(keys.get("suites")))
        return "niah" if "needles" in keys or is_run else None
    if not is_scalar(said):
        return "" if ours else None
    if said.value in KINDS or _is_slip(said.value, len(ours)):
        return str(said.value)
    return None


def _is_slip(kind: str, ours: int) -> bool:
    """Whether a kind that is none of ours was meant to be, in a mapping with so many of our keys beside it."""
    least = 0.75 if ours else 0.88  # `niahh` is told by itself, `Detector` is somebody else's
    return ours > 1 or bool(difflib.get_close_matches(kind.lower(), KINDS, n=1, cutoff=least))


def _is_misplaced(document: yaml.Node, is_one_of_several: bool) -> bool:
    """Whether a suite stands beside other documents, in a list, or under a key."""
    from retrieval_heads.settings.yaml_reading import entries, is_scalar, listed_in

    listed = [document] if is_one_of_several else listed_in(document)
    for node, least in [*((node, 0) for node in listed), *((node, 1) for node in entries(document).values())]:
        keys = entries(node)
        said = keys.get("kind")
        kind = said.value if said is not None and is_scalar(said) else None
        ours = len(_OURS & keys.keys())
        if ours >= least and (kind == "niah" or (kind in KINDS and ours)):
            return True
    return False

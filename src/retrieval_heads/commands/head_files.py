"""The file of heads that a path stands for."""

from __future__ import annotations

from pathlib import Path

from retrieval_heads.errors import ConfigError

_IN_A_FOLDER = ("heads*.json", "detected*.json", "full_attention_heads.tsv")
"""The files of a run, or of DuoAttention, that are looked for in a folder, the first first."""


def head_file(path: Path) -> Path:
    """A file of heads, or the one in a folder.

    Raises:
        ConfigError: A folder has none, or several.
    """
    if not path.is_dir():
        return path
    for pattern in _IN_A_FOLDER:
        found = sorted(path.glob(pattern))
        found = [file for file in found if not file.name.startswith("detected-agg")] or found
        if len(found) > 1:
            raise ConfigError(f"{path}: name one of its files of heads: {', '.join(file.name for file in found)}")
        if found:
            return found[0]
    raise ConfigError(f"{path}: no file of heads there; {', '.join(_IN_A_FOLDER)} are looked for")

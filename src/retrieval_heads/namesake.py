"""PyPI's `retrieval-heads`, which this project succeeds: it owns the package `retrieval_heads` and its scripts too."""

from __future__ import annotations

from importlib import metadata

from retrieval_heads.errors import ConfigError


def refuse_predecessor() -> None:
    """See that it is not installed beside: whichever came last has overwritten files of the other.

    Raises:
        ConfigError: It is; with the way out.
    """
    try:
        found = metadata.version("retrieval-heads")
    except metadata.PackageNotFoundError:
        return
    raise ConfigError(
        f"retrieval-heads {found} is installed beside pytest-retrieval-heads, and both hold the package "
        "retrieval_heads and its programs: pip uninstall -y retrieval-heads, then "
        "pip install --force-reinstall --no-deps pytest-retrieval-heads"
    )

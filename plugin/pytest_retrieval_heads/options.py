"""What several parts of the plugin read from options, ini file and settings alike."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from retrieval_heads.suites.settings import Settings


def config_file(config: pytest.Config) -> str:
    """The config file's path as given, one in the ini file from that file's folder; empty where there is none."""
    if given := config.getoption("rh_config"):
        return str(given)
    named = str(config.getini("rh_config"))
    base = config.inipath.parent if config.inipath else Path.cwd()
    return named if not named or base == Path.cwd() else str(base / named)


def verdict_of(settings: Settings, config: pytest.Config) -> str:
    """What decides the exit code for a suite: `cell`, `gates` or `none`."""
    # Masked cells are meant to be missed: what decides on an ablation is what it expects.
    is_judged_whole = settings.gates or config.getoption("rh_baseline") or settings.kind == "ablate"
    default = "gates" if is_judged_whole else "cell"
    return str(config.getoption("rh_verdict") or settings.verdict or default)

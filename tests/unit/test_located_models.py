"""A packaged model is converted once, and a conversion that was killed leaves nothing behind for long."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from retrieval_heads import models
from retrieval_heads.models import PACKAGED, locate_model

(NAME, *_) = PACKAGED


@pytest.fixture
def conversions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Where conversions wrote; none of them needs a package."""
    made: list[Path] = []

    def convert(source: Path, model: Any, target: Path) -> None:
        made.append(target)
        (target / "config.json").write_text("{}")

    monkeypatch.setenv("RH_CACHE", str(tmp_path))
    monkeypatch.setattr(models, "_source", lambda name, model: tmp_path)
    monkeypatch.setattr(models, "_convert", convert)
    return made


def shown(folder: Path) -> set[str]:
    """What lies in the cache, but for the lock."""
    return {entry.name for entry in folder.iterdir() if not entry.name.endswith(".lock")}


def test_what_a_killed_conversion_left_goes(tmp_path: Path, conversions: list[Path]) -> None:
    found = Path(locate_model(NAME))
    (left,) = conversions
    found.rename(left)
    (left / "half").write_text("")
    assert Path(locate_model(NAME)) == found
    assert shown(tmp_path) == {found.name}
    assert {entry.name for entry in found.iterdir()} == {"config.json"}


def test_a_conversion_that_fails_leaves_nothing(
    tmp_path: Path, conversions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(source: Path, model: Any, target: Path) -> None:
        (target / "half").write_text("")
        raise OSError("no space")

    monkeypatch.setattr(models, "_convert", fail)
    with pytest.raises(OSError, match="no space"):
        locate_model(NAME)
    assert shown(tmp_path) == set()


def test_several_at_once_convert_it_once(conversions: list[Path]) -> None:
    threads = [threading.Thread(target=locate_model, args=(NAME,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(conversions) == 1


def test_others_may_read_it(conversions: list[Path]) -> None:
    umask = os.umask(0o022)
    try:
        assert Path(locate_model(NAME)).stat().st_mode & 0o777 == 0o755
    finally:
        os.umask(umask)

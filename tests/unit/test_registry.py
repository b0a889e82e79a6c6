"""What is registered by name: our own, other distributions', and what is said of a name that is neither."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from retrieval_heads.errors import ConfigError
from retrieval_heads.registry import Registry

GROUP = "retrieval_heads.things"


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, points: str, module: str = "") -> None:
    """A distribution as an installer leaves it: its module, and its entry points beside."""
    info = folder / "foreign_things-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: foreign-things\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{points}\n")
    (folder / "foreign_things.py").write_text(module)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "foreign_things", raising=False)


def registry(**builtin: str) -> Registry[object]:
    return Registry(GROUP, "thing", builtin)


def test_our_own_and_others_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, "far = foreign_things:FAR", "FAR = 'from afar'\n")
    things = registry(near="math:pi")
    assert things.names == ("near", "far")
    assert things.find("far") == "from afar"
    assert "foreign_things" in sys.modules


def test_nothing_is_imported_before_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, "far = foreign_things:FAR", "FAR = 'from afar'\n")
    assert registry().names == ("far",)
    assert "foreign_things" not in sys.modules


def test_an_unknown_name_is_told_with_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r"unknown thing 'neer'; did you mean 'near'\? there are: near, wide"):
        registry(near="math:pi", wide="math:tau").find("neer")


def test_a_name_that_is_taken_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, "near = foreign_things:FAR")
    with pytest.raises(ConfigError, match="'near' is registered twice: by math:pi and foreign_things:FAR"):
        registry(near="math:pi").find("near")


def test_what_cannot_be_imported_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, "far = foreign_things:FAR", "import no_such_module_at_all\n")
    with pytest.raises(ConfigError, match=r"'far' \(foreign_things:FAR\) cannot be imported: ModuleNotFoundError"):
        registry().find("far")

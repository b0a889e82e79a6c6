"""Settings that would be taken for something else, could decide nothing, or would never end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from retrieval_heads.errors import ConfigError, EngineError
from retrieval_heads.gates.expression import idleness, parse_gate
from retrieval_heads.suites.reading import overrides, read_settings
from retrieval_heads.suites.suite import load_suite

NEEDLE = {"needle": "The ferry leaves at dawn.", "question": "When does it leave?"}
SUITE: dict[str, Any] = {
    "kind": "niah",
    "haystack": "pydoc",
    "needles": [NEEDLE],
    "sweep": {"context_lengths": [128, 256], "document_depths": [0, 50]},
}


def refusal(folder: Path, **keys: Any) -> str:
    file = folder / "tale.yaml"
    file.write_text(yaml.safe_dump({**SUITE, **keys}, sort_keys=False, allow_unicode=True))
    with pytest.raises(ConfigError) as error:
        load_suite(file)
    assert str(error.value).startswith(f"{file}")
    return str(error.value)


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"sweep": {"context_lengths": [True], "document_depths": [0]}}, "a number is expected, found true"),
        ({"sweep": {"context_lengths": [128], "document_depths": [True]}}, "a number is expected, found true"),
        ({"sweep": {"context_lengths": [128], "document_depths": [0], "seeds": [True]}}, "found true"),
        ({"scoring": {"threshold": True}}, "a number is expected, found true"),
        ({"generation": {"max_tokens": True}}, "a number is expected, found true"),
        ({"needles": [{**NEEDLE, "answer_span": " "}]}, "answer_span is empty"),
        ({"needles": [{**NEEDLE, "name": "a"}, {**NEEDLE, "name": "b"}]}, "are those of needles.0 again"),
        ({"needles": [{**NEEDLE, "name": "a"}, {**NEEDLE, "needle": "The  ferry leaves at dawn. "}]}, "needles.0"),
        ({"haystack": {"source": "pydoc", "name": " "}}, "a text is expected, found none"),
        ({"haystack": "~nosuchuser/tales"}, "there is no user 'nosuchuser'"),
        ({"haystack": "x" * 5000}, "File name too long"),
        ({"haystack": "/dev/zero"}, "expected a folder of .txt files"),
        ({"output_dir": ""}, "a path is expected, found ''"),
        ({"model": {"model": " "}}, "a text is expected, found none"),
        ({"model": {"max_model_len": "long"}}, "max_model_len: a number of tokens is expected, found 'long'"),
        ({"model": {"max_model_len": True}}, "max_model_len: a number of tokens is expected, found True"),
        ({"engine": {"replicas": 10**6}}, "a run has at most 1024"),
        ({"score_threshold": 17}, "less than or equal to 1"),
    ],
)
def test_nonsense_is_refused_with_its_file(tmp_path: Path, keys: dict[str, Any], reason: str) -> None:
    assert reason in refusal(tmp_path, **keys)


@pytest.mark.parametrize(
    "sweep",
    [
        {"context_lengths": {"min": 1, "max": 10**15}, "document_depths": [0]},
        {"context_lengths": {"min": 1, "max": 99, "intervals": 10**9}, "document_depths": [0]},
        {"context_lengths": [128], "document_depths": {"min": 0, "max": 100, "intervals": 10**9}},
        {"context_lengths": [10**18], "document_depths": [0]},
        {"context_lengths": {"min": 1, "max": 2000}, "document_depths": {"min": 0, "max": 100}},
    ],
)
def test_a_grid_that_nobody_can_ask_is_refused_before_it_is_made(tmp_path: Path, sweep: dict[str, Any]) -> None:
    assert any(said in refusal(tmp_path, sweep=sweep) for said in ("at most 100,000", "100000"))


def test_the_cells_of_an_ablation_count_its_arms(tmp_path: Path) -> None:
    said = refusal(tmp_path, kind="ablate", ablate={"heads": [[1, 2]], "top": [1], "draws": 10**9})
    assert "ablate.draws: 2 lengths × 2 depths × 1,000,000,002 arms" in said
    assert "are 4,000,000,008 cells; a suite has at most 100,000" in said


def test_ten_thousand_cells_are_a_suite(tmp_path: Path) -> None:
    file = tmp_path / "tale.yaml"
    sweep = {"context_lengths": {"min": 101, "max": 200}, "document_depths": {"min": 1, "max": 100}}
    file.write_text(yaml.safe_dump({**SUITE, "sweep": sweep}))
    assert len(load_suite(file).cells) == 10_000


def test_a_file_of_results_is_named_once(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/results.jsonl").write_text("")
    (tmp_path / "again").symlink_to("run")
    for names in (["run", "run/results.jsonl"], ["run", "again"], ["run", "run"]):
        said = refusal(tmp_path, kind="detect", haystack=None, needles=[], from_results=names)
        assert f"from_results: {names[1]} is named twice" in said


@pytest.mark.parametrize(
    "assignment",
    ["model..x=5", ".model=5", "model.=5", "model. x=5", "=5", "needles=null", "model.model=", "haystack=~", "x" * 99],
)
def test_a_setting_that_sets_nothing_is_refused(assignment: str) -> None:
    with pytest.raises(ConfigError, match=r"^--rh-set "):
        overrides([assignment])


def test_a_setting_is_no_bomb() -> None:
    with pytest.raises(ConfigError, match="keys stand in each other"):
        overrides([".".join("x" * 3000) + "=1"])
    with pytest.raises(ConfigError, match="more than 50 lists"):
        overrides(["model.x=" + "[" * 400 + "]" * 400])


def test_a_config_that_is_no_regular_file_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^/dev/zero: cannot be read: it is a device"):
        read_settings(Path("/dev/zero"))


@pytest.mark.parametrize(
    ("gate", "verdict"),
    [
        ("mean(pass_rate) >= -1", "it cannot fail"),
        ("mean(pass_rate) >= 0", "it cannot fail"),
        ("mean(pass_rate) >= 5", "it cannot hold"),
        ("mean(pass_rate) > 1", "it cannot hold"),
        ("mean(rouge1_recall) <= 1", "it cannot fail"),
        ("min over length(substring) < 0", "it cannot hold"),
        ("effective_length(0.85) >= 0", "it cannot fail"),
        ("head_overlap(10) > 1", "it cannot hold"),
        ("head_spearman() >= -1", "it cannot fail"),
        ("mean(seconds) >= 0", "it cannot fail"),
        ("mean(achieved_depth) > 100", "it cannot hold"),
        ("mean(pass_rate) >= 1", ""),
        ("mean(pass_rate) > 0", ""),
        ("head_spearman() >= 0", ""),
        ("mean(seconds) < 60", ""),
        ("effective_length(0.85) >= 4096", ""),
        ("mean(achieved_depth) <= 60", ""),
    ],
)
def test_a_gate_that_decides_nothing_is_a_mistake(tmp_path: Path, gate: str, verdict: str) -> None:
    assert idleness(parse_gate(gate)).startswith(verdict)
    assert bool(idleness(parse_gate(gate))) == bool(verdict)
    if verdict:
        assert verdict in refusal(tmp_path, gates=[gate])


def test_an_effective_length_is_one_that_is_asked(tmp_path: Path) -> None:
    assert "it cannot hold" in refusal(tmp_path, gates=["effective_length(0.85) >= 4096"])
    file = tmp_path / "tale.yaml"
    file.write_text(yaml.safe_dump({**SUITE, "gates": ["effective_length(0.85) >= 256"]}))
    assert load_suite(file).settings.gates


@pytest.mark.parametrize(
    ("keywords", "reason"),
    [
        ({"prompt": "\ud800"}, "half of a surrogate pair stands at character 0"),
        ({"prompt": 5}, "a text or a list of messages is expected"),
        ({"prompt": []}, "a text or a list of messages is expected"),
        ({"prompt": [{"role": "user"}]}, "a message has a text as role and as content"),
        ({"prompt": [{"role": "user", "content": 5}]}, "a message has a text as role and as content"),
        ({"prompt": "x", "max_tokens": 0}, "max_tokens: a number of tokens is expected, found 0"),
        ({"prompt": "x", "max_tokens": True}, "max_tokens: a number of tokens is expected, found True"),
        ({"prompt": "x", "temperature": float("nan")}, "temperature: nan does not cross to the engine"),
        ({"prompt": "x", "stop": {"a"}}, "stop: {'a'} does not cross to the engine"),
        ({"prompt": "x", "stop": "\ud800"}, "stop: "),
        ({"prompt": "x", "mask": {"heads": {1}}}, "mask: "),
        (
            {"prompt": "x", "mask": {"heads": [[1, 2]]}},
            'mask: such as {"mode": "zero", "heads": [[18, 7]]}',
        ),
        (
            {"prompt": "x", "mask": {"mode": "half", "heads": [[1, 2]]}},
            "a mode of zero, mean, uniform, or of stream with a `stream` of sink and recent, is expected",
        ),
        ({"prompt": "x", "mask": {"mode": "zero", "heads": [1, 2]}}, "mask: such as"),
    ],
)
def test_a_question_that_cannot_be_asked(keywords: dict[str, Any], reason: str) -> None:
    from retrieval_heads.engine.client import Address, EngineClient

    with pytest.raises(EngineError, match=r"^ask: ") as error:  # refused before anybody is called
        EngineClient(Address("/nowhere/engine.sock", "key")).ask(**keywords)
    assert reason in str(error.value)

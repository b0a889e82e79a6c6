"""YAML: no key twice at any level, every encoding, one document."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from retrieval_heads.errors import ConfigError
from retrieval_heads.settings.yaml_reading import decode, parse
from retrieval_heads.suites.reading import overrides, read_settings


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("gates: [a]\nkind: niah\ngates: []\n", "f:3: gates: this key is given twice, on lines 1 and 3; "),
        ("sweep:\n  seeds: [0]\n  seeds: [1]\n", "f:3: sweep.seeds: this key is given twice, on lines 2 and 3; "),
        ("needles:\n- {needle: a,\n   needle: b}\n", "f:3: needles.0.needle: this key is given twice, on lines 2 and "),
        ('{"kind": "niah",\n "kind": "detect"}', "f:2: kind: this key is given twice, on lines 1 and 2; "),
        ("kind: niah\n'kind': niah\n", "f:2: kind: this key is given twice, on lines 1 and 2; "),
        ("kind: niah\n!!str kind: niah\n", "f:2: kind: this key is given twice, on lines 1 and 2; "),
        ("a: {8: 1, 0x8: 2}\n", "f:1: a.0x8: this key is given twice, "),
        ("a: &x {b: 1}\nc: &y {d: 1}\ne:\n  <<: *x\n  <<: *y\n", "f:5: e.<<: this key is given twice, on lines 4 and"),
        ("a: &x {b: 1, b: 2}\nc: [*x, *x]\n", "f:1: a.b: this key is given twice"),
    ],
)
def test_a_key_given_twice_is_refused_with_both_lines(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse(text, "f")
    assert str(raised.value).startswith(sentence)


def test_keys_that_yaml_reads_as_one_truth_value_are_refused() -> None:
    with pytest.raises(ConfigError, match="f:1: a: the key 'true' is read as no text; quote it if it is one"):
        parse("a: {true: 1, yes: 2}\n", "f")


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("a: {b: 1}\nc: {b: 1}\n", {"a": {"b": 1}, "c": {"b": 1}}),
        ("[{a: 1}, {a: 2}]", [{"a": 1}, {"a": 2}]),
        # A key of one's own over a merged one is what merging is for, in whichever order the mappings are made.
        (
            "p: {a: &a {<<: {x: 1, y: 1}, x: 2}}\nc: {<<: *a, x: 3}\n",
            {"p": {"a": {"x": 2, "y": 1}}, "c": {"x": 3, "y": 1}},
        ),
        ("a: {1: x, '1': y}\n", {"a": {1: "x", "1": "y"}}),
        ("revision: 2024-01-02\n", {"revision": "2024-01-02"}),
        ("", None),
    ],
)
def test_what_is_not_twice_is_read(text: str, read: Any) -> None:
    assert parse(text, "f") == read


@pytest.mark.parametrize("text", ["a: &a {b: *a, c: [*a]}", "a: &a [1, [*a]]", "&a [*a]"])
def test_an_anchor_inside_of_itself_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^f:1: an anchor stands for something that holds the anchor itself$"):
        parse(text, "f")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("!!set {a, b}", "!!set is not accepted"),
        ("!!binary aGVsbG8=", "!!binary is not accepted"),
        ("!!timestamp 2020-01-01", "!!timestamp is not accepted"),
        ("9" * 5000, "a number of 5,000 characters"),
        ("1" + "0" * 30, "more than 64 bits"),
        (".nan", "not a finite number"),
        ("1.0e+400", "not a finite number"),
        ("!!int x", "'x' is no int"),
        ('"a\\0b"', "holds a NUL"),
        ("{on: 1}", "the key 'on' is read as no text"),
        ("[" * 60 + "]" * 60, "more than 50 lists and mappings stand in each other"),
        ("[&a [x, x], &b [" + "*a, " * 999 + "], [" + "*b, " * 999 + "]]", "more than 1,000,000 values"),
    ],
)
def test_what_no_setting_is_is_refused_with_its_line(value: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=r"^f:2: ") as error:
        parse(f"a: 1\nb: {value}", "f")
    assert reason in str(error.value)


def test_anchors_that_repeat_a_little_are_written_out() -> None:
    assert parse("a: &a [1, {b: 2}]\nc: [*a, *a]", "f")["c"] == [[1, {"b": 2}]] * 2


@pytest.mark.parametrize("text", ["kind: niah\n---\nkind: niah\n", "a: [1,", "a: !mine 3", "a: \x01"])
def test_what_is_no_yaml_of_one_document_says_so(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^f:\d+: not valid YAML: "):
        parse(text, "f")


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]
)
def test_every_encoding_of_yaml_is_read(tmp_path: Path, encoding: str) -> None:
    text = "kind: niah\nhaystack: é\nneedle: 1\n"
    assert decode(text.encode(encoding), "f") == text
    file = tmp_path / "suite.yaml"
    file.write_bytes(text.encode(encoding))
    with pytest.raises(ConfigError, match=r"suite\.yaml:3: needle: unknown key; did you mean 'needles'\?"):
        read_settings(file)


def test_bytes_of_no_encoding_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^f: cannot be read \('utf-8' codec"):
        decode(b"kind: caf\xe9\n", "f")


def test_a_setting_of_the_command_line_holds_no_key_twice() -> None:
    with pytest.raises(ConfigError, match=r"^--rh-set sweep=\{.*\}:1: seeds: this key is given"):
        overrides(["sweep={seeds: [0], seeds: [1]}"])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("results_files: [a]\nfrom_results: [b]\n", "results_files and from_results are two names of one key"),
        (
            "expect: {top_10_drop_exceeds_random: 0.3, top_010_drop_exceeds_random: 0}",
            "the drop of the top 10 is expected twice",
        ),
        (
            "expect: {drop_exceeds_random: {10: 0.3}, top_10_drop_exceeds_random: 0}",
            "the drop of the top 10 is expected twice",
        ),
    ],
)
def test_one_thing_under_two_names_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "suite.yaml").write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        read_settings(tmp_path / "suite.yaml")

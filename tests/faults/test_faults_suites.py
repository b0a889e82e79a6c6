"""Suites, configs and `--rh-set` that are wrong in one place."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from fault_case import Case, Special
from fault_project import ABLATE, CONFIG, DETECT, STORED, SUITE, TALE, text_of
from fault_settings import TIMES, drawn, some
from fault_values import BOMB, FREE, KEYS, NO_JSON
from hypothesis import given
from hypothesis import strategies as st

Check = Callable[[Case], None]
_SUITES = {
    "niah": (SUITE, TALE),
    "detect": ("suites/detect/heads.yaml", DETECT),
    "ablate": ("suites/ablate/mask.yaml", ABLATE),
    "stored": ("suites/stored/stored.yaml", STORED),
}
_MARK = "RAWxVALUE"


def with_raw(data: Any, keys: tuple[str | int, ...], raw: str) -> str:
    """The document as YAML with a value as it is written."""
    made = copy.deepcopy(data)
    node = made
    for key in keys[:-1]:
        node = node.setdefault(key, {}) if isinstance(node, dict) else node[key]
        if not isinstance(node, dict | list):
            raise ValueError(keys)
    node[keys[-1]] = _MARK
    return text_of(made).replace(_MARK, raw)


def validate(file: str) -> tuple[str, ...]:
    """The command that reads a suite and starts nothing."""
    return ("validate", file)


def collect(file: str) -> tuple[str, ...]:
    """A session that collects a suite."""
    return ("--co", "-q", file, "--rh-config", "config.yaml")


_WHOLE = (
    ("sweep", "context_lengths"),
    ("sweep", "document_depths"),
    ("gates",),
    ("needles",),
    ("needles", 0, "answer_span"),
    ("ablate", "top"),
    ("ablate", "draws"),
    ("haystack",),
    ("from_results",),
)
_PARTS = 3
_WRONG = [
    [
        (kind, keys, raw)
        for kind, of in KEYS.items()
        for number, (keys, raws) in enumerate(of.items())
        for raw in (raws if keys in _WHOLE else some(raws, 4, number))[part::_PARTS]
    ]
    for part in range(_PARTS)
]
"""The first has a value of every key, and the others more of them."""


@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.long) for part in range(1, _PARTS))])
def test_a_wrong_value_is_refused_at_its_key(check: Check, part: int) -> None:
    for number, (kind, keys, raw) in enumerate(_WRONG[part]):
        file, data = _SUITES[kind]
        says = [file.rpartition("/")[2]] + ([str(keys[0])] if len(keys) > 1 else [])
        command = Case("cli", validate(file), {file: with_raw(data, keys, raw)}, says=says, note=f"{keys} {raw:.60}")
        if number % 16 == 0:  # a session takes longer
            command = Case("pytest", collect(file), command.files, says=says, note=command.note)
        check(command)


@drawn(20)
@given(st.sampled_from(FREE), st.sampled_from(NO_JSON), st.sampled_from(["suite", "config", "set"]))
def test_what_is_no_json_is_refused_in_free_sections(check: Check, keys: tuple[str, ...], raw: str, where: str) -> None:
    if where == "suite":
        case = Case("cli", validate(SUITE), {SUITE: with_raw(TALE, keys, raw)}, says=["tale.yaml"], note=str(keys))
    elif where == "config":
        files = {"config.yaml": with_raw(CONFIG, keys, raw)}
        case = Case("pytest", collect(SUITE), files, says=["config.yaml"], note=str(keys))
    else:
        if len(raw) > 100_000:
            return
        setting = f"{'.'.join(keys)}={raw}"
        case = Case("pytest", [*collect(SUITE), "--rh-set", setting], says=["--rh-set"], note=str(keys), status=4)
    check(case)


@drawn(20)
@given(st.sampled_from(sorted(KEYS["niah"], key=str)), st.sampled_from(NO_JSON), st.sampled_from(["niah", "config"]))
def test_what_is_no_json_is_refused_at_every_key(
    check: Check, keys: tuple[str | int, ...], raw: str, where: str
) -> None:
    text = with_raw(TALE, keys, raw)
    if where == "niah":
        check(Case("cli", validate(SUITE), {SUITE: text}, says=["tale.yaml"], note=f"{keys} {raw:.60}"))
    else:
        check(Case("cli", ("validate", SUITE, "--config", "c.yaml"), {"c.yaml": text}, says=["c.yaml"]))


_DOCUMENTS = {
    "nothing": b"",
    "a comment": b"# kind: niah\n",
    "a list": b"[1, 2]\n",
    "a text": b"kind\n",
    "two documents": b"kind: niah\n---\nkind: niah\n",
    "NUL": b"kind: niah\n\0\n",
    "no UTF-8": b"kind: niah\nhaystack: \xff\xfe\n",
    "a tab": b"kind: niah\nsweep:\n\tseeds: [0]\n",
    "an open bracket": b"kind: niah\nneedles: [\n",
    "an open quote": b'kind: niah\nhaystack: "tales\n',
    "100,000 brackets": b"kind: niah\nneedles: " + b"[" * 100_000 + b"\n",
    "100,000 pairs of brackets": b"kind: niah\nneedles: " + b"[" * 100_000 + b"]" * 100_000 + b"\n",
    "500 deep": b"kind: niah\nneedles: " + b"[" * 500 + b"]" * 500 + b"\n",
    "an alias bomb": f"kind: niah\nx: {BOMB}\n".encode(),
    "a bomb in a merge": b"kind: niah\na: &a {b: 1}\n<<: [*a, *a]\nneedles: *a\n",
    "a key that is a list": b"kind: niah\n? [a]\n: 1\n",
    "a key that is a number": b"kind: niah\n1: 2\n",
    "a key that is nothing": b"kind: niah\n~: 2\n",
    "a key with a control character": b'kind: niah\n"\\e[31mred": 2\n',
    "a value with a control character": b'kind: niah\nverdict: "\\e[31mred\\e]0;title\\a"\n',
    "a key of 100,000 characters": b"kind: niah\n? " + b"k" * 100_000 + b"\n: 1\n",
    "a value of 100,000 characters": b"kind: niah\nverdict: " + b"k" * 100_000 + b"\n",
    "a directive": b"%YAML 9.9\n---\nkind: niah\n",
    "a tag of Python's": b"kind: !!python/name:os.system\n",
    "a key that is a set": b"kind: niah\n!!set x: 1\n",
    "a key that is a list by its tag": b"kind: niah\n!!seq x: 1\n",
    "a key of a tag of nobody's": b"kind: niah\n!ours x: 1\n",
}


_READERS = ("validate", "pytest", "config", "niah")


@pytest.mark.parametrize("where", _READERS)
def test_a_document_that_is_no_suite_is_refused(check: Check, where: str) -> None:
    for name, content in some([*_DOCUMENTS.items()], 2 if where == "validate" else 4, _READERS.index(where)):
        check(_document(name, content, where))


def _document(name: str, content: bytes, where: str) -> Case:
    if where == "validate":
        return Case("cli", validate(SUITE), {SUITE: content}, says=["tale.yaml"], note=name)
    if where == "pytest":
        return Case("pytest", collect(SUITE), {SUITE: content}, says=["tale.yaml"], note=name)
    expected: Any = "either" if name in ("nothing", "a comment") else "refused"
    files = {"config.yaml": content}
    if where == "config":
        return Case("pytest", collect(SUITE), files, expected, ["config.yaml"], note=name)
    return Case("cli", ("validate", SUITE, "--config", "config.yaml"), files, expected, ["config.yaml"], note=name)


@pytest.mark.parametrize("kind", ["fifo", "/dev/zero", "/dev/full", "folder", "nothing", "itself"])
@pytest.mark.parametrize("file", [SUITE, "config.yaml", "tales/a.txt", "tales"])
def test_what_is_no_file_is_refused(check: Check, kind: str, file: str) -> None:
    special = {
        "fifo": Special("fifo"),
        "folder": Special("folder"),
        "nothing": Special("link", "nowhere"),
        "itself": Special("link", "itself"),
    }.get(kind, Special("link", kind))
    expected = "either" if file == SUITE and kind == "folder" else "refused"
    says = [file.rpartition("/")[2]] if file != "tales/a.txt" else ["tales"]
    # A folder of stories that is an empty folder holds no story.
    check(Case("cli", ("validate", SUITE, "--config", "config.yaml"), {file: special}, expected, says))
    if TIMES or (kind in ("fifo", "/dev/zero") and file in (SUITE, "config.yaml")):
        check(Case("pytest", collect(SUITE), {file: special}, expected, says if file != SUITE else []))


_HAYSTACKS: dict[str, tuple[dict[str, Any], str]] = {
    "a binary": ({"tales/a.txt": b"\x00\x01\x02\xff"}, "refused"),
    "NULs": ({"tales/a.txt": b"Once upon\0 a time."}, "refused"),
    "no UTF-8": ({"tales/b.txt": "Grüße".encode("latin-1")}, "refused"),
    "UTF-16": ({"tales/a.txt": "Once upon a time.".encode("utf-16")}, "refused"),
    "white space": ({"tales/a.txt": b" \n\t"}, "refused"),
    "nothing": ({"tales/a.txt": b""}, "refused"),
    "a folder x.txt beside": ({"tales/x.txt": Special("folder")}, "refused"),
    "a FIFO beside": ({"tales/b.txt": Special("fifo")}, "refused"),
    "a device beside": ({"tales/b.txt": Special("link", "/dev/zero")}, "refused"),
    "a broken link": ({"tales/b.txt": Special("link", "nowhere")}, "refused"),
    "another file": ({"tales/b.md": b"\xff"}, "accepted"),
    "CRLF and a BOM": ({"tales/a.txt": b"\xef\xbb\xbfOnce upon.\r\nA time.\r\n"}, "accepted"),
    "a link to a file": ({"tales/b.txt": Special("link", "a.txt")}, "accepted"),
}


@pytest.mark.parametrize("name", _HAYSTACKS)
def test_haystacks(check: Check, name: str) -> None:
    files, expected = _HAYSTACKS[name]
    check(Case("cli", ("validate", SUITE), files, expected, ["tales"], note=name))  # type: ignore[arg-type]


_SETS = (
    "",
    "=",
    "=5",
    " =5",
    "model",
    "model.x",
    ".=5",
    ".model=5",
    "model.=5",
    "model..x=5",
    "model.x..y=5",
    "model. .x=5",
    "model.model.x=5",
    "sweep.context_lengths.0=5",
    "needles=null",
    "needles.needle=x",
    "needles=",
    "sweep=null",
    "sweep.context_lengths=null",
    "haystack=null",
    "model=null",
    "kind=null",
    "kind=",
    "nothing=5",
    "sweep.context_length=[128]",
    "model.model=",
    "scoring.threshold=.nan",
    "scoring.threshold=1e400",
    "gates=[mean(pass_rate) >= -1]",
    "gates=mean(pass_rate) >= 5",
    "generation.max_tokens=" + "9" * 5000,
    "x" * 5000 + "=1",
    ".".join(["model", *"x" * 3000]) + "=1",
    "model.x=[",
    "model.x={a: 1, a: 2}",
    "model.x=&a [*a]",
    "model.x=" + "[" * 3000,
    "sweep.context_lengths={min: 1, max: 1000000000000000}",
    "sweep.document_depths={min: 0, max: 100, intervals: 1000000000}",
    "\x1b[31m=5",
    "verdict=\x1b[31mred",
    "output_dir=''",
    "output_dir=~nosuchuser/x",
)


@pytest.mark.parametrize("where", ["pytest", "validate"])
def test_a_setting_that_cannot_be_made_is_refused(check: Check, where: str) -> None:
    for setting in _SETS if where == "pytest" else some(_SETS, 2, 0):
        if where == "pytest":
            arguments = (*collect(SUITE), "--rh-set", setting)
            check(Case("pytest", arguments, says=["--rh-set"] if "\x1b" not in setting else [], note=setting[:80]))
        elif "=" in setting and setting.partition("=")[0].strip(" ."):
            key, _, value = setting.partition("=")
            if value and key != "model":  # there it is a model of that name
                check(Case("cli", ("validate", SUITE, f"--{key}={value}"), note=setting[:80]))


@drawn(20)
@given(data=st.data())
def test_a_suite_cut_or_with_a_byte_changed_ends_in_no_fault(check: Check, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(sorted(_SUITES)))
    file, settings = _SUITES[kind]
    content = text_of(settings).encode()
    at = data.draw(st.integers(0, len(content) - 1))
    put = data.draw(
        st.sampled_from([b"", b"\0", b"\xff", b"&a ", b"*a", b"[", b"{", b'"', b"!!set ", b"\x1b", b": ", b"-"])
    )
    cut = data.draw(st.booleans())
    check(Case("cli", validate(file), {file: content[:at] + put + (b"" if cut else content[at + 1 :])}, "either"))


_ESCAPES = ('"\\e[31mred\\e[0m"', '"\\e]0;title\\a"', '"\\x9b2J"', '"\\u202egnp.exe"', '"a\\rb"')
_SAID = ("needle", "answer", "question")


@pytest.mark.parametrize("key", [*_SAID, "name"])
@pytest.mark.parametrize("raw", _ESCAPES)
def test_no_control_character_reaches_the_terminal(check: Check, key: str, raw: str) -> None:
    text = with_raw(TALE, ("needles", 0, key), raw)
    if key != "answer":
        text = text.replace("answer_span: at dawn", "answer_span: null")
    check(Case("cli", validate(SUITE), {SUITE: text}, "either", note=f"{key} {raw}"))
    if key in some(_SAID, 3, _ESCAPES.index(raw)):
        session = ("-v", "suites/niah", "--rh-config", "config.yaml", "--rh-verdict", "cell")
        check(Case("pytest", session, {SUITE: text}, "either", note=f"{key} {raw}"))


FINE: dict[str, dict[str, Any]] = {
    "anchors used sensibly": {
        SUITE: "\n".join(
            [
                "kind: niah",
                "haystack: tales",
                "needles:",
                "  - &ferry {needle: The ferry to Oslo leaves at dawn., question: &q When does it leave?}",
                "  - {<<: *ferry, needle: The bus to Oslo leaves at noon., name: bus}",
                "sweep: {context_lengths: &l [128, 256], document_depths: [0, 50]}",
                "model: {hf_overrides: {a: *l, b: *l}}",
            ]
        )
    },
    "ten thousand cells": {
        SUITE: text_of(
            {**TALE, "sweep": {"context_lengths": {"min": 101, "max": 200}, "document_depths": {"min": 1, "max": 100}}}
        )
    },
    "numbers at their ends": {
        SUITE: with_raw(TALE, ("scoring", "threshold"), "0").replace("temperature: 0.0", "temperature: 1e-3")
    },
    "every script": {
        SUITE: text_of(
            {**TALE, "needles": [{"needle": "渡し船は夜明けに出る。", "question": "いつ？ 🚢", "answer": "夜明け"}]}
        )
    },
    "a set of free keys": {
        SUITE: text_of({**TALE, "model": {"hf_overrides": {"rope": {"type": "yarn", "factor": 4.0}}, "revision": "v1"}})
    },
    "gates that can break and can hold": {
        SUITE: with_raw(
            TALE,
            ("gates",),
            "[mean(pass_rate) >= 0.5, mean(pass_rate) >= 1, min(rouge1_recall) > 0, effective_length(0.9) >= 256,"
            " mean(seconds) < 10, max(pass_rate) <= 0.9, mean over depth(achieved_depth) <= 60]",
        )
    },
}


@pytest.mark.parametrize("name", FINE)
def test_what_is_fine_is_accepted(check: Check, name: str) -> None:
    check(Case("cli", validate(SUITE), FINE[name], "accepted", note=name))
    check(Case("pytest", collect(SUITE), FINE[name], "accepted", note=name))

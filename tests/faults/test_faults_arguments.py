"""Command lines, options of a session and arguments of `rh_engine.ask` that are wrong."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from fault_case import Case
from fault_project import NIAH, SUITE
from fault_settings import drawn
from fault_values import NASTY_TEXT
from hypothesis import given
from hypothesis import strategies as st

Check = Callable[[Case], None]

_CELL = ("--cell", "len_128/depth_0", "--config", "config.yaml")
REFUSED: tuple[tuple[str, ...], ...] = (
    ("nothing",),
    ("--nothing",),
    ("validate", "nowhere"),
    ("validate", SUITE, "--config", "nowhere.yaml"),
    ("validate", SUITE, "--config", ""),
    ("validate", SUITE, "--config", "~nosuchuser/c.yaml"),
    ("validate", SUITE, "--config", "/dev/zero"),
    ("validate", SUITE, "--sweep.context-lengths", "true"),
    ("validate", SUITE, "--sweep.context-lengths", "1e9", "x"),
    ("validate", SUITE, "--sweep.context-lengths={min: 1, max: 1000000000000000}"),
    ("validate", SUITE, "--sweep..context-lengths", "128"),
    ("validate", SUITE, "--needles", "null"),
    ("validate", SUITE, "--model.x", "[" * 3000),
    ("validate", SUITE, "--gates", "mean(pass_rate) >= 5"),
    ("validate", SUITE, "--scoring.threshold", "nan"),
    ("validate", "tales/a.txt"),
    ("validate", "/dev/zero"),
    ("validate", "x" * 5000),
    ("niah", SUITE, "--config", "nowhere.yaml"),
    ("niah", SUITE, "--config", "/dev/zero"),
    ("niah", "--verdict", "maybe"),
    ("detect", SUITE, "--config", ""),
    ("compare",),
    ("compare", "run"),
    ("compare", "run", "nowhere"),
    ("compare", "nowhere", "run"),
    ("compare", "~nosuchuser", "run"),
    ("compare", "/dev/zero", "run"),
    ("compare", "run", "/dev/zero"),
    ("compare", "x" * 5000, "run"),
    ("compare", "run", "run", "--max-drop", "5"),
    ("compare", "run", "run", "--max-drop", "nan"),
    ("compare", "run", "run", "--max-drop", "-1"),
    ("compare", "run", "run", "--max-drop", "1e400"),
    ("compare", "run", "run", "--max-drop", ""),
    ("compare", "run", "run", "--max-drop", "nothing:0.1"),
    ("compare", "run", "run", "--json", "tales"),
    ("compare", "run", "run", "--json", ""),
    ("compare", "run", "run", "--json", "tales/a.txt/x.json"),
    ("compare", "run", "run", "--json", "x" * 5000),
    ("visualize", "niah", "--results", "nowhere"),
    ("visualize", "niah", "--results", ""),
    ("visualize", "niah", "--results", "/dev/zero"),
    ("visualize", "niah", "--results", "run", "--output", ""),
    ("visualize", "niah", "--results", "run", "--output", "tales"),
    ("visualize", "niah", "--results", "run", "--output", "/dev/null/x.png"),
    ("visualize", "niah", "--results", "run", "--vmin", "nan"),
    ("visualize", "niah", "--results", "run", "--vmin", "1", "--vmax", "0"),
    ("visualize", "niah", "--results", "run", "--vmax", "inf"),
    ("visualize", "niah", "--results", "run", "--metric", "nothing"),
    ("visualize", "niah", "--results", "run", "--metric", ""),
    ("visualize", "detect", "--results", "tales"),
    ("visualize", "detect", "--results", "heads/heads.json", "--output", ""),
    ("reconstruct", "nowhere"),
    ("reconstruct", "run", "--cell", "nothing", "--config", "config.yaml"),
    ("reconstruct", "run", "--cell", "\x1b[31m", "--config", "config.yaml"),
    ("reconstruct", "/dev/zero", *_CELL),
    ("reconstruct", "x" * 5000, *_CELL),
    ("reconstruct", "run", "--cell", "len_128/depth_0", "--config", "/dev/zero"),
    ("models", "--check", "nowhere/config.json"),
    ("models", "--check", "nowhere.yaml"),
    ("init", "tales/a.txt"),
    ("init", "/dev/null/x"),
)


@pytest.mark.parametrize("part", range(2))
def test_a_command_line_that_is_wrong_is_refused(check: Check, part: int) -> None:
    for arguments in REFUSED[part::2]:
        check(Case("cli", arguments))


SESSIONS: tuple[tuple[str, ...], ...] = (
    ("--rh-config", "nowhere.yaml"),
    ("--rh-config", "~nosuchuser/c.yaml"),
    ("--rh-config", "/dev/zero"),
    ("--rh-config", "tales"),
    ("--rh-config", "x" * 5000),
    ("--rh-baseline", "nowhere"),
    ("--rh-baseline", "~nosuchuser"),
    ("--rh-baseline", "/dev/zero"),
    ("--rh-baseline", "x" * 5000),
    ("--rh-baseline", "tales"),
    ("--rh-baseline", "../main"),
    ("--rh-run", "run"),
    ("--rh-resume", "--rh-run", "nowhere"),
    ("--rh-resume", "--rh-run", "~nosuchuser"),
    ("--rh-resume", "--rh-run", "x" * 5000),
    ("--rh-resume", "--rh-run", "tales"),
    ("--rh-resume", "--rh-run", "run", "--rh-baseline", "run"),
    ("--rh-rescore", "--rh-run", "tales"),
    ("--rh-rescore", "--rh-run", "/dev/zero"),
    ("--rh-rescore", "--rh-run", "run", "--rh-baseline", "run/results.jsonl"),
    ("--rh-set", "output_dir=run", "--rh-baseline", "run"),
    ("--rh-max-drop", "0.1"),
    ("--rh-baseline", "main", "--rh-max-drop", "nan"),
    ("--rh-baseline", "main", "--rh-max-drop", "9" * 5000),
    ("--rh-save-baseline", "../x"),
    ("--rh-save-baseline", "x" * 5000),
    ("--rh-save-baseline", "\x1b[31m"),
    ("--rh-verdict", "maybe"),
    ("--rh-set", "model.max_model_len=long"),
    ("--rh-set", "model.max_model_len=true"),
)


def test_an_option_of_a_session_that_is_wrong_is_refused(check: Check) -> None:
    for options in SESSIONS:
        config = () if "--rh-config" in options else ("--rh-config", "config.yaml")
        check(Case("pytest", ["-q", "suites/niah", *config, *options], note=str(options)[:80]))


@drawn(20)
@given(NASTY_TEXT, st.sampled_from(["validate", "compare", "reconstruct", "visualize", "--rh-config", "--rh-run"]))
def test_a_path_of_any_text_ends_in_no_fault(check: Check, path: str, where: str) -> None:
    if path.startswith("-"):
        return
    commands = {
        "validate": ("validate", path),
        "compare": ("compare", "run", path),
        "reconstruct": ("reconstruct", path, *_CELL),
        "visualize": ("visualize", "niah", "--results", path),
    }
    if where in commands:
        check(Case("cli", commands[where], expected="either"))
    else:
        more = ("--rh-resume",) if where == "--rh-run" else ()
        check(Case("pytest", ["--co", "-q", SUITE, f"{where}={path}", *more], expected="either"))


ASKED: tuple[dict[str, object], ...] = (
    {"prompt": "\ud800"},
    {"prompt": ""},
    {"prompt": None},
    {"prompt": 5},
    {"prompt": []},
    {"prompt": ["x"]},
    {"prompt": [{"role": "user"}]},
    {"prompt": [{"role": "user", "content": None}]},
    {"prompt": [{"role": "user", "content": "\udfff"}]},
    {"prompt": [{"role": 5, "content": "x"}]},
    {"prompt": {"python": "b'x'"}},
    {"prompt": {"python": "{'a'}"}},
    {"prompt": {"python": "float('nan')"}},
    {"prompt": "x", "max_tokens": 0},
    {"prompt": "x", "max_tokens": -1},
    {"prompt": "x", "max_tokens": 1.5},
    {"prompt": "x", "max_tokens": True},
    {"prompt": "x", "max_tokens": "many"},
    {"prompt": "x", "temperature": {"python": "float('nan')"}},
    {"prompt": "x", "temperature": {"python": "float('inf')"}},
    {"prompt": "x", "stop": {"python": "{'a'}"}},
    {"prompt": "x", "stop": {"python": "b'a'"}},
    {"prompt": "x", "stop": "\ud800"},
    {"prompt": "x", "mask": {"python": "{1, 2}"}},
    {"prompt": "x", "logit_bias": {"python": "{(1, 2): 3}"}},
    {"prompt": "x", "extra_args": {"python": "object()"}},
)


def test_a_question_that_cannot_be_asked_is_refused(check: Check) -> None:
    for keywords in ASKED:
        expected = "accepted" if keywords == {"prompt": ""} else "refused"
        check(Case("ask", [json.dumps(keywords)], expected=expected, note=str(keywords)))  # type: ignore[arg-type]


def test_what_is_fine_is_accepted(check: Check) -> None:
    for arguments in (
        ("validate", "suites/niah", "--config", "config.yaml"),
        ("validate", "suites/detect"),
        ("validate", "suites/ablate"),
        ("validate", "suites/stored"),
        ("compare", "run", "run"),
        ("compare", "suites/niah/baselines/main.jsonl", "run"),
        ("reconstruct", "run", *_CELL),
    ):
        check(Case("cli", arguments, expected="accepted"))
    check(Case("pytest", NIAH, expected="accepted"))
    check(Case("pytest", ["-q", "suites/niah", *NIAH[3:], "--rh-rescore", "--rh-run", "run"], expected="accepted"))
    check(Case("pytest", ["-q", "suites/niah", *NIAH[3:], "--rh-baseline", "main"], expected="accepted"))
    check(Case("ask", [json.dumps({"prompt": "Who?", "max_tokens": 5, "stop": ["a"]})], expected="accepted"))

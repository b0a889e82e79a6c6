"""Files of runs that are wrong: results, run.json, head files, baselines; and everything that reads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fault_case import Case, Special
from fault_documents import RAW, TEXTS, places_of, value_at, with_raw, with_value, without, wrong_for
from fault_project import head_table
from fault_settings import drawn, some
from hypothesis import given
from hypothesis import strategies as st

Check = Callable[[Case], None]

BASELINE = "suites/niah/baselines/main.jsonl"
SESSION = ("-q", "suites/niah", "--rh-config", "config.yaml", "--rh-run", "run")
READ_RESULTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "rescore": ("pytest", (*SESSION, "--rh-rescore")),
    "resume": ("pytest", (*SESSION, "--rh-resume")),
    "baseline": ("pytest", ("-q", "suites/niah", "--rh-config", "config.yaml", "--rh-baseline", "run")),
    "from_results": ("cli", ("validate", "suites/stored")),
    "compare": ("cli", ("compare", "run", BASELINE)),
    "compare with": ("cli", ("compare", BASELINE, "run")),
    "reconstruct": ("cli", ("reconstruct", "run", "--cell", "len_128/depth_0", "--config", "config.yaml")),
    "visualize": ("cli", ("visualize", "niah", "--results", "run")),
}
"""What reads the results of a run, and refuses before anything is asked or drawn."""
_NAMES = list(READ_RESULTS)
RUN_JSON = {name: READ_RESULTS[name] for name in ("rescore", "reconstruct", "visualize")}


@pytest.fixture(scope="module")
def records(good: Path) -> list[dict[str, Any]]:
    """Those of the good run."""
    return [json.loads(line) for line in (good / "run/results.jsonl").read_text("utf-8").splitlines()]


def lines(*each: Any) -> str:
    """A file of a line for each record."""
    return "".join((one if isinstance(one, str) else json.dumps(one, ensure_ascii=False)) + "\n" for one in each)


def reads(name: str, content: Any, says: str = "results.jsonl", **more: Any) -> Case:
    """A case of something that reads results."""
    do, arguments = READ_RESULTS[name]
    return Case(do, arguments, {"run/results.jsonl": content}, says=[says], note=name, **more)  # type: ignore[arg-type]


NONSENSE: tuple[tuple[str, Any], ...] = (
    ("document_depth", -5),
    ("document_depth", 101),
    ("document_depth", 1e308),
    ("context_length", 0),
    ("context_length", -128),
    ("context_length", 10**30),
    ("context_length", True),
    ("achieved_depth", -1),
    ("achieved_depth", 100.5),
    ("prompt_tokens", -1),
    ("scores", {"rouge1_recall_novel": 17}),
    ("scores", {"rouge1_recall_novel": -0.5}),
    ("scores", {"rouge1_recall_novel": "1"}),
    ("scores", {}),
    ("rougeL", 17),
    ("rougeL", -1),
    ("threshold", 17),
    ("threshold", -1),
    ("seconds", -1),
    ("seed", -1),
    ("cached_tokens", -1),
    ("token_ids", [-1]),
    ("needle_span", [-1, 4]),
    ("needle_span", [9, 4]),
    ("question_span", [9, 4]),
    ("status", "won"),
    ("kind", "novel"),
    ("schema", "retrieval-heads/99"),
    ("schema", 5),
    ("metric", "nothing"),
    ("passed", "maybe"),
    ("heads", {"copy": [["x"]]}),
)


@drawn(25)
@given(data=st.data())
def test_a_record_with_a_value_of_another_kind_is_refused(
    check: Check, records: list[dict[str, Any]], data: st.DataObject
) -> None:
    at = data.draw(places_of(records[1]).filter(lambda at: at[0] not in ("around",) or len(at) == 1))
    name = data.draw(st.sampled_from(sorted(READ_RESULTS)))
    if data.draw(st.booleans()):
        line = with_raw(records[1], at, data.draw(st.sampled_from(RAW)))
        check(reads(name, lines(records[0], line, *records[2:]), "results.jsonl:2"))
    else:
        value = data.draw(st.sampled_from(wrong_for(value_at(records[1], at))))
        line = json.dumps(with_value(records[1], at, value))
        # A score that is missing or an empty list may be nobody's concern, or that of a gate.
        check(reads(name, lines(records[0], line, *records[2:]), "", expected="either"))


@pytest.mark.parametrize("name", READ_RESULTS)
def test_a_record_that_says_nonsense_is_refused(check: Check, records: list[dict[str, Any]], name: str) -> None:
    for key, value in some(NONSENSE, 16 if READ_RESULTS[name][0] == "pytest" else 5, _NAMES.index(name)):
        line = json.dumps({**records[1], key: value})
        check(reads(name, lines(records[0], line, *records[2:]), "results.jsonl:2"))


@pytest.mark.parametrize("name", READ_RESULTS)
def test_a_text_that_is_no_results_is_refused(check: Check, name: str) -> None:
    for content in some([*TEXTS.values()], 12 if READ_RESULTS[name][0] == "pytest" else 5, _NAMES.index(name)):
        # A run that was killed at its start leaves nothing, and a resumed one starts.
        expected: Any = "either" if name == "resume" else "refused"
        check(reads(name, content, expected=expected))


@pytest.mark.parametrize("name", READ_RESULTS)
def test_results_that_are_no_file_are_refused(check: Check, name: str) -> None:
    do, arguments = READ_RESULTS[name]
    for special in some(
        (
            Special("fifo"),
            Special("link", "/dev/zero"),
            Special("link", "/dev/null"),
            Special("folder"),
            Special("link", "nowhere"),
        ),
        2,
        _NAMES.index(name),
    ):
        gone = special.kind == "link" and special.target == "nowhere" and name == "resume"
        check(Case(do, arguments, {"run/results.jsonl": special}, "either" if gone else "refused", ["results.jsonl"]))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", READ_RESULTS)
@pytest.mark.parametrize("key", ["document_depth", "threshold", "seconds"])
def test_a_figure_that_is_no_number_is_refused(
    check: Check, records: list[dict[str, Any]], name: str, key: str
) -> None:
    for raw in some(("NaN", "Infinity", "-Infinity", "1e999"), 4, _NAMES.index(name) + len(key)):
        check(reads(name, lines(records[0], with_raw(records[1], (key,), raw), *records[2:]), "results.jsonl:2"))


@drawn(15)
@given(data=st.data())
def test_results_cut_or_with_a_byte_changed_end_in_no_fault(
    check: Check, records: list[dict[str, Any]], data: st.DataObject
) -> None:
    content = lines(*records).encode()
    at = data.draw(st.integers(0, len(content) - 1))
    put = data.draw(st.sampled_from([b"", b"\0", b"\xff", b"[", b"{", b'"', b"\x1b", b"\n", b"1e999", b"-", b"NaN"]))
    rest = b"" if data.draw(st.booleans()) else content[at + 1 :]
    name = data.draw(st.sampled_from(["rescore", "from_results", "compare", "compare with", "reconstruct"]))
    check(reads(name, content[:at] + put + rest, "", expected="either"))


@pytest.mark.parametrize("name", RUN_JSON)
def test_a_run_json_that_is_none_is_refused(check: Check, name: str) -> None:
    do, arguments = RUN_JSON[name]
    for title, content in some([*TEXTS.items()], 3, list(RUN_JSON).index(name)):
        expected: Any = "either" if title in ("an empty object", "a key") else "refused"
        if title in ("control characters", "escaped control characters"):
            expected = "either"
        check(Case(do, arguments, {"run/run.json": content}, expected, ["run.json"], note=title))  # type: ignore[arg-type]
    for special in (Special("fifo"), Special("link", "/dev/zero"), Special("folder")):
        check(Case(do, arguments, {"run/run.json": special}, says=["run.json"]))  # type: ignore[arg-type]


@drawn(15)
@given(data=st.data())
def test_a_run_json_with_a_value_of_another_kind_ends_in_no_fault(
    check: Check, good: Path, data: st.DataObject
) -> None:
    facts = json.loads((good / "run/run.json").read_text())
    at = data.draw(places_of(facts))
    do, arguments = RUN_JSON[data.draw(st.sampled_from(["rescore", "reconstruct"]))]
    kind = data.draw(st.integers(0, 2))
    if kind == 0:
        raw = data.draw(st.sampled_from(RAW))
        check(Case(do, arguments, {"run/run.json": with_raw(facts, at, raw)}, says=["run.json"]))  # type: ignore[arg-type]
    else:
        made = (
            without(facts, at)
            if kind == 1
            else with_value(facts, at, data.draw(st.sampled_from(wrong_for(value_at(facts, at)))))
        )
        check(Case(do, arguments, {"run/run.json": json.dumps(made)}, "either"))  # type: ignore[arg-type]


def test_rescoring_a_run_without_what_its_run_json_must_say_is_refused(check: Check, good: Path) -> None:
    facts = json.loads((good / "run/run.json").read_text())
    do, arguments = READ_RESULTS["rescore"]
    for content in (Special("missing"), "{}", json.dumps(without(facts, ("model",)))):
        check(Case(do, arguments, {"run/run.json": content}, says=["run.json"]))  # type: ignore[arg-type]
    for value in (None, 5, [], "", {}):
        check(Case(do, arguments, {"run/run.json": json.dumps({**facts, "model": value})}, says=["run.json"]))  # type: ignore[arg-type]


# Head files -----------------------------------------------------------------------------------------------------------

AGGREGATE = {f"model.layers.{n}.self_attn.attn": {"0": 0.1, "1": 0.9} for n in range(3)}
DETECTED = {path: {head: [score, score] for head, score in of.items()} for path, of in AGGREGATE.items()}
PAPER = {f"{layer}-{head}": [0.1, 0.5] for layer in range(3) for head in range(2)}
TABLE = head_table()
READ_HEADS: dict[str, tuple[str, tuple[str, ...]]] = {
    "expect": ("cli", ("validate", "suites/detect")),
    "ablate": ("cli", ("validate", "suites/ablate")),
    "visualize": ("cli", ("visualize", "detect", "--results", "heads/heads.json")),
    "collect": ("pytest", ("--co", "-q", "suites/ablate", "--rh-config", "config.yaml")),
}


def heads(name: str, content: Any, expected: Any = "refused", note: str = "") -> Case:
    """A case of something that reads a file of heads."""
    do, arguments = READ_HEADS[name]
    return Case(do, arguments, {"heads/heads.json": content}, expected, ["heads.json"], note=f"{name} {note}")  # type: ignore[arg-type]


BAD_HEADS: dict[str, str] = {
    "a negative layer": json.dumps({"-1-2": [0.5], "1-1": [0.1]}),
    "a huge layer": json.dumps({"1000000000-0": [0.5], "1-1": [0.1]}),
    "a huge head": json.dumps({"0-1000000000": [0.5], "1-1": [0.1]}),
    "a layer of 5,000 digits": json.dumps({"9" * 5000 + "-0": [0.5]}),
    "a head of words": json.dumps({"one-two": [0.5]}),
    "three numbers": json.dumps({"1-2-3": [0.5]}),
    "no scores": json.dumps({"1-2": [], "1-1": [0.5]}),
    "scores of texts": json.dumps({"1-2": ["0.5"], "1-1": [0.5]}),
    "a text": json.dumps({"1-2": "0.5"}),
    "a truth": json.dumps({"1-2": True, "1-1": 0.4}),
    "true scores": json.dumps({"1-2": [True], "1-1": [0.4]}),
    "NaN": '{"1-2": [NaN], "1-1": [0.5]}',
    "infinity": '{"1-2": [Infinity], "1-1": [0.5]}',
    "1e999": '{"1-2": [1e999], "1-1": [0.5]}',
    "10^400": '{"1-2": [1' + "0" * 400 + '], "1-1": [0.5]}',
    "a negative score": json.dumps({"1-2": [-0.5], "1-1": [0.5]}),
    "a score of 1e308": json.dumps({"1-2": [1e308, 1e308], "1-1": [0.5]}),
    "null": json.dumps({"1-2": None, "1-1": [0.5]}),
    "twice": '{"1-2": [0.5], "1-2": [0.7], "1-1": [0.5]}',
    "twice, written otherwise": '{"1-2": [0.5], "01-2": [0.7], "1-1": [0.5]}',
    "mixed forms": json.dumps({"1-2": [0.5], "model.layers.0": {"0": 0.5}}),
    "a predecessor's negative head": json.dumps({"model.layers.0": {"-1": 0.5, "0": 0.1}}),
    "a predecessor's huge head": json.dumps({"model.layers.0": {"1000000000": 0.5, "0": 0.1}}),
    "a predecessor's path without a number": json.dumps({"model.layers": {"0": 0.5, "1": 0.1}}),
    "a predecessor's huge layer": json.dumps({"model.layers.99999999999": {"0": 0.5, "1": 0.4}}),
    "a predecessor's score of 17": json.dumps({"model.layers.0": {"0": 17, "1": 0.1}}),
    "a predecessor's NaN": '{"model.layers.0": {"0": NaN, "1": 0.1}}',
    "a predecessor's list of lists": json.dumps({"model.layers.0": {"0": [[0.5]], "1": 0.1}}),
    "ragged rows": json.dumps(with_value(TABLE, ("scores", "copy", "mean", 1), [0.1])),
    "fewer rows": json.dumps(without(TABLE, ("scores", "copy", "mean", 3))),
    "a row of texts": json.dumps(with_value(TABLE, ("scores", "copy", "mean", 1), ["a"] * 4)),
    "numbers as texts": json.dumps(with_value(TABLE, ("scores", "copy", "mean", 1), ["0.1"] * 4)),
    "a layer below 0": json.dumps(with_value(TABLE, ("layers", 1, "number"), -1)),
    "a layer of 10^9": json.dumps(with_value(TABLE, ("layers", 1, "number"), 10**9)),
    "10^9 heads": json.dumps(with_value(TABLE, ("layers", 1, "heads"), 10**9)),
    "fewer heads than scores": json.dumps(with_value(TABLE, ("layers", 1, "heads"), 2)),
    "a layer twice": json.dumps(with_value(TABLE, ("layers", 1, "number"), 2)),
    "a layer's number as text": json.dumps(with_value(TABLE, ("layers", 1, "number"), "1")),
    "NaN in a table": with_raw(TABLE, ("scores", "copy", "mean", 0, 0), "NaN"),
    "infinity in a table": with_raw(TABLE, ("scores", "copy", "mean", 0, 0), "Infinity"),
    "null in a table": with_raw(TABLE, ("scores", "copy", "mean", 0, 0), "null"),
    "17 in a table": with_raw(TABLE, ("scores", "copy", "mean", 0, 0), "17"),
    "-1 in a table": with_raw(TABLE, ("scores", "copy", "mean", 0, 0), "-1"),
    "a schema of tomorrow": json.dumps({**TABLE, "schema": "retrieval-heads-heads/9"}),
    "no copy": json.dumps({**TABLE, "scores": {}}),
    "no layers": json.dumps({**TABLE, "layers": []}),
}
GOOD_HEADS: dict[str, Any] = {
    "heads.json": TABLE,
    "detected.json": DETECTED,
    "detected-agg.json": AGGREGATE,
    "head_score.json": PAPER,
    "a repeated answer passes 1": {"0-0": [1.5, 1.0], "0-1": [0.1]},
    "layers 10 and 40": {"10-3": [0.4], "40-1": [0.5]},
}


@pytest.mark.parametrize("name", READ_HEADS)
def test_files_of_heads(check: Check, name: str) -> None:
    for title, content in some([*BAD_HEADS.items()], 3 if name != "collect" else 10, list(READ_HEADS).index(name)):
        check(heads(name, content, note=title))
    for title, data in some([*GOOD_HEADS.items()], 2, list(READ_HEADS).index(name)):
        check(heads(name, json.dumps(data), "accepted", title))


@pytest.mark.parametrize("name", READ_HEADS)
def test_a_text_that_is_no_file_of_heads_is_refused(check: Check, name: str) -> None:
    for title, content in some([*TEXTS.items()], 3 if name != "collect" else 10, list(READ_HEADS).index(name)):
        check(heads(name, content, note=title))
    for special in (Special("fifo"), Special("link", "/dev/zero"), Special("folder"), Special("link", "nowhere")):
        check(heads(name, special))


@drawn(20)
@given(data=st.data())
def test_a_file_of_heads_with_a_wrong_value_is_refused(check: Check, data: st.DataObject) -> None:
    whole = data.draw(st.sampled_from([TABLE, AGGREGATE, DETECTED, PAPER]))
    at = data.draw(places_of(whole))
    name = data.draw(st.sampled_from(sorted(READ_HEADS)))
    if data.draw(st.booleans()):
        check(heads(name, with_raw(whole, at, data.draw(st.sampled_from(RAW)))))
    else:
        value = data.draw(st.sampled_from(wrong_for(value_at(whole, at))))
        check(heads(name, json.dumps(with_value(whole, at, value)), "either", str(at)))


# Baselines ------------------------------------------------------------------------------------------------------------

READ_BASELINE: dict[str, tuple[str, tuple[str, ...]]] = {
    "option": ("pytest", ("-q", "suites/niah", "--rh-config", "config.yaml", "--rh-baseline", "main")),
    "compare": ("cli", ("compare", BASELINE, "run")),
}


def baseline(name: str, content: Any, says: str = "main.jsonl", expected: Any = "refused", note: str = "") -> Case:
    """A case of something that reads a baseline."""
    do, arguments = READ_BASELINE[name]
    return Case(do, arguments, {BASELINE: content}, expected, [says], note=f"{name} {note}")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def stored(good: Path) -> list[dict[str, Any]]:
    """The lines of the good baseline, its header first."""
    return [json.loads(line) for line in (good / BASELINE).read_text("utf-8").splitlines()]


BAD_HEADERS: tuple[tuple[str, Any], ...] = (
    ("heads", 5),
    ("heads", []),
    ("heads", {"heads": 5}),
    ("heads", {"heads": {"copy": 5}}),
    ("heads", {"heads": {"copy": [5]}}),
    ("heads", {"heads": {"copy": [["x"]]}}),
    ("heads", {"heads": {"copy": [[1e308]]}}),
    ("heads", {"heads": {"copy": [[-1]]}}),
    ("heads", {"heads": {"copy": [[True]]}}),
    ("cells", -1),
    ("cells", "six"),
    ("cells", 10**9),
    ("cells", True),
    ("schema", "retrieval-heads-baseline/99"),
    ("schema", 5),
)
BAD_CELLS: tuple[tuple[str, Any], ...] = (
    ("scores", {"rouge1_recall_novel": -1}),
    ("scores", {"rouge1_recall_novel": 1e308}),
    ("scores", {"rouge1_recall_novel": 17}),
    ("scores", {"rouge1_recall_novel": "1"}),
    ("scores", 5),
    ("rougeL", -1),
    ("document_depth", -1),
    ("document_depth", 1e308),
    ("context_length", 0),
    ("status", "won"),
    ("threshold", 2),
    ("seed", -1),
    ("passed", "x"),
)


@pytest.mark.parametrize("name", READ_BASELINE)
def test_baselines(check: Check, stored: list[dict[str, Any]], name: str) -> None:
    header, *cells = stored
    share = 8 if name == "option" else 2  # a session takes ten times as long
    for key, value in some(BAD_HEADERS, share, 0):
        check(baseline(name, lines({**header, key: value}, *cells), note=f"{key} {value}"))
    for key, value in some(BAD_CELLS, share, 0):
        content = lines(header, cells[0], {**cells[1], key: value}, *cells[2:])
        check(baseline(name, content, "main.jsonl:3", note=f"{key} {value}"))
    for raw in some(RAW, share, 0):
        content = lines(header, cells[0], with_raw(cells[1], ("threshold",), raw), *cells[2:])
        check(baseline(name, content, "main.jsonl:3", note=raw[:40]))
    check(baseline(name, lines(header, *cells[:-1]), note="cut short"))
    check(baseline(name, lines(header, *cells, cells[-1]), note="a line too many"))
    check(baseline(name, lines(header, cells[0], cells[0], *cells[2:]), note="a cell twice"))


@pytest.mark.parametrize("name", READ_BASELINE)
def test_a_text_that_is_no_baseline_is_refused(check: Check, name: str) -> None:
    for title, content in some([*TEXTS.items()], 12 if name == "option" else 1, 0):
        check(baseline(name, content, note=title))
    for special in (Special("fifo"), Special("link", "/dev/zero"), Special("folder"), Special("link", "nowhere")):
        check(baseline(name, special, "main"))


@drawn(15)
@given(data=st.data())
def test_a_baseline_with_a_wrong_value_ends_in_no_fault(
    check: Check, stored: list[dict[str, Any]], data: st.DataObject
) -> None:
    at = data.draw(places_of(stored))
    if len(at) == 1:
        return
    if data.draw(st.booleans()):
        line = with_raw(stored[int(at[0])], at[1:], data.draw(st.sampled_from(RAW)))
        check(baseline("compare", lines(*stored[: int(at[0])], line, *stored[int(at[0]) + 1 :])))
    else:
        value = data.draw(st.sampled_from(wrong_for(value_at(stored, at))))
        check(baseline("compare", lines(*with_value(stored, at, value)), "", expected="either"))


_BROKEN = [
    *TEXTS.items(),
    ("FIFO", Special("fifo")),
    ("device", Special("link", "/dev/zero")),
    ("folder", Special("folder")),
]


@pytest.mark.parametrize("file", ["heads.json", "run.json", "gates.json", "ablation.json", "config.yaml"])
def test_another_file_of_a_run_that_is_broken(check: Check, file: str) -> None:
    compares, draws = ("compare", "detected", "detected"), ("visualize", "detect", "--results", "detected")
    for at, arguments in enumerate((compares, draws)):
        for title, content in some(_BROKEN, 12 if at else 5, len(file) + at):
            check(Case("cli", arguments, {f"detected/{file}": content}, "either", note=f"{file} {title}"))

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval_heads.errors import ConfigError
from retrieval_heads.gates import Aggregate, EffectiveLength, Gate, parse_gate

names = st.from_regex(r"[a-zA-Z_][\w.-]{0,12}", fullmatch=True)
limits = st.floats(allow_nan=False, allow_infinity=False)
aggregates = st.builds(
    Aggregate,
    st.sampled_from(["mean", "min", "max", "median"]),
    names,
    st.sampled_from([None, "length", "depth", "needle"]),
)
effective_lengths = st.builds(EffectiveLength, st.floats(0, 1, exclude_min=True), st.one_of(st.just(""), names))
gates = st.builds(Gate, aggregates | effective_lengths, st.sampled_from([">=", ">", "<=", "<"]), limits)


@given(gates)
def test_a_gate_is_read_back_from_its_own_text(gate):
    assert parse_gate(str(gate)) == gate


@pytest.mark.parametrize(
    ("text", "gate"),
    [
        ("mean(rougeL_recall) >= 0.8", Gate(Aggregate("mean", "rougeL_recall"), ">=", 0.8)),
        ("min over length(pass_rate)>=.6", Gate(Aggregate("min", "pass_rate", "length"), ">=", 0.6)),
        (
            "median  over\n  needle ( seconds ) < 1e2",
            Gate(Aggregate("median", "seconds", "needle"), "<", 100),
        ),
        ("effective_length(0.85) >= 4096", Gate(EffectiveLength(0.85), ">=", 4096)),
        ("effective_length(1, rouge1_f) > 0", Gate(EffectiveLength(1, "rouge1_f"), ">", 0)),
    ],
)
def test_the_documented_forms_are_read(text, gate):
    assert parse_gate(text) == gate


@pytest.mark.parametrize(
    ("text", "message", "marked"),
    [
        (
            "average(x) >= 1",
            "expected mean, min, max, median, effective_length, head_spearman or head_overlap",
            "average",
        ),
        ("mean x >= 1", "expected '(' or 'over'", "x >="),
        ("mean over size(x) >= 1", "expected length, depth or needle", "size"),
        ("mean over length x) >= 1", "expected '('", "x)"),
        ("mean() >= 1", "expected the name", ")"),
        ("mean(x >= 1", "expected ')'", ">="),
        ("mean(x) = 1", "expected a comparator", "="),
        ("mean(x)", "expected a comparator", ""),
        ("mean(x) >=", "expected a number", ""),
        ("mean(x) >= high", "expected a number", "high"),
        ("mean(x) >= nan", "expected a number", "nan"),
        ("mean(x) >= 1e999", "too large", "1e999"),
        ("mean(x) >= 80 %", "expected nothing more", "%"),
        ("effective_length() >= 1", "expected a share", ")"),
        ("effective_length(85) >= 1", "above 0 and at most 1", "85"),
        ("effective_length(0) >= 1", "above 0 and at most 1", "0"),
        ("effective_length(0.85; x) >= 1", "expected ',' or ')'", ";"),
        ("", "expected mean", ""),
    ],
)
def test_a_malformed_gate_is_marked_where_it_breaks(text, message, marked):
    with pytest.raises(ConfigError, match="gate") as caught:
        parse_gate(text, axes=("length", "depth", "needle"))
    first, shown, caret = str(caught.value).split("\n")
    assert message in first
    assert text in shown
    assert shown[caret.index("^") :].startswith(marked)
    assert caret.index("^") == shown.rindex(marked) if marked else len(shown.rstrip()) <= caret.index("^")


def test_an_unknown_number_is_marked_and_the_nearest_is_named():
    with pytest.raises(ConfigError, match=r"did you mean 'rougeL_recall'\?") as caught:
        parse_gate("min over depth(rougL_recal) >= 0.8", known={"rougeL_recall", "pass_rate", "seconds"})
    _, shown, caret = str(caught.value).split("\n")
    assert shown[caret.index("^") :].startswith("rougL_recal)")


def test_effective_length_without_a_name_needs_no_known_number():
    assert parse_gate("effective_length(0.85) >= 1", known=set()).measure == EffectiveLength(0.85)


@pytest.mark.parametrize(
    ("gate", "value", "holds"),
    [
        ("mean(x) >= 0.8", 0.8 - 1e-12, True),
        ("mean(x) >= 0.8", 0.7999, False),
        ("mean(x) > 0.8", 0.8 + 1e-12, False),
        ("mean(x) > 0.8", 0.8001, True),
        ("mean(x) <= 0.8", 0.8 + 1e-12, True),
        ("mean(x) <= 0.8", 0.8001, False),
        ("mean(x) < 0.8", 0.8, False),
        ("mean(x) < 0.8", 0.7999, True),
        ("mean(x) >= 0.8", float("nan"), False),
        ("mean(x) <= 0.8", float("nan"), False),
    ],
)
def test_a_limit_forgives_the_last_bits_of_a_float(gate, value, holds):
    assert parse_gate(gate).holds(value) is holds


def test_importing_gates_loads_neither_numpy_nor_anything_heavier():
    code = (
        "import sys, retrieval_heads.gates;"
        "print({'numpy', 'scipy', 'torch', 'matplotlib', 'vllm', 'pytest'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"

"""Gates: thresholds on a run's numbers, and comparison with a baseline.

Nothing here is green by default: a cell without a result, a NaN, an empty run break the gate. The module
imports no numpy until a run is compared with its baseline.
"""

from retrieval_heads.gates.baseline import (
    BASELINE_SCHEMA,
    META_KEYS,
    Baseline,
    load_baseline,
    meta_differences,
    meta_of,
    save_baseline,
)
from retrieval_heads.gates.expression import Aggregate, Agreement, EffectiveLength, Gate, parse_gate
from retrieval_heads.gates.head_agreement import TOP_HEADS, HeadAgreement, HeadMeans, agreement, compare_heads
from retrieval_heads.gates.number import FIELDS, PASS_RATE, number_names, stored_number
from retrieval_heads.gates.regression import Comparison, judge, set_against
from retrieval_heads.gates.removed import Shrinkage, cells_of, shrinkage
from retrieval_heads.gates.render import GATES_SCHEMA, lines, read_gates, to_json, to_markdown, with_kept
from retrieval_heads.gates.selection import cell_name
from retrieval_heads.gates.threshold import check
from retrieval_heads.gates.tolerance import DEFAULT_MAX_DROP, Tolerance, parse_max_drop
from retrieval_heads.gates.verdict import Inconclusive, Outcome, Verdict, Word

__all__ = [
    "BASELINE_SCHEMA",
    "DEFAULT_MAX_DROP",
    "FIELDS",
    "GATES_SCHEMA",
    "META_KEYS",
    "PASS_RATE",
    "TOP_HEADS",
    "Aggregate",
    "Agreement",
    "Baseline",
    "Comparison",
    "EffectiveLength",
    "Gate",
    "HeadAgreement",
    "HeadMeans",
    "Inconclusive",
    "Outcome",
    "Shrinkage",
    "Tolerance",
    "Verdict",
    "Word",
    "agreement",
    "cell_name",
    "cells_of",
    "check",
    "compare_heads",
    "judge",
    "lines",
    "load_baseline",
    "meta_differences",
    "meta_of",
    "number_names",
    "parse_gate",
    "parse_max_drop",
    "read_gates",
    "save_baseline",
    "set_against",
    "shrinkage",
    "stored_number",
    "to_json",
    "to_markdown",
    "with_kept",
]

"""What is wrong for a key of a suite or config, as YAML writes it; and text that is wrong wherever it stands."""

from __future__ import annotations

from hypothesis import strategies as st

DEEP = 500
BRACKETS = 100_000


def _bomb(levels: int = 9, width: int = 9) -> str:
    """Nested aliases: `width ** levels` copies of one list."""
    lists = ["&a0 [x]"]
    for level in range(1, levels + 1):
        lists.append(f"&a{level} [{', '.join([f'*a{level - 1}'] * width)}]")
    return f"[{', '.join(lists)}]"


BOMB = _bomb()

# Nothing that crosses as JSON, whatever key it stands at.
NO_JSON = (
    "!!set {a, b}",
    "!!binary aGVsbG8=",
    "!!timestamp 2020-01-01",
    "&r [*r]",
    "&r {x: *r}",
    "!!python/object/apply:os.getcwd []",
    "!ours x",
    "!!omap [a: 1]",
    "!!pairs [a: 1]",
    "{[1]: 2}",
    '"a\\0b"',
    '"\\ud800"',
    ".nan",
    "-.inf",
    "9" * 5000,
    f"[{'9' * 5000}]",
    "!!int abc",
    "!!float abc",
    "!!bool maybe",
    "[" * DEEP + "]" * DEEP,
    "{a: " * DEEP + "1" + "}" * DEEP,
    "[" * BRACKETS,
    BOMB,
    "*nobody",
    "{a: 1, a: 2}",
)

TEXT = ("1", "1.5", "true", "[]", "{}", "[a]", "{a: b}", "''", "' '", '"\\t\\n"')
COUNT = ("0", "-1", "1.5", "x", "''", "true", "[]", "{}", "1" + "0" * 400, "1e400", "'1 2'")
SEED = ("-1", "1.5", "x", "true", "{}", "1" + "0" * 400)
SHARE = ("-0.1", "1.1", "x", "true", "[]", "{}", "1e400", "1" + "0" * 400)
CHOICE = ("x", "1", "[]", "{}", "''", "true")
FLAG = ("x", "2", "[]", "{}", "''")
NO_PATH = ("''", "' '", "'" + "x" * 5000 + "'", "/dev/zero", "/dev/null", "/proc/self/mem", "config.yaml", "1", "true")
FOLDER = (
    *NO_PATH,
    "nowhere",
    "~nosuchuser",
    "'" + "x/" * 3000 + "'",
    "'package:'",
    "package:nosuchpackage/x",
    "package:os/path",
    "package:../../etc",
    "package:yaml/../../..",
    "[]",
)
FILE = (*NO_PATH, "nowhere.json", "~nosuchuser/x.json", "tales", "tales/a.txt")
LENGTHS = (
    "[true]",
    "[0]",
    "[-1]",
    "[1.5]",
    "[x]",
    "[]",
    "true",
    "5",
    "[128, 128]",
    "[[128]]",
    "[1" + "0" * 400 + "]",
    "[1" + "0" * 18 + "]",
    "{min: 1, max: 1000000000000000}",
    "{min: 128, max: 256, intervals: 1000000000}",
    "{min: 128, max: 256, intervals: 0}",
    "{min: 128, max: 256, intervals: true}",
    "{min: 256, max: 128, intervals: 2}",
    "{min: true, max: 128}",
    "{min: 1.5, max: 128}",
    "{max: 128}",
    "{min: 128, max: 256, steps: 2}",
    "{min: 0, max: 128}",
    "{min: 128, max: 1" + "0" * 400 + ", intervals: 2}",
)
DEPTHS = (
    "[true]",
    "[-1]",
    "[101]",
    "[x]",
    "[]",
    "true",
    "50",
    "[50, 50]",
    "[50, 50.0]",
    "[.nan]",
    "[1e400]",
    "{min: 0, max: 100, intervals: 1000000000}",
    "{min: -1, max: 100, intervals: 2}",
    "{min: 0, max: 101, intervals: 2}",
    "{min: 0, max: 100, intervals: -1}",
    "{min: 0, max: 100, spacing: sigmoid}",
    "{min: 0, max: 100, intervals: 2, spacing: log}",
    "{min: 0, max: 1000000000000000}",
)
SEEDS = ("[true]", "[-1]", "[1.5]", "[x]", "[]", "[0, 0]", "5", "[1" + "0" * 400 + "]", "{min: 0, max: 3}")
GATES = (
    "[mean(pass_rate) >= -1]",
    "[mean(pass_rate) >= 0]",
    "[mean(pass_rate) >= 5]",
    "[mean(pass_rate) > 1]",
    "[mean(rouge1_recall) <= 1]",
    "[mean(rouge1_recall) < 0]",
    "[mean(rouge1_recall) <= 2]",
    "[min over length(rouge1_recall_novel) > 1.5]",
    "[effective_length(0.85) >= 0]",
    "[effective_length(0.85) >= 1000]",
    "[effective_length(0.85) < 0]",
    "[effective_length(0.85) > 256]",
    "[head_overlap(10) >= 2]",
    "[head_overlap(10) >= 0]",
    "[head_spearman() >= -1]",
    "[head_spearman() > 1]",
    "[mean(seconds) >= 0]",
    "[mean(achieved_depth) > 100]",
    "[mean(nothing) >= 0.5]",
    "[mean(pass_rate)]",
    "[mean(pass_rate) = 1]",
    "[mean(pass_rate) >= 1e999]",
    "[mean(pass_rate) >= " + "9" * 5000 + "]",
    "[" + "(" * 3000 + "]",
    "[1]",
    "[[]]",
    "{a: 1}",
    "[true]",
)
HEADS = (
    "[]",
    "[[1]]",
    "[[1, 2, 3]]",
    "[[-1, 2], [1, 1]]",
    "[[1, 2], [1, 2]]",
    "[[true, 1], [1, 2]]",
    "[[1.5, 1], [1, 2]]",
    "[[x, 1]]",
    "[1, 2]",
    "[[1" + "0" * 400 + ", 1], [1, 2]]",
    "[[1, 2]]",
    "detect/",
    *FILE,
)

KEYS: dict[str, dict[tuple[str | int, ...], tuple[str, ...]]] = {
    "niah": {
        ("kind",): ("nia", "x", "1", "[niah]", "{}", "''"),
        ("haystack",): (*FOLDER, "{}", "{source: tales, haystack_dir: tales}", "{folder: tales}"),
        ("haystack", "source"): FOLDER,
        ("haystack", "name"): ("1", "true", "[]", "{}", "''", "' '"),
        ("needles",): (
            "[{needle: Dawn., question: When?}, {needle: Dawn., question: When?}]",
            "[]",
            "{}",
            "x",
            "1",
            "[x]",
            "[{}]",
            "[[]]",
            "[{needle: a}]",
            "null",
            "{file: 3}",
            "{file: none.jsonl}",
            "{file: .}",
            "{file: tale.yaml}",
            "{file: none.jsonl, columns: 3}",
            "{file: none.jsonl, columns: {needle: ' '}}",
        ),
        ("needles", 0, "needle"): TEXT,
        ("needles", 0, "question"): TEXT,
        ("needles", 0, "answer"): tuple(each for each in TEXT if each != "[a]"),  # a list of one answer
        ("needles", 0, "answer_span"): (*TEXT, "at dusk"),
        ("needles", 0, "name"): ("1", "[]", "{}"),
        ("sweep", "context_lengths"): LENGTHS,
        ("sweep", "document_depths"): DEPTHS,
        ("sweep", "seeds"): SEEDS,
        ("sweep",): ("[]", "x", "1", "{lengths: [1]}", "true"),
        ("prompt",): (
            "novel",
            "1",
            "[]",
            "{}",
            "{messages: []}",
            "{messages: [{content: x}]}",
            "'{context}'",
            "'{context}{context}{question}'",
            "{messages: [{role: cook, content: '{context}{question}'}]}",
        ),
        ("boundary",): CHOICE,
        ("generation", "max_tokens"): COUNT,
        ("generation", "temperature"): ("-1", "x", "true", "[]", "{}", "1e400", "1" + "0" * 400),
        ("generation",): ("[]", "x", "1", "true"),
        ("scoring", "metric"): (*CHOICE, "rouge2_recall"),
        ("scoring", "threshold"): SHARE,
        ("scoring", "thinking"): ("true", "x", "1", "[x]", "[[]]", "{}", "{start: a}", "{start: a, end: ''}"),
        ("gates",): GATES,
        ("verdict",): CHOICE,
        ("allow_skipped",): FLAG,
        ("output_dir",): ("''", "' '", "1", "[]", "~nosuchuser", "'" + "x" * 5000 + "'"),
        ("model",): ("[]", "1", "true", "''", "' '"),
        ("model", "model"): ("[]", "1", "true", "{}", "''", "' '"),
        ("model", "chat_template"): ("[]", "1", "true", "{}", "''"),
        ("model", "chat_template_kwargs"): ("[]", "1", "x", "true"),
        ("engine", "replicas"): ("0", "-1", "x", "true", "1.5", "[]", "1" + "0" * 400),
        ("engine",): ("[]", "x", "{copies: 2}"),
        ("needle",): ("x",),
        ("from_results",): ("[run/results.jsonl, run/results.jsonl]", "[1]", "{}", "nowhere.jsonl"),
    },
    "detect": {
        ("expect", "top_heads"): tuple(
            each for each in HEADS if each.startswith("[") and each not in ("[]", "[[1, 2]]")
        ),
        ("expect", "within_top"): COUNT,
        ("expect", "min_overlap_with"): FILE,
        ("expect", "min_overlap"): (*SHARE, "0"),
        ("expect",): ("[]", "x", "{}", "{top: 5}", "{top_0_drop_exceeds_random: 0.1}"),
        ("score_threshold",): ("x", "true", "[]", "{}", "-1", "17"),
    },
    "stored": {
        ("from_results",): (
            "[run/results.jsonl, run/results.jsonl]",
            "[run/results.jsonl, ./run/results.jsonl]",
            "[run/results.jsonl, run]",
            "[]",
            "{}",
            "''",
            "5",
            *FILE,
        ),
    },
    "ablate": {
        ("ablate", "heads"): HEADS,
        ("ablate", "top"): ("0", "-1", "[]", "[2, 2]", "1.5", "x", "true", "[true]", "1000000000", "{}"),
        ("ablate", "draws"): (*COUNT, "1000000000"),
        ("ablate", "mode"): CHOICE,
        ("ablate", "seed"): SEED,
        ("ablate", "controls"): FLAG,
        ("ablate", "until"): (*SHARE, "0", "1"),
        ("ablate",): ("[]", "x", "{head: []}"),
        ("expect",): (
            "{top_3_drop_exceeds_random: 0.1}",
            "{top_2_drop_exceeds_random: 1.5}",
            "{top_2_drop_exceeds_random: x}",
            "{top_heads: [[1, 2]]}",
        ),
    },
}
"""By kind of suite and key: values that are refused there."""

FREE = (
    ("model", "hf_overrides"),
    ("model", "chat_template_kwargs", "thinking"),
    ("model", "max_model_len"),
    ("model", "revision"),
    ("generation", "stop"),
    ("generation", "logit_bias"),
)
"""Keys whose values are passed on as they are."""

NASTY_TEXT = st.one_of(
    st.sampled_from(
        [
            "~nosuchuser",
            "~nosuchuser/x",
            "x" * 5000,
            "x/" * 3000,
            "/dev/zero",
            "/dev/null",
            "/proc/self/mem",
            " ",
            "tales",
        ]
    ),
    st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1, max_size=40),
)

"""What settings say, how they are laid over each other, and the sentence for each mistake in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval_heads.errors import ConfigError
from retrieval_heads.prompts.settings import PROMPTS
from retrieval_heads.scoring.settings import METRICS
from retrieval_heads.suites.reading import overlay, overrides, read_settings, resolve
from retrieval_heads.suites.settings import Settings

SUITE = """\
kind: niah
haystack: pydoc
needles:
  - needle: The ferry to Oslo leaves at dawn.
    question: When does the ferry leave?
sweep:
  context_lengths: [512, 1024]
  document_depths: [0, 100]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "suite.yaml"


def complaint(file: Path, text: str) -> str:
    """The sentence for a file, its folder left out."""
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as raised:
        read_settings(file)
    return str(raised.value).replace(f"{file.parent}/", "")


@pytest.mark.parametrize(
    ("wrong", "right", "sentence"),
    [
        (
            "kind: niah",
            "kind: niahh",
            "suite.yaml:1: kind: input should be 'niah', 'detect', 'ablate' or 'compress', found 'niahh'",
        ),
        (
            "haystack: pydoc",
            "haystack: [pydoc]",
            "suite.yaml:2: haystack: input should be a valid dictionary, found a list",
        ),
        (
            "haystack: pydoc",
            "haystack: {sorce: pydoc}",
            "suite.yaml:2: haystack.sorce: unknown key; did you mean 'source'?",
        ),
        ("  - needle: ", "  - needel: ", "suite.yaml:4: needles.0.needel: unknown key; did you mean 'needle'?"),
        ("question:", "qestion:", "suite.yaml:5: needles.0.qestion: unknown key; did you mean 'question'?"),
        ("sweep:", "swep:", "suite.yaml:6: swep: unknown key; did you mean 'sweep'?"),
        (
            "context_lengths",
            "context_length",
            "suite.yaml:7: sweep.context_length: unknown key; did you mean 'context_lengths'?",
        ),
        ("[512, 1024]", "512", "suite.yaml:7: sweep.context_lengths: input should be a valid list, found 512"),
        (
            "[512, 1024]",
            "[512, 0]",
            "suite.yaml:7: sweep.context_lengths.1: input should be greater than or equal to 1, found 0",
        ),
        (
            "[512, 1024]",
            "{min: 512, max: 1024, interval: 2}",
            "suite.yaml:7: sweep.context_lengths.interval: unknown key; did you mean 'intervals'?",
        ),
        ("[512, 1024]", "{min: 512, intervals: 2}", "suite.yaml:7: sweep.context_lengths.max: this key is missing"),
        (
            "[512, 1024]",
            "{min: 9, max: 3, intervals: 2}",
            "suite.yaml:7: sweep.context_lengths: min 9 is above max 3",
        ),
        (
            "[512, 1024]",
            "{min: 1, max: 3, intervals: 0}",
            "suite.yaml:7: sweep.context_lengths.intervals: input should be greater than or equal to 1, found 0",
        ),
        (
            "[0, 100]",
            "[0, 101]",
            "suite.yaml:8: sweep.document_depths.1: input should be less than or equal to 100, found 101",
        ),
        (
            "[0, 100]",
            "{min: -1, max: 100, intervals: 4}",
            "suite.yaml:8: sweep.document_depths: depths lie between 0 and 100",
        ),
        (
            "[0, 100]",
            "{min: 0, max: 100, spacing: sigmoid}",
            "suite.yaml:8: sweep.document_depths: sigmoid spacing needs intervals",
        ),
        ("kind: niah", "kind: niah\n1: 2", "suite.yaml:2: 1: keys should be strings, found 1"),
        ("kind: niah", "- kind: niah", "suite.yaml:2: not valid YAML: did not find expected '-' indicator"),
        ("[512, 1024]", "[512,", "suite.yaml:9: not valid YAML: did not find expected ',' or ']'"),
        ("Oslo", "\x01", "suite.yaml:4: not valid YAML: control characters are not allowed"),
    ],
)
def test_a_mistake_is_one_sentence_with_file_line_and_key(file: Path, wrong: str, right: str, sentence: str) -> None:
    assert complaint(file, SUITE.replace(wrong, right)) == sentence


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("verdikt: none", "verdikt: unknown key; did you mean 'verdict'?"),
        (
            "engine: {replicas: 0}",
            "engine.replicas: expected auto or a number of engines, 1 or more; found 0",
        ),
        (
            "engine: {replicas: many}",
            "engine.replicas: expected auto or a number of engines, 1 or more; found 'many'",
        ),
        (
            "engine: {replicas: true}",
            "engine.replicas: expected auto or a number of engines, 1 or more; found True",
        ),
        ("engine: {replica: 2}", "engine.replica: unknown key; did you mean 'replicas'?"),
        ("engine: {idle: 0}", "engine.idle: expected a number of seconds above 0; found 0"),
        ("engine: {sleep: never}", "engine.sleep: expected a number of seconds above 0; found 'never'"),
        ("verdict: cells", "verdict: input should be 'cell', 'gates' or 'none', found 'cells'"),
        ("boundary: word", "boundary: input should be 'sentence', 'token' or 'line', found 'word'"),
        ("scoring: {metric: rouge1}", "scoring.metric: unknown metric 'rouge1'; did you mean 'rouge1_f'?"),
        ("scoring: {threshold: 2}", "scoring.threshold: input should be less than or equal to 1, found 2"),
        ("generation: {max_tokens: 0}", "generation.max_tokens: input should be greater than or equal to 1, found 0"),
        (
            "generation: {temperature: hot}",
            "generation.temperature: input should be a valid number, unable to parse string as a number, found 'hot'",
        ),
        ("model: {model: 3}", "model.model: input should be a valid string, found 3"),
        ("prompt: bok", "prompt: unknown prompt 'bok'; accepted: book, document, or a text with {context}"),
        ("prompt: 'Read {context}'", "prompt: the messages hold {question} 0 times; once is accepted"),
        (
            "prompt: {messages: [{role: usr, content: '{context} {question}'}]}",
            "prompt.messages.0.role: input should be 'system', 'user' or 'assistant', found 'usr'",
        ),
        ("output_dir: 3", "output_dir: input should be a valid string, found 3"),
        (
            "color: blue",
            f"color: unknown key; accepted: {', '.join(Settings.model_fields)}",
        ),
    ],
)
def test_a_mistake_in_an_added_line(file: Path, line: str, sentence: str) -> None:
    assert complaint(file, f"{SUITE}{line}\n") == f"suite.yaml:9: {sentence}"


def test_every_mistake_of_a_file_is_told(file: Path) -> None:
    text = SUITE.replace("kind: niah", "kind: nia").replace("[0, 100]", "[-1]")
    assert [line.split(": ")[1] for line in complaint(file, text).splitlines()] == ["kind", "sweep.document_depths.0"]


def test_a_needle_says_what_it_lacks(file: Path) -> None:
    assert complaint(file, SUITE.replace("When does the ferry leave?", "' '")) == (
        "suite.yaml:4: needles.0: question is empty"
    )
    assert complaint(file, SUITE.replace("    question:", "    answer_span: noon\n    question:")) == (
        "suite.yaml:4: needles.0: answer_span 'noon' does not stand in the needle"
    )


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^/.*/nowhere\.yaml: no such file$"):
        read_settings(tmp_path / "nowhere.yaml")


def test_a_file_that_is_not_utf8_is_named(file: Path) -> None:
    file.write_bytes(b"kind: \xff\n")
    with pytest.raises(ConfigError, match=r"suite\.yaml: cannot be read \('utf-8' codec"):
        read_settings(file)


@pytest.mark.parametrize("text", ["", "- a\n", "pydoc\n"])
def test_a_file_that_is_no_mapping_is_refused(file: Path, text: str) -> None:
    assert complaint(file, text).startswith("suite.yaml: a mapping of sections is expected, found ")


PREDECESSOR = """\
model: {model: Qwen/Qwen3.5-9B, max_model_len: 32768, dtype: bfloat16, chat_template: path/to/template.jinja, language_model_only: true}
haystack: {haystack_dir: ./PaulGrahamEssays, needle: "\\nThe best thing to do in San Francisco is ...\\n", retrieval_question: "What is ...?"}
sweep: {context_lengths: {min: 1000, max: 32000, intervals: 31}, document_depths: {min: 0, max: 100, intervals: 10}}
output_dir: ./results/qwen3_5_9b
"""  # noqa: E501 - as issue 2 and the predecessor's README have it


def test_the_predecessors_config_is_read_as_it_is(file: Path) -> None:
    file.write_text(PREDECESSOR)
    settings = resolve(read_settings(file), "it")
    assert settings.model.model == "Qwen/Qwen3.5-9B"
    assert settings.model.chat_template == "path/to/template.jinja"
    assert settings.model.engine_args == {"max_model_len": 32768, "dtype": "bfloat16", "language_model_only": True}
    assert settings.haystack is not None
    assert settings.haystack.needle == "\nThe best thing to do in San Francisco is ...\n"
    assert settings.output_dir == "./results/qwen3_5_9b"
    assert settings.prompt == PROMPTS["document"], "its own wording"


def test_a_wording_that_is_said_stands(file: Path) -> None:
    file.write_text(f"{PREDECESSOR}prompt: book\n")
    assert resolve(read_settings(file), "it").prompt == PROMPTS["book"]
    assert "prompt" not in overrides(["haystack.needle=It is noon."]), "no config of the predecessor's"


def test_an_unknown_model_key_goes_to_the_engine_as_it_stands() -> None:
    given = {"model": "m", "tensor_parallel_size": 2, "hf_overrides": {"rope": {"factor": 4.0}}}
    settings = resolve({"model": given}, "it")
    assert settings.model.engine_args == {"tensor_parallel_size": 2, "hf_overrides": {"rope": {"factor": 4.0}}}


def test_a_date_stays_text(file: Path) -> None:
    file.write_text("model: {model: m, revision: 2024-05-01}\n")
    assert resolve(read_settings(file), "it").model.engine_args == {"revision": "2024-05-01"}


def test_short_forms_are_written_out(file: Path) -> None:
    file.write_text("haystack: pydoc\nmodel: m\nsweep:\n")
    assert read_settings(file) == {"haystack": {"source": "pydoc"}, "model": {"model": "m"}}


def test_a_prompt_is_a_name_a_text_or_messages() -> None:
    text = "Read {context}. {question}"
    assert resolve({"prompt": "document"}, "it").prompt is PROMPTS["document"]
    assert [message.content for message in resolve({"prompt": text}, "it").prompt.messages] == [text]
    assert resolve({"prompt": {"messages": [{"role": "system", "content": text}]}}, "it").prompt.messages[0].role == (
        "system"
    )


def test_the_predecessors_prompt_is_shipped() -> None:
    context, question = PROMPTS["document"].messages
    assert (context.role, context.content) == ("user", "{context}")
    assert (question.role, question.content) == (
        "user",
        "{question} Don't give information outside the document or repeat your findings",
    )


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ("[]", "expected a text or a list of texts, numbers in quotes; found []"),
        ("7", "expected a text or a list of texts, numbers in quotes; found 7"),
        ("[at noon, 7]", "expected a text or a list of texts, numbers in quotes; found ['at noon', 7]"),
        ('[at noon, " "]', "answer is empty"),
        ("[at noon, at noon]", "'at noon' is given twice"),
    ],
)
def test_a_bad_answer_is_told_with_its_line(file: Path, answer: str, told: str) -> None:
    said = complaint(file, SUITE.replace("    question:", f"    answer: {answer}\n    question:"))
    assert said == f"suite.yaml:5: needles.0.answer: {told}"


def test_several_answers_are_a_list_and_one_of_them_is_one(file: Path) -> None:
    for answer, kept in (
        ("[at noon, midday]", ["at noon", "midday"]),
        ("[at noon]", "at noon"),
        ("at noon", "at noon"),
    ):
        file.write_text(SUITE.replace("    question:", f"    answer: {answer}\n    question:"), encoding="utf-8")
        (needle,) = resolve(read_settings(file), "suite.yaml").needles
        assert (needle.answer, needle.reference) == (kept, "at noon")


def test_the_default_score_is_that_of_key_words() -> None:
    scoring = Settings().scoring
    assert (scoring.metric, scoring.threshold) == ("key_words", 0.5)
    assert scoring.metric in METRICS


def test_set_reads_values_as_yaml_and_later_ones_win() -> None:
    assert overrides(["model.max_model_len=16384", "sweep.context_lengths=[512]", "verdict=none", "verdict=cell"]) == {
        "model": {"max_model_len": 16384},
        "sweep": {"context_lengths": [512]},
        "verdict": "cell",
    }


@pytest.mark.parametrize(
    ("assignment", "sentence"),
    [
        ("verdict", "--rh-set verdict: expected section.key=value"),
        ("=none", "--rh-set =none: expected section.key=value"),
        ("sweep.seeds=[1", "--rh-set sweep.seeds=[1: '[1' is not valid YAML"),
        ("sweep.sees=[1]", "--rh-set: sweep.sees: unknown key; did you mean 'seeds'?"),
        ("scoring.threshold=3", "--rh-set: scoring.threshold: input should be less than or equal to 1, found 3"),
    ],
)
def test_a_mistake_in_set(assignment: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as raised:
        overrides([assignment])
    assert str(raised.value) == sentence


TREES: Any = st.recursive(
    st.integers() | st.text() | st.lists(st.integers()),
    lambda below: st.dictionaries(st.sampled_from("abc"), below, min_size=1),
    max_leaves=8,
)
MAPPINGS = st.dictionaries(st.sampled_from("abc"), TREES)


def leaves(tree: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Everything but mappings, by its keys."""
    if not isinstance(tree, dict):
        return {path: tree}
    return {at: leaf for key, value in tree.items() for at, leaf in leaves(value, (*path, key)).items()}


@given(MAPPINGS, MAPPINGS)
def test_overlay_replaces_what_the_upper_mapping_says_and_nothing_else(
    below: dict[str, Any], above: dict[str, Any]
) -> None:
    merged, upper = leaves(overlay(below, above)), leaves(above)
    for path, leaf in upper.items():
        assert merged[path] == leaf
    for path, leaf in leaves(below).items():
        if not any(path[: len(other)] == other or other[: len(path)] == path for other in upper):
            assert merged[path] == leaf


@given(MAPPINGS)
def test_overlay_of_nothing_changes_nothing(tree: dict[str, Any]) -> None:
    assert overlay(tree, {}) == overlay({}, tree) == tree

"""RULER's own wordings: the same prompt texts as lm-eval's generator, and where the two differ."""

from __future__ import annotations

import contextlib
import io
import itertools
import random
import re
import types
import uuid
from collections import Counter
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lm_eval_files
from retrieval_heads.prompts.haystack import Haystack
from retrieval_heads.prompts.prompt import tokenize_with
from retrieval_heads.prompts.requests import Request
from retrieval_heads.prompts.settings import PROMPTS
from retrieval_heads.runs.facts import PromptFacts
from retrieval_heads.runs.place import Place
from retrieval_heads.runs.record import Record
from retrieval_heads.scoring import matches
from retrieval_heads.tasks.builder import CellBuilder
from retrieval_heads.tasks.ruler import harness
from retrieval_heads.tasks.ruler.cwe import CommonWords
from retrieval_heads.tasks.ruler.fwe import FrequentWords
from retrieval_heads.tasks.ruler.parts import NAMES, OF_FILES, part_of
from retrieval_heads.tasks.ruler.task import RULER, RulerOptions
from retrieval_heads.tasks.ruler.vt import HOPS, VariableTracking
from retrieval_heads.tasks.ruler.wording import fill
from retrieval_heads.tasks.task import Cell, Question
from toy_tokenizer import ByteTokenizer, ToyTokenizer, WordTokenizer

pytest.importorskip("wonderwords", reason="the extra ruler is not installed")

NIAH = [name for name in NAMES if name.startswith("niah")]
ESSAYS = [name for name in NIAH if name not in ("niah_single_1", "niah_multikey_2", "niah_multikey_3")]


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    lm_eval_files.folder()


@pytest.fixture(scope="module")
def tales(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tales")
    said = "Once there was a boat.  It sailed\nfar away! Did nobody\t see it?\n\nNobody did. The sea is wide"
    (folder / "a.txt").write_text("\n".join(f"{said} {number}." for number in range(90)))
    return str(folder)


def request_of(source: str, name: str, length: int, seed: int, tokenizer: ToyTokenizer, **options: Any) -> Request:
    said = RulerOptions.model_validate({"tasks": [name], "wording": "ruler", **options}).model_dump(mode="json")
    asks = Question("ruler", "niah", task="ruler", options=said, source=source, prompt=PROMPTS["book"])
    at = Place((("length", length), ("task", name)), seed)
    return CellBuilder(tokenizer, {}, {}, 1 << 20).request(asks, Cell("a", "a", at))


def message_of(request: Request, tokenizer: ToyTokenizer) -> tuple[str, str]:
    """A prompt's message, and the first words of its answer."""
    before, _, prefill = tokenizer.decode(request.ids).partition("<|end|>\n<|assistant|>")
    return before.removeprefix("<|user|>"), prefill


class Scripted:
    """In place of lm-eval's `random`: draws keys, values and places of a prompt of ours; the shuffle is its own."""

    Random = random.Random

    def __init__(self, drawn: list[str], samples: list[list[int]]) -> None:
        self._drawn, self._samples = iter(drawn), iter(samples)

    def choice(self, _: Any) -> str:
        return next(self._drawn)

    def randint(self, low: int, high: int) -> int:
        value = int(next(self._drawn))
        assert low <= value <= high
        return value

    def getrandbits(self, bits: int) -> int:
        assert bits == 128
        return uuid.UUID(next(self._drawn)).int

    def sample(self, of: Any, count: int) -> list[int]:
        chosen = next(self._samples)
        assert len(chosen) == count
        assert set(chosen) <= set(of)
        return chosen


def sentences_of(text: str) -> list[str]:
    """A text's sentences, split where ours end."""
    haystack = Haystack.of("", text, tokenize_with(ByteTokenizer(), read_special=False))
    starts = [haystack.tokens.starts[place] for place in haystack.boundaries]
    return [text[start:end].strip() for start, end in zip(starts, [*starts[1:], None], strict=True)]


@cache
def prepare() -> dict[str, Any]:
    """lm-eval's generator of needle tasks."""
    return lm_eval_files.module("prepare_niah", sentences_of)


@cache
def arguments_of(name: str) -> dict[str, Any]:
    """What lm-eval's task of that name hands to its generator."""
    given: list[dict[str, Any]] = []

    def generate_samples(haystack: Any, **arguments: Any) -> list[Any]:
        given.append({"haystack": haystack, "num_needle_k": 1, "num_needle_v": 1, "num_needle_q": 1, **arguments})
        return []

    def get_haystack(type_haystack: str) -> Any:
        return [] if type_haystack == "essay" else prepare()["get_haystack"](type_haystack)

    utils = lm_eval_files.module("niah_utils", generate_samples=generate_samples, get_haystack=get_haystack)
    utils[name]()
    (arguments,) = given
    return arguments


def drawn_by(name: str, message: str, facts: PromptFacts) -> tuple[Any, list[str], list[list[int]]]:
    """The haystack of a message of ours; keys and values as lm-eval draws them; places and keys that are asked."""
    context = message[message.index("\n") + 1 : message.rindex("\n")]
    said = re.escape(prepare()["NEEDLE"])
    for mark, of in (("type_needle_v", r"\w+"), ("key", "(.+?)"), ("value", r"([\w-]+)")):
        said = said.replace(rf"\{{{mark}\}}", of)
    pairs = [found.groups() for found in re.finditer(said, context)]
    stood = facts.insertions or ()
    asked = [each.counted or each.text for each in stood if each.role == "asked"]
    haystack: Any = arguments_of(name)["haystack"]
    if name in ESSAYS:
        order = list(range(len(pairs)))
        random.Random(42).shuffle(order)
        unshuffled = dict(zip(order, pairs, strict=True))
        needles = [unshuffled[at] for at in range(len(pairs))]
        for each in stood:
            context = context.replace(each.text, "", 1)
        haystack = context.split(" ")
        places = [each.depth for each in stood]
    else:
        at = next(at for at, (_, value) in enumerate(pairs) if value == asked[0])
        needles = [pairs[at], *pairs[:at], *pairs[at + 1 :]]
        places = [next(at for at, line in enumerate(context.split("\n")) if asked[0] in line)]
    keys = list(dict.fromkeys(key for key, _ in needles))
    drawn = list(dict.fromkeys(each for pair in needles for each in pair))
    queries = dict.fromkeys(keys.index(key) for value in asked for key, of in needles if of == value)
    return haystack, drawn, [places, list(queries)]


def theirs(name: str, message: str, facts: PromptFacts) -> tuple[str, str]:
    """Message and answer prefix of lm-eval's generator for the keys, values, depths and text of a message of ours."""
    arguments, generator = arguments_of(name), dict(prepare())
    haystack, drawn, samples = drawn_by(name, message, facts)
    units = len(haystack) if name in ESSAYS else message.count("\n") - 2
    shape = ("type_haystack", "type_needle_k", "type_needle_v", "template", "num_needle_v", "num_needle_q")
    keys = max(arguments["num_needle_k"], arguments["num_needle_q"])
    vars_of = generator["generate_input_output"].__globals__
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(vars_of, "random", Scripted(drawn, samples))
        made = generator["generate_input_output"](
            units, haystack, num_needle_k=keys, **{key: arguments[key] for key in shape}
        )
        patched.setitem(vars_of, "generate_input_output", lambda *_, **__: made)
        patched.setitem(vars_of, "tqdm", lambda each, **_: each)
        length = 128 + len(lm_eval_files.counted(made[0] + " ".join(made[1])).input_ids)
        said = {**arguments, "max_seq_length": length, "num_samples": 1, "TOKENIZER": lm_eval_files.counted}
        (sample,) = generator["generate_samples"](**said)
    return made[0], sample["gen_prefix"]


def _units(text: str) -> list[str]:
    """lm-eval's passages and assignments, in their order."""
    noise = "The grass is green."
    return re.findall(rf"VAR \w+ = (?:VAR )?\w+|{noise}", text)


@settings(deadline=None, max_examples=80)
@given(st.sampled_from(NIAH), st.integers(900, 2200), st.integers(0, 200))
def test_a_needle_task_is_lm_evals_word_for_word(tales: str, name: str, length: int, seed: int) -> None:
    tokenizer = WordTokenizer()
    request = request_of(tales, name, length, seed, tokenizer)
    message, prefill = message_of(request, tokenizer)
    assert theirs(name, message, request.facts) == (message, prefill)


def test_vt_is_nvidias_where_lm_eval_differs() -> None:
    """lm-eval misspells a word of the prefix, joins lines by blanks, and gives every example one value."""
    vt, made = part_of("vt", "ruler"), lm_eval_files.module("vt_utils")
    assert isinstance(vt, VariableTracking)
    prefix = made["CONFIG"]["variable_tracking"]["answer_prefix"]
    assert "assgined" in prefix
    assert vt.wording.phrases.prefill == prefix.replace("assgined", "assigned")
    random.seed(3)
    text, names = made["generate_input_output"](30, 1, HOPS)
    lines = [line for line in text.split("\n") if line.strip().startswith("VAR")]
    assert len(lines) <= HOPS + 1, "an assignment goes on with the passage behind it"
    assert any("VAR" in line and "grass" in line for line in lines)
    places = [at for at, each in enumerate(_units(text)) if each.startswith("VAR")]
    value = str(re.search(r"VAR \w+ = (\d+)", text)[1])  # type: ignore[index]
    draw = types.SimpleNamespace(sample=lambda of, count: [at - hop for hop, at in enumerate(places)])
    filled = vt._hidden(draw, names, value, 30)  # type: ignore[arg-type]
    assert [filled.text[start:end] for start, end in filled.counted] == names
    ours = fill(vt.wording.phrases.message, context=filled.text).replace("{question}", vt.wording.phrases.question)
    body = fill(ours, query=value)
    assert body.split() == text[: text.index(" Answer:")].split(), "all but the blanks is the same"
    assert [line.strip() for line in filled.text.split("\n") if line.startswith("VAR")] == [
        f"VAR {names[0]} = {value}",
        *(f"VAR {name} = VAR {of}" for of, name in itertools.pairwise(names)),
    ]


def test_vts_example_has_a_value_of_its_own_where_lm_evals_keeps_one() -> None:
    made, vt = lm_eval_files.module("vt_utils"), part_of("vt", "ruler")
    with contextlib.redirect_stdout(io.StringIO()):
        (example,) = made["sys_vartrack_w_noise_random"](
            lm_eval_files.counted, num_samples=1, max_seq_length=500, incremental=5
        )
    text = f"{example['input']} {' '.join(example['outputs'])}\n\n"
    value = re.search(r"value (\d+) in the text", text)[1]  # type: ignore[index]
    assert all(f"value {value} in the text" in made["randomize_icl"](text) for _ in range(3))
    ours = [vt.example(seed, 4096, lambda said: len(said.split())) for seed in range(20)]
    values = [re.search(r"value (\d+) in the text", said)[1] for said in ours]  # type: ignore[index]
    assert len(set(values)) == len(values)
    for said, each in zip(ours, values, strict=True):
        assert each not in vt.asked(ours.index(said), 4096).question
        assert len(said.split()) <= harness.EXAMPLE_TOKENS < len(said.split()) + 20, "as many passages as fit"
        assert said.count(f" = {each}\n") == 1
        assert re.search(r"they are:  ([A-Z]{3} ){4}[A-Z]{3}\n\n$", said)


def test_cwes_example_stands_in_the_prompt_where_lm_evals_does_not(tales: str) -> None:
    cwe, made = part_of("cwe", "ruler"), lm_eval_files.module("cwe_utils")
    assert isinstance(cwe, CommonWords)
    (sample,) = made["sys_word_pair_random"](num_samples=1, max_seq_length=1024, tokenizer=lm_eval_files.counted)
    assert sample["input_example"] not in sample["input"]
    opening = sample["input"][:30]
    assert sample["input"].count(opening) == 1
    listed, answer = re.search(r"\n(1\. .*)\nQuestion.*are:(1\. .*)$", sample["input_example"]).groups()  # type: ignore[union-attr]
    theirs = sample["input_example"].replace(f"are:{answer}", f"are: {answer}")  # NVIDIA has a blank there
    assert cwe.wording.phrases.worked(listed, answer) == f"{theirs}\n"
    (context,) = re.search(r"\n(1\. .*)\nQuestion", sample["input"]).groups()  # type: ignore[union-attr]
    phrases = cwe.wording.phrases
    assert fill(phrases.message, context=context, question=phrases.question) == sample["input"]
    assert phrases.prefill.strip() == sample["gen_prefix"]
    tokenizer = WordTokenizer()
    message, prefill = message_of(request_of(tales, "cwe", 3000, 1, tokenizer), tokenizer)
    assert (message.count(opening), prefill) == (2, sample["gen_prefix"])
    assert message.startswith(cwe.example(1, 3000, len))


def test_fwe_leaves_room_for_its_answer_where_lm_eval_does_not(tales: str) -> None:
    fwe, made = part_of("fwe", "ruler"), lm_eval_files.module("fwe_utils")
    assert isinstance(fwe, FrequentWords)
    samples = [made["sys_kwext"](lm_eval_files.counted, length, num_samples=1)[0] for length in range(1000, 2000, 100)]
    assert any(sample["length"] > sample["max_length"] for sample in samples), "text and the answer's 50 tokens"
    for sample in samples:
        request = request_of(tales, "fwe", sample["max_length"], 0, WordTokenizer())
        assert len(request.ids) + 50 <= sample["max_length"]
    (context,) = re.search(r"coded words\. (.*)\nQuestion", sample["input"]).groups()  # type: ignore[union-attr]
    phrases = fwe.wording.phrases
    assert fill(phrases.message, context=context, question=phrases.question) == sample["input"]
    assert phrases.prefill.strip() == sample["gen_prefix"]
    counts = Counter(context.split()).most_common(4)
    assert ["...", *sample["outputs"]] == [word for word, _ in counts]


def test_one_of_several_variants_is_enough_where_lm_eval_averages_them() -> None:
    made = lm_eval_files.module("common_utils")
    variants = ["Rome", "the city of Rome", "Roma"]
    theirs = made["process_results_part"]({"max_length": 4096, "outputs": variants}, ["It is in Rome."])
    assert theirs["4096"] == pytest.approx(1 / 3)
    assert matches("It is in Rome.", variants)["string_match_part"] == 1
    said = ["abc def", "ABC, xyz", "", "d\x07ef"]
    for answer in said:
        whole = made["process_results"]({"max_length": 4096, "outputs": ["abc", "def"]}, [answer])["4096"]
        assert matches(answer, ["abc", "def"])["string_match"] == whole, "where all are expected the two agree"


@settings(deadline=None, max_examples=60)
@given(st.sampled_from([name for name in NAMES if name not in OF_FILES]), st.integers(3500, 4095), st.integers(0, 50))
def test_lengths_spans_and_a_record_that_needs_no_package(tales: str, name: str, length: int, seed: int) -> None:
    tokenizer = ByteTokenizer(adds_bos=True)
    request, part = request_of(tales, name, length, seed, tokenizer), part_of(name, "ruler")
    whole = len(request.ids) + part.answer_tokens
    assert whole == length if name in ESSAYS else length - 300 < whole <= length
    text = tokenizer.decode(request.ids)
    at = Place((("length", length), ("task", name)), seed)
    fields = {"task": "ruler", "axes": dict(at.axes), "seed": seed, "suite": "ruler"}
    said = RulerOptions.model_validate({"tasks": [name], "wording": "ruler"}).model_dump(mode="json")
    asks = Question("ruler", "niah", task="ruler", options=said)
    record = Record.model_validate({**fields, **RULER.asked(asks, at).fields(), **request.facts.fields()})
    assert record.question in tokenizer.decode(request.ids[slice(*request.facts.question_span)])
    held = [tokenizer.decode(request.ids[slice(*each.span)]) for each in record.insertions or () if each.span]
    assert held == [each.counted or each.text for each in record.insertions or ()]
    assert held[: len(record.expected or ())] == (record.expected if part.has_spans else [])
    assert record.recipe is not None
    assert text.endswith(f"<|assistant|>{record.recipe.prefill}")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(harness, "PACKAGE", "lm_eval_that_is_not_there")
        for read in (harness.read_niah, harness.read_vt, harness.read_cwe, harness.read_fwe):
            read.cache_clear()
        again = CellBuilder(ByteTokenizer(adds_bos=True), {}, {}, 1 << 20).stored(
            Record.model_validate(record.to_json())
        )
    assert again.ids == request.ids

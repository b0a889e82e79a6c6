"""Settings: what a suite, a `--rh-config` file and `--rh-set` may say, and how they are laid over each other.

Suites and configs share one schema, so any section may stand in either: a suite says what to ask, a config says
of which model. Later ones win: suite, then config, then `--rh-set`. Nothing here imports torch or vllm.
"""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from retrieval_heads import yaml_reading
from retrieval_heads.ablation import named, repeated
from retrieval_heads.errors import ConfigError, UnreadableFile
from retrieval_heads.gates.expression import parse_gate
from retrieval_heads.gates.number import FIELDS, PASS_RATE
from retrieval_heads.kinds import KINDS, Kind
from retrieval_heads.reading import DEEPEST, path_of, read_bytes
from retrieval_heads.redaction import is_secret_key, keep_assignment_secret, keep_secret
from retrieval_heads.yaml_reading import NotYaml, decode, parse

KEY_WORDS = "key_words"
"""The score that decides where a suite names none; see `retrieval_heads.scoring.key_words`."""

Verdict = Literal["cell", "gates", "none"]

_SHARED = ("model", "engine", "output_dir")
"""What all suites of a run have in common, and so a run's config lays over others."""


class Section(BaseModel):
    """A part of the settings; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _number(value: Any) -> Any:
    """A number is written as one: YAML's `true` would be taken for a 1."""
    if isinstance(value, bool):
        raise ValueError(f"a number is expected, found {str(value).lower()}")
    return value


def _said(value: str) -> str:
    if not value.strip():
        raise ValueError("a text is expected, found none")
    return value


def _path(value: str) -> str:
    try:
        path_of(value)
    except UnreadableFile as error:
        raise ValueError(str(error)) from None
    return value


Whole = Annotated[int, BeforeValidator(_number)]
Number = Annotated[float, BeforeValidator(_number)]
Said = Annotated[str, AfterValidator(_said)]
"""A text that is more than white space."""

MOST_CELLS = 100_000
"""Of a suite. pytest lists, selects and reports each of them."""
LONGEST_CONTEXT = 100_000_000
"""Tokens of a prompt."""
MOST_REPLICAS = 1024
"""Engines of a run."""


class Range(Section):
    """`intervals` equal gaps from `min` to `max`, both ends included; without it every integer between."""

    min: Whole
    max: Whole
    intervals: Annotated[Whole, Field(ge=1, le=MOST_CELLS)] | None = None
    spacing: Literal["linear", "sigmoid"] = "linear"

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        if self.spacing == "sigmoid" and self.intervals is None:
            raise ValueError("sigmoid spacing needs intervals")
        if self.intervals is None and self.max - self.min >= MOST_CELLS:
            raise ValueError(f"{self.max - self.min + 1:,} values; a suite has at most {MOST_CELLS:,} cells")
        return self


def _branch(value: Any) -> str:
    return "Range" if isinstance(value, dict | Range) else "list[]"


# The branch is chosen by what was written, so that only the mistakes of that branch are told.
Lengths = Annotated[
    Annotated[list[Annotated[Whole, Field(ge=1, le=LONGEST_CONTEXT)]], Tag("list[]")] | Annotated[Range, Tag("Range")],
    Discriminator(_branch),
]
Depths = Annotated[
    Annotated[list[Annotated[Number, Field(ge=0, le=100)]], Tag("list[]")] | Annotated[Range, Tag("Range")],
    Discriminator(_branch),
]


class Model(Section):
    """The model under test. Every other key is passed to vLLM's engine as it stands."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False, protected_namespaces=())

    model: Said | None = None
    """A folder, a hub name, or a name that needs no hub (`retrieval_heads.models`)."""
    chat_template: Said | None = None
    """A Jinja file, or the template itself; the tokenizer's own where it is left out."""
    chat_template_kwargs: dict[str, Any] = {}
    """Given to the template, such as `{enable_thinking: false}`."""

    @model_validator(mode="after")
    def _sized(self) -> Model:
        # vLLM reads 32k and auto as well, and -1 as auto.
        length = self.engine_args.get("max_model_len")
        is_number = type(length) is int and (length >= 1 or length == -1)
        is_word = isinstance(length, str) and re.fullmatch(r"auto|\d+(\.\d+)?[kKmMgG]?", length)
        if length is not None and not is_number and not is_word:
            raise ValueError(f"max_model_len: a number of tokens is expected, found {length!r}")
        return self

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """What a traceback or a failed assertion shows: no secret."""
        return ((name, value) for name, value in super().__repr_args__() if not is_secret_key(name))

    @property
    def engine_args(self) -> dict[str, Any]:
        """The keys that vLLM gets."""
        return dict(self.model_extra or {})


class Engine(Section):
    """The engine that every suite of a run is asked on."""

    replicas: Literal["auto"] | int = 1
    """How many engines, each on a GPU of its own; `auto`: as many as there are GPUs, or one on a CPU."""
    silence: float | None = 900
    """Seconds without a step or another sign of life, after which an engine is ended; `null` waits for ever."""
    start_limit: float | None = 3600
    """Seconds that an engine may take until its model is loaded; `null` waits for ever."""

    @field_validator("replicas", mode="before")
    @classmethod
    def _some(cls, replicas: Any) -> Any:
        if replicas != "auto" and (type(replicas) is not int or replicas < 1):
            raise ValueError(f"expected auto or a number of engines, 1 or more; found {replicas!r}")
        if replicas != "auto" and replicas > MOST_REPLICAS:
            raise ValueError(f"{replicas} engines; a run has at most {MOST_REPLICAS}")
        return replicas

    @field_validator("silence", "start_limit", mode="before")
    @classmethod
    def _seconds(cls, limit: Any) -> Any:
        if limit is not None and (type(limit) not in (int, float) or not 0 < limit < math.inf):
            raise ValueError(f"expected a number of seconds above 0, or null for no limit; found {limit!r}")
        return limit


class Haystack(Section):
    """Where the text comes from. `needle` and `retrieval_question` are the predecessor's place for them."""

    source: str | None = None
    """A folder of .txt files, `package:NAME/PATH` for one inside an installed package, or `pydoc`."""
    haystack_dir: str | None = None
    """The predecessor's name for a folder as `source`."""
    name: Said | None = None
    """Names the haystack in cells; the last part of the source where it is left out."""
    needle: str | None = None
    retrieval_question: str | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Haystack:
        if self.source is not None and self.haystack_dir is not None:
            raise ValueError("give source or haystack_dir, not both")
        return self


def _answers(value: Any) -> Any:
    """One answer, or a list of those that are accepted; a list of one is that one."""
    listed = value if isinstance(value, list) else [value]
    if value is not None and not (listed and all(isinstance(each, str) for each in listed)):
        raise ValueError(f"expected a text or a list of texts, numbers in quotes; found {value!r}")
    if value is not None and not all(each.strip() for each in listed):
        raise ValueError("answer is empty")
    if twice := [each for at, each in enumerate(listed) if each in listed[:at]]:
        raise ValueError(f"{twice[0]!r} is given twice")
    return listed[0] if len(listed) == 1 else value


class Needle(Section):
    """A fact, the question that asks for it and the answer that counts."""

    needle: str
    question: str
    answer: Annotated[str | list[str] | None, BeforeValidator(_answers)] = None
    """The reference that the scores compare with, or a list of which any one is accepted; the needle itself where it
    is left out.
    """
    answer_span: str | None = None
    """The part of the needle that must be said; head scores count its tokens alone."""
    name: str | None = None

    @model_validator(mode="after")
    def _complete(self) -> Needle:
        for key in ("needle", "question"):
            if not getattr(self, key).strip():
                raise ValueError(f"{key} is empty")
        if self.answer_span is not None and not self.answer_span.strip():
            raise ValueError("answer_span is empty")
        if self.answer_span is not None and self.answer_span not in self.needle:
            raise ValueError(f"answer_span {self.answer_span!r} does not stand in the needle")
        return self

    @property
    def references(self) -> tuple[str, ...]:
        """The answers that are accepted, without surrounding white space; the needle where none is given."""
        answers = self.answer if isinstance(self.answer, list) else [self.answer or self.needle]
        return tuple(each.strip() for each in answers)

    @property
    def reference(self) -> str:
        """The first of them, which names the question."""
        return self.references[0]

    @property
    def sayings(self) -> tuple[str, ...]:
        """Of what `key_words` must find one in an answer: the answers, else `answer_span`, else the needle."""
        if self.answer is None and self.answer_span:
            return (self.answer_span.strip(),)
        return self.references


class Sweep(Section):
    """The grid: every length by every depth by every seed."""

    context_lengths: Lengths | None = None
    """Tokens of the whole prompt."""
    document_depths: Depths | None = None
    """Percent of the haystack before the needle."""
    seeds: list[Annotated[Whole, Field(ge=0)]] = [0]
    """Each seed starts the context at another place of the haystack; 0 at its start."""

    @field_validator("context_lengths")
    @classmethod
    def _positive(cls, lengths: list[int] | Range | None) -> list[int] | Range | None:
        if isinstance(lengths, Range) and (
            lengths.min < 1 or lengths.max > LONGEST_CONTEXT or lengths.spacing != "linear"
        ):
            raise ValueError(f"lengths are linear and lie between 1 and {LONGEST_CONTEXT:,} tokens")
        return lengths

    @field_validator("document_depths")
    @classmethod
    def _percent(cls, depths: list[float] | Range | None) -> list[float] | Range | None:
        if isinstance(depths, Range) and not 0 <= depths.min <= depths.max <= 100:
            raise ValueError("depths lie between 0 and 100")
        return depths


class Generation(Section):
    """How answers are sampled. Every other key is passed to vLLM's `SamplingParams` as it stands."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    max_tokens: Annotated[Whole, Field(ge=1, le=LONGEST_CONTEXT)] | None = None
    """The answer's budget in tokens; four times the needle's where it is left out."""
    temperature: Annotated[Number, Field(ge=0)] = 0.0


class Scoring(Section):
    """Which score says that the needle was retrieved: `metric` above `threshold`."""

    metric: str = KEY_WORDS
    threshold: Annotated[Number, Field(ge=0, le=1)] = 0.5

    @field_validator("metric")
    @classmethod
    def _known(cls, metric: str) -> str:
        if metric not in METRICS:
            raise ValueError(f"unknown metric {metric!r}{_nearest(metric, METRICS)}")
        return metric


class Message(Section):
    """One message of a prompt; `{context}` and `{question}` mark where those go."""

    role: Literal["system", "user", "assistant"] = "user"
    content: str


class Prompt(Section):
    """A prompt's wording: messages that hold `{context}` and `{question}` once each."""

    messages: Annotated[list[Message], Field(min_length=1)]

    @model_validator(mode="after")
    def _marked(self) -> Prompt:
        text = "".join(message.content for message in self.messages)
        for mark in ("{context}", "{question}"):
            if (found := text.count(mark)) != 1:
                raise ValueError(f"the messages hold {mark} {found} times; once is accepted")
        return self


PROMPTS: dict[str, Prompt] = {
    "book": Prompt(
        messages=[
            Message(
                content="This is a very long story book:\n<book>\n{context}\n</book>\n"
                "Based on the content of the book, answer the question: {question}"
            )
        ]
    ),
    "document": Prompt(
        messages=[
            Message(content="{context}"),
            Message(content="{question} Don't give information outside the document or repeat your findings"),
        ]
    ),
}
"""Prompts by name. `document` is the predecessor's."""

METRICS: tuple[str, ...] = (
    *(
        f"{rouge}_{part}{words}"
        for words in ("", "_novel")
        for rouge in ("rouge1", "rougeL")
        for part in ("precision", "recall", "f")
    ),
    "substring",
    KEY_WORDS,
)
"""Every stored score. `_novel`: over the words that the question does not contain. `rouge1_recall` above 0.5 is the
rule of arXiv 2404.15574.
"""


def _named_prompt(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if value in PROMPTS:
        return PROMPTS[value]
    if "{context}" in value:
        return {"messages": [{"content": value}]}
    raise ValueError(f"unknown prompt {value!r}; accepted: {', '.join(PROMPTS)}, or a text with {{context}}")


def _plain_haystack(value: Any) -> Any:
    return {"source": value} if isinstance(value, str) else value


_HeadPair = tuple[Annotated[Whole, Field(ge=0)], Annotated[Whole, Field(ge=0)]]
_DROP = re.compile(r"top_(\d+)_drop_exceeds_random$")


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


class Ablate(Section):
    """Which heads are masked, how, and beside how many controls."""

    heads: (
        Annotated[
            Annotated[list[_HeadPair], Field(min_length=1), Tag("list[]")] | Annotated[str, Tag("constrained-str")],
            Discriminator(lambda value: "list[]" if isinstance(value, list) else "constrained-str"),
        ]
        | None
    ) = None
    """A head file, a list of [layer, head] with the best first, or `detect/NAME`: what that suite of the run finds."""
    top: Annotated[list[Annotated[Whole, Field(ge=1)]], Field(min_length=1), BeforeValidator(_as_list)] = [10]
    """How many of the best heads are masked; a list makes a dose curve."""
    draws: Annotated[Whole, Field(ge=1)] = 5
    """Controls: as many other heads of the same layers, drawn this often."""
    mode: Literal["zero", "mean", "uniform"] = "zero"
    """How a head is masked; see `retrieval_heads.ablation.MODES`."""
    seed: Annotated[Whole, Field(ge=0)] = 0
    """Chooses the control draws."""
    controls: bool = True
    """Measure other behaviour under each mask as well; see `retrieval_heads.controls`."""
    until: Annotated[Number, Field(gt=0, lt=1)] = 0.5
    """The smallest count is told that brings accuracy down to this share of the unmasked."""

    @model_validator(mode="after")
    def _distinct(self) -> Ablate:
        if isinstance(self.heads, list) and (twice := repeated(self.heads)):
            raise ValueError(f"heads: head {named(twice)} is given twice")
        if self.awaited == "detect/":
            raise ValueError("heads: detect/ names no suite; expected detect/NAME")
        if len(set(self.top)) < len(self.top):
            raise ValueError(f"top: {next(count for count in self.top if self.top.count(count) > 1)} is given twice")
        return self

    @property
    def awaited(self) -> str | None:
        """The detect suite of the same run whose heads are masked: `detect/NAME`."""
        return self.heads if isinstance(self.heads, str) and self.heads.startswith("detect/") else None


class Expect(Section):
    """What a detection or an ablation must come to, decided once the run is over."""

    top_heads: list[_HeadPair] = []
    """Heads, each [layer, head], that must be among the best by `copy`."""
    within_top: Annotated[Whole, Field(ge=1)] = 10
    """How many of the best count as such."""
    min_overlap_with: str | None = None
    """A file of heads whose best must be found again."""
    min_overlap: Annotated[Number, Field(gt=0, le=1)] = 0.8
    """The share of that file's `within_top` best heads that must be among ours."""
    drop_exceeds_random: dict[Annotated[int, Field(ge=1)], Annotated[Number, Field(ge=0, lt=1)]] = {}
    """By count: how much more accuracy must fall under the best heads' mask than under the controls'. Written as
    `top_10_drop_exceeds_random: 0.3`."""

    @model_validator(mode="before")
    @classmethod
    def _drops(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        said = {key: value for key, value in data.items() if not _DROP.match(str(key))}
        drops = dict(said.get("drop_exceeds_random", {}))
        for key, value in data.items():
            if found := _DROP.match(str(key)):
                if (count := int(found[1])) in drops:
                    raise ValueError(f"the drop of the top {count} is expected twice")
                drops[count] = value
        return {**said, "drop_exceeds_random": drops} if drops else said

    @model_validator(mode="after")
    def _possible(self) -> Expect:
        if twice := repeated(self.top_heads):
            raise ValueError(f"top_heads: head {named(twice)} is given twice")
        if len(self.top_heads) > self.within_top:
            raise ValueError(f"{len(self.top_heads)} top_heads cannot be within_top {self.within_top}")
        if not self.top_heads and self.min_overlap_with is None and not self.drop_exceeds_random:
            raise ValueError("expected top_heads, min_overlap_with or top_10_drop_exceeds_random")
        return self


def _parsed_gate(text: str) -> str:
    try:
        parse_gate(text, (*METRICS, PASS_RATE, *FIELDS))
    except ConfigError as error:
        raise ValueError(str(error)) from None
    return text


def _plain_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class Settings(Section):
    """Everything a suite or a config file may say; every section may be left out."""

    kind: Kind = "niah"
    name: Annotated[str, Field(pattern=r"^[^/:\[\]]+$")] | None = None
    """The suite's name in records and reports; its file's where it is left out."""
    model: Model = Model()
    engine: Engine = Engine()
    haystack: Annotated[Haystack, BeforeValidator(_plain_haystack)] | None = None
    needles: list[Needle] = []
    sweep: Sweep = Sweep()
    boundary: Literal["sentence", "token"] = "sentence"
    """Where a needle may stand: at the sentence boundary nearest to its depth, or at the exact token."""
    prompt: Annotated[Prompt, BeforeValidator(_named_prompt)] = PROMPTS["book"]
    generation: Generation = Generation()
    scoring: Scoring = Scoring()
    from_results: Annotated[list[str], BeforeValidator(_plain_list)] = []
    """Results whose stored answers are traced in place of asking (detect)."""
    from_model: Said | None = None
    """The model that gave the stored answers, where another is to trace them (detect)."""
    score_threshold: Annotated[Number, Field(ge=0, le=1)] | None = None
    """Take stored answers whose ROUGE-L is at least this, and count them all, as the predecessor did."""
    calculate_device: str | None = None
    """Read for the predecessor's sake: scores are computed where the model is."""
    ablate: Ablate | None = None
    """Whose heads are masked (ablate)."""
    expect: Expect | None = None
    gates: Annotated[list[Annotated[str, AfterValidator(_parsed_gate)]], BeforeValidator(_plain_list)] = []
    """What the run as a whole must reach; see `retrieval_heads.gates.expression`."""
    allow_skipped: bool = False
    """A skipped cell stays out of gates instead of breaking them."""
    verdict: Verdict | None = None
    """What decides the exit code: `cell` (an item below its threshold fails), `gates` (the gates and a baseline) or
    `none` (nothing but errors). Left out: `gates` where there is a gate or a baseline, else `cell`."""
    output_dir: Annotated[str, AfterValidator(_path)] | None = None
    """The run's folder; `reports/<time>-<suite>` where it is left out."""


def is_whole_suite(data: Mapping[str, Any]) -> bool:
    """Whether a config file says what to ask, and so is a suite itself."""
    return "haystack" in data or "from_results" in data


def read_settings(path: Path) -> dict[str, Any]:
    """Read and validate one YAML file on its own.

    Returns:
        The file's own keys, unresolved, ready to be laid over another's.

    Raises:
        ConfigError: The file is missing, is no YAML mapping, or holds a key or value that is not accepted.
    """
    data, text = _read(path)
    if "suites" in data:
        first = next(iter(_suites_of_run(data, path, text).values()))
        return {key: value for key, value in first.items() if key in _SHARED}
    return _validated(data, path, text)


def read_suites(path: Path) -> dict[str, dict[str, Any]]:
    """The suites that the `config.yaml` of a run of several holds, by kind and name; none of any other file.

    Raises:
        ConfigError: As `read_settings`.
    """
    data, text = _read(path)
    return _suites_of_run(data, path, text) if "suites" in data else {}


def _read(path: Path) -> tuple[dict[str, Any], str]:
    """A file's mapping, and its text."""
    if not os.path.lexists(path):
        raise ConfigError(f"{path}: no such file")
    text = decode(read_bytes(path), str(path))
    data = parse(text, str(path))
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: a mapping of sections is expected, found {type(data).__name__}")
    return data, text


def _suites_of_run(data: Mapping[str, Any], path: Path, text: str) -> dict[str, dict[str, Any]]:
    suites = data["suites"]
    at = f"{path}:{yaml_reading.line_of(text, ['suites'])}"
    if len(data) > 1 or not isinstance(suites, dict) or not suites:
        raise ConfigError(f"{at}: suites: expected each suite of a run by kind and name, and no other key beside it")
    read = {}
    for suite, own in suites.items():
        kind, _, name = str(suite).partition("/")
        if kind not in KINDS or not name or not isinstance(own, dict):
            raise ConfigError(f"{at}: suites.{suite}: expected KIND/NAME with a suite's sections under it")
        if (own.get("kind", kind), own.get("name", name)) != (kind, name):
            raise ConfigError(f"{at}: suites.{suite}: the suite under it says another kind or name")
        read[suite] = _validated({**own, "kind": kind, "name": name}, path, text, ("suites", suite))
    return read


def _validated(data: dict[str, Any], path: Path, text: str, under: tuple[str, ...] = ()) -> dict[str, Any]:
    """The data with its short forms written out."""
    normal = _normal(data, str(path))
    keep_secret(normal)
    try:
        Settings.model_validate(normal)
    except ValidationError as error:
        raise ConfigError("\n".join(_sentences(error, str(path), text, under))) from None
    return normal


def line_of(path: Path, *keys: str) -> int | None:
    """The 1-based line of a file on which the last of nested keys that it holds is written."""
    return yaml_reading.line_of(decode(read_bytes(path), str(path)), keys)


def overrides(assignments: Sequence[str]) -> dict[str, Any]:
    """Turn `--rh-set section.key=value` into settings; a value is read as YAML.

    Raises:
        ConfigError: An assignment has no `=`, a value that is no YAML, or a key that is not accepted.
    """
    settings: dict[str, Any] = {}
    for assignment in assignments:
        keep_assignment_secret(assignment)
        key, found, text = assignment.partition("=")
        parts = key.strip().split(".")
        if not found or any(not part or part != part.strip() for part in parts):
            raise ConfigError(f"--rh-set {assignment}: expected section.key=value")
        if not text.strip():
            raise ConfigError(
                f"--rh-set {assignment}: no value (a variable that is not set?); write '' for an empty text"
            )
        if len(parts) > DEEPEST:
            raise ConfigError(f"--rh-set {assignment}: {len(parts)} keys stand in each other; {DEEPEST} may")
        try:
            value = parse(text, f"--rh-set {assignment}")
        except NotYaml:
            raise ConfigError(f"--rh-set {assignment}: {text!r} is not valid YAML") from None
        if value is None and len(parts) == 1:
            raise ConfigError(f"--rh-set {assignment}: null is no value of a section; leave it out")
        for part in reversed(parts):
            value = {part: value}
        settings = overlay(settings, _normal(value, "--rh-set"))
    keep_secret(settings)
    try:
        Settings.model_validate(settings)
    except ValidationError as error:
        raise ConfigError("\n".join(_sentences(error, "--rh-set", ""))) from None
    return settings


def overlay(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one mapping over another: mappings are merged key by key, anything else is replaced."""
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        merged[key] = overlay(under, value) if isinstance(under, dict) and isinstance(value, dict) else value
    return merged


def resolve(data: Mapping[str, Any], where: str) -> Settings:
    """Validate laid-over settings as a whole.

    Raises:
        ConfigError: The parts are each accepted, but not together.
    """
    try:
        return Settings.model_validate(dict(data))
    except ValidationError as error:
        raise ConfigError("\n".join(_sentences(error, where, ""))) from None


def _normal(data: dict[str, Any], where: str) -> dict[str, Any]:
    """Short forms written out, so that files can be merged key by key; an empty section says nothing."""
    normal = {key: value for key, value in data.items() if value is not None}
    if {"results_files", "from_results"} <= normal.keys():
        raise ConfigError(f"{where}: results_files and from_results are two names of one key; give one of them")
    if "results_files" in normal:  # the predecessor's name, whose file says no kind
        normal["from_results"] = normal.pop("results_files")
    if "from_results" in normal:
        normal.setdefault("kind", "detect")
    if isinstance(normal.get("haystack"), str):
        normal["haystack"] = {"source": normal["haystack"]}
    if isinstance(normal.get("model"), str):
        normal["model"] = {"model": normal["model"]}
    return normal


def _sentences(error: ValidationError, where: str, text: str, under: tuple[str, ...] = ()) -> Iterator[str]:
    """One sentence for each mistake: file, line, key, what is wrong, what is accepted."""
    seen = set()
    slips = {
        (*detail["loc"][:-1], meant)
        for detail in error.errors()
        if detail["type"] == "extra_forbidden" and (meant := _meant(detail["loc"]))
    }
    for detail in error.errors():
        if detail["type"] == "missing" and detail["loc"] in slips:
            continue  # it is there, misspelt
        keys = [part for part in detail["loc"] if not _is_branch(part)]
        name = ".".join(str(key) for key in (*under, *keys))
        line = yaml_reading.line_of(text, [*under, *keys])
        sentence = f"{where}{f':{line}' if line else ''}: {name}: {_message(detail, keys)}"
        if (line, name) not in seen:
            seen.add((line, name))
            yield sentence


def _meant(loc: Sequence[int | str]) -> str | None:
    """The accepted key nearest to an unknown one."""
    valid = _fields_at([part for part in loc[:-1] if not _is_branch(part)])
    return next(iter(difflib.get_close_matches(str(loc[-1]), valid, n=1, cutoff=0.6)), None)


def _is_branch(part: int | str) -> bool:
    """Pydantic names the branch of a union it tried; a user never wrote that."""
    return isinstance(part, str) and bool(re.match(r"(list\[|Range$|function-|constrained-)", part))


def _message(detail: Any, keys: list[int | str]) -> str:
    if detail["type"] == "extra_forbidden":
        valid = _fields_at(keys[:-1])
        return "unknown key" + (_nearest(str(keys[-1]), valid) or f"; accepted: {', '.join(valid)}")
    if detail["type"] == "missing":
        return "this key is missing"
    message = re.sub(r" or instance of \w+$", "", str(detail["msg"]).removeprefix("Value error, "))
    if detail["type"] == "value_error":
        return message
    value = detail.get("input")
    found = "a mapping" if isinstance(value, dict) else "a list" if isinstance(value, list) else repr(value)
    return f"{message[0].lower()}{message[1:]}, found {found}"


def _fields_at(keys: Sequence[int | str]) -> list[str]:
    model: Any = Settings
    for key in keys:
        if isinstance(key, int):
            continue
        model = next(_sections_in(model.model_fields[key].annotation), None)
        if model is None:
            return []
    return list(model.model_fields)


def _sections_in(annotation: Any) -> Iterator[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for part in get_args(annotation):
        yield from _sections_in(part)


def _nearest(word: str, valid: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, valid, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""

"""Settings: what a suite, a `--rh-config` file and `--rh-set` may say, and how they are laid over each other.

Suites and configs share one schema, so any section may stand in either: a suite says what to ask, a config says
of which model. Later ones win: suite, then config, then `--rh-set`. Nothing here imports torch or vllm.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Final, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    field_validator,
    model_serializer,
    model_validator,
)

from retrieval_heads.ablation.settings import Ablate, Compress
from retrieval_heads.errors import ConfigError
from retrieval_heads.gates.expression import parse_gate
from retrieval_heads.gates.number import FIELDS, PASS_RATE
from retrieval_heads.gates.settings import Expect
from retrieval_heads.heads.score import head_score, is_of_texts
from retrieval_heads.heads.stopping import UntilStable
from retrieval_heads.kinds import Kind
from retrieval_heads.prompts.settings import PROMPTS, HaystackSource, Needle, NeedleFile, Prompt, named_prompt
from retrieval_heads.scoring.scorers import SCORERS
from retrieval_heads.scoring.settings import EVERY_METRIC, Scoring
from retrieval_heads.settings.range import Range, branch_of
from retrieval_heads.settings.section import Number, OpenSection, PathText, Said, Section, Whole
from retrieval_heads.suites.predecessor import CodeEval, Phonebook

Verdict = Literal["cell", "gates", "none"]

DEFAULT_BACKEND: Final = "vllm"
"""What answers where the settings do not say; left out of what is stored."""
LONGEST_CONTEXT = 100_000_000
"""Tokens of a prompt."""
MOST_REPLICAS = 1024
"""Engines of a run."""


# The branch is chosen by what was written, so that only the mistakes of that branch are told.
Lengths = Annotated[
    Annotated[list[Annotated[Whole, Field(ge=1, le=LONGEST_CONTEXT)]], Tag("list[]")] | Annotated[Range, Tag("Range")],
    Discriminator(branch_of),
]
Depths = Annotated[
    Annotated[list[Annotated[Number, Field(ge=0, le=100)]], Tag("list[]")] | Annotated[Range, Tag("Range")],
    Discriminator(branch_of),
]


class Model(OpenSection):
    """The model under test. Every other key is passed to the backend, such as vLLM's engine, as it stands."""

    model: Said | None = None
    """A folder, a hub name, or a name that needs no hub (`retrieval_heads.models`)."""
    chat_template: Said | None = None
    """A Jinja file, or the template itself; the tokenizer's own where it is left out."""
    chat_template_kwargs: dict[str, object] = {}
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

    @property
    def engine_args(self) -> dict[str, object]:
        """The keys that the backend gets."""
        return dict(self.model_extra or {})


class Engine(Section):
    """The engine that every suite of a run is asked on."""

    kind: Said = DEFAULT_BACKEND
    """The backend: `vllm`, `openai`, `ray`, or another distribution's (`retrieval_heads.engine.backends`)."""
    replicas: Literal["auto"] | int = 1
    """How many engines, each on a GPU of its own; `auto`: as many as there are GPUs, or one on a CPU."""
    silence: float | None = 900
    """Seconds without a step or another sign of life, after which an engine is ended; `null` waits for ever."""
    start_limit: float | None = 3600
    """Seconds that an engine may take until its model is loaded; `null` waits for ever."""

    idle: float = 900
    """Seconds without a run after which a warm engine ends."""
    sleep: float = 60
    """Seconds without a run after which a warm engine gives its GPU's memory back, where it can."""

    @field_validator("replicas", mode="before")
    @classmethod
    def _some(cls, replicas: object) -> object:
        if replicas == "auto":
            return replicas
        if not isinstance(replicas, int) or isinstance(replicas, bool) or replicas < 1:
            raise ValueError(f"expected auto or a number of engines, 1 or more; found {replicas!r}")
        if replicas > MOST_REPLICAS:
            raise ValueError(f"{replicas} engines; a run has at most {MOST_REPLICAS}")
        return replicas

    @field_validator("silence", "start_limit", mode="before")
    @classmethod
    def _seconds(cls, limit: object) -> object:
        is_number = isinstance(limit, int | float) and not isinstance(limit, bool) and 0 < limit < math.inf
        if limit is not None and not is_number:
            raise ValueError(f"expected a number of seconds above 0, or null for no limit; found {limit!r}")
        return limit

    @field_validator("idle", "sleep", mode="before")
    @classmethod
    def _while(cls, seconds: object) -> object:
        is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool) and 0 < seconds < math.inf
        if not is_number:
            raise ValueError(f"expected a number of seconds above 0; found {seconds!r}")
        return seconds

    @property
    def options(self) -> dict[str, object]:
        """What it says to the backend alone."""
        return dict(self.model_extra or {})

    @model_serializer(mode="wrap")
    def _without_default(self, dump: SerializerFunctionWrapHandler) -> dict[str, object]:
        said: dict[str, object] = dump(self)
        for key in ("kind", "idle", "sleep"):
            if said.get(key) == Engine.model_fields[key].default:
                del said[key]
        return said


class OtherEngine(Engine, OpenSection):
    """One that is not the default's: every other key belongs to the backend."""


def _engine_branch(value: object) -> str:
    kind = value.get("kind", DEFAULT_BACKEND) if isinstance(value, dict) else getattr(value, "kind", DEFAULT_BACKEND)
    return "Engine" if kind == DEFAULT_BACKEND or not isinstance(kind, str) else "OtherEngine"


AnyEngine = Annotated[
    Annotated[Engine, Tag("Engine")] | Annotated[OtherEngine, Tag("OtherEngine")], Discriminator(_engine_branch)
]


def _plain_samples(value: object) -> object:
    if value in ("until_stable", "bisect_lengths"):
        return {value: {}}
    if value is None or isinstance(value, dict | Samples):
        return value
    raise ValueError(f"until_stable is expected, or {{until_stable: {{top: 10}}}}, or bisect_lengths; found {value!r}")


class BisectLengths(Section):
    """Lengths are asked until the effective length is known. Assumes that longer is not easier."""


class Samples(Section):
    """How many cells of the grid are asked."""

    until_stable: UntilStable | None = None
    """As many as settle the best heads (detect); see `retrieval_heads.heads.stopping`."""
    bisect_lengths: BisectLengths | None = None
    """Those of the lengths that tell the effective length (niah); see `retrieval_heads.gates.halving`."""

    @model_validator(mode="after")
    def _one(self) -> Samples:
        if (self.until_stable is None) is (self.bisect_lengths is None):
            raise ValueError("one of until_stable and bisect_lengths is expected")
        return self


class Sweep(Section):
    """The grid: every length by every depth by every seed."""

    context_lengths: Lengths | None = None
    """Tokens of the whole prompt."""
    document_depths: Depths | None = None
    """Percent of the haystack before the needle."""
    seeds: list[Annotated[Whole, Field(ge=0)]] = [0]
    """Each seed starts the context at another place of the haystack; 0 at its start."""
    samples: Annotated[Samples, BeforeValidator(_plain_samples)] | None = None
    """Which of its cells are asked; all where it is left out."""

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


class RandomTexts(Section):
    """The texts that `induction` and `echo` are measured on."""

    tokens: Annotated[Whole, Field(ge=2, le=LONGEST_CONTEXT)] = 256
    """Of one copy, all different, special tokens left out; the paper has 2500."""
    repeats: Annotated[Whole, Field(ge=2, le=1000)] = 4
    """Copies of it."""
    seeds: Annotated[list[Annotated[Whole, Field(ge=0)]], Field(min_length=1)] = [0, 1, 2, 3, 4]
    """Each makes a text, which is one sample."""

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"{next(seed for seed in seeds if seeds.count(seed) > 1)} is given twice")
        return seeds


class Generation(Section):
    """How answers are sampled. Every other key is passed to vLLM's `SamplingParams` as it stands."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    max_tokens: Annotated[Whole, Field(ge=1, le=LONGEST_CONTEXT)] | None = None
    """The answer's budget in tokens; four times the needle's where it is left out."""
    temperature: Annotated[Number, Field(ge=0)] = 0.0


def _plain_haystack(value: object) -> object:
    return {"source": value} if isinstance(value, str) else value


class TaskOptions(Section):
    """What is asked. Every other key is the task's own."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    name: Said
    """As `retrieval_heads.tasks.task.TASKS` knows it."""


def _plain_task(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


def _parsed_gate(text: str) -> str:
    try:
        parse_gate(text, (*dict.fromkeys((*EVERY_METRIC, *SCORERS.names)), PASS_RATE, *FIELDS))
    except ConfigError as error:
        raise ValueError(str(error)) from None
    return text


def _plain_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _needles_branch(value: object) -> str:
    return "NeedleFile" if isinstance(value, dict | NeedleFile) else "list[]"


AnyNeedles = Annotated[
    Annotated[list[Needle], Tag("list[]")] | Annotated[NeedleFile, Tag("NeedleFile")], Discriminator(_needles_branch)
]


class Settings(Section):
    """Everything a suite or a config file may say; every section may be left out."""

    kind: Kind = "niah"
    name: Annotated[str, Field(pattern=r"^[^/:\[\]]+$")] | None = None
    """The suite's name in records and reports; its file's where it is left out."""
    task: Annotated[TaskOptions, BeforeValidator(_plain_task)] | None = None
    """What is asked; needles in a haystack where it is left out."""
    model: Model = Model()
    engine: AnyEngine = Engine()
    haystack: Annotated[HaystackSource, BeforeValidator(_plain_haystack)] | None = None
    needles: Annotated[
        Annotated[list[Needle], Tag("list[]")] | Annotated[NeedleFile, Tag("NeedleFile")],
        Discriminator(_needles_branch),
    ] = []
    """A list of them, or the file that they are read from."""
    sweep: Sweep = Sweep()
    boundary: Literal["sentence", "token", "line"] = "sentence"
    """Where a needle may stand: at the sentence boundary nearest to its depth, at the exact token, or behind the next
    line end."""
    prompt: Annotated[Prompt, BeforeValidator(named_prompt)] = PROMPTS["book"]
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
    scores: Annotated[list[str], Field(min_length=1), BeforeValidator(_plain_list)] | None = None
    """The head scores that are measured (detect); left out, those that the one replay of an answer gives."""
    per_step: bool = False
    """Keep what every head does at each step of an answer (detect)."""
    random_text: RandomTexts | None = None
    """What scores are measured on that are of the model and not of samples (detect); see `RandomTexts`."""
    ablate: Ablate | None = None
    """Whose heads are masked (ablate)."""
    compress: Compress | None = None
    """Which KV heads keep a whole context (compress)."""
    expect: Expect | None = None
    gates: Annotated[list[Annotated[str, AfterValidator(_parsed_gate)]], BeforeValidator(_plain_list)] = []
    """What the run as a whole must reach; see `retrieval_heads.gates.expression`."""
    allow_skipped: bool = False
    """A skipped cell stays out of gates instead of breaking them."""
    verdict: Verdict | None = None
    """What decides the exit code: `cell` (an item below its threshold fails), `gates` (the gates and a baseline) or
    `none` (nothing but errors). Left out: `gates` where there is a gate or a baseline, else `cell`."""
    code_eval: CodeEval | None = None
    """The predecessor's section for programs."""
    phonebook: Phonebook | None = None
    """The predecessor's section for a phonebook."""
    report: bool | None = None
    """Read for the predecessor's sake: `--rh-report` and `retrieval-heads report` say it."""
    output_dir: PathText | None = None
    """The run's folder; `reports/<time>-<suite>` where it is left out."""

    @field_validator("scores")
    @classmethod
    def _known_scores(cls, names: list[str] | None) -> list[str] | None:
        for name in names or ():
            try:
                head_score(name)
            except ConfigError as error:
                raise ValueError(str(error)) from None
            if names and names.count(name) > 1:
                raise ValueError(f"{name} is given twice")
        if names and all(is_of_texts(head_score(name)) for name in names):
            raise ValueError(f"{', '.join(names)}: measured on random texts; expected a score of the samples as well")
        return names

    @model_validator(mode="before")
    @classmethod
    def _named_by_engine(cls, data: object) -> object:
        """The model that an endpoint serves (`engine.model`) is the model, where the `model` section names none."""
        if not isinstance(data, dict):
            return data
        engine, model = data.get("engine"), data.get("model", {})
        if not isinstance(engine, dict) or not isinstance(model, dict) or model.get("model") is not None:
            return data
        if engine.get("kind", DEFAULT_BACKEND) == DEFAULT_BACKEND or not isinstance(engine.get("model"), str):
            return data
        return {**data, "model": {**model, "model": engine["model"]}}

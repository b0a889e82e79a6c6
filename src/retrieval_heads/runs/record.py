"""The records of a run (`results.jsonl`): one line per cell, the contract every later step reads.

A line is written and flushed as its cell finishes, by one process alone. Readers accept the records of the
predecessor (PyPI `retrieval-heads`) too: its fields have the same names here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    model_validator,
)

from retrieval_heads.errors import ResultsError
from retrieval_heads.kinds import KINDS
from retrieval_heads.reading import parse_json, read_text
from retrieval_heads.redaction import without_values
from retrieval_heads.runs.mask import Mask
from retrieval_heads.runs.place import DEPTH, LENGTH, NEEDLE, Place, Value
from retrieval_heads.runs.predecessor import task_fields
from retrieval_heads.runs.steps import Steps

SCHEMA = "retrieval-heads/1"

Status = Literal["pass", "low", "skipped", "error", "spared"]
_Count = Annotated[int, Field(strict=True, ge=0)]
_Share = Annotated[float, Field(strict=True, ge=0, le=1)]
_Percent = Annotated[float, Field(strict=True, ge=0, le=100)]
_Seconds = Annotated[float, Field(strict=True, ge=0)]


def _known_kind(kind: str) -> str:
    if kind not in KINDS:
        raise ValueError(f"a kind of {', '.join(KINDS)} is expected, found {kind!r}")
    return kind


def _in_order(span: tuple[int, int]) -> tuple[int, int]:
    if span[0] > span[1]:
        raise ValueError(f"a span ends where it starts or behind it, found {list(span)}")
    return span


Span = tuple[int, int]
_Span = Annotated[tuple[_Count, _Count], AfterValidator(_in_order)]


class Template(BaseModel):
    """The chat template that a prompt was rendered with."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    hash: str
    """SHA-256 of its text."""
    kwargs: dict[str, object] = {}
    """What it was given (`model.chat_template_kwargs`)."""
    is_given: bool = False
    """Whether the settings name it; else it is the model's own."""


class AnsweredBy(BaseModel):
    """Who gave an answer: keys of `identities` in the run's `run.json`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    model: str
    engine: str


class Recipe(BaseModel):
    """What rebuilds the exact prompt of a record."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    haystack: str = ""
    """Source of the haystack: a folder, `package:NAME/PATH` or `pydoc`; empty for a task that has none."""
    hash: str = ""
    """SHA-256 of the haystack's text."""
    tokens: int = 0
    """Tokens in the haystack by the tested tokenizer, before any repetition."""
    offset: int = 0
    """Haystack token at which the context starts (the seed chooses it)."""
    insertion: int = 0
    """Haystack tokens that stand before the needle."""
    repeats: int = 0
    """How often the haystack was started again because it was too short (0: long enough)."""
    wording: list[dict[str, str]]
    """The prompt's messages, `{context}` and `{question}` in them."""
    prefill: str | None = None
    """The first words of the answer, with which the prompt ends; `None` for none."""
    template_hash: str
    """SHA-256 of the prompt's wording, the chat template and its arguments, and of the prefill where there is one."""
    prompt_hash: str
    """SHA-256 of the prompt's token ids as little-endian int32."""
    template: Template | None = None
    """The chat template alone; `None` in records of before there were identities."""
    boundary: str = ""
    """Where the needle may stand, as the suite says; empty in records of before."""
    sampling: dict[str, object] | None = None
    """The suite's `generation`; `None` in records of before."""
    options: dict[str, object] | None = None
    """The settings of a task that is not the needle."""


class Insertion(BaseModel):
    """One of several texts that stand in a context."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    role: Literal["asked", "distractor"]
    """Whether the answer must say what it says."""
    text: str
    """As it was inserted."""
    counted: str | None = None
    """The part of it that the span holds; all of it for `None`."""
    depth: float
    """Where it was to stand, in percent of the haystack."""
    achieved_depth: float
    """100 × haystack tokens before it / haystack tokens."""
    place: int
    """Haystack tokens before it."""
    span: Span | None = None
    """Its tokens in the prompt; `None` where they are not known."""


class Replay(BaseModel):
    """How heads were scored on prompt and answer: in a forward over them, or as the answer ended."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    cached_tokens: int
    """Of its tokens, those that were not computed again: the prefix cache gave them, or their rows had been kept."""
    computed_tokens: int
    """Those that were; none where heads were scored as the answer ended."""
    seconds: float
    """From its first step to its last; of scoring without a replay its share, by rows times keys."""


_OF_THE_NEEDLE = frozenset({"context_length", "document_depth", "needle", "needle_name"})
"""Fields that records of other tasks do not have."""

HeadScores = dict[str, list[list[float]]]
"""Scores by name, each `[layers][heads]`, no heads where a layer has no such score (`retrieval_heads.heads.score`)."""


class Record(BaseModel):
    """One cell's question, answer and scores.

    Positions are token positions in the prompt; spans are half open, `[start, end)`.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    schema_: str = Field(default=SCHEMA, alias="schema")
    """Version of this format."""
    kind: str = "niah"
    """`niah`, `detect` or `ablate`."""
    suite: str = ""
    """Name of the suite the cell belongs to."""
    cell: str = ""
    """Names the question asked; the same cell of another model's run has the same name."""
    request: str = ""
    """Hash of what was sent: prompt ids, sampling, model and its revision, dtype, engine version, mask."""
    answered_by: AnsweredBy | None = None
    """Model and engine; `None` in records of before there were identities, and in the predecessor's."""
    status: Status = "pass"
    """`pass`, `low` (below the threshold), `skipped` (never asked), `error`, or `spared` (it was not needed)."""
    reason: str = ""
    """Why a cell is `low`, `skipped` or in `error`: one sentence."""
    task: str | None = None
    """What was asked; `None` is the needle, whose place is `context_length`, `document_depth` and `needle_name`."""
    axes: dict[str, Value] | None = None
    """The place of another task's question: a value on each of its axes."""
    context_length: int = 0
    """Tokens of the whole prompt as requested, chat template and question inside."""
    document_depth: float = 0.0
    """Requested depth in percent: 0 is the start of the haystack, 100 its end."""
    achieved_depth: float | None = None
    """100 × needle start / haystack tokens, needle excluded."""
    prompt_tokens: int | None = None
    """Tokens of the prompt as sent; equals `context_length`."""
    server_prompt_tokens: int | None = None
    """The same by the server's own count, where it was sent text; `prompt_tokens` is the tokenizer's."""
    needle: str = ""
    """The inserted text as the suite gives it."""
    needle_name: str = ""
    """Short name of the needle, as in the item's name."""
    needle_span: Span | None = None
    """The needle's tokens (or those of `answer_span`), surrounding white space excluded."""
    answer_span: str | None = None
    """The part of the needle that must be said, where the suite gives one."""
    question: str = ""
    """The question asked."""
    question_span: Span | None = None
    """The question's tokens."""
    wording: str | None = None
    """What the prompt's wording is called: `book`, or the predecessor's `document`; `None` for one of the suite's own,
    whose messages are in the recipe, and in records of before."""
    reference: str = ""
    """The expected answer that `scores` compare with."""
    alternatives: list[str] = []
    """Further answers that are accepted, where the suite gives several; a score is that of the best one."""
    expected: list[str] | None = None
    """All that the answer must say, of a task that asks for several things; `reference` is them as one text."""
    others: list[str] | None = None
    """What would be a wrong answer of the same kind, of a task whose answer is one of several names."""
    answer_prefix: str | None = None
    """The letters that the answer must begin with, of a task that asks for some."""
    seed: int = 0
    """Chooses the offset into the haystack."""
    setting: str | None = None
    """The setting of a matrix under which it was asked; `None` without one."""
    arm: str = ""
    """Which heads were masked (ablation): `top_10`, `random_10_draw_2`; empty: none."""
    mask: Annotated[Mask, PlainSerializer(Mask.to_json)] | None = None
    """The heads of the arm, and how they were masked."""
    text: str = ""
    """The answer; of a reasoning model what stands behind its thoughts."""
    thoughts: str | None = None
    """What it said before that, the closing tag included; `None` where it did not think."""
    thought_tokens: int | None = None
    """How many of `token_ids` those are; `None` where there are none, or where it is not known."""
    token_ids: list[int] = []
    """The token ids of thoughts and answer, the end-of-sequence token included when it was produced."""
    finish_reason: str = ""
    """`stop` or `length`, as the engine says."""
    rougeL: float | None = None  # noqa: N815 - the predecessor's field
    """ROUGE-L F-measure of the answer against the reference, 0–1 (the predecessor's field)."""
    scores: dict[str, float] = {}
    """Every score by name, 0–1; see `retrieval_heads.scoring`."""
    metric: str = ""
    """The score that decides `passed`."""
    threshold: float | None = None
    """`passed` means the metric is above this."""
    passed: bool | None = None
    """Whether the answer retrieved the needle; `None` where nothing was measured."""
    recipe: Recipe | None = None
    """How to rebuild the prompt; `None` in records of the predecessor."""
    around: tuple[str, str] | None = None
    """The haystack's text just before and just after the needle."""
    insertions: list[Insertion] | None = None
    """What stands in the haystack, of a task that inserts several texts; `needle_span` is that of the first."""
    prompt: str | None = None
    """The prompt's text: only in records of the predecessor."""
    needle_idx: int | None = None
    """Where the predecessor inserted the needle, in tokens of its context."""
    cached_tokens: int | None = None
    """Prompt tokens that the prefix cache gave."""
    heads: HeadScores | None = None
    """Every head's scores on this cell (detection); the layers are those of `run.json`."""
    replay: Replay | None = None
    """How the heads were scored (detection)."""
    other_replays: dict[str, Replay] | None = None
    """What head scores cost that read the prompt with another question as well, by that question (detection)."""
    steps: Annotated[Steps, PlainSerializer(Steps.to_json)] | None = None
    """What heads did at each step of the answer, where the suite asks for it (`per_step`)."""
    seconds: float | None = None
    """From the engine's first work on the request to its last token, other requests beside it."""
    lost_replica: str | None = None
    """How the replica was lost that was asked before the one that answered; `None` where none was."""
    engine_seconds: float | None = None
    """What the cell took of the engine itself, replays of its heads' scores included: its share of each step, by the
    tokens that were computed. `None` where that is not seen, and in records of before."""
    queued_seconds: float | None = None
    """From when the cell was asked until the engine began with it."""
    extra: dict[str, object] | None = None
    """What a user's `pytest_rh_record` added; `None` for nothing."""

    @property
    def sayings(self) -> tuple[str, ...]:
        """Of what `key_words` must find one: the accepted answers; `answer_span` where the suite gives none."""
        return sayings_of((self.reference, *self.alternatives), self.needle, self.answer_span)

    @property
    def place(self) -> Place:
        """Where the question stands in its suite's grid."""
        if self.axes is not None:
            return Place(tuple(self.axes.items()), self.seed, self.arm)
        needle = self.needle_name or self.needle
        axes = ((LENGTH, self.context_length), (DEPTH, self.document_depth), (NEEDLE, needle))
        return Place(axes, self.seed, self.arm)

    def to_json(self) -> dict[str, object]:
        """The record as plain builtins, as files hold it."""
        data = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        if self.task is not None:
            data = {name: value for name, value in data.items() if name not in _OF_THE_NEEDLE}
        return data

    @property
    def said(self) -> str:
        """All that the model said, thoughts and answer."""
        return (self.thoughts or "") + self.text

    @property
    def answer_tokens(self) -> int:
        """Tokens of the answer alone."""
        return len(self.token_ids) - (self.thought_tokens or 0)

    @property
    def is_cut_off(self) -> bool:
        """Whether the budget ended before the thoughts did, so that no answer was given."""
        return self.thoughts is not None and not self.text.strip() and self.finish_reason == "length"

    @property
    def suite_id(self) -> str:
        """Names the suite beside those of other kinds: `niah/demo`."""
        return f"{self.kind}/{self.suite}"


class _Bounds(BaseModel):
    """What a stored record's figures may be: a file may hold anything, a run's own records hold what was measured."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    kind: Annotated[str, AfterValidator(_known_kind)] = "niah"
    task: Annotated[str, Field(min_length=1)] | None = None
    axes: dict[str, Annotated[int, Field(strict=True)] | Annotated[float, Field(strict=True)] | str] | None = None
    context_length: Annotated[int, Field(strict=True, ge=1, lt=1 << 40)] | None = None
    document_depth: _Percent | None = None
    achieved_depth: _Percent | None = None
    prompt_tokens: _Count | None = None
    server_prompt_tokens: _Count | None = None
    needle_span: _Span | None = None
    question_span: _Span | None = None
    seed: _Count = 0
    token_ids: list[_Count] = []
    thought_tokens: _Count | None = None
    rougeL: _Share | None = None  # noqa: N815 - the predecessor's field
    scores: dict[str, _Share] = {}
    threshold: _Share | None = None
    needle_idx: _Count | None = None
    cached_tokens: _Count | None = None
    heads: HeadScores | None = None
    seconds: _Seconds | None = None
    engine_seconds: _Seconds | None = None
    queued_seconds: _Seconds | None = None

    @model_validator(mode="after")
    def _placed(self) -> _Bounds:
        wanted = ("axes",) if self.task is not None else ("context_length", "document_depth")
        if missing := [name for name in wanted if getattr(self, name) is None]:
            raise ValueError(f"{missing[0]}: Field required")
        return self


def sayings_of(references: tuple[str, ...], needle: str, answer_span: str | None) -> tuple[str, ...]:
    """Of what `key_words` must find one.

    Args:
        references: The accepted answers.
        needle: The inserted text.
        answer_span: The part of it that must be said, where the suite gives one; it counts where no answer is given,
            so that the needle itself is the reference.
    """
    return (answer_span.strip(),) if answer_span and references == (needle.strip(),) else references


def check_bounds(data: Mapping[str, object], where: str) -> None:
    """Refuse figures that no cell can have.

    Args:
        data: A record's fields, as a file holds them.
        where: Names the line in errors.

    Raises:
        ResultsError: A depth is no percent, a score no share, or a number not finite; with the field.
    """
    try:
        _Bounds.model_validate(data)
    except ValidationError as error:
        raise ResultsError(f"{where}: {first_mistake(error)}") from None


def first_mistake(error: ValidationError) -> str:
    """The first field that is wrong, and why."""
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    return f"{'.'.join(map(str, first['loc']))}: {message}" if first["loc"] else message


def parse_record(line: str, where: str) -> Record:
    """Read one line of a results file.

    Args:
        line: One JSON object, ours or the predecessor's.
        where: Names the line in errors, such as `results.jsonl:3`.

    Raises:
        ResultsError: The line is no JSON object, of another schema, or lacks a field.
    """
    data = parse_json(line, where)
    if not isinstance(data, dict):
        raise ResultsError(f"{where}: a record is a JSON object, found {type(data).__name__}")
    schema = data.get("schema", SCHEMA)
    if schema != SCHEMA:
        raise ResultsError(f"{where}: schema {schema!r} is not read by this version, which reads {SCHEMA!r}")
    try:
        if "schema" not in data:
            ours = task_fields(data)
            data = _from_predecessor(data) if ours is None else {**ours, "schema": SCHEMA}
        record = Record.model_validate(data)
    except ValidationError as error:
        raise ResultsError(f"{where}: {first_mistake(error)}") from None
    check_bounds(data, where)
    if record.task is None and "needle" not in data:
        raise ResultsError(f"{where}: needle: Field required")
    if record.status in ("pass", "low") and record.metric and record.metric not in record.scores:
        raise ResultsError(f"{where}: scores: {record.metric}, which decides, is expected to be among them")
    return record


def read_records(path: Path, *, torn_last_line: bool = False) -> list[Record]:
    """Read a results file.

    Args:
        path: A `results.jsonl`, ours or the predecessor's.
        torn_last_line: Drop a last line that a killed run left incomplete, instead of raising.

    Raises:
        ResultsError: The file is missing, empty, or has a line that is no record.
    """
    lines = read_text(path).rstrip("\n").split("\n")  # an answer may hold U+2028
    records = list(_parse_lines(lines, path, torn_last_line))
    if not records:
        raise ResultsError(f"{path}: holds no record")
    return records


def dump_record(record: Record) -> str:
    """One line of `results.jsonl`, without the line end and without secrets."""
    data = record.to_json()
    line = json.dumps(data, ensure_ascii=False, allow_nan=False)
    if without_values(line) == line:
        return line
    return json.dumps(without_values(data), ensure_ascii=False, allow_nan=False)


def finite_mean(values: list[float]) -> float:
    """Arithmetic mean; NaN for no values, so that an empty grid is never a score of 0."""
    return math.fsum(values) / len(values) if values else math.nan


def _parse_lines(lines: list[str], path: Path, torn_last_line: bool) -> Iterator[Record]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield parse_record(line, f"{path}:{number}")
        except ResultsError:
            if torn_last_line and number == len(lines) and _is_torn(line):
                return
            raise


def _is_torn(line: str) -> bool:
    """Whether a line was cut short, and is no whole line that says nonsense."""
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return True
    return False


def _from_predecessor(data: dict[str, object]) -> dict[str, object]:
    """Its needle is the reference, and its ROUGE-L is the score that counts (pass above 0.5)."""
    needle, score = data.get("needle"), data.get("rougeL")
    if not isinstance(needle, str) or not isinstance(score, int | float | None):
        return data
    said = {**data, "schema": SCHEMA, "reference": needle.strip(), "metric": "rougeL_f", "threshold": 0.5}
    if score is None:
        return {**said, "status": "skipped", "reason": "the record holds no rougeL"}
    passed = score > 0.5
    return {**said, "scores": {"rougeL_f": float(score)}, "passed": passed, "status": "pass" if passed else "low"}

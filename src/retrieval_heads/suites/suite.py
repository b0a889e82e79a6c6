"""A suite: an ordered tuple of cells, each one question to ask.

Pure and fast: no torch, no tokenizer; a prompt is built from a cell by the engine process.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from retrieval_heads.ablation import compression
from retrieval_heads.ablation.arms import NONE, arms, idle_heads, read_heads
from retrieval_heads.ablation.compression import RANDOM
from retrieval_heads.ablation.settings import Ablate, is_file, ranking_name
from retrieval_heads.errors import ConfigError, ResultsError
from retrieval_heads.gates.expression import Agreement, EffectiveLength, idleness, parse_gate
from retrieval_heads.heads.formats import read_ranked, read_table
from retrieval_heads.heads.order import order_of
from retrieval_heads.heads.score import head_score, head_scores, is_wanted, ranking_of
from retrieval_heads.heads.table import Head
from retrieval_heads.prompts.haystack import check_source
from retrieval_heads.prompts.settings import HaystackSource, Needle, NeedleFile
from retrieval_heads.reading import path_of
from retrieval_heads.runs.facts import Expectation
from retrieval_heads.runs.folder import read_facts
from retrieval_heads.runs.mask import STREAM, Stream
from retrieval_heads.runs.origin import Origin, origins
from retrieval_heads.runs.place import DEPTH, LENGTH, NEEDLE, Place, Value, shown
from retrieval_heads.runs.record import Record, read_records
from retrieval_heads.settings.messages import sentences
from retrieval_heads.settings.range import MOST_CELLS, Range, whole_values
from retrieval_heads.suites.needle_files import NAME, located, read_needles
from retrieval_heads.suites.predecessor import SECTIONS, sections_of
from retrieval_heads.suites.reading import line_of, overlay, read_settings, read_suites, resolve
from retrieval_heads.suites.settings import Settings
from retrieval_heads.tasks.task import FILE_HASH, TASKS, THE_NEEDLE, Ablation, Cell, Question, Ranking, Task

_SHORT = {LENGTH: "len"}
"""How an item's name writes an axis."""

_PREDECESSOR_LENGTHS = tuple(range(1_000, 50_000, 1_000))
_PREDECESSOR_DEPTHS = tuple(float(depth) for depth in range(0, 100, 10))
_PREDECESSOR_NEEDLE = (
    "\nThe best thing to do in San Francisco is eat a sandwich and sit in Dolores Park on a sunny day.\n"
)
_PREDECESSOR_QUESTION = "What is the best thing to do in San Francisco?"


@dataclass(frozen=True)
class Suite:
    """A suite's settings, resolved, and its cells in order."""

    name: str
    path: Path
    settings: Settings
    question: Question
    """What its cells have in common."""
    cells: tuple[Cell, ...]
    heads: tuple[tuple[Head, ...], ...] = ()
    """What an ablation masks, by each ranking the best first; empty where another suite of the run finds them."""
    origins: tuple[Origin, ...] = ()
    """Who gave the stored answers that are traced."""
    setting: str = ""
    """The setting of a matrix under which it is asked; empty without one."""

    @property
    def id(self) -> str:
        """Names the suite beside those of other kinds: `niah/demo`."""
        return f"{self.settings.kind}/{self.name}"

    @property
    def task(self) -> Task:
        """What is asked, and how answers are judged."""
        return TASKS.find(self.question.task)

    @property
    def needles(self) -> tuple[Needle, ...]:
        """The needles; none of a task that has none."""
        return self.question.needles

    @property
    def source(self) -> str:
        """The haystack's source; a folder as an absolute path."""
        return self.question.source

    def resolved(self) -> dict[str, object]:
        """The settings as plain builtins that mean the same wherever they are read: a haystack's folder is absolute."""
        said = self.settings.model_dump(mode="json", exclude_none=True)
        if not self.settings.from_results:
            for key in {"source", "haystack_dir"} & said.get("haystack", {}).keys():
                said["haystack"][key] = self.source
        if self.settings.from_results:
            said["from_results"] = [str(_found(file, self.path).absolute()) for file in self.settings.from_results]
        said["name"] = self.name
        if "task" in said:
            said["task"] |= {key: self.question.options[key] for key in said["task"] if key in self.question.options}
        if isinstance(self.settings.needles, NeedleFile):
            said["needles"]["file"] = str(located(self.settings.needles.file, self.path.parent).absolute())
        elif self.settings.needles and not self.settings.from_results:
            for needle, own in zip(said["needles"], self.needles, strict=True):
                needle |= {"haystack": own.haystack} if own.haystack is not None else {}
        if self.heads and self.settings.ablate:
            names, lists = self.settings.ablate.rankings, [list(map(list, heads)) for heads in self.heads]
            said["ablate"]["heads"] = dict(zip(names, lists, strict=True)) if len(names) > 1 else lists[0]
            said["ablate"].pop("by", None)
        if self.settings.compress is not None:
            compress, said_of = self.settings.compress, said["compress"]
            if compress.heads is not None and not compress.awaited:
                said_of["heads"] = str(_found(compress.heads, self.path).absolute())
            said_of["scores"] = [
                str(_found(one, self.path).absolute()) if is_file(one) else one for one in compress.scores
            ]
        return said


def load_suite(
    path: Path, config: Mapping[str, object] | None = None, sets: Mapping[str, object] | None = None
) -> Suite:
    """Read a suite file and expand it into cells.

    Args:
        path: The suite's YAML file, or a config file that holds a haystack.
        config: The keys of the `--rh-config` file, laid over the suite's.
        sets: The keys of `--rh-set`, laid over both.

    Raises:
        ConfigError: The file, or what it makes together with the config, cannot be asked.
    """
    suites = read_suites(path)
    if len(suites) > 1:
        raise ConfigError(f"{path}: holds several suites ({', '.join(suites)}), and one is expected here")
    own = next(iter(suites.values())) if suites else read_settings(path)
    return _load(path, own, config or {}, sets or {})


def load_suites(
    path: Path, config: Mapping[str, object] | None = None, sets: Mapping[str, object] | None = None
) -> dict[str, Suite]:
    """The suites of a file: the one that it is, under an empty key, or those of a run's `config.yaml` by their ids.

    Args:
        path: As for `load_suite`.
        config: As for `load_suite`.
        sets: As for `load_suite`.

    Raises:
        ConfigError: As `load_suite`.
    """
    suites = read_suites(path)
    if not suites:
        return {"": load_suite(path, config, sets)}
    return {suite: _load(path, own, config or {}, sets or {}, ("suites", suite)) for suite, own in suites.items()}


def _load(
    path: Path,
    own: dict[str, object],
    config: Mapping[str, object],
    sets: Mapping[str, object],
    under: tuple[str, ...] = (),
) -> Suite:
    if own.get("kind", "niah") != config.get("kind", own.get("kind", "niah")):
        # A config that is a suite of another kind says nothing of what this one asks.
        dropped = ("kind", "name", "from_results", "from_model")
        config = {key: value for key, value in config.items() if key not in dropped}
    written = _Written(path, {} if config == own else config, sets, under)
    said = _in_our_sections(overlay(overlay(own, config), sets), written)
    settings = resolve(overlay(_task(said, written).defaults, said), str(path))
    settings = _with_expected(settings, written)
    _check_measured(settings, written)
    if settings.from_results:
        return _stored_suite(path, settings, written)
    if settings.from_model is not None:
        raise ConfigError(f"{written.at('from_model')}: from_model: names who gave stored answers; give from_results")
    heads = _masked_heads(settings, written) if settings.kind == "ablate" else ()
    ablate = _compression(settings, written) if settings.kind == "compress" else _ablate(settings, heads)
    question = _question(settings.name or path.stem, settings, ablate, written)
    cells = _in_order(_cells(settings, question, written), settings, written)
    _check_gates(settings, question, cells, written)
    return Suite(question.suite, path, settings, question, cells, heads)


def _in_our_sections(said: Mapping[str, object], written: _Written) -> dict[str, object]:
    """Settings in which no section of the predecessor's is left; what else they say lies over it."""
    try:
        ours = sections_of(said)
    except ConfigError as error:
        section = next(name for name in SECTIONS if name in said)
        raise ConfigError(f"{written.at(section)}: {error}") from None
    return overlay(ours, {key: value for key, value in said.items() if key not in SECTIONS})


def _task(said: Mapping[str, object], written: _Written) -> Task:
    """What the sections that were laid over each other ask."""
    task = said.get("task")
    try:
        return TASKS.find(task.get("name", THE_NEEDLE) if isinstance(task, dict) else THE_NEEDLE)
    except ConfigError as error:
        raise ConfigError(f"{written.at('task')}: task: {error}") from None


def _question(name: str, settings: Settings, ablate: Ablation | None, written: _Written) -> Question:
    """What the cells of a suite have in common."""
    chosen = settings.task.name if settings.task else THE_NEEDLE
    task = TASKS.find(chosen)
    if settings.kind in ("detect", "ablate") and not task.has_spans:
        raise ConfigError(
            f"{written.at('kind')}: kind: {settings.kind} takes a task whose prompts have spans that head scores aim "
            f"at, and {chosen} has none; expected niah or compress"
        )
    needles: tuple[Needle, ...] = ()
    source = haystack = ""
    options = _options(task, settings, written)
    for section, given in (("needles", settings.needles), ("haystack", settings.haystack)):
        if given and section not in task.needs:
            raise ConfigError(f"{written.at(section)}: {section}: the task {chosen} has none; leave it out")
    if "needles" in task.needs:
        needles, options = _needles(settings, options, written)
    if "haystack" in task.needs:
        source, haystack = _source(settings.haystack, needles, written)
    lengths, depths = _swept(settings, task, written)
    if settings.ablate and settings.kind == "ablate" and settings.ablate.mode == "mean" and not source:
        raise ConfigError(
            f"{written.at('ablate', 'mode')}: ablate.mode: the mean is that over a suite's haystack, and this one has "
            "none; zero and uniform are accepted"
        )
    return Question(
        suite=name,
        kind=settings.kind,
        task=chosen,
        options=options,
        lengths=lengths,
        depths=depths,
        source=source,
        haystack=haystack,
        needles=needles,
        prompt=settings.prompt,
        generation=settings.generation.model_dump(),
        boundary=settings.boundary,
        scoring=settings.scoring,
        ablate=ablate,
        scores=_scores(settings),
        per_step=settings.per_step,
    )


def _options(task: Task, settings: Settings, written: _Written) -> dict[str, object]:
    """The task's own settings, read by its own schema."""
    given = dict(settings.task.model_extra or {}) if settings.task else {}
    try:
        return task.settings.model_validate(given, context={"base": written.path.parent}).model_dump(mode="json")
    except ValidationError as error:
        text = written.path.read_text(encoding="utf-8", errors="replace") if written.path.is_file() else ""
        raise ConfigError("\n".join(sentences(task.settings, error, str(written.path), text, ("task",)))) from None


def _ablate(settings: Settings, heads: tuple[tuple[Head, ...], ...]) -> Ablation | None:
    if settings.ablate is None or settings.kind != "ablate":
        return None
    return Ablation(settings.ablate.mode, settings.ablate.seed, settings.ablate.rankings, heads)


def _compression(settings: Settings, written: _Written) -> Ablation:
    """What streams in the arms of a compression: of rankings that files hold, their heads."""
    compress = settings.compress
    if compress is None:
        raise ConfigError(
            f"{written.at('kind')}: nothing to compress by; expected "
            "`compress: {heads: FILE, scores: [copy, random]}`"
        )
    if settings.gates:
        raise ConfigError(f"{written.at('gates')}: gates: a compression has a score for each arm; leave them out")
    rankings = []
    for score in compress.scores:
        name, key, file = ranking_name(score), "heads", compress.heads
        by: str | None = score
        if is_file(score):
            key, file, by = "scores", score, None
        if score == RANDOM or (by is not None and compress.awaited):
            rankings.append(Ranking(name, "" if score == RANDOM else score))
            continue
        assert file is not None, "the settings see to it"
        try:
            table = read_table(_found(file, written.path))
            if by is not None and by not in table.estimates:
                raise ResultsError(f"{file}: has no score {by}; it has {', '.join(table.estimates)}")
        except ResultsError as error:
            raise ConfigError(f"{written.at('compress', key)}: compress.{key}: {error}") from None
        measured, model = table.facts.get("model"), settings.model.model
        if isinstance(measured, str) and model is not None and Path(measured).name != Path(model).name:
            at = written.at("compress", key)
            warnings.warn(f"{at}: {file} holds the heads of {measured}, and {model} is compressed", stacklevel=2)
        rankings.append(Ranking(name, by or "", order_of(table, by or table.ranking).heads))
    stream = Stream(compress.sink, compress.recent, compress.anchor, compress.prefill)
    return Ablation(STREAM, compress.seed, stream=stream, rankings=tuple(rankings))


def _scores(settings: Settings) -> tuple[str, ...]:
    """The head scores that a detection is to measure, as far as it names them."""
    return tuple(settings.scores or ()) if settings.kind == "detect" else ()


def _check_gates(settings: Settings, question: Question, cells: Sequence[Cell], written: _Written) -> None:
    """Refuse a gate over an axis that the task has not, and one that no run could break."""
    axes = TASKS.find(question.task).axes
    longest = max((length for cell in cells if isinstance(length := cell.place.get(LENGTH), int)), default=None)
    for text in settings.gates:
        try:
            gate = parse_gate(text, axes=axes)
        except ConfigError as error:
            raise ConfigError(f"{written.at('gates')}: gates: {error}") from None
        if longest is None or settings.verdict == "none":
            continue
        if idle := idleness(gate, longest):
            raise ConfigError(f"{written.at('gates')}: gates: gate {text!r}: {idle}, the longest length that is asked")


def _check_measured(settings: Settings, written: _Written) -> None:
    """Refuse a gate on a head score that a detection does not measure, and steps of what scores no heads."""
    if settings.per_step and settings.kind != "detect":
        raise ConfigError(f"{written.at('per_step')}: per_step: that is of suites of kind detect")
    for text in settings.gates if settings.kind == "detect" else ():
        measure = parse_gate(text).measure
        if isinstance(measure, Agreement) and not is_wanted(head_score(measure.number), _scores(settings)):
            measured = [name for name, score in head_scores().items() if is_wanted(score, _scores(settings))]
            raise ConfigError(
                f"{written.at('gates')}: gates: gate {text!r}: the suite does not measure {measure.number} (scores); "
                f"it measures {', '.join(measured)}"
            )


@dataclass(frozen=True)
class _Written:
    """Where a key was written, for errors: a line of the suite's file, or what was laid over it."""

    path: Path
    config: Mapping[str, object]
    sets: Mapping[str, object]
    under: tuple[str, ...] = ()

    def at(self, *keys: str) -> str:
        for layer, option in ((self.sets, "--rh-set"), (self.config, "--rh-config")):
            if _holds(layer, keys):
                return f"{self.path} with {option}"
        line = line_of(self.path, *self.under, *keys)
        return f"{self.path}:{line}" if line else str(self.path)


def _holds(layer: object, keys: Sequence[str]) -> bool:
    return not keys or (isinstance(layer, Mapping) and keys[0] in layer and _holds(layer[keys[0]], keys[1:]))


def expand_lengths(lengths: list[int] | Range) -> list[int]:
    """The lengths in order: a list as it is; a range rounded to whole tokens, each once."""
    return whole_values(lengths)


def expand_depths(depths: list[float] | Range) -> list[float]:
    """The depths in order, in percent.

    A linear range is rounded to whole percents. A sigmoid one is 100 / (1 + e^(−0.1 (x − 50))) at equal gaps
    of x, rounded to hundredths, with 0 and 100 kept exact: dense at both ends, as in the original
    needle-in-a-haystack test.
    """
    if not isinstance(depths, Range):
        return depths
    if depths.spacing == "linear":
        return sorted({float(round(point)) for point in depths.points})
    return sorted({x if x in (0, 100) else _sigmoid(x) for x in depths.points})


def _sigmoid(x: float) -> float:
    return round(100 / (1 + math.exp(-0.1 * (x - 50))), 2)


def _with_expected(settings: Settings, written: _Written) -> Settings:
    """The settings with the file of expected heads found, and read once so that a broken one is told now."""
    if settings.expect is not None:
        of_ablations = bool(settings.expect.drop_exceeds_random)
        of_detections = bool(settings.expect.top_heads) or settings.expect.min_overlap_with is not None
        for is_said, kind in ((of_ablations, "ablate"), (of_detections, "detect")):
            if is_said and settings.kind != kind:
                raise ConfigError(f"{written.at('expect')}: expect: that is of suites of kind {kind}")
    if settings.expect is None or settings.expect.min_overlap_with is None:
        return settings
    try:
        file = _found(settings.expect.min_overlap_with, written.path)
        ranking = read_table(file).ranking
    except ResultsError as error:
        raise ConfigError(f"{written.at('expect')}: expect.min_overlap_with: {error}") from None
    if settings.scores and ranking != ranking_of(settings.scores):
        raise ConfigError(
            f"{written.at('expect')}: expect.min_overlap_with: {file} ranks its heads by {ranking}, and this suite by "
            f"{ranking_of(settings.scores)}: it measures {', '.join(settings.scores)} (scores)"
        )
    located = settings.expect.model_copy(update={"min_overlap_with": str(file)})
    return settings.model_copy(update={"expect": located})


def _masked_heads(settings: Settings, written: _Written) -> tuple[tuple[Head, ...], ...]:
    """The heads that an ablation masks, best first by each ranking, and no more of them than it needs."""
    ablate, expect = settings.ablate, settings.expect
    if ablate is None or ablate.heads is None:
        raise ConfigError(
            f"{written.at('kind')}: no heads to mask; expected `ablate: {{heads: FILE}}`, with a head file, a list of "
            "[layer, head] or detect/NAME"
        )
    if settings.gates:
        raise ConfigError(
            f"{written.at('gates')}: gates: an ablation has a score for each arm; expected "
            "`expect: {top_10_drop_exceeds_random: 0.3}`"
        )
    for count in expect.drop_exceeds_random if expect else ():
        if count not in ablate.top:
            raise ConfigError(f"{written.at('expect')}: expect: no arm masks the top {count}; top is {ablate.top}")
        if len(ablate.rankings) > 1:
            raise ConfigError(f"{written.at('expect')}: expect: each ranking has its own drop; give `by` one score")
    if ablate.awaited:
        return ()
    if not isinstance(ablate.heads, str):
        rankings, source = list(map(tuple, ablate.lists.values())), "heads"
    else:
        file = _found(ablate.heads, written.path)
        rankings, source = list(_ranked_heads(file, settings, ablate, written)), str(file)
    for heads in rankings:
        if len(heads) < max(ablate.top):
            raise ConfigError(
                f"{written.at('ablate', 'top')}: ablate.top: {max(ablate.top)} heads are to be masked, "
                f"{source} holds {len(heads)}"
            )
    return tuple(heads[: max(ablate.top)] for heads in rankings)


def _ranked_heads(file: Path, settings: Settings, ablate: Ablate, written: _Written) -> Iterator[tuple[Head, ...]]:
    """The heads of a file, best first by each ranking; warns of what is odd about them."""
    said = dict[str, None]()
    for by in ablate.by or (None,):
        try:
            heads, odd = read_heads(file, settings.model.model, by)
        except ResultsError as error:
            raise ConfigError(f"{written.at('ablate', 'heads')}: ablate.heads: {error}") from None
        idle = idle_heads(heads[: max(ablate.top)], dict(read_ranked(file, by)), by)
        said |= dict.fromkeys(filter(None, (odd, idle and f"{file}: {idle}")))
        yield heads
    for sentence in said:
        warnings.warn(f"{written.at('ablate', 'heads')}: ablate.heads: {sentence}", stacklevel=2)


def _found(name: str, suite: Path) -> Path:
    """A file named in a suite: relative to the working directory, or else to the suite's folder."""
    file = path_of(name)
    return file if file.exists() or file.is_absolute() else suite.parent / file


def _stored_suite(path: Path, settings: Settings, written: _Written) -> Suite:
    """A detect suite over answers that earlier runs stored."""
    if settings.kind != "detect":
        raise ConfigError(
            f"{written.at('from_results')}: from_results: only a suite of kind detect traces stored results"
        )
    _refuse_twice(settings.from_results, written)
    asked = [
        (number, record)
        for number, name in enumerate(settings.from_results, start=1)
        for record in _read_stored(name, settings, written)
    ]
    if not asked:
        raise ConfigError(f"{written.at('from_results')}: from_results: no stored answer fits the sweep and threshold")
    needles: dict[str, Needle] = {}
    for _, record in asked:
        name = re.sub(r"[^\w.-]+", "_", record.needle_name).strip("_") or "needle"
        # Not validated again: the predecessor's records hold no question.
        needle = Needle.model_construct(
            name=name,
            needle=record.needle,
            question=record.question,
            answer=[record.reference, *record.alternatives],
            answer_span=record.answer_span,
        )
        needles.setdefault(_digest(record), needle)
    several = {
        "run": len(settings.from_results) > 1,
        "needle": len(needles) > 1 and any(record.task is None for _, record in asked),
        "seed": len({record.seed for _, record in asked}) > 1,
    }
    cells = []
    for number, record in asked:
        parts = {"run": f"{number}", "needle": needles[_digest(record)].name, "seed": f"{record.seed}"}
        prefix = "".join(f"{key}_{parts[key]}-" for key, is_shown in several.items() if is_shown)
        steps = "-".join(_step(axis, value) for axis, value in record.place.axes if axis != NEEDLE)
        name = record.cell.partition("/")[2] or f"stored/{_digest(record)}/{steps}"
        cells.append(
            Cell(
                name=f"{prefix}{steps}",
                id=f"detect/{name}" + (f"/run_{number}" if several["run"] else ""),
                place=_renamed(record.place, parts["needle"]),
                stored=record,
            )
        )
    names = Counter(cell.name for cell in cells)
    if twice := [name for name, count in names.items() if count > 1]:
        raise ConfigError(f"{written.at('from_results')}: from_results: {twice[0]} is stored twice")
    source = settings.from_results[0]
    origins = tuple(
        origin
        for number, name in enumerate(settings.from_results, start=1)
        for origin in _origins(_results_of(name, written), [one for at, one in asked if at == number], written)
    )
    called = settings.name or path.stem
    question = Question(
        suite=called,
        kind=settings.kind,
        source=source,
        haystack="stored",
        needles=tuple(needles.values()),
        prompt=settings.prompt,
        generation=settings.generation.model_dump(),
        boundary=settings.boundary,
        scoring=settings.scoring,
        scores=_scores(settings),
        per_step=settings.per_step,
    )
    return Suite(called, path, settings, question, _in_order(cells, settings, written), origins=origins)


def _renamed(place: Place, needle: str | None) -> Place:
    """A stored answer's place under the name that its needle has in this suite."""
    return replace(place, axes=tuple((axis, needle or "" if axis == NEEDLE else value) for axis, value in place.axes))


def _origins(file: Path, records: Iterable[Record], written: _Written) -> Iterator[Origin]:
    """Who gave the answers of a file, as the `run.json` beside it says."""
    try:
        facts = read_facts(file.parent)
    except ResultsError as error:
        raise ConfigError(f"{written.at('from_results')}: from_results: {error}") from None
    yield from origins(str(file), records, facts)


def _results_of(name: str, written: _Written) -> Path:
    """A file of results, or the one in a run's folder."""
    file = _found(name, written.path)
    return file / "results.jsonl" if file.is_dir() else file


def _refuse_twice(names: Sequence[str], written: _Written) -> None:
    """Refuse a file of results that is named twice, be it by two paths: each of its samples would count twice."""
    seen: dict[Path, str] = {}
    for name in names:
        try:
            file = _results_of(name, written).resolve()
        except ConfigError as error:
            raise ConfigError(f"{written.at('from_results')}: from_results: {error}") from None
        if file in seen:
            also = f", also as {seen[file]}" if seen[file] != name else ""
            raise ConfigError(f"{written.at('from_results')}: from_results: {name} is named twice{also}")
        seen[file] = name


def _read_stored(name: str, settings: Settings, written: _Written) -> Iterator[Record]:
    """The stored answers of a file that the settings ask for."""
    try:
        file = _results_of(name, written)
        records = read_records(file)
    except ResultsError as error:
        raise ConfigError(f"{written.at('from_results')}: from_results: {error}") from None
    sweep, least = settings.sweep, settings.score_threshold
    lengths = None if sweep.context_lengths is None else set(expand_lengths(sweep.context_lengths))
    depths = None if sweep.document_depths is None else set(expand_depths(sweep.document_depths))
    for record in records:
        is_answer = record.status in ("pass", "low") and not record.arm
        fits = (lengths is None or record.place.get(LENGTH) in lengths) and (
            depths is None or record.place.get(DEPTH) in depths
        )
        if is_answer and fits and (least is None or (record.rougeL is not None and record.rougeL >= least)):
            yield record if least is None else record.model_copy(update={"passed": True, "status": "pass"})


def _digest(asked: Needle | Record) -> str:
    """Names a needle by what is said of it, whatever it is called."""
    said = json.dumps([asked.needle, asked.question, asked.reference]).encode()
    return hashlib.sha256(said).hexdigest()[:8]


def _needles(
    settings: Settings, options: Mapping[str, object], written: _Written
) -> tuple[tuple[Needle, ...], dict[str, object]]:
    """The needles, and the task's settings with the hash of the file that they are from, if any."""
    haystack = settings.haystack or HaystackSource()
    text, question = haystack.needle, haystack.retrieval_question
    if settings.needles:
        if text is not None or question is not None:
            raise ConfigError(f"{written.at('needles')}: needles are given twice: under needles and under haystack")
        if isinstance(settings.needles, list):
            return tuple(_named(settings.needles, written)), dict(options)
        try:
            needles, file_hash = read_needles(settings.needles, written.path.parent)
        except ConfigError as error:
            raise ConfigError(f"{written.at('needles')}: needles: {error}") from None
        return tuple(needles), {**options, FILE_HASH: file_hash}
    if haystack.haystack_dir is not None:
        text, question = text or _PREDECESSOR_NEEDLE, question or _PREDECESSOR_QUESTION
    if text is None or question is None:
        raise ConfigError(
            f"{written.at('needles')}: no needle; expected a list `needles:`, each with needle and question, or "
            "`needles: {file: FILE}`"
        )
    return (Needle(name="needle", needle=text, question=question),), dict(options)


def _named(needles: list[Needle], written: _Written) -> Iterator[Needle]:
    taken: set[str] = set()
    asked: dict[tuple[str, str], int] = {}
    for number, needle in enumerate(needles, start=1):
        # A name is part of a pytest node id, where brackets, colons and slashes mean something.
        name = NAME.sub("_", needle.name or "").strip("_") or f"needle_{number}"
        if name in taken:
            raise ConfigError(f"{written.at('needles')}: needles.{number - 1}.name: {name!r} is given twice")
        taken.add(name)
        # Whatever they are called, and whatever counts as the answer: one prompt, asked twice.
        words = " ".join(needle.needle.split()), " ".join(needle.question.split())
        if words in asked:
            raise ConfigError(
                f"{written.at('needles')}: needles.{number - 1}: needle and question are those of "
                f"needles.{asked[words]} again"
            )
        asked[words] = number - 1
        own = needle.haystack
        if own is not None:
            try:
                own = check_source(own, written.path.parent)[0]
            except ConfigError as error:
                raise ConfigError(f"{written.at('needles')}: needles.{number - 1}.haystack: {error}") from None
        yield needle.model_copy(update={"name": name, "haystack": own})


def _source(haystack: HaystackSource | None, needles: Sequence[Needle], written: _Written) -> tuple[str, str]:
    source = haystack and (haystack.source or haystack.haystack_dir)
    if needles and all(needle.haystack is not None for needle in needles):
        if source:
            raise ConfigError(f"{written.at('haystack')}: haystack: every needle has its own; leave it out")
        return "", "own"
    if not haystack or not source:
        raise ConfigError(
            f"{written.at('haystack')}: no haystack; expected `haystack: FOLDER`, `haystack: package:NAME/PATH` or "
            "`haystack: pydoc`"
        )
    try:
        located, name = check_source(source, written.path.parent)
    except ConfigError as error:
        raise ConfigError(f"{written.at('haystack')}: haystack: {error}") from None
    return located, haystack.name or name


def _swept(settings: Settings, task: Task, written: _Written) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """The lengths and depths of the sweep; of a task without such an axis, none."""
    sweep = settings.sweep
    # The predecessor's own defaults, for its config files that hold no sweep (or above, no needle).
    is_predecessor = settings.haystack is not None and settings.haystack.haystack_dir is not None
    lengths = _PREDECESSOR_LENGTHS if is_predecessor else ()
    depths = _PREDECESSOR_DEPTHS if is_predecessor else ()
    if sweep.context_lengths is not None:
        lengths = tuple(expand_lengths(sweep.context_lengths))
    if sweep.document_depths is not None:
        depths = tuple(expand_depths(sweep.document_depths))
    for key, values, axis in (
        ("context_lengths", lengths, LENGTH),
        ("document_depths", depths, DEPTH),
        ("seeds", sweep.seeds, None),
    ):
        if axis is not None and axis not in task.axes:
            if values:
                axes = ", ".join(task.axes)
                raise ConfigError(
                    f"{written.at('sweep', key)}: sweep.{key}: the task has no axis {axis}; its axes are {axes}"
                )
            continue
        if not values and axis == DEPTH and "haystack" not in task.needs:
            continue  # such a task says itself what is asked then
        if not values:
            expected = "expected a list or min, max, intervals"
            raise ConfigError(f"{written.at('sweep', key)}: sweep.{key}: the grid is empty; {expected}")
        names = Counter(shown(value) for value in values)
        if twice := [value for value, count in names.items() if count > 1]:
            raise ConfigError(f"{written.at('sweep', key)}: sweep.{key}: {', '.join(twice)} is given twice")
    return lengths, depths


def _cells(settings: Settings, question: Question, written: _Written) -> Iterator[Cell]:
    ablate = settings.ablate if settings.kind == "ablate" else None
    compress = settings.compress if settings.kind == "compress" else None
    seeds, task = settings.sweep.seeds, TASKS.find(question.task)
    _refuse_many(
        sizes={
            "lengths": max(1, len(question.lengths)),
            "depths": max(1, len(question.depths)),
            "seeds": len(seeds),
            "needles": max(1, len(question.needles)),
            "arms (ablate.top, .by and .draws)": 1 + len(ablate.top) * (len(ablate.rankings) + ablate.draws)
            if ablate
            else 1,
            "arms (compress.scores, keep and draws)": _compressed_arms(settings),
        },
        written=written,
    )
    masks = [arm.name for arm in arms(ablate.top, ablate.draws, ablate.rankings)] if ablate else [""]
    if compress is not None:
        names = [ranking_name(score) for score in compress.scores]
        masks = [arm.name for arm in compression.arms(names, compress.keep, compress.draws)]
    # What names a question apart from its place: the haystack and the needle, else the task.
    subjects: dict[str, tuple[str, ...]] = {
        needle.name or "": (question.haystack, f"{needle.name}-{_digest(needle)}") for needle in question.needles
    } or {"": (question.task,)}
    try:
        grid = tuple(itertools.islice(task.places(question), MOST_CELLS + 1))
    except ConfigError as error:
        raise ConfigError(f"{written.at('task')}: {error}") from None
    if len(grid) > MOST_CELLS:
        raise ConfigError(f"{written.at('task')}: task: more than the {MOST_CELLS:,} cells that a suite has at most")
    _refuse_many({"places": len(grid), "seeds": len(seeds), "arms": len(masks)}, written)
    if not grid:
        raise ConfigError(f"{written.at('task')}: task: {question.task} asks nothing with these settings")
    can_repeat = len(seeds) > 1 and not task.needs
    known: set[tuple[str, tuple[Value, ...], Expectation]] = set()
    left_out = 0
    for arm in masks:
        # A seed's cells share the start of their contexts: together they find it in the cache before it is evicted.
        for seed in seeds:
            for values in grid:
                place = Place(tuple(zip(task.axes, values, strict=True)), seed, arm)
                if can_repeat:
                    asked = (arm, values, task.asked(question, place))
                    if asked in known:
                        left_out += 1
                        continue
                    known.add(asked)
                steps = [_step(axis, value) for axis, value in place.axes if axis != NEEDLE]
                needle = str(place.get(NEEDLE) or "")
                names = [arm, needle if len(question.needles) > 1 else "", f"seed_{seed}" if len(seeds) > 1 else ""]
                ids = [settings.kind, *subjects[needle], f"seed_{seed}", arm if arm != NONE else ""]
                yield Cell(
                    name="-".join(filter(None, (*names, *steps))),
                    id="/".join(filter(None, (*ids, *steps))),
                    place=place,
                )
    if left_out:
        at = written.at("sweep", "seeds")
        warnings.warn(f"{at}: {left_out:,} cells ask what another seed asks, and are left out", stacklevel=2)


def _compressed_arms(settings: Settings) -> int:
    """How many arms a compression has."""
    compress = settings.compress
    if compress is None or settings.kind != "compress":
        return 1
    rankings = sum(compress.draws if score == RANDOM else 1 for score in compress.scores)
    return 1 + rankings * len([share for share in compress.keep if share < 1])


def _in_order(cells: Iterable[Cell], settings: Settings, written: _Written) -> tuple[Cell, ...]:
    """The cells in the order in which they are asked: at random where not all of them may be."""
    samples = settings.sweep.samples
    if samples is None:
        return tuple(cells)
    if samples.until_stable is None:
        _check_bisection(settings, written)
        return tuple(cells)
    if settings.kind != "detect":
        raise ConfigError(
            f"{written.at('sweep', 'samples')}: sweep.samples: until_stable is of suites of kind detect, whose heads "
            f"it looks at; this one is of kind {settings.kind}"
        )
    return tuple(samples.until_stable.in_order(list(cells)))


def _check_bisection(settings: Settings, written: _Written) -> None:
    """Refuse to look for an effective length that nothing is made of."""
    told = f"{written.at('sweep', 'samples')}: sweep.samples: bisect_lengths"
    if settings.kind != "niah":
        raise ConfigError(f"{told} is of suites of kind niah; this one is of kind {settings.kind}")
    measures = [parse_gate(gate).measure for gate in settings.gates]
    if not any(isinstance(measure, EffectiveLength) for measure in measures):
        raise ConfigError(
            f"{told} asks what an effective length takes, and no gate of the suite measures one; give it one such as "
            "`effective_length(0.85) >= 4096`, or leave bisect_lengths out"
        )


def _step(axis: str, value: Value) -> str:
    """A value on an axis as names write it; a node id gives brackets, colons and slashes a meaning."""
    name = re.sub(r"[^\w.+-]+", "_", value) if isinstance(value, str) else shown(value)
    return f"{_SHORT.get(axis, axis)}_{name}"


def _refuse_many(sizes: Mapping[str, int], written: _Written) -> None:
    """Refuse a grid of more cells than pytest can hold, before it is made."""
    count = math.prod(sizes.values())
    if count <= MOST_CELLS:
        return
    most = max(sizes, key=lambda noun: sizes[noun])
    keys: tuple[str, ...] = ("sweep",)
    if most.startswith("arms"):
        keys = ("compress", "draws") if "compress" in most else ("ablate", "draws")
    product = " × ".join(f"{size:,} {noun}" for noun, size in sizes.items() if size > 1)
    raise ConfigError(
        f"{written.at(*keys)}: {'.'.join(keys)}: {product} are {count:,} cells; a suite has at most {MOST_CELLS:,}"
    )

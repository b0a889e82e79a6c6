"""What an answer is an answer of: the question asked, the model that was asked, and the engine that ran it.

Each is kept as fields, because a hash cannot say what differs. An answer is used again only where all three are the
same; what is not known counts as different. Imports neither torch nor vllm.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from retrieval_heads.runs.fingerprint import fingerprints
from retrieval_heads.runs.folder import Facts
from retrieval_heads.runs.record import Record

UNKNOWN: Final = None
"""The value of a field that nobody could tell; it equals no other, itself included."""

_ABSENT: Final = object()
_SHOWN_FILES = 2
_REASONS = 3

_OF_THE_MODEL: Final = re.compile(
    r"revision|code_revision|tokenizer|dtype|quantiz|kv_cache_dtype|hf_overrides|hf_config_path|config_format|lora|"
    r"load_format|model_loader|generation_config|rope|calculate_kv_scales|trust_remote_code|model_impl|"
    r"attention_dtype|logits_processors"
)
"""Arguments of vLLM that say which model answers; every other is the engine's."""

_WITHOUT_EFFECT: Final = frozenset(
    {
        # What was read already, or is a secret.
        "model",
        "chat_template",
        "chat_template_kwargs",
        "hf_token",
        # How much memory there is, and how many requests share a step.
        "gpu_memory_utilization",
        "kv_cache_memory_bytes",
        "kv_offloading_size",
        "num_gpu_blocks_override",
        "swap_space",
        "max_num_seqs",
        "max_num_batched_tokens",
        "max_num_partial_prefills",
        "max_long_partial_prefills",
        "long_prefill_token_threshold",
        # Where files lie and how they are read.
        "download_dir",
        "max_parallel_loading_workers",
        "safetensors_load_strategy",
        "use_tqdm_on_load",
        "prefix_caching_hash_algo",
        "served_model_name",
        "allowed_local_media_path",
        "allowed_media_domains",
        # What is logged.
        "disable_log_stats",
        "disable_log_requests",
        "enable_log_requests",
        "aggregate_engine_logging",
        "enable_logging_iteration_details",
        "max_log_len",
        "show_hidden_metrics_for_version",
        "otlp_traces_endpoint",
        "collect_detailed_traces",
        "kv_cache_metrics",
        "kv_cache_metrics_sample",
        "cudagraph_metrics",
        "enable_mfu_metrics",
    }
)
"""Arguments that cannot change an answer; docs/gates.md lists them."""

_CHOOSES_KERNELS: Final = re.compile(
    r"VLLM_|FLASHINFER_|ONEDNN_|DNNL_|CUBLAS_WORKSPACE_CONFIG$|NVIDIA_TF32_OVERRIDE$|TORCH_ALLOW_TF32"
)
"""Environment variables that can change an answer, but for those that `_CHOOSES_NOTHING` finds."""

_CHOOSES_NOTHING: Final = re.compile(
    r"LOGGING|LOG_|_LOG$|LOGLEVEL|CACHE_ROOT|CONFIG_ROOT|USAGE_|DO_NOT_TRACK|PORT$|HOST_IP|RPC_|TIMEOUT|INTERVAL|"
    r"TRACE_FUNCTION|DEBUG|PROFIL|NVTX|MULTIPROC|API_KEY|_KEY$|_TOKEN$|SECRET|PASSWORD|ASSETS|CPU_KVCACHE_SPACE|"
    r"TARGET_DEVICE|MAX_JOBS|RINGBUFFER|KEEP_ALIVE|SO_PATH"
)


@dataclass(frozen=True)
class Identity:
    """A question, a model or an engine, as fields.

    Args:
        fields: What tells it from others, plain JSON by name. A field that is absent was not set; one that is
            `UNKNOWN` could not be told.
        name: For people: the model as the settings name it.
    """

    fields: Mapping[str, object] = field(default_factory=dict)
    name: str = ""

    @cached_property
    def key(self) -> str:
        """Refers to it from a record: the start of its fields' SHA-256."""
        return hashlib.sha256(_canonical(self.fields).encode()).hexdigest()[:12]

    @property
    def is_known(self) -> bool:
        """Whether every field could be told."""
        return all(value is not UNKNOWN for value in self.fields.values())

    def to_json(self) -> dict[str, object]:
        """As `run.json` holds it."""
        return {"name": self.name, "fields": dict(self.fields)} if self.name else {"fields": dict(self.fields)}

    @classmethod
    def of_json(cls, data: object) -> Identity:
        """What `to_json` made; of anything else an identity of which nothing is known."""
        if not isinstance(data, Mapping) or not isinstance(data.get("fields"), Mapping):
            return cls({"identity": UNKNOWN})
        return cls(dict(data["fields"]), str(data.get("name", "")))


@dataclass(frozen=True)
class Difference:
    """A field that two identities do not share.

    Args:
        field: Its name, the identity's before it: `model.quantization`.
        then: Its value in the earlier one, for people.
        now: In the later one.
    """

    field: str
    then: str
    now: str

    def sentence(self, then: str = "then", now: str = "now") -> str:
        """Such as "model.quantization: none then, fp8 now"."""
        return f"{self.field}: {self.then} {then}, {self.now} {now}"


@dataclass(frozen=True)
class Identities:
    """The models and engines that a run's records refer to by their keys."""

    models: Mapping[str, Identity] = field(default_factory=dict)
    engines: Mapping[str, Identity] = field(default_factory=dict)

    @classmethod
    def of(cls, model: Identity, engine: Identity, run: str) -> Identities:
        """Those of a run with one model and one engine.

        Args:
            model: The model's.
            engine: The engine's.
            run: Tells this run from every other: one of which something is unknown is the same in no other.
        """
        models, engines = ({one.key if one.is_known else f"{one.key}-{run}": one} for one in (model, engine))
        return cls(models, engines)

    def to_json(self) -> dict[str, object]:
        """As `run.json` holds them, under `identities`."""
        parts = {"models": self.models, "engines": self.engines}
        return {part: {key: one.to_json() for key, one in known.items()} for part, known in parts.items()}

    @classmethod
    def of_facts(cls, facts: Facts) -> Identities:
        """Those of a `run.json`; none in one of a version before there were any."""
        told = facts.get("identities")
        told = told if isinstance(told, Mapping) else {}
        models, engines = (
            {str(key): Identity.of_json(one) for key, one in told[part].items()}
            if isinstance(told.get(part), Mapping)
            else {}
            for part in ("models", "engines")
        )
        return cls(models, engines)

    @property
    def answered_by(self) -> dict[str, str]:
        """The keys of a run with one model and one engine, as its records hold them; empty where there is none."""
        parts = {"model": self.models, "engine": self.engines}
        return {part: next(iter(known)) for part, known in parts.items() if known}

    def __or__(self, other: Identities) -> Identities:
        """Both runs'."""
        return Identities({**self.models, **other.models}, {**self.engines, **other.engines})

    def model_of(self, record: Record) -> Identity | None:
        """The model that gave a record's answer; `None` where nothing says."""
        return self.models.get(record.answered_by.model) if record.answered_by else None

    def engine_of(self, record: Record) -> Identity | None:
        """The engine that gave it; `None` where nothing says."""
        return self.engines.get(record.answered_by.engine) if record.answered_by else None


def weights_of(location: str) -> Mapping[str, str] | None:
    """What the files of a model hold, as `fingerprints` tells it; `None` for a hub's model, known by its commit."""
    path = Path(location).expanduser()
    return fingerprints(path) if path.exists() else None


def model_identity(
    name: str,
    files: Mapping[str, str] | None,
    arguments: Mapping[str, object],
    loaded: Mapping[str, object],
    revision: str | None,
) -> Identity:
    """The identity of a model that was loaded.

    Args:
        name: As the settings name it.
        files: From `weights_of` what was loaded.
        arguments: vLLM's, as the settings give them.
        loaded: What the engine made of `dtype`, `quantization` and so on; goes before what was asked for.
        revision: The commit of a hub's model; `None` where the engine could not tell.
    """
    fields = {**_said(arguments, of_the_model=True), **loaded}
    if files is None:
        return Identity({**fields, "name": name, "revision": revision}, name)
    # The same weights in another place are the same model: its name is no field.
    fields.pop("revision", None)
    return Identity({**fields, **(files or {"weights": UNKNOWN})}, name)


def engine_identity(
    arguments: Mapping[str, object],
    environment: Mapping[str, str],
    *,
    engine: str,
    device: str,
    traced: bool,
    is_elsewhere: bool = False,
) -> Identity:
    """The identity of an engine.

    Args:
        arguments: vLLM's, as the settings give them.
        environment: Of its process.
        engine: Its name and version.
        device: What it computes on.
        traced: Whether nnsight instruments it.
        is_elsewhere: Whether another process computes: variables and libraries are then not its own.
    """
    if is_elsewhere:
        return Identity({"version": engine, "device": device, **_said(arguments, of_the_model=False)})
    libraries = ("torch", "nnsight") if traced else ("torch",)
    return Identity(
        {
            "version": engine,
            **{name: found for name in libraries if (found := _version(name))},
            "device": device,
            "traced": traced,
            **_said(arguments, of_the_model=False),
            **{name: value for name, value in sorted(environment.items()) if chooses_kernels(name)},
        }
    )


def chooses_kernels(variable: str) -> bool:
    """Whether an environment variable can change an answer."""
    return bool(_CHOOSES_KERNELS.match(variable)) and not _CHOOSES_NOTHING.search(variable)


def question_identity(record: Record) -> Identity:
    """The question that a record's answer was given to."""
    recipe = record.recipe
    if recipe is None:
        return Identity({"prompt": UNKNOWN})
    template = recipe.template
    sampling = {"sampling": UNKNOWN} if recipe.sampling is None else recipe.sampling
    return Identity(
        {
            "haystack": recipe.hash,
            "wording": recipe.wording,
            **({"prefill": recipe.prefill} if recipe.prefill else {}),
            "template": template.hash if template else UNKNOWN,
            **({"chat_template_kwargs": template.kwargs} if template and template.kwargs else {}),
            "boundary": recipe.boundary or UNKNOWN,
            **{f"task.{key}": value for key, value in _without_path(recipe.options or {}).items()},
            **{key if key == "sampling" else f"sampling.{key}": value for key, value in sampling.items()},
            **({"mask": record.mask.to_json()} if record.mask else {}),
            "prompt": recipe.prompt_hash,
        }
    )


def _without_path(options: Mapping[str, object]) -> dict[str, object]:
    """A task's settings without the path of a file whose hash stands beside it: the file may lie elsewhere."""
    left_out = {"file"} if "file_hash" in options else set()
    return {key: value for key, value in options.items() if value is not None and key not in left_out}


def differences(part: str, then: Identity | None, now: Identity | None) -> list[Difference]:
    """The fields that two identities do not share; a field unknown on either side is one.

    Args:
        part: `question`, `model` or `engine`.
        then: The earlier; `None` where nothing is known of it.
        now: The later.
    """
    if then is None or now is None:
        return [Difference(part, *("unknown" if one is None else one.name or one.key for one in (then, now)))]
    found = []
    for key in {**then.fields, **now.fields}:
        before, after = (one.fields.get(key, _ABSENT) for one in (then, now))
        is_unknown = before is UNKNOWN or after is UNKNOWN
        if is_unknown or _canonical(before) != _canonical(after):
            found.append(Difference(f"{part}.{key}", shown(before), shown(after)))
    return list(_grouped(found))


def argument_differences(
    then: Mapping[str, object], now: Mapping[str, object], answered: Collection[str]
) -> list[Difference]:
    """What two `model` sections say differently of which model answers.

    Args:
        then: That of an earlier run.
        now: The present settings'; of one that names no model only what it says is compared.
        answered: Names of the models that gave the earlier run's answers, where they are known.
    """
    before, after = ({key: value for key, value in said.items() if value not in (None, {}, [])} for said in (then, now))
    named = str(after.get("model", ""))
    found = []
    for name in sorted(answered) or [str(before.get("model", named))]:
        if named and not _is_same_place(name, named):
            found.append(Difference("model.name", name, named))
    sides = [_said(said, of_the_model=True, with_files=False) for said in (before, after)]
    keys = sides[0].keys() | sides[1].keys() if named else sides[1].keys()
    narrowed = [Identity({key: said[key] for key in keys if key in said}) for said in sides]
    return [*found, *differences("model", *narrowed)]


def question_differences(then: Record, now: Record) -> list[Difference]:
    """What differs between two records' questions; the prompt's tokens only where nothing else explains them."""
    found = differences("question", question_identity(then), question_identity(now))
    return [one for one in found if one.field != "question.prompt"] or found


def why_asked_again(
    earlier: Iterable[tuple[Record, Record]], then: Identities, now: Identities
) -> Sequence[tuple[str, int]]:
    """Why cells that an earlier run answered were asked again.

    Args:
        earlier: Each cell's record of then and of now.
        then: What the earlier run's records refer to.
        now: What this run's refer to.

    Returns:
        Each reason with the number of its cells, the commonest first.
    """
    reasons: Counter[str] = Counter()
    for before, after in earlier:
        if before.answered_by is None:
            reasons["the earlier answers do not say which model and engine gave them"] += 1
            continue
        asked = question_differences(before, after)
        given = [
            *differences("model", then.model_of(before), now.model_of(after)),
            *differences("engine", then.engine_of(before), now.engine_of(after)),
        ]
        if given and [one.field for one in asked] == ["question.prompt"]:
            asked = []  # another tokenizer
        reasons.update([one.sentence() for one in (*given, *asked)] or ["what was sent is not the same"])
    return reasons.most_common()


def asked_again_line(cells: int, reasons: Sequence[tuple[str, int]]) -> str:
    """What `why_asked_again` found, in one line."""
    told = "; ".join(f"{reason}{f' ({count})' if count < cells else ''}" for reason, count in reasons[:_REASONS])
    more = f"; and {len(reasons) - _REASONS} more" if len(reasons) > _REASONS else ""
    return f"{cells} {'answer was' if cells == 1 else 'answers were'} asked again: {told}{more}"


def shown(value: object) -> str:
    """A field's value for people."""
    if value is UNKNOWN:
        return "unknown"
    if value is _ABSENT:
        return "none"
    if isinstance(value, str):
        return value[:12] if re.fullmatch(r"[0-9a-f]{32,}", value) else value
    return _canonical(value)


def _is_same_place(one: str, other: str) -> bool:
    return one == other or Path(one).expanduser().resolve() == Path(other).expanduser().resolve()


def _said(arguments: Mapping[str, object], *, of_the_model: bool, with_files: bool = True) -> dict[str, object]:
    """The arguments of one side; the model's with what the files hold that they name: adapters, a tokenizer."""
    said: dict[str, object] = {}
    for key, value in arguments.items():
        is_the_models = bool(_OF_THE_MODEL.search(key))
        if key in _WITHOUT_EFFECT or value is None or value in ({}, []) or is_the_models != of_the_model:
            continue
        said[key] = value
        for text in _texts(value) if of_the_model and with_files else ():
            path = os.path.expanduser(text)  # noqa: PTH111 - as the next, which takes texts that are no path
            if os.path.exists(path):  # noqa: PTH110
                said |= {f"{key}/{name}": found for name, found in fingerprints(Path(path)).items()}
    return said


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _texts(one)


def _grouped(found: Sequence[Difference]) -> Iterator[Difference]:
    """Many files of one kind as one line: a model may have hundreds."""
    kinds = Counter(one.field.rpartition("/")[0] for one in found)
    told = set()
    for one in found:
        kind, _, file = one.field.rpartition("/")
        if not kind or kinds[kind] <= _SHOWN_FILES:
            yield one
        elif kind not in told:
            told.add(kind)
            yield Difference(f"{kind}: {kinds[kind]} files differ, {file}", one.then, one.now)


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)

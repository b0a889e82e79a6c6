"""What answers: the contract that every backend keeps, and the values that cross it.

A backend is one class in one file. What a class says (`capabilities`, its checks) is read when suites are collected,
before anything is loaded, so its module imports what it loads late.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, Final, Literal, Protocol

from retrieval_heads.engine.usage import Usage
from retrieval_heads.errors import ConfigError
from retrieval_heads.heads.looks import Rows
from retrieval_heads.plain import Fields
from retrieval_heads.prompts.prompt import PromptText, Tokenizer
from retrieval_heads.registry import Registry
from retrieval_heads.runs.layers import Layer, layer_fields
from retrieval_heads.runs.mask import Mask
from retrieval_heads.suites.settings import DEFAULT_BACKEND
from retrieval_heads.suites.suite import Suite

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

Prompt = Sequence[int] | PromptText
"""Token ids, or the text where a backend takes that (`Capabilities.takes`)."""


@dataclass(frozen=True)
class Capabilities:
    """What a backend can do.

    Args:
        takes: What it is asked with: the `ids` of a prompt's tokens, or its `text`, whose records have no spans: where
            its own tokens lie is not known.
        scores_heads: It replays an answer and scores every head on it (suites of kind detect).
        masks_heads: It answers with some heads masked (suites of kind ablate and compress).
        replicas: Several of it can answer beside each other, each on devices of its own (`engine.replicas`).
        sleeps: One that nobody asks can give memory back, and take it again.
        is_elsewhere: Another process computes, which knows neither the libraries nor the variables of this one.
        is_on_ray: Each of its replicas is on a node that Ray chooses (`retrieval_heads.engine.ray_replicas`).
    """

    takes: Literal["ids", "text"] = "ids"
    scores_heads: bool = False
    masks_heads: bool = False
    replicas: bool = False
    sleeps: bool = False
    is_elsewhere: bool = False
    is_on_ray: bool = False


@dataclass(frozen=True)
class Info:
    """What a backend says of itself once it is loaded; `run.json` holds it.

    Args:
        engine: Its name and version.
        device: What it computes on.
        dtype: Of its weights.
        max_model_len: Tokens that prompt and answer may take together.
        max_num_seqs: Requests that it works on at once.
        max_num_batched_tokens: Tokens that one step computes at most.
        block_size: Tokens of a block of its prefix cache.
        model_revision: The model's, as the hub names it.
        loaded: What it made of `dtype`, `quantization` and so on: part of the model's identity.
        layers: Those that mix tokens; of a backend that scores heads.
        maskable_layers: Numbers of those whose heads can be masked.
        start_seconds: What its start took, by part.
        warnings: What it cannot do with this model, a sentence each; said at the start and at the end of a run.
        takes: As `Capabilities.takes`, where only the start can tell.
        chosen: How it computes, where the settings leave that open: part of the engine's identity.
        more: Whatever else it says, plain JSON by name.
    """

    engine: str
    device: str
    dtype: str
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int
    model_revision: str = ""
    loaded: Mapping[str, str | None] = field(default_factory=dict)
    layers: tuple[Layer, ...] | None = None
    maskable_layers: tuple[int, ...] | None = None
    start_seconds: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    takes: Literal["ids", "text"] | None = None
    chosen: Fields = field(default_factory=dict)
    more: Mapping[str, object] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """As `run.json` holds it."""
        elsewhere = ("layers", "warnings", "chosen", "more")
        said = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in elsewhere}
        if self.layers is not None:
            said["layers"] = [layer_fields(layer) for layer in self.layers]
        return {name: value for name, value in said.items() if value is not None} | dict(self.more)


@dataclass(frozen=True)
class Finished:
    """A finished request.

    Args:
        id: As it was given to `Backend.add`.
        text: The answer.
        token_ids: Its ids, the end-of-sequence token included when it was produced; none where they are not known.
        finish_reason: `stop` or `length`.
        prompt_tokens: Tokens of the prompt by its own count; 0 where it does not count them.
        cached_tokens: How many of those were not computed: the prefix cache gave them, or a replay needed none.
        seconds: From the first step that worked on it to its last token.
        own_seconds: What it took of these steps itself, the requests beside it left out; `None` where that is not seen.
        head_scores: A replay's, `[figures, layers with heads, heads]`: those of `Backend.scores` that its rows want, in
            that order, of each as many as its `parts`. Where they want the steps (`Rows.per_step`), two more for each
            token of the answer: the needle token that a head copied, counted from 1, or 0, and its weight on the
            needle.
        prompt_logprob: Mean log probability of the prompt's tokens, where the sampling parameters asked for it.
        error: Why it has no answer, no head scores or no mask, in one sentence.
    """

    id: str
    text: str
    token_ids: list[int]
    finish_reason: str
    prompt_tokens: int
    cached_tokens: int
    seconds: float
    own_seconds: float | None = field(default=None, kw_only=True)
    head_scores: ArrayLike | None = None
    prompt_logprob: float | None = None
    error: str | None = None


class Backend(Protocol):
    """Answers prompts, stepped by `engine.loop` in a process that a kill ends; what it refuses is an `EngineError`.

    A variable that `engine.api_key_env` names is in nobody's environment: `__init__` gets its value as the option
    `api_key`.
    """

    capabilities: ClassVar[Capabilities]
    indifferent: ClassVar[frozenset[str]] = frozenset()
    """Its keys of `engine` that cannot change an answer: no part of its identity."""
    info: Info
    tokenizer: Tokenizer
    """Measures prompts, and builds them."""
    scores: Sequence[str] = ()
    """Names of the head scores that it can measure of the model."""
    has_moved: bool = True
    """Whether the last step came nearer to an answer, as far as can be seen; a watchdog ends what moves no more."""

    reached: Mapping[str, int] = MappingProxyType({})
    """Of unfinished requests, the prompt's tokens that are computed or cached by now, as far as can be seen."""

    takes_turns: bool = False
    """Whether `add` takes a `turn`: of what waits, the lowest goes first, so that no run waits for all of another's."""

    keeps_rows: bool = False
    """Whether `add` takes the `rows` that a replay will read, as far as they are known before there is an answer: then
    it may keep what it computes of them, and compute nothing again.
    """

    @property
    def usage(self) -> Usage | None:
        """What it took so far of a server that counts it."""
        return None

    @classmethod
    def check_installed(cls, *, traced: bool) -> None:
        """See that what it needs is there; `traced` where heads are scored or masked."""

    @classmethod
    def check_arguments(cls, model: Fields, options: Fields) -> None:
        """See that it takes the keys of the `model` section, and of `engine` those that are none of ours."""

    @classmethod
    def check_sampling(cls, generation: Fields) -> None:
        """See that it takes the sampling parameters of a suite, its `generation` section."""

    @classmethod
    def check_model(cls, model: Fields) -> bool:
        """See that the model is there; whether the hub must be left alone."""
        return False

    @classmethod
    def locate(cls, name: str) -> str:
        """A model's folder, whose files tell which model answers, or its name as it is."""
        return name

    @classmethod
    def gpus(cls) -> list[str] | None:
        """The GPUs that replicas share out, as `CUDA_VISIBLE_DEVICES` names them; `None` where cores are."""
        return None

    @classmethod
    def kept(cls, model: Fields) -> Fields:
        """The keys of the `model` section for a warm engine: with what it takes to `sleep`, and to take turns."""
        return model

    @classmethod
    def reason(cls, error: BaseException) -> str:
        """What an error of its libraries comes to, as one sentence."""
        return str(error)

    def __init__(self, model: str, arguments: Fields, options: Fields, *, traced: bool) -> None:
        """Load what `locate` gave, with the other keys of the `model` section and those of `engine`."""

    def add(
        self,
        request: str,
        prompt: Prompt,
        sampling: Fields,
        mask: Mask | None,
        *,
        is_replayed: bool,
        rows: Rows | None = None,
        turn: int = 0,
    ) -> None:
        """Queue a prompt: `mask` names the heads that have no say; `is_replayed` where `replay` will follow; `rows`
        come where it `keeps_rows`, `turn` where it `takes_turns`.
        """

    def replay(self, request: str, ids: Sequence[int], rows: Rows, first_row: int, *, of: str | None) -> None:
        """Score heads on prompt and answer, ahead of what waits; nothing from `first_row` on comes from a cache. `of`
        names the request whose answer it is, `None` where it is another prompt.
        """

    def measure(self, request: str, ids: Sequence[int], reference: str) -> None:
        """Take the heads' outputs on a text into the mean of that name, which masks of mode `mean` put in."""

    def drop(self, requests: Sequence[str]) -> None:
        """Work no more on requests that nobody waits for any more; one that is answered all the same is passed over."""

    def sleep(self) -> str:
        """Give memory back while nobody asks, with all that the prefix cache holds; what and where to, in words.

        Empty where there is none that can be given back: it stays as it is.
        """
        return ""

    def wake(self) -> None:
        """Take it again."""

    def step(self) -> list[Finished]:
        """Work for a while on what is queued; the requests that this finished."""


GROUP: Final = "retrieval_heads.backends"
"""Of entry points, each `NAME = "module:Class"`."""
BACKENDS: Registry[type[Backend]] = Registry(
    GROUP,
    "backend",
    {
        DEFAULT_BACKEND: "retrieval_heads.engine.backends.vllm:Engine",
        "openai": "retrieval_heads.engine.backends.endpoint:Endpoint",
        "ray": "retrieval_heads.engine.backends.on_ray:OnRay",
    },
)
"""By the name that settings give as `engine.kind`."""


def check_suite(suite: Suite) -> type[Backend]:
    """See that the backend of a suite's settings can do what its kind measures; nothing is loaded.

    Args:
        suite: One that was read.

    Returns:
        The backend.

    Raises:
        ConfigError: There is no such backend, or it cannot: what, where, and what is accepted.
    """
    name, kind = suite.settings.engine.kind, suite.settings.kind
    backend = find(name)
    can = backend.capabilities
    kinds = {"niah": True, "detect": can.scores_heads, "ablate": can.masks_heads, "compress": can.masks_heads}
    if not kinds[kind]:
        needed = "scores" if kind == "detect" else "masks"
        accepted = ", ".join(one for one, is_taken in kinds.items() if is_taken)
        raise ConfigError(
            f"kind: {kind} {needed} heads, which the backend {name!r} (engine.kind) cannot; it answers kind {accepted}"
        )
    if suite.settings.engine.replicas != 1 and not can.replicas:
        raise ConfigError(f"engine.replicas: the backend {name!r} (engine.kind) has no replicas; 1 is accepted")
    return backend


def find(name: str) -> type[Backend]:
    """The backend of a name.

    Raises:
        ConfigError: There is none, or it cannot be imported.
    """
    try:
        return BACKENDS.find(name)
    except ConfigError as error:
        raise ConfigError(f"engine.kind: {error}") from None


def reference_of(backend: type[Backend]) -> str:
    """Names a backend's class to another process, `module:Class`."""
    return f"{backend.__module__}:{backend.__qualname__}"


def resolve(reference: str) -> type[Backend]:
    """The class that a reference names."""
    backend: type[Backend] = pkgutil.resolve_name(reference)
    return backend

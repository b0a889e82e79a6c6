"""What the `engine` section says of an endpoint, and what is refused of it before anything is sent."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator

from retrieval_heads.errors import EngineError
from retrieval_heads.plain import Fields
from retrieval_heads.redaction import VARIABLE_NAME, is_secret_key
from retrieval_heads.settings.messages import nearest, sentences
from retrieval_heads.settings.section import Number, Said, Section, Whole

MODEL_KEYS: Final = (
    "model",
    "tokenizer",
    "max_model_len",
    "chat_template",
    "chat_template_kwargs",
    "revision",
    "trust_remote_code",
    "hf_token",
)
"""Of the `model` section: the name, the tokenizer that measures prompts, and where that comes from."""

_OURS: Final = frozenset(
    {"model", "prompt", "messages", "stream", "stream_options", "n", "best_of", "echo", "logprobs", "top_logprobs"}
    | {"prompt_logprobs", "extra_args", "return_token_ids", "tools", "response_format"}
)
"""Fields of a request that are not for a suite to say: what is asked, and what of a reply nobody reads."""


class Budget(Section):
    """What a run may take of an endpoint; a question beyond it is not asked."""

    requests: Annotated[Whole, Field(ge=1)] | None = None
    tokens: Annotated[Whole, Field(ge=1)] | None = None
    """Of prompts and answers together."""


class Price(Section):
    """Of a million tokens, in any money."""

    input: Annotated[Number, Field(ge=0)]
    output: Annotated[Number, Field(ge=0)]


class EndpointSettings(Section):
    """The keys of `engine` that are the endpoint's."""

    base_url: Said
    """Such as `http://127.0.0.1:8000/v1`."""
    model: Said | None = None
    """As the server names it; `model.model` where it is left out."""
    api_key_env: Said | None = None
    """The environment variable that holds the key; the server wants none where it is left out."""
    api: Literal["auto", "completions", "chat"] = "auto"
    """`completions` sends token ids, `chat` messages; `auto`: ids where the server takes them."""
    concurrency: Annotated[Whole, Field(ge=1, le=1024)] = 64
    """Requests at once, at most."""
    timeout: Annotated[Number, Field(gt=0)] = 600
    """Seconds in which a question must be answered, all tries together."""
    token_gap: Annotated[Number, Field(ge=0)] = 0.1
    """How far the server's count of a chat's prompt tokens may lie from the tokenizer's, as a share of that."""
    budget: Budget = Budget()
    price: Price | None = None

    @field_validator("base_url")
    @classmethod
    def _safe(cls, url: str) -> str:
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname, parts.port
        except ValueError:
            host = None
        if not host or parts.scheme not in ("http", "https") or any(map(str.isspace, url)):
            raise ValueError("an address such as http://127.0.0.1:8000/v1 is expected")
        if "@" in parts.netloc:
            raise ValueError("no credentials stand in an address; api_key_env names the variable that holds a key")
        if parts.query or parts.fragment:
            raise ValueError("an address without ? and # is expected")
        if parts.scheme == "http" and not _is_here(host):
            raise ValueError(
                f"http shows prompts and key to everybody between here and {host}; "
                "https is accepted, and http of this machine (a tunnel's end, say)"
            )
        return url.rstrip("/")

    @field_validator("api_key_env")
    @classmethod
    def _named(cls, name: str | None) -> str | None:
        if name is not None and not VARIABLE_NAME.fullmatch(name):  # it may be the key: it is not shown
            raise ValueError("the name of an environment variable, in capitals, such as OPENAI_API_KEY, is expected")
        return name

    @classmethod
    def of(cls, options: Fields) -> EndpointSettings:
        """Read them.

        Raises:
            EngineError: A key is unknown, or a value is not accepted.
        """
        if literal := [key for key in options if is_secret_key(key)]:
            raise EngineError(
                f"engine.{literal[0]} is not accepted: no key is written into settings; engine.api_key_env names the "
                "environment variable that holds it"
            )
        try:
            return cls.model_validate(dict(options))
        except ValidationError as error:
            told = sentences(cls, error, "", "", ("engine",))
            raise EngineError("; ".join(one.removeprefix(": ") for one in told)) from None


def _is_here(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_model_keys(model: Fields, settings: EndpointSettings) -> None:
    """See that the `model` section says what an endpoint can be told.

    Raises:
        EngineError: It does not.
    """
    for key, value in model.items():
        if key not in MODEL_KEYS:
            hint = nearest(key, MODEL_KEYS) or f"; accepted: {', '.join(MODEL_KEYS)}"
            raise EngineError(f"model.{key}: the model is loaded by its server, which is not told that{hint}")
        if key == "chat_template" and value is not None and settings.api != "completions":
            raise EngineError(
                "model.chat_template: chat completions are rendered by the server with its own; with "
                "engine.api: completions this one is used"
            )


def check_sampling(names: Iterable[str]) -> None:
    """See that sampling parameters are none of those that make the request.

    Raises:
        EngineError: One is.
    """
    for name in names:
        if name in _OURS:
            raise EngineError(f"generation.{name}: an endpoint is not asked with it; sampling parameters are accepted")

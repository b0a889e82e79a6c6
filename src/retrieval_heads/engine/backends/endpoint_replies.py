"""What an endpoint replies, as far as it is read, and what is wrong with a reply that cannot be."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from retrieval_heads.errors import EngineError

_LONGEST = 300
"""Characters of a server's words that are shown."""


class CachedTokens(BaseModel):
    """Of a prompt's tokens."""

    cached_tokens: int | None = None


class Counts(BaseModel):
    """What the server counted."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: CachedTokens | None = None


class Message(BaseModel):
    """A chat's answer."""

    content: str | None = None
    reasoning_content: str | None = None
    """Thoughts, which some servers tell apart; others name them `reasoning`."""
    reasoning: str | None = None


class Choice(BaseModel):
    """An answer."""

    text: str | None = None
    message: Message | None = None
    finish_reason: str | None = None
    token_ids: list[int] | None = None
    """vLLM's, where it was asked for them."""

    @property
    def said(self) -> str:
        """The answer, thoughts before it in the tags that are told apart everywhere (`scoring.settings.TAGS`)."""
        if self.message is None:
            return self.text or ""
        thoughts = self.message.reasoning_content or self.message.reasoning
        return (f"<think>{thoughts}</think>" if thoughts else "") + (self.message.content or "")


class Reply(BaseModel):
    """To a question."""

    choices: Annotated[list[Choice], Field(min_length=1)]
    usage: Counts = Counts()

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that the server's prefix cache gave, as far as it says."""
        details = self.usage.prompt_tokens_details
        return (details and details.cached_tokens) or 0

    @classmethod
    def of(cls, data: object) -> Reply:
        """Read one.

        Raises:
            EngineError: It is none, such as a page of HTML.
        """
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            lacking = ".".join(map(str, error.errors()[0]["loc"]))
            raise EngineError(no_reply(data, f"{lacking}: {error.errors()[0]['msg'].lower()}")) from None


class Served(BaseModel):
    """A model that a server lists."""

    id: str
    root: str | None = None
    """What vLLM and SGLang loaded."""
    owned_by: str | None = None
    max_model_len: int | None = None
    context_length: int | None = None


class Listed(BaseModel):
    """The models of a server."""

    data: list[Served]


def no_reply(data: object, lacking: str = "") -> str:
    """What was given in place of a reply, as the end of a sentence."""
    if not isinstance(data, str):
        return f"the server's reply is not OpenAI's ({lacking})"
    is_page = re.match(r"\s*<(!doctype|html)", data, re.IGNORECASE)
    what = "a page of HTML" if is_page else "no JSON"
    return f"the server answered with {what} ({shown(data)!r}); engine.base_url is expected to end as in .../v1"


def shown(text: str) -> str:
    """A server's words on one line, not too many."""
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]} …"


def message_in(body: Any) -> str:
    """What the body of an error says."""
    while isinstance(body, dict):
        body = next((body[key] for key in ("error", "message", "detail") if key in body), "")
    return shown(str(body or ""))

"""A model that a server serves: any endpoint that speaks OpenAI's protocol (vLLM's own server, SGLang, llama.cpp, a
vendor). Token ids where it takes them, else messages, measured by a tokenizer that the settings name.
"""

from __future__ import annotations

import importlib.util
import queue
import re
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any, ClassVar, Final, Literal

from pydantic import ValidationError

from retrieval_heads.engine.backends.backend import Backend, Capabilities, Finished, Info, Prompt
from retrieval_heads.engine.backends.endpoint_calls import Calls, OutOfReach, Refused
from retrieval_heads.engine.backends.endpoint_pace import Purse, Window
from retrieval_heads.engine.backends.endpoint_replies import Listed, Reply, Served, no_reply
from retrieval_heads.engine.backends.endpoint_settings import EndpointSettings, check_model_keys, check_sampling
from retrieval_heads.engine.usage import Usage
from retrieval_heads.errors import EngineError
from retrieval_heads.heads.looks import Rows
from retrieval_heads.hub import check_model
from retrieval_heads.plain import Fields
from retrieval_heads.prompts.prompt import PromptText, Tokenizer
from retrieval_heads.prompts.tokenizer import load_tokenizer
from retrieval_heads.runs.mask import Mask

_PATIENCE = 0.05
"""Seconds that a step waits for an answer, before prompts that came meanwhile are looked at."""

_PROBE: Final = "Den 3. Mai 2017 zahlte Zoë £12.50 für „naïve“ Küche; 東京の天気は晴れです。 Привет, мир! f(x) == x**2"
"""Tokenizers of different models cut this differently."""

_GREETING: Final = PromptText(({"role": "user", "content": "?"},), "?")

_NO_IDS: Final = (400, 404, 405, 415, 422, 500, 501)
"""What servers answer that take no token ids, or have no such path; llama.cpp and others say 500."""


class _OtherIds(EngineError):
    """A server's token ids are not the tokenizer's, as far as its counts tell."""


class Endpoint(Backend):
    """A model behind an OpenAI-compatible address.

    Args:
        model: As the settings name it.
        arguments: The other keys of the `model` section, which say how prompts are measured.
        options: Of the `engine` section, see `EndpointSettings`; and the key, as `api_key`.
        traced: Never: nothing is seen of its heads.

    Raises:
        EngineError: It is not there, refuses the key or does not know the model; one sentence.
    """

    capabilities: ClassVar = Capabilities(is_elsewhere=True)
    indifferent: ClassVar = frozenset({"api_key_env", "concurrency", "timeout", "token_gap", "budget", "price"})

    @classmethod
    def check_installed(cls, *, traced: bool) -> None:
        """See that its client is there, and what tokenizes."""
        for name in ("openai", "transformers"):
            if importlib.util.find_spec(name) is None:
                raise EngineError(
                    f"engine.kind: openai needs {name}, which is not installed; "
                    "pip install 'pytest-retrieval-heads[openai]'"
                )

    @classmethod
    def check_arguments(cls, model: Fields, options: Fields) -> None:
        """See that address, key and model are said as they may be."""
        check_model_keys(model, EndpointSettings.of(options))

    @classmethod
    def check_sampling(cls, generation: Fields) -> None:
        """See that a suite's `generation` section leaves the request alone."""
        check_sampling(generation)

    @classmethod
    def check_model(cls, model: Fields) -> bool:
        """See that there is a tokenizer of that name."""
        try:
            return check_model({**model, "model": model.get("tokenizer") or model["model"]})
        except EngineError as error:
            if "chat_template" in str(error):
                raise
            raise EngineError(
                f"model.tokenizer: a tokenizer measures the prompts of an endpoint ({str(error).partition(': ')[2]})"
            ) from None

    def __init__(self, model: str, arguments: Fields, options: Fields, *, traced: bool = False) -> None:
        began = time.perf_counter()
        options = dict(options)
        key = options.pop("api_key", None)
        self._settings = EndpointSettings.of(options)
        self._name = self._settings.model or model
        self._window = Window(self._settings.concurrency)
        self._purse = Purse(self._settings.budget)
        self._done: queue.SimpleQueue[Finished | EngineError] = queue.SimpleQueue()
        self._running: dict[str, Future[None]] = {}
        """What asks each request that has no answer yet."""
        self._answered = 0.0
        """When the last answer came."""
        self._usage = Usage()
        self._calls = Calls(self._settings, key, self._window)
        served = self._calls.wait(self._served())
        version = self._calls.wait(self._version())
        self.tokenizer: Tokenizer = self.load_tokenizer({**arguments, "model": model})
        self._tells_ids = True
        self._wants_completion_tokens = False
        self._api, told = self._calls.wait(self._chosen())
        server = " ".join(filter(None, [served.owned_by, version]))
        where = self._settings.base_url
        self.info = Info(
            engine=f"openai {self._api}{f', {server}' if server else ''}",
            device=where,
            dtype="as served",
            max_model_len=_length(arguments.get("max_model_len"), served),
            max_num_seqs=self._settings.concurrency,
            max_num_batched_tokens=1 << 30,
            block_size=16,
            # Known by what the server calls it: of its weights nothing is known here.
            loaded={
                "served": self._name,
                **({"root": served.root} if served.root else {}),
                "revision": "as served",
            },
            start_seconds={"endpoint": time.perf_counter() - began},
            warnings=told,
            takes="ids" if self._api == "completions" else "text",
        )

    def load_tokenizer(self, model: Fields) -> Tokenizer:
        """What measures prompts, and builds them."""
        return load_tokenizer(model)

    async def _served(self) -> Served:
        """The model as the server lists it; what is not known of a server that lists none is left open."""
        where = self._settings.base_url
        try:
            data = await self._calls.get("/models")
            listed = Listed.model_validate(data).data
        except Refused as error:
            if error.status in (404, 405, 501):
                return Served(id=self._name)
            raise EngineError(f"engine.base_url: {where}: {error}") from None
        except ValidationError:
            raise EngineError(f"engine.base_url: {where}: {no_reply(data, 'of /models')}") from None
        except EngineError as error:
            raise EngineError(f"engine.base_url: {error}") from None
        for one in listed:
            if one.id == self._name:
                return one
        names = [one.id for one in listed]
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        raise EngineError(
            f"engine.model: the server has no model {self._name!r}; it serves {', '.join(names[:8]) or 'none'}{more}"
        )

    async def _version(self) -> str:
        """What vLLM's server says of itself; empty where a server says nothing."""
        try:
            said = await self._calls.get(f"{self._settings.base_url.removesuffix('/v1')}/version")
        except EngineError:
            return ""
        version = said.get("version") if isinstance(said, dict) else None
        return version if isinstance(version, str) else ""

    async def _chosen(self) -> tuple[Literal["completions", "chat"], tuple[str, ...]]:
        """How the server is to be asked, and warnings."""
        asked, told = self._settings.api, []
        if asked != "chat":
            try:
                await self._try_ids()
                return "completions", ()
            except Refused as error:
                if asked == "completions" or error.status not in _NO_IDS:
                    raise EngineError(f"engine.api: completions: {error}") from None
                print(f"rh: asked by chat completions, not with token ids: {error}", file=sys.stderr)
            except _OtherIds as error:
                if asked == "completions":
                    raise EngineError(f"engine.api: completions: {error}") from None
                told.append(f"asked by chat completions, not with token ids: {error}")
        try:
            reply = await self._try(self._body(_GREETING, {"max_tokens": 1}))
        except Refused as error:
            if "max_completion_tokens" not in str(error):
                raise EngineError(f"engine.api: chat: {error}") from None
            self._wants_completion_tokens = True
            reply = await self._try(self._body(_GREETING, {"max_tokens": 16}))
        if reply.usage.prompt_tokens is None:
            told.append("the server counts no tokens: a prompt that it cuts short is not noticed")
        return "chat", tuple(told)

    async def _try_ids(self) -> None:
        """See that the server takes token ids, and makes the same of a text as the tokenizer does.

        Raises:
            Refused: It takes none.
            _OtherIds: It does something else with them.
        """
        ids = list(self.tokenizer(_PROBE, add_special_tokens=False).input_ids)
        body = self._body(ids, {"max_tokens": 1})
        try:
            reply = await self._try(body)
        except Refused as error:
            if error.status not in (400, 422):
                raise
            self._tells_ids = False  # a server may refuse what it does not know
            reply = await self._try(self._body(ids, {"max_tokens": 1}))
        counted = reply.usage.prompt_tokens
        if counted is None:
            raise _OtherIds("the server counts no tokens of a prompt, so that what it makes of ids is not known")
        if counted != len(ids):
            raise _OtherIds(f"the server counts {counted} tokens of a prompt of {len(ids)} ids")
        text = await self._try({**self._body(ids, {"max_tokens": 1}), "prompt": _PROBE})
        special = len(self.tokenizer(_PROBE, add_special_tokens=True).input_ids)
        if text.usage.prompt_tokens not in (len(ids), special):
            raise _OtherIds(
                f"the server makes {text.usage.prompt_tokens} tokens of a text of which the tokenizer makes {special}: "
                "model.tokenizer is expected to name that of the model"
            )

    async def _try(self, body: Fields) -> Reply:
        data, _ = await self._calls.post(_path(body), body, tries=3)
        return self._counted(Reply.of(data))

    def _body(self, prompt: Prompt, sampling: Fields) -> dict[str, Any]:
        body = {"model": self._name, **{name: value for name, value in sampling.items() if value is not None}}
        if not isinstance(prompt, PromptText):
            return {**body, "prompt": list(prompt), **({"return_token_ids": True} if self._tells_ids else {})}
        if not prompt.messages:
            return {**body, "prompt": prompt.text}
        if self._wants_completion_tokens:
            body["max_completion_tokens"] = body.pop("max_tokens")
        messages: list[Mapping[str, str]] = [dict(message) for message in prompt.messages]
        if prompt.template_kwargs:
            body["chat_template_kwargs"] = dict(prompt.template_kwargs)
        if prompt.prefill:  # as vLLM and SGLang take an unfinished turn
            messages.append({"role": "assistant", "content": prompt.prefill})
            body |= {"add_generation_prompt": False, "continue_final_message": True}
        return {**body, "messages": messages}

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
        """Queue a prompt."""
        if mask is not None:
            raise EngineError("an endpoint's heads cannot be masked")
        check_sampling(sampling)
        tokens = prompt.tokens if isinstance(prompt, PromptText) else len(prompt)
        work = self._asked(request, self._body(prompt, sampling), tokens, int(sampling["max_tokens"]))
        self._running[request] = self._calls.start(work)

    def drop(self, requests: Sequence[str]) -> None:
        """Hang up; a server notices that, as vLLM's does, and works on it no more."""
        for request in requests:
            if (work := self._running.pop(request, None)) is not None:
                work.cancel()

    async def _asked(self, request: str, body: Fields, tokens: int, budget: int) -> None:
        began = time.monotonic()
        await self._window.enter()
        finished = None
        try:
            finished = await self._paid(request, body, tokens, budget)
        except OutOfReach as error:
            if self._answered < began:  # nor did anybody else get an answer meanwhile
                self._done.put(error)
            finished = _failed(request, str(error))
        except EngineError as error:
            finished = _failed(request, str(error))
        except Exception as error:  # of this request alone: the others go on
            traceback.print_exc()
            finished = _failed(request, f"{type(error).__name__}: {error}")
        finally:
            self._window.leave(is_answered=finished is not None and finished.error is None)
        self._done.put(finished)

    async def _paid(self, request: str, body: Fields, tokens: int, budget: int) -> Finished:
        aside, spent = tokens + budget, 0
        await self._purse.take(aside)
        try:
            data, seconds = await self._calls.post(_path(body), body)
            self._answered = time.monotonic()
            reply = self._counted(Reply.of(data))
            spent = (reply.usage.prompt_tokens or tokens) + (reply.usage.completion_tokens or 0)
        finally:
            await self._purse.settle(aside, spent)
        counted = reply.usage.prompt_tokens
        if counted is not None and (why := self._gap(counted, tokens, is_exact=isinstance(body.get("prompt"), list))):
            raise EngineError(why)
        choice = reply.choices[0]
        return Finished(
            request,
            choice.said,
            choice.token_ids or [],
            choice.finish_reason or "",
            counted or 0,
            reply.cached_tokens,
            round(seconds, 4),
        )

    def _gap(self, counted: int, tokens: int, *, is_exact: bool) -> str:
        """Why what the server counted is not what was sent; empty where it is."""
        accepted = 0 if is_exact else self._settings.token_gap * tokens
        if not tokens or abs(counted - tokens) <= accepted:
            return ""
        told = f"the server counted {counted:,} prompt tokens where {tokens:,} were"
        if is_exact:
            return f"{told} sent: it cuts prompts short, or adds to them"
        return (
            f"{told} by the tokenizer's count ({(counted - tokens) / tokens:+.0%}): it cuts prompts short, or "
            "model.tokenizer is not its own; engine.token_gap says which share is accepted"
        )

    def _counted(self, reply: Reply) -> Reply:
        counts, price = reply.usage, self._settings.price
        tokens_in, tokens_out = counts.prompt_tokens or 0, counts.completion_tokens or 0
        cost = None if price is None else (price.input * tokens_in + price.output * tokens_out) / 1e6
        self._usage += Usage(1, tokens_in, tokens_out, cost)
        return reply

    @property
    def usage(self) -> Usage:
        """What was asked so far and counted by the server."""
        return self._usage

    def step(self) -> list[Finished]:
        """Wait a moment for answers.

        Raises:
            EngineError: The server is out of reach for good.
        """
        found: list[Finished] = []
        try:
            one = self._done.get(timeout=_PATIENCE)
            while True:
                if isinstance(one, EngineError):
                    raise one
                self._running.pop(one.id, None)
                found.append(one)
                one = self._done.get_nowait()
        except queue.Empty:
            return found


def _path(body: Fields) -> str:
    return "/chat/completions" if "messages" in body else "/completions"


def _failed(request: str, why: str) -> Finished:
    return Finished(request, "", [], "", 0, 0, 0.0, error=why)


def _length(said: object, served: Served) -> int:
    """How many tokens prompt and answer may take.

    Raises:
        EngineError: Nobody says, or the settings say more than the server takes.
    """
    limit = served.max_model_len or served.context_length
    asked = None if said in (None, -1, "auto") else _number(said)
    if asked is None and limit is None:
        raise EngineError("model.max_model_len: the server does not say how many tokens it takes; a number is expected")
    if asked is not None and limit is not None and asked > limit:
        raise EngineError(f"model.max_model_len: {asked} tokens; the server takes {limit}")
    return asked or limit or 0


def _number(said: object) -> int:
    """As vLLM reads `32k` (thousands) and `32K` (1024s)."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmMgG]?)", str(said))
    assert found is not None, "settings hold nothing else"
    units: Sequence[str] = ("", "k", "m", "g")
    base = 1024 if found[2].isupper() else 1000
    return int(float(found[1]) * base ** units.index(found[2].lower()))

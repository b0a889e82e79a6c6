"""Asking an endpoint: the `openai` client, which tries again with back-off what may go better the next time.

It tries again after 408, 409, 429, 5xx, a connection that breaks and one that is not made, waits as `Retry-After` says
and follows no redirect. It runs in a thread of its own, so that answers come in while prompts are built.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import Future
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

from retrieval_heads.engine.backends.endpoint_pace import Window
from retrieval_heads.engine.backends.endpoint_replies import message_in, no_reply
from retrieval_heads.engine.backends.endpoint_settings import EndpointSettings
from retrieval_heads.errors import EngineError
from retrieval_heads.plain import Fields

Value = TypeVar("Value")

_WITHOUT_END = 1_000_000
"""Tries: the time limit ends them."""


class Refused(EngineError):
    """The server heard the request and will not answer it.

    Args:
        status: HTTP's.
        text: Why, one sentence.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class OutOfReach(EngineError):
    """Nothing came of a request, however often it was tried."""


@dataclass
class _Try:
    """The last try of a request."""

    count: int = 0
    began: float = 0.0
    status: int | None = None
    """HTTP's, of one that was answered."""


_LAST: ContextVar[_Try] = ContextVar("last try")


class Calls:
    """Asks an endpoint.

    Args:
        settings: Where it is.
        key: What it asks for, if anything.
        window: Is told of each try that failed.
    """

    def __init__(self, settings: EndpointSettings, key: str | None, window: Window) -> None:
        # What the client would read by itself, such as an organization, is for OpenAI alone; this may be another.
        for name in [name for name in os.environ if name.startswith("OPENAI_")]:
            del os.environ[name]
        import openai

        self._settings = settings
        self._has_key = key is not None
        self._window = window
        is_here = settings.base_url.startswith("http:")
        self._client = openai.AsyncOpenAI(
            base_url=settings.base_url,
            api_key=key or "none",
            max_retries=_WITHOUT_END,
            http_client=openai.DefaultAsyncHttpxClient(
                follow_redirects=False,  # the key would go wherever a server says
                trust_env=not is_here,  # a proxy would read what does not leave this machine
                timeout=settings.timeout,
                event_hooks={"request": [self._sent], "response": [self._heard]},
            ),
            timeout=settings.timeout,
        )
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="endpoint", daemon=True).start()

    def start(self, work: Coroutine[Any, Any, None]) -> Future[None]:
        """Have something done beside everything else."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def wait(self, work: Coroutine[Any, Any, Value]) -> Value:
        """Have something done, and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def get(self, path: str) -> object:
        """What the server says at a path or address, tried three times.

        Raises:
            Refused: It says that it does not.
            OutOfReach: It is not there.
        """
        return (await self._call("GET", path, None, limit=30.0, tries=3))[0]

    async def post(self, path: str, body: Fields, *, tries: int = _WITHOUT_END) -> tuple[object, float]:
        """What the server replies to a request, and the seconds from the last try to that.

        Raises:
            Refused: It says that it does not.
            OutOfReach: No answer came in time.
            EngineError: The reply cannot be read.
        """
        return await self._call("POST", path, body, limit=self._settings.timeout, tries=tries)

    async def _call(
        self, method: str, path: str, body: Fields | None, *, limit: float, tries: int
    ) -> tuple[object, float]:
        import openai

        last = _Try()
        _LAST.set(last)
        client = self._client.with_options(max_retries=tries - 1)
        asked = client.get(path, cast_to=object) if body is None else client.post(path, cast_to=object, body=body)
        try:
            data: object = await asyncio.wait_for(asked, limit)
        except (TimeoutError, openai.APITimeoutError):
            raise self._out_of_reach(last, limit) from None
        except openai.APIConnectionError as error:
            raise OutOfReach(f"{self._settings.base_url} cannot be reached ({_reason(error)})") from None
        except openai.APIStatusError as error:
            raise self._refused(error) from None
        except ValueError:  # what says that it is JSON is none
            raise EngineError(no_reply("")) from None
        return data, time.monotonic() - last.began

    async def _sent(self, request: Any) -> None:
        if not self._has_key:  # the client would send the word that stands in its place
            request.headers.pop("Authorization", None)
        last, now = _LAST.get(), time.monotonic()
        if last.count:  # the one before failed
            self._window.shrink(last.began, now)
        last.count, last.began, last.status = last.count + 1, now, None

    async def _heard(self, response: Any) -> None:
        _LAST.get().status = response.status_code

    def _out_of_reach(self, last: _Try, limit: float) -> EngineError:
        within = f"within {limit:g} s (engine.timeout)"
        if last.status is not None and last.status >= 400:
            return OutOfReach(f"the server answered {last.status} to the last of {last.count} tries {within}")
        if last.count > 1:
            where = self._settings.base_url
            return OutOfReach(f"the connection to {where} broke or was not made, {last.count} tries {within}")
        return EngineError(f"the server gave no answer {within}")

    def _refused(self, error: Any) -> Refused:
        status, said = error.status_code, message_in(error.body or error.response.text)
        variable = self._settings.api_key_env
        where = f"({status}{f': {said}' if said else ''})"
        if 300 <= status < 400:
            other = urlsplit(error.response.headers.get("location", "")).hostname or "another path"
            return Refused(status, f"the server redirects ({status}) to {other}, which is not followed")
        if status in (401, 403) and variable is None:
            return Refused(status, f"the server wants a key {where}; engine.api_key_env names the variable with it")
        if status in (401, 403):
            return Refused(status, f"the server refuses the key of {variable} {where}")
        if status == 404:
            return Refused(status, f"the server knows no such model or path {where}")
        return Refused(status, f"the server refuses the request {where}")


def _reason(error: BaseException) -> str:
    """The innermost cause that says something."""
    told = str(error)
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
        told = str(error) or told
    return message_in(told)

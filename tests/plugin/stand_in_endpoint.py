"""A server in the place of a model's, for what goes wrong on the way to one: it proves nothing about models.

It answers with the needle when it finds its tokens in the prompt. The backend that asks it is the real one, but for its
tokenizer, which needs no library here.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from stand_in_engine import FERRY

from retrieval_heads.engine.backends.endpoint import Endpoint
from retrieval_heads.plain import Fields
from toy_tokenizer import WordTokenizer

REFERENCE = "stand_in_endpoint:ToyEndpoint"


class ToyEndpoint(Endpoint):
    """An endpoint whose prompts the toy tokenizer measures."""

    @classmethod
    def check_installed(cls, *, traced: bool) -> None:
        """Nothing but the client is needed."""

    @classmethod
    def check_model(cls, model: Fields) -> bool:
        """There is always this one."""
        return False

    def load_tokenizer(self, model: Fields) -> WordTokenizer:
        """The toy."""
        tokenizer = WordTokenizer()
        tokenizer.bos_token_id = None  # type: ignore[assignment]  # as of a model that takes no start token
        return tokenizer


class Server:
    """Listens on this machine until it is closed; `with` closes it.

    Args:
        fault: By the number of a cell's request, from 1, what goes wrong with it: an HTTP status, `html`, `half` (of a
            reply), `break` (the connection), `late`, `words` (JSON that is no reply), `redirect`; `None` for nothing.
        key: What it asks for.
        takes_ids: Whether it takes token ids.
        longest: Tokens of a prompt; the rest is cut off in silence.
        model: What it serves.
        length: What it says that prompt and answer may take.
        redirected: Whether it redirects to another host.
        page: Whether it answers with a page.
        counts: Whether it counts tokens.
        says: What its errors say.
        seconds: How long an answer takes.
        port: Where, if anywhere in particular.
    """

    def __init__(
        self,
        *,
        fault: Callable[[int], object] = lambda _: None,
        key: str | None = None,
        takes_ids: bool = True,
        longest: int = 1 << 30,
        model: str = "toy",
        length: int | None = 4096,
        redirected: bool = False,
        page: bool = False,
        counts: bool = True,
        says: str = "",
        seconds: float = 0,
        port: int = 0,
    ) -> None:
        self.fault, self.key, self.takes_ids, self.longest = fault, key, takes_ids, longest
        self.model, self.length, self.redirected, self.page, self.counts = model, length, redirected, page, counts
        self.says, self.seconds = says, seconds
        self.asked: list[Any] = []
        """The bodies of the cells' requests."""
        self.seen: list[dict[str, str]] = []
        """The headers of every request, their names in small letters."""
        self.busy = self.busiest = 0
        self.lock = threading.Lock()
        tokenizer = WordTokenizer()
        self.needle = tokenizer.encode(FERRY)[:-1]  # a line end may stick to its full stop
        self.tokens = tokenizer
        self._http = ThreadingHTTPServer(("127.0.0.1", port), _handler(self))
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, args=[0.02], daemon=True).start()

    @property
    def port(self) -> int:
        return int(self._http.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def close(self) -> None:
        """Listen no more."""
        self._http.shutdown()
        self._http.server_close()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def answer(self, ids: Sequence[int], body: Any) -> dict[str, Any]:
        """The reply to a prompt."""
        ids = ids[: self.longest]
        size = len(self.needle)
        is_there = any(ids[at : at + size] == self.needle for at in range(len(ids)))
        said = FERRY if is_there else "I do not know."
        usage = {"prompt_tokens": len(ids), "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 3}}
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
        choice |= {"message": {"role": "assistant", "content": said}} if "messages" in body else {"text": said}
        if body.get("return_token_ids"):
            choice["token_ids"] = self.tokens.encode(said)
        return {"choices": [choice], **({"usage": usage} if self.counts else {})}


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            if not self._is_let_in():
                return
            if self.path == "/version":
                self._json(200, {"version": "1.2"})
                return
            one = {"id": server.model, "owned_by": "toys", "max_model_len": server.length}
            self._json(200, {"object": "list", "data": [one, {"id": "other"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if not self._is_let_in():
                return
            ids = body.get("prompt")
            if "messages" in body:
                text = "".join(f"<|user|>{one['content']}<|end|>\n" for one in body["messages"]) + "<|assistant|>"
                ids = list(server.tokens(text).input_ids)
            elif isinstance(ids, str):
                ids = list(server.tokens(ids).input_ids)
            elif not server.takes_ids:
                self._json(400, {"error": {"message": "a prompt is a text"}})
                return
            if body["max_tokens"] == 1:  # the start's
                self._json(200, server.answer(ids, body))
                return
            with server.lock:
                server.asked.append(body)
                number = len(server.asked)
                server.busy += 1
                server.busiest = max(server.busy, server.busiest)
            try:
                time.sleep(server.seconds)
                self._go_wrong(server.fault(number), server.answer(ids, body))
            finally:
                with server.lock:
                    server.busy -= 1

        def _is_let_in(self) -> bool:
            server.seen.append({name.lower(): value for name, value in self.headers.items()})
            if server.redirected:
                self.send_response(307)
                self.send_header("Location", "http://elsewhere.example/v1/models")
                self.send_header("Content-Length", "0")
                self.end_headers()
            elif server.page:
                self._send(200, "text/html", b"<!doctype html><html><title>Sign in</title></html>")
            elif server.key is not None and self.headers.get("Authorization") != f"Bearer {server.key}":
                self._json(401, {"error": {"message": f"Incorrect API key provided: {self.headers['Authorization']}"}})
            else:
                return True
            return False

        def _go_wrong(self, fault: object, reply: Any) -> None:
            content = json.dumps(reply).encode()
            if fault is None:
                self._send(200, "application/json", content)
            elif isinstance(fault, int):
                self._json(fault, {"error": {"message": server.says or f"this is a {fault}"}})
            elif fault == "html":
                self._send(200, "text/html", b"<html><body>Gateway</body></html>")
            elif fault == "words":
                self._json(200, {"choices": []})
            elif fault == "half":
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2])
                self.close_connection = True
            elif fault == "break":
                self.close_connection = True
            elif fault == "late":
                time.sleep(3)
                self._send(200, "application/json", content)

        def _json(self, status: int, data: object) -> None:
            self._send(status, "application/json", json.dumps(data).encode())

        def _send(self, status: int, kind: str, content: bytes) -> None:
            try:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
            except OSError:  # who asked did not wait
                self.close_connection = True

    return Handler

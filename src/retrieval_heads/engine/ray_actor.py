"""What runs on a node of a Ray cluster for each replica: it launches the engine's process there, and relays.

The actor itself loads no model: its engine is a process like that of one host, told by its standard input, with the
same log, limits and end. When the actor ends, however, the engine does.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from retrieval_heads.engine.client import EngineClient, EngineDied, EngineProcess
from retrieval_heads.engine.messages import Devices, Hello, Message
from retrieval_heads.errors import EngineError
from retrieval_heads.plain import JsonObject
from retrieval_heads.redaction import keep_secret

_MOST = 1 << 20
"""Bytes of a log that are told at once."""


class EngineActor:
    """One replica on its node."""

    def __init__(self) -> None:
        self._process = EngineProcess()
        self._clients: dict[str, EngineClient] = {}
        self._token = ""

    def place(self) -> str:
        """Where it was placed, for users."""
        import ray

        gpus = ",".join(ray.get_runtime_context().get_accelerator_ids().get("GPU", ()))
        return f"node {ray.util.get_node_ip_address()}" + (f", GPU {gpus}" if gpus else "")

    def launch(self, token: str, told: JsonObject, name: str, folder: str, environment: dict[str, str]) -> Message:
        """Start the engine and wait until its model is loaded: its `info`, or an `error`.

        Args:
            token: Names the replica that it is from now on.
            told: What to load.
            name: The replica's.
            folder: Where it runs: relative paths are those of whoever asks.
            environment: Variables that it gets.
        """
        if self._process.is_launched:  # this node was out of reach for a while, and counts as lost
            self._process.end()
            self._process, self._clients = EngineProcess(), {}
        self._token = token
        keep_secret(told)
        hello = Hello.of_json(told)
        self._process.name = name
        try:
            os.chdir(folder)
        except OSError as error:
            return {"error": f"{name} did not start: {folder} is not there on {self.place()} ({error.strerror})"}
        log, environment = self._process.own_log, {**environment, "RAY_ADDRESS": _head()}
        try:
            self._process.launch(replace(hello, place=Devices(self.place(), environment)), log)
            return {"info": dict(self._process.wait_ready())}
        except EngineError as error:
            return {"error": str(error).replace(str(log), hello.log)}

    def call(self, token: str, client: str, run: str, message: Message) -> Message | None:
        """Ask the engine, and relay what it replies; nothing where it is not that replica's any more.

        Args:
            token: Names the replica.
            client: Names who asks: each has connections of its own, which end with `hang_up`.
            run: The run that it belongs to.
            message: See `retrieval_heads.engine.server.Server`; of `begin` the earlier results themselves.
        """
        if token != self._token:
            return None
        if earlier := message.pop("results", None):
            file = self._process.own_log.with_name(f"earlier-{client}.jsonl")
            file.write_text("\n".join(earlier), encoding="utf-8")
            message["earlier"] = str(file)
        if client not in self._clients:
            self._clients[client] = EngineClient(replace(self._process.address, run=run))
        try:
            reply = self._clients[client].exchanged(message)
        except EngineDied as error:
            reply = {"error": str(error), "is_fatal": True}
        if reply.get("is_fatal"):
            reply["error"] = self._process.obituary(patience=2) or f"failed: {reply['error']}"
        return reply

    def hang_up(self, client: str) -> None:
        """Close the connections of one who asked."""
        if (gone := self._clients.pop(client, None)) is not None:
            gone.close()

    def printed(self, token: str, after: int) -> bytes:
        """What the replica's engine printed beyond so many bytes, without secrets."""
        if token != self._token:
            return b""
        try:
            with Path(self._process.own_log).open("rb") as log:
                log.seek(after)
                return log.read(_MOST)
        except FileNotFoundError:
            return b""


def _head() -> str:
    """The cluster's address, for vLLM's own Ray executor."""
    import ray

    return str(ray.get_runtime_context().gcs_address)

"""What crosses the engine's socket: length-prefixed JSON, nothing unpickled.

A client opens with `{"key": ..., "run": ...}`. Each further message is `{"do": NAME, ...}` and gets one reply, which
holds `error` where the engine refused. See `retrieval_heads.engine.server.Server` for what can be done.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from retrieval_heads.plain import Fields, Plain

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Devices(Plain):
    """Where a replica computes.

    Args:
        name: For users, such as `GPU 0`.
        environment: Variables that keep it there.
        cores: Numbers of the processor cores that it keeps to; empty for all.
    """

    name: str
    environment: Mapping[str, str] = field(default_factory=dict)
    cores: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class EngineSetting(Plain):
    """One engine of a matrix: what differs from the others.

    Args:
        name: The setting's.
        model: See `Hello`, as the six below.
        suites: Names of the suites that are asked under it.
        refusal: Why it is not loaded; empty where it is.
    """

    name: str
    model: Fields
    suites: tuple[str, ...]
    backend: str = ""
    options: Fields = field(default_factory=dict)
    replicas: int | str = 1
    silence: float | None = None
    start_limit: float | None = None
    offline: bool = False
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class Hello(Plain):
    """What an engine process is told on its standard input, one line of JSON.

    Args:
        model: The `model` section of the settings.
        traced: Whether heads are scored or masked.
        backend: Where the backend's class stands, `module:Class`; vLLM's where it is empty.
        options: What the `engine` section says to the backend alone.
        haystacks: The sources that cells will name.
        is_resumed: Whether an earlier run is gone on with, whose logs stay.
        replicas: How many engines, or `auto`.
        silence: Seconds without a sign of life after which it is ended; `None` waits for ever.
        start_limit: Seconds that it may take to load; `None` waits for ever.
        offline: Whether the hub is left alone.
        sleep_after: Seconds without a run after which a warm engine gives its GPU's memory back; `None`: it is none.
        run: Tells this run's unknown models from another's.
        socket: Where it listens.
        key: What a client must show.
        pulse: The file that it touches at every sign of life.
        log: Where what it prints goes.
        place: Where a replica computes.
        settings: Engines that take turns, in their order; empty where there is the one.
    """

    model: Fields
    traced: bool = False
    backend: str = ""
    options: Fields = field(default_factory=dict)
    haystacks: tuple[str, ...] = ()
    is_resumed: bool = False
    replicas: int | str = 1
    silence: float | None = None
    start_limit: float | None = None
    offline: bool = False
    sleep_after: float | None = None
    run: str = ""
    socket: str = ""
    key: str = ""
    pulse: str = ""
    log: str = ""
    place: Devices | None = None
    settings: tuple[EngineSetting, ...] = ()


_LENGTH = struct.Struct(">Q")
_LONGEST = 1 << 32  # a length beyond this is not ours: something else speaks on the socket
OPENING = 1 << 10
"""Bytes of a client's first message: nothing longer is read of one that has not shown the key."""


def send(connection: socket.socket, message: Message) -> None:
    """Send one message.

    Raises:
        OSError: The other side is gone.
    """
    data = json.dumps(message, ensure_ascii=False).encode()
    connection.sendall(_LENGTH.pack(len(data)) + data)


def receive(connection: socket.socket, longest: int = _LONGEST) -> Message | None:
    """Receive one message; `None` when the other side has closed.

    Args:
        connection: Where from.
        longest: A message of more bytes is refused, unread.

    Raises:
        OSError: The connection broke, or what came is no message.
    """
    head = _read(connection, _LENGTH.size)
    if head is None:
        return None
    (length,) = _LENGTH.unpack(head)
    data = _read(connection, length) if length <= longest else None
    if data is None:
        raise ConnectionError("the message was cut short")
    try:
        message = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ConnectionError(f"the message is no JSON ({error})") from None
    if not isinstance(message, dict):
        raise ConnectionError(f"expected an object, received {type(message).__name__}")
    return message


def _read(connection: socket.socket, length: int) -> bytes | None:
    chunks = bytearray()
    while len(chunks) < length:
        chunk = connection.recv(min(length - len(chunks), 1 << 20))
        if not chunk:
            return None
        chunks += chunk
    return bytes(chunks)

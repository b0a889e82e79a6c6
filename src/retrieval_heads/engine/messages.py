"""What crosses the engine's socket: length-prefixed JSON, nothing unpickled.

A client opens with `{"key": ...}`. Each further message is `{"do": NAME, ...}` and gets one reply, which holds
`error` where the engine refused. See `retrieval_heads.engine.server.Server` for what can be done.
"""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

Message = dict[str, Any]

_LENGTH = struct.Struct(">Q")
_LONGEST = 1 << 32  # a length beyond this is not ours: something else speaks on the socket


def send(connection: socket.socket, message: Message) -> None:
    """Send one message.

    Raises:
        OSError: The other side is gone.
    """
    data = json.dumps(message, ensure_ascii=False).encode()
    connection.sendall(_LENGTH.pack(len(data)) + data)


def receive(connection: socket.socket) -> Message | None:
    """Receive one message; `None` when the other side has closed.

    Raises:
        OSError: The connection broke, or what came is no message.
    """
    head = _read(connection, _LENGTH.size)
    if head is None:
        return None
    (length,) = _LENGTH.unpack(head)
    data = _read(connection, length) if length <= _LONGEST else None
    if data is None:
        raise ConnectionError("the message was cut short")
    message = json.loads(data)
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

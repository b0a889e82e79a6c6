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

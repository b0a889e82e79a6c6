"""The engine's socket: nothing is read or kept of a client that has not shown the key."""

from __future__ import annotations

import json
import socket
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from retrieval_heads.engine.jobs import FreeQuestion
from retrieval_heads.engine.messages import OPENING, Devices, Hello, receive, send
from retrieval_heads.engine.server import Server


@pytest.fixture
def path() -> Iterator[str]:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        found = str(Path(folder) / "engine.sock")
        Server("key").listen(found)
        yield found


def connected(path: str) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.settimeout(30)
    made.connect(path)
    return made


def is_hung_up(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


@pytest.mark.parametrize("length", [OPENING + 1, 800 << 20, 1 << 40])
def test_a_long_first_frame_is_refused_unread(path: str, length: int) -> None:
    with connected(path) as connection:
        connection.sendall(struct.pack(">Q", length))
        assert is_hung_up(connection)


@pytest.mark.parametrize(
    "first", [{"key": "another"}, {}, {"key": None}, {"key": ["key"]}, {"do": "counters"}, {"key": "schlüssel"}]
)
def test_who_does_not_know_the_key_is_hung_up_on(path: str, first: dict[str, object]) -> None:
    with connected(path) as connection:
        send(connection, first)
        assert is_hung_up(connection)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 900])
def test_a_malformed_frame_ends_its_connection_alone(path: str, content: bytes) -> None:
    with connected(path) as connection:
        connection.sendall(struct.pack(">Q", len(content)) + content)
        assert is_hung_up(connection)
    with connected(path) as connection:
        send(connection, {"key": "key"})
        send(connection, {"do": "counters"})
        assert (receive(connection) or {})["submitted"] == 0


def test_who_knows_it_may_send_long_messages(path: str) -> None:
    with connected(path) as connection:
        send(connection, {"key": "key"})
        send(connection, {"do": "nothing", "more": "x" * 100_000})
        assert json.dumps(receive(connection)) == json.dumps({"error": "the engine cannot do 'nothing'"})


def test_what_crosses_to_the_engine_comes_back_the_same() -> None:
    place = Devices("GPU 1", {"CUDA_VISIBLE_DEVICES": "1"}, [2, 3])
    hello = Hello({"model": "toy"}, traced=True, options={"url": "http://a"}, haystacks=["tales"], place=place)
    assert Hello.of_json(json.loads(json.dumps(hello.to_json()))) == hello
    asked = FreeQuestion([{"role": "user", "content": "When?"}], {"max_tokens": 5}, chat=False, mask={"mode": "zero"})
    assert FreeQuestion.of_json(json.loads(json.dumps(asked.to_json()))) == asked

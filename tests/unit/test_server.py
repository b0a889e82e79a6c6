"""The engine's socket: nothing is read or kept of a client that has not shown the key."""

from __future__ import annotations

import json
import socket
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy
import pytest

from retrieval_heads.engine.jobs import FreeQuestion
from retrieval_heads.engine.messages import OPENING, Devices, Hello, receive, send
from retrieval_heads.engine.packed import PackedHeads
from retrieval_heads.engine.results import Answered, Unanswered, result_of_json
from retrieval_heads.engine.server import Server
from retrieval_heads.runs.answer import Answer
from retrieval_heads.runs.facts import Expectation, PromptFacts
from retrieval_heads.runs.mask import Mask
from retrieval_heads.runs.record import AnsweredBy, Insertion, Recipe, Replay


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
    place = Devices("GPU 1", {"CUDA_VISIBLE_DEVICES": "1"}, (2, 3))
    hello = Hello({"model": "toy"}, traced=True, options={"url": "http://a"}, haystacks=("tales",), place=place)
    assert Hello.of_json(json.loads(json.dumps(hello.to_json()))) == hello
    mask = Mask("mean", ((1, 2), (3, 0)), "hash")
    asked = FreeQuestion(({"role": "user", "content": "When?"},), {"max_tokens": 5}, chat=False, mask=mask)
    assert FreeQuestion.of_json(json.loads(json.dumps(asked.to_json()))) == asked


def test_what_comes_back_is_what_was_found() -> None:
    recipe = Recipe(
        wording=[{"role": "user", "content": "{context}"}], template_hash="t", prompt_hash="p", options={"a": 1}
    )
    insertion = Insertion(
        role="asked", text="It is 7.", counted="7", depth=50, achieved_depth=49.5, place=3, span=(4, 5)
    )
    heads = PackedHeads.of({"copy": numpy.array([[0.1, 1 / 3, 9.0], [0.5, 0.25, 1e-9]])}, [2, 0, 3])
    found = Answered(
        Answer("seven", [1, 2], "stop", 9, 0, 0.25),
        PromptFacts(9, recipe, (4, 5), (6, 8), 49.5, ("a", "b"), (insertion,)),
        Expectation("How many?", "7", expected=("7",)),
        "hash",
        AnsweredBy(model="m", engine="e"),
        Mask("mean", ((1, 2),), "text"),
        heads,
        Replay(cached_tokens=1, computed_tokens=2, seconds=0.5),
    )
    assert result_of_json(json.loads(json.dumps(found.to_json()))) == found
    assert found.head_scores == {"copy": [[0.1, 1 / 3], [], [0.5, 0.25, 1e-9]]}
    stored = replace(found, heads=found.head_scores)
    assert result_of_json(json.loads(json.dumps(stored.to_json()))) == stored
    for status in ("skipped", "error"):
        assert result_of_json(json.loads(json.dumps(Unanswered(status, "why").to_json()))) == Unanswered(status, "why")

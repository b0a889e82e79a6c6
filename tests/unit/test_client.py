"""A client of the engine process: whose reply is whose. The server is the real one, the engine an echo."""

from __future__ import annotations

import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from retrieval_heads.engine import client as client_module
from retrieval_heads.engine.client import Address, EngineClient
from retrieval_heads.engine.jobs import FreeQuestion
from retrieval_heads.engine.messages import Message, receive
from retrieval_heads.engine.results import Answered
from retrieval_heads.engine.server import Server
from retrieval_heads.errors import EngineError
from retrieval_heads.runs.answer import Answer


def echo(server: Server) -> None:
    """Answer every prompt with itself; never a cell."""
    while True:
        key = server.waiting.get()
        asked = server.jobs[key].ask
        assert isinstance(asked, FreeQuestion)
        said = asked.prompt
        server.finish(key, Answered(Answer(str(said), [], "stop", 1, 0, 0.0)))


@pytest.fixture
def address() -> Iterator[Address]:
    """Where an echo listens."""
    with tempfile.TemporaryDirectory(prefix="rh-") as folder:
        server = Server("key")
        server.listen(f"{folder}/engine.sock")
        threading.Thread(target=echo, args=[server], daemon=True).start()
        yield Address(f"{folder}/engine.sock", "key")


def wrong(client: EngineClient, thread: int) -> list[str]:
    """The questions of a thread that got another's answer."""
    asked = [f"thread {thread}, question {number}" for number in range(50)]
    return [question for question in asked if client.ask(question).text != question]


def test_every_thread_gets_its_own_answers(address: Address) -> None:
    client = EngineClient(address)
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(wrong, [client] * 16, range(16)))
    assert [question for thread in found for question in thread] == []


def test_threads_do_not_wait_for_each_other(address: Address) -> None:
    client = EngineClient(address)
    blocked = threading.Thread(target=lambda: client.finished(after=10), daemon=True)  # no cell will ever be answered
    blocked.start()
    assert client.ask("meanwhile").text == "meanwhile"
    assert blocked.is_alive()


def test_a_forked_process_asks_on_connections_of_its_own(address: Address) -> None:
    client = EngineClient(address)
    assert client.ask("before").text == "before"
    child = os.fork()
    if child == 0:
        os._exit(len(wrong(client, 1)))
    mine = wrong(client, 0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert mine == []
    client.close()


def test_an_interrupt_in_the_middle_of_a_reply_spoils_no_later_one(
    address: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(connection: socket.socket) -> Message | None:
        connection.recv(3)  # of eight bytes that say how long the reply is
        raise KeyboardInterrupt

    client = EngineClient(address)
    assert client.ask("before").text == "before"
    monkeypatch.setattr(client_module, "receive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        client.ask("interrupted")
    monkeypatch.setattr(client_module, "receive", receive)
    assert client.ask("after").text == "after"


def test_a_question_that_cannot_be_sent_spoils_no_later_one(address: Address) -> None:
    client: Any = EngineClient(address)
    with pytest.raises(TypeError):
        client.ask({"a set"})
    assert client.ask("after").text == "after"


def test_a_question_that_the_server_stumbles_over_is_an_error_of_that_question_alone(address: Address) -> None:
    client = EngineClient(address)
    with pytest.raises(EngineError, match="KeyError") as raised:
        client.call({"do": "result"})  # of no cell
    assert raised.type is EngineError, "and not that the engine died"
    assert client.ask("after").text == "after"


def test_what_was_hung_up_can_be_asked_again(address: Address) -> None:
    client = EngineClient(address)
    assert client.ask("before").text == "before"
    client.close()
    assert client.ask("after").text == "after"
    assert Path(address.path).exists()

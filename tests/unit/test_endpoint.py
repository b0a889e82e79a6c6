"""How much is asked of an endpoint at once and in all, and what of its settings and replies is refused."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from retrieval_heads import redaction
from retrieval_heads.engine.backends.endpoint_pace import Purse, Window
from retrieval_heads.engine.backends.endpoint_replies import Reply
from retrieval_heads.engine.backends.endpoint_settings import Budget, EndpointSettings, check_model_keys, check_sampling
from retrieval_heads.errors import EngineError

HERE = "http://127.0.0.1:8000/v1"


def test_a_window_grows_with_answers_and_is_halved_once_for_one_trouble() -> None:
    async def go() -> list[float]:
        window, sizes = Window(64), []
        for _ in range(4):
            await window.enter()
            window.leave(is_answered=True)
        sizes.append(window.size)
        for sent in (1.0, 1.5, 2.0):  # all were sent before anybody knew
            window.shrink(sent, now=3.0)
        sizes.append(window.size)
        window.shrink(4.0, now=5.0)
        sizes.append(window.size)
        await window.enter()
        window.leave(is_answered=True)
        return [*sizes, window.size]

    assert asyncio.run(go()) == [20.0, 10.0, 5.0, 5.2]


def test_who_waits_for_a_place_gets_it_in_order_and_may_let_go() -> None:
    async def go() -> list[str]:
        window, came = Window(1), []

        async def ask(name: str) -> None:
            await window.enter()
            came.append(name)
            await asyncio.sleep(0)
            window.leave(is_answered=True)

        tasks = [asyncio.create_task(ask(name)) for name in "abcd"]
        await asyncio.sleep(0)
        tasks[1].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return came

    assert asyncio.run(go()) == ["a", "c", "d"]


def test_what_is_set_aside_and_not_spent_can_be_spent_again() -> None:
    async def go() -> str:
        purse = Purse(Budget(tokens=100))
        await purse.take(60)
        second = asyncio.create_task(purse.take(60))
        await asyncio.sleep(0)
        assert not second.done(), "it waits for what the first may leave"
        await purse.settle(60, 40)
        await second
        await purse.settle(60, 60)
        with pytest.raises(EngineError) as refused:
            await purse.take(1)
        return str(refused.value)

    assert asyncio.run(go()) == "not asked: it may take 1 tokens, and 0 of 100 are left (engine.budget.tokens)"


@pytest.mark.parametrize(
    "url", [HERE, "http://localhost:1/v1", "http://[::1]:1/v1", "https://api.example.com/v1/", "http://a.localhost/v1"]
)
def test_addresses_that_are_accepted(url: str) -> None:
    assert EndpointSettings.of({"base_url": url}).base_url == url.rstrip("/")


@pytest.mark.parametrize(
    "url",
    [
        "http://10.0.0.1/v1",
        "http://127.0.0.1.example.com/v1",
        "ftp://127.0.0.1/v1",
        "https://me@api.example.com/v1",
        "https://api.example.com/v1?key=1",
        "https://api.example.com:port/v1",
        "https://[::1/v1",
        "https:///v1",
        "https://api.example.com/v1\n",
        "",
    ],
)
def test_addresses_that_are_refused(url: str) -> None:
    with pytest.raises(EngineError, match=r"^engine\.base_url: "):
        EndpointSettings.of({"base_url": url})


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (
            {"model": "m", "dtype": "float32"},
            "model.dtype: the model is loaded by its server, which is not told that; *",
        ),
        ({"model": "m", "tokeniser": "t"}, "model.tokeniser: *; did you mean 'tokenizer'[?]"),
        (
            {"model": "m", "chat_template": "{{ x }}"},
            "model.chat_template: chat completions are rendered by the server *",
        ),
    ],
)
def test_what_a_served_model_is_not_told(model: dict[str, Any], said: str) -> None:
    with pytest.raises(EngineError) as refused:
        check_model_keys(model, EndpointSettings.of({"base_url": HERE}))
    pytest.LineMatcher([str(refused.value)]).fnmatch_lines([said])


def test_a_template_of_ones_own_goes_with_token_ids() -> None:
    check_model_keys({"chat_template": "{{ x }}"}, EndpointSettings.of({"base_url": HERE, "api": "completions"}))


def test_what_makes_the_request_is_no_sampling_parameter() -> None:
    check_sampling(["temperature", "top_k"])
    with pytest.raises(EngineError, match=r"^generation\.n: an endpoint is not asked with it"):
        check_sampling(["temperature", "n"])


def test_thoughts_that_a_server_tells_apart_stand_before_the_answer() -> None:
    message = {"role": "assistant", "content": "At dawn.", "reasoning_content": "When?"}
    assert Reply.of({"choices": [{"message": message}]}).choices[0].said == "<think>When?</think>At dawn."


@pytest.mark.parametrize("data", ["", "<html>", {}, {"choices": []}, {"choices": [{"text": 3}]}, [], None, 7])
def test_what_is_no_reply_is_told(data: object) -> None:
    with pytest.raises(EngineError, match="the server"):
        Reply.of(data)


def test_a_key_in_the_place_of_its_variables_name_is_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_told", set())
    engine = {"api_key_env": "sk-Swordfish"}
    redaction.keep_secret({"engine": engine})
    assert redaction.without_secrets(engine) == {}
    assert redaction.without_secrets("key sk-Swordfish here") == "key *** here"
    assert redaction.without_secrets({"api_key_env": "MY_API_KEY"}) == {"api_key_env": "MY_API_KEY"}

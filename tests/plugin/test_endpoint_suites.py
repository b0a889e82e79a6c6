"""A suite asked of an endpoint: what is sent, what is counted, and what becomes of a server that misbehaves."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from project import Project
from stand_in_endpoint import Server

from retrieval_heads import redaction
from retrieval_heads.runs.folder import read_facts

KEY = "sk-SwordfishSwordfish"
VARIABLE = "TOY_API_KEY"


def asks(project: Project, server: Server | str, **engine: Any) -> None:
    """Have the project's config name a server."""
    url = server if isinstance(server, str) else server.url
    project.write("config.yaml", {"engine": {"kind": "openai", "base_url": url, "model": "toy", **engine}})


def test_token_ids_are_sent_where_the_server_takes_them(project: Project, workers: list[str]) -> None:
    project.suite(gates=["mean(pass_rate) >= 1"])
    with Server() as server:
        asks(project, server, price={"input": 1000, "output": 2000})
        result = project.run(*workers)
    result.assert_outcomes(passed=7)
    result.stdout.fnmatch_lines(
        [
            "rh: toy is ready in * (as served on http://127.0.0.1:*/v1, openai completions, toys 1.2)",
            "endpoint: 8 requests, * tokens in, 56 out; at engine.price *",
        ]
    )
    assert {len(body["prompt"]) for body in server.asked} == {128, 256}
    records = project.records()
    assert all(record.needle_span and record.token_ids and record.server_prompt_tokens is None for record in records)
    facts = project.facts()
    usage = facts["usage"]
    assert usage["tokens_in"] > 3 * (128 + 256)
    assert usage["cost"] == pytest.approx((usage["tokens_in"] + 2 * usage["tokens_out"]) / 1000)
    (engine,) = facts["identities"]["engines"].values()
    (model,) = facts["identities"]["models"].values()
    assert engine["fields"] == {
        "version": "openai completions, toys 1.2",
        "device": server.url,
        "base_url": server.url,
    }
    assert model["fields"]["served"] == "toy"


def test_else_messages_are_sent_and_both_counts_are_stored(project: Project) -> None:
    project.suite()
    with Server(takes_ids=False) as server:
        asks(project, server)
        result = project.run()
    result.assert_outcomes(passed=6)
    result.stdout.fnmatch_lines(["rh: toy is ready in * openai chat, toys 1.2)"])
    assert all(body["messages"][-1]["role"] == "user" for body in server.asked)
    for record in project.records():
        assert record.prompt_tokens == record.context_length
        assert record.server_prompt_tokens == pytest.approx(record.context_length, abs=3)
        assert record.needle_span is None


def test_a_gap_between_the_counts_is_told(project: Project) -> None:
    project.suite()
    with Server(takes_ids=False, longest=250) as server:
        asks(project, server)
        result = project.run()
    result.assert_outcomes(passed=6)
    result.stdout.fnmatch_lines(
        ["prompt tokens of * of 6 cells as the server counts them: -2.3% to * beside the tokenizer's count"]
    )


@pytest.mark.parametrize("takes_ids", [True, False])
def test_a_prompt_that_is_cut_in_silence_is_an_error(project: Project, takes_ids: bool) -> None:
    project.suite()
    with Server(takes_ids=takes_ids, longest=200) as server:
        asks(project, server)
        result = project.run()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert project.facts()["cells"] == {"pass": 3, "low": 0, "skipped": 0, "error": 3}
    said = {record.reason for record in project.records() if record.status == "error"}
    (reason,) = said
    assert reason.startswith("the server counted 200 prompt tokens where 256 were")
    assert "cuts prompts short" in reason


FAULTS: list[tuple[object, str]] = [
    ("html", "the server answered with a page of HTML ('<html><body>Gateway</body></html>'); engine.base_url is *"),
    ("words", "the server's reply is not OpenAI's (choices: *)"),
    (400, "the server refuses the request (400: this is a 400)"),
    (404, "the server knows no such model or path (404: this is a 404)"),
    ("late", "the server gave no answer within 1.5 s (engine.timeout)"),
]


@pytest.mark.parametrize(("fault", "said"), FAULTS, ids=[str(fault) for fault, _ in FAULTS])
def test_what_cannot_go_better_is_an_error_of_its_cell(project: Project, fault: object, said: str) -> None:
    project.suite()
    with Server(fault=lambda number: fault if number == 2 else None) as server:
        asks(project, server, timeout=1.5, concurrency=1)
        result = project.run()
        assert len(server.asked) == 6
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    records = project.records()
    (broken,) = [record for record in records if record.status == "error"]
    assert len(records) == 6
    pytest.LineMatcher([broken.reason]).fnmatch_lines([said])


@pytest.mark.parametrize("fault", [429, 500, 503, "half", "break"])
def test_what_may_go_better_is_tried_again(project: Project, fault: object) -> None:
    project.suite()
    with Server(fault=lambda number: fault if number in (1, 4) else None) as server:
        asks(project, server)
        project.run().assert_outcomes(passed=6)
    assert len(server.asked) == 8
    assert len({json.dumps(body) for body in server.asked}) == 6


def test_a_reply_that_breaks_off_again_and_again_is_one_sentence(project: Project) -> None:
    project.suite()
    with Server(fault=lambda number: "half" if number > 5 else None) as server:
        asks(project, server, timeout=2, concurrency=1)
        result = project.run()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    (broken,) = [record for record in project.records() if record.status == "error"]
    pytest.LineMatcher([broken.reason]).fnmatch_lines(
        ["the connection to http://127.0.0.1:*/v1 broke or was not made, * tries within 2 s (engine.timeout)"]
    )


def test_fewer_are_asked_at_once_of_a_server_that_has_too_much(project: Project) -> None:
    project.suite(sweep={"context_lengths": [128], "document_depths": list(range(0, 100, 5))})
    server = Server(seconds=0.1)
    server.fault = lambda number: 429 if server.busy > 4 else None  # type: ignore[assignment]
    with server:
        asks(project, server)
        project.run().assert_outcomes(passed=20)
    assert server.busiest > 4
    assert 20 < len(server.asked) < 60, "it is not asked again and again by all at once"
    assert len(project.records()) == 20


def test_a_server_that_is_gone_ends_the_run_and_a_later_one_goes_on(project: Project) -> None:
    project.suite()
    with Server(fault=lambda number: 503 if number > 2 else None) as server:
        asks(project, server, timeout=2, concurrency=1)
        result = project.run()
        port = server.port
    result.stdout.fnmatch_lines(["*the server answered 503 to the last of * tries within 2 s (engine.timeout)*"])
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    answered = [record for record in project.records() if record.status == "pass"]
    assert len(answered) == 2
    with Server(port=port) as server:
        asks(project, server)
        again = project.run("--rh-resume")
        again.assert_outcomes(passed=6)
        assert len(server.asked) == 4
    again.stdout.fnmatch_lines(["2 of 6 answers are those of the earlier run"])


@pytest.mark.parametrize(
    ("budget", "asked", "said"),
    [
        ({"requests": 4}, 4, "not asked: 4 requests are made (engine.budget.requests)"),
        ({"tokens": 500}, 3, "not asked: it may take * tokens, and * of 500 are left (engine.budget.tokens)"),
    ],
)
def test_a_budget_is_kept(project: Project, budget: dict[str, int], asked: int, said: str) -> None:
    project.suite()
    with Server() as server:
        asks(project, server, budget=budget)
        result = project.run()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert len(server.asked) == asked
    result.stdout.fnmatch_lines([f"*{said}"])
    assert project.facts()["cells"]["pass"] == asked


STARTS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"model": "toys"}, {}, "engine.model: the server has no model 'toy'; it serves toys, other"),
    (
        {"redirected": True},
        {},
        "engine.base_url: *: the server redirects (307) to elsewhere.example, which is not followed",
    ),
    ({"page": True}, {}, "engine.base_url: *: the server answered with a page of HTML (*"),
    (
        {"length": None},
        {},
        "model.max_model_len: the server does not say how many tokens it takes; a number is expected",
    ),
    (
        {"takes_ids": False},
        {"api": "completions"},
        "engine.api: completions: the server refuses the request (400: a prompt *",
    ),
    (
        {"key": KEY},
        {},
        "engine.base_url: *: the server wants a key (401: *); engine.api_key_env names the variable with it",
    ),
    (
        {"key": "other"},
        {"api_key_env": VARIABLE},
        f"engine.base_url: *: the server refuses the key of {VARIABLE} (401: *",
    ),
    ({}, {"api_key_env": "NO_SUCH_KEY"}, "engine.api_key_env: the environment variable NO_SUCH_KEY is not set"),
    ({}, {"api_key": KEY}, "engine.api_key is not accepted: no key is written into settings; *"),
    ({}, {"api_key_env": KEY}, "engine.api_key_env: the name of an environment variable, in capitals, such as *"),
    ({}, {"base_url": f"https://me:{KEY}@toys.example/v1"}, "engine.base_url: no credentials stand in an address; *"),
    ({}, {"base_url": "http://toys.example/v1"}, "engine.base_url: http shows prompts and key to everybody between *"),
    ({}, {"base_url": "toys.example/v1"}, "engine.base_url: an address such as http://127.0.0.1:8000/v1 is expected"),
    ({}, {"base_url": "http://127.0.0.1:9/v1"}, "engine.base_url: http://127.0.0.1:9/v1 cannot be reached (*"),
    ({}, {"concurency": 3}, "engine.concurency: unknown key; did you mean 'concurrency'[?]"),
]


@pytest.mark.parametrize(("server", "engine", "said"), STARTS, ids=[said[:40] for _, _, said in STARTS])
def test_what_is_wrong_from_the_start_is_one_sentence(
    project: Project, monkeypatch: pytest.MonkeyPatch, server: dict[str, Any], engine: dict[str, Any], said: str
) -> None:
    monkeypatch.setattr(redaction, "_told", set())
    monkeypatch.setenv(VARIABLE, KEY)
    project.suite()
    with Server(**server) as listening:
        asks(project, listening, **engine)
        result = project.run()
        assert not listening.asked
    result.assert_outcomes(errors=6)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines([f"rh: the engine did not start: {said}"])
    assert_hidden(project, result)


def test_heads_are_refused_at_collection(project: Project) -> None:
    file = project.suite(kind="detect")
    asks(project, "http://127.0.0.1:9/v1")
    result = project.run("--co")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(
        [f"{file}: kind: detect scores heads, which the backend 'openai' (engine.kind) cannot; it answers kind niah"]
    )


LOOKING = """
import os
from pathlib import Path

def test_nobody_has_it(rh_engine):
    rh_engine.ask("When?", max_tokens=2)
    mine = [os.getpid()] if "PYTEST_XDIST_WORKER" in os.environ else []
    assert "{variable}" not in os.environ
    held = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes()
        except OSError:
            continue
        if b"{folder}" in environment and b"{variable}=" in environment and int(folder.name) not in {launchers}:
            held.append((folder / "cmdline").read_bytes())
    assert not held
"""


def assert_hidden(project: Project, result: pytest.RunResult) -> None:
    """That nothing but the config holds the key."""
    assert KEY not in result.stdout.str() + result.stderr.str()
    files = [path for path in project.path.rglob("*") if path.is_file() and path != project.path / "config.yaml"]
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


@pytest.mark.usefixtures("drawing")
def test_the_key_is_nowhere(
    project: Project, workers: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(redaction, "_told", set())
    monkeypatch.setenv(VARIABLE, KEY)
    monkeypatch.setenv("RH_TEST_MARK", str(tmp_path))
    project.suite()
    looking = LOOKING.format(variable=VARIABLE, folder=tmp_path, launchers={os.getpid()})
    project.write("test_mine.py", looking)
    with Server(key=KEY, fault=lambda number: 400 if number == 2 else None, says=f"bad key {KEY}") as server:
        asks(project, server, api_key_env=VARIABLE)
        result = project.run("test_mine.py", "--rh-report", "--junit-xml", "junit.xml", "-rA", "-s", *workers)
    assert {headers["authorization"] for headers in server.seen} == {f"Bearer {KEY}"}
    assert result.parseoutcomes()["passed"] >= 6, result.stdout.str()
    assert any("bad key ***" in record.reason for record in project.records())
    assert_hidden(project, result)
    assert read_facts(project.latest)["status"] == "finished"
    assert os.environ[VARIABLE] == KEY, "given back"


def test_a_key_that_a_suite_names_is_refused_where_workers_have_it(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, KEY)
    with Server(key=KEY) as server:
        engine = {"kind": "openai", "base_url": server.url, "model": "toy", "api_key_env": VARIABLE}
        project.suite(engine=engine)
        project.run(config=False).assert_outcomes(passed=6)
        result = project.run("-n", "2", config=False)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stdout.fnmatch_lines(["*rh: engine.api_key_env: under xdist it is named by the config or --rh-set: *"])


def test_no_key_is_sent_where_none_is_named(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_ORG_ID", "mine")
    project.suite()
    with Server() as server:
        asks(project, server)
        project.run().assert_outcomes(passed=6)
    sent = {name for headers in server.seen for name in headers}
    assert "authorization" not in sent
    assert "openai-organization" not in sent


def test_a_setting_of_the_endpoint_is_an_option(project: Project) -> None:
    project.suite()
    with Server() as server:
        asks(project, server)
        result = project.run("--rh-set", "engine.api=chat", "--rh-set", "engine.timeout=30")
    result.assert_outcomes(passed=6)
    assert all("messages" in body for body in server.asked)


def test_a_prefill_is_an_unfinished_turn(project: Project, tmp_path: Path) -> None:
    project.suite(prompt={"messages": [{"role": "user", "content": "{context}\n{question}"}], "prefill": "It leaves"})
    with Server() as server:
        asks(project, server, api="chat")
        project.run("-k", "len_128-depth_0")
    (body,) = server.asked
    assert body["messages"][-1] == {"role": "assistant", "content": "It leaves"}
    assert body["continue_final_message"] is True

"""A backend of another distribution that takes no token ids, scores no heads and has no replicas."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml
from project import Project

from retrieval_heads.runs.folder import read_facts

PARROT = '''
from typing import ClassVar

from retrieval_heads.engine.backends.backend import Backend, Capabilities, Finished, Info
from retrieval_heads.errors import EngineError
from toy_tokenizer import WordTokenizer


class Parrot(Backend):
    """Says the line of the last message but one that names the ferry."""

    capabilities: ClassVar = Capabilities(takes="text")

    @classmethod
    def check_arguments(cls, model, options):
        if "url" not in options:
            raise EngineError("engine.url: the parrot has none")

    @classmethod
    def check_sampling(cls, generation):
        if "top_p" in generation:
            raise EngineError("generation.top_p: the parrot says what it says; max_tokens is accepted")

    def __init__(self, model, arguments, options, *, traced):
        self.info = Info(f"parrot at {options['url']}", "a cage", "feathers", 4096, 4, 4096, 1)
        self.tokenizer = WordTokenizer()
        self.waiting = []
        if options.get("api_key") != "swordfish":
            raise EngineError("engine.api_key: the parrot does not know it")

    def add(self, request, prompt, sampling, mask, *, is_replayed):
        self.waiting.append((request, prompt))

    def step(self):
        finished, self.waiting = self.waiting, []
        return [self._said(request, prompt) for request, prompt in finished]

    def _said(self, request, prompt):
        assert [message["content"] in prompt.text for message in prompt.messages] == [True] * len(prompt.messages)
        lines = prompt.text.splitlines()
        text = next((line for line in lines if "leaves" in line and "?" not in line), None)
        text = text or f"{len(prompt.messages)} messages"
        return Finished(request, text, [], "stop", len(prompt.text.split()), 0, 0.5)
'''
ENGINE = {"kind": "parrot", "url": "http://cage", "api_key": "swordfish"}


@pytest.fixture
def parrot(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project with the parrot installed beside it and named in its config."""
    site = project.path / "site"
    project.write("site/parrot.py", PARROT)
    project.write("site/parrot-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: parrot\nVersion: 1.0\n")
    points = "[retrieval_heads.backends]\nparrot = parrot:Parrot\n"
    project.write("site/parrot-1.0.dist-info/entry_points.txt", points)
    monkeypatch.setenv("PYTHONPATH", str(site), prepend=":")
    monkeypatch.syspath_prepend(site)
    monkeypatch.delitem(sys.modules, "parrot", raising=False)
    project.suite(gates=["mean(pass_rate) >= 1"])
    project.write("config.yaml", {"model": {"model": "polly"}, "engine": ENGINE})
    return project


def test_a_suite_is_answered_end_to_end(parrot: Project, workers: list[str]) -> None:
    result = parrot.run(*workers, "--rh-report")
    result.assert_outcomes(passed=7)  # six cells and a gate
    assert result.ret == 0
    result.stdout.fnmatch_lines(["rh: polly is ready in * (feathers on a cage, parrot at http://cage)"])
    records = parrot.records()
    assert {(one.text, one.status) for one in records} == {("The ferry to Oslo leaves at dawn.", "pass")}
    assert {(one.needle_span, one.question_span, tuple(one.token_ids)) for one in records} == {(None, None, ())}
    assert all(one.achieved_depth is not None and one.recipe is not None and one.around for one in records)
    assert {one.context_length for one in records} == {128, 256}
    gates = json.loads((parrot.latest / "gates.json").read_text())
    assert (gates["passed"], len(gates["gates"])) == (True, 1)
    assert (parrot.latest / "report.html").exists()
    kept = yaml.safe_load((parrot.latest / "config.yaml").read_text())["engine"]
    assert (kept["kind"], kept["url"]) == ("parrot", "http://cage")
    assert "swordfish" not in "".join(file.read_text() for file in _texts(parrot.latest))
    engine = read_facts(parrot.latest)["identities"]["engines"]
    assert {one["fields"]["url"] for one in engine.values()} == {"http://cage"}


def _texts(folder: Path) -> list[Path]:
    return [file for file in folder.resolve().iterdir() if file.suffix in (".json", ".jsonl", ".yaml", ".log")]


def test_a_low_cell_is_described_without_spans(parrot: Project) -> None:
    needle = {"needle": "The train to Rome is late.", "question": "Which train is late?"}
    parrot.suite(needles=[needle])
    result = parrot.run("-k", "len_128-depth_50")
    result.assert_outcomes(failed=1, deselected=5)
    result.stdout.fnmatch_lines(["*needle    depth * % (asked 50 %)"])


def test_a_users_own_test_asks_it(parrot: Project) -> None:
    parrot.pytester.makepyfile(
        """
        def test_mine(rh_engine):
            two = [{"role": "system", "content": "Speak."}, {"role": "user", "content": "Now."}]
            assert rh_engine.ask(two).text == "2 messages"
            assert rh_engine.ask("Now.", chat=False).text == "0 messages"
        """
    )
    parrot.run(suites=False).assert_outcomes(passed=8)


@pytest.mark.parametrize(
    ("suite", "said"),
    [
        (
            {"kind": "detect"},
            "kind: detect scores heads, which the backend 'parrot' (engine.kind) cannot; it answers kind niah",
        ),
        ({"generation": {"top_p": 0.5}}, "generation.top_p: the parrot says what it says; max_tokens is accepted"),
        (
            {"engine": {**ENGINE, "replicas": 2}},
            "engine.replicas: the backend 'parrot' (engine.kind) has no replicas; *",
        ),
    ],
)
def test_what_it_cannot_is_refused_at_collection(parrot: Project, suite: dict[str, object], said: str) -> None:
    file = parrot.suite(**suite)
    result = parrot.run("--co")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines([f"{file}: {said}"])
    result.stdout.no_fnmatch_line("*Traceback*")
    assert not (parrot.path / "reports").exists()


def test_what_it_refuses_of_the_settings_is_told_before_it_is_loaded(parrot: Project) -> None:
    parrot.write("config.yaml", {"model": {"model": "polly"}, "engine": {"kind": "parrot"}})
    result = parrot.run()
    result.assert_outcomes(errors=6, failed=1)
    result.stdout.fnmatch_lines(["rh: the engine did not start: engine.url: the parrot has none"])


def test_an_unknown_backend_lists_what_there_is(parrot: Project) -> None:
    result = parrot.run("--rh-set", "engine.kind=parot", "--co")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(
        ["*: engine.kind: unknown backend 'parot'; did you mean 'parrot'[?] there are: vllm, openai, ray, parrot"]
    )

"""An engine outside of pytest, and a suite run from Python, on the stand-in."""

from __future__ import annotations

import pytest
from project import Project, is_gone
from stand_in_engine import FERRY

import retrieval_heads as rh

PROMPT = f"There was a boat. {FERRY} It sailed. When does the ferry leave?"


@pytest.fixture
def engine(project: Project) -> rh.Engine:
    project.behave(retrieval_heads=[[1, 2], [3, 0]])
    return rh.Engine("toy", max_model_len=512)


def test_it_answers_one_and_many(engine: rh.Engine, project: Project) -> None:
    with engine:
        assert repr(engine) == "<Engine toy, float32 on no device>"
        assert engine.ask(PROMPT, max_tokens=8).text == FERRY
        many = engine.ask([PROMPT, "Nothing here.", PROMPT], max_tokens=8)
        assert [answer.text for answer in many] == [FERRY, "I do not know.", FERRY]
        assert engine.ask([{"role": "user", "content": PROMPT}]).text == FERRY, "a conversation is one prompt"
        assert [answer.text for answer in engine.ask([[{"role": "user", "content": PROMPT}]])] == [FERRY]
        assert engine.ask([]) == []
        assert engine.ask(PROMPT, mask={"mode": "zero", "heads": [[1, 2]]}).text == "I do not know."
    (process,) = project.starts
    assert is_gone(process)
    assert repr(engine) == "<Engine toy, closed>"
    with pytest.raises(rh.RetrievalHeadsError, match="the engine was closed; make another"):
        engine.ask("Still there?")


def test_heads_are_scored_on_a_text_of_ones_own(engine: rh.Engine) -> None:
    with engine:
        scored = engine.head_scores(PROMPT, spans=FERRY, question="When does the ferry leave?")
        assert scored.answer.text == FERRY
        assert scored["copy"].shape == (5, 4), "a layer without heads has a row of its own"
        assert sorted(scored.top(2, "copy")) == [(1, 2), (3, 0)]
        assert scored["query"][1, 2] == 1
        assert {row["score"] for row in scored.rows} == {"copy", "copy_reference", "mass", "query"}
        given = engine.head_scores(PROMPT, spans="at dawn", answer="at dawn", scores=["mass"])
        assert given.answer.finish_reason == "given"
        assert list(given) == ["mass"]
        assert repr(given) == "<ScoredHeads mass on 'at dawn'>"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"spans": "at noon"}, "spans: 'at noon' stands in the prompt 0 times"),
        ({"spans": "at dawn", "scores": ["mas"]}, "scores: mas cannot be measured of this model; copy, "),
        ({"spans": "at dawn", "scores": ["qr"]}, "the sample has nothing that qr could be measured on"),
    ],
)
def test_what_cannot_be_scored_is_told(engine: rh.Engine, given: dict[str, object], said: str) -> None:
    with engine, pytest.raises(rh.RetrievalHeadsError, match=said):
        engine.head_scores(PROMPT, **given)  # type: ignore[arg-type]


def test_an_engine_that_does_not_start_says_why_and_is_gone(project: Project) -> None:
    project.behave(fail="the weights are missing")
    with pytest.raises(rh.RetrievalHeadsError, match="the engine did not start: the weights are missing"):
        rh.Engine("toy")
    with pytest.raises(rh.RetrievalHeadsError, match=r"Engine: engine\.replicas: expected auto or a number of engines"):
        rh.Engine("toy", engine={"replicas": 0})


def test_a_suite_is_run(project: Project, capfd: pytest.CaptureFixture[str]) -> None:
    suite = project.suite()
    run = rh.run_suite(suite, project.path / "config.yaml")
    assert [record.status for record in run.cells] == ["pass"] * 6
    assert run.path.parent.name == "reports"
    assert "6 passed" in capfd.readouterr().out
    one = rh.run_suite(
        suite, {"model": {"model": "toy"}}, output_dir="out", progress=False, arguments=("-k", "len_128-depth_50")
    )
    assert len(one.cells) == 1
    assert one.path.name == "out"
    assert capfd.readouterr().out == ""
    with pytest.raises(rh.RetrievalHeadsError, match="the session ended with exit status 4; it said last:"):
        rh.run_suite(suite, {"model": {"model": "toy"}, "generation": {"max_tokens": 0}}, progress=False)
    with pytest.raises(rh.RetrievalHeadsError, match=r"nowhere\.yaml: no such suite file or folder"):
        rh.run_suite("nowhere.yaml")

"""Head scores inside vLLM equal transformers' in float32 with eager attention, position by position."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch
from probe_run import DISTRACTORS, PERIOD
from reference import Reference, attention_rows, head_scores, r2_bounds, repeated_scores, written

from conftest import run_script
from retrieval_heads.heads import qr
from retrieval_heads.heads.looks import Rows
from retrieval_heads.models import locate_model

pytestmark = pytest.mark.engine

SCORES = 7
"""Before the positions of the answer's rows."""
QUERY = 3
"""Which of them reads the question's rows."""
LONG = int(os.environ.get("RH_LONG", "2048"))
"""Tokens of the longest prompt, which takes several steps; `make soak` has it of 4096."""
FIRST = "float32-block32"
ENGINES = {
    FIRST: ("float32", "32", [512, 768]),  # a step has 512 tokens
    "float32-block32-long": ("float32", "32", [LONG]),
    "float32-block128": ("float32", "128", [1024]),
    "bfloat16-block128": ("bfloat16", "128", [1024]),
}


def cases(engine: str, *others: Iterable[Any]) -> list[Any]:
    """An engine's tests, those of all but the first with the mark of `make test-long`."""
    marks = [] if engine == FIRST else [pytest.mark.long]
    every = product([engine], *others)
    return [pytest.param(*values, id="-".join(map(str, values)), marks=marks) for values in every]


EXACT = [
    case
    for engine, (dtype, _, lengths) in ENGINES.items()
    if dtype == "float32"
    for case in cases(engine, ("cached", "cold", "batched", "kept"), lengths)
]


@pytest.fixture(scope="session")
def probed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function from an engine's name to what it found; each engine runs once."""

    @cache
    def run(engine: str) -> dict[Any, Any]:
        dtype, block_size, lengths = ENGINES[engine]
        out = tmp_path_factory.mktemp("probe") / f"{engine}.pt"
        run_script("probe_run.py", out, dtype, block_size, *lengths)
        found: dict[Any, Any] = torch.load(out)
        return found

    return run


@cache
def _reference(ids: tuple[int, ...], first: int) -> Reference:
    return attention_rows(locate_model("SmolLM2-135M-Instruct"), list(ids), first)


def reference_of(found: dict[str, Any]) -> Reference:
    return _reference((*found["ids"], *found["answer"][:-1]), found["question_span"][0])


def positions(found: dict[str, Any]) -> torch.Tensor:
    """Argmax positions, `[layers, heads, answer rows]`."""
    argmax: torch.Tensor = found["scores"][SCORES:].long().permute(1, 2, 0)
    return argmax


def expected_rows(found: dict[str, Any]) -> torch.Tensor:
    start = len(found["ids"]) - 1
    return reference_of(found).rows(start, start + len(found["answer"]))


@pytest.mark.parametrize(("engine", "run", "length"), EXACT)
def test_every_clear_argmax_position_equals_the_references(probed: Any, engine: str, run: str, length: int) -> None:
    found = probed(engine)[run, length]
    assert found["error"] is None
    best = expected_rows(found).topk(2, -1)
    is_clear = best.values[..., 0] - best.values[..., 1] > 1e-5
    is_equal = best.indices[..., 0] == positions(found)
    assert positions(found).shape[-1] == len(found["answer"]) > 10
    assert is_clear.float().mean() > 0.95
    assert (is_equal | ~is_clear).all(), f"{int((~is_equal & is_clear).sum())} positions differ"


@pytest.mark.parametrize(("engine", "run", "length"), EXACT)
def test_copy_is_equal_and_weights_are_close_for_every_head(probed: Any, engine: str, run: str, length: int) -> None:
    found = probed(engine)[run, length]
    start, end = found["needle_span"]
    expected = head_scores(
        reference_of(found),
        len(found["ids"]),
        found["answer"],
        (start, end),
        found["ids"][start:end],
        found["question_span"],
    )
    torch.testing.assert_close(found["scores"][0], expected["copy"], rtol=0, atol=1e-6)
    torch.testing.assert_close(found["scores"][1], expected["copy_reference"], rtol=0, atol=1e-6)
    torch.testing.assert_close(found["scores"][2], expected["mass"], rtol=0, atol=1e-4)
    torch.testing.assert_close(found["scores"][3], expected["query"], rtol=0, atol=1e-4)
    weights = expected_rows(found)
    on_distractors = sum(weights[..., first:last].sum(-1) for first, last in DISTRACTORS)
    torch.testing.assert_close(found["scores"][4], on_distractors.mean(-1), rtol=0, atol=1e-4)
    low, high = r2_bounds(weights, (start, end))
    assert (low == high).float().mean() > 0.9
    assert (found["scores"][6] > low - 1e-4).all()
    assert (found["scores"][6] < high + 1e-4).all()
    assert found["scores"][6].max() > 0.3


@pytest.mark.parametrize(("engine", "run", "length"), EXACT)
def test_what_heads_write_is_the_references(probed: Any, engine: str, run: str, length: int) -> None:
    found = probed(engine)[run, length]
    folder = locate_model("SmolLM2-135M-Instruct")
    expected = written(reference_of(found), folder, len(found["ids"]), found["answer"], found["needle_span"])
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(found["scores"][5], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("length", [1024])
def test_bfloat16_agrees_but_for_its_own_noise(probed: Any, length: int) -> None:
    found = probed("bfloat16-block128")["cached", length]
    rows = expected_rows(found)
    assert (rows.argmax(-1) == positions(found)).float().mean() >= 0.98
    start, end = found["needle_span"]
    expected = head_scores(
        reference_of(found),
        len(found["ids"]),
        found["answer"],
        (start, end),
        found["ids"][start:end],
        found["question_span"],
    )["copy"]
    # Scores are whole tokens of the needle, and heads tie at the tenth place: ours are a token short of theirs at most.
    ours, theirs = found["scores"][0].flatten(), expected.flatten()
    tenth = theirs.topk(10).values.min()
    assert (theirs[ours.topk(10).indices] > tenth - 1.5 / (end - start)).all()


@pytest.mark.parametrize("engine", [case for engine in ENGINES for case in cases(engine)])
def test_a_replay_reads_its_prefix_from_the_cache_and_computes_every_row_it_scores(probed: Any, engine: str) -> None:
    _, block_size, lengths = ENGINES[engine]
    for run, length in product(("cached", "cold", "batched"), lengths):
        found = probed(engine)[run, length]
        first = found["question_span"][0]
        whole = (found["prompt_tokens"] - 1) // int(block_size) * int(block_size)
        cached = {"cached": min(first, whole), "cold": 0}.get(run)
        assert cached is None or found["cached_tokens"] == cached
        assert found["cached_tokens"] <= first


@pytest.mark.parametrize(
    ("engine", "length"), [case for engine in ENGINES for case in cases(engine, ENGINES[engine][2])]
)
def test_of_an_answer_whose_rows_were_kept_nothing_is_computed_again(probed: Any, engine: str, length: int) -> None:
    found = probed(engine)["kept", length]
    assert probed(engine)["told"]["kept"]["queued"] == 0
    assert found["cached_tokens"] == found["prompt_tokens"] == len(found["ids"]) + len(found["answer"]) - 1


@pytest.mark.parametrize(
    ("engine", "how", "length"),
    [
        case
        for how in ("from the cache", "little room", "late")
        for engine, (_, _, lengths) in ENGINES.items()
        for case in cases(engine, [how], lengths[: 1 if how == "late" else None])
    ],
)
def test_rows_that_were_not_kept_are_replayed(probed: Any, engine: str, how: str, length: int) -> None:
    found, kept = probed(engine)["told"]["kept"][how][length], probed(engine)["kept", length]
    assert found["error"] is None
    assert found["computed"] > 0
    exact = {"rtol": 0, "atol": 1e-4 if ENGINES[engine][0] == "float32" else 0.05}
    for score in set(range(SCORES)) - ({QUERY} if how == "from the cache" else set()):  # of another question there
        torch.testing.assert_close(found["scores"][score], kept["scores"][score], **exact)


def test_a_replay_that_cannot_be_queued_is_its_own_error(probed: Any) -> None:
    assert probed(FIRST)["told"]["kept"]["refused"] == ["no room for it", None]


def test_places_of_kept_rows_are_given_back(probed: Any) -> None:
    told = probed(FIRST)["told"]["kept"]
    assert told["at work"] > 0
    assert told["places"] == [0, 0, 0]
    assert told["left"] == [False, {}], "a replay that nobody waits for any more leaves nothing"


def test_short_ways_round_vllm_and_nnsight_are_taken(probed: Any) -> None:
    told, last = probed(FIRST)["told"], ENGINES[FIRST][2][-1]
    assert told["primed"] == 2, "answers are decoded after the prompt's last tokens"
    assert told["hashed"] == [f"{last}"], "a prompt's hashes wait for its replay, until the engine steps without it"
    assert told["still hashed"] == [], "which took them"
    assert told["tracked"] == [0], "and nnsight knows of no request any more"


def test_calls_of_modules_that_no_edit_reads_go_past_nnsight(probed: Any) -> None:
    read = {f"model.layers.{layer}.self_attn.{name}" for layer in range(30) for name in ("attn", "o_proj")}
    assert [set(rank) for rank in probed(FIRST)["told"]["instrumented"]] == [read]


def test_replays_of_answers_that_end_one_after_the_other_go_together(probed: Any) -> None:
    assert probed(FIRST)["told"]["replays by step"] == [2]


@pytest.mark.parametrize(
    ("engine", "length"),
    [case for engine, (dtype, _, each) in ENGINES.items() if dtype == "float32" for case in cases(engine, each)],
)
def test_qr_is_that_of_the_reference_for_every_head(probed: Any, engine: str, length: int) -> None:
    found = probed(engine)["told"]["qr"][length]
    cached, (start, end) = probed(engine)["cached", length], probed(engine)["cached", length]["needle_span"]
    assert found["errors"] == [None, None]
    expected = {}
    for name, ids in found["ids"].items():
        rows = attention_rows(locate_model("SmolLM2-135M-Instruct"), ids, found["start"])
        weights = rows.rows(found["start"], len(ids))
        expected[name] = weights.mean(2)[..., start:end]
        torch.testing.assert_close(found[name], expected[name].movedim(-1, 0), rtol=0, atol=1e-5, msg=name)
    torch.testing.assert_close(found["mass"], cached["scores"][2], rtol=0, atol=1e-6)
    blocks = int(ENGINES[engine][1])
    assert found["cached"] == found["start"] // blocks * blocks, "all of the context comes from the cache"
    asked = Rows(len(found["ids"]["asked"]), (), (start, end), (), (0, 0))
    ours = qr.SCORE.combined([found[name].double().numpy() for name in ("asked", "blank")], asked)
    theirs = torch.zeros(expected["asked"].shape[:2])
    for layer, head in product(*map(range, theirs.shape)):  # token by token, as the paper tells it
        tokens = expected["asked"][layer, head] - expected["blank"][layer, head]
        threshold = tokens.mean() - 2 * tokens.std()
        theirs[layer, head] = sum(token for token in tokens if token > threshold)
    torch.testing.assert_close(torch.from_numpy(ours).float(), theirs, rtol=0, atol=1e-4)
    assert theirs.max() > 0.05
    assert theirs.min() < 0


@pytest.mark.parametrize("engine", [*cases(FIRST), *cases("float32-block128")])
def test_heads_on_a_repeated_text_are_those_of_the_reference(probed: Any, engine: str) -> None:
    found = probed(engine)["told"]["text"]
    assert found["error"] is None
    expected = _repeated(tuple(found["ids"]))
    for row, name in enumerate(("induction", "echo")):
        torch.testing.assert_close(found["scores"][row], expected[name], rtol=0, atol=1e-4, msg=name)
        assert expected[name].max() > 0.2


@cache
def _repeated(ids: tuple[int, ...]) -> dict[str, torch.Tensor]:
    rows = attention_rows(locate_model("SmolLM2-135M-Instruct"), list(ids), 0)
    return repeated_scores(rows.weights, PERIOD)

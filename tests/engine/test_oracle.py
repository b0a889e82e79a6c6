"""Detection on models whose heads were built by hand finds what was built, and stops doing so when it makes a mistake.

The whole path is the real one: vLLM answers, a replay is probed, the scores are read from the cell's result.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracle import COPY, OPPOSITE, PREVIOUS_TOKEN, SILENT, Prompt, build
from oracle_run import (
    DESIGNS,
    MASKED,
    MASKED_PROMPT,
    MISTAKEN,
    MISTAKEN_PROMPT,
    MODES,
    PROMPTS,
    STREAMED,
    STREAMING,
    WINDOWS,
    request_of,
)

from conftest import run_script
from retrieval_heads.engine.answers import scores_of
from retrieval_heads.engine.backends.backend import Finished
from retrieval_heads.heads.detection import RETRIEVAL_THRESHOLD, aggregate
from retrieval_heads.runs.layers import Layer
from retrieval_heads.runs.mask import Stream
from retrieval_heads.runs.record import Record

pytestmark = pytest.mark.engine

CASES = [pytest.param(design, prompt, id=f"{design}-{prompt}") for design in DESIGNS for prompt in PROMPTS]
SEEN = [case for case in CASES if DESIGNS[case.values[0]].copying(PROMPTS[case.values[1]])]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the engine found, by design."""
    out = tmp_path_factory.mktemp("oracle") / "found.pt"
    run_script("oracle_run.py", out)
    found: dict[str, Any] = torch.load(out)
    return found


def scores(run: dict[str, Any], replay: dict[str, Any], prompt: Prompt, *only: str) -> dict[str, Any]:
    """What a cell's result says, each `[layers][heads]`; the replay's argmax positions are left out."""
    names = only or run["scores"]
    places = [run["scores"].index(name) for name in names]
    figures = None if replay["head_scores"] is None else replay["head_scores"][places]
    finished = Finished(**{**replay, "head_scores": figures})
    layers = [Layer(**layer) for layer in run["layers"]]
    return scores_of(finished, request_of(prompt).rows(prompt.needle), names, layers)[0].lists()


def faults(design: str, prompt: Prompt, copy: list[list[float]]) -> list[str]:
    """What is wrong with the `copy` of heads."""
    planted = DESIGNS[design].copying(prompt)
    return [
        f"L{layer}H{head} {'copies' if (layer, head) in planted else 'does not copy'}, and scores {value}"
        for layer, values in enumerate(copy)
        for head, value in enumerate(values)
        if (value < 0.99 if (layer, head) in planted else value > RETRIEVAL_THRESHOLD)
    ]


def test_the_windows_hide_the_needle_in_some_prompts_and_not_in_others() -> None:
    copying = {len(DESIGNS["windows"].copying(prompt)) for prompt in PROMPTS.values()}
    assert copying == {1, 3}
    assert len(DESIGNS["several"].copying(PROMPTS["200-0.5"])) == 5


def test_a_model_is_the_same_file_each_time(tmp_path: Path) -> None:
    folders = [build(DESIGNS["several"], tmp_path / name) for name in ("one", "other")]
    names = [{path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in each.iterdir()} for each in folders]
    assert names[0] == names[1]


@pytest.mark.parametrize(("design", "prompt"), CASES)
def test_it_says_the_needle_where_a_copying_head_sees_it(runs: Any, design: str, prompt: str) -> None:
    says_it = runs[design]["answers"][prompt] == PROMPTS[prompt].needle
    assert says_it == bool(DESIGNS[design].copying(PROMPTS[prompt]))


@pytest.mark.parametrize(("design", "prompt"), CASES)
def test_the_planted_heads_copy_and_no_other_does(runs: Any, design: str, prompt: str) -> None:
    run = runs[design]
    found = scores(run, run["replays"][prompt], PROMPTS[prompt])
    assert not faults(design, PROMPTS[prompt], found["copy"])


@pytest.mark.parametrize(("design", "prompt"), SEEN)
def test_every_head_looks_where_it_was_built_to_look(runs: Any, design: str, prompt: str) -> None:
    asked, built = PROMPTS[prompt], DESIGNS[design]
    positions = runs[design]["replays"][prompt]["head_scores"][len(runs[design]["scores"]) :].long()
    assert len(positions) == len(asked.needle)
    expected = {
        (row, layer, head): look
        for layer, kinds in enumerate(built.heads)
        for head, kind in enumerate(kinds)
        for row in range(len(asked.needle))
        if (look := asked.looks(kind, row, built.window_of(layer))) is not None
    }
    assert {place: int(positions[place]) for place in expected} == expected


@pytest.mark.parametrize(("design", "prompt"), SEEN)
def test_every_heads_mass_is_what_lies_in_the_needle(runs: Any, design: str, prompt: str) -> None:
    asked, built, run = PROMPTS[prompt], DESIGNS[design], runs[design]
    found = scores(run, run["replays"][prompt], asked)["mass"]
    expected = {
        (layer, head): mass
        for layer, kinds in enumerate(built.heads)
        for head, kind in enumerate(kinds)
        if (mass := asked.mass(kind, built.window_of(layer))) is not None
    }
    assert len(expected) > 16
    assert {(layer, head): found[layer][head] for layer, head in expected} == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_heads_that_look_and_do_not_write_fool_copy_and_mass_and_not_write(runs: Any, prompt: str) -> None:
    run, built = runs["fooling"], DESIGNS["fooling"]
    found = scores(run, run["replays"][prompt], PROMPTS[prompt])
    for kind, written in ((COPY, 30.0), (SILENT, 0.0), (OPPOSITE, -1.5)):  # three digits of 10 logits; see `_output`
        ((layer, head),) = built.of(kind)
        assert found["copy"][layer][head] == 1
        assert found["mass"][layer][head] > 0.99
        # As far as its attention does not lie on the needle it writes of what else it sees.
        assert found["write"][layer][head] == pytest.approx(written, rel=0.01, abs=1e-6)


@pytest.mark.parametrize("design", DESIGNS)
def test_detection_returns_the_planted_heads_alone(runs: Any, design: str) -> None:
    run, built = runs[design], DESIGNS[design]
    records = [
        Record(
            context_length=len(prompt.ids),
            document_depth=0,
            needle="",
            passed=run["answers"][name] == prompt.needle,
            heads=scores(run, run["replays"][name], prompt),
        )
        for name, prompt in PROMPTS.items()
    ]
    detection = aggregate(records, [Layer(**layer) for layer in run["layers"]])
    copied = [built.copying(prompt) for prompt in PROMPTS.values() if built.copying(prompt)]
    assert len(detection.counted) == len(copied)
    heads = {head for each in copied for head in each}
    planted = {head: np.mean([head in each for each in copied]) for head in heads}
    best = {head: mean for head, mean in detection.ranked() if mean > RETRIEVAL_THRESHOLD}
    assert best == pytest.approx(planted, abs=0.01)
    assert detection.retrieval_heads() == len(planted)


@pytest.mark.parametrize(("mistake", "design"), MISTAKEN)
def test_a_mistaken_detector_is_found_out(runs: Any, mistake: str, design: str) -> None:
    run, prompt = runs[design], PROMPTS[MISTAKEN_PROMPT]
    right = scores(run, run["replays"][MISTAKEN_PROMPT], prompt)["copy"]
    # With the sums of other heads' keys what a head writes may be no number, which is an error by itself.
    wrong = scores(run, run["mistakes"][mistake], prompt, "copy")["copy"]
    assert not faults(design, prompt, right)
    assert faults(design, prompt, wrong)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("design", MASKED)
def test_masking_a_head_of_the_circuit_loses_the_needle_and_masking_others_does_not(
    runs: Any, design: str, mode: str
) -> None:
    built, needle = DESIGNS[design], PROMPTS[MASKED_PROMPT].needle
    says_it = {name: runs[design]["masked"][f"{mode} {name}"] == needle for name in MASKED[design]}
    needed = set(built.circuit)
    if mode == "uniform":  # masks from the prompt's last token on, and previous words are written before
        needed -= set(built.of(PREVIOUS_TOKEN))
    assert says_it == {name: not needed & set(heads) for name, heads in MASKED[design].items()}


def is_in_sight(prompt: Prompt, window: Stream) -> bool:
    """Whether a head that streams sees each of the needle's tokens as it is to copy it."""
    for row in range(len(prompt.needle)):
        key, position = prompt.needle_span[0] + row, len(prompt.ids) - 1 + row
        last = position + 1 if window.anchor == "row" else prompt.question_span[0]
        if window.sink <= key < last - window.recent:
            return False
    return True


@pytest.mark.parametrize("design", STREAMING)
def test_a_copying_head_that_streams_loses_what_it_does_not_see_and_others_lose_nothing(runs: Any, design: str) -> None:
    says_it = {place: answer == PROMPTS[place[2]].needle for place, answer in runs[design]["streamed"].items()}
    assert says_it == {
        (heads, number, prompt): heads == "others" or is_in_sight(PROMPTS[prompt], WINDOWS[number])
        for heads, number, prompt in says_it
    }
    assert len(says_it) == 2 * len(WINDOWS) * len(STREAMED)
    for number in range(len(WINDOWS)):
        found = {says_it["copying", number, prompt] for prompt in STREAMED}
        assert found == {True, False}, "some needles are in sight and others are not"

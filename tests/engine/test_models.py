"""Head scores of other architectures than SmolLM2's equal transformers' in float32 with eager attention."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from models_run import MODELS, NEEDLE_SPAN, PROMPT_TOKENS, QUESTION_SPAN, tokens
from reference import Reference, attention_rows, head_scores

pytestmark = pytest.mark.engine

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the models are."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def runs(folder: Path) -> dict[str, Any]:
    """What the probe found, by model."""
    out = folder / "found.pt"
    done = subprocess.run(
        [sys.executable, str(HERE / "models_run.py"), str(out), str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    found: dict[str, Any] = torch.load(out)
    return found


def reference_of(folder: Path, model: str) -> Reference:
    ids = tokens()
    return attention_rows(str(folder / MODELS[model].architecture), [*ids, *ids[slice(*NEEDLE_SPAN)][:-1]], 0)


@pytest.mark.parametrize("model", MODELS)
def test_every_clear_argmax_position_equals_the_references(runs: Any, folder: Path, model: str) -> None:
    found = runs[model]
    assert found["error"] is None
    steps = NEEDLE_SPAN[1] - NEEDLE_SPAN[0]
    rows = reference_of(folder, model).rows(PROMPT_TOKENS - 1, PROMPT_TOKENS - 1 + steps)
    best = rows.topk(2, -1)
    is_clear = best.values[..., 0] - best.values[..., 1] > 1e-5
    is_equal = best.indices[..., 0] == found["scores"][len(found["names"]) :].long().permute(1, 2, 0)
    assert is_clear.float().mean() > 0.95
    assert (is_equal | ~is_clear).all(), f"{int((~is_equal & is_clear).sum())} positions differ"


@pytest.mark.parametrize("model", MODELS)
def test_weights_are_close_for_every_head(runs: Any, folder: Path, model: str) -> None:
    assert runs[model]["error"] is None
    needle = tokens()[slice(*NEEDLE_SPAN)]
    expected = head_scores(reference_of(folder, model), PROMPT_TOKENS, needle, NEEDLE_SPAN, needle, QUESTION_SPAN)
    for row, name in enumerate(("copy", "copy_reference", "mass", "query")):
        torch.testing.assert_close(runs[model]["scores"][row], expected[name], rtol=0, atol=1e-4, msg=name)


@pytest.mark.parametrize("model", MODELS)
def test_a_replays_prefix_comes_from_the_cache_where_there_is_one(runs: Any, model: str) -> None:
    found = runs[model]
    assert found["cached_tokens"] == (QUESTION_SPAN[0] // 32 * 32 if found["has_prefix_cache"] else 0)


@pytest.mark.parametrize("model", MODELS)
def test_the_layers_are_known(runs: Any, model: str) -> None:
    layers = runs[model]["layers"]
    assert [layer["number"] for layer in layers] == [0, 1, 2, 3]
    assert tuple(layer["sliding_window"] for layer in layers) == MODELS[model].windows

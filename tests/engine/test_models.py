"""Head scores of other architectures than SmolLM2's equal transformers' in float32 with eager attention."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from models_run import (
    CONFIGS,
    GATED_DELTA,
    INT8,
    MASKED,
    MODELS,
    MODELS_IN_BFLOAT16,
    MORE,
    NEEDLE_SPAN,
    NO_STEP,
    PROMPT_TOKENS,
    QUESTION_SPAN,
    SHARED,
    STEPPED,
    STREAMED,
    TEXT_COPIES,
    TEXT_IDS,
    TWO_RANKS,
    UNSCORED,
    VARIANTS,
    tokens,
)
from models_table import table
from reference import (
    Reference,
    attention_rows,
    gated_delta_rows,
    gated_written,
    head_scores,
    masked_logprob,
    r2_bounds,
    repeated_scores,
    streamed_logprobs,
    written,
)

from conftest import ALL_CORES, run_script
from retrieval_heads.runs.mask import Stream

pytestmark = pytest.mark.engine

HERE = Path(__file__).parent
ALL = MODELS | MODELS_IN_BFLOAT16


def run_models(out: Path, folder: Path, *names: str, **environment: str) -> dict[str, Any]:
    """What the script found, by model."""
    run_script("models_run.py", out, folder, *names, **environment)
    found: dict[str, Any] = torch.load(out)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the models are."""
    return tmp_path_factory.mktemp("models")


class Runs:
    """What the probe found, by model; those of `make test` run in one process, and those of `make test-long`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._found: dict[bool, dict[str, Any]] = {}

    def __getitem__(self, name: str) -> Any:
        if (is_more := name in MORE) not in self._found:
            every = (CONFIGS, *ALL, *VARIANTS, INT8)
            names = [each for each in every if (each in MORE) == is_more and each not in TWO_RANKS]
            self._found[is_more] = run_models(self._folder / f"found-{is_more}.pt", self._folder, *names)
        return self._found[is_more][name]


@pytest.fixture(scope="module")
def runs(folder: Path) -> Runs:
    return Runs(folder)


def marked(models: Iterable[str]) -> list[Any]:
    """Parameters, those of `make test-long` with its mark."""
    return [pytest.param(name, marks=[pytest.mark.long] if name in MORE else []) for name in models]


@cache
def reference_of(folder: Path, model: str) -> Reference:
    ids = tokens()
    return attention_rows(str(folder / MODELS[model].architecture), [*ids, *ids[slice(*NEEDLE_SPAN)][:-1]], 0)


@pytest.mark.parametrize("model", marked(MODELS))
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


@pytest.mark.parametrize("model", marked(MODELS))
def test_weights_are_close_for_every_head(runs: Any, folder: Path, model: str) -> None:
    assert runs[model]["error"] is None
    needle = tokens()[slice(*NEEDLE_SPAN)]
    expected = head_scores(reference_of(folder, model), PROMPT_TOKENS, needle, NEEDLE_SPAN, needle, QUESTION_SPAN)
    for row, name in enumerate(("copy", "copy_reference", "mass", "query")):
        torch.testing.assert_close(runs[model]["scores"][row], expected[name], rtol=0, atol=1e-4, msg=name)
    rows = reference_of(folder, model).rows(PROMPT_TOKENS - 1, PROMPT_TOKENS - 1 + len(needle))
    low, high = r2_bounds(rows, NEEDLE_SPAN)
    ours = runs[model]["scores"][runs[model]["names"].index("r2")]
    assert (low == high).any()
    assert (ours > low - 1e-4).all()
    assert (ours < high + 1e-4).all()


@pytest.mark.parametrize("model", marked(name for name, model in MODELS.items() if model.is_maskable))
def test_what_heads_write_is_the_references(runs: Any, folder: Path, model: str) -> None:
    found, needle = runs[model], tokens()[slice(*NEEDLE_SPAN)]
    path = str(folder / MODELS[model].architecture)
    windows = MODELS[model].windows
    expected = written(reference_of(folder, model), path, PROMPT_TOKENS, needle, NEEDLE_SPAN, windows)
    ours = found["scores"][found["names"].index("write")]
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)


def test_what_heads_write_through_a_quantised_projection_is_nearly_the_floats(runs: Any) -> None:
    found, floats = runs[INT8], runs["Llama"]
    assert found["error"] is None
    # The layers above the first read what 8 bits have rounded.
    ours, theirs = (each["scores"][each["names"].index("write"), 0] for each in (found, floats))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0.1 * float(theirs.abs().max()))


@pytest.mark.parametrize("model", marked(MODELS))
def test_weights_on_single_keys_are_those_of_the_reference(runs: Any, folder: Path, model: str) -> None:
    query, text = (runs[model]["weighed"][name] for name in ("query", "text"))
    weights = reference_of(folder, model).rows(QUESTION_SPAN[0], PROMPT_TOKENS)
    expected = weights[..., slice(*NEEDLE_SPAN)].mean(2).movedim(-1, 0)
    torch.testing.assert_close(query, expected, rtol=0, atol=1e-4, msg="qr, for each needle token")
    whole = attention_rows(str(folder / MODELS[model].architecture), TEXT_IDS * TEXT_COPIES, 0).weights
    for scores, name in zip(text, ("induction", "echo"), strict=True):
        expected = repeated_scores(whole, len(TEXT_IDS))[name]
        torch.testing.assert_close(scores, expected, rtol=0, atol=1e-4, msg=name)


@pytest.mark.parametrize("model", marked(MODELS))
def test_a_replays_prefix_comes_from_the_cache_where_there_is_one(runs: Any, model: str) -> None:
    found = runs[model]
    assert found["cached_tokens"] == (QUESTION_SPAN[0] // 32 * 32 if found["has_prefix_cache"] else 0)


@pytest.mark.parametrize("model", marked([*ALL, INT8]))
def test_rows_are_kept_of_attention_without_windows_and_scored_as_a_replays(runs: Any, model: str) -> None:
    check_kept(runs[model], is_exact=model in MODELS)


def check_kept(found: Any, *, is_exact: bool) -> None:
    assert found["kept"]["errors"] == [None, None]
    is_kept = all(layer["kind"] == "attention" and layer["sliding_window"] is None for layer in found["layers"])
    assert (found["kept"]["computed"] == 0) == is_kept
    kept, replayed = (found["kept"]["scores"][name] for name in ("kept", "replayed"))
    # In bfloat16 a position may be another's, where two keys are as near as its noise.
    names = found["names"] if is_exact else ("mass", "query")
    for name in names:
        place = found["names"].index(name)
        noise = {"rtol": 1e-3, "atol": 1e-4} if is_exact else {"rtol": 0, "atol": 0.05}
        torch.testing.assert_close(kept[place], replayed[place], equal_nan=True, **noise)


@pytest.mark.parametrize("model", marked(MODELS))
def test_the_layers_are_known(runs: Any, model: str) -> None:
    layers = runs[model]["layers"]
    assert [layer["number"] for layer in layers] == [0, 1, 2, 3]
    assert tuple(layer["sliding_window"] for layer in layers) == MODELS[model].windows


@pytest.mark.parametrize("model", marked(ALL))
def test_check_says_beforehand_what_the_engine_finds(runs: Any, model: str) -> None:
    assert runs[model]["error"] is None
    assert runs[model]["checked"] == runs[model]["layers"]


MASKABLE = [name for name, model in ALL.items() if model.is_maskable]


@pytest.mark.parametrize("model", [name for name in ALL if name not in MASKABLE])
def test_heads_whose_output_is_padded_are_scored_and_not_masked(runs: Any, model: str) -> None:
    found = runs[model]
    assert found["scores"] is not None
    assert found["maskable"] == []
    assert found["masked"] == "the heads of layer 0 cannot be masked: it has no output projection"


@pytest.mark.parametrize("model", marked(MASKABLE))
def test_masked_heads_are_those_of_the_reference(runs: Any, folder: Path, model: str) -> None:
    found, folder = runs[model], folder / ALL[model].architecture
    assert found["masked"] is None
    assert found["maskable"] == [0, 1, 2, 3]
    masked, bare = (masked_logprob(str(folder), tokens(), heads) for heads in (MASKED, []))
    effect = abs(masked - bare)
    assert effect > 0.01
    # float32 is exact to its noise; bfloat16's own is worth 0.03 here, where the mask is worth 0.3.
    assert found["masked_logprob"] == pytest.approx(masked, abs=1e-4 if model in MODELS else 0.05)
    assert model in MODELS or effect > 0.2


@pytest.mark.parametrize("model", marked(MODELS))
def test_streaming_heads_are_those_of_the_reference_with_its_band(runs: Any, folder: Path, model: str) -> None:
    path, apart, effects = str(folder / MODELS[model].architecture), [], []
    for mask, told in zip(STREAMED, runs[model]["streamed"], strict=True):
        assert not isinstance(told, str), told
        answer, logprobs = told
        heads, stream = ([], Stream(0, 1)) if mask is None else (list(map(list, mask.heads)), mask.stream)
        ids = [*tokens(), *answer[:-1]]
        right, bare = (streamed_logprobs(path, ids, each, asdict(stream))[PROMPT_TOKENS - 1 :] for each in (heads, []))
        assert right.argmax(-1).tolist() == answer
        found = torch.tensor([list(each.values()) for each in logprobs])
        apart.append(float((found - right.gather(1, torch.tensor([list(each) for each in logprobs]))).abs().max()))
        effects.append(float((right - bare).abs().max()))
    plain, *streaming = apart
    assert plain < 1e-4
    assert max(streaming) < 1e-4, apart
    # Where all layers have a window, a wider one hides nothing.
    assert sum(effect > 0.1 for effect in effects) == (3 if "Mistral" in model else 4)


@pytest.mark.parametrize("model", marked(MASKABLE))
def test_heads_that_no_query_makes_see_all_alike_are_not_masked_uniformly(runs: Any, model: str) -> None:
    refusal = "the mode uniform cannot mask heads of layer 0: no query makes them see all alike"
    assert runs[model]["uniform"] == (refusal if model == GATED_DELTA else None)


@pytest.mark.parametrize("model", UNSCORED)
def test_a_layer_that_cannot_be_scored_is_named(runs: Any, model: str) -> None:
    layers = runs["checked"][model]
    assert tuple(kind for kind, _ in layers) == UNSCORED[model][1]
    assert all((heads > 0) == (kind == "attention") for kind, heads in layers)


def test_check_tells_alike_layers_together(runs: Any) -> None:
    lines = runs["checked"]["jamba told"].splitlines()
    assert lines[0].endswith("Jamba: heads of 1 of 8 layers can be scored")
    assert lines[1:3] == ["  MambaMixer, not scored", "    layers 0–3, 5–7"]
    assert lines[3:5] == ["  attention, 32 heads", "    layer 4"]


def test_check_names_shared_attention_by_its_path(runs: Any) -> None:
    lines = runs["checked"]["Zamba2ForCausalLM told"][0].splitlines()
    assert lines[0].endswith("Zamba2ForCausalLM: heads of 0 of 6 layers can be scored")
    assert f"  {SHARED}, not scored" in lines
    assert "    layer 1: model.model.layers.1.shared_transformer.self_attn.dpa_list.0" in lines


def plain(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("model", STEPPED)
def test_check_scores_and_masks_heads_of_a_small_copy(runs: Any, model: str) -> None:
    text, status = runs[model]["told"]
    kept = 4 if "shared" in model else 2
    assert status == 0
    assert f"one step on random weights, of a copy with {kept} of its 4 layers" in plain(text)
    assert f"{4 * kept} heads scored (copy, copy_reference, mass, query, mass_distractors" in plain(text)
    assert "every figure is a number, and every share lies between 0 and 1" in plain(text)
    if ALL[model].is_maskable:
        assert text.endswith("head 0 of layer 0 masked: 4 tokens generated without it\n")
    else:
        assert "layers 0–3 can be scored and not masked: no one projection takes what the heads" in plain(text)
        assert text.endswith("no head can be masked, so none was\n")


@pytest.mark.parametrize("architecture", NO_STEP)
def test_check_says_why_it_runs_no_step(runs: Any, architecture: str) -> None:
    text, status = runs["checked"][f"{architecture} told"]
    if architecture.startswith("Whisper"):
        assert text.endswith("with random weights:\n  what an encoder and decoder are asked is no text alone\n")
        assert status == 0
    else:
        assert text.endswith("no step is run, since no head can be scored\n")
        assert status == 1


def test_check_names_an_unknown_architecture_and_what_is_close(runs: Any) -> None:
    told = runs["checked"]["unknown architecture"]
    assert re.search(r"config\.json: vLLM knows \d+ architectures, and 'LlamaForCausalLN' is none of them", told)
    assert "close to it: LlamaForCausalLM" in told


def test_check_names_heads_that_do_not_divide(runs: Any) -> None:
    assert runs["checked"]["heads that do not divide"].endswith("num_heads (6) is not divisible by num_kv_heads (4)")


def test_the_documents_table_is_that_of_these_tests() -> None:
    document = (HERE.parents[1] / "docs" / "models.md").read_text(encoding="utf-8")
    assert table() in document, "write it anew: python tests/engine/models_table.py"


@pytest.mark.parametrize(("model", "error"), [("DeepSeek-V3 (latent attention)", 1e-5), (GATED_DELTA, 0.01)])
def test_values_summed_by_our_weights_are_the_layers_own_output(runs: Any, model: str, error: float) -> None:
    """float32 is exact to its own noise; vLLM rounds to bfloat16 within a gated delta layer."""
    found = runs[model]
    assert found["error"] is None
    assert len(found["rebuilt"]) == sum(layer["kind"] != "attention" for layer in found["layers"])
    for own, ours in found["rebuilt"].values():
        assert (own - ours).norm() / own.norm() < error


@pytest.fixture(scope="module")
def gated_delta(runs: Any) -> dict[str, Any]:
    """What the probe found; vLLM has the model in bfloat16 alone on CPU."""
    found: dict[str, Any] = runs[GATED_DELTA]
    assert found["error"] is None
    return found


@pytest.fixture(scope="module")
def gated_delta_weights(gated_delta: dict[str, Any], folder: Path) -> dict[int, torch.Tensor]:
    """Those of transformers' own recurrence in float32, `[heads, rows, keys]`, by layer."""
    ids = tokens()
    path = str(folder / MODELS_IN_BFLOAT16[GATED_DELTA].architecture)
    return gated_delta_rows(path, [*ids, *ids[slice(*NEEDLE_SPAN)][:-1]])


def test_gated_delta_layers_are_scored_beside_attention(gated_delta: dict[str, Any]) -> None:
    assert [layer["kind"] for layer in gated_delta["layers"]] == ["gated delta"] * 3 + ["attention"]
    assert gated_delta["names"][-1] == "copy_by_value"


def test_gated_delta_layers_have_the_whole_context_computed(gated_delta: dict[str, Any]) -> None:
    assert gated_delta["has_prefix_cache"]
    assert gated_delta["cached_tokens"] == 0


def test_gated_delta_weights_are_farthest_from_0_where_the_references_are(
    gated_delta: dict[str, Any], gated_delta_weights: dict[int, torch.Tensor]
) -> None:
    for layer, weights in gated_delta_weights.items():
        ours = gated_delta["scores"][len(gated_delta["names"]) :, layer].T.long()
        best = weights[:, PROMPT_TOKENS - 1 :].abs().topk(2, -1)
        is_clear = best.values[..., 0] > 1.1 * best.values[..., 1]
        assert is_clear.float().mean() > 0.4
        assert (ours == best.indices[..., 0])[is_clear].float().mean() > 0.9


def test_what_heads_write_through_a_gate_is_the_references_and_a_recurrence_has_no_such_score(
    gated_delta: dict[str, Any], folder: Path
) -> None:
    ids, needle = tokens(), tokens()[slice(*NEEDLE_SPAN)]
    path = str(folder / MODELS_IN_BFLOAT16[GATED_DELTA].architecture)
    expected = gated_written(path, [*ids, *needle[:-1]], PROMPT_TOKENS, needle, NEEDLE_SPAN)
    ours = gated_delta["scores"][gated_delta["names"].index("write")]
    assert list(expected) == [3]
    assert ours[:3].isnan().all()
    torch.testing.assert_close(ours[3], expected[3], rtol=0, atol=0.12 * float(expected[3].abs().max()))


def test_gated_delta_mass_is_the_share_of_magnitudes(
    gated_delta: dict[str, Any], gated_delta_weights: dict[int, torch.Tensor]
) -> None:
    for name, span in (("mass", (PROMPT_TOKENS - 1, None)), ("query", QUESTION_SPAN)):
        for layer, weights in gated_delta_weights.items():
            part = weights[:, slice(*span)].abs()
            share = (part[..., slice(*NEEDLE_SPAN)].sum(-1) / part.sum(-1)).mean(-1)
            ours = gated_delta["scores"][gated_delta["names"].index(name), layer]
            torch.testing.assert_close(ours, share, rtol=0.05, atol=1e-3)


def test_gated_delta_r2_is_of_magnitudes(
    gated_delta: dict[str, Any], gated_delta_weights: dict[int, torch.Tensor]
) -> None:
    (start, end), answer = NEEDLE_SPAN, slice(PROMPT_TOKENS - 1, None)
    for layer, weights in gated_delta_weights.items():
        rows = weights[:, answer].abs()
        inside, nth = rows[..., start:end], rows.topk(end - start, -1).values[..., -1:]
        r2 = (inside.where(inside >= nth, 0.0).sum(-1) / rows.sum(-1)).sum(-1) / (end - start)
        ours = gated_delta["scores"][gated_delta["names"].index("r2"), layer]
        torch.testing.assert_close(ours, r2, rtol=0.1, atol=2e-3)


def agreement(found: dict[str, Any], other: dict[str, Any]) -> tuple[float, float]:
    """How far `mass` differs at most, and the share of the first layer's argmaxes that are equal; the layers above it
    read what bfloat16 has rounded.
    """
    assert found["error"] is None
    mass, first = found["names"].index("mass"), slice(len(found["names"]), None)
    apart = (found["scores"][mass] - other["scores"][mass]).abs().max()
    return float(apart), float((found["scores"][first, 0] == other["scores"][first, 0]).float().mean())


def test_latent_attention_in_bfloat16_scores_as_in_float32(runs: Any) -> None:
    apart, equal = agreement(runs["latent attention in bfloat16"], runs["DeepSeek-V3 (latent attention)"])
    assert apart < 0.02
    assert equal > 0.95


@pytest.mark.skipif(len(ALL_CORES) < 2, reason="two ranks need two cores")
def test_two_ranks_score_heads_as_one_does(runs: Any, tmp_path: Path) -> None:
    both = run_models(tmp_path / "found.pt", tmp_path, *TWO_RANKS, VLLM_CPU_OMP_THREADS_BIND="0|1")
    found, plain = (both[name] for name in TWO_RANKS)
    assert plain["error"] is None
    check_kept(plain, is_exact=True)
    exact, write = runs["Llama"]["scores"], plain["names"].index("write")
    torch.testing.assert_close(plain["scores"][:write], exact[:write], rtol=0, atol=1e-5, equal_nan=True)
    torch.testing.assert_close(plain["scores"][write], exact[write], rtol=1e-4, atol=1e-5)
    written, alone = (each["scores"][write, 3] for each in (found, runs[GATED_DELTA]))
    torch.testing.assert_close(written, alone, rtol=0, atol=0.12 * float(alone.abs().max()))
    apart, equal = agreement(found, runs[GATED_DELTA])
    assert apart < 0.005
    assert equal > 0.95
    assert found["masked_logprob"] == pytest.approx(runs[GATED_DELTA]["masked_logprob"], abs=0.05)

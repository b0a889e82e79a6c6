"""Effective attention of a gated delta recurrence, against the recurrence itself, token by token in float64."""

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from retrieval_heads.tracing.gated_delta import (  # noqa: E402
    SignedScores,
    causal_conv,
    effective_weights,
    recurrence,
    score_rows_gated_delta,
)

NONE, STRONG = 0.0, -30.0  # log decay: nothing forgotten, and all


@dataclass(frozen=True)
class Case:
    """A request's recurrence; rows are its last positions but for `unseen` ones after them."""

    q: Any  # [rows, v_heads, size]
    keys: Any  # [context, k_heads, size]
    log_decay: Any  # [context, v_heads]
    strength: Any  # [context, v_heads]
    first_position: int

    @property
    def inputs(self) -> tuple[Any, ...]:
        return self.q, self.first_position, self.keys, self.log_decay, self.strength

    def weights(self, chunk: int = 16) -> Any:
        """`[rows, v_heads, positions up to the last row]`."""
        parts = dict(effective_weights(*self.inputs, chunk=chunk))
        return torch.cat([parts[start] for start in sorted(parts)], -1)

    def scores(self, span: tuple[int, int] = (0, 0), chunk: int = 16, **options: int) -> SignedScores:
        return score_rows_gated_delta(*self.inputs, span=span, chunk=chunk, **options)

    def to(self, dtype: Any) -> "Case":
        return Case(*(each.to(dtype) if isinstance(each, torch.Tensor) else each for each in self.fields))

    @property
    def fields(self) -> tuple[Any, ...]:
        return self.q, self.keys, self.log_decay, self.strength, self.first_position


def unit(*shape: int, generator: Any) -> Any:
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator).double(), dim=-1)


def plain(
    rows: int, first: int, v_heads: int = 2, k_heads: int = 1, size: int = 8, unseen: int = 0, seed: int = 0
) -> Case:
    generator = torch.Generator().manual_seed(seed)
    context = first + rows + unseen
    return Case(
        q=unit(rows, v_heads, size, generator=generator) * size**-0.5,
        keys=unit(context, k_heads, size, generator=generator),
        log_decay=-torch.rand(context, v_heads, generator=generator).double() * 0.2,
        strength=torch.rand(context, v_heads, generator=generator).double(),
        first_position=first,
    )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    k_heads = draw(st.integers(1, 3))
    case = plain(
        rows=draw(st.integers(1, 9)),
        first=draw(st.integers(0, 40)),
        v_heads=k_heads * draw(st.sampled_from([1, 2, 4])),
        k_heads=k_heads,
        size=draw(st.sampled_from([2, 8])),
        unseen=draw(st.integers(0, 3)),
        seed=draw(st.integers(0, 2**31)),
    )
    decay = draw(st.sampled_from(["some", NONE, STRONG, "sudden"]))
    if decay == "sudden":
        case.log_decay[case.first_position // 2] = -1e5
    elif decay != "some":
        case.log_decay[:] = decay
    strength = draw(st.sampled_from(["some", 0.0, 1.0]))
    if strength != "some":
        case.strength[:] = strength
    return case


def sequential(case: Case, values: Any) -> Any:
    """Outputs `[rows, v_heads, value size]` of the recurrence as it is defined, state by state."""
    rows, v_heads, size = case.q.shape
    keys = case.keys.repeat_interleave(v_heads // case.keys.shape[1], 1)  # each value head's
    outputs = torch.zeros(rows, v_heads, values.shape[-1]).double()
    state = torch.zeros(v_heads, size, values.shape[-1]).double()
    for j in range(case.first_position + rows):
        k, b, decay = keys[j, :, :, None], case.strength[j, :, None, None], case.log_decay[j, :, None, None]
        state = decay.exp() * (torch.eye(size).double() - b * k @ k.mT) @ state + b * k @ values[j, :, None]
        if j >= case.first_position:
            row = j - case.first_position
            outputs[row] = (case.q[row, :, None] @ state).squeeze(1)
    return outputs


def defined(case: Case) -> Any:
    """Weights as they are defined: with one position's value alone not 0, the output is its weight."""
    positions, v_heads = case.first_position + case.q.shape[0], case.q.shape[1]
    return sequential(case, torch.eye(positions).double()[:, None].expand(-1, v_heads, -1))


def close(actual: Any, expected: Any, atol: float = 1e-10, rtol: float = 0.0) -> None:
    torch.testing.assert_close(actual.double(), expected.double(), atol=atol, rtol=rtol, equal_nan=True)


slow = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@slow
@given(cases(), st.integers(1, 60))
def test_weights_are_those_of_the_recurrence(case: Case, chunk: int) -> None:
    weights = case.weights(chunk)
    assert weights.dtype == torch.float64
    close(weights, defined(case))
    values = torch.randn(*case.log_decay.shape, 5).double()
    output = torch.einsum("rhi,ihd->rhd", weights, values[: weights.shape[-1]])
    close(output, sequential(case, values), rtol=1e-10)


@slow
@given(cases(), st.integers(1, 60), st.tuples(st.integers(0, 50), st.integers(0, 50)))
def test_scores_are_those_of_the_weights(case: Case, chunk: int, ends: tuple[int, int]) -> None:
    span = (min(ends), max(ends))
    weights, scores = defined(case), case.scores(span, chunk)
    seen = torch.arange(weights.shape[-1]) <= case.first_position + torch.arange(case.q.shape[0])[:, None]
    magnitudes, total = weights.abs(), weights.abs().sum(-1)
    if not case.strength.any():
        assert (scores.argmax_magnitude == -1).all()
        assert (scores.argmax_value == -1).all()
        assert (scores.span_share == 0).all()
        return
    close(scores.span_share, magnitudes[..., span[0] : span[1]].sum(-1) / total)
    for argmax, ranks in (
        (scores.argmax_magnitude, magnitudes),
        (scores.argmax_value, weights.masked_fill(~seen[:, None], -math.inf)),
    ):
        assert argmax.dtype == torch.int32
        close(ranks.gather(-1, argmax.long()[..., None]).squeeze(-1), ranks.amax(-1))


def written(places: dict[int, int], q: list[float], context: int) -> Case:
    """Keys are axes: axis 3 but at `places`; nothing is forgotten, so weights are exactly q's parts."""
    keys = torch.eye(4)[[places.get(j, 3) for j in range(context)]][:, None]
    gates = torch.zeros(context, 1)
    return Case(torch.tensor(q)[None, None], keys, gates, gates + 1.0, context - 1)


@pytest.mark.parametrize("chunk", [1, 4, 7, 64])
def test_of_equal_weights_the_lowest_position_wins(chunk: int) -> None:
    scores = written({3: 0, 9: 1, 10: 2}, [1.0, 1.0, 1.0, 0.0], context=20).scores(chunk=chunk)
    assert (scores.argmax_magnitude.item(), scores.argmax_value.item()) == (3, 3)
    scores = written({3: 0, 9: 1, 10: 2}, [-1.0, 1.0, 1.0, 0.0], context=20).scores(chunk=chunk)
    assert (scores.argmax_magnitude.item(), scores.argmax_value.item()) == (3, 9)


def test_what_a_row_does_not_see_is_no_greatest_weight() -> None:
    case = replace(plain(4, 2, v_heads=1, size=2), keys=torch.tensor([1.0, 0.0]).double().expand(6, 1, 2))
    case = replace(case, q=torch.tensor([-1.0, 0.0]).double().expand(4, 1, 2))
    assert (defined(case) <= 0).all()
    scores = case.scores()
    assert (scores.argmax_value.squeeze(1) <= torch.arange(2, 6)).all()


def test_a_span_counts_as_far_as_it_is_seen() -> None:
    case = plain(6, 64)
    weights = case.weights().abs()
    for span in ((10, 50), (66, 90), (15, 17), (0, 70)):
        close(case.scores(span).span_share, weights[..., span[0] : span[1]].sum(-1) / weights.sum(-1))
    assert (case.scores((66, 90)).span_share[:2] == 0).all()  # rows 64 and 65
    close(case.scores((0, 70)).span_share, torch.ones(6, 2))
    for empty in ((3, 3), (70, 80)):
        assert (case.scores(empty).span_share == 0).all()


@pytest.mark.parametrize("chunk", [7, 16, 64])
@pytest.mark.parametrize("top", [1, 5, 40, 300])
def test_of_a_span_what_is_among_the_greatest_magnitudes_counts(top: int, chunk: int) -> None:
    case = plain(6, 100)
    weights = case.weights().abs()
    assert case.scores((10, 50)).top_share is None
    for span in ((90, 103), (10, 50), (200, 210)):
        found = case.scores(span, chunk, top=top, top_from=102).top_share
        assert found is not None
        nth = weights.topk(min(top, weights.shape[-1]), -1).values[..., -1:]
        counted = weights.where(weights >= nth, 0.0)[..., span[0] : span[1]]
        close(found[2:], (counted.sum(-1) / weights.sum(-1))[2:])
        assert found[:2].isnan().all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["q", "keys", "log_decay", "strength"])
@pytest.mark.parametrize("position", [5, 47, 53])
def test_what_is_not_a_number_is_told_in_its_row_and_head_alone(where: str, position: int, bad: float) -> None:
    """Rows are 44 to 51 of 55, in chunks of 16: one lies before them, one among them, one after."""
    case = plain(8, 44, v_heads=4, k_heads=2, unseen=3)
    good = case.scores((0, 48))
    undefined = torch.zeros(8, 4, dtype=torch.bool)
    if where == "q":
        case.q[3, 1, 0] = bad
        undefined[3, 1] = True
    else:
        getattr(case, where)[position, 1] = bad
        heads = slice(2, 4) if where == "keys" else 1
        undefined[max(0, position - 44) :, heads] = True
    scores = case.scores((0, 48))
    assert torch.equal(scores.span_share.isnan(), undefined)
    assert torch.equal(scores.argmax_magnitude == -1, undefined)
    assert torch.equal(scores.argmax_value == -1, undefined)
    assert torch.equal(scores.span_share[~undefined], good.span_share[~undefined])
    assert torch.equal(scores.argmax_magnitude[~undefined], good.argmax_magnitude[~undefined])
    assert torch.equal(scores.argmax_value[~undefined], good.argmax_value[~undefined])


@pytest.mark.parametrize("log_decay", [None, NONE, STRONG])
def test_float32_is_enough_for_a_long_context(log_decay: float | None) -> None:
    case = plain(4, 4092, v_heads=4, k_heads=2, size=64)
    case.log_decay.mul_(0.01)  # else nothing of the first positions is left
    if log_decay is not None:
        case.log_decay[:] = log_decay
    exact, single = case.weights(64), case.to(torch.float32).weights(64)
    assert single.dtype == torch.float32
    close(single, exact, atol=1e-6)
    values = torch.randn(4096, 4, 8).double()
    expected = torch.einsum("rhi,ihd->rhd", exact, values)
    output = torch.einsum("rhi,ihd->rhd", single.double(), values)
    assert (output - expected).norm() < 1e-5 * expected.norm()


def test_a_sudden_decay_leaves_the_decays_after_it_exact() -> None:
    case = plain(1, 15, v_heads=1)
    case.log_decay[2] = -1e5  # in float32 a sum that holds this has steps of 0.008
    close(case.to(torch.float32).weights(), defined(case), atol=1e-6)


def test_what_is_solved_is_finite_in_every_half(monkeypatch: pytest.MonkeyPatch) -> None:
    solve, solved = torch.linalg.solve_triangular, []

    def watched(matrix: Any, sides: Any, **options: Any) -> Any:
        solved.append(bool(matrix.isfinite().all() and sides.isfinite().all()))
        return solve(matrix, sides, **options)

    monkeypatch.setattr(torch.linalg, "solve_triangular", watched)
    case = plain(9, 40)
    case.log_decay[:] = STRONG
    case.to(torch.float32).weights()
    assert solved == [True] * 4


def test_weights_that_overflow_are_undefined() -> None:
    case = Case(torch.full((1, 1, 2), math.inf), torch.ones(1, 1, 2), torch.zeros(1, 1), torch.ones(1, 1), 0)
    scores = case.scores((0, 1))
    assert scores.span_share.isnan().all()
    assert (scores.argmax_magnitude.item(), scores.argmax_value.item()) == (-1, -1)


def test_half_precision_is_computed_in_float32() -> None:
    case = plain(3, 40).to(torch.bfloat16)
    weights = case.weights()
    assert weights.dtype == torch.float32
    close(weights, defined(case.to(torch.float64)), atol=1e-6)
    assert case.scores((0, 9)).span_share.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(3, 4)}, r"q is \[3, 4\]; it must be \[rows, v-heads, 8\]"),
        ({"q": torch.zeros(3, 4, 7)}, r"q is \[3, 4, 7\]"),
        ({"q": torch.zeros(0, 4, 8)}, "nothing empty"),
        ({"q": torch.zeros(3, 5, 8)}, "5 v-heads cannot share 2 k-heads"),
        ({"keys": torch.zeros(10, 16)}, r"keys is \[10, 16\]; it must be \[context, k-heads, head size\]"),
        ({"log_decay": torch.zeros(10, 2)}, r"log_decay is \[10, 2\]; it must be \[10, 4\]"),
        ({"strength": torch.zeros(9, 4)}, r"strength is \[9, 4\]; it must be \[10, 4\]"),
        ({"first_position": -1}, "first_position is -1"),
        ({"first_position": 8}, "rows see positions 0 to 10; given are 0 to 9"),
        ({"chunk": 0}, "chunk is 0"),
        ({"span": (4, 2)}, r"span is \(4, 2\)"),
        ({"span": (-1, 2)}, r"span is \(-1, 2\)"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {
        "q": torch.zeros(3, 4, 8),
        "first_position": 7,
        "keys": torch.zeros(10, 2, 8),
        "log_decay": torch.zeros(10, 4),
        "strength": torch.zeros(10, 4),
        **change,
    }
    with pytest.raises(ValueError, match=message):
        score_rows_gated_delta(**{"span": (0, 1), **given})
    if "span" not in change:
        with pytest.raises(ValueError, match=message):
            effective_weights(**given)  # at the call, not at the first chunk


K_HEADS, V_HEADS, SIZE, WIDTH = 2, 4, 8, 4
CHANNELS = 2 * K_HEADS * SIZE + V_HEADS * SIZE
HEADS = {"k_heads": K_HEADS, "head_k_dim": SIZE}


def projections(tokens: int, dtype: Any = torch.float64) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(tokens)
    shapes = {
        "mixed": (tokens, CHANNELS),
        "conv_weight": (CHANNELS, WIDTH),
        "b": (tokens, V_HEADS),
        "a": (tokens, V_HEADS),
        "a_log": (V_HEADS,),
        "dt_bias": (V_HEADS,),
        "conv_bias": (CHANNELS,),
    }
    return {name: torch.randn(*shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def test_a_recurrence_is_made_of_the_projections() -> None:
    given = projections(30)
    made = recurrence(**given, **HEADS)
    padded = torch.nn.functional.pad(given["mixed"].T, (WIDTH - 1, 0))
    convolved = torch.nn.functional.conv1d(padded, given["conv_weight"][:, None], given["conv_bias"], groups=CHANNELS)
    features = torch.nn.functional.silu(convolved).T
    q, k, v = (
        part.unflatten(-1, (-1, SIZE)) for part in features.split([K_HEADS * SIZE, K_HEADS * SIZE, V_HEADS * SIZE], -1)
    )
    close(made.q, q / (q.square().sum(-1, keepdim=True) + 1e-6).sqrt() / SIZE**0.5)
    close(made.keys, k / (k.square().sum(-1, keepdim=True) + 1e-6).sqrt())
    close(made.log_decay, -given["a_log"].exp() * (given["a"] + given["dt_bias"]).exp().log1p())
    close(made.strength, 1 / (1 + (-given["b"]).exp()))
    close(causal_conv(given["mixed"], given["conv_weight"], given["conv_bias"]), features)

    rows = made.q[20:].repeat_interleave(V_HEADS // K_HEADS, 1)
    case = Case(rows, made.keys, made.log_decay, made.strength, 20)
    close(torch.einsum("rhi,ihd->rhd", case.weights(), v), sequential(case, v))


@pytest.mark.parametrize("cuts", [[7, 20], [1, 2, 3, 29], [16]])
@pytest.mark.parametrize("bias", [True, False])
def test_part_by_part_is_as_at_once(cuts: list[int], bias: bool) -> None:
    given = projections(30)
    if not bias:
        given["conv_bias"] = None
    whole = recurrence(**given, **HEADS)
    parts = []
    for start, stop in zip([0, *cuts], [*cuts, 30], strict=True):
        piece = {name: given[name][start:stop] for name in ("mixed", "a", "b")}
        earlier = given["mixed"][max(0, start - WIDTH + 1) : start] if start else None
        parts.append(recurrence(**{**given, **piece}, **HEADS, earlier=earlier))
    for name in ("q", "keys", "log_decay", "strength"):
        close(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name), atol=1e-14)


def test_values_may_be_left_out() -> None:
    given = projections(9)
    whole = recurrence(**given, **HEADS)
    without = recurrence(**{**given, "mixed": given["mixed"][:, : 2 * K_HEADS * SIZE]}, **HEADS)
    assert torch.equal(without.keys, whole.keys)


def test_features_are_rounded_where_the_layer_stores_them() -> None:
    given = projections(9, torch.bfloat16)
    features = causal_conv(given["mixed"], given["conv_weight"])
    assert features.dtype == torch.float32
    assert torch.equal(features, features.bfloat16().float())
    made = recurrence(**given, **HEADS)
    assert made.keys.dtype == made.log_decay.dtype == torch.float32
    close(made.keys.norm(dim=-1), torch.ones(9, K_HEADS), atol=1e-4)


def test_features_of_zero_are_keys_of_zero() -> None:
    given = projections(5)
    made = recurrence(**{**given, "mixed": given["mixed"] * 0, "conv_bias": None}, **HEADS)
    assert (made.keys == 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mixed": torch.zeros(5, 31)}, r"mixed is \[5, 31\]; it must be \[tokens, at least 32\]"),
        ({"b": torch.zeros(4, V_HEADS)}, r"b is \[4, 4\]; it must be \[5, 4\]"),
        ({"a": torch.zeros(5, 2)}, r"a is \[5, 2\]; it must be \[5, 4\]"),
        (
            {"dt_bias": torch.zeros(V_HEADS * SIZE)},
            r"dt_bias \[32\]; both must be \[v-heads\]: one decay for each head",
        ),
        ({"conv_weight": torch.zeros(CHANNELS, 1, WIDTH)}, r"weight is \[32, 1, 4\]; it must be \[32, width\]"),
        ({"conv_weight": torch.zeros(8, WIDTH)}, r"weight is \[8, 4\]; it must be \[32, width\]"),
        ({"earlier": torch.zeros(4, CHANNELS)}, r"earlier is \[4, 32\]; it must be \[up to 3, 32\]"),
        ({"earlier": torch.zeros(3, 8)}, r"earlier is \[3, 8\]; it must be \[up to 3, 32\]"),
    ],
)
def test_projections_that_do_not_fit_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recurrence(**{**projections(5), **HEADS, **change})

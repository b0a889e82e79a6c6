"""Row scores against an independent float64 implementation: torch, torch over decoded keys, and Triton.

Triton's kernel runs in its interpreter when TRITON_INTERPRET=1 is set before pytest starts, compiled where CUDA is
(marker `gpu`), and not at all otherwise: `tests/kernels` runs this file again, in processes that have the variable.
"""

import ctypes
import math
import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from retrieval_heads.tracing import attention, attention_torch  # noqa: E402
from retrieval_heads.tracing.rows import RowScores, Stretch  # noqa: E402

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
COMPILED = not INTERPRETED and torch.cuda.is_available()
FP8 = torch.float8_e4m3fn
CHUNK = 128 if INTERPRETED else attention_torch.KEYS_AT_A_TIME
"""Keys that are met at once, at most: the kernels meet 16 to 128, and their interpreter takes a millisecond for each
step.
"""
LONG = CHUNK + 172 if INTERPRETED else 3000
"""Keys of several chunks."""


@dataclass(frozen=True)
class Case:
    """A request's cache with garbage around the visible keys, and the rows to score against it."""

    q: Any  # [rows, query_heads, head_size]
    keys: Any  # [positions, kv_heads, head_size], as the cache holds them, k_scale not applied
    first_position: int
    block_size: int = 16
    heads_before_tokens: bool = True  # the cache's stride order: HND, otherwise NHD
    as_bytes: bool = False  # fp8 as vLLM keeps it: uint8
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def group(self) -> int:
        return self.q.shape[1] // self.keys.shape[1]

    def first_seen(self) -> int:
        window = self.options.get("sliding_window")
        return 0 if window is None else max(0, self.first_position - window + 1)

    def paged(self, generator: Any) -> tuple[Any, Any]:
        """The cache, NaN wherever no visible key is (V too), and block ids, stale where no row looks."""
        positions, kv_heads, head_size = self.keys.shape
        blocks = -(-positions // self.block_size)
        order = [blocks + 3, kv_heads, self.block_size, 2 * head_size]
        if not self.heads_before_tokens:
            order = [order[0], order[2], order[1], order[3]]
        cache = torch.full(order, math.nan).to(self.keys.dtype)
        if not self.heads_before_tokens:
            cache = cache.transpose(1, 2)
        ids = torch.randperm(blocks + 2, generator=generator)[:blocks] + 1
        for position in range(self.first_seen(), positions):
            block, slot = ids[position // self.block_size], position % self.block_size
            cache[block, :, slot, :head_size] = self.keys[position]
        stale = self.first_seen() // self.block_size
        ids[:stale] = torch.tensor([0, int(ids[0])]).repeat(stale)[:stale]
        return (cache.view(torch.uint8) if self.as_bytes else cache)[..., :head_size], ids.int()


def torch_paged(case: Case, generator: Any) -> RowScores:
    cache, ids = case.paged(generator)
    return attention_torch.score_rows(case.q, cache, ids, case.first_position, **case.options)


def torch_dense(case: Case, generator: Any) -> RowScores:
    options = dict(case.options)
    keys = case.keys.float() * (options.pop("k_scale", None) or 1.0)
    first = case.first_seen()
    return attention_torch.score_rows_dense(case.q, keys[first:], case.first_position, first_key=first, **options)


def triton_paged(case: Case, generator: Any, cut: Any = None) -> RowScores:
    from retrieval_heads.tracing import attention_triton

    cache, ids = case.paged(generator)
    device = "cuda" if COMPILED else "cpu"
    options = {
        name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in case.options.items()
    }
    scores = attention_triton.score_rows(
        case.q.to(device), _moved(cache, device), ids.to(device), case.first_position, cut=cut, **options
    )
    return scores.each(torch.Tensor.cpu)


def triton_unsplit(case: Case, generator: Any) -> RowScores:
    """One program for all keys, so that many of its steps follow each other."""
    from retrieval_heads.tracing.attention_triton import Tiling

    return triton_paged(case, generator, Tiling(32, 64, warps=4, stages=3, registers=255, programs=1))


def _moved(cache: Any, device: str) -> Any:
    """On the device with the same strides: `to` alone would make the slice contiguous."""
    if device == "cpu":
        return cache
    whole = cache.as_strided([cache.shape[0], cache.stride(0)], [cache.stride(0), 1])
    return whole.to(device).as_strided(cache.shape, cache.stride())


Path = Callable[[Case, Any], RowScores]
PATHS = [pytest.param(torch_paged, id="torch"), pytest.param(torch_dense, id="dense")]
if INTERPRETED or COMPILED:
    marks = [pytest.mark.gpu] if COMPILED else []
    PATHS.append(pytest.param(triton_paged, id="triton", marks=marks))
    PATHS.append(pytest.param(triton_unsplit, id="triton-unsplit", marks=marks))
each_path = pytest.mark.parametrize("path", PATHS)
triton_only = pytest.mark.skipif(not (INTERPRETED or COMPILED), reason="run in the interpreter by tests/kernels")


def naive(case: Case) -> tuple[Any, Any, Any]:
    """Scores `[rows, query_heads, positions]` in float64 (-inf: unseen), ranks and log-sum-exp, by definition."""
    options = case.options
    k = case.keys.double() * float(options.get("k_scale") or 1.0)
    rows, heads, _ = case.q.shape
    scores = torch.full((rows, heads, k.shape[0]), -math.inf, dtype=torch.float64)
    ranks = scores.clone()
    slopes, cap = options.get("alibi_slopes"), options.get("soft_cap")
    for row in range(rows):
        position = case.first_position + row
        first = max(0, position - (options.get("sliding_window") or 1 << 40) + 1)
        for head in range(heads):
            score = options["scale"] * (k[first : position + 1, head // case.group] @ case.q[row, head].double())
            rank = score
            if cap:
                score = cap * torch.tanh(score / cap)
            if slopes is not None:
                away = torch.arange(first, position + 1) - position
                rank = score = score + slopes[head].double() * away
            scores[row, head, first : position + 1] = score
            ranks[row, head, first : position + 1] = rank
    logsumexp = torch.logsumexp(scores, -1)
    if options.get("sinks") is not None:
        logsumexp = torch.logaddexp(logsumexp, options["sinks"].double())
    return scores, ranks, logsumexp


def check(case: Case, scores: RowScores, exact: bool) -> None:
    expected, ranks, logsumexp = naive(case)
    start, end = case.options["span"]
    assert scores.argmax.dtype == torch.int32
    argmax = scores.argmax.long()
    if exact:
        assert torch.equal(argmax, ranks.argmax(-1))  # torch: the first of equal ones
    else:
        short = ranks.amax(-1) - ranks.gather(-1, argmax[..., None]).squeeze(-1)
        assert short.max() < 1e-4
    close(scores.logsumexp, logsumexp)
    close(scores.span_logsumexp, torch.logsumexp(expected[..., start:end], -1))
    if case.options.get("top"):
        check_top(case, scores, expected, ranks, exact)


def check_top(case: Case, scores: RowScores, expected: Any, ranks: Any, exact: bool) -> None:
    """Of keys that nearly tie across the last place, either may be among the top; of those that tie, all are."""
    (start, end), count = case.options["span"], case.options["top"]
    wanted = max(case.options.get("top_from", 0) - case.first_position, 0)
    if wanted >= len(case.q):
        assert scores.top_logsumexp is None
        return
    assert scores.top_logsumexp is not None
    assert scores.top_logsumexp[:wanted].isnan().all()
    ranks, inside = ranks[wanted:], expected[wanted:, :, start:end]
    if not inside.numel():
        assert (scores.top_logsumexp[wanted:] == -math.inf).all()
        return

    ordered = ranks.sort(-1).values

    def among(slack: float) -> Any:
        passing = ranks.shape[-1] - torch.searchsorted(ordered, ranks[:, :, start:end] + slack, right=True)
        return torch.logsumexp(inside.masked_fill(passing >= count, -math.inf), -1)

    found = scores.top_logsumexp[wanted:].double()
    if exact:
        close(found, among(0.0))
    else:
        assert (found >= among(-1e-3) - 1e-4).all()
        assert (found <= among(1e-3) + 1e-4).all()


def close(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual.double(), expected, atol=1e-4, rtol=1e-5, equal_nan=True)


def seeded(seed: int = 0) -> Any:
    return torch.Generator().manual_seed(seed)


def plain(rows: int, positions: int, heads: int = 2, kv_heads: int = 1, size: int = 16, **options: Any) -> Case:
    """Normal data; rows are the last positions."""
    generator = seeded(rows * positions)
    return Case(
        q=torch.randn(rows, heads, size, generator=generator),
        keys=torch.randn(positions, kv_heads, size, generator=generator),
        first_position=positions - rows,
        options={"scale": size**-0.5, "span": (0, 0), **options},
    )


@st.composite
def cases(draw: st.DrawFn) -> tuple[Case, bool]:
    generator = seeded(draw(st.integers(0, 2**31)))
    kv_heads = draw(st.integers(1, 3))
    heads = kv_heads * draw(st.sampled_from([1, 2, 3, 4, 7, 16]))
    size = draw(st.sampled_from([16, 64, 80]))
    rows = draw(st.integers(1, 24))
    first = draw(st.integers(0, 40) | st.integers(0, 200))
    positions = first + rows
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    cache_dtype = draw(st.sampled_from([dtype, dtype, FP8, torch.float32]))
    whole = draw(st.booleans())
    shape = (rows, heads, size), (positions, kv_heads, size)
    if whole:  # small integers: exact in every dtype, with many equal scores
        q, keys = (torch.randint(-1, 2, one, generator=generator).float() for one in shape)
    else:
        q, keys = (torch.randn(one, generator=generator) for one in shape)
    start = draw(st.integers(0, positions + 5))
    options: dict[str, Any] = {
        "scale": draw(st.sampled_from([0.125, 1.0])) if whole else size**-0.5,
        "span": (start, start + draw(st.integers(0, 40))),
        "sliding_window": draw(st.none() | st.integers(1, positions + 3)),
        "soft_cap": draw(st.sampled_from([None, None, 2.0, 30.0])),
        "sinks": torch.randn(heads, generator=generator) if draw(st.booleans()) else None,
        "alibi_slopes": None,
        "top": draw(st.just(0) | st.integers(1, 40)),
        "top_from": draw(st.integers(0, positions)),
        "k_scale": draw(st.sampled_from([0.5, torch.tensor(0.25)])) if cache_dtype == FP8 else None,
    }
    if draw(st.integers(0, 3)) == 0:
        options["alibi_slopes"] = 0.5 ** torch.arange(1.0, heads + 1).clamp(max=6)
    case = Case(
        q=q.to(dtype),
        keys=keys.to(cache_dtype),
        first_position=first,
        block_size=draw(st.sampled_from([16, 32, 48, 128])),
        heads_before_tokens=draw(st.booleans()),
        as_bytes=cache_dtype == FP8 and draw(st.booleans()),
        options=options,
    )
    return case, whole and not (options["soft_cap"] and options["alibi_slopes"] is not None)


@each_path
@settings(
    max_examples=6 if INTERPRETED else 20 if COMPILED else 50,  # one takes some seconds in the interpreter
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(drawn=cases())
def test_scores_are_those_of_the_definition(path: Path, drawn: tuple[Case, bool]) -> None:
    case, exact = drawn
    check(case, path(case, seeded()), exact)


def whole(case: Case) -> Case:
    """The same with whole numbers, whose products are exact in float32 in whatever order they are added up.

    Equal keys have equal products then, also in Triton's interpreter: some processors' numpy adds up columns of a
    matrix product in other orders than their neighbours.
    """
    return replace(case, q=(4 * case.q).round(), keys=(4 * case.keys).round())


@each_path
def test_of_equal_scores_the_lowest_position_wins(path: Path) -> None:
    positions = 2 * CHUNK + 37  # several chunks, several splits
    case = whole(plain(3, positions, heads=3))
    same = replace(case, keys=case.keys[:1].expand(positions, -1, -1))
    assert path(same, seeded()).argmax.unique().tolist() == [0]
    windowed = replace(same, options={**case.options, "sliding_window": CHUNK + 9})
    first = case.first_position - CHUNK - 8
    assert path(windowed, seeded()).argmax.tolist() == [[first + row] * 3 for row in range(3)]


@each_path
@pytest.mark.parametrize(
    "twins", [(5, 6), (5, 37), (31, 32), (63, CHUNK + 52), (CHUNK - 1, CHUNK), (CHUNK + 62, CHUNK + 63)]
)
def test_of_two_greatest_the_lower_wins_wherever_they_are(path: Path, twins: tuple[int, int]) -> None:
    case = whole(plain(2, CHUNK + 64))
    case.keys[list(twins)] = (80.0 * case.q[:, 0].sum(0) / case.q[:, 0].sum(0).norm()).round()
    q = case.q[:, :1].sum(0, keepdim=True).expand(2, 2, -1)
    assert path(replace(case, q=q), seeded()).argmax[1].tolist() == [twins[0]] * 2


@each_path
def test_a_single_key_has_all_the_weight(path: Path) -> None:
    case = plain(1, 1, span=(0, 1))
    scores = path(case, seeded())
    check(case, scores, exact=True)
    close(scores.logsumexp, scores.span_logsumexp.double())


@each_path
@pytest.mark.parametrize("window", [1, 5, 16, 17])
def test_a_window_smaller_than_a_block_hides_the_rest_of_it(path: Path, window: int) -> None:
    case = replace(plain(9, 100, heads=4, kv_heads=2, span=(80, 95), sliding_window=window), block_size=64)
    check(case, path(case, seeded()), exact=False)


@each_path
@pytest.mark.parametrize(
    ("window", "positions"), [(103, 200), (104, 200), (102, 200), (None, 71), (None, 72), (None, 73)]
)
def test_what_is_seen_may_end_where_a_step_of_keys_does(path: Path, window: int | None, positions: int) -> None:
    case = plain(9, positions, span=(60, 65), sliding_window=window)  # steps are whole powers of two: 64, 96
    check(case, path(case, seeded()), exact=False)


@each_path
def test_a_span_counts_as_far_as_it_is_seen(path: Path) -> None:
    case = plain(6, 70, span=(66, 90))
    scores = path(case, seeded())
    check(case, scores, exact=False)
    assert scores.span_logsumexp.isinf().tolist() == [[True] * 2] * 2 + [[False] * 2] * 4  # rows 64 and 65
    for unseen in ((3, 3), (70, 80), (0, 40)):
        options = {**case.options, "span": unseen, "sliding_window": 20}
        assert (path(replace(case, options=options), seeded()).span_logsumexp == -math.inf).all()


@each_path
def test_a_long_span_is_as_exact_as_a_short_one(path: Path) -> None:
    case = plain(2, LONG, span=(100, LONG - 100))
    check(case, path(case, seeded()), exact=False)


@each_path
@pytest.mark.parametrize(
    "span",
    [
        (0, 22),
        (CHUNK - 8, CHUNK + 14),
        pytest.param((LONG - 100, LONG - 10), marks=pytest.mark.long),
        pytest.param((100, 101), marks=pytest.mark.long),
        (0, LONG),
    ],
)
def test_a_spans_keys_count_where_they_are_among_the_greatest(path: Path, span: tuple[int, int]) -> None:
    for top in (1, span[1] - span[0], 5000):
        case = plain(2, LONG, span=span, top=top)
        check(case, path(case, seeded()), exact=False)


@each_path
def test_of_keys_that_tie_across_the_last_place_all_are_among_the_top(path: Path) -> None:
    case = whole(plain(3, 2 * CHUNK + 37, heads=3, span=(CHUNK - 8, CHUNK + 12), top=4))
    same = replace(case, keys=case.keys[:1].expand(len(case.keys), -1, -1))
    scores = path(same, seeded())
    assert scores.top_logsumexp is not None
    close(scores.top_logsumexp, scores.span_logsumexp.double())
    coarse = replace(case, q=case.q.sign(), keys=case.keys.clamp(-1, 1))
    check(coarse, path(coarse, seeded()), exact=True)


@each_path
def test_a_span_of_tiny_weight_keeps_its_sum(path: Path) -> None:
    case = plain(2, 60, span=(10, 20), scale=1.0)
    case.keys[10:20] = -50.0 * case.q[:, 0].mean(0)
    case.keys[30] = 50.0 * case.q[:, 0].mean(0)
    scores = path(case, seeded())
    check(case, scores, exact=False)
    assert (scores.span_logsumexp - scores.logsumexp).min() < -200  # far below what exp can hold


@each_path
def test_sinks_and_caps_change_the_sum_and_not_the_winner(path: Path) -> None:
    case = plain(4, 90, heads=4, scale=4.0, span=(20, 50))
    bare = path(case, seeded())
    sunk = path(replace(case, options={**case.options, "sinks": torch.full((4,), 30.0)}), seeded())
    for scale in (4.0, 100.0):  # far above the cap tanh is 1 in float32, for many keys
        capped_case = replace(case, options={**case.options, "soft_cap": 1.0, "scale": scale})
        capped = path(capped_case, seeded())
        check(capped_case, capped, exact=False)
        assert torch.equal(capped.argmax, bare.argmax)
    assert torch.equal(sunk.argmax, bare.argmax)
    close(sunk.logsumexp, torch.logaddexp(bare.logsumexp.double(), torch.tensor(30.0).double()))
    assert torch.equal(sunk.span_logsumexp, bare.span_logsumexp)
    assert not torch.isclose(capped.logsumexp, bare.logsumexp).any()
    off = path(replace(case, options={**case.options, "soft_cap": 0.0}), seeded())
    assert torch.equal(off.logsumexp, bare.logsumexp)


@each_path
def test_products_add_up_in_float32(path: Path) -> None:
    case = plain(1, 40, heads=1, size=128, scale=1.0)
    keys = torch.ones(40, 1, 128)
    keys[23, 0, 0] = 1.0 + 2**-7  # 128.0078: bfloat16 makes it 128
    case = replace(case, q=torch.ones(1, 1, 128).bfloat16(), keys=keys.bfloat16())
    assert path(case, seeded()).argmax.item() == 23


@each_path
@pytest.mark.parametrize("far", [300.0, -300.0, 1e5, -1e5])
def test_scores_of_any_size_keep_their_sum(path: Path, far: float) -> None:
    case = plain(4, 130, heads=2, scale=1.0, span=(60, 70))
    case.q[..., 0] = 1.0
    case.keys[100:, :, 0] += far  # the later keys far above or below the earlier ones
    check(case, path(case, seeded()), exact=False)
    case.keys[..., 0] = case.keys[..., 0].remainder(1.0) + far  # all far from 0
    check(case, path(case, seeded()), exact=False)


@each_path
def test_a_row_whose_window_starts_after_the_others_keeps_its_sum(path: Path) -> None:
    case = plain(30, 130, scale=1.0, span=(60, 128), sliding_window=8)
    case.q[..., 0] = 1.0
    case.keys[..., 0] = -300.0  # all far from 0, where a row that has seen no key yet starts
    check(case, path(case, seeded()), exact=False)


@each_path
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_a_number_is_told_in_its_row_and_head_alone(path: Path, bad: float) -> None:
    case = plain(6, 50, heads=4, kv_heads=2, span=(0, 10))
    good = path(case, seeded())
    case.q[2, 1, 3] = bad
    case.keys[47, 1] = bad * case.q[3:, 2:].sum((0, 1)).sign()  # rows 47 to 49 see it: 3 to 5
    case.q[3:, 2:] = case.q[3:, 2:].abs() * case.q[3:, 2:].sum((0, 1)).sign()
    scores = path(case, seeded())
    undefined = torch.zeros(6, 4, dtype=torch.bool)
    undefined[2, 1] = True
    undefined[3:, 2:] = True
    for sums, before in (
        (scores.logsumexp, good.logsumexp),
        (scores.span_logsumexp, good.span_logsumexp),
    ):
        assert torch.equal(sums.isnan(), undefined)
        assert torch.equal(sums[~undefined], before[~undefined])
    assert torch.equal(scores.argmax == -1, undefined)
    assert torch.equal(scores.argmax[~undefined], good.argmax[~undefined])


@each_path
def test_a_row_without_one_finite_score_is_undefined(path: Path) -> None:
    case = plain(1, 20, heads=1)
    keys = torch.full_like(case.keys, -math.inf)
    scores = path(replace(case, q=case.q.abs(), keys=keys), seeded())
    assert scores.argmax.item() == -1
    assert scores.logsumexp.isnan()


@triton_only
@pytest.mark.gpu
@pytest.mark.parametrize(
    ("block_m", "block_n", "programs", "columns"),
    [
        (16, 16, 1, 8),
        (16, 64, 1000, 64),
        (32, 32, 7, 32),
        pytest.param(32, 64, 1, 16, marks=pytest.mark.long),
        pytest.param(64, 32, 64, 8, marks=pytest.mark.long),
        (128, 64, 3, 8),
        pytest.param(128, 128, 2, 8, marks=pytest.mark.long),
    ],
)
def test_the_cut_does_not_change_the_result(block_m: int, block_n: int, programs: int, columns: int) -> None:
    """Marked for a GPU, where other cuts are other code; in the interpreter it proves the indexing."""
    from retrieval_heads.tracing.attention_triton import Tiling

    normal = plain(9, 300, heads=6, kv_heads=2, size=16, span=(40, 280), sliding_window=270)
    normal = replace(normal, q=normal.q.half(), keys=normal.keys.half())
    # Products of these are exact, and most of them equal others.
    whole = replace(normal, q=normal.q.round().clamp(-1, 1), keys=normal.keys.round().clamp(-1, 1))
    cut = Tiling(block_m, block_n, warps=4, stages=2, registers=255, programs=programs, columns=columns)
    for case, exact in ((normal, False), (whole, True)):
        check(case, triton_paged(case, seeded(), cut), exact=exact)


@triton_only
def test_programs_are_cut_so_that_no_round_of_them_is_nearly_empty() -> None:
    from retrieval_heads.tracing.attention_triton import Tiling

    cut = Tiling(128, 128, warps=4, stages=2, registers=255, programs=264)
    assert cut.steps({256: 132}) == 128, "one full round"
    assert cut.steps({1: 500}) == 1, "nothing to cut"
    assert cut.steps({64: 1}) == 1, "all at once, where there is room for all"
    assert cut.steps({8: 200, 64: 8}) == 8, "long runs are cut to the length of the many short ones"


LAYERS = [pytest.param(attention_torch.score_layers, "cpu", id="torch")]
if INTERPRETED or COMPILED:
    from retrieval_heads.tracing import attention_triton

    where = "cuda" if COMPILED else "cpu"
    LAYERS.append(pytest.param(attention_triton.score_layers, where, id="triton", marks=marks))


@pytest.mark.parametrize(("score_layers", "device"), LAYERS)
@pytest.mark.parametrize(
    "k_scale",
    [
        pytest.param(torch.tensor([0.5]), id="one for all"),
        pytest.param(torch.tensor([0.5, 0.25, 2.0]), id="one a layer"),
        pytest.param(torch.tensor([[0.5, 0.03], [0.25, 0.7], [2.0, 1.0]]), id="one a KV head"),
    ],
)
def test_layers_together_score_as_layers_alone(score_layers: Any, device: str, k_scale: Any) -> None:
    case = plain(5, 90, heads=4, kv_heads=2, span=(20, 50), sliding_window=70, k_scale=0.5)
    cache, ids = case.paged(seeded())
    caches = [(cache.float() * size).to(FP8).view(torch.uint8).to(device) for size in (1.0, 2.0, 0.5)]
    q = torch.stack([case.q, case.q.flip(0), case.q.flip(1)])
    sinks = torch.randn(3, 4, generator=seeded())
    options = {name: value for name, value in case.options.items() if name not in ("sinks", "k_scale")}
    together = score_layers(
        q.to(device),
        caches,
        ids[None].to(device),
        [Stretch(case.first_position, 5, options.pop("span"), top=30, top_from=case.first_position + 1)],
        **options,
        sinks=sinks.to(device),
        k_scale=k_scale.to(device),
    )
    options |= {"span": case.options["span"], "top": 30, "top_from": case.first_position + 1}
    for layer in range(3):
        keys = caches[layer].cpu().view(FP8).float() * k_scale[layer % len(k_scale)].view(1, -1, 1, 1)
        options["sinks"] = sinks[layer]
        alone = attention_torch.score_rows(q[layer], keys, ids, case.first_position, **options)
        assert torch.equal(together.argmax[layer].cpu(), alone.argmax)
        close(together.logsumexp[layer].cpu(), alone.logsumexp.double())
        close(together.span_logsumexp[layer].cpu(), alone.span_logsumexp.double())
        close_top(together.top_logsumexp[layer].cpu(), alone)


def close_top(actual: Any, alone: RowScores) -> None:
    """In nearly all rows and heads: keys that nearly tie across the last place may be on either side."""
    expected = alone.top_logsumexp if alone.top_logsumexp is not None else torch.full_like(actual, math.nan)
    assert torch.isclose(actual, expected, atol=1e-4, equal_nan=True).float().mean() > 0.95


REQUESTS = {
    "alike": [(5, 90, (20, 50), 30), (5, 90, (30, 40), 10)],
    "of many lengths": [(1, 0, (0, 0), 3), (9, 100, (90, 110), 20), (3, 33, (0, 5), 0), (2, 200, (100, 180), 70)],
    "one alone": [(20, 100, (90, 110), 0)],
}


@pytest.mark.parametrize(("score_layers", "device"), LAYERS)
@pytest.mark.parametrize(
    ("stretches", "options"),
    [
        pytest.param(
            stretches, options, id=f"{name}-{kind}", marks=pytest.mark.long if name == "alike" and bool(options) else ()
        )
        for name, stretches in REQUESTS.items()
        for kind, options in (("plain", {}), ("window", {"sliding_window": 70}))
    ],
)
def test_requests_together_score_as_requests_alone(
    score_layers: Any, device: str, options: dict[str, Any], stretches: list[Any]
) -> None:
    """Two layers; each request's blocks lie anywhere in one cache, and its block table is as long as the longest."""
    seed, size, heads, kv_heads, block = seeded(), 16, 4, 2, 16
    blocks = [-(-(first + rows) // block) for rows, first, *_ in stretches]
    order = (torch.randperm(sum(blocks) + 1, generator=seed)[: sum(blocks)]).int().split(blocks)
    table = torch.stack([torch.nn.functional.pad(one, (0, max(blocks) - len(one)), value=10_000) for one in order])
    caches = [torch.randn(sum(blocks) + 1, kv_heads, block, size, generator=seed) for _ in range(2)]
    q = [torch.randn(2, rows, heads, size, generator=seed) for rows, *_ in stretches]
    together = score_layers(
        torch.cat(q, dim=1).to(device),
        [cache.to(device) for cache in caches],
        table.to(device),
        [Stretch(first, rows, span, top, first + rows // 2) for rows, first, span, top in stretches],
        scale=0.3,
        **options,
    )
    start = 0
    assert (together.top_logsumexp is None) == (not any(top for *_, top in stretches))
    for rows, ids, (count, first, span, top) in zip(q, order, stretches, strict=True):
        for layer, cache in enumerate(caches):
            wanted = {"span": span, "top": top, "top_from": first + count // 2}
            alone = attention_torch.score_rows(rows[layer], cache, ids, first, scale=0.3, **wanted, **options)
            own = slice(start, start + count)
            assert torch.equal(together.argmax[layer, own].cpu(), alone.argmax)
            close(together.logsumexp[layer, own].cpu(), alone.logsumexp.double())
            close(together.span_logsumexp[layer, own].cpu(), alone.span_logsumexp.double())
            if together.top_logsumexp is not None:
                close_top(together.top_logsumexp[layer, own].cpu(), alone)
        start += count


@pytest.mark.skipif(not INTERPRETED, reason="memory of this process, read by the interpreter that tests/kernels starts")
def test_no_triton_program_reads_behind_the_scales_of_heads() -> None:
    """Programs of a short request beside a long one have nothing to do, and may read nothing either."""
    stretches, seed = [Stretch(0, 20, (3, 9), 5, 10), Stretch(40, 1, (3, 9))], seeded()
    table = torch.tensor([[0, 1, 0], [2, 3, 4]]).int()
    caches = [torch.randn(5, 2, 16, 16, generator=seed) for _ in range(2)]
    q = torch.randn(2, 21, 4, 16, generator=seed)
    k_scale = torch.tensor([[0.5, 0.03], [0.25, 0.7]])
    score = partial(attention_triton.score_layers, q, caches, table, stretches, scale=0.3)
    found, expected = score(k_scale=before_no_memory(k_scale)), score(k_scale=k_scale)
    assert torch.equal(found.logsumexp, expected.logsumexp)


def before_no_memory(tensor: Any) -> Any:
    """A copy whose last number is the last of a page, with one behind it that nobody may read: who does dies."""
    page = mmap.PAGESIZE
    pages = mmap.mmap(-1, 2 * page)
    copy = torch.frombuffer(pages, dtype=tensor.dtype, count=tensor.numel(), offset=page - tensor.nbytes)
    start = copy.data_ptr() + tensor.nbytes
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(start), page, 0) == 0
    return copy.view(tensor.shape).copy_(tensor)


@triton_only
@pytest.mark.gpu
def test_nothing_waits_for_the_device() -> None:
    if not COMPILED:
        pytest.skip("needs CUDA")
    case = plain(4, 100, heads=2, size=64, span=(3, 9), k_scale=torch.tensor(1.0), sinks=torch.zeros(2))
    triton_paged(case, seeded())
    from retrieval_heads.tracing import attention_triton

    cache, ids = (tensor.cuda() for tensor in case.paged(seeded()))
    options = {name: getattr(value, "cuda", lambda value=value: value)() for name, value in case.options.items()}
    q = case.q.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        attention_triton.score_rows(q, cache, ids, case.first_position, **options)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(3, 2, 8)}, r"q is \[3, 2, 8\]; it must be \[rows, query heads, 16\]"),
        ({"k_cache": torch.zeros(4, 2, 16)}, r"a cache is \[4, 2, 16\]"),
        ({"q": torch.zeros(3, 3, 16)}, "3 query heads cannot share 2 KV heads"),
        ({"first_position": -1}, "first_position is -1"),
        ({"first_position": 14}, r"block_table is \[1, 1\]; 17 keys in blocks of 16 take 2 ids in each of 1 rows"),
        ({"scale": 0.0}, "scale is 0.0"),
        ({"scale": math.nan}, "scale is nan"),
        ({"span": (4, 2)}, r"span is \(4, 2\)"),
        ({"sliding_window": 0}, "sliding_window is 0"),
        ({"soft_cap": -1.0}, "soft_cap is -1.0"),
        ({"top": -1}, "top is -1"),
        ({"sinks": torch.zeros(4)}, r"sinks is \[1, 4\]; it must be \[1, 2\]"),
        ({"alibi_slopes": torch.zeros(1)}, r"alibi_slopes is \[1\]; it must be \[2\]"),
        ({"k_scale": torch.ones(2)}, r"k_scale is \[2\]"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {
        "q": torch.zeros(3, 2, 16),
        "k_cache": torch.zeros(4, 2, 16, 16),
        "block_ids": torch.zeros(1, dtype=torch.int32),
        "first_position": 5,
        "scale": 1.0,
        "span": (0, 1),
    }
    with pytest.raises(ValueError, match=message):
        attention_torch.score_rows(**{**given, **change})


def test_layers_must_be_of_one_kind() -> None:
    q, caches = torch.zeros(2, 1, 1, 16), [torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 16, 16).half()]
    ids = torch.zeros(1, dtype=torch.int32)
    with pytest.raises(ValueError, match="caches differ in shape, strides or dtype"):
        attention_torch.score_layers(q, caches, ids[None], [Stretch(0, 1, (0, 0))], scale=1.0)
    with pytest.raises(ValueError, match=r"it must be \[1 layers"):
        attention_torch.score_layers(q, caches[:1], ids[None], [Stretch(0, 1, (0, 0))], scale=1.0)
    with pytest.raises(ValueError, match=r"stretches of \[2\] rows are not the 1 of q"):
        attention_torch.score_layers(q[:1], caches[:1], ids[None], [Stretch(0, 2, (0, 0))], scale=1.0)


def test_decoded_keys_must_hold_all_that_rows_see() -> None:
    with pytest.raises(ValueError, match="rows see keys 3 to 6; given are 4 to 9"):
        attention_torch.score_rows_dense(
            torch.zeros(2, 1, 8), torch.zeros(6, 1, 8), 5, first_key=4, scale=1.0, span=(0, 0), sliding_window=3
        )


def test_triton_is_for_cuda() -> None:
    assert attention.scorer(torch.device("cpu")) is attention_torch.score_layers
    if COMPILED:
        assert attention.scorer(torch.device("cuda", 0)).__module__ == "retrieval_heads.tracing.attention_triton"


@pytest.mark.parametrize("window", [None, 5])
def test_rows_of_a_long_text_are_scored_some_at_a_time(window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    source = torch.Generator().manual_seed(2)
    q, keys = torch.randn(40, 4, 8, generator=source), torch.randn(50, 2, 8, generator=source)
    options: dict[str, Any] = {"scale": 0.3, "span": (20, 30), "sliding_window": window, "sinks": torch.ones(4)}
    whole = attention_torch.score_rows_dense(q, keys, 10, **options)
    monkeypatch.setattr(attention_torch, "ROWS_AT_A_TIME", 7)
    for at_once, in_parts in zip(
        vars(whole).values(), vars(attention_torch.score_rows_dense(q, keys, 10, **options)).values(), strict=True
    ):
        if at_once is not None:
            torch.testing.assert_close(in_parts, at_once)


@pytest.mark.parametrize("cap", [None, 2.0])
def test_layers_are_scored_as_many_at_a_time_as_memory_holds(
    cap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of five, all together, and each as if it were alone; keys that take two chunks."""
    source = torch.Generator().manual_seed(3)
    layers, rows, count = 5, 6, attention_torch.KEYS_AT_A_TIME + 100
    q = torch.randn(layers, rows, 4, 8, generator=source)
    keys, sinks = torch.randn(layers, count, 2, 8, generator=source), torch.randn(layers, 4, generator=source)
    stretch = Stretch(count - rows, rows, (20, 30), 12, count - rows + 2)
    options: dict[str, Any] = {"scale": 0.3, "soft_cap": cap}
    reads = [lambda start, stop, own=own: own[start:stop].transpose(0, 1) for own in keys]
    together = attention_torch.score_layers_read(q, reads, 2, stretch, sinks=sinks, **options)
    monkeypatch.setattr(attention_torch, "BYTES_AT_A_TIME", 2 * 4 * rows * 4 * (8 + 10 + 12))
    in_parts = attention_torch.score_layers_read(q, reads, 2, stretch, sinks=sinks, **options)
    more = {"span": (20, 30), "top": 12, "top_from": stretch.top_from}
    for layer in range(layers):
        alone = attention_torch.score_rows_dense(
            q[layer], keys[layer], stretch.first, sinks=sinks[layer], **options, **more
        )
        for name, expected in vars(alone).items():
            for found in (together, in_parts):
                if expected is None:
                    assert getattr(found, name) is None
                else:
                    assert torch.equal(getattr(found, name)[layer].nan_to_num(-1), expected.nan_to_num(-1)), name

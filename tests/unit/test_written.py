"""What heads write towards a token, against the definition in float64: in torch, and in Triton."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from retrieval_heads.tracing import written_torch  # noqa: E402
from retrieval_heads.tracing.attention_torch import score_layers  # noqa: E402
from retrieval_heads.tracing.emissions import Emission, united  # noqa: E402
from retrieval_heads.tracing.rows import Stretch  # noqa: E402

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
COMPILED = not INTERPRETED and torch.cuda.is_available()


def test_overlapping_spans_count_once() -> None:
    assert united([(9, 12), (3, 5), (4, 7), (7, 8), (20, 20)]) == ((3, 8), (9, 12))


def test_needle_and_other_keys_are_those_that_a_row_sees() -> None:
    rows = Emission(first=9, tokens=(5, 6, 7), spans=((2, 4), (8, 11)))
    assert rows.ratios() == [4 / 6, 5 / 6, 5 / 7]
    assert rows.ratios(3) == [2 / 1, 0.0, 2 / 1]  # the second sees needle keys alone
    assert rows.needle(3) == [8, 9, 10]
    assert rows.needle() == [2, 3, 8, 9, 10]


@dataclass(frozen=True)
class Case:
    """Layers, and rows of two requests in them; the first request has rows that no token's writing is wanted of."""

    heads: int = 4
    kv_heads: int = 2
    head_size: int = 16
    value_size: int = 16
    hidden: int = 24
    block_size: int = 16
    layers: int = 2
    is_gated: bool = False
    dtype: Any = torch.float32
    cache_dtype: Any = None
    options: dict[str, Any] = field(default_factory=dict)


STRETCHES = (Stretch(90, 9, (20, 31)), Stretch(40, 3, (5, 9)))
EMISSIONS = (
    Emission(93, (1, 2, 3, 4, 5), ((20, 31), (60, 61)), stretch=0, place=3),
    Emission(41, (6, 7), ((5, 9),), stretch=1, place=10),
)
LENGTHS = (99, 43)
CASES = {
    "alike": Case(),
    "one KV head": Case(kv_heads=1),
    "values of another size": Case(value_size=24),
    "sizes that are no power of two": Case(head_size=20, value_size=12, hidden=40),
    "window": Case(options={"sliding_window": 70}),
    "window that hides a needle": Case(options={"sliding_window": 10}),
    "soft cap": Case(options={"soft_cap": 2.0}),
    "sinks": Case(options={"sinks": True}),
    "ALiBi": Case(options={"alibi_slopes": True}),
    "gate": Case(is_gated=True),
    "blocks of 5": Case(block_size=5),
    "bfloat16": Case(dtype=torch.bfloat16),
    "fp8": Case(dtype=torch.bfloat16, cache_dtype=torch.float8_e4m3fn),
}


@dataclass
class Made:
    """Tensors of a case, and what is wanted of them."""

    arguments: dict[str, Any]
    logsumexp: Any
    wanted: Any


def made(case: Case) -> Made:
    random = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> Any:
        return torch.randn(*shape, generator=random).to(case.dtype)

    options = dict(case.options)
    if options.get("sinks"):
        options["sinks"] = torch.randn(case.layers, case.heads, generator=random)
    if options.get("alibi_slopes"):
        options["alibi_slopes"] = torch.rand(case.heads, generator=random) / 10
    options["scale"] = 0.3
    blocks = [-(-length // case.block_size) for length in LENGTHS]
    table = torch.zeros(2, max(blocks), dtype=torch.int32)
    order = torch.randperm(sum(blocks), generator=random).int()
    table[0, : blocks[0]], table[1, : blocks[1]] = order[: blocks[0]], order[blocks[0] :]
    cache_dtype = case.cache_dtype or case.dtype
    shape = (case.layers, sum(blocks), case.kv_heads, case.block_size)
    k_scale = v_scale = None
    if case.cache_dtype:
        k_scale = torch.rand(case.layers, case.kv_heads, generator=random) + 0.5
        v_scale = torch.rand(case.layers, case.kv_heads, generator=random) + 0.5
    keys, values = numbers(*shape, case.head_size).to(cache_dtype), numbers(*shape, case.value_size).to(cache_dtype)
    rows = sum(stretch.rows for stretch in STRETCHES)
    q = numbers(case.layers, rows, case.heads, case.head_size)
    wanted_rows = sum(len(one.tokens) for one in EMISSIONS)
    unembedding = numbers(wanted_rows, case.hidden)
    projections = [numbers(case.hidden, case.heads * case.value_size) for _ in range(case.layers)]
    gates = numbers(case.layers, wanted_rows, case.heads, case.value_size) if case.is_gated else None
    scores = score_layers(q, keys, table, STRETCHES, k_scale=k_scale, **options)
    outputs = torch.zeros(case.layers, wanted_rows, case.heads, case.value_size, dtype=torch.float64)
    wanted = torch.full((case.layers, rows, case.heads), torch.nan, dtype=torch.float64)

    def read(cache: Any, key: int, scales: Any, layer: int, one: Emission, kv_head: int) -> Any:
        block = int(table[one.stretch, key // case.block_size])
        cell = cache[layer, block, kv_head, key % case.block_size].double()
        return cell if scales is None else cell * scales[layer, kv_head].double()

    number = 0
    for one in EMISSIONS:
        for at in range(len(one.tokens)):
            for layer in range(case.layers):
                for head in range(case.heads):
                    kv_head = head // (case.heads // case.kv_heads)
                    position = one.first + at
                    seen = range(max(0, position - (options.get("sliding_window") or 1000) + 1), position + 1)

                    pull = unembedding[number].double() @ projections[layer].double()
                    pull = pull.view(case.heads, -1)[head]
                    if gates is not None:
                        pull = pull * gates[layer, number, head].double()
                    total, needles = 0.0, [key for key in seen if any(start <= key < end for start, end in one.spans)]
                    parts = {}
                    logits = []
                    for key in seen:
                        logit = options["scale"] * (
                            q[layer, one.place + at, head].double() @ read(keys, key, k_scale, layer, one, kv_head)
                        )
                        if options.get("soft_cap"):
                            logit = options["soft_cap"] * torch.tanh(logit / options["soft_cap"])
                        if options.get("alibi_slopes") is not None:
                            logit = logit + options["alibi_slopes"][head].double() * (key - position)
                        logits.append(logit)
                    more = [options["sinks"][layer, head].double()] if options.get("sinks") is not None else []
                    total = torch.logsumexp(torch.stack([*logits, *more]), 0)
                    for key, logit in zip(seen, logits, strict=True):
                        weighed = (logit - total).exp() * read(values, key, v_scale, layer, one, kv_head)
                        outputs[layer, number, head] += weighed
                        parts[key] = float(pull @ weighed)
                    others = [key for key in seen if key not in needles]
                    rest = sum(parts[key] for key in others) * len(needles) / len(others)
                    wanted[layer, one.place + at, head] = sum(parts[key] for key in needles) - rest
            number += 1
    options.pop("sinks", None)
    arguments = {
        "q": q,
        "k_caches": [layer.clone() for layer in keys],
        "v_caches": [layer.clone() for layer in values],
        "block_table": table,
        "emissions": EMISSIONS,
        "logsumexp": scores.logsumexp,
        "outputs": outputs.to(case.dtype),
        "projections": projections,
        "unembedding": unembedding,
        "gates": gates,
        "k_scale": k_scale,
        "v_scale": v_scale,
        **options,
    }
    return Made(arguments, scores.logsumexp, wanted)


def check(case: Case, found: Any, wanted: Any) -> None:
    assert torch.equal(found.isnan(), wanted.isnan())
    tolerance = 1e-4 if case.dtype == torch.float32 else 2e-2
    size = tolerance * float(wanted.nan_to_num().abs().amax())
    torch.testing.assert_close(found.double(), wanted, rtol=tolerance, atol=size, equal_nan=True)


@pytest.mark.parametrize("name", CASES)
def test_what_is_written_is_the_definition(name: str) -> None:
    found = made(CASES[name])
    check(CASES[name], written_torch.score_written(**found.arguments), found.wanted)


def without_other_keys(found: Made) -> dict[str, Any]:
    """The same caches with NaN in place of every key and value that is no needle's."""
    arguments = dict(found.arguments)
    block_size = arguments["k_caches"][0].shape[2]
    for name in ("k_caches", "v_caches"):
        bare = [torch.full_like(layer, torch.nan) for layer in arguments[name]]
        for one in arguments["emissions"]:
            for key in one.needle():
                at = int(arguments["block_table"][one.stretch, key // block_size]), slice(None), key % block_size
                for layer, empty in zip(arguments[name], bare, strict=True):
                    empty[at] = layer[at]
        arguments[name] = bare
    return arguments


@pytest.mark.parametrize("name", ["alike", "window", "one KV head"])
def test_only_the_needles_keys_and_values_are_read(name: str) -> None:
    found = made(CASES[name])
    check(CASES[name], written_torch.score_written(**without_other_keys(found)), found.wanted)


def test_pulls_that_are_given_stand_for_projection_and_unembedding() -> None:
    case = CASES["gate"]
    found = made(case)
    pulls = [found.arguments["unembedding"] @ projection for projection in found.arguments["projections"]]
    arguments = {**found.arguments, "unembedding": None, "projections": pulls}
    check(case, written_torch.score_written(**arguments), found.wanted)


def in_triton(found: Made, **changed: Any) -> Any:
    from retrieval_heads.tracing.written_triton import score_written

    def there(one: Any) -> Any:
        if isinstance(one, list):
            return [there(each) for each in one]
        return one.cuda() if COMPILED and isinstance(one, torch.Tensor) else one

    arguments = {name: there(one) for name, one in {**found.arguments, **changed}.items()}
    return score_written(**arguments).cpu()


triton_only = pytest.mark.skipif(not (INTERPRETED or COMPILED), reason="run in the interpreter by tests/kernels")


@triton_only
@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_the_kernel_gives_the_definition(name: str) -> None:
    found = made(CASES[name])
    check(CASES[name], in_triton(found), found.wanted)


@triton_only
@pytest.mark.gpu
def test_the_kernel_reads_only_the_needles_keys_and_values() -> None:
    found = made(CASES["alike"])
    check(CASES["alike"], in_triton(Made(without_other_keys(found), None, found.wanted)), found.wanted)


@triton_only
@pytest.mark.gpu
def test_the_kernel_takes_pulls_that_are_given_of_one_layer() -> None:
    case = Case(layers=1, is_gated=True)
    found = made(case)
    pulls = [found.arguments["unembedding"] @ projection for projection in found.arguments["projections"]]
    check(case, in_triton(found, unembedding=None, projections=pulls), found.wanted)


@triton_only
@pytest.mark.gpu
def test_the_kernel_gives_many_rows_in_tiles() -> None:
    """More rows than a tile has, of models as large as real ones."""
    size = {"head_size": 128, "value_size": 128, "hidden": 1024} if COMPILED else {}
    case = Case(heads=8, dtype=torch.bfloat16 if COMPILED else torch.float32, **size)
    random = torch.Generator().manual_seed(0)
    count = 150
    q = torch.randn(2, count, 8, case.head_size, generator=random).to(case.dtype)
    caches = [
        torch.randn(2, 40, 2, 16, size, generator=random).to(case.dtype) for size in (case.head_size, case.value_size)
    ]
    table = torch.randperm(40, generator=random).int()[None]
    emissions = (Emission(405, tuple(range(count - 5)), ((17, 90), (300, 333)), place=5),)
    stretches = (Stretch(400, count, (17, 90)),)
    scores = score_layers(q, list(caches[0]), table, stretches, scale=0.1)
    outputs = torch.randn(2, count - 5, 8, case.value_size, generator=random).to(case.dtype)
    arguments = {
        "q": q,
        "k_caches": [layer.clone() for layer in caches[0]],
        "v_caches": [layer.clone() for layer in caches[1]],
        "block_table": table,
        "emissions": emissions,
        "logsumexp": scores.logsumexp,
        "outputs": outputs,
        "projections": [torch.randn(case.hidden, 8 * case.value_size, generator=random).to(case.dtype) for _ in "ab"],
        "unembedding": torch.randn(count - 5, case.hidden, generator=random).to(case.dtype),
        "scale": 0.1,
    }
    wanted = written_torch.score_written(**arguments)
    check(case, in_triton(Made(arguments, None, wanted)), wanted.double())


@triton_only
@pytest.mark.gpu
def test_the_kernel_does_not_wait_for_the_device() -> None:
    if not COMPILED:
        pytest.skip("needs CUDA")
    from retrieval_heads.tracing.written_triton import score_written

    found = made(CASES["alike"])
    in_triton(found)
    arguments = {
        name: [each.cuda() for each in one] if isinstance(one, list) else getattr(one, "cuda", lambda one=one: one)()
        for name, one in found.arguments.items()
    }
    score_written(**arguments)
    torch.cuda.set_sync_debug_mode("error")
    try:
        score_written(**arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")

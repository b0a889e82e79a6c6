"""Matrix products of bfloat16 numbers against float64."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from retrieval_heads.tracing.products import product  # noqa: E402


@pytest.mark.parametrize("shape", [(41, 832, 64), (1, 64, 64), (3, 128, 80), (7, 320, 256)])
def test_products_of_bfloat16_numbers_are_added_up_in_float32(shape: tuple[int, int, int]) -> None:
    rows, count, size = shape
    source = torch.Generator().manual_seed(0)
    queries = torch.randn(3, rows, size, generator=source).bfloat16()
    keys = torch.randn(3, 16, size, generator=source).bfloat16().repeat(1, count // 16, 1)
    before = torch.backends.mkldnn.matmul.fp32_precision
    found = product(queries.float(), keys.float().transpose(1, 2), of_bfloat16=True)
    exact = queries.double() @ keys.double().transpose(1, 2)
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=2e-5)
    copies = found.unflatten(2, (-1, 16))
    assert torch.equal(copies, copies[:, :, :1].expand_as(copies)), "equal keys tie"
    assert torch.backends.mkldnn.matmul.fp32_precision == before


def test_other_numbers_keep_all_their_bits() -> None:
    source = torch.Generator().manual_seed(0)
    one, other = torch.randn(41, 64, generator=source), torch.randn(64, 832, generator=source)
    found = product(one, other, of_bfloat16=False)
    torch.testing.assert_close(found.double(), one.double() @ other.double(), rtol=0, atol=2e-5)

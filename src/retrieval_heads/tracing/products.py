"""Matrix products in float32."""

from __future__ import annotations

import torch
from torch import Tensor


def product(one: Tensor, other: Tensor, *, of_bfloat16: bool, out: Tensor | None = None) -> Tensor:
    """`one @ other` of float32 matrices.

    Args:
        one: `[..., n, k]`.
        other: `[..., k, m]`.
        of_bfloat16: Whether every number in both is one of bfloat16. A CPU that multiplies these then does, in two
            thirds of the time: their products are exact in float32, in which they are added up.
        out: Where it goes. Memory that was written before: the system's new pages take as long as the product.
    """
    if one.is_cuda or not of_bfloat16:
        return torch.matmul(one, other, out=out)
    settings = torch.backends.mkldnn.matmul
    before, settings.fp32_precision = settings.fp32_precision, "bf16"
    try:
        return torch.matmul(one, other, out=out)
    finally:
        settings.fp32_precision = before

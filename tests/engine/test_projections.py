"""Output projections are read as the matrices that they are, packed or quantised; what cannot be read is named."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.utils import cpu_unquantized_gemm, dispatch_cpu_unquantized_gemm

from retrieval_heads.tracing.projections import AT_ONCE, projection_weight, pulls, why_no_projection

pytestmark = pytest.mark.engine


def plain_method() -> Any:
    """vLLM's; its constructor wants a whole engine's config."""
    method: Any = object.__new__(UnquantizedLinearMethod)
    method._gemm_impl = cpu_unquantized_gemm
    return method


def projection(method: Any, features: int, hidden: int, dtype: torch.dtype = torch.float32) -> Any:
    """A row-parallel projection without its ranks."""
    module: Any = torch.nn.Module()
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(hidden, features, generator=random).to(dtype)
    module.weight = torch.nn.Parameter(weight, requires_grad=False)
    module.quant_method, module.params_dtype, module.input_size_per_partition = method, dtype, features
    return module


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_that_vllm_packed_for_a_cpu_is_unpacked(dtype: torch.dtype) -> None:
    module = projection(plain_method(), 96, 64, dtype)
    plain = module.weight.clone()
    assert torch.equal(projection_weight(module), plain)
    dispatch_cpu_unquantized_gemm(module, remove_weight=True)
    assert not module.weight.numel()
    assert torch.equal(projection_weight(module), plain)


class Fp8LinearMethod:
    """Quantises inputs by one scale, as vLLM's does where a checkpoint has calibrated it; weights are as they are."""

    def apply(self, layer: Any, x: torch.Tensor, bias: object) -> torch.Tensor:
        scale = layer.input_scale if layer.input_scale is not None else x.abs().amax(-1, keepdim=True) / 448
        rounded = (x / scale).clamp(-448, 448).to(torch.float8_e4m3fn).to(x.dtype)
        return rounded * scale @ layer.weight.T


@pytest.mark.parametrize("scale", [None, 0.0007, 0.03, 5.0])
def test_a_quantised_projection_pulls_as_its_floats_do(scale: float | None) -> None:
    module = projection(Fp8LinearMethod(), AT_ONCE + 40, 32)
    module.input_scale = None if scale is None else torch.tensor([scale])
    assert projection_weight(module) is None
    unembedding = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(pulls(module, unembedding), unembedding @ module.weight, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (None, "its output projection is not one module alone"),
        (projection(SimpleNamespace(), 4, 4), "its output projection is quantised by SimpleNamespace"),
        (projection(plain_method(), 4, 4), None),
        (projection(Fp8LinearMethod(), 4, 4), None),
    ],
)
def test_what_cannot_be_read_is_named(module: Any, reason: str | None) -> None:
    assert why_no_projection(module) == reason


def test_a_scheme_of_compressed_tensors_is_named() -> None:
    module = projection(type("CompressedTensorsLinearMethod", (), {})(), 4, 4)
    module.scheme = type("CompressedTensorsW4A4Fp4", (), {})()
    assert why_no_projection(module) == "its output projection is quantised by CompressedTensorsW4A4Fp4"
    module.scheme = type("CompressedTensorsW8A8Int8", (), {})()
    assert why_no_projection(module) is None
    module.input_zero_point = torch.zeros(1)
    assert "with a zero point of its inputs" in str(why_no_projection(module))

"""What a model's code computes from Python's numbers while its weightless copy is built."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
import torch
from nnsight.modeling.mixins.meta import MetaDevice

from retrieval_heads.errors import EngineError
from retrieval_heads.tracing.weightless import NumbersKept, weightless

pytestmark = pytest.mark.engine


@pytest.fixture(params=["the copy of a model that runs", "the copy that a check builds"])
def build(request: pytest.FixtureRequest) -> Iterator[None]:
    """vLLM's loader builds both on the meta device; nnsight moves there whatever a check makes besides."""
    with ExitStack() as stack:
        if "check" in request.param:
            stack.enter_context(MetaDevice())
        stack.enter_context(NumbersKept())
        stack.enter_context(torch.device("meta"))
        yield


@pytest.mark.usefixtures("build")
class TestNumbersKept:
    def test_a_number_is_read_back(self) -> None:
        assert torch.tensor(0.5).item() == 0.5
        assert float(torch.tensor(-1, dtype=torch.bfloat16).detach().cpu().float().item()) == -1
        assert torch.tensor(3, device="meta").item() == 3

    def test_what_is_computed_of_numbers_is_read_back(self) -> None:
        sparsity = torch.distributions.normal.Normal(0, 1).icdf(torch.tensor(0.95)).item()
        assert sparsity == pytest.approx(1.644854, abs=1e-5)

    def test_numbers_and_tensors_without_any_meet(self) -> None:
        assert (torch.tensor(2.0) ** torch.arange(4)).is_meta
        assert torch.maximum(torch.empty(4), torch.tensor(torch.finfo().min)).is_meta

    def test_weights_have_no_storage(self) -> None:
        assert torch.nn.Linear(2, 2).weight.is_meta
        assert torch.tensor([1.0, 2.0]).is_meta
        assert torch.zeros(()).is_meta


@pytest.mark.parametrize("read", [torch.Tensor.item, torch.Tensor.cpu])
def test_numbers_that_are_not_there_are_a_sentence(read: Callable[[torch.Tensor], object]) -> None:
    with pytest.raises(EngineError, match=r"^this model's heads can neither be scored nor masked"), weightless():
        read(torch.zeros((), device="meta"))


def test_other_errors_are_as_they_come() -> None:
    with pytest.raises(RuntimeError, match="another"), weightless():
        raise RuntimeError("another reason")

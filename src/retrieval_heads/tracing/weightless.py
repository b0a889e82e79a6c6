"""What a model's code may compute while nnsight builds the weightless copy that its edits are written against.

The copy is built on the meta device, where a tensor has a shape and no numbers. A model's code computes more than its
weights meanwhile: constants of its modules, which are imported within that build and stay for the model that vLLM loads
afterwards in this process (Gemma 3n's `EPS`), and numbers that a constructor reads back (Gemma 3n's sparsity, Apertus'
activation). Both begin as a single number of Python's. Checked on vLLM 0.32.0 with nnsight 0.8.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from nnsight.modeling.mixins.meta import MetaDevice
from torch.overrides import TorchFunctionMode

from retrieval_heads.errors import EngineError


class NumbersKept(TorchFunctionMode):  # type: ignore[misc]  # PyTorch's types are not read
    """Within it `torch.tensor` of a single number has that number, whatever the device, and keeps it where it is read
    back. PyTorch computes with it and meta tensors alike.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run a function of PyTorch."""
        options = dict(kwargs or {})
        if func is torch.tensor and args and isinstance(args[0], bool | int | float):
            with MetaDevice.real():
                return func(*args, **{**options, "device": "cpu"})
        if func is torch.Tensor.cpu and not args[0].is_meta:
            with MetaDevice.real():
                return func(*args, **options)
        return func(*args, **options)


@contextmanager
def weightless() -> Iterator[None]:
    """Round the build of the copy: a model's modules are imported with real numbers.

    Raises:
        EngineError: The model's code reads others.
    """
    from vllm.model_executor.model_loader import base_loader

    right = base_loader.initialize_model

    def initialize_model(vllm_config: Any, **options: Any) -> Any:
        from vllm.model_executor.model_loader import get_model_architecture

        with MetaDevice.real():
            get_model_architecture(vllm_config.model_config)
        return right(vllm_config=vllm_config, **options)

    with mock.patch.object(base_loader, "initialize_model", initialize_model), NumbersKept():
        try:
            yield
        except (NotImplementedError, RuntimeError) as error:
            if "meta tensor" not in str(error):
                raise
            raise EngineError(
                "this model's heads can neither be scored nor masked: while it is built without its weights, its code "
                f"reads numbers that are not there ({error}); suites of kind niah run in a session of their own"
            ) from error

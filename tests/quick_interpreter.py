"""Triton's interpreter without what it does anew for every call of a function: two thirds of its time here.

It patches `triton.language` at each call of a device function inside a kernel that has patched it already, and it
checks every integer operation for an overflow with six operations of its own. Patched once and checked in numpy,
results and checks are the same. `tests/unit/conftest.py` imports it where kernels are interpreted.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from triton.runtime import interpreter

OPERATIONS = {"add": np.add, "sub": np.subtract, "mul": np.multiply}

patch = interpreter._patch_lang
patched: set[str] = set()


def patch_once(function: Any) -> Any:
    """For all functions of a module, which see the same of the language; it stays."""
    if function.__module__ not in patched:
        patched.add(function.__module__)
        patch(function)
    return interpreter._LangPatchScope()


def refuse_overflow(_: Any, left: Any, right: Any, operation: Any) -> None:
    """As a kernel that is compiled for debugging does: of integers below 64 bits."""
    kind = left.type.scalar
    if kind.int_bitwidth >= 64:
        return
    exact = OPERATIONS[operation.__name__](left.handle.data.astype(np.int64), right.handle.data.astype(np.int64))
    fits = (kind.get_int_min_value() <= exact.min()) & (exact.max() <= kind.get_int_max_value())
    assert fits, f"int{kind.int_bitwidth} overflow detected for operation {operation.__name__}"


interpreter._patch_lang = patch_once
interpreter.TritonSemantic.binary_op_sanitize_overflow_impl = refuse_overflow

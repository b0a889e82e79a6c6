"""Triton's interpreter without what it does anew for every call of a function: two thirds of its time here.

It patches `triton.language` at each call of a device function inside a kernel that has patched it already. And it
computes for every integer operation whether it overflows, with six operations of its own, of which nobody hears: its
`device_assert` does nothing outside of debugging. `tests/unit/conftest.py` imports this where kernels are interpreted.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from triton.runtime import interpreter

patch = interpreter._patch_lang
patched: set[str] = set()


def patch_once(function: Any) -> Any:
    """For all functions of a module, which see the same of the language; it stays."""
    if function.__module__ not in patched:
        patched.add(function.__module__)
        patch(function)
    return interpreter._LangPatchScope()


interpreter._patch_lang = patch_once
interpreter.interpreter_builder.options = replace(interpreter.interpreter_builder.options, sanitize_overflow=False)

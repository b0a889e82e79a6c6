"""What vLLM refuses a model for, in words for people."""

from __future__ import annotations

import difflib
import re
from typing import Any

from pydantic import ValidationError

_STACK = r"Traceback \(most recent call last\)|Exception raised from |C\+\+ CapturedTraceback"
"""Where the stack begins that some errors hold."""


def plain_reason(error: BaseException) -> str:
    """An error on one line: all but stacks, and the architectures that vLLM knows, of which close ones are named."""
    text = str(error).strip()
    if unknown := re.search(r"Model architectures \[(.*?)\] are not supported", text):
        known = re.findall(r"'(\w+)'", text.partition("Supported architectures")[2])
        close = difflib.get_close_matches(unknown[1].strip("'"), known, n=3, cutoff=0.8)
        hint = f"; close to it: {', '.join(close)}" if close else ""
        return f"vLLM knows {len(known)} architectures, and {unknown[1]} is none of them{hint}"
    if unread := re.search(r"Model architectures \['(\w+)'\] failed to be inspected", text):
        return f"vLLM's {unread[1]} cannot be imported: {_import_error(unread[1])}"
    if isinstance(error, ValidationError):
        return "; ".join(
            ": ".join([*map(str, one["loc"]), " ".join(re.sub("^(Value|Assertion) error, ", "", one["msg"]).split())])
            for one in error.errors(include_url=False, include_context=False, include_input=False)
        )
    told = " ".join(re.split(_STACK, text, maxsplit=1)[0].split())
    # A lone word, a key that was not found say, tells nothing by itself.
    return told if " " in told else ": ".join(filter(None, [type(error).__name__, told]))


def _import_error(architecture: str) -> str:
    """What the import of a model's class raises, which vLLM writes to its log alone."""
    from vllm.model_executor.models.registry import ModelRegistry

    try:
        ModelRegistry.models[architecture].load_model_cls()
    except Exception as error:  # of the model's module or of any that it imports
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return "its process ended, as one that takes too much memory does"


def raised_reason(text: str) -> str:
    """What another process says that it caught, on one line: all that stands behind the last stack in it."""
    *stacks, said = re.split(r"Traceback \(most recent call last\):\n", text)
    lines = said.splitlines()
    while stacks and lines and lines[0].startswith(" "):  # the calls; what was raised begins at the margin
        del lines[0]
    return " ".join(" ".join(lines).split())


def worker_reason(error: Any) -> str | None:
    """What nnsight or the probe caught in the worker; `None` where they caught nothing."""
    if error is None:
        return None
    text = error.get("message") or str(error) if isinstance(error, dict) else str(error)
    return raised_reason(text) or "the probe failed"

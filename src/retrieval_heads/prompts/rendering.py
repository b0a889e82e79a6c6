"""A chat template is somebody else's program: it is run in a child process, with an end and little memory.

Jinja's sandbox keeps it from files and attributes, and lets it loop for ever or multiply a string by a billion. A fork
costs milliseconds and is exact: the child renders with the very tokenizer that the parent holds, and is gone.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path

from retrieval_heads.errors import PromptError

SECONDS = 20.0
"""Of rendering. A template of a thousand lines takes hundredths."""
MEMORY = 1 << 30
"""Bytes beyond what this process has."""
LONGEST = 4_000_000
"""Characters of what a template writes around the context."""


def render_limited(render: Callable[[], str]) -> str:
    """What a template writes, with a limit of time, memory and size.

    Args:
        render: Renders it; called in a forked child.

    Raises:
        PromptError: It refuses its messages, does not end, takes too much memory or writes too much.
    """
    receiving, sending = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receiving)
        _render_and_leave(render, sending)
    os.close(sending)
    try:
        content, is_whole = _received(receiving, time.monotonic() + SECONDS)
    finally:
        os.close(receiving)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)  # one that has sent all of it has nothing left to do
        os.waitpid(child, 0)
    if not is_whole:
        raise PromptError(f"the chat template was ended: it ran for {SECONDS:g} s or wrote without end")
    if not content:
        raise PromptError(f"the chat template was ended: it took {SECONDS:g} s of a processor or too much memory")
    is_rendered, text = content[:1] == b"+", content[1:].decode()
    if not is_rendered:
        raise PromptError(text)
    if len(text) > LONGEST:
        raise PromptError(f"the chat template writes more than {LONGEST:,} characters")
    return text


def _received(receiving: int, give_up: float) -> tuple[bytes, bool]:
    """What the child sends, and whether it came to its end."""
    content = bytearray()
    while (left := give_up - time.monotonic()) > 0 and len(content) <= 4 * LONGEST + 1:
        if not select.select([receiving], [], [], left)[0]:
            break
        piece = os.read(receiving, 1 << 20)
        if not piece:
            return bytes(content), True
        content += piece
    return bytes(content), False


def _render_and_leave(render: Callable[[], str], sending: int) -> None:
    """The child's whole life: nothing of the parent's is flushed, closed or awaited."""
    message = b""
    try:
        with contextlib.suppress(FileNotFoundError):  # not every system has it
            size = int(Path("/proc/self/statm").read_bytes().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        limit = int(SECONDS)
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
        try:
            text = render()
            message = b"+" + text[: LONGEST + 1].encode()
        except MemoryError:
            message = b"-the chat template was ended: it takes too much memory"
        except Exception as error:  # Jinja's own errors and whatever a template raises
            message = b"-" + f"the chat template refuses this prompt: {error}"[:2000].encode("utf-8", "replace")
        while message:
            message = message[os.write(sending, message) :]
    finally:
        os._exit(0)

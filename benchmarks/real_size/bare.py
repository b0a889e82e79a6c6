"""Bare vLLM in a process of its own, which ends with whoever started it.

Standard input: a JSON line with `model` and `arguments`, then one with `suite`, a file, for each round. Standard
output: a JSON line for each of them.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import threading
import time
from pathlib import Path
from typing import Any


def main() -> None:
    # Whatever vLLM prints goes to the log, which is standard error.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    asked: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=listen, args=[asked], daemon=True).start()
    hello = asked.get()

    from vllm import LLM, SamplingParams, TokensPrompt

    from retrieval_heads.suites.suite import load_suite
    from retrieval_heads.tasks.builder import CellBuilder

    llm = LLM(model=hello["model"], enable_prefix_caching=True, **hello["arguments"])
    builder = CellBuilder(llm.get_tokenizer(), {}, {}, hello["arguments"]["max_model_len"])
    reply: dict[str, Any] = {"ready": True}
    while True:
        print(json.dumps(reply), file=answers, flush=True)
        suite = load_suite(Path(asked.get()["suite"]))
        requests = [builder.request(suite.question, cell) for cell in suite.cells]
        prompts = [TokensPrompt(prompt_token_ids=request.ids) for request in requests]
        # Without text, vLLM is at its fastest: dummy weights say what no tokenizer knows, and with each such token its
        # decoding goes through the whole prompt again, which no real model's answers make it do.
        sampling = [SamplingParams(**request.sampling, detokenize=False) for request in requests]
        began = time.monotonic()
        outputs = llm.generate(prompts, sampling, use_tqdm=False)
        reply = {
            "seconds": time.monotonic() - began,
            "prompt_tokens": sum(len(request.ids) for request in requests),
            "cached_tokens": sum(output.num_cached_tokens or 0 for output in outputs),
            "answer_tokens": [len(output.outputs[0].token_ids) for output in outputs],
        }


def listen(asked: queue.SimpleQueue[dict[str, Any]]) -> None:
    """Hand on what is asked; at its end, end this process and everything that it started.

    Not by `sys.stdin`, whose lock vLLM's engine process would wait for: it is forked, and closes that first of all.
    """
    with open(0, closefd=False) as lines:
        for line in lines:
            asked.put(json.loads(line))
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    main()

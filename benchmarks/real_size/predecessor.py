"""PyPI's `retrieval-heads` 0.1.2 on the cells of a suite, run by the interpreter of an environment that has it.

    PYTHON benchmarks/real_size/predecessor.py ASKED

ASKED is a JSON file with `model`, `arguments` and `samples`, each with `prompt` (text), `needle`, `needle_token_pos`
and `completion_tokens`. As its command line does it: one engine without a prefix cache, whose tokens its hooks would
never see; one sample after another, on completions that are there already; heads scored on the CPU, which is what it
does unless told a `calculate_device`. Prints a JSON line when it is ready, the first request (of a cut prompt) done,
and one for each sample. Imports nothing of this project, whose package's name is the same.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path


def main() -> None:
    began = time.monotonic()
    from nnsight.modeling.vllm import VLLM
    from retrieval_heads.detect import RetrievalHeadDetector

    asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    detector = RetrievalHeadDetector(model=VLLM(asked["model"], dispatch=True, **asked["arguments"]))
    first = asked["samples"][0]
    detector.calculate(**{**first, "prompt": first["prompt"][:1000]})
    used = {name: version(name) for name in ("retrieval-heads", "nnsight", "torch")}
    import vllm

    used["vllm"] = vllm.__version__
    print(json.dumps({"ready_seconds": time.monotonic() - began, "versions": used}), flush=True)
    for sample in asked["samples"]:
        began = time.monotonic()
        scores = detector.calculate(**sample)
        heads = sum(map(len, scores.values()))
        print(json.dumps({"seconds": time.monotonic() - began, "heads": heads}), flush=True)


if __name__ == "__main__":
    main()

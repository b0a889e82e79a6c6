"""PyPI's `retrieval-heads` 0.1.2 on the cells of a suite, run by the interpreter of an environment that has it.

    PYTHON benchmarks/real_size/predecessor.py ASKED

ASKED is a JSON file with `model`, `arguments` and `samples`, each with `prompt` (text), `needle`, `needle_token_pos`
and `completion_tokens`. Prints a JSON line for each sample. Imports nothing of this project, whose package's name is
the same.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


def main() -> None:
    from nnsight.modeling.vllm import VLLM
    from retrieval_heads.detect import RetrievalHeadDetector

    asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    detector = RetrievalHeadDetector(model=VLLM(asked["model"], dispatch=True, **asked["arguments"]))
    for sample in asked["samples"]:
        began = time.monotonic()
        scores = detector.calculate(**sample)
        heads = sum(map(len, scores.values()))
        print(json.dumps({"seconds": time.monotonic() - began, "heads": heads}), flush=True)


if __name__ == "__main__":
    main()

"""Plain vLLM, without anything of ours: answers to token ids, as `python plain_vllm.py ASKED ANSWERED`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

if __name__ == "__main__":
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # else it leaves one of two cores to its front end
    from vllm import LLM, SamplingParams, TokensPrompt

    asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    llm = LLM(**asked["engine_args"])
    prompts = [TokensPrompt(prompt_token_ids=ids) for ids in asked["prompts"]]
    outputs = llm.generate(prompts, SamplingParams(**asked["sampling"]), use_tqdm=False)
    answers = [{"text": one.outputs[0].text, "token_ids": list(one.outputs[0].token_ids)} for one in outputs]
    Path(sys.argv[2]).write_text(json.dumps(answers), encoding="utf-8")

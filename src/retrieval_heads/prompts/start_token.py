"""Whether prompts begin with the start token that a model was trained with: without it some answer far worse.

Gemma's chat template writes `bos_token`; read from a GGUF file, its tokenizer neither names one to the template nor
adds one, and every prompt goes out bare. The ids are not mended here: they are what the files say, and whoever serves
the same files sends the same. It is said loudly instead, by `validate` and by the run.
"""

from __future__ import annotations

from collections.abc import Sequence

from retrieval_heads.prompts.prompt import Tokenizer

REMEDY = "name a template that writes it under model.chat_template, or mend bos_token in the tokenizer's files"


def start_tokens(ids: Sequence[int], tokenizer: object) -> int:
    """How many start tokens a prompt begins with."""
    bos = getattr(tokenizer, "bos_token_id", None)
    count = 0
    while bos is not None and count < len(ids) and ids[count] == bos:
        count += 1
    return count


def start_token_fault(ids: Sequence[int], tokenizer: Tokenizer, template: str | None) -> str:
    """What is wrong with a prompt's first token; empty where nothing is.

    Args:
        ids: The prompt.
        tokenizer: The model's.
        template: The chat template in use; the tokenizer's own where it is `None`.
    """
    bos, eos = (getattr(tokenizer, f"{kind}_token_id", None) for kind in ("bos", "eos"))
    written = template or getattr(tokenizer, "chat_template", None)
    is_written = "bos_token" in str(written or "")
    if bos is None:
        return f"the chat template writes bos_token and the tokenizer has none; {REMEDY}" if is_written else ""
    count = start_tokens(ids, tokenizer)
    name = f"{tokenizer.decode([bos])} ({bos})"
    if count > 1:
        return f"the prompt begins with {count} start tokens {name}: template and tokenizer both write it"
    # GPT-2's, say, is what divides texts; and a model may say in its own files that it takes none (Phi-3).
    takes_none = not is_written and getattr(tokenizer, "init_kwargs", {}).get("add_bos_token") is False
    if count == 1 or bos == eos or takes_none:
        return ""
    return f"no prompt begins with the model's start token {name}: neither template nor tokenizer writes it; {REMEDY}"

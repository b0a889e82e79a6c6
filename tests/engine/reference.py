"""Head scores from transformers in float32 with eager attention: what the engine's probe is checked against.

Written apart from the product code: plain softmax rows, plain loops over the definitions.
"""

from __future__ import annotations

from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch


@dataclass(frozen=True)
class Reference:
    """Attention rows `[layers, heads, rows, keys]` of the tail of a sequence, and the row they start at."""

    weights: torch.Tensor
    first: int
    values: dict[int, torch.Tensor]
    """Of all tokens, `[kv heads, tokens, size]`, by layer; a layer that shares another's has none."""

    def rows(self, start: int, end: int) -> torch.Tensor:
        return self.weights[:, :, start - self.first : end - self.first]


def attention_rows(folder: str, ids: list[int], first: int, *, chunk: int = 512) -> Reference:
    """Attention of rows `first` onwards; the rows before are prefilled without keeping theirs (17 GiB at 4096).

    What an earlier call has prefilled of the same tokens is not computed again, where every layer keeps all of it.
    """
    from transformers.cache_utils import Cache

    model = _model(folder)
    start, cache, values = _begun(folder, ids, first)
    update = Cache.update

    def watched(self: Any, keys: torch.Tensor, given: torch.Tensor, layer: int, *more: Any, **options: Any) -> Any:
        values.setdefault(layer, []).append(given[0].clone())
        return update(self, keys, given, layer, *more, **options)

    latent = {type(module) for module in model.modules() if hasattr(module, "expand_kv")}
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        stack.enter_context(mock.patch.object(Cache, "update", watched))
        for kind in latent:  # a latent's cache holds no values
            stack.enter_context(mock.patch.object(kind, "expand_kv", _expanded(kind.expand_kv, values)))
        for at in range(start, first, chunk):
            part = torch.tensor([ids[at : min(first, at + chunk)]])
            cache = model(part, past_key_values=cache, use_cache=True, logits_to_keep=1).past_key_values
        out = model(torch.tensor([ids[first:]]), past_key_values=cache, output_attentions=True, logits_to_keep=1)
    whole = {layer: torch.cat(parts, dim=1) for layer, parts in values.items()}
    if first > chunk and not latent and all(type(layer).__name__ == "DynamicLayer" for layer in cache.layers):
        _prefilled[:] = [*_prefilled[-2:], (folder, ids, cache, whole)]
    return Reference(torch.stack([layer[0] for layer in out.attentions]), first, whole)


_prefilled: list[tuple[str, list[int], Any, dict[int, torch.Tensor]]] = []
"""Of the last long ones: model, tokens, cache and values."""


def _begun(folder: str, ids: list[int], first: int) -> tuple[int, Any, dict[int, list[torch.Tensor]]]:
    """How many of the first tokens are there already, their cache and their values."""
    longest: tuple[int, Any, dict[int, list[torch.Tensor]]] = (0, None, {})
    for model, known, cache, values in _prefilled:
        differing = (at for at, (one, other) in enumerate(zip(ids, known, strict=False)) if one != other)
        same = min(next(differing, min(len(ids), len(known))), first)
        if model == folder and same > longest[0]:
            begun = deepcopy(cache)
            begun.crop(same)
            longest = same, begun, {layer: [each[:, :same]] for layer, each in values.items()}
    return longest


def _expanded(right: Any, values: dict[int, list[torch.Tensor]]) -> Any:
    def expand_kv(self: Any, *arguments: Any) -> Any:
        keys, found = right(self, *arguments)
        values[self.layer_idx] = [found[0].clone()]
        return keys, found

    return expand_kv


def written(
    reference: Reference,
    folder: str,
    prompt_tokens: int,
    answer: list[int],
    needle_span: tuple[int, int],
    windows: tuple[int | None, ...] | None = None,
) -> torch.Tensor:
    """`write` by its definition, `[layers, heads]`: φ of every key, one by one (LOCOS, arXiv 2607.01002, section 3)."""
    model = _model(folder)
    decoder = model.model.language_model if hasattr(model.model, "language_model") else model.model
    unembedding = model.get_output_embeddings().weight[answer].detach()
    weights = reference.rows(prompt_tokens - 1, prompt_tokens - 1 + len(answer))
    layers, heads, steps, keys = weights.shape
    found = torch.zeros(layers, heads)
    for layer in range(layers):
        window = windows[layer] if windows else None
        source = layer
        while source not in reference.values or (windows and windows[source] != window):
            source -= 1
        values = reference.values[source]
        values = values.repeat_interleave(heads // len(values), dim=0)
        projection = decoder.layers[layer].self_attn.o_proj.weight.detach().unflatten(1, (heads, -1))
        pushed = torch.einsum("se,ehv,hkv->hsk", unembedding, projection, values)
        phi = weights[layer] * pushed
        for step in range(steps):
            row = prompt_tokens - 1 + step
            seen = torch.arange(keys).le(row) & torch.arange(keys).gt(row - (window or keys + 1))
            needle = seen & torch.arange(keys).ge(needle_span[0]) & torch.arange(keys).lt(needle_span[1])
            n, m = int(needle.sum()), int(seen.sum() - needle.sum())
            found[layer] += (phi[:, step, needle].sum(-1) - n / m * phi[:, step, seen & ~needle].sum(-1)) / steps
    return found


def gated_delta_rows(folder: str, ids: list[int]) -> dict[int, torch.Tensor]:
    """Effective attention of every gated delta layer, `[heads, rows, keys]`, signed, by layer.

    The output is linear in the values: given the identity for values, transformers' own recurrence puts out weights.
    """
    from transformers.models.qwen3_next import modeling_qwen3_next as modeling

    found: dict[int, torch.Tensor] = {}
    right = modeling.torch_chunk_gated_delta_rule
    layers = [layer for layer, kind in enumerate(_model(folder).config.layer_types) if kind == "linear_attention"]

    def watched(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: Any) -> Any:
        each = torch.eye(value.shape[1])[None, :, None].expand(-1, -1, value.shape[2], -1)
        weights, _ = modeling.torch_recurrent_gated_delta_rule(query, key, each, **options)
        found[layers[len(found)]] = weights[0].transpose(0, 1)
        return right(query, key, value, **options)

    with torch.inference_mode(), mock.patch.object(modeling, "torch_chunk_gated_delta_rule", watched):
        _model(folder)(torch.tensor([ids]), logits_to_keep=1)
    return found


@torch.inference_mode()
def gated_written(
    folder: str, ids: list[int], prompt_tokens: int, answer: list[int], needle_span: tuple[int, int]
) -> dict[int, torch.Tensor]:
    """`write` of the attention layers of Qwen3-Next, whose output goes through a sigmoid gate, `[heads]` by layer."""
    model = _model(folder)
    rows = slice(prompt_tokens - 1, prompt_tokens - 1 + len(answer))
    layers = {at: layer.self_attn for at, layer in enumerate(model.model.layers) if hasattr(layer, "self_attn")}
    seen: dict[int, torch.Tensor] = {}
    hooks = [
        layer.q_proj.register_forward_hook(lambda _, given, out, at=at: seen.__setitem__(at, out[0]))
        for at, layer in layers.items()
    ]
    out = model(torch.tensor([ids]), output_attentions=True, use_cache=True)
    for hook in hooks:
        hook.remove()
    found = {}
    weights = [each for each in out.attentions if each is not None]
    for (at, layer), each in zip(layers.items(), weights, strict=True):
        alpha, values = each[0, :, rows], out.past_key_values.layers[at].values[0]
        heads, size = alpha.shape[0], layer.head_dim
        values = values.repeat_interleave(heads // len(values), dim=0)
        gates = seen[at][rows].view(len(answer), heads, 2 * size)[..., size:].sigmoid()
        projection = layer.o_proj.weight.unflatten(1, (heads, -1))
        unembedding = model.get_output_embeddings().weight[answer]
        phi = alpha * torch.einsum("se,ehv,shv,hkv->hsk", unembedding, projection, gates, values)
        needle = slice(*needle_span)
        n, total = needle_span[1] - needle_span[0], phi.sum(-1)
        inside = phi[..., needle].sum(-1)
        m = torch.arange(rows.start, rows.stop) + 1 - n
        found[at] = (inside - n / m * (total - inside)).mean(-1)
    return found


def masked_logprob(folder: str, ids: list[int], heads: list[list[int]]) -> float:
    """Mean log probability of a prompt's tokens but the first, with heads' outputs zero at their output projection."""
    model = _model(folder)
    decoder = model.model.language_model if hasattr(model.model, "language_model") else model.model
    hooks = []
    for layer, head in heads:
        block = decoder.layers[layer]
        attention = block.self_attn if hasattr(block, "self_attn") else block.linear_attn
        projection = attention.o_proj if hasattr(attention, "o_proj") else attention.out_proj
        size = projection.in_features // 4

        def silence(_: Any, inputs: tuple[torch.Tensor], head: int = head, size: int = size) -> tuple[torch.Tensor]:
            output = inputs[0].clone()
            output[..., head * size : (head + 1) * size] = 0
            return (output,)

        hooks.append(projection.register_forward_pre_hook(silence))
    try:
        with torch.inference_mode():
            logits = model(torch.tensor([ids])).logits[0, :-1]
    finally:
        for hook in hooks:
            hook.remove()
    return float(logits.log_softmax(-1).gather(-1, torch.tensor(ids[1:])[:, None]).mean())


@torch.inference_mode()
def streamed_logprobs(folder: str, ids: list[int], heads: list[list[int]], stream: dict[str, Any]) -> torch.Tensor:
    """Log probabilities behind every token, `[tokens, vocabulary]`, where heads see sinks and a window alone.

    One forward whose attention masks say, head by head, which keys each row sees.
    """
    model = _model(folder)
    row, key = torch.arange(len(ids))[:, None], torch.arange(len(ids))
    causal = key <= row
    oldest = row - stream["recent"] + 1 if stream["anchor"] == "row" else stream["context"] - stream["recent"]
    kept = causal & ((key < stream["sink"]) | (key >= oldest))
    if not stream["prefill"]:
        kept = torch.where(row < stream["context"], causal, kept)
    hooks = []
    decoder = model.model.language_model if hasattr(model.model, "language_model") else model.model
    for number, layer in enumerate(decoder.layers):
        of_layer = model.config.get_text_config().num_attention_heads
        seen = torch.stack([kept if [number, head] in heads else causal for head in range(of_layer)])

        def with_mask(_: Any, inputs: Any, given: dict[str, Any], seen: torch.Tensor = seen) -> Any:
            own = given["attention_mask"]  # causal, and the layer's own window
            return inputs, {**given, "attention_mask": own.masked_fill(~seen, torch.finfo(own.dtype).min)}

        hooks.append(layer.self_attn.register_forward_pre_hook(with_mask, with_kwargs=True))
    try:
        return model(torch.tensor([ids])).logits[0].log_softmax(-1)
    finally:
        for hook in hooks:
            hook.remove()


def head_scores(
    reference: Reference,
    prompt_tokens: int,
    answer: list[int],
    needle_span: tuple[int, int],
    needle: list[int],
    question_span: tuple[int, int],
) -> dict[str, torch.Tensor]:
    """`copy`, `copy_reference`, `mass` and `query` by their definitions, each `[layers, heads]`."""
    weights = reference.rows(prompt_tokens - 1, prompt_tokens - 1 + len(answer))
    start, end = needle_span
    layers, heads = weights.shape[:2]
    argmax = weights.argmax(-1)
    copied, counted = torch.zeros(layers, heads), torch.zeros(layers, heads)
    for layer in range(layers):
        for head in range(heads):
            hits = [
                int(position)
                for position, token in zip(argmax[layer, head], answer, strict=True)
                if start <= position < end and needle[position - start] == token
            ]
            copied[layer, head] = len(set(hits)) / (end - start)
            counted[layer, head] = len(hits) / (end - start)
    asked = reference.rows(*question_span)
    return {
        "copy": copied,
        "copy_reference": counted,
        "mass": weights[..., start:end].sum(-1).mean(-1),
        "query": asked[..., start:end].sum(-1).mean(-1),
    }


def repeated_scores(weights: torch.Tensor, period: int) -> dict[str, torch.Tensor]:
    """`induction` and `echo` of a repeated text's rows `[layers, heads, tokens, tokens]`, each `[layers, heads]`."""
    rows = range(period, weights.shape[2])
    induction, echo = torch.zeros(weights.shape[:2]), torch.zeros(weights.shape[:2])
    for row in rows:
        for copy in range(row % period, row, period):  # the token's earlier copies
            echo += weights[:, :, row, copy]
            induction += weights[:, :, row, copy + 1]
    return {"induction": induction / len(rows), "echo": echo / len(rows)}


def r2_bounds(weights: torch.Tensor, needle_span: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """`r2` by its definition, `[layers, heads]`, as little and as much as it may be: of keys whose weights differ by
    less than float32's noise across the last place of the top n, either may be in it.

    Args:
        weights: Of the answer's rows, `[layers, heads, rows, keys]`.
        needle_span: Of n tokens.
    """
    start, end = needle_span
    count = end - start
    best = weights.topk(count + 1, -1).values
    own = weights[..., start:end]
    high = own * (best[..., count - 1, None] <= 1.0001 * own)  # fewer than n keys have more
    low = own * (best[..., count, None] <= 0.9999 * own)  # itself is one of those that have as much
    low, high = low.sum((-1, -2)) / count, high.sum((-1, -2)) / count
    return low, high


_models: dict[str, Any] = {}


def _model(folder: str) -> Any:
    if folder not in _models:
        import transformers

        config = transformers.AutoConfig.from_pretrained(folder)
        kind = getattr(transformers, config.architectures[0])
        model = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        _models[folder] = model.eval()
    return _models[folder]

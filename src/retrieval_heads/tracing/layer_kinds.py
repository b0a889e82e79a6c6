"""The kinds of attention whose heads can be scored; the one place to add another.

A kind says by a module's class and shape whether it is meant, what to take from each step of a request, and how rows
are scored with it: never by a model's name. Checked on vLLM 0.26.0 and 0.32.0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import Module, functional

from retrieval_heads.tracing.attention import scorer, written_scorer
from retrieval_heads.tracing.attention_torch import score_layers_read, score_rows
from retrieval_heads.tracing.declared import unscored_feature, why_refused
from retrieval_heads.tracing.emissions import Emission
from retrieval_heads.tracing.gated_delta import recurrence, score_rows_gated_delta
from retrieval_heads.tracing.key_weights import Softmax, Weighed, weigh, weigh_gated_delta
from retrieval_heads.tracing.keys import KeyOrder, key_order, key_scales, value_order, value_scales
from retrieval_heads.tracing.projections import projection_weight, pulls
from retrieval_heads.tracing.rows import FP8, RowScores, Stretch, joined
from retrieval_heads.tracing.streamed import Seen, attended, write
from retrieval_heads.tracing.written_torch import needle_blocks, needle_outputs, needle_rows, written

if TYPE_CHECKING:
    from nnsight.intervention.envoy import Envoy
    from vllm.v1.attention.backend import AttentionMetadata

Memory = dict[str, Any]
"""What a kind keeps of a request in one layer from step to step: its own affair."""

_orders: dict[tuple[object, ...], KeyOrder] = {}
_checked: set[int] = set()


@dataclass(frozen=True)
class Part:
    """A replay's part of one forward.

    Args:
        row: The request's row in the batch.
        start: Of its tokens among all of the forward.
        position: Of the first of them in the request.
        tokens: How many of its tokens are computed.
        stretches: The rows to score, in the order of the replay's looks: without rows where this step has none of a
            look's. The first are all of the step's, at the needle.
        emission: Those of them whose writing is wanted, and the tokens that they predicted; `None` if there are none.
        weighed: The rows, among those first ones, whose weights on single keys are added up.
    """

    row: int
    start: int
    position: int
    tokens: int
    stretches: tuple[Stretch, ...]
    emission: Emission | None = None
    weighed: tuple[Weighed, ...] = ()

    @property
    def own(self) -> slice:
        """The request's tokens among those of the forward."""
        return slice(self.start, self.start + self.tokens)

    @property
    def scored(self) -> tuple[Stretch, ...]:
        """The stretches that have rows in this step."""
        return tuple(stretch for stretch in self.stretches if stretch.rows)

    def rows(self, stretch: Stretch) -> slice:
        """Its rows among the request's tokens of this forward."""
        return slice(stretch.first - self.position, stretch.end - self.position)


class Batch:
    """The replays of one forward.

    Args:
        parts: Each replay's.
        device: Where the model is.
        needs: What is wanted of rows beyond argmax and weights (`HeadScore.needs`).
        unembed: Gives the unembedding's rows of token ids; of replays whose writing is wanted.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        device: torch.device,
        needs: frozenset[str] = frozenset(),
        unembed: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.parts = tuple(parts)
        self.needs = needs
        self._unembed = unembed
        self.scored = tuple((part, stretch) for part in parts for stretch in part.scored)
        """Whose rows are wanted, in order: `take` and `score` give the rows of one stretch after the other."""
        self.stretches = tuple(stretch for _, stretch in self.scored)
        self.weighed = tuple(self._weighed())
        """Whose weights on single keys are added up."""
        self.device = device
        self._end = max((stretch.end for stretch in self.stretches), default=0)
        self.emissions = tuple(self._emissions())
        """Whose writing is wanted, in order: `emitted` are their rows, one emission after the other."""

    def _emissions(self) -> Iterator[Emission]:
        place = 0
        for number, (part, stretch) in enumerate(self.scored):
            if part.emission is not None and stretch is part.stretches[0]:
                yield replace(part.emission, stretch=number, place=place + part.emission.first - stretch.first)
            place += stretch.rows

    def _weighed(self) -> Iterator[Weighed]:
        place = 0
        for number, part in enumerate(self.parts):
            for each in part.weighed:
                yield replace(each, part=number, place=place + each.first - part.stretches[0].first)
            place += sum(stretch.rows for stretch in part.scored)

    @cached_property
    def rows(self) -> Tensor:
        """The wanted rows of all among the forward's tokens, `[rows]`."""
        rows: list[int] = []
        for part, stretch in self.scored:
            own = part.rows(stretch)
            rows += range(part.start + own.start, part.start + own.stop)
        return host_ints(rows, self.device)

    @cached_property
    def emitted(self) -> Tensor:
        """The emissions' rows among the forward's tokens, `[W]`."""
        rows: list[int] = []
        for emission in self.emissions:
            part = self.scored[emission.stretch][0]
            start = part.start + emission.first - part.position
            rows += range(start, start + len(emission.tokens))
        return host_ints(rows, self.device)

    @cached_property
    def unembedding(self) -> Tensor:
        """Row u_y of the token that each of these rows predicted, `[W, hidden]`; every rank asks for it."""
        assert self._unembed is not None, "whose writing is wanted has an unembedding"
        return self._unembed(host_ints([token for one in self.emissions for token in one.tokens], self.device))

    @cached_property
    def _places(self) -> Tensor:
        return host_ints([part.row for part, _ in self.scored], self.device)

    def block_table(self, whole: Tensor, block_size: int) -> Tensor:
        """The scored stretches' rows of vLLM's block table, as far as their rows see: `[stretches, blocks]`."""
        return whole[:, : -(-self._end // block_size)].index_select(0, self._places)

    def split(self, rows: Tensor) -> Sequence[Tensor]:
        """What was taken of all, stretch by stretch."""
        parts: tuple[Tensor, ...] = rows.split([stretch.rows for stretch in self.stretches])
        return parts


def host_ints(numbers: Sequence[int], device: torch.device) -> Tensor:
    """Integers there; a copy from memory that is not pinned would wait for the device."""
    return torch.tensor(numbers, dtype=torch.int64, pin_memory=device.type == "cuda").to(device, non_blocking=True)


@dataclass(frozen=True)
class Output:
    """What a layer's heads put out on a step's emissions, W rows.

    Args:
        heads: `[W, heads, value_size]`, before anything that stands between attention and projection.
        gates: What each number of it was multiplied by on its way to the projection; `None` is by nothing.
        projection: The module that takes it to the hidden state.
    """

    heads: Tensor
    gates: Tensor | None
    projection: Module


@dataclass(frozen=True)
class Taken:
    """What a layer gave in a step.

    Args:
        module: The layer.
        rows: The wanted rows' queries, `[rows, heads, head_size]`; this rank's heads.
        memories: What the kind keeps of the layer from step to step, of each scored stretch's request.
        output: What it wrote, where that is wanted.
    """

    module: Module
    rows: Tensor
    memories: Sequence[Memory] = ()
    output: Output | None = None


class LayerKind(Protocol):
    """A kind of attention layer."""

    name: str
    """Names it in head files."""
    how: str
    """How its heads are scored, for people."""
    needs_whole_context: bool
    """Whether a replay has to compute every token, since the cache does not hold what the scores need."""
    is_signed: bool
    """Whether a weight can be negative: then there is an argmax by magnitude and one by value."""
    has_queries: bool
    """Whether a query of zeros sees all tokens alike, which the mask `uniform` lives on."""
    lacks: Mapping[str, str]
    """What of `looks.NEEDS` its rows do not give, and why."""
    streams_by_kernel: bool
    """Whether on a GPU heads stream without rows × keys standing in memory."""
    is_paged: bool
    """Whether all that `take` and `score` read are queries and a paged cache of keys, so that rows can be scored behind
    the step that wrote them."""

    def refusal(self, module: Module) -> str | None:
        """Why this module cannot be scored; `None` where it can; a module of another class is not asked."""

    def heads(self, module: Module) -> int:
        """Query heads (value heads of a recurrence), of this rank."""

    def kv_heads(self, module: Module) -> int | None:
        """How many KV heads those share in groups; `None` where they do not."""

    def group(self, module: Module) -> int:
        """How many query heads share a KV head, which stream together; 0 where no key of a token is kept."""

    def value_size(self, module: Module) -> int:
        """Features of a head at the input of the output projection."""

    def window(self, module: Module) -> int | None:
        """Keys that a row sees; `None` is all."""

    def read(self, envoy: Envoy) -> tuple[Tensor, ...]:
        """Wait for the layer inside a traced block; what `take` is given of all tokens of the forward."""

    def take(self, module: Module, values: tuple[Tensor, ...], batch: Batch, memories: Sequence[Memory]) -> Tensor:
        """The wanted rows' queries, as a copy: vLLM's kernels go on to write where they lie.

        Args:
            module: The layer.
            values: What `read` gave.
            batch: Whose rows are wanted.
            memories: What this kind keeps of the layer from step to step, of each part.
        """

    def queries(self, envoy: Envoy) -> Tensor:
        """Wait for the layer inside a traced block; a view of this step's queries, `[tokens, heads, head_size]`, that
        the layer goes on to read. Only where it `has_queries`.
        """

    def stream(self, module: Module, queries: Tensor, seen: Seen, streaming: Tensor, output: Tensor) -> None:
        """Write what heads put out that see some keys alone, once these are in the cache. Only where keys of tokens are
        kept (`group`).

        Args:
            module: The layer.
            queries: `[N, R, heads, head_size]`.
            seen: The keys.
            streaming: Which heads of which request, `[requests that stream, heads]`.
            output: What all had put out, `[tokens, heads, value_size]`.
        """

    def score(self, taken: Sequence[Taken], batch: Batch) -> list[RowScores]:
        """Score the wanted rows of layers of this kind, once their keys are in the cache."""

    def weigh(self, taken: Sequence[Taken], scores: Sequence[RowScores], batch: Batch) -> list[list[Tensor]]:
        """Add up weights on single keys, once the same rows are scored: of each layer for each of `batch.weighed`,
        `[sums, heads]`.
        """


class _Softmax:
    """What all softmax attention has in common: queries on the way in, and keys that stay in the cache."""

    needs_whole_context = False
    is_signed = False
    has_queries = True
    lacks: Mapping[str, str] = {}
    streams_by_kernel = False
    is_paged = False

    def queries(self, envoy: Envoy) -> Tensor:
        """See `LayerKind`."""
        raise NotImplementedError

    def read(self, envoy: Envoy) -> tuple[Tensor, ...]:
        """The queries."""
        return (self.queries(envoy),)

    def take(self, module: Module, values: tuple[Tensor, ...], batch: Batch, memories: Sequence[Memory]) -> Tensor:
        """The queries."""
        return values[0].index_select(0, batch.rows)


class SoftmaxAttention(_Softmax):
    """vLLM's `Attention`: softmax over paged keys, in any of its windows, soft caps, sinks and slopes."""

    name = "attention"
    how = "softmax over the paged keys; window, soft cap, sinks and ALiBi as the layer has them"
    streams_by_kernel = True
    is_paged = True

    def refusal(self, module: Module) -> str | None:
        """Attention of an encoder, or over an encoder's output, sees other keys than a decoder's; and what the layer's
        implementation declares has to be what is scored.
        """
        from vllm.v1.attention.backend import AttentionType

        if module.attn_type != AttentionType.DECODER:
            return f"Attention ({module.attn_type})"
        refused = why_refused(module)
        return f"Attention {refused}" if refused else None

    def heads(self, module: Module) -> int:
        """Query heads."""
        return int(module.num_heads)

    def kv_heads(self, module: Module) -> int:
        """They share keys in groups, as their numbers tell."""
        return int(module.num_kv_heads)

    def group(self, module: Module) -> int:
        """Query heads of a KV head."""
        return int(module.num_heads // module.num_kv_heads)

    def value_size(self, module: Module) -> int:
        """Features of a value."""
        return int(module.head_size_v)

    def window(self, module: Module) -> int | None:
        """The sliding window."""
        window: int | None = module.sliding_window
        return window

    def queries(self, envoy: Envoy) -> Tensor:
        """The queries."""
        query: Tensor = envoy.inputs[0][0]
        return query.view(query.shape[0], -1, envoy._module.head_size)

    def stream(self, module: Module, queries: Tensor, seen: Seen, streaming: Tensor, output: Tensor) -> None:
        """Against keys and values of the paged cache."""
        _check([module])
        table, cells = _metadata(module).block_table, _cells(module)
        if cells.cache.is_cuda and cells.keys is not None and cells.values is not None:
            from retrieval_heads.tracing.streamed_triton import write_attended

            options = {**cells.options, "k_scale": cells.key_scale, "v_scale": cells.value_scale}
            write_attended(queries, cells.keys, cells.values, table, seen, streaming, output, **options)
            return
        cache, order, values, options = cells.cache, _order(module), _value_order(module), dict(cells.options)
        key_scale, value_scale = cells.key_scale, cells.value_scale
        shared, heads, are_alike = _streaming_heads(streaming, seen, self.group(module))
        if not len(shared):
            return
        for name in ("sinks", "alibi_slopes"):
            if options[name] is not None:
                options[name] = options[name][heads]
        seen = seen.in_blocks(order.shape[0])
        read_keys = _times(seen.read(cache, order, table, shared), _of_heads(key_scale, shared))
        read_values = _times(seen.read(cache, values, table, shared), _of_heads(value_scale, shared))
        own = queries.unflatten(2, (-1, self.group(module))).permute(0, 2, 3, 1, 4).index_select(1, shared)
        found = attended(own.flatten(1, 2).transpose(1, 2), read_keys, read_values, seen, **options)
        write(found, seen, None if are_alike else streaming, output, heads)

    def score(self, taken: Sequence[Taken], batch: Batch) -> list[RowScores]:
        """In groups that share a block table, a kind of cache and a mask: one call of the kernel each."""
        found: list[RowScores | None] = [None] * len(taken)
        for group in _alike(taken):
            layers = [taken[layer] for layer in group]
            _check([one.module for one in layers])
            for layer, scores in zip(group, self._score(layers, batch), strict=True):
                found[layer] = scores
            wanted = [layer for layer in group if batch.emissions and taken[layer].output is not None]
            for alike in _written_alike(taken, wanted):
                known = [one for layer in alike if (one := found[layer]) is not None]
                with_written = self._write([taken[layer] for layer in alike], known, batch)
                for layer, scores in zip(alike, with_written, strict=True):
                    found[layer] = scores
        return [one for one in found if one is not None]

    def _score(self, taken: Sequence[Taken], batch: Batch) -> list[RowScores]:
        modules = [one.module for one in taken]
        module, impl = modules[0], modules[0].impl
        cache, order, options = module.kv_cache, _order(module), _options(module)
        block_table = batch.block_table(_metadata(module).block_table, order.shape[0])
        has_sinks = getattr(impl, "sinks", None) is not None
        sinks = torch.stack([each.impl.sinks for each in modules]) if has_sinks else None
        whole = torch.stack([one.rows for one in taken])
        views = [order.view(each.kv_cache) for each in modules]
        if all(view is not None for view in views):
            scores = scorer(cache.device)(
                whole,
                views,
                block_table,
                batch.stretches,
                sinks=sinks,
                k_scale=_key_scales(modules),
                **options,
            )
            return list(_unstacked(scores))
        parts = whole.split([stretch.rows for stretch in batch.stretches], dim=1)
        return list(
            _unstacked(
                joined(
                    [
                        score_layers_read(
                            rows,
                            [partial(_packed_keys, each, order, block_ids) for each in modules],
                            self.kv_heads(module),
                            stretch,
                            sinks=sinks,
                            **options,
                        )
                        for rows, block_ids, stretch in zip(parts, block_table, batch.stretches, strict=True)
                    ]
                )
            )
        )

    def _write(self, taken: Sequence[Taken], scores: Sequence[RowScores], batch: Batch) -> list[RowScores]:
        """The layers' scores with what they wrote."""
        modules, outputs = [one.module for one in taken], [one.output for one in taken if one.output is not None]
        module, order, values = modules[0], _order(modules[0]), _value_order(modules[0])
        weights = [projection_weight(output.projection) for output in outputs]
        block_table = batch.block_table(_metadata(module).block_table, order.shape[0])
        gates = [output.gates for output in outputs if output.gates is not None]
        is_whole = weights[0] is not None
        options = {
            "logsumexp": torch.stack([one.logsumexp for one in scores]),
            "outputs": torch.stack([output.heads for output in outputs]),
            "projections": weights if is_whole else [pulls(one.projection, batch.unembedding) for one in outputs],
            "unembedding": batch.unembedding if is_whole else None,
            "gates": torch.stack(gates) if gates else None,
            "k_scale": _key_scales(modules),
            "v_scale": _stacked_scales([value_scales(each) for each in modules]),
            **_options(module),
        }
        q = torch.stack([one.rows for one in taken])
        k_caches, v_caches = ([each.view(one.kv_cache) for one in modules] for each in (order, values))
        score_written = written_scorer(module.kv_cache.device)
        if any(cache is None for cache in (*k_caches, *v_caches)):  # brought into order, as far as needles reach
            blocks = needle_blocks(batch.emissions, block_table, order.shape[0])
            k_caches, v_caches = ([each.paged(one.kv_cache, blocks.ids) for one in modules] for each in (order, values))
            block_table = blocks.table
        written = score_written(q, k_caches, v_caches, block_table, batch.emissions, **options)
        return [replace(one, written=here) for one, here in zip(scores, written, strict=True)]

    def weigh(self, taken: Sequence[Taken], scores: Sequence[RowScores], batch: Batch) -> list[list[Tensor]]:
        """In the same groups, one weighing after the other."""
        found: list[list[Tensor]] = [[] for _ in taken]
        for group in _alike(taken):
            layers = [taken[layer] for layer in group]
            module = layers[0].module
            softmax = Softmax(**_options(module))
            q = torch.stack([one.rows for one in layers])
            logsumexp = torch.stack([scores[layer].logsumexp for layer in group])
            for weighed in batch.weighed:
                sums = weigh(
                    weighed,
                    q[:, weighed.own],
                    logsumexp[:, weighed.own],
                    partial(_keys_between, [one.module for one in layers], batch.parts[weighed.part].row),
                    softmax,
                )
                for layer, one in zip(group, sums, strict=True):
                    found[layer].append(one)
        return found


def _options(module: Module) -> dict[str, Any]:
    """What of a layer changes its weights, beside the keys' scale and sinks."""
    impl = module.impl
    return {
        "scale": float(impl.scale),
        "sliding_window": module.sliding_window,
        "soft_cap": impl.logits_soft_cap or None,
        "alibi_slopes": getattr(impl, "alibi_slopes", None),
    }


def _keys_between(modules: Sequence[Module], row: int, start: int, stop: int) -> Tensor:
    """A request's keys of alike layers at some positions, float32 `[layers, stop - start, kv_heads, head_size]`."""
    order, blocks = _order(modules[0]), _metadata(modules[0]).block_table[row]
    size = order.shape[0]
    first = start // size
    ids = blocks[first : -(-stop // size)]
    own = slice(start - first * size, stop - first * size)
    keys = []
    for module in modules:
        view = order.view(module.kv_cache)
        if view is None:
            read = order.read(module.kv_cache, ids)
        else:
            cells = view.view(torch.uint8) if view.dtype == FP8 else view  # which has no index_select
            read = cells.index_select(0, ids).transpose(1, 2).flatten(0, 1)
            read = read.view(FP8) if read.dtype == torch.uint8 else read
        keys.append(_scaled(read[own].float(), module))
    return torch.stack(keys)


def _packed_keys(module: Module, order: KeyOrder, block_ids: Tensor, start: int, stop: int) -> Tensor:
    """One request's keys of one layer at some positions, brought into order, `[kv_heads, stop - start, head_size]`."""
    size = order.shape[0]
    first = start // size
    keys = order.read(module.kv_cache, block_ids[first : -(-stop // size)])
    return _scaled(keys[start - first * size : stop - first * size], module).transpose(0, 1)


class LatentAttention(_Softmax):
    """vLLM's `MLAAttention` (DeepSeek): scored in the latent space, where all heads share one key.

    The key of position j is its latent `c_j` beside its rotated part; a head's query is its own, carried into that
    space: `(q_nope · W_UK) · c_j + q_rope · k_rope_j` (DeepSeek-V2, arXiv 2405.04434, section 2.1).
    """

    name = "latent attention"
    how = "softmax in the latent space: each head's query times its W_UK against the cached latents"

    def refusal(self, module: Module) -> str | None:
        """A sparse index lets a row see some keys alone; quantised latents are packed in other ways; and with context
        parallelism a rank has some of the keys.
        """
        if feature := unscored_feature(module):
            return f"MLAAttention {feature}"
        if getattr(module, "use_sparse", False) or getattr(module, "indexer", None) is not None:
            return "MLAAttention with a sparse index"
        if str(module.kv_cache_dtype).startswith(("fp8", "nvfp4")):
            return f"MLAAttention with a cache of {module.kv_cache_dtype}"
        return None

    def heads(self, module: Module) -> int:
        """Query heads."""
        return int(module.num_heads)

    def kv_heads(self, module: Module) -> None:
        """None: one latent key is for all heads."""

    def group(self, module: Module) -> int:
        """All: they share the latents."""
        return int(module.num_heads)

    def value_size(self, module: Module) -> int:
        """Features of a value."""
        return int(module.v_head_dim)

    def window(self, module: Module) -> int | None:
        """The sliding window."""
        window: int | None = getattr(module, "sliding_window", None)
        return window

    def queries(self, envoy: Envoy) -> Tensor:
        """The queries."""
        module, query = envoy._module, envoy.inputs[0][0]
        return query.view(query.shape[0], -1, module.qk_nope_head_dim + module.qk_rope_head_dim)

    def stream(self, module: Module, queries: Tensor, seen: Seen, streaming: Tensor, output: Tensor) -> None:
        """Against the latents, whose sum each head's W_UV carries out of their space."""
        cache, metadata = module.kv_cache, _metadata(module)
        tables = [_latent_blocks(metadata, tile.row) for tile in seen.tiles]
        width = max(len(table) for table in tables)
        table = torch.stack([functional.pad(one, (0, width - len(one))) for one in tables])
        blocks, places = seen.cells_in(table, cache.shape[1])
        latents = cache[blocks, places][:, :, None].float()
        rows = into_latent_space(module, queries.flatten(0, 1)).unflatten(0, queries.shape[:2])
        scale, values = float(module.scale), latents[..., : module.kv_lora_rank]
        out = attended(rows, latents, values, seen, scale=scale, sliding_window=self.window(module))
        found = _out_of_latent_space(module, out.flatten(0, 1), queries.dtype).unflatten(0, queries.shape[:2])
        write(found, seen, streaming, output)

    def score(self, taken: Sequence[Taken], batch: Batch) -> list[RowScores]:
        """Layer by layer and stretch by stretch, all heads against one key head."""
        found = [
            joined(
                [
                    self._score(one.module, rows, part.row, stretch)
                    for rows, (part, stretch) in zip(batch.split(one.rows), batch.scored, strict=True)
                ]
            )
            for one in taken
        ]
        if not batch.emissions:
            return found
        return [
            scores if one.output is None else replace(scores, written=self._written(one, one.output, scores, batch))
            for one, scores in zip(taken, found, strict=True)
        ]

    def _written(self, taken: Taken, output: Output, scores: RowScores, batch: Batch) -> Tensor:
        """What a layer wrote: a key's value is its latent, carried out of that space by the head's W_UV."""
        module, weight = taken.module, projection_weight(output.projection)
        pull = pulls(output.projection, batch.unembedding) if weight is None else _pull(batch.unembedding, weight)
        pull = pull.view(output.heads.shape) * (1.0 if output.gates is None else output.gates.float())
        found, start = torch.full_like(scores.logsumexp, float("nan")), 0
        for one in batch.emissions:
            own, here = slice(one.place, one.place + len(one.tokens)), slice(start, start + len(one.tokens))
            row, window = batch.scored[one.stretch][0].row, self.window(module)
            positions = host_ints(one.needle(window), batch.device)
            blocks = _latent_blocks(_metadata(module), row)
            keys = needle_rows([module.kv_cache.unsqueeze(1)], blocks, positions, None)[0]
            latents = needle_outputs(
                into_latent_space(module, taken.rows[own]),
                keys,
                keys[..., : module.kv_lora_rank],
                positions,
                one.first,
                scores.logsumexp[own],
                scale=float(module.scale),
                sliding_window=window,
            )
            ratios = torch.tensor(one.ratios(window), device=batch.device)
            inside = _out_of_latent_space(module, latents, output.heads.dtype)
            found[own] = written(pull[here], inside, output.heads[here], ratios)
            start = here.stop
        return found

    def weigh(self, taken: Sequence[Taken], scores: Sequence[RowScores], batch: Batch) -> list[list[Tensor]]:
        """Layer by layer, against the latents."""
        return [
            [
                weigh(
                    weighed,
                    into_latent_space(one.module, one.rows[weighed.own])[None],
                    scored.logsumexp[None, weighed.own],
                    partial(_latents_between, one.module, batch.parts[weighed.part].row),
                    Softmax(float(one.module.scale), self.window(one.module)),
                )[0]
                for weighed in batch.weighed
            ]
            for one, scored in zip(taken, scores, strict=True)
        ]

    def _score(self, module: Module, rows: Tensor, row: int, stretch: Stretch) -> RowScores:
        cache = module.kv_cache.unsqueeze(1)
        blocks = _latent_blocks(_metadata(module), row)
        return score_rows(
            into_latent_space(module, rows),
            cache,
            blocks[: (stretch.end - 1) // cache.shape[2] + 1].long(),
            stretch.first,
            scale=float(module.scale),
            span=stretch.span,
            sliding_window=self.window(module),
            top=stretch.top,
            top_from=stretch.top_from,
        )


def _latents_between(module: Module, row: int, start: int, stop: int) -> Tensor:
    """A request's latents at some positions, float32 `[1, stop - start, 1, latent + rotated]`."""
    cache = module.kv_cache
    size = cache.shape[1]
    first = start // size
    ids = _latent_blocks(_metadata(module), row)[first : -(-stop // size)].long()
    latents = cache.index_select(0, ids).flatten(0, 1)[start - first * size : stop - first * size]
    return latents.float()[None, :, None]


class GatedDelta:
    """vLLM's `QwenGatedDeltaNetAttention` (Qwen3-Next, Qwen3.5): the effective attention of its recurrence.

    It keeps a state and no keys, so all tokens are computed again, and k, decay and write strength gathered from the
    two projections as they pass: `context × k_heads × head_k_dim` numbers of the model's dtype a layer, while one
    request is scored. Layers that decay by channel (Kimi), or project otherwise (Olmo), are of other classes.
    """

    name = "gated delta"
    how = "effective attention of the recurrence, by magnitude and by value; a replay computes the whole context"
    needs_whole_context = True
    is_signed = True
    has_queries = False
    lacks: Mapping[str, str] = {"written": "a recurrence keeps no value of a token"}
    streams_by_kernel = False
    is_paged = False

    def refusal(self, module: Module) -> str | None:
        """A formula for one decay a head and SiLU fits no other layer."""
        heads = module.num_v_heads // module.tp_size
        fits = (
            module.A_log.shape == module.dt_bias.shape == (heads,)
            and module.num_v_heads % module.num_k_heads == 0
            and module.conv1d.weight.shape[0] == (2 * module.key_dim + module.value_dim) // module.tp_size
            and module.activation == "silu"
        )
        return None if fits else f"{type(module).__name__} of another form"

    def heads(self, module: Module) -> int:
        """Value heads."""
        return int(module.num_v_heads // module.tp_size)

    def kv_heads(self, module: Module) -> None:
        """None: a recurrence keeps a state."""

    def group(self, module: Module) -> int:
        """0: a recurrence keeps a state, and no keys."""
        return 0

    def value_size(self, module: Module) -> int:
        """Features of a value."""
        return int(module.head_v_dim)

    def window(self, module: Module) -> int | None:
        """None: what decays, decays gradually."""
        return None

    def read(self, envoy: Envoy) -> tuple[Tensor, ...]:
        """What the two projections give."""
        return envoy.in_proj_qkvz.output[0], envoy.in_proj_ba.output[0]

    def take(self, module: Module, values: tuple[Tensor, ...], batch: Batch, memories: Sequence[Memory]) -> Tensor:
        """The queries; keys, decay and strength of all of the step's tokens go into the memories."""
        taken = []
        for part, memory in zip(batch.parts, memories, strict=True):
            queries = self._remember(module, [value[part.own] for value in values], memory)
            taken += [queries[part.rows(stretch)] for stretch in part.scored]
        rows = torch.cat(taken) if taken else values[0].new_empty((0, 1, 1))
        return rows.repeat_interleave(module.num_v_heads // module.num_k_heads, dim=1)

    def _remember(self, module: Module, values: Sequence[Tensor], memory: Memory) -> Tensor:
        """Put a request's tokens into its memory; their queries, `[tokens, k_heads, head_k_dim]`."""
        mixed, b, a = projected(module, *values)
        earlier = memory.get("earlier")
        found = recurrence(
            mixed,
            conv_weight(module),
            b,
            a,
            module.A_log,
            module.dt_bias,
            k_heads=module.num_k_heads // module.tp_size,
            head_k_dim=module.head_k_dim,
            earlier=earlier,
        )
        reach = module.conv_kernel_size - 1
        memory["earlier"] = (mixed if earlier is None else torch.cat([earlier, mixed]))[-reach:].clone()
        for name, part in (
            ("keys", found.keys.to(mixed.dtype)),
            ("log_decay", found.log_decay),
            ("strength", found.strength),
        ):
            memory.setdefault(name, []).append(part)
        return found.q

    def queries(self, envoy: Envoy) -> Tensor:
        """There are none that see all alike."""
        raise NotImplementedError("no query of a gated delta layer sees all tokens alike")

    def stream(self, module: Module, queries: Tensor, seen: Seen, streaming: Tensor, output: Tensor) -> None:
        """There are no keys."""
        raise NotImplementedError("a gated delta layer keeps no keys that rows could see some of")

    def score(self, taken: Sequence[Taken], batch: Batch) -> list[RowScores]:
        """Layer by layer and stretch by stretch, backwards through the context."""
        return [
            joined(
                [
                    self._score(rows, stretch, memory)
                    for rows, stretch, memory in zip(batch.split(one.rows), batch.stretches, one.memories, strict=True)
                ]
            )
            for one in taken
        ]

    def weigh(self, taken: Sequence[Taken], scores: Sequence[RowScores], batch: Batch) -> list[list[Tensor]]:
        """Layer by layer, in another pass backwards through the context each."""
        starts = {id(part): number for number, (part, _) in reversed(list(enumerate(batch.scored)))}
        return [
            [
                weigh_gated_delta(
                    weighed,
                    one.rows[weighed.own],
                    *_remembered(one.memories[starts[id(batch.parts[weighed.part])]]),
                )
                for weighed in batch.weighed
            ]
            for one in taken
        ]

    def _score(self, rows: Tensor, stretch: Stretch, memory: Memory) -> RowScores:
        keys, log_decay, strength = _remembered(memory)
        scores = score_rows_gated_delta(
            rows,
            stretch.first,
            keys,
            log_decay,
            strength,
            span=stretch.span,
            top=stretch.top,
            top_from=stretch.top_from,
        )
        return RowScores(
            argmax=scores.argmax_magnitude,
            logsumexp=torch.zeros_like(scores.span_share),
            span_logsumexp=scores.span_share.log(),
            argmax_by_value=scores.argmax_value,
            top_logsumexp=None if scores.top_share is None else scores.top_share.log(),
        )


def _remembered(memory: Memory) -> tuple[Tensor, Tensor, Tensor]:
    """Keys, decay and strength of all tokens so far, each put together once."""
    for name in ("keys", "log_decay", "strength"):
        memory[name] = [torch.cat(memory[name])]
    return memory["keys"][0], memory["log_decay"][0], memory["strength"][0]


REGISTRY: dict[str, LayerKind] = {
    "Attention": SoftmaxAttention(),
    "MLAAttention": LatentAttention(),
    "QwenGatedDeltaNetAttention": GatedDelta(),
}
"""By the name of vLLM's class. Exactly that class: one derived from it sees other keys, or weighs them otherwise."""

KINDS = {kind.name: kind for kind in REGISTRY.values()}
"""By the name that head files give them."""


def kind_of(module: Module) -> LayerKind | None:
    """The kind of a layer that can be scored."""
    kind = REGISTRY.get(type(module).__name__) if _mixes_tokens(module) else None
    return kind if kind is not None and kind.refusal(module) is None else None


def why_unscored(module: Module) -> str | None:
    """What a layer is that mixes tokens and cannot be scored; `None` for any other module."""
    if not _mixes_tokens(module):
        return None
    kind = REGISTRY.get(type(module).__name__)
    return (kind.refusal(module) if kind else None) or type(module).__name__


def _mixes_tokens(module: Module) -> bool:
    from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase

    return isinstance(module, AttentionLayerBase)


def projected(module: Module, qkvz: Tensor, ba: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A gated delta layer's q, k and v before their convolution, `[tokens, channels]`, and b and a,
    `[tokens, v_heads]`, of this rank.

    Args:
        module: The layer.
        qkvz: What its projection `in_proj_qkvz` gives; of every rank, rank by rank, or of this one.
        ba: What `in_proj_ba` gives.
    """
    heads, width = module.num_v_heads // module.tp_size, (2 * module.key_dim + module.value_dim) // module.tp_size
    qkvz, ba = _of_rank(module, qkvz, width + module.value_dim // module.tp_size), _of_rank(module, ba, 2 * heads)
    if module.gqa_interleaved_layout:
        q, k, v, _, b, a = module.fix_query_key_value_ordering(qkvz, ba)
        return torch.cat([q.flatten(1), k.flatten(1), v.flatten(1)], dim=-1), b, a
    return qkvz[:, :width], ba[:, :heads], ba[:, heads:]


def conv_weight(module: Module) -> Tensor:
    """A gated delta layer's convolution, `[channels, width]`; on CPU vLLM may pack the weight and keep a plain copy."""
    plain = getattr(module.conv1d, "_cpu_unpacked_conv_weight", None)
    weight: Tensor = module.conv1d.weight if plain is None else plain
    return weight.view(weight.shape[0], -1)


def _of_rank(module: Module, features: Tensor, width: int) -> Tensor:
    return features if features.shape[-1] == width else features[:, module.tp_rank * width :][:, :width]


def _check(modules: Sequence[Module]) -> None:
    """Refuse here what the weightless copy, by which layers are chosen, did not declare: it has no other ranks, and
    what a step's metadata says comes with the step.
    """
    for module in modules:
        if id(module.impl) not in _checked:
            if refused := why_refused(module):
                raise ValueError(f"this layer is Attention {refused}")
            _checked.add(id(module.impl))
    metadata = _metadata(modules[0])
    if not getattr(metadata, "causal", True):
        raise ValueError("in this step rows see what comes behind them")
    if getattr(metadata, "rswa_prefix_lens", None) is not None:
        raise ValueError("in this step rows see their prompt beside their window (R-SWA)")


def _metadata(module: Module) -> AttentionMetadata:
    from vllm.forward_context import get_forward_context

    return get_forward_context().attn_metadata[module.layer_name]


def _alike(taken: Sequence[Taken]) -> list[list[int]]:
    """The layers that can be scored together: one block table, one kind of cache, one mask."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for layer, one in enumerate(taken):
        module, cache, impl = one.module, one.module.kv_cache, one.module.impl
        key = (
            id(_metadata(module).block_table),
            (cache.shape, cache.stride(), cache.dtype, one.rows.shape),
            (impl.scale, module.sliding_window, impl.logits_soft_cap),
            getattr(impl, "sinks", None) is None,
            id(getattr(impl, "alibi_slopes", None)),
        )
        groups.setdefault(key, []).append(layer)
    return list(groups.values())


def _written_alike(taken: Sequence[Taken], layers: Sequence[int]) -> list[list[int]]:
    """The layers, of those scored together, whose writing can be as well; quantised projections are read one by one."""
    groups: dict[object, list[int]] = {}
    for layer in layers:
        output = taken[layer].output
        assert output is not None
        weight = projection_weight(output.projection)
        key = layer if weight is None else (weight.shape, weight.stride(), weight.dtype, output.gates is None)
        groups.setdefault(key, []).append(layer)
    return list(groups.values())


def _unstacked(scores: RowScores) -> Iterator[RowScores]:
    for layer in range(len(scores.argmax)):
        yield scores.each(itemgetter(layer))


def _order(module: Module) -> KeyOrder:
    return _known_order(module, key_order)


def _value_order(module: Module) -> KeyOrder:
    return _known_order(module, value_order)


def _known_order(module: Module, find: Callable[[Module], KeyOrder]) -> KeyOrder:
    cache = module.kv_cache
    key = (find, type(module.impl), cache.shape[1:], cache.dtype, module.dtype, getattr(module, "isa", None))
    if key not in _orders:
        _orders[key] = find(module)
    return _orders[key]


@dataclass(frozen=True)
class _Cells:
    """What streaming reads of a layer in every step: its cache as keys and as values, `None` where these lie on no
    grid, what they are multiplied by, and what else changes its weights.
    """

    cache: Tensor
    keys: Tensor | None
    values: Tensor | None
    key_scale: Tensor | None
    value_scale: Tensor | None
    options: Mapping[str, Any]


_known_cells: WeakKeyDictionary[Module, _Cells] = WeakKeyDictionary()


def _cells(module: Module) -> _Cells:
    """Put together once: on a GPU the host's work for a decode step is what its user waits for."""
    known, cache = _known_cells.get(module), module.kv_cache
    if known is None or known.cache is not cache:
        keys, values = _order(module).view(cache), _value_order(module).view(cache)
        options = {"sinks": getattr(module.impl, "sinks", None), **_options(module)}
        known = _Cells(cache, keys, values, key_scales(module), value_scales(module), options)
        _known_cells[module] = known
    return known


def _key_scales(modules: Sequence[Module]) -> Tensor | None:
    """The scales of alike layers' keys, `[layers]`, or `[layers, kv_heads]` where a layer has them by head."""
    return _stacked_scales([key_scales(module) for module in modules])


def _stacked_scales(of_layers: Sequence[Tensor | None]) -> Tensor | None:
    scales = [scale for scale in of_layers if scale is not None]
    if not scales:
        return None
    widest = max(scale.numel() for scale in scales)
    return torch.stack([scale.expand(widest) for scale in scales]).squeeze(1)


def _scaled(keys: Tensor, module: Module) -> Tensor:
    return _times(keys, key_scales(module))


def _streaming_heads(streaming: Tensor, seen: Seen, group: int) -> tuple[Tensor, Tensor, bool]:
    """The KV heads that stream in a request of these, their query heads, and whether they do in each of the requests;
    on a GPU, which would be waited for, all of them.
    """
    count = streaming.shape[1]
    if not streaming.is_cuda:
        return _heads_of(streaming.numpy().tobytes(), seen.requests_here, count, group)
    shared, heads = (torch.arange(number, device=streaming.device) for number in (count // group, count))
    return shared, heads, False


@lru_cache(maxsize=4096)
def _heads_of(streaming: bytes, requests: tuple[int, ...], count: int, group: int) -> tuple[Tensor, Tensor, bool]:
    """The same of `[all requests, count]` as bytes: layers ask it in every step, and masks are few."""
    own = torch.frombuffer(bytearray(streaming), dtype=torch.bool).view(-1, count)[list(requests)]
    shared = own.any(0)[::group].nonzero().flatten()
    heads = (shared[:, None] * group + torch.arange(group)).flatten()
    return shared, heads, bool((own == own[0]).all())


def _of_heads(scales: Tensor | None, heads: Tensor) -> Tensor | None:
    """The scales of some KV heads, of `[1]` or `[kv_heads]`."""
    return scales if scales is None or scales.numel() == 1 else scales[heads]


def _times(cells: Tensor, scales: Tensor | None) -> Tensor:
    """Keys or values `[..., kv_heads, size]`, multiplied by their scales, `[1]` or `[kv_heads]`."""
    return cells if scales is None else cells.float() * scales[:, None]


def _latent_blocks(metadata: AttentionMetadata, row: int) -> Tensor:
    """A request's blocks; vLLM keeps those of decodes, which stand first in a batch, and of prefills apart."""
    decodes = metadata.num_decodes
    part = metadata.decode if row < decodes else metadata.prefill
    blocks: Tensor = part.block_table[row if row < decodes else row - decodes]
    return blocks


def into_latent_space(module: Module, rows: Tensor) -> Tensor:
    """`[rows, heads, latent + rotated]` of queries `[rows, heads, nope + rotated]`."""
    plain, rotated = rows.split([module.qk_nope_head_dim, module.qk_rope_head_dim], dim=-1)
    plain = plain.transpose(0, 1).contiguous()
    if getattr(module.impl, "_w_uk_packed", None) is not None:  # AMX keeps W_UK in its own order alone
        from vllm import _custom_ops

        carried = plain.new_empty((*plain.shape[:2], module.kv_lora_rank))
        _custom_ops.bmm_cpu(carried, plain, module.impl._w_uk_packed, True, module.impl._w_scale)
    else:
        carried = torch.bmm(plain.float(), module.W_UK_T.float())
    return torch.cat([carried.transpose(0, 1).float(), rotated.float()], dim=-1)


def _out_of_latent_space(module: Module, latents: Tensor, dtype: torch.dtype) -> Tensor:
    """`[rows, heads, value size]` of latents `[rows, heads, latent]`, weighed: each head's W_UV."""
    if getattr(module, "W_UV", None) is not None:
        return torch.einsum("rhl,hlv->rhv", latents, module.W_UV.float())
    out = torch.empty(*latents.shape[:2], module.v_head_dim, dtype=dtype, device=latents.device)
    module._v_up_proj(latents.to(dtype), out)  # packed in an order of its own
    return out


def _pull(unembedding: Tensor, weight: Tensor) -> Tensor:
    return unembedding.float() @ weight.float()

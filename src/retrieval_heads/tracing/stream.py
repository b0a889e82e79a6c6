"""Heads that stream: in rows behind a context they see its first tokens and the last ones alone.

The layer has attended as ever; what the named heads put out is computed again from the paged cache over what they may
see, and written in the place of it, before it goes to the output projection. So this measures what is lost when keys
are dropped, and drops none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import Module

from retrieval_heads.runs.mask import Stream
from retrieval_heads.tracing.layer_kinds import LayerKind
from retrieval_heads.tracing.streamed import PRODUCTS, PRODUCTS_ON_CPU, ROWS, ROWS_ON_CPU, Seen, Tile, there, together
from retrieval_heads.tracing.worker import STREAM, Scheduled, runner

LAYERS, HOW = "layers", "stream"
"""Under the edit's key: by place of the layer, the heads that stream; and the fields of `Stream`."""


class Streams:
    """The requests of one step some of whose heads stream.

    Args:
        kinds: Of each layer.
        scheduled: The requests.
        computed: Tokens of each that earlier steps computed.
        device: Where the model is.
    """

    def __init__(
        self, kinds: Sequence[LayerKind], scheduled: Sequence[Scheduled], computed: Sequence[int], device: torch.device
    ) -> None:
        self._kinds = kinds
        self._scheduled = scheduled
        self._device = device
        self._layers = [dict(one.extra_args[STREAM][LAYERS]) for one in scheduled]
        """By request, the heads of each layer by its place."""
        tiles = []
        for request, (one, position) in enumerate(zip(scheduled, computed, strict=True)):
            stream = Stream.of_json(one.extra_args[STREAM][HOW])
            skipped = max(0, stream.first_row - position)
            tile = Tile(request, one.row, one.start + skipped, position + skipped, one.tokens - skipped, stream)
            tiles.append(tile)
        heads = max((len(each) for layers in self._layers for each in layers.values()), default=1)
        if device.type == "cuda" and all(kind.streams_by_kernel for kind in kinds):
            heads = 0
        products, rows = (PRODUCTS_ON_CPU, ROWS_ON_CPU) if device.type == "cpu" else (PRODUCTS, ROWS)
        self._seen = [Seen(each, device) for each in together(tiles, heads, products, rows)]
        self._queries: list[Tensor] = []
        self._chosen: dict[int, Tensor] = {}

    @classmethod
    def of_step(cls, kinds: Sequence[LayerKind]) -> Streams:
        """Those of the step that runs."""
        scheduled, computed = runner().scheduled[STREAM], runner().input_batch.num_computed_tokens_cpu
        return cls(kinds, scheduled, [int(computed[one.row]) for one in scheduled], runner().device)

    @property
    def layers(self) -> list[int]:
        """Places of the layers some of whose heads stream, in order; none where no row sees less than all."""
        return sorted({int(layer) for layers in self._layers for layer in layers}) if self._seen else []

    def take(self, layer: int, queries: Tensor) -> None:
        """Keep the rows' queries, as a copy: vLLM's kernels go on to write where they lie.

        Args:
            layer: Its place.
            queries: Of all tokens of the forward, `[tokens, heads, head_size]`.
        """
        self._queries = [queries.index_select(0, seen.tokens).unflatten(0, seen.rows.shape) for seen in self._seen]

    def write(self, layer: int, module: Module, output: Tensor) -> None:
        """Put in the streaming heads' output what they see less than all makes of it.

        Args:
            layer: Its place.
            module: vLLM's.
            output: What the layer's attention put out, of all tokens of the forward; this rank's heads.
        """
        heads = output.view(output.shape[0], self._queries[0].shape[2], -1)
        streaming = self._streaming(heads.shape[1])[layer]
        for seen, queries in zip(self._seen, self._queries, strict=True):
            self._kinds[layer].stream(module, queries, seen, streaming, heads)

    def _streaming(self, heads: int) -> Tensor:
        """Which of this rank's heads stream, in all layers of so many heads, `[layers, requests, heads]`; put together
        once a step, of what is made once a request.
        """
        if heads not in self._chosen:
            name = f"streaming of {heads}"
            for one, layers in zip(self._scheduled, self._layers, strict=True):
                if name not in one.state:
                    one.state[name] = self._own(layers, heads)
            self._chosen[heads] = torch.stack([one.state[name] for one in self._scheduled], dim=1)
        return self._chosen[heads]

    def _own(self, layers: Mapping[int, Sequence[int]], heads: int) -> Tensor:
        """Of one request, `[layers, heads]`."""
        from vllm.distributed import get_tensor_model_parallel_rank

        first = get_tensor_model_parallel_rank() * heads
        chosen = torch.zeros(len(self._kinds), heads, dtype=torch.bool)
        for layer, each in layers.items():
            chosen[layer, [head - first for head in each if first <= head < first + heads]] = True
        return there(chosen, self._device)

"""Weights of rows on single keys, added up over the rows: what `HeadScore.weighings` asks for.

A pass over all keys has left each row's log-sum-exp; the weight on one key is then one product, so that many rows may
look at a key each, or at each key of a short span, without another pass. Sums over rows come piece by piece as prefill
is chunked, and are as small as a span. Nothing here knows vLLM or waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from retrieval_heads.heads.looks import Weigh, Weighing
from retrieval_heads.tracing.gated_delta import effective_weights

NUMBERS_AT_A_TIME = 4 << 20
"""Of queries, of keys or of their products that are held at once: 16 MB in float32."""


@dataclass(frozen=True)
class Weighed:
    """A weighing's rows in one step.

    Args:
        weighing: What is weighed.
        first: Position of the first of these rows in the request, in tokens.
        rows: How many.
        place: Of the first among the rows that `LayerKind.take` gives.
        part: Which of the step's parts it belongs to.
        number: Which of its replay's weighings it is.
    """

    weighing: Weighing
    first: int
    rows: int
    place: int = 0
    part: int = 0
    number: int = 0

    @property
    def keys(self) -> tuple[int, int]:
        """Positions that have to be read, `[start, end)`."""
        end = self.first + self.rows
        if isinstance(self.weighing, Weigh):
            start, stop = self.weighing.keys
            return start, max(start, min(stop, end))
        distance = self.weighing.distance
        return max(0, self.first - distance), max(0, end - distance)

    @property
    def own(self) -> slice:
        """Its rows among those of `take`."""
        return slice(self.place, self.place + self.rows)


@dataclass(frozen=True)
class Softmax:
    """How products become scores.

    Args:
        scale: Factor of q · k.
        sliding_window: Keys that a row sees, itself included; `None` is all.
        soft_cap: `None` or 0 is none.
        alibi_slopes: `[query_heads]`.
    """

    scale: float
    sliding_window: int | None = None
    soft_cap: float | None = None
    alibi_slopes: Tensor | None = None


def weigh(
    weighed: Weighed, q: Tensor, logsumexp: Tensor, read: Callable[[int, int], Tensor], softmax: Softmax
) -> Tensor:
    """The sums of a weighing over a step's rows, float32 `[layers, sums, query_heads]`.

    Args:
        weighed: The rows and what they look at.
        q: `[layers, rows, query_heads, head_size]`.
        logsumexp: Of each row over all that it sees, sink included, `[layers, rows, query_heads]`.
        read: Gives keys `[layers, stop - start, kv_heads, head_size]` of positions, in float32, multiplied by their
            scale.
        softmax: The layers', alike.
    """
    layers, rows, heads, size = q.shape
    start, stop = weighed.keys
    sums = torch.zeros(layers, weighed.weighing.sums, heads, device=q.device)
    position = torch.arange(weighed.first, weighed.first + rows, device=q.device)
    count = max(1, NUMBERS_AT_A_TIME // (layers * heads * size))
    if isinstance(weighed.weighing, Weigh):
        for first in range(start, stop, count):
            keys = read(first, min(stop, first + count))
            key = torch.arange(first, first + keys.shape[1], device=q.device)
            for some in _pieces(rows, max(1, count * size // max(size, keys.shape[1]))):
                products = torch.einsum("lrkgd,lnkd->lrnkg", _grouped(q[:, some], keys), keys).flatten(3)
                weights = _weights(products, position[some, None], key[None, :], logsumexp[:, some, None], softmax)
                sums[:, first - start : first - start + keys.shape[1]] += weights.sum(1)
        return sums
    for some in _pieces(rows, count):
        first, last = (weighed.first + row - weighed.weighing.distance for row in (some.start, some.stop))
        if last <= 0:
            continue  # no row of these has so many before it
        keys = read(max(0, first), last)
        key = position[some] - weighed.weighing.distance
        behind = keys.index_select(1, (key - max(0, first)).clamp(min=0))
        products = torch.einsum("lrkgd,lrkd->lrkg", _grouped(q[:, some], keys), behind).flatten(2)
        sums[:, 0] += _weights(products, position[some], key, logsumexp[:, some], softmax).sum(1)
    return sums


def _pieces(rows: int, count: int) -> Iterator[slice]:
    for start in range(0, rows, count):
        yield slice(start, min(rows, start + count))


def _grouped(q: Tensor, keys: Tensor) -> Tensor:
    """Queries `[layers, rows, kv_heads, group, head_size]`, in float32."""
    return q.float().unflatten(2, (keys.shape[2], -1))


def _weights(products: Tensor, row: Tensor, key: Tensor, logsumexp: Tensor, softmax: Softmax) -> Tensor:
    """Of products `[layers, *places, heads]`, the places' rows and keys being `row` and `key`."""
    scores = products * softmax.scale
    if softmax.soft_cap:
        scores = torch.tanh(scores / softmax.soft_cap) * softmax.soft_cap
    if softmax.alibi_slopes is not None:
        scores = scores + softmax.alibi_slopes.float() * (key - row)[..., None]
    is_seen = (key <= row) & (key >= 0)
    if softmax.sliding_window is not None:
        is_seen &= key > row - softmax.sliding_window
    # A row whose softmax is not defined has NaN for its sum, which must not be lost where it does not see the key.
    return torch.where(is_seen[..., None], scores - logsumexp, logsumexp * 0 - torch.inf).exp()


def weigh_gated_delta(weighed: Weighed, q: Tensor, keys: Tensor, log_decay: Tensor, strength: Tensor) -> Tensor:
    """The same of a recurrence's effective weights, by their magnitude, `[sums, v_heads]`: another pass over its keys.

    Args:
        weighed: The rows and what they look at.
        q: Those rows', `[rows, v_heads, head_k_dim]`.
        keys: See `gated_delta.effective_weights`, as the next two.
    """
    rows, heads, _ = q.shape
    position = torch.arange(weighed.first, weighed.first + rows, device=q.device)
    start, stop = weighed.keys
    is_span = isinstance(weighed.weighing, Weigh)
    total = torch.zeros(rows, heads, device=q.device)
    found = torch.zeros(rows, weighed.weighing.sums, heads, device=q.device)
    for begin, weights in effective_weights(q, weighed.first, keys, log_decay, strength):
        magnitudes, end = weights.abs(), begin + weights.shape[-1]
        total += magnitudes.sum(-1)
        if is_span:
            first, last = max(start, begin), min(stop, end)
            if first < last:
                found[:, first - start : last - start] = magnitudes[..., first - begin : last - begin].transpose(1, 2)
        else:
            place = position - weighed.weighing.distance - begin  # type: ignore[union-attr]  # the other kind
            inside = (place >= 0) & (place < end - begin)
            index = place.clamp(0, end - begin - 1)[:, None, None].expand(-1, heads, 1)
            found[:, 0] += torch.where(inside[:, None], magnitudes.gather(-1, index)[..., 0], 0.0)
    nothing = total == 0
    undefined = ~torch.isfinite(total)
    shares = found / total.masked_fill(nothing, 1.0)[:, None]
    return shares.masked_fill(undefined[:, None], torch.nan).sum(0)

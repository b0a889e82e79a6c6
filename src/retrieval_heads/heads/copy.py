"""`copy`: the share of the needle that a head copied (arXiv 2404.15574, section 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from retrieval_heads.heads.looks import Look, Rows, Seen
from retrieval_heads.heads.score import HeadScore

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Hits:
    """Steps at which a head's argmax lay in the needle, on the very token that the model then emitted.

    Args:
        steps: Whether it did, bool `[layers, requests, answer rows, heads]`.
        places: On which of the needle's tokens, of the same shape; where it did not, any.
        needle_tokens: How many the needle has, `[requests, 1]`.
        longest: The most that one has.
    """

    steps: Tensor
    places: Tensor
    needle_tokens: Tensor
    longest: int


def hits(seen: Seen) -> Hits:
    """Of the rows' argmaxes."""
    return hits_at(seen.argmax, seen)


def hits_at(argmax: Tensor, seen: Seen) -> Hits:
    """Of other positions, `[layers, requests, answer rows, heads]`."""
    import torch

    spans, length, needle, answer = seen.once(_tokens)
    place, inside = torch.zeros_like(argmax, dtype=torch.long), torch.zeros_like(argmax, dtype=torch.bool)
    for start, end, before in spans:
        here = (argmax >= start) & (argmax < end)
        place = torch.where(here, argmax - start + before, place)
        inside |= here
    request = torch.arange(len(seen.requests), device=argmax.device)[:, None, None]
    return Hits(
        steps=inside & seen.counts[:, :, None] & (needle[request, place] == answer[:, :, None]),
        places=place,
        needle_tokens=length[:, :, 0],
        longest=needle.shape[1],
    )


def _tokens(seen: Seen) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where each needle starts and ends and how many tokens of other needles are counted before it, `[needles, 3,
    requests, 1, 1]`; how many tokens a request's needles have, `[requests, 1, 1]`; their tokens and the answer's,
    `[requests, most]` each.
    """
    most = max(len(rows.spans) for rows in seen.requests)
    ints: list[list[int]] = []
    for number in range(most):
        # Of a request with fewer needles nothing is inside.
        spans = [rows.spans[number] if number < len(rows.spans) else (0, 0) for rows in seen.requests]
        before = [sum(end - start for start, end in rows.spans[:number]) for rows in seen.requests]
        ints += [[start for start, _ in spans], [end for _, end in spans], before]
    ints.append([len(rows.needle) for rows in seen.requests])
    table = seen.ints(ints)[:, :, None, None]
    needle = seen.ints([rows.needle for rows in seen.requests], -2)  # which is no answer's token
    return table[:-1].unflatten(0, (most, 3)), table[-1], needle, seen.ints([rows.answer for rows in seen.requests])


def copied(found: Hits) -> Tensor:
    """The share of the needle's tokens that were hit, `[layers, requests, heads]`."""
    import torch

    layers, requests, _, heads = found.steps.shape
    tokens = torch.zeros(layers, requests, heads, found.longest, device=found.steps.device)
    tokens.scatter_reduce_(3, found.places.transpose(2, 3), found.steps.transpose(2, 3).float(), "amax")
    return tokens.sum(3) / found.needle_tokens


def copied_tokens(seen: Seen) -> Tensor:
    """Which of the needle's tokens was hit at each step, counted from 1; 0 where none was: of `Hits.steps`' shape."""
    import torch

    found = seen.once(hits)
    return torch.where(found.steps, found.places + 1, 0)


class Copy(HeadScore):
    """Distinct tokens of the needle that a head copied."""

    name = "copy"
    definition = (
        "distinct needle tokens that were the head's argmax while the model emitted that very token, over the "
        "needle's length (arXiv 2404.15574)"
    )
    label = "copy"

    def looks(self, rows: Rows) -> Sequence[Look]:
        """The answer's rows, at the needle."""
        return [Look(rows.answer_rows, rows.needle_span)]

    def figure(self, seen: Seen) -> Tensor:
        """The share of the needle's tokens."""
        return copied(seen.once(hits))


SCORE = Copy()

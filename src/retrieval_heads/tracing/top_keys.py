"""Which keys of a span are among the greatest of a row, found in one pass over the row's keys: the torch path.

A key is among a row's top n where fewer than n keys that the row sees have a greater score. So of keys that tie across
the last place all are in, and that is so wherever a key lies and in whatever order the keys are met.
"""

from __future__ import annotations

import math

import numpy
import torch
from torch import Tensor

GROUP = 8
"""Keys whose greatest score stands for them: as many groups as there are above a score, so many keys at least are."""


class TopKeys:
    """The n greatest scores of rows, as far as the span's keys could be among them.

    Of most rows and heads they could not: n groups have a key above the span's best, and to count these takes one pass,
    where choosing takes twenty. So the span's keys should come first.

    Args:
        count: n.
        shape: Of the rows: all dimensions of scores but the last.
        device: Theirs.
        dtype: Theirs.
    """

    def __init__(self, count: int, shape: torch.Size, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self._count = count
        self._greatest = torch.full((*shape, count), -math.inf, device=device, dtype=dtype)
        self._least = self._greatest[..., -1].clone()
        """Not above the nth greatest score; it once the last keys were met, or above all of the span's."""
        self._best = self._least.clone()

    def add(self, scores: Tensor, inside: slice, *, is_span_met: bool, at: int | slice = slice(None)) -> None:
        """Meet more keys.

        Args:
            scores: `[*shape, keys]`, -inf where a row does not see; they are only read.
            inside: Which of them are the span's.
            is_span_met: Whether no later ones are.
            at: Of which rows they are, along the first dimension.
        """
        keys = scores.shape[-1]
        if scores.is_cuda:  # to choose rows there would be to wait for it
            self._greatest[at] = torch.cat([self._greatest[at], scores], dim=-1).topk(self._count).values
            self._least[at] = self._greatest[at][..., -1]
            return
        # Keys that lie far apart: of neighbours the maximum takes torch ten times as long.
        groups = scores.unflatten(-1, (GROUP, -1)).amax(-2) if keys % GROUP == 0 else scores
        least, best, own = self._least[at], self._best[at], scores[..., inside]
        if own.shape[-1]:
            torch.maximum(best, own.amax(-1), out=best)
        matters = groups.amax(-1) > least
        if is_span_met:
            passed = torch.gt(groups, best[..., None], out=torch.empty_like(groups)).sum(-1) >= self._count
            least.masked_fill_(passed, math.inf)
            matters &= ~passed
        where = matters.numpy().nonzero()
        if not len(where[0]):
            return
        # In numpy: torch takes seven times as long to choose the greatest, and three times to pick rows.
        greatest, nth = self._greatest[at].numpy(), least.numpy()
        met = numpy.concatenate([greatest[where], scores.numpy()[where]], axis=-1)
        met.partition(keys, axis=-1)
        greatest[where] = met[:, keys:]
        nth[where] = numpy.maximum(nth[where], met[:, keys])

    def among(self, inside: Tensor) -> Tensor:
        """Which of the span's scores, `[*shape, keys of it that were met]`, are among the top of their row."""
        return inside >= self._least[..., None]

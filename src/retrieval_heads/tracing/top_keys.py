"""Which keys of a span are among the greatest of a row, found in one pass over the row's keys: the torch path.

A key is among a row's top n where fewer than n keys that the row sees have a greater score. So of keys that tie across
the last place all are in, and that is so wherever a key lies and in whatever order the keys are met.
"""

from __future__ import annotations

import math

import numpy
import torch
from torch import Tensor


class TopKeys:
    """The n greatest scores of rows, as far as the span's keys could be among them.

    Of most rows and heads they could not: n keys are above the span's best, and to count these takes one pass, where
    choosing takes twenty. So the span's keys should come first.

    Args:
        count: n.
        shape: Of the rows: all dimensions of scores but the last.
        device: Theirs.
        dtype: Theirs.
        is_in_pieces: Whether a row's keys are met in several pieces.
    """

    def __init__(
        self,
        count: int,
        shape: torch.Size,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        *,
        is_in_pieces: bool = True,
    ) -> None:
        self._count, self._is_in_pieces = count, is_in_pieces
        self._greatest = torch.full((*shape, count), -math.inf, device=device, dtype=dtype)
        self._least = torch.full(shape, -math.inf, device=device, dtype=dtype)
        """Not above the nth greatest score; it once the last keys were met, or above all of the span's."""
        self._of_span = self._least.clone()
        """The greatest of the span's."""
        self._above = torch.empty(0, dtype=dtype)
        """Memory that was written before: the system's new pages take as long as the comparison."""

    def add(
        self, scores: Tensor, best: Tensor, inside: Tensor, *, is_span_met: bool, at: int | slice = slice(None)
    ) -> None:
        """Meet more keys.

        Args:
            scores: `[*shape, keys]`, -inf where a row does not see; they are only read.
            best: The greatest of them, `[*shape]`.
            inside: Those of them that are the span's, `[*shape, keys of it]`.
            is_span_met: Whether no later ones are.
            at: Of which rows they are, along the first dimension.
        """
        if scores.is_cuda:  # to choose rows there would be to wait for it
            self._greatest[at] = torch.cat([self._greatest[at], scores], dim=-1).topk(self._count).values
            self._least[at] = self._greatest[at][..., -1]
            return
        least, of_span = self._least[at], self._of_span[at]
        if inside.shape[-1]:
            torch.maximum(of_span, inside.amax(-1), out=of_span)
        # In numpy: torch takes seven times as long to choose the greatest, and to each small step.
        nth, greatest = least.numpy(), self._greatest[at].numpy()
        matters = best.numpy() > nth
        if is_span_met:
            if self._above.shape != scores.shape:
                self._above = torch.empty(scores.shape, dtype=scores.dtype)
            passed = torch.gt(scores, of_span[..., None], out=self._above).sum(-1).numpy() >= self._count
            nth[passed] = math.inf
            matters &= ~passed
        where = matters.nonzero()
        if not len(where[0]):
            return
        met = scores.numpy()[where]
        if self._is_in_pieces:
            met = numpy.concatenate([greatest[where], met], axis=-1)
        place = met.shape[-1] - self._count
        if place < 0:
            return  # fewer keys than places
        met.partition(place, axis=-1)
        nth[where] = numpy.maximum(nth[where], met[:, place])
        if self._is_in_pieces:
            greatest[where] = met[:, place:]

    def among(self, inside: Tensor) -> Tensor:
        """Which of the span's scores, `[*shape, keys of it that were met]`, are among the top of their row."""
        return inside >= self._least[..., None]

"""Which scores have no figure in which layers, and why: for the summary and for `models --check`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from retrieval_heads.heads.score import head_score
from retrieval_heads.runs.layers import Layer, named


def lacking(names: Iterable[str], layers: Iterable[Layer]) -> Iterator[str]:
    """A sentence for each score and reason: which layers with heads have none of it.

    Args:
        names: The scores.
        layers: All layers of a model.
    """
    having = [layer for layer in layers if layer.heads]
    for name in names:
        reasons: dict[str, list[int]] = {}
        for layer in having:
            for need in sorted(head_score(name).needs & layer.lacks.keys()):
                reasons.setdefault(layer.lacks[need], []).append(layer.number)
        yield from (f"no {name} in {named(numbers)}: {reason}" for reason, numbers in reasons.items())
